"""The descriptors of groups: files of a FUSE file system that has one for each group.

Such a file can be polled, is written to with answers, and is released when its last descriptor is closed. What is read
from it comes another way, for reading makes descriptors (`module`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from viewfs.errors import os_error
from viewfs.linux.fanotify import unpack_response
from viewfs.modules.api import Answer, Attributes, CacheCounts, FileSystemStatistics, InodeNumber
from viewfs.modules.calls.fanotify.groups import Group, Groups
from viewfs.mounts.fuse import protocol
from viewfs.mounts.fuse.answers import Body
from viewfs.mounts.fuse.protocol import (
    POLL_SCHEDULE_NOTIFY,
    ROOT_NODE,
    InitFlags,
    InitRequest,
    Opcode,
    OpenFlags,
    Request,
)

__all__ = ["GroupFiles"]

_READABLE = 0x1 | 0x40
_WRITABLE = 0x4 | 0x100
_MAX_WRITE = 4096


class GroupFiles:
    """Answers the requests for these files. The number of a group and one is that of its node."""

    buffer_size = _MAX_WRITE * 2 + 4096
    takes_writes = True
    caches: tuple[CacheCounts, ...] = ()

    def __init__(
        self,
        groups: Groups,
        before_response: Callable[[], None],
        send: Callable[[bytes], object],
        closed: Callable[[], None],
    ) -> None:
        """`before_response` is called before an answer is looked at; `send` sends the kernel a message; `closed` is
        called when a group was closed."""
        self._closed = closed
        self._groups = groups
        self._before_response = before_response
        self._send = send
        self._opened: set[int] = set()
        #: Group → the kernel's numbers of files that are polled.
        self._polled: dict[int, set[int]] = {}
        self._handlers: dict[int, Callable[[Request], Body]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: lambda request: protocol.encode_entry(*self._found(request), (0, 0)),
            Opcode.GETATTR: lambda request: protocol.encode_attributes(self._attributes(request.node), (0, 0)),
            Opcode.OPEN: self._open,
            Opcode.WRITE: self._write,
            Opcode.POLL: self._poll,
            Opcode.RELEASE: self._release,
            Opcode.STATFS: lambda _request: protocol.encode_statistics(FileSystemStatistics()),
            Opcode.FORGET: lambda _request: None,
            Opcode.BATCH_FORGET: lambda _request: None,
            Opcode.DESTROY: lambda _request: b"",
        }

    def dispatch(self, request: Request) -> Answer[Body]:
        handler = self._handlers.get(request.opcode)
        if handler is None:
            # (Whoever reads from a descriptor that has another number than it was given is told so.)
            raise os_error(errno.EINVAL if request.opcode == Opcode.READ else errno.ENOSYS)
        return handler(request)

    def _init(self, request: Request) -> Body:
        return protocol.encode_init(
            InitRequest.of(request), InitFlags(0), max_write=_MAX_WRITE, max_background=16, max_pages=1
        )

    def _group(self, node: int) -> Group:
        group = self._groups.get(node - ROOT_NODE)
        if group is None:
            raise os_error(errno.ENOENT)
        return group

    def _found(self, request: Request) -> tuple[int, Attributes]:
        name = request.rest.rstrip(b"\0")
        if request.node != ROOT_NODE or not name.isdigit():
            raise os_error(errno.ENOENT)
        node = ROOT_NODE + int(name)
        self._group(node)
        return node, self._attributes(node)

    def _attributes(self, node: int) -> Attributes:
        mode = stat.S_IFDIR | 0o500 if node == ROOT_NODE else stat.S_IFREG | 0o600
        return Attributes(InodeNumber(node), mode, uid=os.geteuid(), gid=os.getegid())

    def _open(self, request: Request) -> Body:
        group = self._group(request.node)
        if group.number in self._opened:  # by a link of /proc
            raise os_error(errno.ENXIO)
        self._opened.add(group.number)
        group.on_change = lambda: self._wake(group.number)
        return protocol.encode_open(group.number, OpenFlags.DIRECT_IO | OpenFlags.NONSEEKABLE | OpenFlags.NOFLUSH)

    def _write(self, request: Request) -> Body:
        group = self._group(request.node)
        self._before_response()
        try:
            response = unpack_response(request.rest)
        except ValueError:
            raise os_error(errno.EINVAL) from None
        group.respond(*response)
        return protocol.encode_size(request.fields[2])

    def _poll(self, request: Request) -> Body:
        _handle, poll_handle, flags, _events = request.fields
        group = self._group(request.node)
        if flags & POLL_SCHEDULE_NOTIFY:
            self._polled.setdefault(group.number, set()).add(poll_handle)
        return protocol.encode_poll((_READABLE if group.queue else 0) | _WRITABLE)

    def _wake(self, number: int) -> None:
        for poll_handle in self._polled.pop(number, ()):
            try:
                self._send(protocol.encode_poll_wakeup(poll_handle))
            except OSError:
                pass  # nobody polls it any more

    def _release(self, request: Request) -> Body:
        self._polled.pop(request.fields[0], None)
        self._opened.discard(request.fields[0])
        self._groups.remove(request.fields[0])
        self._closed()
        return b""
