"""/dev/clock: the time as a line of text, shifted, or running faster or slower."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from viewfs.modules.api import Mounting
from viewfs.modules.api.device import Call, CharDevice, DeviceFile, DeviceModule
from viewfs.modules.api.kept import Kept
from viewfs.modules.api.options import decimal

__all__ = ["Clock"]

_SECOND = 1_000_000_000


class _File(DeviceFile):
    """A read from offset 0 takes the time; reads from other offsets continue in the same line."""

    device: _Device

    def __init__(self, device: _Device, call: Call, line: bytes = b"") -> None:
        super().__init__(device, call)
        self._line = line

    def read(self, call: Call, size: int) -> bytes:
        if call.offset == 0:
            seconds, rest = divmod(self.device.now_ns(), _SECOND)
            self._line = b"%d.%09d\n" % (seconds, rest)
            self.remember(self._line)
        return self._line[call.offset : call.offset + size]


#: When the clock was loaded, in nanoseconds since 1970 and on CLOCK_MONOTONIC.
_BEGAN, _COUNTED_FROM = range(2)


class _Device(CharDevice):
    file = _File
    stream = False
    permissions = 0o444
    repeatable = True

    def __init__(self, kept: Kept, offset: float, rate: float) -> None:
        registers = kept.registers
        if not registers[_BEGAN]:
            registers[_COUNTED_FROM], registers[_BEGAN] = time.monotonic_ns(), time.time_ns()
        self._began_ns, self._counted_from = registers[_BEGAN], registers[_COUNTED_FROM]
        self._offset_ns = round(offset * _SECOND)
        self._rate = rate

    def now_ns(self) -> int:
        """The time in nanoseconds since 1970. Steps of the machine's own clock do not change it."""
        passed = time.monotonic_ns() - self._counted_from
        return self._began_ns + self._offset_ns + round(passed * self._rate)

    def reopen(self, call: Call, remembered: Mapping[int, bytes]) -> DeviceFile:
        return _File(self, call, remembered.get(0, b""))


class Clock(DeviceModule):
    """The time in seconds since 1970, as text: shifted, or running faster or slower."""

    name = "clock"
    options = (
        decimal("offset", 0.0, "seconds by which it is ahead; negative: behind"),
        decimal("rate", 1.0, "seconds that it goes in a second, from when it is loaded"),
    )

    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int:
        return 0

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Device(self.kept(mounting), mounting.options["offset"], mounting.options["rate"])
