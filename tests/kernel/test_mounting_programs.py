"""mount(2) and umount2(2) of programs in a view, which have no right to either: the session mounts for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, Viewfs, kill, session_processes, wait_until
from tests.kernel.test_foreign_modules import HELLO_C

OpenView = Callable[..., View]

#: mount(2) and umount2(2), and the errno of each.
CALLS = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def text(value):
    return None if value is None else os.fsencode(value)

def mount(source, place, kind, flags=0, data=None):
    failed = libc.mount(text(source), text(place), text(kind), ctypes.c_ulong(flags), text(data))
    return errno.errorcode[ctypes.get_errno()] if failed else "ok"

def umount(place, flags=0):
    failed = libc.umount2(text(place), flags)
    return errno.errorcode[ctypes.get_errno()] if failed else "ok"

RDONLY, REMOUNT, BIND, MOVE, REC, PRIVATE, SHARED = 1, 32, 4096, 8192, 16384, 1 << 18, 1 << 20
FORCE, DETACH, EXPIRE, NOFOLLOW = 1, 2, 4, 8
"""


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[str], str]:
    """The command that runs lines of Python with these functions, in a directory `d` with `in`, `out` and `link`."""
    directory = tmp_path / "d"
    for name in ("in", "out"):
        (directory / name).mkdir(parents=True)
    (directory / "in/file").write_text("below")
    (directory / "link").symlink_to("out")

    def command(lines: str) -> str:
        (tmp_path / "calls.py").write_text(CALLS + f"os.chdir({str(directory)!r})\n" + lines)
        return f"{sys.executable} {tmp_path / 'calls.py'}"

    return command


def rows(view: View, *names: str) -> list[tuple[str, ...]]:
    return [tuple(row[name] for name in names) for row in view.json("lsmod")["modules"]]


# -- what mount(8) and umount(8) do


@pytest.mark.parametrize("options", [(), ("--as-root",), ("--pid",), ("--hostname", "h")])
def test_mount_and_umount(open_view: OpenView, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_text("below")
    (tmp_path / "out").mkdir()
    view = open_view(*options)
    out = view.sh(f"cd {tmp_path}; mount -t tmpfs none out && echo x > out/x && stat -f -c %T out; ls out").out
    assert out == "tmpfs\nx\n"
    assert rows(view, "module", "path") == [("tmp", str(tmp_path / "out"))]
    assert view.sh(f"cd {tmp_path}; umount out; ls out; mount --bind in out; cat out/file").out == "below"
    assert [row["operation"] for row in view.json("epochs")["epochs"]] == ["start", "mount", "umount", "mount"]
    assert os.listdir(tmp_path / "out") == [], "nobody outside sees it"
    view("umount", tmp_path / "out")


def test_a_tmpfs_has_its_options(viewfs: Viewfs, tmp_path: Path) -> None:
    script = (
        f"mkdir {tmp_path}/m; mount -t tmpfs -o size=64k,mode=700,nosuid none {tmp_path}/m; stat -c %a {tmp_path}/m"
    )
    script += f"; head -c 100000 /dev/zero > {tmp_path}/m/x 2>/dev/null || echo full"
    assert viewfs.sh(script=script).out == "700\nfull\n"


def test_what_can_not_be_written(open_view: OpenView, tmp_path: Path) -> None:
    """mount(8) binds, and then remounts; what is bound stays as it is."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    view = open_view()
    script = f"cd {tmp_path}; mount -o bind,ro in out; touch out/x 2>/dev/null || echo refused; touch in/y; ls out"
    assert view.sh(script).out == "refused\ny\n"
    assert view.sh(f"cd {tmp_path}; mount -o remount,rw out; touch out/z; ls in").out == "y\nz\n"
    assert view.sh(f"cd {tmp_path}; mount -o remount,ro / 2>/dev/null", check=False).code == 32


def test_flags(open_view: OpenView, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/program").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "in/program").chmod(0o755)
    script = f"""
        cd {tmp_path}; mount -t tmpfs -o ro,size=10% none out; touch out/x 2>/dev/null || echo refused; umount out
        mount -t tmpfs -o noexec mine out; cp in/program out; out/program 2>/dev/null || echo refused
        findmnt -rno SOURCE,FSTYPE out; umount out
        mount -o bind,noexec in out; out/program 2>/dev/null || echo refused; mount -o remount,exec out; out/program
        printf 'mine {tmp_path}/out tmpfs size=1m 0 0\n' > fstab; umount out
        mount -a -T fstab; mount -a -T fstab; viewfs lsmod | wc -l; umount out
    """
    assert open_view().sh(script).out == "refused\nrefused\nmine tmpfs\nrefused\nran\n2\n"


def test_what_is_mounted_inside(open_view: OpenView, tmp_path: Path) -> None:
    """`umount -l` takes it away too, `umount -R` one after the other, and what came with a bind can go by itself."""
    for name in ("in/sub", "out"):
        (tmp_path / name).mkdir(parents=True)
    view = open_view()
    nested = f"cd {tmp_path}; mount -t tmpfs n out; mkdir out/d; mount -t tmpfs n out/d"
    assert view.sh(f"{nested}; umount out 2>/dev/null || echo $?; umount -l out; ls out").out == "32\n"
    assert view.sh(f"{nested}; umount -R out; ls out").out == "" and rows(view, "module") == []
    script = f"cd {tmp_path}; mount -t tmpfs n in/sub; touch in/sub/x; mount --rbind in out; ls out/sub; umount -R out"
    assert view.sh(f"{script}; ls out; ls in/sub").out == "x\nx\n"
    assert rows(view, "path") == [(str(tmp_path / "in/sub"),)]


def test_while_others_rename(open_view: OpenView, calls: Callable[[str], str]) -> None:
    """The kernel does not walk `..` in a tree that somebody may just be moving about; one tries again."""
    lines = """
import threading
ends = threading.Event()

def rename():
    os.mkdir("a")
    while not ends.is_set():
        os.rename("a", "b"); os.rename("b", "a")

renaming = threading.Thread(target=rename)
renaming.start()
print({mount("none", "in/../in/../out", "tmpfs") + umount("in/../out/../out") for _number in range(30)})
ends.set(); renaming.join()
"""
    assert open_view().sh(calls(lines)).out == "{'okok'}\n"


def test_programs_that_enter_the_view(open_view: OpenView, tmp_path: Path) -> None:
    """From outside (`enter`), from inside (`at`), and in a view inside."""
    (tmp_path / "m").mkdir()
    view = open_view()
    name, mount = view.name, f"mount -t tmpfs none {tmp_path}/m"
    view.sh(mount)
    assert rows(view, "module") == [("tmp",)]
    view.sh(f"umount {tmp_path}/m; viewfs enter {name} -- {mount}")
    assert rows(view, "epoch") == [(3,)]
    inside = view.sh(
        f"umount {tmp_path}/m; viewfs run -- sh -c '{mount}; viewfs lsmod --json; umount {tmp_path}/m'"
    ).out
    assert '"module": "tmp"' in inside
    assert rows(view, "module") == [], "it was a mount of the view inside"


def test_an_epoch_that_has_ended_is_not_changed(open_view: OpenView, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    view = open_view()
    view("insmod", "hello", "/hello")
    refused = view.sh(f"viewfs at 0 -- mount -t tmpfs none {tmp_path}/m", check=False)
    assert refused.code != 0 and len(rows(view, "module")) == 1


def test_a_view_without_calls(viewfs: Viewfs, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    refused = viewfs("run", "--no-calls", "--", "mount", "-t", "tmpfs", "none", tmp_path / "m", check=False)
    assert refused.code == 32 and "superuser" in refused.err


def test_programs_with_namespaces_of_their_own(viewfs: Viewfs, tmp_path: Path) -> None:
    """They mount there by themselves, and the view knows nothing of that."""
    (tmp_path / "m").mkdir()
    script = f"unshare -Urm sh -c 'mount -t tmpfs none {tmp_path}/m && grep -c {tmp_path}/m /proc/mounts'; viewfs lsmod"
    out = viewfs.sh(script=script).out
    assert out.splitlines()[0] == "1" and len(out.splitlines()) == 2


# -- the calls themselves


def test_answers_of_mount(open_view: OpenView, tmp_path: Path, calls: Callable[[str], str]) -> None:
    lines = """
print(mount("none", "out", "tmpfs"), umount("out"))
print(mount("in", "link", None, BIND), open("out/file").read(), umount("link", NOFOLLOW), umount("link"))
print(mount("in", "out/", None, BIND | REC | RDONLY), umount("./out/../out"))
print(mount("in/file", "out", None, BIND), mount("in", "in/file", None, BIND), mount("none", "in/file", "tmpfs"))
print(mount("none", "out", "tmpfs", 0, "uid=77"), mount("none", "out", "fuse", 0, "fd=0"), os.listdir("out"))
print(mount("nothing", "out", None, BIND), mount("none", "nothing", "tmpfs"), mount("none", "in/file/x", "tmpfs"))
print(mount("none", "out", "nosuchtype"), mount("none", "out", "proc"), mount("none", "", "tmpfs"))
print(mount("none", None, "tmpfs"), mount("none", "x" * 5000, "tmpfs"), mount("none", "x" * 300, "tmpfs"))
print(mount("none", "/", None, PRIVATE | REC), mount("none", "/", None, SHARED), mount("none", "out", None, REMOUNT))
print(mount("none", None, None, REMOUNT), mount("none", "nothing", None, REMOUNT))
print(mount("none", "out", "tmpfs", 0xC0ED0000), umount("out"))
print(libc.mount(1, b"out", b"tmpfs", 0, 5), ctypes.get_errno() == errno.EFAULT)
"""
    assert open_view().sh(calls(lines)).out.splitlines() == [
        "ok ok",
        "ok below EINVAL ok",
        "ok ok",
        "ENOTDIR ENOTDIR ENOTDIR",
        "EINVAL EINVAL []",
        "ENOENT ENOENT ENOTDIR",
        "EPERM EPERM ENOENT",
        "EFAULT ENAMETOOLONG ENAMETOOLONG",
        "ok EPERM EINVAL",
        "EFAULT ENOENT",
        "ok ok",
        "-1 True",
    ]


def test_answers_of_umount(open_view: OpenView, calls: Callable[[str], str]) -> None:
    lines = """
out = os.path.abspath("out")
print(umount("out"), umount("nothing"), umount(""), umount(None), umount("/"), umount("out", EXPIRE))
print(mount("none", "out", "tmpfs"))
os.mkdir("out/sub"); os.chdir("out/sub")
print(umount(".."), umount("/proc/self/cwd"), umount("..", DETACH))
os.chdir("/"); fd = os.open(out, os.O_PATH)
print(mount("none", f"/proc/self/fd/{fd}", "tmpfs"), mount("none", f"/dev/fd/{fd}/../in", "tmpfs"))
print(umount(f"/proc/self/fd/{fd}", NOFOLLOW), umount(f"/proc/self/fd/{fd}"), umount(f"{out}/../in"))
"""
    assert open_view().sh(calls(lines)).out.splitlines() == [
        "EINVAL ENOENT ENOENT EFAULT EINVAL EPERM",
        "ok",
        "EBUSY EINVAL ok",
        "ok ok",
        "EINVAL ok ok",
    ]


def test_what_failed_is_in_the_log(open_view: OpenView, calls: Callable[[str], str]) -> None:
    view = open_view()
    assert view.sh(calls('print(umount("out"))')).out == "EINVAL\n"
    assert "umount(2) of python" in (log := view("log").out) and "nothing of this view is mounted on" in log


def test_an_image(open_view: OpenView, image: Callable[..., Path], calls: Callable[[str], str]) -> None:
    """Its kind is said, or found."""
    disk = image(file="content")
    lines = f"""
print(mount({str(disk)!r}, "out", "ext4", RDONLY), open("out/file").read(), umount("out"))
print(mount({str(disk)!r}, "out", "auto"), mount({str(disk)!r}, "out", "auto", RDONLY))
print(open("out/file").read(), umount("out"))
print(mount({str(disk)!r}, "out", "squashfs"), os.listdir("out"))
"""
    out = open_view().sh(calls(lines)).out.splitlines()
    assert out == ["ok content ok", "EROFS ok", "content ok", "EINVAL []"]


def test_the_newer_calls_are_missing(open_view: OpenView, calls: Callable[[str], str]) -> None:
    """So that programs use mount(2); but open_tree(2) opens, as it may."""
    lines = """
def call(number, *arguments):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *arguments) < 0 else "ok"

fsopen, fspick, open_tree, move_mount, mount_setattr = 430, 433, 428, 429, 442
print(call(fsopen, b"tmpfs", 0), call(fspick, -100, b"out", 0), call(open_tree, -100, b"out", 1))
print(call(open_tree, -100, b"out", 0), call(move_mount, 3, b"", 4, b"", 0), call(mount_setattr, 3, b"", 0, 0, 0))
"""
    assert open_view().sh(calls(lines)).out == "ENOSYS ENOSYS ENOSYS\nok ENOSYS ENOSYS\n"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86_64 has programs of 32 bits")
def test_a_caller_of_32_bits(open_view: OpenView, tmp_path: Path) -> None:
    """By the call table of i386, with pointers that fit."""
    (tmp_path / "m").mkdir()
    (tmp_path / "caller.c").write_text(r"""
        #include <stdio.h>
        #include <string.h>
        #include <sys/mman.h>
        static long call(long number, long b, long c, long d, long e, long f) {
            long result;
            register long r8 asm("r8") = 0; (void)r8;
            asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(d), "S"(e), "D"(f) : "memory");
            return result;
        }
        int main(int argc, char **argv) {
            char *low = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
            strcpy(low, "none"); strcpy(low + 16, "tmpfs"); strcpy(low + 32, argv[1]);
            printf("%ld\n", call(21, (long)low, (long)low + 32, (long)low + 16, 0, 0));
            printf("%ld\n", call(22, (long)low + 32, 0, 0, 0, 0));
            printf("%ld\n", call(52, (long)low + 32, 0, 0, 0, 0));
        }
    """)
    subprocess.run(["gcc", "-o", tmp_path / "caller", tmp_path / "caller.c"], check=True)
    view = open_view()
    assert view.sh(f"{tmp_path / 'caller'} {tmp_path / 'm'}").out == "0\n0\n-22\n"
    assert len(view.json("epochs")["epochs"]) == 3


def test_many_at_once(open_view: OpenView, calls: Callable[[str], str]) -> None:
    """More than there is room for: they wait for each other."""
    lines = """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(300) as pool:
    print(set(pool.map(lambda _number: umount("out"), range(300))))
for number in range(70):
    os.mkdir(f"m{number}")
with concurrent.futures.ThreadPoolExecutor(70) as pool:
    print(set(pool.map(lambda number: mount("none", f"m{number}", "tmpfs"), range(70))))
"""
    assert open_view().sh(calls(lines)).out == "{'EINVAL'}\n{'ok'}\n"


# -- programs that speak FUSE and mount themselves


@pytest.mark.parametrize("how", ["umount", "lazily", "by viewfs"])
def test_bindfs(open_view: OpenView, tmp_path: Path, how: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    view = open_view()
    view.sh(f"bindfs {tmp_path}/in {tmp_path}/out; mkdir {tmp_path}/out/first; echo x > {tmp_path}/out/first/file")
    assert (tmp_path / "in/first/file").read_text() == "x\n" and os.listdir(tmp_path / "out") == []
    assert rows(view, "module", "path", "source") == [("fuse", f"{tmp_path}/out", f"{tmp_path}/in")]
    if how == "by viewfs":
        view("umount", tmp_path / "out")
    else:
        view.sh(f"umount {'-l ' if how == 'lazily' else ''}{tmp_path}/out")
    wait_until(lambda: "bindfs" not in session_processes(tmp_path).values(), "it has ended")
    assert rows(view, "module") == []


def test_squashfuse(open_view: OpenView, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/file").write_text("inside")
    subprocess.run(["mksquashfs", tmp_path / "in", tmp_path / "i.sqfs", "-quiet", "-no-progress"], check=True)
    view = open_view()
    assert view.sh(f"cd {tmp_path}; squashfuse i.sqfs out && cat out/file; umount out").out == "inside"


@pytest.mark.parametrize("options", ["", "-f & sleep 0.1; until mountpoint -q"])
def test_a_program_of_libfuse_3(open_view: OpenView, tmp_path: Path, options: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "hello.c").write_text(HELLO_C)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    subprocess.run(["gcc", "-o", tmp_path / "speaks", tmp_path / "hello.c", *flags.stdout.split()], check=True)
    view = open_view()
    begin = f"./speaks m {options} m; do :; done" if options else "./speaks m"
    assert view.sh(f"cd {tmp_path}; {begin}; cat m/file; umount m").out == "from C\n"
    wait_until(lambda: "speaks" not in session_processes(tmp_path).values(), "it has ended")


def test_one_that_writes_before_anybody_has_looked(open_view: OpenView, tmp_path: Path) -> None:
    """pyfuse3, which serves only when it has mounted; and its root belongs to nobody until it was looked at."""
    (tmp_path / "m").mkdir()
    (tmp_path / "directories.py").write_text("""
import errno, os, stat, sys
import pyfuse3, trio

class Directories(pyfuse3.Operations):
    def __init__(self):
        super().__init__()
        self.names = {}

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_uid, entry.st_gid, entry.st_mode = inode, os.getuid(), os.getgid(), stat.S_IFDIR | 0o755
        return entry

    async def lookup(self, parent, name, ctx=None):
        if name not in self.names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(self.names[name])

    async def mkdir(self, parent, name, mode, ctx):
        self.names[name] = 2 + len(self.names)
        return await self.getattr(self.names[name])

pyfuse3.init(Directories(), sys.argv[1], set(pyfuse3.default_options))
print("mounted", flush=True)
trio.run(pyfuse3.main)
pyfuse3.close()
""")
    view = open_view()
    begin = f"{sys.executable} directories.py m > said & until grep -q mounted said; do :; done"
    assert (
        view.sh(f"cd {tmp_path}; : > said; {begin}; mkdir m/new && stat -c %F m/new; umount m; wait").out
        == "directory\n"
    )


def test_a_program_that_is_killed(open_view: OpenView, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    view = open_view()
    view.sh(f"bindfs {tmp_path}/in {tmp_path}/out")
    for pid, name in session_processes(tmp_path).items():
        if name == "bindfs":
            kill(pid)
    assert "not connected" in view.sh(f"ls {tmp_path}/out 2>&1 || true").out
    view.sh(f"umount {tmp_path}/out; ls {tmp_path}/out; bindfs {tmp_path}/in {tmp_path}/out; touch {tmp_path}/out/x")
    assert (tmp_path / "in/x").exists()


def test_it_ends_with_the_session(viewfs: Viewfs, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    viewfs.sh(script=f"bindfs {tmp_path}/in {tmp_path}/out; exec 3> {tmp_path}/out/held; echo x >&3")
    wait_until(lambda: not session_processes(tmp_path), "nothing is left")
    assert (tmp_path / "in/held").read_text() == "x\n"


def test_what_is_for_programs_alone(open_view: OpenView, tmp_path: Path) -> None:
    refused = open_view()("mount", "-t", "fuse", "x", tmp_path / "m", check=False)
    assert refused.code == 2
    assert refused.err == (
        "viewfs: -t fuse is what a program mounts itself; viewfs insmod PROGRAM DIRECTORY -- ARGUMENTS {}\n"
    )


# -- deaths


def test_notifiers_that_are_killed(open_view: OpenView, tmp_path: Path, calls: Callable[[str], str]) -> None:
    """Each call is answered: another notifier goes on with what was begun. (A call that was interrupted may have been
    done, as with any other that says EINTR.)"""
    lines = """
answers = []
for number in range(60):
    answers += [mount("none", "out", "tmpfs"), umount("out")]
left = 0
while umount("out") == "ok":
    left += 1
done = answers[::2].count("ok") - answers[1::2].count("ok")
print(len(answers), set(answers) - {"ok", "EINTR", "EINVAL", "EBUSY"}, abs(left - done) <= answers.count("EINTR"))
"""
    view = open_view()
    argv = ["viewfs", "enter", view.name, "--", *calls(lines).split()]
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=view.viewfs.environment)

    def notifiers() -> list[int]:
        return [pid for pid, name in session_processes(tmp_path).items() if name == "viewfs-notifier"]

    killed = 0
    while wait_until(lambda: notifiers() or running.poll() is not None, "there is another") is not True:
        for pid in notifiers():
            kill(pid)
            killed += 1
    out, _err = running.communicate(timeout=SECONDS)
    assert out == "120 set() True\n" and killed > 3


def test_a_supervisor_that_is_killed(open_view: OpenView, tmp_path: Path, calls: Callable[[str], str]) -> None:
    view = open_view()
    view.sh(calls('print(mount("none", "out", "tmpfs"))'))
    for pid, name in session_processes(tmp_path).items():
        if name == "viewfs-supervis":
            kill(pid)
    assert view.sh(calls('print(umount("out"))')).out == "ok\n"
