"""ext4 on recorded disks, an account with a tree and layers on them, and what that account finds after a power cut."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.root.power_cut import guest
from tests.root.power_cut.promises import ABSENT, Promises
from tests.root.power_cut.recorder import Kind, Record, Recorder, read_log
from tests.root.power_cut.replay import Cut, Replay
from tests.root.test_lower_file_systems import Account
from viewfs.linux.mount import MountFlags, UmountFlags, mount, umount2

__all__ = ["NAME", "Scene", "Session"]

NAME = "p"
_MEGABYTES = 24
#: Only what syncs something has the journal written: no timer, and no reading.
_OPTIONS = "loop,commit=300,noatime"
_SECONDS = 60
_TEMPORARY = ".viewfs-"
_GUEST = Path(guest.__file__)


def _status(pid: str) -> str:
    return Path(f"/proc/{pid}/status").read_text()


class Failed(Exception):
    """A command failed, or said what it should not have."""


class Session:
    """A view of the account with the guest in it."""

    def __init__(self, scene: Scene) -> None:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = scene.popen(
            *("run", "--name", NAME, "--cow", scene.tree, "--cow-backend", scene.backend, "--"),
            *(sys.executable, "-c", _GUEST.read_text(), scene.tree),
            errors=self._errors,
        )

    def do(self, code: str) -> Any:
        """Have Python done in the view; what it calls `answer`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(code) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the view is gone: {self._said()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"in the view: {answer['error']}")
        return answer["answer"]

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().strip()

    def close(self) -> None:
        """End it."""
        try:
            self._process.communicate(timeout=_SECONDS)
            said = self._said()
        finally:
            self._errors.close()
        if self._process.returncode != 0 or "Traceback" in said:
            raise Failed(f"the view ended with {self._process.returncode}: {said}")


class Scene:
    """Disks `a` and, where the layers have one of their own, `b`. Lives in a mount namespace of its own."""

    def __init__(self, place: Path, backend: str, *, disks: int) -> None:
        self.place, self.backend = place, backend
        mount("none", str(place), "tmpfs", MountFlags.NOSUID | MountFlags.NODEV, "size=1g,mode=0755")
        self.account = Account(place)
        self._mounts = [place / name for name in ("a", "b")[:disks]]
        self._images = [place / f"image{number}" for number in range(disks)]
        self._bases = [place / f"base{number}" for number in range(disks)]
        self.tree = self._mounts[0] / "tree"
        self.state = self._mounts[-1] / "state"
        self.out = self._mounts[0] / "out"
        self.account.environment["XDG_STATE_HOME"] = str(self.state)
        self._log = place / "log"
        self._marks = 0
        self._recorder: Recorder | None = None
        self.promises = Promises(self.mark)

    def prepare(self, directories: Sequence[str], files: Mapping[str, bytes]) -> None:
        """Make the file systems, and the account's tree; all of it is on the disks."""
        for base, top in zip(self._bases, self._mounts, strict=True):
            top.mkdir()
            with open(base, "wb") as file:
                file.truncate(_MEGABYTES << 20)
            make = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
            subprocess.run([*make, base], check=True, capture_output=True)
        with self._mounted(self._bases):
            for top in self._mounts:
                top.chmod(0o755)
            for path in (self.state, self.out, self.tree, *(self.tree / name for name in directories)):
                self.account.own(path)
                path.chmod(0o755)
            for name, content in files.items():
                (self.tree / name).write_bytes(content)
                os.chown(self.tree / name, self.account.entry.pw_uid, self.account.entry.pw_gid)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """What is done to the disks is written down."""
        signal.alarm(2 * _SECONDS)
        for base, image in zip(self._bases, self._images, strict=True):
            image.write_bytes(base.read_bytes())
        directory = self.place / "disks"
        directory.mkdir()
        recorder = self._recorder = Recorder(directory, self._images, self._log)
        with self._mounted([recorder.disk(number) for number in range(len(self._images))]):
            yield
            self.mark("the end")
        recorder.close()

    @contextlib.contextmanager
    def _mounted(self, images: Sequence[Path]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for image, top in zip(images, self._mounts, strict=True):
                subprocess.run(["mount", "-t", "ext4", "-o", _OPTIONS, image, top], check=True, capture_output=True)
                stack.callback(umount2, str(top), UmountFlags.NONE)
            yield

    def mark(self, text: str) -> int:
        """Put a mark into the log; its number."""
        assert self._recorder is not None
        self._recorder.mark(text)
        self._marks += 1
        return self._marks - 1

    def neighbours(self) -> None:
        """Others who use the same disks sync something of theirs, whereupon the journal is written."""
        for top in self._mounts:
            with open(top / "neighbour", "a") as file:
                file.write("x")
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def busy_neighbours(self) -> Iterator[None]:
        """Others do so all the time."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(0.003):
                self.neighbours()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextlib.contextmanager
    def slow_server(self) -> Iterator[None]:
        """Where viewfs itself serves the view, what it does in several steps takes long enough for a cut in between."""
        servers = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if self._has_upper(pid)]
        if self.backend != "fuse" or shutil.which("strace") is None:
            yield
            return
        calls = "mkdirat,mknodat,fsetxattr"
        attached = [word for pid in servers for word in ("-p", pid)]
        slowed = ["strace", "-f", "-q", "-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter=40000", *attached]
        with subprocess.Popen(slowed, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            while not all(f"\nTracerPid:\t{tracer.pid}\n" in _status(pid) for pid in servers):
                assert tracer.poll() is None, tracer.stderr.read()
            try:
                yield
            finally:
                tracer.terminate()
                tracer.stderr.read()

    def _has_upper(self, pid: str) -> bool:
        """Is it what serves a view with layers of this scene?"""
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                place = os.readlink(f"/proc/{pid}/fd/{fd}")
                if place.startswith(f"{self.state}/") and place.endswith("/upper"):
                    return True
        return False

    def popen(self, *arguments: str | Path, errors: Any) -> subprocess.Popen[str]:
        """A viewfs command that can be talked to."""
        entry = self.account.entry
        ids = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        command = ["setpriv", *ids, sys.executable, "-B", "-m", "viewfs", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=self.account.environment, cwd="/"
        )

    def viewfs(self, *arguments: str | Path, codes: Sequence[int] = (0,)) -> str:
        """A viewfs command; what it said."""
        process = self.popen(*arguments, errors=subprocess.STDOUT)
        said, _nothing = process.communicate(timeout=_SECONDS)
        if process.returncode not in codes or "Traceback" in said:
            raise Failed(f"viewfs {arguments[0]} ended with {process.returncode}: {said.strip()[-1500:]}")
        return said

    # -- afterwards

    def records(self) -> list[Record]:
        return list(read_log(self._log))

    def look_at(self, records: Sequence[Record], cuts: Sequence[Cut]) -> Iterator[tuple[Cut, str, list[str]]]:
        """What is wrong after each of `cuts`, which are in order, with the mark that came last."""
        replay = Replay(self._bases, records)
        for cut in cuts:
            signal.alarm(2 * _SECONDS)  # nothing waits for ever
            marks = [record.data.decode() for record in records[: cut.position] if record.kind is Kind.MARK]
            replay.write(cut, self._images)
            with self._mounted(self._images):
                yield (
                    cut,
                    marks[-1] if marks else "",
                    list(self._wrong(len(marks) - 1, view_first=cut.position % 2 == 0)),
                )

    def _wrong(self, mark: int, *, view_first: bool) -> Iterator[str]:
        """What is wrong with what is on the disks now, of which `mark` was the last mark.

        `view_first`: what finishes or undoes a commit is a view that is opened, and no command before it.
        """
        try:
            self._check_json()
            if not view_first:
                self.viewfs("diff", "--session", NAME, codes=(0, 4))  # there may be no session yet
                yield from self._broken("outside", guest.look(str(self.tree)), mark)
            images = {path: one for path, one in guest.look(str(self.out)).items() if _TEMPORARY not in path}
            yield from self._broken("images", images, mark)
            session = Session(self)
            try:
                seen = session.do("answer = look()")
                yield from self._broken("view", seen, mark)
                for path, wanted in self.promises.finished(guest.look(str(self.tree)), mark).items():
                    if seen.get(path, ABSENT) not in (wanted, *self.promises.allowed("view", path, mark)):
                        yield f"view: {path} is {seen.get(path, ABSENT)}, hiding what was committed, {wanted}"
                for space in self.promises.spaces():
                    if space not in ("outside", "view", "images") and self.promises.is_there(space, mark):
                        self.viewfs("rollback", "--session", NAME, space)
                        yield from self._broken(space, session.do("answer = look()"), mark)
            finally:
                session.close()
            found = guest.look(str(self.tree))
            yield from self._broken("outside", found, mark)
            yield from (f"outside: {path} was left behind" for path in found if _TEMPORARY in path)
        except Failed as error:
            yield str(error)

    def _broken(self, space: str, found: Mapping[str, str], mark: int) -> list[str]:
        if not self.promises.is_there(space, mark):
            return []
        return self.promises.broken(space, found, mark)

    def _check_json(self) -> None:
        """The layer's own files are whole, or not there yet."""
        for name in ("layer.json", "manifest.json"):
            for path in self.state.rglob(name):
                if "upper" in path.parts:
                    continue
                try:
                    json.loads(path.read_text())
                except ValueError as error:
                    raise Failed(f"{name} is damaged: {error}") from error
