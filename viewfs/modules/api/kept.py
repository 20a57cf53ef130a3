"""Memory of a device that outlives its server: what the next server needs to go on where this one dies.

It is made before the server shuts itself in, and has a size that does not change. The registers are set back by a
server that takes over while a call was being carried out, and the call is made again: so what a device keeps in the
registers was changed by a call, or was not. Memory is not set back, so a device writes where nothing counts yet, and
then moves a register. In between a device must not wait.
"""

from __future__ import annotations

import fcntl
import mmap
import os

__all__ = ["Kept", "memory_file"]

_REGISTERS = 32
_REGISTER_BYTES = _REGISTERS * 8
#: In front of the memory: a page with the registers and with what they were, and the answer to the last call.
_ANSWER_AT = mmap.PAGESIZE
_MEMORY_AT = _ANSWER_AT + (1 << 20) + mmap.PAGESIZE


class Kept:
    """`registers` are 32 numbers of 64 bits, and `memory` is as many bytes as the module asked for; all of it is 0 at
    first."""

    def __init__(self, size: int, fd: int | None = None) -> None:
        """`fd` is of `create`; without one nothing outlives anybody. Raises OSError, OverflowError and ValueError where
        there is no such memory."""
        if fd is None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            page = mmap.mmap(-1, _MEMORY_AT, flags)
            self.memory = memoryview(mmap.mmap(-1, size, flags) if size else b"")
        else:
            page = mmap.mmap(fd, _MEMORY_AT)
            self.memory = memoryview(mmap.mmap(fd, size, offset=_MEMORY_AT) if size else b"")
        whole = memoryview(page)
        self._now, self._before = whole[:_REGISTER_BYTES], whole[_REGISTER_BYTES : 2 * _REGISTER_BYTES]
        self.registers = self._now.cast("Q")
        self._answer = whole[_ANSWER_AT:_MEMORY_AT]

    @staticmethod
    def create(size: int) -> int:
        """A descriptor of such memory. Raises OSError and OverflowError."""
        return memory_file("viewfs-device", _MEMORY_AT + size)

    def begin(self) -> None:
        """A call is about to be carried out."""
        self._before[:] = self._now

    def undo(self) -> None:
        """It was not finished."""
        self._now[:] = self._before

    def put_answer(self, parts: list[bytes | bytearray | memoryview]) -> int:
        """Remember what it was answered; how long that is, in bytes."""
        length = 0
        for part in parts:
            self._answer[length : length + len(part)] = part
            length += len(part)
        return length

    def answer(self, length: int) -> bytes:
        return bytes(self._answer[:length])


def memory_file(name: str, size: int) -> int:
    """A descriptor of a file in memory that nobody can make larger or smaller, so that what is mapped of it stays
    (F_ADD_SEALS of fcntl(2)). Raises OSError and OverflowError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
