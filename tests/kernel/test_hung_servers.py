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
