"""Mounts that a view begins with, which are made before it has a supervisor: they are what `viewfs mount` makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import viewfs as viewfs_package
from tests.kernel.conftest import SECONDS, View, Viewfs, kill, session_processes, wait_until
from tests.kernel.cow.conftest import tree
from tests.kernel.test_takeover import HANGS

__all__ = ["tree"]

Image = Callable[..., Path]


def shown(view: View) -> tuple[Any, ...]:
    """All that commands show of a view, but for what is another each time."""
    rows = [{**row, "server": None, "requests": None} for row in view.json("lsmod")["modules"]]
    changes = [{**row, "time_ns": None} for row in view.json("epochs")["epochs"]]
    mounts = view.sh("cut -d' ' -f4- /proc/self/mountinfo | grep -v ' / / ' | sort").out
    resolved = [view.json("resolve", path) for path in ("/mnt/file", "/dir", "/made/here/tmp", "/")]
    return (
        rows,
        changes,
        resolved,
        mounts.count("viewfs.ext"),
        view.sh("ls -ld /mnt /dir /made/here/tmp").out.count("d"),
    )


def test_they_are_as_any_other(open_view: Callable[..., View], image: Image, tmp_path: Path) -> None:
    disk = image(file="content")
    (tmp_path / "dir").mkdir()
    places = [
        (f"{disk}", "/mnt", "ext", "owner=keep"),
        (f"{tmp_path}/dir", "/dir", "bind", ""),
        ("none", "/made/here/tmp", "tmp", "size=1M"),
    ]
    first = open_view(
        *(f"--mount={source}:{place}:{kind},{more}" for source, place, kind, more in places), name="first"
    )
    later = open_view(name="later")
    for source, place, kind, more in places:
        later("mount", "-t", kind, *(["-o", more] if more else []), source, place)
    assert shown(first) == shown(later)
    for view in (first, later):
        assert view.sh("cat /mnt/file; echo new > /dir/made; echo more > /made/here/tmp/file").out == "content"
        view("umount", "/made/here/tmp")
        view("umount", "/dir")
        view("umount", "/mnt")
        assert view.sh("test -e /made || echo gone").out == "gone\n", "what was made to mount on is gone too"
        assert view("at", "2", "--", "cat", "/dir/made", check=False).code != 0
    assert (tmp_path / "dir/made").read_text() == "new\n"


def test_one_in_the_other(open_view: Callable[..., View], image: Image) -> None:
    """The second image lies in the first, as a supervisor knows that comes later."""
    outer = image("outer.img", "64M", **{"inner.img": image(file="inside")})
    view = open_view("--mount", f"{outer}:/outer", "--mount", "/outer/inner.img:/inner")
    assert view.sh("cat /inner/file").out == "inside"
    (_first, second) = view.json("lsmod")["modules"]
    assert second["source"] == "/outer/inner.img"
    view("umount", "--lazy", "/outer")
    assert view.sh("cat /inner/file").out == "inside", "what it lies in is held"


def test_a_server_that_dies_before_anybody_watches_it(viewfs: Viewfs, image: Image, tmp_path: Path) -> None:
    argv = ["viewfs", "run", "--mount", f"{image(file='content')}:/mnt", "--"]
    script = "echo ready; read word; cat /mnt/file"
    running = subprocess.Popen(
        [*argv, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=viewfs.environment
    )
    assert running.stdout is not None and running.stdout.readline() == b"ready\n"
    (server,) = [pid for pid, name in session_processes(tmp_path).items() if name == "viewfs-ext"]
    kill(server)
    out, _none = running.communicate(b"go\n", timeout=SECONDS)
    assert (running.returncode, out) == (0, b"content")
    wait_until(lambda: not session_processes(tmp_path), "all of it has ended")


@pytest.mark.parametrize("victim", ["viewfs-mounter", "viewfs-mount", "viewfs-place", "viewfs-standby", "viewfs-agent"])
@pytest.mark.parametrize("delay_ms", [0, 2, 10, 30])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_meanwhile(
    viewfs: Viewfs, image: Image, tmp_path: Path, victim: str, delay_ms: int, number: signal.Signals
) -> None:
    """A supervisor does it instead; and where the session is lost with the process, that is said. Nothing is left."""
    front = subprocess.Popen(
        ["viewfs", "run", "--mount", f"{image(file='content')}:/mnt", "--", "cat", "/mnt/file"],
        env=viewfs.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = wait_until(lambda: front.poll() is not None or _find(tmp_path, victim), f"{victim} is there, or was")
    until = time.monotonic() + delay_ms / 1000
    while time.monotonic() < until:  # how far it has come by then is left to chance
        os.sched_yield()
    if pid is not True:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(pid, number)
    out, said = front.communicate(timeout=60)
    if victim in ("viewfs-standby", "viewfs-agent"):
        lost = f"viewfs: the session ended: its {victim.removeprefix('viewfs-')} was killed by SIGKILL\n"
        ended = "viewfs: the session was ended before its command had begun\n"
        # SIGTERM tells the stand-by to end the session in order, and the command too.
        assert (front.returncode, said) in [(0, ""), (1, lost if number is signal.SIGKILL else ended), (143, "")]
    else:
        assert (front.returncode, out, said) == (0, "content", "")
    wait_until(lambda: not session_processes(tmp_path), "all of it has ended")


def _find(directory: Path, name: str) -> int | None:
    return next((pid for pid, called in session_processes(directory).items() if called == name), None)


def test_one_that_takes_too_long(open_view: Callable[..., View], tmp_path: Path) -> None:
    """It is said as `viewfs mount` says it, after one deadline and not two."""
    (tmp_path / "hangs.py").write_text(HANGS)
    view = open_view()
    view("insmod", "-o", "deadline=600", tmp_path / "hangs.py", "/hangs")
    said = []
    for command in (
        "viewfs run --mount /hangs/file:/m:ext,deadline=2 -- true",
        "viewfs mount -t ext -o deadline=2 /hangs/file /m",
    ):
        begin = time.monotonic()
        said.append(view.sh(command, check=False))
        assert time.monotonic() - begin < SECONDS / 4
    view("umount", "--force", "/hangs")
    assert {one.err.partition(";")[0] for one in said} == {
        "viewfs: cannot mount /hangs/file: no answer after 2 seconds"
    }
    assert [one.code for one in said] == [1, 1]


def test_what_cannot_be_mounted_is_said_once(viewfs: Viewfs, image: Image, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image\n" * 200)
    disk = image(file="content")
    for source, wanted in (
        (tmp_path / "none", f"cannot open the source {tmp_path}/none: no such file or directory"),
        (
            tmp_path / "text",
            f"{tmp_path}/text is a text, which viewfs does not mount; it is no image: name one, or a directory",
        ),
        (f"{disk}:/m:ext,colour=red", None),
        (f"{disk}:/etc/passwd", None),
    ):
        place = "" if ":" in str(source) else ":/m"
        done = viewfs("run", "--mount", f"{source}{place}", "--", "true", check=False)
        assert done.code != 0 and done.out == "" and done.err.count("\n") == 1
        assert done.err.startswith("viewfs: ") and (wanted is None or done.err == f"viewfs: {wanted}\n")
    (tmp_path / "magic").write_bytes(b"\0" * 1080 + b"\x53\xef" + b"\xff" * 4000)
    magic = viewfs("run", "--mount", f"{tmp_path}/magic:/m", "--", "true", check=False)
    assert magic.code != 0 and "magic" in magic.err and "only begins like" not in magic.err


@pytest.mark.parametrize("place", [os.path.dirname(os.__file__), os.path.dirname(viewfs_package.__path__[0])])
@pytest.mark.parametrize("first", [True, False], ids=["at first", "later"])
def test_what_hides_the_program_itself(
    open_view: Callable[..., View], image: Image, tree: Path, place: str, first: bool
) -> None:
    """What the agent may need it has in memory then."""
    disk = image(file="content", name="hides.img")
    view = open_view(*(["--mount", f"{disk}:{place}"] if first else []))
    if not first:
        view("mount", disk, place)
    assert [row["path"] for row in view.json("lsmod")["modules"]] == [place]
    view("insmod", "hello", "/hello")
    view("insmod", "useless", "/dev/useless")
    view("mount", image(file="more", name="another.img"), "/mnt")
    view("cow", tree)
    said = view.viewfs("enter", view.name, "--", "sh", "-c", "cat /hello /mnt/file; head -c 3 /dev/useless").out
    assert said.startswith("Hello from viewfs!\nmore")
    view("umount", "--lazy", place)


@pytest.mark.parametrize("first", [True, False], ids=["at first", "later"])
def test_a_guest_that_removes_the_program(open_view: Callable[..., View], first: bool) -> None:
    """From its copy, and from nowhere else."""
    root = os.path.dirname(viewfs_package.__path__[0])
    view = open_view(*(["--cow", root] if first else []))
    if not first:
        view("cow", root)
    assert view.json("lsmod")["modules"]
    view.sh(f"rm -rf {root}/viewfs")
    view("insmod", "hello", "/hello")
    view("insmod", "useless", "/dev/useless")
    assert view.sh("cat /hello; head -c 3 /dev/useless | wc -c").out.startswith("Hello from viewfs!\n")
    view("umount", "/hello")


ADOPTS = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans are this process's
subprocess.run(sys.argv[1:], check=True)
try:
    print("left to be reaped:", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("nothing is left")
"""


@pytest.mark.parametrize("command", ["cat /mnt/file", "viewfs lsmod"], ids=["without a supervisor", "with one"])
def test_no_process_is_left_to_whoever_adopts_it(viewfs: Viewfs, image: Image, command: str) -> None:
    argv = ["viewfs", "run", "--mount", f"{image(file='content')}:/mnt", "--", *command.split()]
    done = subprocess.run(
        [sys.executable, "-c", ADOPTS, *argv], env=viewfs.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("nothing is left\n")
