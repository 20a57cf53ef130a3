"""/dev/useless: keeps what is written to it, and gives it back."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from typing import Any

from viewfs.errors import os_error
from viewfs.modules.api import Mounting
from viewfs.modules.api.device import Call, CharDevice, DeviceFile, DeviceModule
from viewfs.modules.api.kept import Kept
from viewfs.modules.api.options import size

__all__ = ["Useless"]


_POSITION = struct.Struct("<Q")
#: How much is kept.
_LENGTH = 0


class _File(DeviceFile):
    device: _Device

    def __init__(self, device: _Device, call: Call, position: int = 0) -> None:
        super().__init__(device, call)
        self._position = position
        if call.flags & os.O_TRUNC:
            device.kept.registers[_LENGTH] = 0

    def read(self, call: Call, size: int) -> bytes:
        kept = self.device.kept
        end = min(self._position + size, kept.registers[_LENGTH])
        data = bytes(kept.memory[self._position : end])
        self._position += len(data)
        self.remember(_POSITION.pack(self._position))
        return data

    def write(self, call: Call, data: bytes) -> int:
        kept = self.device.kept
        length = kept.registers[_LENGTH]
        taken = data[: len(kept.memory) - length]
        if not taken:
            raise os_error(errno.ENOSPC)
        kept.memory[length : length + len(taken)] = taken
        kept.registers[_LENGTH] = length + len(taken)
        return len(taken)


class _Device(CharDevice):
    file = _File

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def reopen(self, call: Call, remembered: Mapping[int, bytes]) -> DeviceFile:
        return _File(self, call, _POSITION.unpack(remembered.get(0, bytes(_POSITION.size)))[0])


class Useless(DeviceModule):
    """Keeps what is written to it, and gives it back."""

    name = "useless"
    options = (size("size", 1 << 20, "how much it keeps; more is ENOSPC"),)

    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int:
        size: int = options["size"]
        return size

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Device(self.kept(mounting))
