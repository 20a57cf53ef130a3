"""/dev/clock: the time as a line of text, shifted, or running faster or slower."""

from __future__ import annotations

import time

from viewfs.modules.api import Mounting
from viewfs.modules.device import Call, CharDevice, DeviceFile, DeviceModule
from viewfs.modules.options import decimal

__all__ = ["Clock"]

_SECOND = 1_000_000_000


class _File(DeviceFile):
    """A read from the beginning looks at the clock; others go on in what that one saw."""

    device: _Device
    _line = b""

    def read(self, call: Call, size: int) -> bytes:
        if call.offset == 0:
            seconds, rest = divmod(self.device.now_ns(), _SECOND)
            self._line = b"%d.%09d\n" % (seconds, rest)
        return self._line[call.offset : call.offset + size]


class _Device(CharDevice):
    file = _File
    stream = False
    permissions = 0o444

    def __init__(self, offset: float, rate: float) -> None:
        self._began_ns = time.time_ns()
        self._counted_from = time.monotonic_ns()
        self._offset_ns = round(offset * _SECOND)
        self._rate = rate

    def now_ns(self) -> int:
        """What time it is, in nanoseconds since 1970. Steps of the machine's own clock do not show."""
        passed = time.monotonic_ns() - self._counted_from
        return self._began_ns + self._offset_ns + round(passed * self._rate)


class Clock(DeviceModule):
    """The time in seconds since 1970, as text: shifted, or running faster or slower."""

    name = "clock"
    options = (
        decimal("offset", 0.0, "seconds by which it is ahead; negative: behind"),
        decimal("rate", 1.0, "seconds that it goes in a second, from when it is loaded"),
    )

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Device(mounting.options["offset"], mounting.options["rate"])
