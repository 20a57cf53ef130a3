"""File systems that speak FUSE themselves: classes written for pyfuse3, and programs of libfuse 2 and 3."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs, kill, session_processes, wait_until

GREETING = '''
import errno, os, stat
import pyfuse3


class Greeting(pyfuse3.Operations):
    """One file that greets, as those who know pyfuse3 write it."""

    def __init__(self, greeting: str = "hello", times: int = 1):
        super().__init__()
        self.data = (greeting + "\\n").encode() * times

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o755
        else:
            entry.st_mode, entry.st_size = stat.S_IFREG | 0o444, len(self.data)
        return entry

    async def lookup(self, parent, name, ctx=None):
        if name != b"message":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(2)

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start, token):
        if start == 0:
            pyfuse3.readdir_reply(token, b"message", await self.getattr(2), 1)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, off, size):
        return self.data[off : off + size]
'''

NOTES = '''
import errno, os, stat
import pyfuse3


class Notes(pyfuse3.Operations):
    """A flat directory in memory that can be written, with extended attributes. It needs nothing, and is sealed."""

    uses_view = False
    mount_point = "/notes"

    def __init__(self):
        super().__init__()
        self.names, self.data, self.xattrs, self.mode = {}, {}, {}, {}

    def _entry(self, inode):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_uid, entry.st_gid = inode, os.getuid(), os.getgid()
        entry.entry_timeout = entry.attr_timeout = 0
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o755
        else:
            entry.st_mode, entry.st_size = self.mode[inode], len(self.data[inode])
        return entry

    async def getattr(self, inode, ctx=None):
        return self._entry(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        if fields.update_size:
            self.data[inode] = self.data[inode][: attr.st_size].ljust(attr.st_size, b"\\0")
        if fields.update_mode:
            self.mode[inode] = attr.st_mode
        return self._entry(inode)

    async def lookup(self, parent, name, ctx=None):
        if name not in self.names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(self.names[name])

    async def create(self, parent, name, mode, flags, ctx):
        inode = self.names[name] = 2 + len(self.data)
        self.data[inode], self.xattrs[inode], self.mode[inode] = b"", {}, mode
        return pyfuse3.FileInfo(fh=inode), self._entry(inode)

    async def unlink(self, parent, name, ctx):
        del self.names[name]

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start, token):
        for number, (name, inode) in enumerate(sorted(self.names.items()), 1):
            if number > start and not pyfuse3.readdir_reply(token, name, self._entry(inode), number):
                break

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, off, size):
        return self.data[fh][off : off + size]

    async def write(self, fh, off, buf):
        data = self.data[fh].ljust(off, b"\\0")
        self.data[fh] = data[:off] + buf + data[off + len(buf) :]
        return len(buf)

    async def setxattr(self, inode, name, value, ctx):
        self.xattrs[inode][name] = value

    async def getxattr(self, inode, name, ctx):
        try:
            return self.xattrs[inode][name]
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENODATA) from None

    async def listxattr(self, inode, ctx):
        return list(self.xattrs.get(inode, ()))
'''

HELLO_C = r"""
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse.h>
#include <string.h>
static const char *text = "from C\n";
static int get(const char *path, struct stat *st, struct fuse_file_info *fi) {
    memset(st, 0, sizeof *st);
    if (!strcmp(path, "/")) { st->st_mode = S_IFDIR | 0755; st->st_nlink = 2; return 0; }
    if (strcmp(path, "/file")) return -ENOENT;
    st->st_mode = S_IFREG | 0444; st->st_nlink = 1; st->st_size = strlen(text);
    return 0;
}
static int list(const char *path, void *buffer, fuse_fill_dir_t fill, off_t at, struct fuse_file_info *fi,
                enum fuse_readdir_flags flags) {
    fill(buffer, "file", 0, 0, 0);
    return 0;
}
static int give(const char *path, char *buffer, size_t size, off_t at, struct fuse_file_info *fi) {
    size_t length = strlen(text);
    if (at >= (off_t)length) return 0;
    if (size > length - at) size = length - at;
    memcpy(buffer, text + at, size);
    return size;
}
static const struct fuse_operations operations = {.getattr = get, .readdir = list, .read = give};
int main(int argc, char **argv) { return fuse_main(argc, argv, &operations, 0); }
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """One that is written for libfuse 3."""
    source, built = tmp_path / "hello.c", tmp_path / "hello-fuse"
    source.write_text(HELLO_C)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    subprocess.run(["gcc", "-o", built, source, *flags.stdout.split()], check=True)
    return built


def test_a_class_of_pyfuse3(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "greeting.py").write_text(GREETING)
    view = open_view()
    assert view("insmod", tmp_path / "greeting.py", "/g", "-o", "greeting=moin,times=2").code == 0
    assert view.sh("ls /g; cat /g/message; stat -c '%A %s' /g/message").out == "message\nmoin\nmoin\n-r--r--r-- 10\n"
    (row,) = view.json("lsmod")["modules"]
    assert (row["module"], row["path"], row["state"]) == ("greeting", "/g", "mounted")
    assert row["confinement"].startswith("view")
    assert view.sh("cat /g/nothing 2>&1 || true").out == "cat: /g/nothing: No such file or directory\n"
    view("umount", "/g")
    assert view.sh("ls -d /g 2>&1 || true").out.endswith("No such file or directory\n")
    assert [row["operation"] for row in view.json("epochs")["epochs"]] == ["start", "insmod", "umount"]


def test_a_class_by_its_name(viewfs: Viewfs, tmp_path: Path) -> None:
    """`package.module:Class`, from wherever Python finds it."""
    package = tmp_path / "packages/mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "systems.py").write_text(GREETING)
    before = viewfs.environment.get("PYTHONPATH", "")
    viewfs.environment["PYTHONPATH"] = f"{before}:{tmp_path / 'packages'}"
    script = "viewfs insmod mine.systems:Greeting /g; cat /g/message; viewfs lsmod | awk 'NR == 2 {print $1}'"
    assert viewfs.sh(script=script).out == "hello\nGreeting\n"
    wrong = viewfs.sh(script="viewfs insmod mine.systems:Nothing /g", check=False)
    assert wrong.code == 2
    assert wrong.err == "viewfs: mine.systems:Nothing is neither a viewfs module nor a class of pyfuse3 operations\n"
    missing = viewfs.sh(script="viewfs insmod nobody.has:This /g", check=False)
    assert missing.err == "viewfs: there is no Python module nobody; is it installed?\n" and missing.code == 4


def test_one_that_can_be_written_and_says_that_it_needs_nothing(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text(NOTES)
    view = open_view()
    view("insmod", tmp_path / "notes.py")
    script = """
        cd /notes; echo one > a; echo two >> a; printf x | dd of=b bs=1 seek=3 status=none
        setfattr -n user.tag -v red a; getfattr -d a; cat a; od -c b | head -1; truncate -s 3 a; wc -c < a
        rm b; ls; chmod 600 a; stat -c %A a
    """
    out = view.sh(script).out
    assert 'user.tag="red"' in out and "one\ntwo\n" in out and "\\0  \\0  \\0   x" in out
    assert out.endswith("3\na\n-rw-------\n")
    (row,) = view.json("lsmod")["modules"]
    assert row["confinement"].startswith("sealed")


@pytest.mark.parametrize("what", ["umount", "rmmod"])
def test_it_is_needed_as_others_are(open_view: Callable[..., View], tmp_path: Path, what: str) -> None:
    (tmp_path / "greeting.py").write_text(GREETING)
    view = open_view()
    view("insmod", tmp_path / "greeting.py", "/g")
    held = subprocess.Popen(["viewfs", "enter", view.name, "--", "sh", "-c", "cd /g; echo in; exec sleep 1000"],
                            stdout=subprocess.PIPE, text=True, env=view.viewfs.environment)  # fmt: skip
    assert held.stdout is not None and held.stdout.readline() == "in\n"
    busy = view(what, "/g", check=False)
    assert busy.code == 1 and "busy" in busy.err
    view(what, "--lazy", "/g")
    held.kill()
    held.wait()
    held.stdout.close()
    again = view("restart", "/g", check=False)
    assert again.code == 4


def test_its_server_dies(open_view: Callable[..., View], tmp_path: Path) -> None:
    """There is no other that could go on: whoever asks is told so, and all else of the view goes on."""
    (tmp_path / "greeting.py").write_text(GREETING)
    view = open_view("--load", "hello")
    view("insmod", tmp_path / "greeting.py", "/g")
    refused = view("restart", "/g", check=False)
    assert refused.code == 2 and "state" in refused.err
    for pid, name in session_processes(tmp_path).items():
        if name == "viewfs-greeting":
            kill(pid)
    wait_until(lambda: view.json("lsmod")["modules"][-1]["state"] == "dead", "its death is known")
    assert "not connected" in view.sh("cat /g/message 2>&1 || true; cat /hello").out
    view("umount", "/g")


def test_an_option_that_has_to_be_given(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GREETING.replace('greeting: str = "hello"', "greeting: str"))
    view = open_view()
    missing = view("insmod", tmp_path / "mine.py", "/g", check=False)
    assert missing.code == 2
    assert missing.err == "viewfs: module mine needs an option; -o greeting=…\n"
    unknown = view("insmod", tmp_path / "mine.py", "/g", "-o", "colour=red", check=False)
    assert unknown.code == 2 and "colour" in unknown.err


# -- programs


@pytest.mark.parametrize("place", ["{}", "{dir}"])
def test_squashfuse(open_view: Callable[..., View], tmp_path: Path, place: str) -> None:
    """It takes a descriptor; and can be told a directory, and then asks fusermount."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("inside")
    subprocess.run(["mksquashfs", tmp_path / "d", tmp_path / "d.sqfs", "-quiet", "-no-progress"], check=True)
    view = open_view()
    view("insmod", "squashfuse", "/sq", "-o", "ro", "--", tmp_path / "d.sqfs", place)
    assert view.sh("cat /sq/file; echo x 2>/dev/null > /sq/new || echo refused").out == "insiderefused\n"
    (row,) = view.json("lsmod")["modules"]
    assert (row["module"], row["path"], row["confinement"].partition(",")[0]) == ("squashfuse", "/sq", "view")
    view("umount", "/sq")
    wait_until(lambda: "squashfuse" not in session_processes(tmp_path).values(), "the program has ended")


def test_bindfs_which_is_of_libfuse_2(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("below\n")
    view = open_view()
    view("insmod", "bindfs", "/b", "--", tmp_path / "d", "{}")
    assert view.sh("cat /b/file; echo above >> /b/file; mkdir /b/new; ls /b").out == "below\nfile\nnew\n"
    assert (tmp_path / "d/file").read_text() == "below\nabove\n" and (tmp_path / "d/new").is_dir()
    view("rmmod", "bindfs")


@pytest.mark.parametrize("options", [(), ("-f",)])
def test_a_program_of_libfuse_3(
    open_view: Callable[..., View], tmp_path: Path, program: Path, options: tuple[str, ...]
) -> None:
    """In the foreground, and one that goes to the background, as they do by themselves."""
    view = open_view()
    view("insmod", program, "/c", "--", *options, "{}")
    assert view.sh("cat /c/file; ls /c").out == "from C\nfile\n"
    for pid, name in session_processes(tmp_path).items():
        if name == "viewfs-hello-fu":
            kill(pid)
    wait_until(lambda: "hello-fuse" not in session_processes(tmp_path).values(), "with it goes the program")
    wait_until(lambda: view.json("lsmod")["modules"][-1]["state"] == "dead", "its death is known")


def test_it_sees_the_view_as_it_was_before(open_view: Callable[..., View], tmp_path: Path) -> None:
    view = open_view("--mount", "none:/scratch:tmp")
    view.sh("echo below > /scratch/file")
    view("insmod", "bindfs", "/scratch", "-o", "ro", "--", "/scratch", "{}")
    assert view.sh("cat /scratch/file; touch /scratch/x 2>/dev/null || echo refused").out == "below\nrefused\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("squashfuse", "/m", "--", "nothing.sqfs"), 2, "squashfuse is not told where to mount; {} among"),
        (("nosuchprogram", "/m", "--", "{}"), 2, "there is no program nosuchprogram; give its path"),
        (("squashfuse", "/m", "--", "/nosuch.sqfs", "{}"), 1, "cannot mount on /m: its server ended (exit status 1)"),
        (("false", "/m", "--", "{}"), 1, "cannot mount on /m: its server ended (exit status 1); see `viewfs log`"),
        (("squashfuse", "/m", "-o", "colour=red", "--", "x", "{}"), 2, "program"),
    ],
)  # fmt: skip
def test_what_does_not_start(open_view: Callable[..., View], arguments: tuple[str, ...], code: int, said: str) -> None:
    view = open_view()
    failed = view("insmod", *arguments, check=False)
    assert failed.code == code and said in failed.err and failed.err.count("\n") == 1
    assert view.json("lsmod")["modules"] == []
    assert view.sh("ls -d /m 2>&1 || true").out.endswith("No such file or directory\n")


def test_the_cage_of_a_program(open_view: Callable[..., View], tmp_path: Path) -> None:
    """What a program may do that was taken over: no network but where that was allowed, no signals, no mounts."""
    script = tmp_path / "attack"
    script.write_text(
        "#!/bin/sh\n"
        f"exec > {tmp_path}/said 2>&1\n"
        "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9))' 2>&1 | tail -1\n"
        "kill -0 $PPID 2>&1; mount -t tmpfs none /mnt 2>&1; unshare -r true 2>&1; grep CapEff /proc/self/status\n"
        "exit 1\n"
    )
    script.chmod(0o755)
    view = open_view()
    view("insmod", script, "/m", "--", "{}", check=False)
    said = (tmp_path / "said").read_text()
    assert "Operation not permitted" in said.partition("\n")[0] or "unreachable" in said.partition("\n")[0]
    assert "CapEff:\t0000000000000000" in said
    assert "mount:" in said and "unshare:" in said


# -- by name


def test_a_module_of_ones_own_by_name(viewfs: Viewfs, tmp_path: Path) -> None:
    data, other = tmp_path / "share/viewfs/modules", tmp_path / "other"
    data.mkdir(parents=True)
    other.mkdir()
    (data / "greeting.py").write_text(GREETING)
    viewfs.environment["XDG_DATA_HOME"] = str(tmp_path / "share")
    assert viewfs("run", "--load", "greeting:/g", "--", "cat", "/g/message").out == "hello\n"
    (other / "greeting.py").write_text(GREETING.replace('"hello"', '"from elsewhere"'))
    viewfs.environment["VIEWFS_MODULE_PATH"] = f"{tmp_path / 'none'}:{other}"
    assert viewfs("run", "--load", "greeting:/g", "--", "cat", "/g/message").out == "from elsewhere\n"
    listed = {row["module"]: row["origin"] for row in viewfs("lsmod", "--available", "--json").json["modules"]}
    assert listed["greeting"] == str(other / "greeting.py") and listed["hello"] == "built in"
    (other / "hello.py").write_text(GREETING)
    assert viewfs("run", "--load", "hello", "--", "cat", "/hello").out == "Hello from viewfs!\n", "no name is taken"


def test_from_inside_it_is_the_caller_who_says_where(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GREETING)
    view = open_view()
    assert view.sh(f"VIEWFS_MODULE_PATH={tmp_path} viewfs insmod mine /g; cat /g/message").out == "hello\n"
    gone = view("insmod", "mine", "/h", check=False)
    assert gone.code == 4 and gone.err.startswith("viewfs: no module is called mine; ")


@pytest.mark.parametrize(
    "source",
    [
        "import time; time.sleep(1000)", "raise KeyboardInterrupt", "import os; os._exit(7)", "import os; os.close(1)",
        "import os, signal; os.kill(os.getpid(), 9)", "raise GeneratorExit", "import sys; sys.stdout.close()",
        "print('noise')", "import os; os.fork()", "import sys; sys.modules.clear()", "def", "x = 1",
        "from viewfs.modules.api import Module\nclass M(Module):\n    name = 'm'\n    options = (1, 2)",
    ],
)  # fmt: skip
def test_files_that_do_anything_are_left_out_of_the_list(viewfs: Viewfs, tmp_path: Path, source: str) -> None:
    (tmp_path / "bad.py").write_text(source)
    (tmp_path / "good.py").write_text(GREETING)
    viewfs.environment["VIEWFS_MODULE_PATH"] = str(tmp_path)
    listed = viewfs("lsmod", "--available", "--json")
    names = [row["module"] for row in listed.json["modules"]]
    assert names[-1] == "good" and "bad" not in names and listed.err == ""
    assert viewfs("lsmod", "--available").out.count("noise") == 0


@pytest.mark.parametrize("place", ["'rel/x'", "''", "5", "b'/h'", "'/h\\0x'"])
def test_a_module_that_names_no_place(viewfs: Viewfs, tmp_path: Path, place: str) -> None:
    (tmp_path / "mine.py").write_text(
        "from viewfs.modules.api import Module\nfrom viewfs.modules.api.nodes import computed_file\n\n\n"
        f"class Mine(Module):\n    name = 'mine'\n    mount_point = {place}\n\n"
        "    def open(self, mounting):\n        return computed_file(lambda: '')\n"
    )
    failed = viewfs("run", "--load", tmp_path / "mine.py", "--", "true", check=False)
    assert failed.code == 2 and "no absolute path" in failed.err and failed.err.count("\n") == 1


def test_memory_that_no_machine_has(viewfs: Viewfs) -> None:
    failed = viewfs("run", "--load", "hello,memory=99999999999T", "--", "true", check=False)
    assert failed.code == 2 and failed.err.startswith("viewfs: option memory: ")


def test_what_a_program_leaves_behind_ends_with_its_mount(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    wrapper = tmp_path / "wrap"
    wrapper.write_text('#!/bin/sh\nsleep 543 &\nexec bindfs -f "$@"\n')
    wrapper.chmod(0o755)
    view = open_view()
    view("insmod", wrapper, "/b", "--", tmp_path / "d", "{dir}")
    assert "sleep" in session_processes(tmp_path).values()
    view("umount", "/b")
    wait_until(lambda: "sleep" not in session_processes(tmp_path).values(), "all that was started has ended")
    wait_until(lambda: view.json("lsmod")["modules"] == [], "it is forgotten")


def test_a_program_that_closes_descriptors_before_it_asks(open_view: Callable[..., View], tmp_path: Path) -> None:
    """As Python's subprocess does, and some libraries."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("below\n")
    wrapper = tmp_path / "closing"
    wrapper.write_text(
        "#!/usr/bin/env python3\nimport os, sys\nos.closerange(3, 100)\n"
        "os.execvp('bindfs', ['bindfs', *sys.argv[1:]])\n"
    )
    wrapper.chmod(0o755)
    view = open_view()
    view("insmod", wrapper, "/b", "--", tmp_path / "d", "{dir}")
    assert view.sh("cat /b/file").out == "below\n"
