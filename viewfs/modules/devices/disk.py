"""Disks: devices with positions and a size, over memory or a part of a file.

Whoever looks with stat(2) finds a regular file of the right size, which is what mkfs and its like go by; BLKGETSIZE64
is there for those who ask.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from typing import Protocol

from viewfs.errors import os_error
from viewfs.modules.api import Buffer
from viewfs.modules.api.device import Call, CharDevice, DeviceFile
from viewfs.modules.api.ioctls import _IOR, ioctl
from viewfs.modules.framework.sources import FileSource

__all__ = ["Disk", "FileSectors", "MemorySectors", "Sectors"]

#: linux/fs.h; it is said to be for a size_t, which is smaller in a program of 32 bits, but eight bytes are stored.
BLKGETSIZE64 = _IOR(0x12, 114, ctypes.c_uint64)


class Sectors(Protocol):
    """What a disk consists of. Offsets and sizes lie within it."""

    size: int
    writable: bool

    def read(self, offset: int, size: int) -> Buffer: ...

    def write(self, offset: int, data: bytes) -> int: ...

    def sync(self) -> None: ...


class MemorySectors:
    """Memory, which is taken as it is written."""

    writable = True

    def __init__(self, memory: memoryview) -> None:
        self.size = len(memory)
        self._memory = memory

    def read(self, offset: int, size: int) -> Buffer:
        # A copy: an answer from pages that this server has not touched yet is EIO for the caller if it is killed while
        # the kernel fetches them.
        return bytes(self._memory[offset : offset + size])

    def write(self, offset: int, data: bytes) -> int:
        self._memory[offset : offset + len(data)] = data
        return len(data)

    def sync(self) -> None:
        pass


class FileSectors:
    """`size` bytes of a file from `offset` on."""

    def __init__(self, source: FileSource, offset: int, size: int, *, writable: bool) -> None:
        self.size = size
        self.writable = writable and source.writable
        self._source = source
        self._offset = offset

    def read(self, offset: int, size: int) -> Buffer:
        return self._source.pread(size, self._offset + offset)

    def write(self, offset: int, data: bytes) -> int:
        return self._source.pwrite(data, self._offset + offset)

    def sync(self) -> None:
        self._source.sync()


class _File(DeviceFile):
    device: Disk

    def read(self, call: Call, size: int) -> Buffer:
        size = min(size, self.device.size - call.offset)
        return self.device.sectors.read(call.offset, size) if size > 0 else b""

    def write(self, call: Call, data: bytes) -> int:
        room = self.device.size - call.offset
        if room <= 0:
            raise os_error(errno.ENOSPC)
        return self.device.sectors.write(call.offset, data[:room])

    def fsync(self, call: Call, *, data_only: bool) -> None:
        self.device.sectors.sync()

    @ioctl(BLKGETSIZE64, ctypes.c_uint64)
    def size(self, call: Call, size: ctypes.c_uint64) -> None:
        size.value = self.device.size


class Disk(CharDevice):
    """A disk made of `sectors`."""

    file = _File
    stream = False
    repeatable = True

    def __init__(self, sectors: Sectors) -> None:
        self.sectors = sectors
        self.size = sectors.size
        if not sectors.writable:
            self.permissions = 0o444

    def open(self, call: Call) -> DeviceFile:
        if call.flags & os.O_ACCMODE != os.O_RDONLY and not self.sectors.writable:
            raise os_error(errno.EROFS)
        return _File(self, call)

    def reopen(self, call: Call, remembered: Mapping[int, bytes]) -> DeviceFile:
        return _File(self, call)  # which has nothing of its own
