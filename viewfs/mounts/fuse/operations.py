"""FUSE requests as calls of a `FileSystem`, and its answers as replies.

For an immutable file system, the kernel need not ask anything twice: it may cache answers for ever, including those for
names that don't exist. Requests that only announce something (open, opendir, flush, access) are answered with ENOSYS:
the kernel then sends no more of their kind and keeps its page and directory caches. Such a server has no state except
the file system itself: the inode in a request is all it needs to answer it.

A method of the file system answers at once or with a promise (`Answer`); `then` turns either into a reply's body.
"""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from viewfs.errors import os_error
from viewfs.modules.api import (
    Answer,
    Attributes,
    DirectoryEntry,
    FileSystem,
    FileSystemStatistics,
    InodeNumber,
    OpenFile,
    WritableFileSystem,
)
from viewfs.mounts.fuse import protocol
from viewfs.mounts.fuse.ahead import Ahead
from viewfs.mounts.fuse.answers import Body, as_bytes, as_pieces, done, then
from viewfs.mounts.fuse.changing import Changing
from viewfs.mounts.fuse.dirents import encode_directory, encode_names
from viewfs.mounts.fuse.listings import Listing, Listings
from viewfs.mounts.fuse.protocol import FOREVER, ROOT_NODE, InitFlags, InitRequest, Opcode, OpenFlags, Request

__all__ = ["MAX_WRITE_READ_ONLY", "Operations"]

log = logging.getLogger("viewfs.fuse")

MAX_WRITE = 1 << 20
#: The least max_write that the kernel accepts; it determines the size of the buffer into which requests are read.
MAX_WRITE_READ_ONLY = 4096
_MAX_PAGES = 256


class Operations(Changing):
    """One mounted file system. `dispatch` is the whole interface."""

    #: What it wants of the kernel besides.
    more_flags = InitFlags(0)

    def __init__(self, file_system: FileSystem, ahead: Ahead | None = None) -> None:
        """`ahead` is told what the kernel lists and reads."""
        self._fs = file_system
        self._ahead = ahead
        self._listings = None if ahead is None else Listings(self._list_plus, ahead.run_later)
        self._lists_names_alone = ahead is not None and file_system.lists_names_alone
        self.caches = file_system.caches
        self._writable = file_system if isinstance(file_system, WritableFileSystem) else None
        self._root = file_system.root
        seconds = file_system.cache_seconds
        self._valid = (FOREVER, 0) if file_system.immutable else protocol.split_seconds(seconds)
        self._no_such_name = protocol.negative_entry(self._valid)
        #: Tells for an inode whether the kernel may cache everything for ever; None if `_valid` holds for all inodes.
        self._keeps: Callable[[InodeNumber], bool] | None = None
        if self._writable is not None and type(self._writable).keeps is not WritableFileSystem.keeps:
            self._keeps = self._writable.keeps
        self._handles: dict[int, OpenFile] = {}
        self._next_handle = itertools.count(1)
        #: How often each node of a writable file system was given to the kernel; others have nothing to forget.
        self._lookups: dict[int, int] = {}
        self._handlers: dict[int, Callable[[Request], Answer[Body]]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._forget,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.READ: self._read,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdir,
            Opcode.STATFS: self._statfs,
            Opcode.DESTROY: done,
        }
        if not file_system.no_xattrs:
            self._handlers[Opcode.GETXATTR] = self._getxattr
            self._handlers[Opcode.LISTXATTR] = self._listxattr
        if not file_system.immutable:
            self._handlers |= {
                Opcode.OPEN: self._open,
                Opcode.RELEASE: self._release,
                Opcode.FLUSH: self._flush,
                Opcode.FSYNC: self._fsync,
                Opcode.WRITE: self._write,
                Opcode.OPENDIR: lambda request: protocol.encode_open(0, OpenFlags.NONE),
                Opcode.RELEASEDIR: done,
            }
        if self._writable is not None:
            self._handlers |= self.changing_handlers()

    def number_handles_from(self, first: int) -> None:
        """Number the handles of new open files from `first` on."""
        self._next_handle = itertools.count(first)

    @property
    def buffer_size(self) -> int:
        """The length of the longest request, in bytes."""
        return (MAX_WRITE_READ_ONLY if self._fs.immutable else MAX_WRITE) + 4096

    @property
    def takes_writes(self) -> bool:
        """Can requests bring data?"""
        return self._writable is not None

    def dispatch(self, request: Request) -> Answer[Body]:
        """The body of the reply, or a promise of it.

        Raises OSError with the errno for the reply (ENOSYS for an unknown opcode), and any exception of a module.
        """
        handler = self._handlers.get(request.opcode)
        if handler is None:
            raise os_error(errno.ENOSYS)
        return handler(request)

    # -- names and numbers

    def _inode(self, node: int) -> InodeNumber:
        return self._root if node == ROOT_NODE else InodeNumber(node)

    def node(self, inode: InodeNumber) -> int:
        """The kernel's number for an inode."""
        return ROOT_NODE if inode == self._root else inode

    def _name(self, name: bytes) -> bytes:
        if len(name) > self._fs.name_max:
            raise os_error(errno.ENAMETOOLONG)
        return name

    def _valid_for(self, inode: InodeNumber) -> tuple[int, int]:
        return (FOREVER, 0) if self._keeps is not None and self._keeps(inode) else self._valid

    def _entry(self, attributes: Attributes | None, directory: InodeNumber | None = None) -> bytes:
        """The answer to a look-up in `directory`."""
        if attributes is None:
            if directory is not None and self._keeps is not None and self._keeps(directory):
                return protocol.negative_entry((FOREVER, 0))
            if self._valid == (0, 0):
                raise os_error(errno.ENOENT)
            return self._no_such_name
        node = self.node(attributes.ino)
        if self._writable is not None:
            self._lookups[node] = self._lookups.get(node, 0) + 1
        return protocol.encode_entry(node, attributes, self._valid_for(attributes.ino))

    def _attributes(self, attributes: Attributes) -> bytes:
        return protocol.encode_attributes(attributes, self._valid_for(attributes.ino))

    # -- what every file system has

    def _init(self, request: Request) -> Body:
        asked = InitRequest.of(request)
        if asked.major != protocol.VERSION[0]:
            raise os_error(errno.EPROTO)
        wanted = InitFlags.ASYNC_READ | InitFlags.BIG_WRITES | InitFlags.MAX_PAGES
        if not self._lists_names_alone:
            wanted |= InitFlags.DO_READDIRPLUS
        if self._fs.immutable:
            wanted |= InitFlags.PARALLEL_DIROPS | InitFlags.CACHE_SYMLINKS | InitFlags.EXPLICIT_INVAL_DATA
            wanted |= InitFlags.NO_OPEN_SUPPORT | InitFlags.NO_OPENDIR_SUPPORT
        else:
            wanted |= InitFlags.AUTO_INVAL_DATA
        return protocol.encode_init(
            asked,
            wanted | self.more_flags,
            max_write=MAX_WRITE_READ_ONLY if self._fs.immutable else MAX_WRITE,
            max_background=64,
            max_pages=_MAX_PAGES,
        )

    def _lookup(self, request: Request) -> Answer[Body]:
        name = self._name(request.rest.rstrip(b"\0"))
        directory = self._inode(request.node)
        found = self._fs.lookup(directory, name)
        if self._keeps is None:
            return then(found, self._entry)
        return then(found, lambda attributes: self._entry(attributes, directory))

    def _forget(self, request: Request) -> Answer[Body]:
        if self._writable is None:
            return None
        pairs: Iterable[tuple[int, int]]
        pairs = request.forgotten() if request.opcode == Opcode.BATCH_FORGET else [(request.node, request.fields[0])]
        forgotten: list[Awaitable[None]] = []
        for node, count in pairs:
            left = self._lookups.get(node, 0) - count
            if left > 0:
                self._lookups[node] = left
            elif self._lookups.pop(node, None) is not None:
                # There is no reply that could report a failure, and the other nodes still have to be forgotten.
                try:
                    answer = self._writable.forget(self._inode(node))
                except (Exception, SystemExit):
                    log.exception("forget failed")
                    continue
                if isinstance(answer, Awaitable):
                    forgotten.append(answer)
        return _await_all(forgotten) if forgotten else None

    def _getattr(self, request: Request) -> Answer[Body]:
        return then(self._fs.getattr(self._inode(request.node)), self._attributes)

    def _readlink(self, request: Request) -> Answer[Body]:
        return then(self._fs.readlink(self._inode(request.node)), as_bytes)

    def _read(self, request: Request) -> Answer[Body]:
        handle, offset, size = request.fields[:3]
        if handle:
            return then(self._open_file(handle).read(offset, size), as_pieces)
        if self._ahead is not None:
            self._ahead.read(self._inode(request.node), offset, size)
        return then(self._fs.read(self._inode(request.node), offset, size), as_pieces)

    def _readdir(self, request: Request) -> Answer[Body]:
        _handle, offset, size = request.fields[:3]
        plus = request.opcode == Opcode.READDIRPLUS
        if plus and self._ahead is not None and self._listings is not None:
            try:
                body, taken = self._listings.answer(self._inode(request.node), offset, size)
            except BlockingIOError:
                pass  # the answer is a promise, which can't be prepared
            else:
                self._ahead.listed(taken)
                return body

        if not plus and self._lists_names_alone:
            names = self._fs.names(self._inode(request.node), offset)
            if names is not None:
                return encode_names(names, size)

        def fill(entries: Iterable[DirectoryEntry]) -> bytes:
            body, taken = encode_directory(entries, size, self._valid, self._root, plus=plus, keeps=self._keeps)
            if plus and self._writable is not None:
                for entry in taken:
                    if entry.is_known and entry.name not in (b".", b".."):
                        node = self.node(entry.attributes.ino)
                        self._lookups[node] = self._lookups.get(node, 0) + 1
            return body

        return then(self._fs.readdir(self._inode(request.node), offset), fill)

    def _list_plus(self, directory: InodeNumber, start: int, size: int) -> Listing:
        entries = self._fs.readdir(directory, start)
        if isinstance(entries, Awaitable):
            cast(Any, entries).close()
            raise os_error(errno.EAGAIN)
        return encode_directory(entries, size, self._valid, self._root, plus=True)

    def _statfs(self, _request: Request) -> Answer[Body]:
        def finish(statistics: FileSystemStatistics) -> bytes:
            return protocol.encode_statistics(statistics)

        return then(self._fs.statfs(), finish)

    def _getxattr(self, request: Request) -> Answer[Body]:
        room = request.fields[0]

        def finish(value: bytes | None) -> bytes:
            if value is None:
                raise os_error(errno.ENODATA)
            return protocol.encode_xattr(as_bytes(value), room)

        return then(self._fs.getxattr(self._inode(request.node), request.rest.rstrip(b"\0")), finish)

    def _listxattr(self, request: Request) -> Answer[Body]:
        room = request.fields[0]

        def finish(names: Iterable[bytes]) -> bytes:
            return protocol.encode_xattr(b"".join(name + b"\0" for name in names), room)

        return then(self._fs.listxattr(self._inode(request.node)), finish)

    # -- open files

    def _open_file(self, handle: int) -> OpenFile:
        try:
            return self._handles[handle]
        except KeyError:
            raise os_error(errno.ESTALE) from None  # an earlier server had opened it

    def _open(self, request: Request) -> Answer[Body]:
        return then(self._fs.open(self._inode(request.node), request.fields[0]), self._opened)

    def _opened(self, opened: OpenFile | None) -> bytes:
        if opened is None:
            return protocol.encode_open(0, OpenFlags.NONE)
        handle = next(self._next_handle)
        self._handles[handle] = opened
        flags = OpenFlags.DIRECT_IO if opened.direct_io else OpenFlags.NONE
        if opened.keep_cache:
            flags |= OpenFlags.KEEP_CACHE
        if type(opened).flush is OpenFile.flush:
            flags |= OpenFlags.NOFLUSH
        return protocol.encode_open(handle, flags)

    def _release(self, request: Request) -> Answer[Body]:
        opened = self._handles.pop(request.fields[0], None)
        return b"" if opened is None else then(opened.release(), done)

    def _flush(self, request: Request) -> Answer[Body]:
        handle = request.fields[0]
        return then(self._open_file(handle).flush(), done) if handle else b""

    def _fsync(self, request: Request) -> Answer[Body]:
        handle, flags = request.fields[:2]
        return then(self._open_file(handle).fsync(data_only=bool(flags & 1)), done) if handle else b""

    def _write(self, request: Request) -> Answer[Body]:
        handle, offset, size, flags = request.fields[:4]
        data = request.rest[:size]
        if handle:
            file = self._open_file(handle)
            # A page of a mapping comes with any handle that can be written to.
            write = file.write_at if flags & protocol.WRITE_CACHE else file.write
            return then(write(offset, data), protocol.encode_size)
        if self._writable is None:
            raise os_error(errno.EROFS)
        return then(self._writable.write(self._inode(request.node), offset, data), protocol.encode_size)


async def _await_all(promises: list[Awaitable[None]]) -> None:
    for promise in promises:
        try:
            await promise
        except (Exception, SystemExit):
            log.exception("forget failed")
