"""What a server has done, counted where others can read it: in memory that it shares with the supervisor.

Nobody needs to ask a server how it is, which a server that is busy, hung or taken over could not answer truthfully
anyway. Each thread that serves has a row of its own, for `+= 1` is two steps; what is read is the sum of the rows.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from viewfs.modules.api import CacheCounts
from viewfs.mounts.fuse.protocol import Opcode

__all__ = ["MAX_ROWS", "Counters", "Latency", "Row", "Snapshot", "bucket_of", "latency_of", "upper_bound_ns"]

_OPCODES = 64
#: Latencies are counted in classes of a quarter of an octave, and told as the end of one: at most 25 % too long, up to
#: 15 s.
_STEPS = 4
_SHORTEST_BITS = 10
_BUCKETS = 24 * _STEPS

_REQUESTS = 0
_BYTES_OUT = _OPCODES
_ERRORS = _OPCODES + 1
_PUSHES = _OPCODES + 2
_BYTES_PUSHED = _OPCODES + 3
_HITS = _OPCODES + 4
_MISSES = _OPCODES + 5
_BEGUN = _OPCODES + 6
_LATENCIES = 128
_SLOTS = _LATENCIES + _OPCODES * _BUCKETS
#: Threads that can have a row.
MAX_ROWS = 5
_SIZE = MAX_ROWS * _SLOTS * 8


class Latency(NamedTuple):
    """How long requests took, from when they were read to when the answer was written: nanoseconds, at most 25 % too
    long."""

    p50: int
    p99: int


class Snapshot(NamedTuple):
    """Counters at one moment: requests by name (those that came at all), bytes of replies, replies with an errno."""

    requests: dict[str, int]
    bytes_out: int
    errors: int
    #: Messages to the kernel that nobody asked for, and the bytes in them.
    pushes: int = 0
    bytes_pushed: int = 0
    #: Blocks of the source that were in the server's caches, and that were not.
    hits: int = 0
    misses: int = 0
    #: By name, as `requests`; "all" for all together.
    latency: dict[str, Latency] = {}  # noqa: RUF012  # nobody changes it

    @property
    def total(self) -> int:
        return sum(self.requests.values())


def bucket_of(nanoseconds: int) -> int:
    """The class of latencies that this one is in."""
    bits = nanoseconds.bit_length()
    if bits <= _SHORTEST_BITS:
        return 0
    # The bits behind the first tell which quarter of the octave.
    return min((bits - _SHORTEST_BITS - 1) * _STEPS + (nanoseconds >> bits - 3 & 3) + 1, _BUCKETS - 1)


def upper_bound_ns(bucket: int) -> int:
    """Where a class of latencies ends."""
    if bucket == 0:
        return 1 << _SHORTEST_BITS
    octave, quarter = divmod(bucket - 1, _STEPS)
    return (1 << _SHORTEST_BITS + octave) * (_STEPS + quarter + 1) // _STEPS


def latency_of(counts: list[int]) -> Latency | None:
    """The latency, given how often each class occurred; None if none did."""
    total = sum(counts)
    if not total:
        return None
    sums = list(accumulate(counts))

    def quantile(percent: int) -> int:
        rank = -(-total * percent // 100)
        return upper_bound_ns(next(bucket for bucket, reached in enumerate(sums) if reached >= rank))

    return Latency(quantile(50), quantile(99))


class Row:
    """The counters of one thread."""

    def __init__(self, slots: memoryview) -> None:
        self._slots = slots

    def count(self, opcode: int, bytes_out: int, *, failed: bool) -> None:
        """Count a request that is about to be answered."""
        slots = self._slots
        if opcode < _OPCODES:
            slots[opcode] += 1
        slots[_BYTES_OUT] += bytes_out
        if failed:
            slots[_ERRORS] += 1

    def begin(self, now_ns: int) -> None:
        """Note when the thread began with a request (CLOCK_MONOTONIC); 0: it is not busy."""
        self._slots[_BEGUN] = now_ns

    def count_error(self) -> None:
        """Note that a request that was counted could not be answered after all."""
        self._slots[_ERRORS] += 1

    def count_latency(self, opcode: int, nanoseconds: int) -> None:
        """Note how long it took to answer a request."""
        if opcode < _OPCODES:
            self._slots[_LATENCIES + opcode * _BUCKETS + bucket_of(nanoseconds)] += 1

    def count_pushed(self, length: int) -> None:
        """Count a message that is no reply (a notification)."""
        self._slots[_PUSHES] += 1
        self._slots[_BYTES_PUSHED] += length

    def note_caches(self, caches: Iterable[CacheCounts]) -> None:
        """Write down what the caches have counted so far. All threads share the caches, and each writes what it saw."""
        hits = misses = 0
        for cache in caches:
            hits += cache.hits
            misses += cache.misses
        self._slots[_HITS] = hits
        self._slots[_MISSES] = misses

    def release(self) -> None:
        self._slots.release()


class Counters:
    """Counters in a memory file; the server adds, whoever has the descriptor reads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        self._slots = memoryview(self._memory).cast("Q")
        self.rows = [Row(self._slots[row * _SLOTS : (row + 1) * _SLOTS]) for row in range(MAX_ROWS)]

    @classmethod
    def create(cls) -> Counters:
        fd = os.memfd_create("viewfs-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return cls(fd)

    def snapshot(self, names_of: Sequence[str] | None = None) -> Snapshot:
        """`names_of`: what is counted, if it is no FUSE requests."""
        values = self._slots.tolist()
        columns = list(zip(*(values[row * _SLOTS :][:_SLOTS] for row in range(MAX_ROWS)), strict=True))
        sums = [sum(column) for column in columns]
        if names_of is None:
            names = {opcode.name.lower(): int(opcode) for opcode in Opcode if sums[opcode]}
        else:
            names = {name: number for number, name in enumerate(names_of) if sums[number]}
        latency = {}
        together = [0] * _BUCKETS
        for name, opcode in names.items():
            counts = sums[_LATENCIES + opcode * _BUCKETS :][:_BUCKETS]
            together = [one + two for one, two in zip(together, counts, strict=True)]
            measured = latency_of(counts)
            if measured is not None:
                latency[name] = measured
        measured = latency_of(together)
        if measured is not None:
            latency["all"] = measured
        return Snapshot(
            {name: sums[opcode] for name, opcode in names.items()},
            sums[_BYTES_OUT],
            sums[_ERRORS],
            sums[_PUSHES],
            sums[_BYTES_PUSHED],
            max(columns[_HITS]),
            max(columns[_MISSES]),
            latency,
        )

    def oldest_ns(self) -> int:
        """When the oldest request began that a thread is busy with (CLOCK_MONOTONIC); 0 if no thread is busy."""
        begun = [self._slots[row * _SLOTS + _BEGUN] for row in range(MAX_ROWS)]
        return min((since for since in begun if since), default=0)

    def is_late(self, nanoseconds: int) -> bool:
        """Has a thread been busy with one request for longer than that?"""
        oldest = self.oldest_ns()
        return bool(oldest) and time.perf_counter_ns() - oldest > nanoseconds

    def forget_begun(self) -> None:
        """Forget what threads are busy with: the server is about to end, and its successor has not begun."""
        for row in self.rows:
            row.begin(0)

    def close(self) -> None:
        for row in self.rows:
            row.release()
        self._slots.release()
        self._memory.close()
        os.close(self.fd)
