"""Disks: devices with positions and a size, over memory or a part of a file.

stat(2) shows a regular file of the right size, which mkfs and similar programs use; for those that ask for it there is
BLKGETSIZE64.
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

#: linux/fs.h declares it for a size_t, which is smaller in a 32-bit program; but eight bytes are stored.
BLKGETSIZE64 = _IOR(0x12, 114, ctypes.c_uint64)


class Sectors(Protocol):
    """The storage of a disk. Callers keep offsets and sizes within it."""

    size: int
    writable: bool

    def read(self, offset: int, size: int) -> Buffer: ...

    def write(self, offset: int, data: bytes) -> int: ...

    def sync(self) -> None: ...


class MemorySectors:
    """Memory; pages are allocated when they are written."""

    writable = True

    def __init__(self, memory: memoryview) -> None:
        self.size = len(memory)
        self._memory = memory

    def read(self, offset: int, size: int) -> Buffer:
        # A copy: if the reply pointed to pages that this server has not touched yet, the caller would get EIO if the
        # server is killed while the kernel fetches them.
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
        return _File(self, call)  # an open file has no state
