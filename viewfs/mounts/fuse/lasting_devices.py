"""Devices whose server can have a successor: files stay open, and each call is carried out once.

What the kernel knows by number is in the `Ledger`: open files, what each remembers, and who polls. The state of the
device itself is in `Kept`. One call is carried out at a time, or one step of it between two waits. If the server dies
before a step is finished, its successor undoes what the step had changed, and the kernel sends the call again; if the
step was finished, the answer is stored and sent again.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, cast

from viewfs.errors import os_error
from viewfs.modules.api import Answer, Buffer, InodeNumber
from viewfs.modules.api.device import Call, CharDevice, DeviceFile, PollEvents
from viewfs.modules.api.kept import Kept
from viewfs.mounts.fuse.device_operations import Body, DeviceOperations, Opened
from viewfs.mounts.fuse.ledger import FixedLedger
from viewfs.mounts.fuse.once import RESENT
from viewfs.mounts.fuse.protocol import Opcode, Request

__all__ = ["LastingDevices"]

#: Numbers of records: that of a file has its handle in bits 33 to 62; that of a state that it remembers has bit 32 as
#: well, and the number of the state in the lower bits.
_FILE, _REMEMBERED = 1 << 63, 1 << 32
#: The progress of a call that waits midway.
_PROGRESS = 1 << 62
#: Of an open file: node, flags of open(2), and the kernel's poll handle if somebody polls it (else 0).
_OPENED = struct.Struct("<QQQ")
_COUNT = struct.Struct("<Q")
_OPENING = frozenset({Opcode.OPEN, Opcode.RELEASE})
_CALLS = _OPENING | {Opcode.READ, Opcode.WRITE, Opcode.IOCTL, Opcode.FLUSH, Opcode.FSYNC}
#: Flags of open(2) that take effect only once.
_AT_OPEN = os.O_CREAT | os.O_EXCL | os.O_TRUNC

#: The request that a task carries out.
_request: ContextVar[int | None] = ContextVar("request", default=None)


def _key(handle: int) -> int:
    return _FILE | handle << 33


class LastingDevices(DeviceOperations):
    """The operations of a module that keeps the state of its devices (`DeviceModule.keeps`)."""

    def __init__(
        self,
        devices: Mapping[str, CharDevice],
        notify: Callable[[bytes], None],
        *,
        ledger: FixedLedger,
        kept: Kept,
        has_memory: bool = False,
    ) -> None:
        """Continue where the previous server was, according to `ledger`. `kept`, which the devices use, is as that
        server left it, except for what has been undone (`device_host.Lasting`)."""
        super().__init__(devices, notify, has_memory=has_memory)
        self._ledger, self._kept = ledger, kept
        self._before = ledger.last()
        self._last_answer = b""  # copied, because the answer to the next call overwrites it in `kept`
        if self._before is not None and self._before.answer is not None and self._before.answer[1]:
            self._last_answer = kept.answer(*_COUNT.unpack(self._before.answer[1]))
        self._is_again = False
        self._once = _OPENING if all(device.repeatable for device in devices.values()) else _CALLS
        #: The request of which a step is being carried out.
        self._step: int | None = None
        for device in devices.values():
            device.step_begins = self._step_begins
            device.step_ends = self._step_ends
        #: The kernel's poll handles of files that somebody has polled, by file handle.
        self._pollers: dict[int, int] = {}
        self._restore(ledger.records())

    def _restore(self, records: dict[int, bytes]) -> None:
        self._progress = {number & ~_PROGRESS: value for number, value in records.items() if number < _FILE}
        remembered: dict[int, dict[int, bytes]] = {}
        for number, value in records.items():
            if number & _FILE and number & _REMEMBERED:
                remembered.setdefault(number >> 33 & 0x3FFFFFFF, {})[number & 0xFFFFFFFF] = value
        handles = [number >> 33 & 0x3FFFFFFF for number in records if number & _FILE and not number & _REMEMBERED]
        for handle in handles:
            node, flags, poll_handle = _OPENED.unpack(records[_key(handle)])
            device = self.nodes[InodeNumber(node)].device
            try:
                file = device.reopen(Call(tid=0, uid=0, gid=0, flags=flags), remembered.get(handle, {}))
            except OSError:
                self._drop(handle, remembered.get(handle, ()))  # calls on it get ENODEV
                continue
            file.remembered = remembered.get(handle, {})
            self.nodes[InodeNumber(node)].opens += 1
            self.opened[handle] = opened = Opened(InodeNumber(node), device, file, flags)
            self._keep_what_it_remembers(handle, file)
            if poll_handle:  # waiting pollers poll again, and are registered then
                self._pollers[handle] = opened.poll_handle = poll_handle
                self.wake(opened)
        self.number_handles_from(max(handles, default=0) + 1)

    def _drop(self, handle: int, numbers: Any) -> None:
        for number in numbers:
            self._ledger.drop(_key(handle) | _REMEMBERED | number)
        self._ledger.drop(_key(handle))

    def _keep_what_it_remembers(self, handle: int, file: DeviceFile) -> None:
        def keep(number: int, state: bytes | None) -> None:
            key = _key(handle) | _REMEMBERED | number
            if state is None:
                self._ledger.drop(key)
            else:
                self._ledger.put(key, state)

        file.keep = keep

    # -- steps

    def _step_begins(self) -> None:
        unique = _request.get()
        if unique is not None:  # a device's background task belongs to no call
            self._step = unique
            self._kept.begin()
            self._ledger.begin_step(unique)

    def _step_ends(self) -> None:
        """Make the changes of the step permanent; there is no answer yet."""
        if self._step is not None:
            self._step = None
            self._ledger.forget_last()

    def _finish(self, opcode: int, unique: int, error: int, body: Body) -> None:
        if self._step != unique:  # it has waited for something other than `CharDevice.until`
            self._step_begins()
        self._step = None
        if unique in self._progress:
            self._ledger.drop(_PROGRESS | unique)
            del self._progress[unique]
        parts = cast(list[Buffer], body if isinstance(body, list) else [body or b""])
        self._ledger.finish(error, _COUNT.pack(self._kept.put_answer(parts)))

    # -- requests

    def dispatch(self, request: Request) -> Answer[Body]:
        if request.opcode not in self._once or self.withdrawn:
            return super().dispatch(request)
        unique = request.unique & ~RESENT
        before = self._before
        self._is_again = before is not None and request.unique == before.unique | RESENT
        if self._is_again and before is not None and before.answer is not None:
            number, _length = before.answer
            if number:
                raise os_error(number)
            return self._last_answer
        _request.set(unique)
        self._step_ends()  # that of a call that waits midway
        self._step_begins()
        try:
            answer = super().dispatch(request)
        except BaseException as error:
            self._finish(request.opcode, unique, getattr(error, "errno", None) or errno.EIO, b"")
            raise
        if isinstance(answer, Awaitable):
            self._step_ends()
            return self._later(request.opcode, unique, answer)
        self._finish(request.opcode, unique, 0, answer)
        return answer

    async def _later(self, opcode: int, unique: int, answer: Awaitable[Body]) -> Body:
        _request.set(unique)
        try:
            body = await answer
        except Exception as error:
            self._finish(opcode, unique, getattr(error, "errno", None) or errno.EIO, b"")
            raise
        self._finish(opcode, unique, 0, body)
        return body

    def _call(self, request: Request, file: DeviceFile | None, offset: int = 0, *, is_32bit: bool = False) -> Call:
        call = super()._call(request, file, offset, is_32bit=is_32bit)
        unique = request.unique & ~RESENT
        call.is_again = self._is_again
        if unique in self._progress:
            call.progress = _COUNT.unpack(self._progress[unique])[0]

        def note(done: int) -> None:
            self._progress[unique] = _COUNT.pack(done)
            self._ledger.put(_PROGRESS | unique, self._progress[unique])

        call.note_progress = note
        return call

    def opens(self, handle: int, opened: Opened) -> None:
        super().opens(handle, opened)
        self._put(handle, opened)
        self._keep_what_it_remembers(handle, opened.file)
        for number, state in opened.file.remembered.items():
            opened.file.keep(number, state)

    def _put(self, handle: int, opened: Opened) -> None:
        flags = opened.flags & ~_AT_OPEN
        self._ledger.put(_key(handle), _OPENED.pack(opened.node, flags, self._pollers.get(handle, 0)))

    def closes(self, handle: int) -> Opened | None:
        opened = super().closes(handle)
        if opened is not None:
            self._pollers.pop(handle, None)
            self._drop(handle, opened.file.remembered)
        return opened

    def polls(self, handle: int, opened: Opened, poll_handle: int, events: PollEvents) -> None:
        super().polls(handle, opened, poll_handle, events)
        if handle not in self._pollers:  # the kernel has only one poll handle for each file
            self._pollers[handle] = poll_handle
            self._put(handle, opened)
