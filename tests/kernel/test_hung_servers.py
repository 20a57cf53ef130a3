"""Servers that hang, and what goes on in the view meanwhile: others change it, and they can be got rid of."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, own_processes, session_processes, wait_until
from tests.kernel.test_takeover import HANGS

OpenView = Callable[..., View]

DEVICE = """
import time
from viewfs.modules.api.device import CharDevice, DeviceFile, DeviceModule

class File(DeviceFile):
    def read(self, call, size):
        time.sleep(1000)

class Device(CharDevice):
    file = File

class Hung(DeviceModule):
    name = "hung"

    def open_devices(self, mounting):
        return Device()
"""

NEVER_CLOSED = """
import time
from viewfs.modules.api import Module
from viewfs.modules.api.nodes import NodeFileSystem, Directory

class Tree(NodeFileSystem):
    def close(self):
        time.sleep(1000)

class Endless(Module):
    name = "endless"

    def open(self, mounting):
        return Tree(Directory({}))
"""

HANGS_IN_C = r"""
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse.h>
#include <string.h>
#include <unistd.h>
static int get(const char *path, struct stat *st, struct fuse_file_info *fi) {
    memset(st, 0, sizeof *st);
    st->st_nlink = 1;
    if (!strcmp(path, "/")) { st->st_mode = S_IFDIR | 0755; return 0; }
    if (!strcmp(path, "/waits")) pause();
    if (!strcmp(path, "/loops")) for (volatile int n = 0;; n++) ;
    if (!strcmp(path, "/late")) sleep(4);
    return -ENOENT;
}
static int fs(const char *path, struct statvfs *st) { usleep(20000); return 0; }
static const struct fuse_operations operations = {.getattr = get, .statfs = fs};
int main(int argc, char **argv) { return fuse_main(argc, argv, &operations, 0); }
"""

HANGS_IN_PYFUSE3 = """
import errno, stat, time
import pyfuse3, trio

class Hangs(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode = inode, stat.S_IFDIR | 0o755
        return entry

    async def lookup(self, parent, name, ctx=None):
        if name == b"waits":
            await trio.sleep_forever()
        if name == b"sleeps":
            time.sleep(1000)
        raise pyfuse3.FUSEError(errno.ENOENT)
"""

FAILS = """
from viewfs.modules.api import Module
from viewfs.modules.api.nodes import NodeFileSystem, ComputedFile, Directory

def fail(error):
    raise error

class Fails(Module):
    name = "fails"

    def open(self, mounting):
        errors = {"memory": MemoryError, "interrupt": KeyboardInterrupt, "exit": SystemExit, "other": ValueError}
        files = {name: ComputedFile(lambda error=error: fail(error)) for name, error in errors.items()}
        return NodeFileSystem(Directory(files | {"good": ComputedFile(lambda: "good")}))
"""


def begun(view: View, command: str) -> subprocess.Popen[bytes]:
    """`command` in the view, which has begun."""
    argv = ["viewfs", "enter", view.name, "--", "sh", "-c", f"echo begin; exec {command}"]
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=view.viewfs.environment)
    assert running.stdout is not None and running.stdout.readline() == b"begin\n"
    return running


def asked(view: View, *arguments: str) -> subprocess.Popen[str]:
    """`viewfs` on the view, not waited for."""
    argv = ["viewfs", arguments[0], "--session", view.name, *arguments[1:]]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=view.viewfs.environment)


def test_others_change_the_view_while_a_mount_waits_for_a_hung_server(open_view: OpenView, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    view = open_view()
    view("insmod", "-o", "deadline=600", tmp_path / "hangs.py", "/hangs")
    reading = begun(view, "cat /hangs/file")
    late = time.monotonic() + 0.5
    wait_until(lambda: time.monotonic() > late, "its answer is late")
    waiting = asked(view, "mount", "-t", "tmp", "none", "/hangs/sub")
    begin = time.monotonic()
    view("insmod", "hello", "/hello")
    view("umount", "--force", "/hangs")
    assert time.monotonic() - begin < 15, "nobody waited for the one who waits (20 s)"
    _out, err = waiting.communicate(timeout=SECONDS)  # there is no server any more in whose directory it could not be
    assert waiting.returncode == 0 and err == ""
    reading.communicate(timeout=SECONDS)
    assert reading.returncode == 1
    assert {row["path"] for row in view.json("lsmod")["modules"]} == {"/hello", "/hangs/sub"}


@pytest.mark.parametrize("by", ["deadline", "force"])
def test_a_hung_device_that_was_taken_away(open_view: OpenView, tmp_path: Path, by: str) -> None:
    """Who reads it gets an error: after the deadline, or when somebody says --force."""
    (tmp_path / "hung.py").write_text(DEVICE)
    view = open_view()
    view("insmod", "-o", f"deadline={1 if by == 'deadline' else 600}", tmp_path / "hung.py", "/dev/hung")
    reading = begun(view, "head -c 1 /dev/hung")
    view("rmmod", "hung")
    if by == "force":
        assert view.json("lsmod")["modules"][0]["state"] == "unmounted"
        assert view("rmmod", "nothing", "--force", check=False).code == 4
        view("rmmod", "--force", "hung")
    reading.communicate(timeout=SECONDS)
    assert reading.returncode == 1
    wait_until(lambda: view.json("lsmod")["modules"] == [], "its server is gone")
    assert ("has not answered for 1 s: it is ended" in view("log").out) == (by == "deadline")


def test_a_server_that_does_not_end(open_view: OpenView, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(NEVER_CLOSED)
    view = open_view()
    view("insmod", "-o", "deadline=1", tmp_path / "endless.py", "/endless")
    view("umount", "/endless")
    wait_until(lambda: "viewfs-endless" not in own_processes().values(), "its server is gone")
    assert "/endless (endless) has not ended 1 s after it was unmounted" in view("log").out


def compiled(directory: Path, source: str) -> Path:
    """A program that is written for libfuse 3."""
    (directory / "program.c").write_text(source)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    subprocess.run(["gcc", "-o", directory / "speaks", directory / "program.c", *flags.stdout.split()], check=True)
    return directory / "speaks"


def is_asked(directory: Path) -> bool:
    """Is the server, a program called `speaks`, at a request of one called `stat`?"""
    processes = session_processes(directory)
    waits = {name: Path(f"/proc/{pid}/wchan").read_text() for pid, name in processes.items()}
    return waits.get("stat") == "request_wait_answer" and waits["speaks"] != "fuse_dev_do_read"


def stop_server(view: View) -> int:
    """Stop the server of the only mount, and return its pid."""
    server: int = view.json("lsmod")["modules"][0]["server"]
    os.kill(server, signal.SIGSTOP)
    return server


@pytest.mark.parametrize("kind", ["image", "device"])
def test_a_server_that_somebody_has_stopped(open_view: OpenView, image: Callable[..., Path], kind: str) -> None:
    """It does not even read what it is asked; its callers wait for the next one, and no longer."""
    view = open_view()
    if kind == "image":
        view("mount", "-o", "deadline=1", image(file="content"), "/mnt")
        command, wanted = "cat /mnt/file", "content"
    else:
        view("insmod", "-o", "deadline=1", "zero", "/dev/nothing")
        command, wanted = "head -c 3 /dev/nothing", "\0\0\0"
    stopped = stop_server(view)
    assert view.sh(command).out == wanted
    assert view.json("lsmod")["modules"][0]["server"] != stopped
    assert "has not answered for 1 s: it is ended" in view("log").out


def test_a_stopped_server_whose_successor_is_stopped_too(open_view: OpenView, image: Callable[..., Path]) -> None:
    view = open_view()
    view("mount", "-o", "deadline=1", image(file="content", other="more"), "/mnt")
    first = stop_server(view)
    reading = begun(view, "cat /mnt/file")
    wait_until(lambda: view.json("lsmod")["modules"][0]["server"] not in (first, None), "another has taken over")
    out, _err = reading.communicate(timeout=SECONDS)
    assert out == b"content"
    stop_server(view)
    assert view.sh("cat /mnt/other").out == "more"
    assert view("log").out.count("has not answered for 1 s: it is ended") == 2


@pytest.mark.parametrize("options", ["-f", "ro"])
def test_a_stopped_program_that_speaks_fuse(open_view: OpenView, tmp_path: Path, options: str) -> None:
    """Nobody can go on for it, in the foreground or in the background; who waits gets an error."""
    (tmp_path / "d").mkdir()
    view = open_view()
    given = ["-f"] if options == "-f" else ["-o", options]
    view("insmod", "bindfs", "/b", "-o", "deadline=1", "--", *given, tmp_path / "d", "{}")
    for pid, name in session_processes(tmp_path).items():
        if name == "bindfs":
            os.kill(pid, signal.SIGSTOP)
    assert view.sh("ls /b", check=False).code == 2
    assert "has not answered for 1 s: it is ended" in view("log").out
    wait_until(lambda: "bindfs" not in session_processes(tmp_path).values(), "nothing is left of it")


@pytest.mark.parametrize("more", ["another asks", "it is interrupted"])
@pytest.mark.parametrize("name", ["waits", "loops"])
def test_a_program_that_hangs(open_view: OpenView, tmp_path: Path, name: str, more: str) -> None:
    """It is ended when it does nothing though there is something to read, if it is one of one thread."""
    view, program = open_view(), compiled(tmp_path, HANGS_IN_C)
    view("insmod", program, "/h", "-o", "deadline=1", "--", "-f", "-s", "{}")
    first = begun(view, f"stat /h/{name}")
    wait_until(lambda: is_asked(tmp_path), "it has been asked")
    if more == "another asks":
        _out, err = begun(view, "stat -f /h").communicate(timeout=SECONDS)
        assert b"not connected" in err or b"connection abort" in err
    else:
        first.terminate()
    first.communicate(timeout=SECONDS)
    assert first.returncode != 0
    assert "has not answered for 1 s: it is ended" in view("log").out
    wait_until(lambda: program.name not in session_processes(tmp_path).values(), "nothing is left of it")


def test_a_program_that_is_busy(open_view: OpenView, tmp_path: Path) -> None:
    """There is always something that it has not read, and it goes on."""
    view, program = open_view(), compiled(tmp_path, HANGS_IN_C)
    view("insmod", program, "/h", "-o", "deadline=1", "--", "-f", "-s", "{}")
    asking = "import os, time\\nend = time.monotonic() + 3\\nwhile time.monotonic() < end: os.statvfs('/h')"
    busy = [begun(view, f'python3 -c "$(printf "{asking}")"') for _ in range(8)]
    for one in busy:
        one.communicate(timeout=SECONDS)
        assert one.returncode == 0
    assert view.json("lsmod")["modules"][0]["state"] == "mounted" and "not answered" not in view("log").out


def test_a_program_that_has_more_to_do_than_one_slow_request(open_view: OpenView, tmp_path: Path) -> None:
    view, program = open_view(), compiled(tmp_path, HANGS_IN_C)
    view("insmod", program, "/h", "-o", "deadline=1", "--", "-f", "{}")
    late = begun(view, "stat /h/late")
    assert "No such file" in view.sh("sleep 2; stat /h/other", check=False).err
    assert b"No such file" in late.communicate(timeout=SECONDS)[1]


@pytest.mark.parametrize("name", ["waits", "sleeps"])
def test_a_class_of_pyfuse3_that_hangs(open_view: OpenView, tmp_path: Path, name: str) -> None:
    """Its requests are known one by one."""
    (tmp_path / "hangs.py").write_text(HANGS_IN_PYFUSE3)
    view = open_view()
    view("insmod", tmp_path / "hangs.py", "/h", "-o", "deadline=1")
    assert view.sh("for n in 1 2 3; do stat /h/$n || true; done").err.count("No such file") == 3
    assert view.json("stats")["servers"][0]["requests"]["lookup"] == 3
    assert "connection abort" in view.sh(f"stat /h/{name}", check=False).err
    assert "has not answered for 1 s: it is ended" in view("log").out


def test_errors_that_are_none_of_the_kernel(open_view: OpenView, tmp_path: Path) -> None:
    """Each is one failed call, and the mount goes on."""
    (tmp_path / "fails.py").write_text(FAILS)
    view = open_view()
    view("insmod", tmp_path / "fails.py", "/fails")
    said = view.sh("cd /fails; for name in memory interrupt exit other good; do cat $name 2>&1 || true; done").out
    assert said.splitlines() == [
        "cat: memory: Cannot allocate memory",
        *(f"cat: {name}: Input/output error" for name in ("interrupt", "exit", "other")),
        "good",
    ]
