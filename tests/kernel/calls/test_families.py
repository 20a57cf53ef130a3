"""Handlers of families: each call of a family, as programs make it, arrives with the same arguments."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import View
from viewfs.linux.numbers import syscall_number
from viewfs.linux.signatures import FAMILIES

OpenView = Callable[..., View]
WriteModule = Callable[..., Path]
WriteCaller = Callable[[str], str]

#: A module that writes down what its handlers get, and lets all of it go on.
RECORDER = "\n".join(
    [
        "seen = []",
        *(
            f"@call({family!r})\ndef on_{family}(self, caller, *arguments):\n"
            f"    self.seen.append((caller.call, {family!r}, *arguments))\n    return GO_ON"
            for family in FAMILIES
        ),
        "def owns(self, caller, *arguments):\n    return caller.cwd.endswith('/watched')",
        '@call(5000, "out@1 size")\ndef tell(self, caller, answer, size):',
        "    answer += repr(self.seen).encode()\n    self.seen.clear()\n    return len(answer)",
    ]
)
DIR, FILE = 30, 31
AT_CWD, EMPTY, NOFOLLOW, REMOVEDIR = -100, 0x1000, 0x100, 0x200
TIMES = (1, 500_000_000, 2, 7)
#: What is called, with which arguments, and what its handler gets. A list stands for a buffer of that many bytes, a
#: tuple for numbers of 64 bits that are in memory, D for the directory.
CALLS: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
    ("access", ("file", 4), ("D/file", 4)), ("faccessat", (DIR, "file", 4), ("D/file", 4)),
    ("faccessat2", (DIR, "file", 4, 0), ("D/file", 4)),
    ("chmod", ("D/file", 0o600), ("D/file", 0o600)), ("fchmod", (FILE, 0o600), (FILE, 0o600)),
    ("fchmodat", (DIR, "file", 0o600), ("D/file", 0o600)),
    ("dup", (FILE,), (FILE, None, 0)), ("dup2", (FILE, 60), (FILE, 60, 0)),
    ("dup3", (FILE, 60, os.O_CLOEXEC), (FILE, 60, os.O_CLOEXEC)), ("close", (60,), (60,)),
    ("execve", ("D/none", 0, 0), ("D/none", [], [])), ("execveat", (DIR, "none", 0, 0, 0), ("D/none", [], [])),
    ("getdents64", (DIR, [4096], 4096), (DIR, 4096)),
    ("getxattr", ("file", "user.a", [9], 9), ("D/file", "user.a")),
    ("lgetxattr", ("file", "user.a", None, 0), ("D/file", "user.a")),
    ("fgetxattr", (FILE, "user.a", [9], 9), (FILE, "user.a")),
    ("chown", ("file", -1, 5), ("D/file", -1, 5, True)), ("lchown", ("file", -1, 5), ("D/file", -1, 5, False)),
    ("fchown", (FILE, 5, -1), (FILE, 5, -1, True)),
    ("fchownat", (DIR, "file", 5, 6, NOFOLLOW), ("D/file", 5, 6, False)),
    ("fchownat", (FILE, "", 5, 6, EMPTY), (FILE, 5, 6, True)),
    ("link", ("file", "sub/../new"), ("D/file", "D/new")),
    ("linkat", (DIR, "file", AT_CWD, "new", 0), ("D/file", "D/new")),
    ("listxattr", ("file", [99], 99), ("D/file",)), ("flistxattr", (FILE, None, 0), (FILE,)),
    ("lseek", (FILE, -1, 2), (FILE, -1, 2)),
    ("stat", ("file", [144]), ("D/file", True)), ("lstat", ("file", [144]), ("D/file", False)),
    ("fstat", (FILE, [144]), (FILE, True)), ("newfstatat", (DIR, "file", [144], 0), ("D/file", True)),
    ("newfstatat", (FILE, "", [144], EMPTY), (FILE, True)),
    ("newfstatat", (AT_CWD, "sub/file", [144], NOFOLLOW), ("D/sub/file", False)),
    ("statx", (DIR, "./file", 0, 0x7FF, [256]), ("D/file", True)),
    ("mkdir", ("file", 0o755), ("D/file", 0o755)), ("mkdirat", (DIR, "file", 0o755), ("D/file", 0o755)),
    ("open", ("file", os.O_RDONLY, 0o777), ("D/file", os.O_RDONLY, 0)),
    ("open", ("/etc/../etc//hostname", 0, 0), ("/etc/hostname", 0, 0)),
    ("openat", (DIR, "file", os.O_RDWR | os.O_CREAT, 0o644), ("D/file", os.O_RDWR | os.O_CREAT, 0o644)),
    ("openat", (FILE, "/etc/hostname", 0, 0), ("/etc/hostname", 0, 0)),
    ("openat2", (DIR, "file", (os.O_RDONLY, 0, 0), 24), ("D/file", os.O_RDONLY, 0)),
    ("creat", ("file", 0o644), ("D/file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)),
    ("pread64", (FILE, [9], 9, 4), (FILE, 9, 4)), ("pwrite64", (FILE, b"abc", 3, 2), (FILE, b"abc", 2)),
    ("read", (FILE, [9], 9), (FILE, 9)), ("write", (FILE, b"abc", 3), (FILE, b"abc")),
    ("readlink", ("link", [9], 9), ("D/link",)), ("readlinkat", (DIR, "link", [9], 9), ("D/link",)),
    ("removexattr", ("file", "user.a"), ("D/file", "user.a")), ("fremovexattr", (FILE, "user.a"), (FILE, "user.a")),
    ("rename", ("none", "new"), ("D/none", "D/new", 0)),
    ("renameat", (DIR, "none", DIR, "new"), ("D/none", "D/new", 0)),
    ("renameat2", (DIR, "none", AT_CWD, "new", 1), ("D/none", "D/new", 1)),
    ("rmdir", ("none",), ("D/none",)), ("unlinkat", (DIR, "none", REMOVEDIR), ("D/none",)),
    ("setxattr", ("file", "user.a", b"v", 1, 0), ("D/file", "user.a", b"v", 0)),
    ("fsetxattr", (FILE, "user.a", None, 0, 1), (FILE, "user.a", b"", 1)),
    ("statfs", ("file", [120]), ("D/file",)), ("fstatfs", (FILE, [120]), (FILE,)),
    ("symlink", ("to/no/place", "link"), ("to/no/place", "D/link")),
    ("symlinkat", ("x", DIR, "link"), ("x", "D/link")),
    ("fsync", (FILE,), (FILE,)), ("fdatasync", (FILE,), (FILE,)), ("syncfs", (FILE,), (FILE,)),
    ("sync_file_range", (FILE, 0, 0, 0), (FILE,)), ("msync", (0, 0, 0), (None,)),
    ("clock_gettime", (0, [16]), (0,)), ("clock_gettime", (1, [16]), (1,)), ("gettimeofday", ([16], None), (0,)),
    ("time", (None,), (0,)),
    ("truncate", ("file", 3), ("D/file", 3)), ("ftruncate", (FILE, 3), (FILE, 3)),
    ("unlink", ("none",), ("D/none",)), ("unlinkat", (DIR, "none", 0), ("D/none",)),
    ("utime", ("file", (1, 2)), ("D/file", (10**9, 2 * 10**9), True)),
    ("utimes", ("file", None), ("D/file", None, True)),
    ("utimes", ("file", (1, 5, 2, 0)), ("D/file", (1_000_005_000, 2 * 10**9), True)),
    ("utimensat", (DIR, "file", TIMES, NOFOLLOW), ("D/file", (1_500_000_000, 2_000_000_007), False)),
    ("utimensat", (FILE, None, (0, (1 << 30) - 1, 0, (1 << 30) - 2), 0), (FILE, (-1, -2), True)),
]  # fmt: skip
LINES = """
import ast, struct
from pathlib import Path
top, calls = Path(sys.argv[1]), ast.literal_eval(Path(sys.argv[2]).read_text())
for fd, path in ((30, top), (31, top / "file")):
    if fd == 31: path.write_text("content")
    os.dup2(os.open(path, os.O_RDWR if fd == 31 else os.O_RDONLY), fd)
(top / "sub").mkdir()
os.chdir(top)
room = bytearray(1 << 16)
for number, arguments in calls:
    call(5000, room, len(room))
    given = []
    for argument in arguments:
        if isinstance(argument, str): given.append(argument.replace("D/", f"{top}/"))
        elif isinstance(argument, list): given.append(bytearray(argument[0]))
        elif isinstance(argument, tuple): given.append(bytearray(struct.pack(f"={len(argument)}q", *argument)))
        else: given.append(argument)
    outcome(number, *given)
    size = call(5000, room, len(room))
    sys.stdout.buffer.write(bytes(room[:size]) + b"\\n")
    sys.stdout.buffer.flush()
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have fewer of these calls")
def test_each_call_of_each_family(
    open_view: OpenView, module: WriteModule, caller: WriteCaller, tmp_path: Path
) -> None:
    assert {name for name, _given, _got in CALLS} | {
        "preadv", "preadv2", "pwritev", "pwritev2", "readv", "writev", "sync", "getdents", "fchmodat2", "llistxattr",
        "lremovexattr", "lsetxattr", "futimesat", "utimensat_time64", "_llseek",
    } >= {name for names in FAMILIES.values() for name in names if not name.endswith(("32", "64"))}  # fmt: skip
    (tmp_path / "watched").mkdir()
    (tmp_path / "calls").write_text(repr([(syscall_number(name), given) for name, given, _got in CALLS]))
    view = open_view("--calls=all,close")
    view("insmod", module(RECORDER))
    out = view.sh(f"{caller(LINES)} {tmp_path}/watched {tmp_path}/calls").out
    family_of = {name: family for family, names in FAMILIES.items() for name in names}
    family_of["unlinkat"] = "unlink"
    wrong = []
    for (name, given, got), line in zip(CALLS, out.splitlines(), strict=True):
        family = "rmdir" if name == "unlinkat" and given[-1] else family_of[name]
        told = tuple(a.replace("D/", f"{tmp_path}/watched/") if isinstance(a, str) else a for a in got)
        seen = [one for one in eval(line) if one[1] == family and one[0] == name]
        if seen[-1:] != [(name, family, *told)]:
            wrong.append((name, given, told, eval(line)))
    assert not wrong, wrong[:3]


def test_what_a_family_answers(open_view: OpenView, module: WriteModule, caller: WriteCaller, tmp_path: Path) -> None:
    """A whole file system of handlers: programs find in it what the handlers say."""
    members = """
        content = {"file": bytearray(b"0123456789")}
        fds = {}

        def called(self, path):
            return path.rpartition("/")[2] if isinstance(path, str) else self.fds.get(path)

        @call("lstat")
        def lstat(self, caller, target, follow):
            if target == PLACE:
                return Attributes(1, 0o40755, nlink=2)
            name = self.called(target)
            if name not in self.content:
                raise OSError(errno.ENOENT, "")
            times = dict(atime_ns=10**9, mtime_ns=2 * 10**9 + 5, ctime_ns=3 * 10**9)
            size = len(self.content[name])
            return Attributes(7, 0o100640, size, uid=1, gid=2, nlink=3, rdev=os.makedev(5, 6), **times)

        @call("readlink")
        def readlink(self, caller, target):
            return "to somewhere"

        @call("getxattr")
        def getxattr(self, caller, target, name):
            return name.encode()

        @call("listxattr")
        def listxattr(self, caller, target):
            return ["user.a", b"user.b"]

        @call("setxattr")
        def setxattr(self, caller, target, name, value, flags):
            self.content[self.called(target)] += name.encode() + value

        @call("statfs")
        def statfs(self, caller, target):
            return FileSystemStatistics(512, 100, 50, 40, 30, 20, 60)

        @call("unlink")
        def unlink(self, caller, path):
            del self.content[self.called(path)]

        @call("symlink")
        def symlink(self, caller, target, path):
            self.content[self.called(path)] = bytearray(target.encode())

        @call("rename")
        def rename(self, caller, path, new, flags):
            self.content[self.called(new)] = self.content.pop(self.called(path))

        @call("truncate")
        def truncate(self, caller, target, size):
            del self.content[self.called(target)][size:]

        @call("access")
        def access(self, caller, path, mode):
            if mode & os.W_OK:
                raise OSError(errno.EROFS, "")
    """.replace("PLACE", repr(str(tmp_path / "place")))
    view = open_view("--calls=paths,xattr")
    view("insmod", module(members), tmp_path / "place")
    lines = """
        os.chdir(sys.argv[1])
        print(os.stat("place/file")); status = os.lstat("place/file")
        print(status.st_size, status.st_mtime_ns, os.major(status.st_rdev), os.minor(status.st_rdev))
        print(os.readlink("place/x"), os.getxattr("place/file", "user.test"), os.listxattr("place/file"))
        os.setxattr("place/file", "user.x", b"!"); print(os.stat("place/file").st_size)
        found = os.statvfs("place/file")
        print(found.f_bsize, found.f_blocks, found.f_bavail, found.f_ffree, found.f_namemax)
        os.symlink("abc", "place/new"); print(os.stat("place/new").st_size)
        os.rename("place/new", "place/newer"); os.truncate("place/newer", 2); print(os.stat("place/newer").st_size)
        os.unlink("place/newer"); print(os.path.exists("place/newer"), os.path.exists("place"), os.path.isdir("place"))
        print(os.access("place/file", os.R_OK), os.access("place/file", os.W_OK))
    """
    assert view.sh(f"{caller(lines)} {tmp_path}; stat -c '%s %a %u %h %Y' {tmp_path}/place/file").out.splitlines() == [
        "os.stat_result(st_mode=33184, st_ino=7, st_dev=0, st_nlink=3, st_uid=1, st_gid=2, st_size=10, st_atime=1, "
        "st_mtime=2, st_ctime=3)",
        "10 2000000005 5 6",
        "to somewhere b'user.test' ['user.a', 'user.b']",
        "17",
        "512 100 40 20 60",
        "3",
        "2",
        "False True True",
        "True False",
        "17 640 1 3 2",
    ]


def test_pieces_of_memory(open_view: OpenView, module: WriteModule, caller: WriteCaller, tmp_path: Path) -> None:
    """readv(2), writev(2) and their kind, with memory in pieces."""
    members = """
        written = []

        @call("write")
        def write(self, caller, fd, data):
            self.written.append(data)
            return len(data)

        @call("pread")
        def pread(self, caller, fd, size, offset):
            return (f"{size} from {offset} " * 9).encode()[:size]

        @call(5000, "out@1 size")
        def tell(self, caller, answer, size):
            answer += b"|".join(self.written)
            return len(answer)

        def owns(self, caller, fd, *arguments):
            return fd == 55 or caller.call == "5000"
    """
    view = open_view("--calls=write,pread")
    view("insmod", module(members))
    lines = """
        os.dup2(os.open(sys.argv[1], os.O_RDONLY), 55)
        print(os.write(55, b"one"), os.writev(55, [b"tw", b"", b"o"]))
        pieces = [bytearray(4), bytearray(0), bytearray(7)]
        print(os.preadv(55, pieces, 33), pieces, os.pread(55, 6, 2))
        room = bytearray(100); print(bytes(room[:call(5000, room, 100)]))
        print(len(os.pread(55, 200_000, 0)))
    """
    (tmp_path / "file").touch()
    assert view.sh(f"{caller(lines)} {tmp_path}/file").out.splitlines() == [
        "3 3",
        "11 [bytearray(b'11 f'), bytearray(b''), bytearray(b'rom 33 ')] b'6 from'",
        "b'one|two'",
        "117",
    ]


def test_programs_do_not_notice(open_view: OpenView, module: WriteModule, tmp_path: Path) -> None:
    """With every family notified, and a module that lets all of it go on, programs do what they do without."""
    view = open_view("--calls=all,close")
    view("insmod", module("\n".join(
        f"@call({family!r})\ndef on_{family}(self, caller, *arguments):\n    return GO_ON" for family in FAMILIES
    )))  # fmt: skip
    script = f"""
        cd {tmp_path}; git init -q r; cd r; git config user.email a@b; git config user.name n
        printf 'int main(void) {{ return 3; }}\n' > x.c; git add .; git commit -qm one; git log --oneline | wc -l
        gcc -o x x.c; ./x || echo $?
        tar cf ../t.tar .; mkdir ../u; tar xf ../t.tar -C ../u; diff -r . ../u && echo same
        find . -name x.c; ln -s x.c l; readlink l; rm -r .git; ls -A; python3 -c 'import json; print(json.dumps(1))'
    """
    out = view.sh(script).out
    assert out == "1\n3\nsame\n./x.c\nx.c\nl\nx\nx.c\n1\n"
    assert "Traceback" not in view("log").out
