"""/dev/pipe: a bounded stream between processes, as a FIFO is one (fifo(7), pipe(7)).

Unlike a FIFO it can be opened by one side alone, and then waits for the other: what is written stays until it is read.
A reader's end comes when the last writer is gone and everything is read; writers are never told that nobody reads.
"""

from __future__ import annotations

import errno
import os

from viewfs.errors import UsageError
from viewfs.modules.api import Answer, Mounting
from viewfs.modules.device import READABLE, WRITABLE, Call, CharDevice, DeviceFile, DeviceModule, PollEvents
from viewfs.modules.options import size

__all__ = ["Pipe"]

#: As much goes in at once or not at all (pipe(7), PIPE_BUF).
_ATOMIC = 4096


class _File(DeviceFile):
    device: _Device

    def __init__(self, device: _Device, call: Call) -> None:
        super().__init__(device, call)
        mode = call.flags & os.O_ACCMODE
        self._reads, self._writes = mode != os.O_WRONLY, mode != os.O_RDONLY
        # Writers that have come so far and are gone are not this reader's.
        self._gone_before = device.writers_ever - device.writers
        self._has_read = False
        if self._writes:
            device.writers += 1
            device.writers_ever += 1

    @property
    def _is_at_end(self) -> bool:
        device = self.device
        had_writer = self._has_read or device.writers_ever > self._gone_before
        return not device.data and not device.writers and had_writer

    def read(self, call: Call, size: int) -> Answer[bytes]:
        device = self.device

        def take() -> bytes:
            data = bytes(device.data[:size])
            del device.data[:size]
            self._has_read = True
            device.changed()
            return data

        return device.when(call, lambda: bool(device.data) or self._is_at_end, take)

    def write(self, call: Call, data: bytes) -> Answer[int]:
        room = self.device.room
        if len(data) <= room:
            return self._put(data)
        if not call.nonblocking:
            return self._put_all(data)
        if not room or len(data) <= _ATOMIC:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self._put(data[:room])

    def _put(self, data: bytes) -> int:
        self.device.data += data
        self.device.changed()
        return len(data)

    async def _put_all(self, data: bytes) -> int:
        import trio

        device, done = self.device, 0
        needed = len(data) if len(data) <= _ATOMIC else 1
        try:
            while done < len(data):
                await device.until(lambda: device.room >= needed)
                done += self._put(data[done : done + device.room])
        except trio.Cancelled:
            if not done:
                raise
            # What has gone in can't be taken back: the interrupted write(2) was a short one (signal(7)).
        return done

    def poll(self) -> PollEvents:
        events = PollEvents.NONE
        if self._reads:
            if self.device.data:
                events |= READABLE
            if self._is_at_end:
                events |= PollEvents.HUP
        if self._writes and self.device.room >= _ATOMIC:
            events |= WRITABLE
        return events

    def release(self) -> None:
        if self._writes:
            self.device.writers -= 1
            self.device.changed()


class _Device(CharDevice):
    file = _File

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.writers = 0
        self.writers_ever = 0

    @property
    def room(self) -> int:
        return self.capacity - len(self.data)


class Pipe(DeviceModule):
    """A bounded stream between processes."""

    name = "pipe"
    options = (size("size", 64 << 10, "bytes that fit in; whoever writes more waits"),)

    def open_devices(self, mounting: Mounting) -> CharDevice:
        capacity = mounting.options["size"]
        if capacity < _ATOMIC:
            raise UsageError(f"option size of module pipe: at least {_ATOMIC} bytes, which are written at once")
        return _Device(capacity)
