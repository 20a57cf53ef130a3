"""/dev/pipe: a bounded stream between processes, like a FIFO (fifo(7), pipe(7)).

Unlike a FIFO, it can be opened by one side alone: what is written stays until it is read. A reader gets end of file
when the last writer is gone and everything is read; writers never learn that nobody reads.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from typing import Any

from viewfs.errors import UsageError, os_error
from viewfs.modules.api import Answer, Mounting
from viewfs.modules.api.device import READABLE, WRITABLE, Call, CharDevice, DeviceFile, DeviceModule, PollEvents
from viewfs.modules.api.kept import Kept
from viewfs.modules.api.options import size

__all__ = ["Pipe"]

#: A write of at most this many bytes is atomic (pipe(7), PIPE_BUF).
_ATOMIC = 4096


_FILE = struct.Struct("<Q?")
#: Registers: the position of the oldest byte, the number of bytes, the number of writers now, and of writers ever.
_HEAD, _LENGTH, _WRITERS, _WRITERS_EVER = range(4)


class _File(DeviceFile):
    device: _Device

    def __init__(self, device: _Device, call: Call, before: bytes | None = None) -> None:
        """`before`: what this file stored with `remember` in an earlier server."""
        super().__init__(device, call)
        mode = call.flags & os.O_ACCMODE
        self._reads, self._writes = mode != os.O_WRONLY, mode != os.O_RDONLY
        # Writers that were gone before this open do not count for its end of file.
        self._gone_before = device.writers_ever - device.writers
        self._has_read = False
        if before is not None:
            self._gone_before, self._has_read = _FILE.unpack(before)
            return
        if self._writes:
            device.kept.registers[_WRITERS] += 1
            device.kept.registers[_WRITERS_EVER] += 1
        self._remember()

    def _remember(self) -> None:
        self.remember(_FILE.pack(self._gone_before, self._has_read))

    @property
    def _is_at_end(self) -> bool:
        device = self.device
        had_writer = self._has_read or device.writers_ever > self._gone_before
        return not device.length and not device.writers and had_writer

    def read(self, call: Call, size: int) -> Answer[bytes]:
        device = self.device

        def take() -> bytes:
            data = device.take(size)
            if not self._has_read:
                self._has_read = True
                self._remember()
            device.changed()
            return data

        return device.when(call, lambda: device.length > 0 or self._is_at_end, take)

    def write(self, call: Call, data: bytes) -> Answer[int]:
        room = self.device.room
        if len(data) <= room and not call.progress:
            return self._put(data)
        if not call.nonblocking:
            return self._put_all(call, data)
        if not room or len(data) <= _ATOMIC:
            raise os_error(errno.EAGAIN)
        return self._put(data[:room])

    def _put(self, data: bytes) -> int:
        self.device.put(data)
        self.device.changed()
        return len(data)

    async def _put_all(self, call: Call, data: bytes) -> int:
        import trio

        device, done = self.device, call.progress
        needed = len(data) if len(data) <= _ATOMIC else 1
        try:
            while done < len(data):
                await device.until(lambda: device.room >= needed)
                done += self._put(data[done : done + device.room])
                call.progress = done
        except trio.Cancelled:
            if not done:
                raise
            # What was written can't be taken back: the interrupted write(2) returns a short count (signal(7)).
        return done

    def poll(self) -> PollEvents:
        events = PollEvents.NONE
        if self._reads:
            if self.device.length:
                events |= READABLE
            if self._is_at_end:
                events |= PollEvents.HUP
        if self._writes and self.device.room >= _ATOMIC:
            events |= WRITABLE
        return events

    def release(self) -> None:
        if self._writes:
            self.device.kept.registers[_WRITERS] -= 1
            self.device.changed()


class _Device(CharDevice):
    file = _File

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.capacity = len(kept.memory)

    @property
    def length(self) -> int:
        return self.kept.registers[_LENGTH]

    @property
    def room(self) -> int:
        return self.capacity - self.length

    @property
    def writers(self) -> int:
        return self.kept.registers[_WRITERS]

    @property
    def writers_ever(self) -> int:
        return self.kept.registers[_WRITERS_EVER]

    def take(self, size: int) -> bytes:
        """Remove the oldest bytes, up to `size`, and return them."""
        registers, memory = self.kept.registers, self.kept.memory
        head, size = registers[_HEAD], min(size, registers[_LENGTH])
        data = bytes(memory[head : head + size])
        data += bytes(memory[: size - len(data)])
        registers[_HEAD] = (head + size) % self.capacity
        registers[_LENGTH] -= size
        return data

    def put(self, data: bytes) -> None:
        """Append `data`; there must be room for it."""
        registers, memory = self.kept.registers, self.kept.memory
        tail = (registers[_HEAD] + registers[_LENGTH]) % self.capacity
        first = data[: self.capacity - tail]
        memory[tail : tail + len(first)] = first
        memory[: len(data) - len(first)] = data[len(first) :]
        registers[_LENGTH] += len(data)

    def reopen(self, call: Call, remembered: Mapping[int, bytes]) -> DeviceFile:
        return _File(self, call, remembered[0])


class Pipe(DeviceModule):
    """A bounded stream between processes."""

    name = "pipe"
    options = (size("size", 64 << 10, "bytes that fit in; whoever writes more waits"),)

    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int:
        size: int = options["size"]
        return size

    def open_devices(self, mounting: Mounting) -> CharDevice:
        if mounting.options["size"] < _ATOMIC:
            raise UsageError(f"option size of module pipe: at least {_ATOMIC} bytes, which are written at once")
        return _Device(self.kept(mounting))
