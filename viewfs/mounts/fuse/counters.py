"""What a server has done, counted where others can read it: in memory that it shares with the supervisor.

Nobody needs to ask a server how it is, which a server that is busy, hung or taken over could not answer truthfully
anyway.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from viewfs.mounts.fuse.protocol import Opcode

__all__ = ["Counters", "Snapshot"]

_OPCODES = 64
_BYTES_OUT = _OPCODES
_ERRORS = _OPCODES + 1
_SLOTS = 128
_SIZE = _SLOTS * 8


class Snapshot(NamedTuple):
    """Counters at one moment: requests by name (those that came at all), bytes of replies, replies with an errno."""

    requests: dict[str, int]
    bytes_out: int
    errors: int

    @property
    def total(self) -> int:
        return sum(self.requests.values())


class Counters:
    """Counters in a memory file; the server adds, whoever has the descriptor reads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        self._slots = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls) -> Counters:
        fd = os.memfd_create("viewfs-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return cls(fd)

    def count(self, opcode: int, bytes_out: int, *, failed: bool) -> None:
        slots = self._slots
        if opcode < _OPCODES:
            slots[opcode] += 1
        slots[_BYTES_OUT] += bytes_out
        if failed:
            slots[_ERRORS] += 1

    def snapshot(self) -> Snapshot:
        values = self._slots.tolist()
        requests = {opcode.name.lower(): values[opcode] for opcode in Opcode if values[opcode]}
        return Snapshot(requests, values[_BYTES_OUT], values[_ERRORS])

    def close(self) -> None:
        self._slots.release()
        self._memory.close()
        os.close(self.fd)
