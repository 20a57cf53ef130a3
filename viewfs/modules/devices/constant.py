"""/dev/null, /dev/zero and /dev/full, as null(4) and full(4) describe them."""

from __future__ import annotations

import errno
import os

from viewfs.modules.api import Buffer, Mounting
from viewfs.modules.device import Call, CharDevice, DeviceFile, DeviceModule

__all__ = ["Full", "Null", "Zero"]

_ZEROS = memoryview(bytes(1 << 20))


class _NullFile(DeviceFile):
    def read(self, call: Call, size: int) -> Buffer:
        return b""

    def write(self, call: Call, data: bytes) -> int:
        return len(data)


class _ZeroFile(_NullFile):
    def read(self, call: Call, size: int) -> Buffer:
        return _ZEROS[:size]


class _FullFile(_ZeroFile):
    def write(self, call: Call, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Null(CharDevice):
    file = _NullFile


class _Zero(CharDevice):
    file = _ZeroFile


class _Full(CharDevice):
    file = _FullFile


class Null(DeviceModule):
    """Takes everything and gives nothing."""

    name = "null"

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Null()


class Zero(DeviceModule):
    """Gives zeros without end."""

    name = "zero"

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Zero()


class Full(DeviceModule):
    """Gives zeros, and never has room for anything (ENOSPC): what does a program do when the disk is full?"""

    name = "full"

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Full()
