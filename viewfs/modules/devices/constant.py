"""/dev/null, /dev/zero and /dev/full, as null(4) and full(4) describe them."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from viewfs.errors import os_error
from viewfs.modules.api import Buffer, Mounting
from viewfs.modules.api.device import Call, CharDevice, DeviceFile, DeviceModule

__all__ = ["Full", "Null", "Zero"]

#: A bytearray, whose memory has been written to: if a reply pointed to untouched pages, the caller would get EIO if the
#: server is killed while the kernel fetches them.
_ZEROS = memoryview(bytearray(1 << 20))


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
        raise os_error(errno.ENOSPC)


class _Constant(CharDevice):
    """Has no state."""

    repeatable = True

    def reopen(self, call: Call, remembered: Mapping[int, bytes]) -> DeviceFile:
        return self.file(self, call)


class _Null(_Constant):
    file = _NullFile


class _Zero(_Constant):
    file = _ZeroFile


class _Full(_Constant):
    file = _FullFile


class _ConstantModule(DeviceModule):
    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int:
        return 0


class Null(_ConstantModule):
    """Takes everything and gives nothing."""

    name = "null"

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Null()


class Zero(_ConstantModule):
    """Gives zeros without end."""

    name = "zero"

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Zero()


class Full(_ConstantModule):
    """Gives zeros, and never has room for anything (ENOSPC): what does a program do when the disk is full?"""

    name = "full"

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Full()
