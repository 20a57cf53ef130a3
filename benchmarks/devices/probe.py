"""What the benchmark asks: zeros, a sink, an empty ioctl, and a byte to poll for."""

from __future__ import annotations

from viewfs.modules.api import Mounting
from viewfs.modules.api.device import READABLE, WRITABLE, Call, CharDevice, DeviceFile, DeviceModule, PollEvents
from viewfs.modules.api.ioctls import _IO, ioctl

_ZEROS = memoryview(bytes(1 << 20))


class _ZeroFile(DeviceFile):
    def read(self, call: Call, size: int) -> memoryview:
        return _ZEROS[:size]

    def write(self, call: Call, data: bytes) -> int:
        return len(data)

    @ioctl(_IO("v", 2))
    def empty(self, call: Call, number: int) -> None: ...


class _SignalFile(DeviceFile):
    device: _Signal

    def read(self, call: Call, size: int) -> bytes:
        self.device.there = False
        return b"x"

    def write(self, call: Call, data: bytes) -> int:
        self.device.there = True
        self.device.changed()
        return len(data)

    def poll(self) -> PollEvents:
        return WRITABLE | (READABLE if self.device.there else PollEvents.NONE)


class _Zero(CharDevice):
    file = _ZeroFile


class _Signal(CharDevice):
    file = _SignalFile
    there = False


class Probe(DeviceModule):
    """Two devices: zeros, and a byte to poll for."""

    name = "probe"

    def open_devices(self, mounting: Mounting) -> dict[str, CharDevice]:
        return {"": _Zero(), "-signal": _Signal()}
