"""The program that measures: it mounts (or finds something mounted), does what its specification says, and reports.

Every contender is measured by this same program, as the same ordinary account; only a mount that the kernel makes is
timed by root. It runs inside the view where the contender is viewfs. Lines of JSON go to standard output. After one
that asks for a memory reading it waits for a line on standard input: the process outside may look at processes that
this one may not.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import procfs
from benchmarks.dataset import Tree
from benchmarks.measurements import measure_function
from benchmarks.timed import TimedOut, timed

__all__ = ["Specification"]

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SERVER_ENDS_SECONDS = 5.0


@dataclass(frozen=True)
class Specification:
    """What to do."""

    #: Where the tree is mounted, or is to be.
    place: str
    manifest: str
    #: Seconds that each measurement may take.
    timeout: float
    #: Names; each is measured twice, cold and warm.
    measurements: tuple[str, ...] = ()
    #: The command that mounts. Empty if it is mounted already.
    mount: tuple[str, ...] = ()
    unmount: tuple[str, ...] = ()
    #: Whether reading the first byte is part of mounting, and the memory of an idle server is read.
    first_byte: bool = False
    #: Commands that together are measured as the session.
    session: tuple[tuple[str, ...], ...] = ()
    #: Compare what is read with what was written, before anything else.
    check: bool = False
    #: The server is one of a view, which `viewfs lsmod` knows.
    in_view: bool = False
    #: Seconds to wait before mounting, and before the memory of an idle server is read.
    settle: float = 0.0

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Specification:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class _Workload:
    def __init__(self, specification: Specification) -> None:
        self._specification = specification
        self._place = Path(specification.place)
        self._tree = Tree.load(Path(specification.manifest))
        self._servers: list[int] = []

    def run(self) -> None:
        specification = self._specification
        if specification.session:
            self._measure("session", "cold", partial(_execute_all, specification.session))
            return
        try:
            if specification.mount and not self._mount():
                return
            self._servers = self._find_servers()
            if specification.first_byte:
                time.sleep(specification.settle)
                self._ask_for_memory("idle")
                if specification.in_view:
                    self._measure("started", "cold", partial(_execute_all, (("viewfs", "--version"),)))
                    self._measure("asked", "cold", partial(_ask_to_mount, specification.mount))
            if specification.check:
                self._measure("check", "cold", partial(_check, self._place, self._tree))
            self._measure_twice()
            if specification.measurements:
                self._ask_for_memory("after")
        finally:
            if specification.mount:
                self._unmount()

    def _mount(self) -> bool:
        time.sleep(self._specification.settle)
        first = self._place / self._tree.first if self._specification.first_byte else None
        return self._measure("mount", "cold", partial(_mount, self._specification.mount, first))

    def _measure_twice(self) -> None:
        failed = [
            name
            for name in self._specification.measurements
            if not self._measure(name, "cold", measure_function(name, self._place, self._tree))
        ]
        for name in self._specification.measurements:
            if name not in failed:
                self._measure(name, "warm", measure_function(name, self._place, self._tree))

    def _measure(self, name: str, phase: str, function: Callable[[], float]) -> bool:
        before = procfs.cpu_seconds(self._serving())
        outcome: dict[str, Any] = {"measurement": name, "phase": phase}
        try:
            result = timed(function, self._specification.timeout)
            outcome |= asdict(result)
        except TimedOut:
            outcome["timeout"] = self._specification.timeout
        except RuntimeError as error:
            outcome["failed"] = str(error)
        if self._servers:
            outcome["server_cpu"] = procfs.cpu_seconds(self._serving()) - before
        _say(outcome)
        return "seconds" in outcome

    def _find_servers(self) -> list[int]:
        if not self._specification.in_view:
            return procfs.children(os.getpid())  # this process adopts them, see main()
        answer = subprocess.run(["viewfs", "lsmod", "--json"], stdout=subprocess.PIPE, check=True).stdout
        return [module["server"] for module in json.loads(answer)["modules"] if module["state"] == "mounted"]

    def _serving(self) -> list[int]:
        return [pid for server in self._servers for pid in procfs.family(server)]

    def _ask_for_memory(self, when: str) -> None:
        if not self._servers:
            return
        involved = self._serving()
        if self._specification.in_view:
            # The parent is the front of the session; the supervisor and the agent are its other children.
            involved = procfs.family(os.getppid(), without=os.getpid())
        _say({"memory": when, "servers": self._serving(), "involved": involved})
        sys.stdin.readline()

    def _unmount(self) -> None:
        subprocess.run(self._specification.unmount, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _SERVER_ENDS_SECONDS
        while not self._specification.in_view and (left := procfs.children(os.getpid())):
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.005)


def _execute(command: tuple[str, ...]) -> None:
    """Raises RuntimeError with the last thing the command said. A file takes that, since a server would hold a pipe."""
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output)
        if done.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(said[-1] if said else f"{command[0]} ended with {done.returncode}")


def _execute_all(commands: tuple[tuple[str, ...], ...]) -> float:
    started = time.perf_counter()
    for command in commands:
        _execute(command)
    return time.perf_counter() - started


def _mount(command: tuple[str, ...], first: Path | None) -> float:
    started = time.perf_counter()
    _execute(command)
    if first is not None:
        with first.open("rb", buffering=0) as file:
            file.read(1)
    return time.perf_counter() - started


def _ask_to_mount(command: tuple[str, ...]) -> float:
    """What `viewfs mount -t TYPE IMAGE PLACE` asks its session for, at another place, until the root can be listed."""
    from viewfs.session.client import find_session

    _viewfs, _mount, _option, kind, source, place = command
    place += "-asked"
    started = time.perf_counter()
    find_session(None).request("mount", type=kind, source=source, path=place, options={}, operation="mount")
    with open(f"{place}/first", "rb", buffering=0) as file:
        file.read(1)
    return time.perf_counter() - started


def _check(place: Path, tree: Tree) -> float:
    """Raises ValueError where the mount does not show what was put into the image."""
    started = time.perf_counter()
    if not {"first", "small", "huge", "big"} <= set(os.listdir(place)):
        raise ValueError("names are missing in the root directory")
    if len(os.listdir(place / "huge")) != tree.recipe.names:
        raise ValueError("names are missing in the huge directory")
    for path, offset, length, crc in tree.checks:
        with (place / path).open("rb") as file:
            file.seek(offset)
            if zlib.crc32(file.read(length)) != crc:
                raise ValueError(f"{path} has other content")
    return time.perf_counter() - started


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    """Servers that daemonize become children of this process, so that it knows which they are."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    _Workload(Specification.load(Path(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
