"""Views for the tests of this tier, and the watch over the host that they must leave as it was."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

#: How long a command may take, on a machine that has twenty times as much to do as it can; `make soak` gives more.
SECONDS = int(os.environ.get("VIEWFS_SOAK_SECONDS", "120"))


@dataclass
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Viewfs:
    """`viewfs` as a user runs it, with a runtime directory of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = directory / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.state = directory / "state"
        self.environment = os.environ | {"XDG_RUNTIME_DIR": str(self.runtime), "XDG_STATE_HOME": str(self.state)}
        self.environment.pop("VIEWFS_SESSION", None)
        #: What every command begins with.
        self.command = ["viewfs"]

    def __call__(self, *arguments: str | Path, check: bool = True, stdin: str | None = None) -> Result:
        done = subprocess.run(
            [*self.command, *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            timeout=SECONDS,
            env=self.environment,
            cwd=self.directory,
        )
        result = Result(done.returncode, done.stdout, done.stderr)
        if check:
            assert result.code == 0, f"viewfs {' '.join(map(str, arguments))}: {result}"
        return result

    def sh(self, *options: str | Path, script: str, check: bool = True) -> Result:
        """`script` in a view opened with `options`."""
        return self("run", *options, "--", "bash", "-euc", script, check=check)


class View:
    """A session that stays open while the test talks to it from outside and has commands run inside."""

    def __init__(self, viewfs: Viewfs, name: str, *options: str | Path) -> None:
        self.viewfs = viewfs
        self.name = name
        # The command ends when its input does, so the session can't outlive the test.
        self.process = subprocess.Popen(
            ["viewfs", "run", "--name", name, *map(str, options), "--", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=viewfs.environment,
            cwd=viewfs.directory,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "ready\n":
            raise AssertionError(f"the view did not open: {self.process.communicate()}")

    def sh(self, script: str, check: bool = True) -> Result:
        return self.viewfs("enter", self.name, "--", "bash", "-euc", script, check=check)

    def __call__(self, command: str, *arguments: str | Path, check: bool = True) -> Result:
        return self.viewfs(command, "--session", self.name, *arguments, check=check)

    def json(self, command: str, *arguments: str) -> Any:
        return self(command, "--json", *arguments).json

    @property
    def supervisor(self) -> int:
        sessions = self.viewfs("ps", "--json").json["sessions"]
        return next(int(session["pid"]) for session in sessions if session["name"] == self.name)

    def close(self) -> tuple[int, str]:
        """End it; exit code and what it had to say."""
        _out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, err


@pytest.fixture
def viewfs(tmp_path: Path) -> Viewfs:
    return Viewfs(tmp_path)


@pytest.fixture
def open_view(viewfs: Viewfs) -> Iterator[Callable[..., View]]:
    """Open views by name; they are closed at the end."""
    views: list[View] = []

    def open_one(*options: str | Path, name: str = "test") -> View:
        views.append(View(viewfs, name, *options))
        return views[-1]

    yield open_one
    for view in views:
        if view.process.poll() is None:
            view.close()
        for stream in (view.process.stdin, view.process.stdout, view.process.stderr):
            if stream is not None:
                stream.close()


def own_processes() -> dict[int, str]:
    """Live processes of this user that could belong to a session: all but the test's own ancestors."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # (To whom the directory belongs says nothing of those that hide their memory.)
            status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            if int(status["Uid"].split()[0]) != os.getuid():
                continue
            state, name = status["State"][0], (entry / "comm").read_text().strip()
        except OSError:
            continue
        if state != "Z":
            found[int(entry.name)] = name
    return found


def session_processes(directory: Path) -> dict[int, str]:
    """Those of them that a session of the test has: what was started with its directories, what is in a user namespace
    other than the test's own, and of those that hide both what has its mark. (Other programs of the account come and
    go meanwhile.)
    """
    ours = os.readlink("/proc/self/ns/user")
    marked = re.compile(rf"^Max msgqueue size +{mark_of(directory)} ", re.MULTILINE)
    found = {}
    for pid, name in own_processes().items():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            namespace = os.readlink(f"/proc/{pid}/ns/user")
        except OSError:
            with suppress(OSError):  # it has ended, or is about to, or hides that
                if marked.search(Path(f"/proc/{pid}/limits").read_text()):
                    found[pid] = name
            continue
        if namespace != ours or b"XDG_RUNTIME_DIR=" + os.fsencode(directory / "runtime") in environment:
            found[pid] = name
    return found


def mark_of(directory: Path) -> int:
    """A limit that nobody needs (bytes in POSIX message queues), by which what is started in a test is known: whoever
    makes processes hands it on, and everybody can see it."""
    return 100_000 + zlib.crc32(os.fsencode(directory)) % 700_000


def host_mounts(directory: Path, pid: int | str = "self") -> list[str]:
    """What a process sees of viewfs's mounts, and of those on or of something in the test's directory."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        kind, source = line.partition(" - ")[2].split(" ")[:2]
        if kind.startswith("fuse.viewfs") or source.startswith("viewfs") or str(directory) in line:
            found.append(line)
    return found


def wait_until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Poll for something that another process does and that can't be waited for otherwise."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(0.01)
    return value


@contextmanager
def left_alone(directory: Path, seconds: float = SECONDS) -> Iterator[None]:
    """The mounts, processes and sockets of a test that has this directory are gone after it."""
    mounts, processes = host_mounts(directory), session_processes(directory)
    before = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (mark_of(directory), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, before)
    assert host_mounts(directory) == mounts, "the host's mount table has changed"
    left = {pid: name for pid, name in session_processes(directory).items() if pid not in processes}
    if left:  # one that is on its way out may take a moment
        wait_until(lambda: not set(session_processes(directory)) & set(left), f"{left} have ended", seconds)
    sockets = directory / "runtime/viewfs"
    assert not sockets.exists(), f"sockets are left: {list(sockets.iterdir())}"


@pytest.fixture(autouse=True)
def host_left_alone(tmp_path: Path) -> Iterator[None]:
    with left_alone(tmp_path):
        yield
    # The kernel's overlay leaves a directory of mode 0, which pytest can't remove later.
    for layer in tmp_path.glob("state/viewfs/*/*"):
        for directory in (layer / "work").glob("*"):
            directory.chmod(0o700)


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    """Make an image with mke2fs from files given by name and content."""

    def make(
        name: str = "disk.img", size: str = "8M", options: tuple[str, ...] = (), **files: str | bytes | Path
    ) -> Path:
        tree = tmp_path / f"{name}.d"
        tree.mkdir()
        for file_name, content in files.items():
            target = tree / file_name
            if isinstance(content, Path):
                target.write_bytes(content.read_bytes())
            else:
                target.write_bytes(content.encode() if isinstance(content, str) else content)
        path = tmp_path / name
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", *options, "-d", tree, path, size], check=True, capture_output=True
        )
        return path

    return make


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
