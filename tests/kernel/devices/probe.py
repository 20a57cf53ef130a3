"""A device for the tests: a queue of messages, and ioctls that tell what the server sees of its callers."""

from __future__ import annotations

import ctypes
from collections import deque

from viewfs.modules.api import Answer, Mounting
from viewfs.modules.api.device import READABLE, WRITABLE, Call, CharDevice, DeviceFile, DeviceModule, PollEvents
from viewfs.modules.api.ioctls import _IO, _IOR, _IOW, _IOWR, ioctl


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int32), ("y", ctypes.c_int32))


class Caller(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_int32),
        ("tid", ctypes.c_int32),
        ("uid", ctypes.c_int32),
        ("gid", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


class Text(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("length", ctypes.c_uint64))


class Text32(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint32), ("length", ctypes.c_uint32))


class Counts(ctypes.Structure):
    _fields_ = (("opens", ctypes.c_uint32), ("releases", ctypes.c_uint32), ("flushes", ctypes.c_uint32))


class _File(DeviceFile):
    device: _Device

    def __init__(self, device: _Device, call: Call) -> None:
        super().__init__(device, call)
        self.opened_with = call.flags
        device.counts.opens += 1

    def read(self, call: Call, size: int) -> Answer[bytes]:
        """One message; the empty one is the end."""
        device = self.device
        return device.when(call, lambda: bool(device.messages), lambda: device.messages.popleft()[:size])

    def write(self, call: Call, data: bytes) -> int:
        if data == b"raise":
            raise ZeroDivisionError("on purpose")
        if data == b"end":
            self.device.messages.append(b"")
        elif data.startswith(b"short"):
            return 3
        else:
            self.device.messages.append(data)
        self.device.changed()
        return len(data)

    def poll(self) -> PollEvents:
        return WRITABLE | (READABLE if self.device.messages else PollEvents.NONE)

    def flush(self, call: Call) -> None:
        self.device.counts.flushes += 1

    def release(self) -> None:
        self.device.counts.releases += 1

    @ioctl(_IOWR("v", 1, Point), Point)
    def swap(self, call: Call, point: Point) -> int:
        point.x, point.y = point.y, point.x
        return 7

    @ioctl(_IOR("v", 2, Caller), Caller)
    def who(self, call: Call, caller: Caller) -> None:
        caller.pid, caller.tid, caller.uid, caller.gid = call.pid, call.tid, call.uid, call.gid
        caller.flags = self.opened_with

    @ioctl(_IOW("v", 3, ctypes.c_int), ctypes.c_int)
    def keep(self, call: Call, number: ctypes.c_int) -> None:
        self.device.number = number.value

    @ioctl(_IO("v", 4))
    def add(self, call: Call, number: int) -> int:
        return self.device.number + number

    @ioctl(_IOW("v", 5, Text), Text)
    @ioctl(_IOW("v", 5, Text32), Text32)
    def upper(self, call: Call, text: Text | Text32) -> int:
        """What the pointer in the structure points to, in upper case."""
        self.device.memory = call.memory
        call.memory.write(text.address, call.memory.read(text.address, text.length).upper())
        return 32 if call.is_32bit else 64

    @ioctl(_IO("v", 6))
    def fail(self, call: Call, number: int) -> int:
        raise OSError(number, "on purpose")

    @ioctl(_IOR("v", 7, Counts), Counts)
    def counts(self, call: Call, counts: Counts) -> None:
        ctypes.pointer(counts)[0] = self.device.counts

    @ioctl(_IO("v", 8))
    def too_late(self, call: Call, address: int) -> int:
        """Reach into the memory of a caller who has got its answer."""
        self.device.memory.read(address, 1)
        return 0


class _Device(CharDevice):
    file = _File

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.counts = Counts()
        self.number = 0


class Probe(DeviceModule):
    """A queue of messages."""

    name = "probe"
    uses_caller_memory = True

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Device()
