"""Memory of a device that outlives its server: what the next server needs to continue where this one dies.

It is made before the server seals itself off, and its size does not change. If a server dies during a call, its
successor restores the registers as they were before the call, and the call is made again: so a call changes the
registers completely or not at all. Memory is not restored, so a device first writes to memory that no register refers
to yet, and then changes a register. It must not wait in between.
"""

from __future__ import annotations

import fcntl
import mmap
import os

__all__ = ["Kept", "memory_file"]

_REGISTERS = 32
_REGISTER_BYTES = _REGISTERS * 8
#: In front of the memory: a page with the registers and their saved values, and the answer to the last call.
_ANSWER_AT = mmap.PAGESIZE
_MEMORY_AT = _ANSWER_AT + (1 << 20) + mmap.PAGESIZE


class Kept:
    """`registers` are 32 numbers of 64 bits, and `memory` is as many bytes as the module asked for; all of it is 0 at
    first."""

    def __init__(self, size: int, fd: int | None = None) -> None:
        """`fd` is from `create`; without it the memory does not outlive this process. Raises OSError, OverflowError and
        ValueError if there is no such memory."""
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
        """Save the registers, before a call is carried out."""
        self._before[:] = self._now

    def undo(self) -> None:
        """Restore the registers, because the call was not finished."""
        self._now[:] = self._before

    def put_answer(self, parts: list[bytes | bytearray | memoryview]) -> int:
        """Store the answer to the call; returns its length in bytes."""
        length = 0
        for part in parts:
            self._answer[length : length + len(part)] = part
            length += len(part)
        return length

    def answer(self, length: int) -> bytes:
        return bytes(self._answer[:length])


def memory_file(name: str, size: int) -> int:
    """A descriptor of a memory file whose size nobody can change, so that mappings of it stay valid (F_ADD_SEALS of
    fcntl(2)). Raises OSError and OverflowError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
