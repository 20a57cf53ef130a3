"""/dev/useless: keeps what is written to it, and gives it back."""

from __future__ import annotations

import errno
import os

from viewfs.modules.api import Mounting
from viewfs.modules.device import Call, CharDevice, DeviceFile, DeviceModule
from viewfs.modules.options import size

__all__ = ["Useless"]


class _File(DeviceFile):
    device: _Device

    def __init__(self, device: _Device, call: Call) -> None:
        super().__init__(device, call)
        self._position = 0
        if call.flags & os.O_TRUNC:
            device.kept.clear()

    def read(self, call: Call, size: int) -> bytes:
        data = bytes(self.device.kept[self._position : self._position + size])
        self._position += len(data)
        return data

    def write(self, call: Call, data: bytes) -> int:
        taken = data[: self.device.limit - len(self.device.kept)]
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.device.kept += taken
        return len(taken)


class _Device(CharDevice):
    file = _File

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept = bytearray()


class Useless(DeviceModule):
    """Keeps what is written to it, and gives it back."""

    name = "useless"
    options = (size("size", 1 << 20, "how much it keeps; more is ENOSPC"),)

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Device(mounting.options["size"])
