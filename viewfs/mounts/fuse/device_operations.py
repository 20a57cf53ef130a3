"""FUSE requests as calls of character devices.

To the kernel, a device is a regular file (no other kind can be served by FUSE), opened with FOPEN_DIRECT_IO, so that
every read(2) and write(2) comes here unchanged. A stream is also opened with FOPEN_STREAM, which removes the file
position and its lock: with that lock, a thread that waits for input would block one that writes.

A read that is too long for one request comes as several requests; for a stream, all but the first have an offset. Those
must not wait, because the caller already has some data.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from viewfs.errors import os_error
from viewfs.modules.api import Answer, Attributes, Buffer, DirectoryEntry, FileRange, FileSystemStatistics, InodeNumber
from viewfs.modules.api.device import Call, CharDevice, DeviceFile, PollEvents
from viewfs.modules.api.ioctls import is_read, is_written
from viewfs.mounts.fuse import protocol
from viewfs.mounts.fuse.dirents import encode_directory
from viewfs.mounts.fuse.protocol import InitFlags, InitRequest, Opcode, OpenFlags, Request

__all__ = ["Body", "DeviceOperations", "Opened"]

log = logging.getLogger("viewfs.fuse")

T = TypeVar("T")
Body = bytes | list[Buffer | FileRange] | None

#: Bytes of one read or write, at most; longer ones come in parts.
_MAX_TRANSFER = 1 << 20
_NOW = (0, 0)
#: Requests that are answered even after the device was taken away.
_WITHOUT_DEVICE = frozenset({Opcode.RELEASE, Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.DESTROY})


@dataclass
class Opened:
    """One open file."""

    node: InodeNumber
    device: CharDevice
    file: DeviceFile
    #: The flags of open(2).
    flags: int
    #: The kernel's poll handle if somebody polls it, and the events polled for since the last wake-up.
    poll_handle: int | None = None
    awaited: PollEvents = PollEvents.NONE


@dataclass
class _Node:
    """A device as the kernel knows it."""

    device: CharDevice
    number: InodeNumber
    opens: int = 0
    changed_ns: int = field(default_factory=time.time_ns)


class DeviceOperations:
    """One or several devices. `dispatch` is the interface, with the same results as that of `operations.Operations`."""

    caches = ()
    buffer_size = _MAX_TRANSFER + 4096
    takes_writes = True

    def __init__(
        self, devices: Mapping[str, CharDevice], notify: Callable[[bytes], None], *, has_memory: bool = False
    ) -> None:
        """`devices` by name; one called "" is the root itself. `notify` sends the kernel a message."""
        self._notify = notify
        self._has_memory = has_memory
        first = protocol.ROOT_NODE if "" in devices else protocol.ROOT_NODE + 1
        self._names = {name.encode(): InodeNumber(number) for number, name in enumerate(devices, first)}
        self.nodes = {
            number: _Node(device, number) for number, device in zip(self._names.values(), devices.values(), strict=True)
        }
        self.opened: dict[int, Opened] = {}
        # Handles that an earlier server of the same devices can't have used.
        self._next_handle = itertools.count(time.time_ns())
        self._made_ns = time.time_ns()
        #: The devices were taken away: calls fail with ENODEV.
        self.withdrawn = False
        self._handlers: dict[int, Callable[[Request], Answer[Body]]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: lambda request: None,
            Opcode.BATCH_FORGET: lambda request: None,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.OPENDIR: lambda request: protocol.encode_open(0, OpenFlags.NONE),
            Opcode.READDIR: self._readdir,
            Opcode.RELEASEDIR: lambda request: b"",
            Opcode.STATFS: lambda request: protocol.encode_statistics(FileSystemStatistics()),
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.IOCTL: self._ioctl,
            Opcode.POLL: self._poll,
            Opcode.FLUSH: self._flush,
            Opcode.FSYNC: self._fsync,
            Opcode.RELEASE: self._release,
            Opcode.DESTROY: lambda request: b"",
        }
        for device in devices.values():
            device.wake_pollers = self._waker(device)

    def dispatch(self, request: Request) -> Answer[Body]:
        """The body of the reply, or a promise of it. Raises OSError, and any exception that a device raises."""
        handler = self._handlers.get(request.opcode)
        if handler is None:
            raise os_error(errno.ENOSYS)
        if self.withdrawn and request.opcode not in _WITHOUT_DEVICE:
            if request.opcode == Opcode.FLUSH:
                return b""  # closing is always possible
            raise os_error(errno.ENODEV)
        return handler(request)

    def withdraw(self) -> None:
        """Take the devices away: calls fail with ENODEV from now on. Pollers are woken, so that they notice."""
        self.withdrawn = True
        for opened in self.opened.values():
            self.wake(opened)

    def close(self) -> None:
        """Release the files that are still open, and close the devices."""
        for opened in self.opened.values():
            try:
                answer = opened.file.release()
                if isinstance(answer, Awaitable):
                    cast(Any, answer).close()
            except Exception:
                log.exception("release failed")
        self.opened.clear()
        for node in self.nodes.values():
            node.device.close()

    # -- calling

    def _call(self, request: Request, file: DeviceFile | None, offset: int = 0, *, is_32bit: bool = False) -> Call:
        return Call(
            tid=request.pid,
            uid=request.uid,
            gid=request.gid,
            flags=0 if file is None else file.flags,
            offset=offset,
            is_32bit=is_32bit,
            has_memory=self._has_memory,
        )

    def _answer(
        self, call: Call, method: Callable[..., Any], *arguments: Any, finish: Callable[[Any], Body]
    ) -> Answer[Body]:
        """Call `method`, and return what `finish` makes of its answer. `call` is over before the reply is sent."""
        try:
            answer = method(call, *arguments)
            if isinstance(answer, Awaitable):
                return self._answer_later(call, answer, finish)
            body = finish(answer)
        except BaseException:
            call.is_over = True
            raise
        call.is_over = True
        return body

    async def _answer_later(self, call: Call, answer: Awaitable[Any], finish: Callable[[Any], Body]) -> Body:
        try:
            return finish(await answer)
        finally:
            call.is_over = True

    # -- nodes

    def _node(self, number: int) -> _Node:
        try:
            return self.nodes[InodeNumber(number)]
        except KeyError:
            raise os_error(errno.EISDIR if number == protocol.ROOT_NODE else errno.ESTALE) from None

    def attributes(self, number: int) -> Attributes:
        """What stat(2) returns for node `number`. Raises OSError."""
        inode = InodeNumber(number)
        if number == protocol.ROOT_NODE and inode not in self.nodes:
            mode, size, changed = stat.S_IFDIR | 0o555, 0, self._made_ns
        else:
            node = self._node(number)
            mode, size, changed = stat.S_IFREG | node.device.permissions, node.device.size, node.changed_ns
        return Attributes(
            inode, mode, size, 1, os.getuid(), os.getgid(), 0, changed, changed, changed, blocks=size // 512
        )

    def _init(self, request: Request) -> Body:
        major, minor, readahead, flags = request.fields
        if major != protocol.VERSION[0]:
            raise os_error(errno.EPROTO)
        # ATOMIC_O_TRUNC: without it, a truncation that waits for the inode's lock would follow open(2).
        wanted = InitFlags.BIG_WRITES | InitFlags.MAX_PAGES | InitFlags.ATOMIC_O_TRUNC
        return protocol.encode_init(
            InitRequest(major, minor, readahead, flags),
            wanted,
            max_write=_MAX_TRANSFER,
            max_background=64,
            max_pages=_MAX_TRANSFER // 4096,
        )

    def _lookup(self, request: Request) -> Body:
        number = self._names.get(request.rest.rstrip(b"\0"))
        if number is None or number == protocol.ROOT_NODE:
            raise os_error(errno.ENOENT)
        return protocol.encode_entry(number, self.attributes(number), _NOW)

    def _getattr(self, request: Request) -> Body:
        return protocol.encode_attributes(self.attributes(request.node), _NOW)

    def _setattr(self, request: Request) -> Body:
        asked = protocol.SetAttr(request.fields[0] & 0x1FF)
        if asked & (protocol.SetAttr.MODE | protocol.SetAttr.UID | protocol.SetAttr.GID):
            raise os_error(errno.EPERM)
        # Truncating a device or setting its times does nothing, as on other devices.
        return protocol.encode_attributes(self.attributes(request.node), _NOW)

    def _readdir(self, request: Request) -> Body:
        root = InodeNumber(protocol.ROOT_NODE)
        names = [(b".", root), (b"..", root), *self._names.items()]
        entries = [
            DirectoryEntry(name, cookie, self.attributes(number)) for cookie, (name, number) in enumerate(names, 1)
        ]
        _handle, offset, size = request.fields[:3]
        body, _taken = encode_directory(entries[offset:], size, _NOW, protocol.ROOT_NODE, plus=False)
        return body

    # -- open files

    def _file(self, request: Request) -> Opened:
        """Raises OSError(ENODEV) for a file that an earlier server had open and that could not be continued."""
        try:
            return self.opened[request.fields[0]]
        except KeyError:
            raise os_error(errno.ENODEV) from None

    def number_handles_from(self, number: int) -> None:
        """Number the handles of new open files from `number` on."""
        self._next_handle = itertools.count(number)

    def opens(self, handle: int, opened: Opened) -> None:
        """Register an open file under `handle`."""
        self.opened[handle] = opened

    def closes(self, handle: int) -> Opened | None:
        """Remove the open file under `handle` and return it; None if there is none."""
        return self.opened.pop(handle, None)

    def polls(self, handle: int, opened: Opened, poll_handle: int, events: PollEvents) -> None:
        """Register that somebody polls the file for `events`; a wake-up is sent with `poll_handle`."""
        opened.poll_handle = poll_handle
        opened.awaited |= events

    def _open(self, request: Request) -> Answer[Body]:
        node = self._node(request.node)
        device = node.device
        if device.exclusive and node.opens:
            raise os_error(device.busy)
        call = self._call(request, None)
        call.flags = request.fields[0]
        node.opens += 1

        def finish(file: DeviceFile) -> bytes:
            if not isinstance(file, DeviceFile):
                raise TypeError(f"open gave {type(file).__name__}, not a DeviceFile")
            handle = next(self._next_handle)
            self.opens(handle, Opened(node.number, device, file, call.flags))
            flags = OpenFlags.DIRECT_IO
            flags |= OpenFlags.STREAM | OpenFlags.NONSEEKABLE if device.stream else OpenFlags.PARALLEL_DIRECT_WRITES
            if type(file).flush is DeviceFile.flush:
                flags |= OpenFlags.NOFLUSH  # saves a round trip for each close(2)
            return protocol.encode_open(handle, flags)

        async def finish_later(promise: Awaitable[Body]) -> Body:
            try:
                return await promise
            except BaseException:
                node.opens -= 1
                raise

        try:
            answer = self._answer(call, device.open, finish=finish)
        except BaseException:
            node.opens -= 1
            raise
        return finish_later(answer) if isinstance(answer, Awaitable) else answer

    def _release(self, request: Request) -> Answer[Body]:
        opened = self.closes(request.fields[0])
        if opened is None:
            return b""
        # Before the release: the next open(2) must not fail because the device is still busy.
        self._node(request.node).opens -= 1
        answer = opened.file.release()
        return _nothing_later(answer) if isinstance(answer, Awaitable) else b""

    def _read(self, request: Request) -> Answer[Body]:
        opened = self._file(request)
        _handle, offset, size, _read_flags, _owner, flags, _padding = request.fields
        file = opened.file
        file.flags = flags
        call = self._call(request, file, offset)
        if offset and opened.device.stream:
            call.flags |= os.O_NONBLOCK

        def finish(data: Buffer) -> list[Buffer | FileRange]:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"read gave {type(data).__name__}, not bytes")
            if len(data) > size:
                raise ValueError(f"read gave {len(data)} bytes where {size} were asked for")
            return [data]

        return self._answer(call, file.read, size, finish=finish)

    def _write(self, request: Request) -> Answer[Body]:
        opened = self._file(request)
        _handle, offset, size, _write_flags, _owner, flags, _padding = request.fields
        file = opened.file
        file.flags = flags
        data = request.rest[:size]

        def finish(taken: int) -> bytes:
            if not 0 <= taken <= len(data):
                raise ValueError(f"write took {taken} of {len(data)} bytes")
            return protocol.encode_size(taken)

        self._node(request.node).changed_ns = time.time_ns()
        return self._answer(self._call(request, file, offset), file.write, data, finish=finish)

    def _ioctl(self, request: Request) -> Answer[Body]:
        opened = self._file(request)
        _handle, flags, command, argument, _in_size, _out_size = request.fields
        file = opened.file
        handler = file.ioctls.get(command)
        if handler is None:
            raise os_error(errno.ENOTTY)
        method = getattr(file, handler.method)
        given: Any = argument
        if handler.structure is not None:
            given = handler.structure()
            if is_written(command):
                if len(request.rest) < ctypes.sizeof(given):
                    raise os_error(errno.EINVAL)
                ctypes.memmove(ctypes.addressof(given), request.rest, ctypes.sizeof(given))

        def finish(result: int | None) -> bytes:
            result = 0 if result is None else result
            if not 0 <= result < 1 << 31:
                raise ValueError(f"an ioctl can't return {result}")
            return protocol.encode_ioctl(result, bytes(given) if is_read(command) else b"")

        call = self._call(request, file, is_32bit=bool(flags & protocol.IOCTL_32BIT))
        return self._answer(call, method, given, finish=finish)

    def _flush(self, request: Request) -> Answer[Body]:
        file = self._file(request).file
        return self._answer(self._call(request, file), file.flush, finish=_nothing)

    def _fsync(self, request: Request) -> Answer[Body]:
        file = self._file(request).file
        data_only = bool(request.fields[1] & 1)

        return self._answer(self._call(request, file), partial(file.fsync, data_only=data_only), finish=_nothing)

    # -- polling

    def _poll(self, request: Request) -> Body:
        opened = self._file(request)
        handle, poll_handle, flags, events = request.fields
        ready = opened.file.poll()
        if flags & protocol.POLL_SCHEDULE_NOTIFY:
            self.polls(handle, opened, poll_handle, PollEvents(events))
        return protocol.encode_poll(ready)

    def _waker(self, device: CharDevice) -> Callable[[], None]:
        def wake() -> None:
            for opened in list(self.opened.values()):
                if opened.device is device and opened.poll_handle is not None:
                    interesting = opened.awaited | PollEvents.ERR | PollEvents.HUP
                    if opened.file.poll() & interesting:
                        self.wake(opened)

        return wake

    def wake(self, opened: Opened) -> None:
        if opened.poll_handle is not None:
            handle, opened.poll_handle, opened.awaited = opened.poll_handle, None, PollEvents.NONE
            self._notify(protocol.encode_poll_wakeup(handle))


def _nothing(_value: None) -> bytes:
    return b""


async def _nothing_later(promise: Awaitable[None]) -> bytes:
    await promise
    return b""
