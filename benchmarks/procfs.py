"""What /proc says of server processes: their children, processor time and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["children", "cpu_seconds", "family", "peak_kib", "private_kib", "pss_kib"]

_TICKS = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that this one is the parent of."""
    found: list[int] = []
    for task in _tasks(pid):
        found += [int(child) for child in _read(task / "children").split()]
    return found


def family(pid: int, without: int | None = None) -> list[int]:
    """The process and all that come from it, except `without` and what comes from that."""
    if pid == without:
        return []
    return [pid, *(member for child in children(pid) for member in family(child, without))]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of those processes and their threads, in seconds; a tick is usually 10 ms."""
    ticks = 0
    for pid in pids:
        fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        if fields:
            ticks += int(fields[11]) + int(fields[12])  # utime and stime of proc_pid_stat(5)
    return ticks / _TICKS


def private_kib(pids: Iterable[int]) -> int:
    """Memory that nobody else has a part in."""
    return sum(_sum(pid, "smaps_rollup", "Private_Clean:", "Private_Dirty:") for pid in pids)


def pss_kib(pids: Iterable[int]) -> int:
    """Memory, where what n processes share counts as the n-th part in each."""
    return sum(_sum(pid, "smaps_rollup", "Pss:") for pid in pids)


def peak_kib(pids: Iterable[int]) -> int:
    """The most that was ever resident, shared or not."""
    return sum(_sum(pid, "status", "VmHWM:") for pid in pids)


def _sum(pid: int, file: str, *keys: str) -> int:
    lines = [line.split() for line in _read(Path(f"/proc/{pid}/{file}")).splitlines()]
    return sum(int(words[1]) for words in lines if words and words[0] in keys)


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
