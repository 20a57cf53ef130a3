"""Descriptors that a module makes: an event counter and a timer, as eventfd(2) and timerfd_create(2) have them, written
in Python.

A device has the objects: each open of it is a new one. System calls of their own, 7001 and 7002, give the caller one.

    viewfs insmod ./descriptors.py:Objects
    viewfs insmod ./descriptors.py:Calls
"""

from __future__ import annotations

import errno
import os
import struct

import trio

from viewfs.modules.api import Mounting
from viewfs.modules.api.calls import Caller, CallModule, Opened, call
from viewfs.modules.api.device import READABLE, WRITABLE, Call, CharDevice, DeviceFile, DeviceModule, PollEvents

NUMBER = struct.Struct("=Q")
MOST = (1 << 64) - 2


class Event(DeviceFile):
    """read(2) takes the number, which is not 0 then; write(2) adds to it (eventfd(2))."""

    device: Events

    def __init__(self, device: Events, call: Call) -> None:
        super().__init__(device, call)
        self.number = 0

    def read(self, call, size):
        if size < NUMBER.size:
            raise OSError(errno.EINVAL, "8 bytes")
        return self.device.when(call, lambda: self.number > 0, self._take)

    def _take(self):
        number, self.number = self.number, 0
        self.device.changed()
        return NUMBER.pack(number)

    def write(self, call, data):
        if len(data) < NUMBER.size:
            raise OSError(errno.EINVAL, "8 bytes")
        (more,) = NUMBER.unpack_from(data)
        if more > MOST:
            raise OSError(errno.EINVAL, "too much")
        return self.device.when(call, lambda: self.number + more <= MOST, lambda: self._add(more))

    def _add(self, more):
        self.number += more
        self.device.changed()
        return NUMBER.size

    def poll(self):
        return (READABLE if self.number else PollEvents.NONE) | (WRITABLE if self.number < MOST else PollEvents.NONE)


class Events(CharDevice):
    file = Event


class Timer(DeviceFile):
    """write(2) sets it: nanoseconds until it expires for the first time, and between two times (0: once). read(2) says
    how often it has expired since the last one (timerfd_create(2))."""

    device: Timers

    def __init__(self, device: Timers, call: Call) -> None:
        super().__init__(device, call)
        self.expirations = 0
        self.next: float | None = None
        self.interval = 0.0

    def write(self, call, data):
        if len(data) != 2 * NUMBER.size:
            raise OSError(errno.EINVAL, "two numbers of 8 bytes")
        first, interval = (NUMBER.unpack_from(data, at)[0] / 1e9 for at in (0, NUMBER.size))
        self.expirations, self.interval = 0, interval
        self.next = trio.current_time() + first if first else None
        self.device.set(self)
        return len(data)

    def read(self, call, size):
        if size < NUMBER.size:
            raise OSError(errno.EINVAL, "8 bytes")
        return self.device.when(call, lambda: self.expirations > 0, self._take)

    def _take(self):
        count, self.expirations = self.expirations, 0
        return NUMBER.pack(count)

    def expire(self, now: float) -> None:
        """Count how often it has expired until `now`."""
        while self.next is not None and self.next <= now:
            self.expirations += 1
            self.next = self.next + self.interval if self.interval else None

    def poll(self):
        return READABLE if self.expirations else PollEvents.NONE

    def release(self):
        self.device.timers.discard(self)


class Timers(CharDevice):
    file = Timer

    def __init__(self) -> None:
        self.timers: set[Timer] = set()
        self._is_set = trio.Event()

    def set(self, timer: Timer) -> None:
        self.timers.add(timer)
        self._is_set.set()

    async def run(self):
        while True:
            self._is_set = trio.Event()
            soonest = min(
                (timer.next for timer in self.timers if timer.next is not None), default=trio.current_time() + 3600
            )
            with trio.move_on_at(soonest):
                await self._is_set.wait()
            for timer in self.timers:
                timer.expire(trio.current_time())
            self.changed()


class Objects(DeviceModule):
    """Event counters and timers, each open file one."""

    name = "objects"
    mount_point = "/dev/object-"

    def open_devices(self, mounting: Mounting):
        return {"event": Events(), "timer": Timers()}


class Calls(CallModule):
    """Give a caller an event counter (7001), or a timer (7002), with flags as of open(2)."""

    name = "descriptors"

    @call(7001, "int")
    def event(self, caller: Caller, flags: int) -> Opened:
        return Opened("/dev/object-event", os.O_RDWR | flags)

    @call(7002, "int")
    def timer(self, caller: Caller, flags: int) -> Opened:
        return Opened("/dev/object-timer", os.O_RDWR | flags)
