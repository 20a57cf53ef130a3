"""What `host_left_alone` sees: all that a session could leave, and nothing of what other programs do meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kernel.conftest import View, host_mounts, left_alone, own_processes, session_processes, wait_until


@contextmanager
def running(*command: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A program that says it is there, and ends when its input does."""
    script = "echo ready; exec cat"
    with subprocess.Popen(
        [*command, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin"} | (environment or {}),
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate(timeout=60)


def test_a_process_of_a_session(open_view: Callable[..., View], tmp_path: Path) -> None:
    """Even one that has nothing of its environment."""
    assert not session_processes(tmp_path)
    view = open_view("--load", "hello")
    view.sh("env -i setsid sleep 1000 >/dev/null 2>&1 </dev/null &")
    names = ("viewfs", "viewfs-standby", "viewfs-supervis", "viewfs-agent", "sleep", "cat")
    wait_until(lambda: set(names) <= set(session_processes(tmp_path).values()), "all of them are seen")
    view.close()
    wait_until(lambda: not session_processes(tmp_path), "all of them have ended")


def test_a_process_that_a_session_would_leave(tmp_path: Path) -> None:
    with running("unshare", "-U") as pid:
        assert pid in session_processes(tmp_path)
    with running(environment={"XDG_RUNTIME_DIR": str(tmp_path / "runtime")}) as pid:
        assert pid in session_processes(tmp_path)


def test_a_process_of_somebody_else(tmp_path: Path) -> None:
    with running(environment={"XDG_RUNTIME_DIR": "/run/user/0"}) as pid:
        assert pid in own_processes() and pid not in session_processes(tmp_path)


def test_a_mount_that_a_session_would_leave(
    open_view: Callable[..., View], image: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    view = open_view(
        "--mount", f"{image()}:/mnt", "--mount", f"none:{tmp_path / 'tree'}:tmp", "--load", "hello", "--cow", "/var/tmp"
    )
    assert view.sh("true").code == 0 and not host_mounts(tmp_path)
    wait_until(lambda: "cat" in session_processes(tmp_path).values(), "its command runs")
    (pid,) = (pid for pid, name in session_processes(tmp_path).items() if name == "cat")
    seen = {line.split()[4] for line in host_mounts(tmp_path, pid)}
    assert {"/mnt", "/hello", "/var/tmp", str(tmp_path / "tree")} <= seen


def test_a_mount_of_somebody_else(tmp_path: Path) -> None:
    mount = "mount -t tmpfs other /mnt; mount -t tmpfs viewed /media; exec sh -c 'echo ready; exec cat'"
    with running("unshare", "-Urm", "sh", "-c", mount) as pid:
        table = Path(f"/proc/{pid}/mountinfo").read_text()
        assert " /mnt " in table and " /media " in table
        assert not host_mounts(tmp_path, pid)


@pytest.mark.parametrize("left", [("unshare", "-U"), ("env",)])
def test_the_watch_fails_for_a_process(left: tuple[str, ...], tmp_path: Path) -> None:
    with ExitStack() as later, pytest.raises(AssertionError, match="have ended"), left_alone(tmp_path, seconds=0.1):
        later.enter_context(running(*left, environment={"XDG_RUNTIME_DIR": str(tmp_path / "runtime")}))


def test_the_watch_fails_for_a_socket(tmp_path: Path) -> None:
    sockets = tmp_path / "runtime/viewfs"
    with pytest.raises(AssertionError, match=r"sockets are left.*name\.sock"), left_alone(tmp_path):
        sockets.mkdir(parents=True)
        (sockets / "name.sock").touch()
    shutil.rmtree(sockets)


def test_the_watch_fails_for_a_mount(tmp_path: Path) -> None:
    """In a process whose own mount table it may change."""
    (tmp_path / "place").mkdir()
    script = f"""
        import pathlib, subprocess
        from tests.kernel.conftest import left_alone
        with left_alone(pathlib.Path("{tmp_path}")):
            subprocess.run(["mount", "-t", "tmpfs", "anything", "{tmp_path}/place"], check=True)
    """
    command = ["unshare", "-Urm", sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the host's mount table has changed" in done.stderr, done.stderr
