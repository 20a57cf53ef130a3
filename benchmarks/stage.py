"""A fresh mount for a group of measurements: start the workload as the account, listen to it, clean up after it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import procfs
from benchmarks.contenders import Contender, Kind, session_commands, unmount_command, view_mount_option
from benchmarks.images import DataSet, Image
from benchmarks.workload import Specification

__all__ = ["Outcome", "Stage"]

_SETTLE_SECONDS = 0.5
_ENDS_SECONDS = 15.0
_WORKLOAD = (sys.executable, "-m", "benchmarks.workload")


@dataclass(frozen=True)
class Outcome:
    """What a workload said."""

    #: As `workload` prints them: measurement, phase, and seconds, timeout or failed.
    measurements: list[dict[str, Any]]
    #: when → MiB, by the names of `measurements.MEMORY` without their prefix.
    memory: dict[str, dict[str, float]]


class Stage:
    """Where mounts are made: a scratch directory that the account owns, and that is gone afterwards."""

    def __init__(self, base: Path, data: DataSet, account: str | None, timeout: float) -> None:
        self._data = data
        self._timeout = timeout
        self._account = pwd.getpwnam(account) if account else None
        self.scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=base))
        self._place = self.scratch / "mounted"
        self._state = self.scratch / "state"
        for directory in (self._place, self._state):
            directory.mkdir()
        self._runtime = self.scratch / "run"
        self._runtime.mkdir(mode=0o700)
        if self._account:
            for directory in (self.scratch, self._place, self._state, self._runtime):
                os.chown(directory, self._account.pw_uid, self._account.pw_gid)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._sweep()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def as_root(self) -> bool:
        return self._account is not None

    def check(self, contender: Contender, image: Image) -> str | None:
        """Why the contender can't read the image; None if it can."""
        if (obstacle := contender.obstacle(self.as_root)) is not None:
            return obstacle
        try:
            outcome = self._run(contender, image, self._specification(contender, image, check=True))
        except RuntimeError as error:
            return str(error)
        for entry in outcome.measurements:
            if "seconds" not in entry:
                return f"{entry['measurement']}: {entry.get('failed', 'takes too long')}"
        return None

    def measure(self, contender: Contender, image: Image, group: str, names: Sequence[str]) -> Outcome:
        """Mount afresh, measure those of the group, unmount."""
        source = self._data.image(image)
        _read_all(source)
        specification = self._specification(contender, image)
        if group == "session":
            commands = session_commands(contender, image, source, self._place, self._state)
            specification = replace(specification, session=tuple(map(tuple, commands)))
        elif group == "mount":
            specification = replace(specification, first_byte=True, settle=_SETTLE_SECONDS)
        else:
            specification = replace(specification, measurements=tuple(names))
        return self._run(contender, image, specification)

    def _specification(self, contender: Contender, image: Image, check: bool = False) -> Specification:
        return Specification(
            place=str(self._place),
            manifest=str(self._data.manifest),
            timeout=self._timeout,
            mount=tuple(contender.mount(image, self._data.image(image), self._place, self._state)),
            unmount=tuple(unmount_command(contender, self._place)),
            in_view=contender.kind is Kind.VIEW,
            check=check,
        )

    def _run(self, contender: Contender, image: Image, specification: Specification) -> Outcome:
        """Mounting is the workload's work where it is measured, and otherwise that of who has the right to do it."""
        mounting_is_measured = specification.first_byte or bool(specification.session)
        with contextlib.ExitStack() as stack:
            stack.callback(self._sweep)
            command: list[str] = []
            as_account = True
            if contender.kind is Kind.KERNEL and mounting_is_measured:
                as_account = False
            elif contender.kind is Kind.KERNEL:
                stack.enter_context(self._mounted_by_root(specification))
                specification = replace(specification, mount=(), unmount=())
            elif contender.kind is Kind.VIEW and specification.first_byte:
                command = ["viewfs", "run", "--"]
            elif contender.kind is Kind.VIEW and not specification.session:
                command = ["viewfs", "run", *view_mount_option(image, self._data.image(image), self._place), "--"]
                specification = replace(specification, mount=(), unmount=())
            file = self.scratch / "specification.json"
            specification.save(file)
            deadline = self._timeout * (2 * len(specification.measurements) + 2) + 30
            return self._listen([*command, *_WORKLOAD, str(file)], as_account, deadline)

    @contextlib.contextmanager
    def _mounted_by_root(self, specification: Specification) -> Iterator[None]:
        done = subprocess.run(specification.mount, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(self._without_paths(done.stderr))
        try:
            yield
        finally:
            subprocess.run(specification.unmount)

    def _listen(self, command: list[str], as_account: bool, deadline: float) -> Outcome:
        outcome = Outcome([], {})
        with tempfile.TemporaryFile() as errors:
            process = self._start(command, as_account, errors.fileno())
            timer = threading.Timer(deadline, process.terminate)
            timer.start()
            try:
                assert process.stdout is not None and process.stdin is not None
                for line in process.stdout:
                    message = json.loads(line)
                    if "memory" in message:
                        outcome.memory[message["memory"]] = _read_memory(message)
                        process.stdin.write("\n")
                        process.stdin.flush()
                    else:
                        if "failed" in message:
                            message["failed"] = self._without_paths(message["failed"])
                        outcome.measurements.append(message)
            except BaseException:
                process.terminate()
                raise
            finally:
                timer.cancel()
                _end(process)
            if process.returncode:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip()
                raise RuntimeError(self._without_paths(said) or f"the workload ended with {process.returncode}")
        return outcome

    def _start(self, command: list[str], as_account: bool, errors: int) -> subprocess.Popen[str]:
        """Neither root's environment nor its runtime directory is the account's."""
        who = self._account
        environment = {
            "HOME": str(self.scratch),
            "LANG": "C.UTF-8",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_RUNTIME_DIR": str(self._runtime),
        }
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=self.scratch,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            user=who.pw_uid if who and as_account else None,
            group=who.pw_gid if who and as_account else None,
            extra_groups=[] if who and as_account else None,
        )

    def _sweep(self) -> None:
        """Unmount what a workload that had to be killed has left."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            place = line.split()[4].encode().decode("unicode_escape")
            if Path(place).is_relative_to(self.scratch):
                command = ["umount", "-l"] if self.as_root else ["fusermount3", "-u", "-z"]
                subprocess.run([*command, place])

    def _without_paths(self, text: str) -> str:
        """The last line, without where on this machine things are."""
        line = (text.strip().splitlines() or [""])[-1]
        return line.replace(f"{self._place}/", "").replace(str(self._place), "the root directory").replace(
            f"{self._data.directory}/", ""
        )  # fmt: skip


def _read_memory(message: dict[str, Any]) -> dict[str, float]:
    servers, involved = message["servers"], message["involved"]
    return {
        "private": procfs.private_kib(servers) / 1024,
        "peak": procfs.peak_kib(servers) / 1024,
        "total": procfs.pss_kib(involved) / 1024,
    }


def _read_all(path: Path) -> None:
    """So that the image is in the page cache, for everybody alike."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for it to end; ask it to, and kill it, if it doesn't."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(_ENDS_SECONDS / 3)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(_ENDS_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
