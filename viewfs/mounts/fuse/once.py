"""Requests that change something: each is carried out once, even if the server dies meanwhile.

The kernel sends unanswered requests again to a successor (FUSE_NOTIFY_RESEND in linux/fuse.h). A request that was
finished gets the answer in the ledger. One that had only begun is carried out again if twice has the same effect as
once. For most others the file system can tell whether they were done; if it can't, the answer is EIO.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from viewfs.errors import os_error
from viewfs.linux.files import Rename
from viewfs.modules.api import Answer, Attributes, InodeNumber, OpenFile
from viewfs.modules.api.lasting import LastingFile, LastingFileSystem
from viewfs.mounts.fuse import protocol
from viewfs.mounts.fuse.answers import Body
from viewfs.mounts.fuse.ledger import LastRequest, Ledger
from viewfs.mounts.fuse.operations import Operations
from viewfs.mounts.fuse.protocol import Opcode, Request

__all__ = ["RESENT", "LastingOperations"]

T = TypeVar("T")

#: FUSE_UNIQUE_RESEND of linux/fuse.h.
RESENT = 1 << 63
_MAKING = frozenset({Opcode.CREATE, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK})
_REMOVING = frozenset({Opcode.UNLINK, Opcode.RMDIR})
_MOVING = frozenset({Opcode.RENAME, Opcode.RENAME2})
_XATTRS = frozenset({Opcode.SETXATTR, Opcode.REMOVEXATTR})
_ONCE = frozenset(
    _MAKING
    | _REMOVING
    | _MOVING
    | _XATTRS
    | {Opcode.TMPFILE, Opcode.OPEN, Opcode.RELEASE, Opcode.WRITE, Opcode.SETATTR, Opcode.FALLOCATE}
)
#: The high bits of record numbers: none for an inode of the file system, `_LOOKUPS` for the number of look-ups of a
#: node, `_HANDLES` for an open file.
_LOOKUPS, _HANDLES = 1 << 62, 1 << 63
_COUNT = struct.Struct("<Q")


class _Recorded(dict[int, T], Generic[T]):
    """A dictionary that is also recorded in the ledger."""

    def __init__(self, ledger: Ledger, numbers: int, encode: Callable[[T], bytes]) -> None:
        super().__init__()
        self._ledger, self._numbers, self._encode = ledger, numbers, encode

    def __setitem__(self, key: int, value: T) -> None:
        super().__setitem__(key, value)
        self._ledger.put(self._numbers | key, self._encode(value))

    def pop(self, key: int, default: T | None = None) -> T | None:  # type: ignore[override]
        if key in self:
            self._ledger.drop(self._numbers | key)
        return super().pop(key, default)

    def restore(self, key: int, value: T) -> None:
        """Set a value that is in the ledger already."""
        super().__setitem__(key, value)


class LastingOperations(Operations):
    """The operations of a file system whose server can have a successor."""

    def __init__(self, file_system: LastingFileSystem, ledger: Ledger) -> None:
        """Continue where the previous server was, according to `ledger`."""
        super().__init__(file_system)
        self._lasting, self._ledger = file_system, ledger
        lookups = _Recorded[int](ledger, _LOOKUPS, _COUNT.pack)
        handles = _Recorded[OpenFile](ledger, _HANDLES, _record_of)
        self._lookups, self._handles = lookups, handles
        self._before = ledger.last()
        records = ledger.records()
        known = {InodeNumber(n): value for n, value in records.items() if n < _LOOKUPS}

        def remember(inode: InodeNumber, value: bytes | None) -> None:
            if value is None:
                ledger.drop(inode)
            else:
                ledger.put(inode, value)

        file_system.restore(known, remember)
        for number, value in records.items():
            if number >= _HANDLES:
                handles.restore(number & ~_HANDLES, file_system.reopen(value))
            elif number >= _LOOKUPS:
                lookups.restore(number & ~_LOOKUPS, _COUNT.unpack(value)[0])
        self.number_handles_from(max(handles, default=0) + 1)
        for inode in known:
            if inode not in lookups:
                file_system.forget(inode)  # the kernel has forgotten it, or was never given it

    def dispatch(self, request: Request) -> Answer[Body]:
        if request.opcode not in _ONCE:
            return super().dispatch(request)
        before, self._before = self._before, None
        if before is not None and request.unique == before.unique | RESENT:
            if before.answer is None:
                return self._finish(lambda: self._again(request, before))
            number, body = before.answer
            if number:
                raise os_error(number)
            return body
        self._ledger.begin(request.unique & ~RESENT, self._end_to_append_to(request))
        return self._finish(lambda: super(LastingOperations, self).dispatch(request))

    def _finish(self, carry_out: Callable[[], Answer[Body]]) -> Answer[Body]:
        try:
            body = cast(bytes, carry_out())
        except OSError as failure:
            self._ledger.finish(failure.errno or errno.EIO, b"")
            raise
        self._ledger.finish(0, body)
        return body

    def _end_to_append_to(self, request: Request) -> int:
        """The end of the file if the request appends to it; else 0."""
        if not self._is_append(request):
            return 0
        return cast(int, self._open_file(request.fields[0]).lseek(0, os.SEEK_END))

    @staticmethod
    def _is_append(request: Request) -> bool:
        if request.opcode != Opcode.WRITE:
            return False
        return bool(request.fields[5] & os.O_APPEND) and not request.fields[3] & protocol.WRITE_CACHE

    def _again(self, request: Request, before: LastRequest) -> Answer[Body]:
        """Carry out a request that had begun when the previous server died."""
        opcode = request.opcode
        if self._is_append(request):
            if not self._lasting.is_changed_here_only:
                raise os_error(errno.EIO)
            handle, _offset, size = request.fields[:3]
            written = self._open_file(handle).write_at(before.position, request.rest[:size])
            return protocol.encode_size(cast(int, written))
        if opcode == Opcode.RENAME2 and request.fields[1] & Rename.EXCHANGE:
            raise os_error(errno.EIO)  # whatever was exchanged would be exchanged back
        try:
            return super().dispatch(request)
        except FileExistsError:
            if opcode in _MAKING:
                return self._made_already(request)
            if opcode == Opcode.SETXATTR:
                raise os_error(errno.EIO) from None
            raise
        except FileNotFoundError:
            if opcode in _REMOVING:
                return b""
            if opcode in _MOVING:
                return self._moved_already(request)
            raise
        except OSError as failure:
            if opcode in _XATTRS and failure.errno == errno.ENODATA:
                raise os_error(errno.EIO) from None
            raise

    def _made_already(self, request: Request) -> Answer[Body]:
        directory, name = self._inode(request.node), request.names()[0]
        source = self._inode(request.fields[0]) if request.opcode == Opcode.LINK else None
        made = cast(Attributes | None, self._lasting.made_already(directory, name, source))
        if made is None:
            raise os_error(errno.EIO)
        return self._open_made(made, request.fields[0]) if request.opcode == Opcode.CREATE else self._entry(made)

    def _moved_already(self, request: Request) -> Body:
        name, new_name = request.names()
        directory, new_directory = self._inode(request.node), self._inode(request.fields[0])
        if not self._lasting.moved_already(directory, name, new_directory, new_name):
            raise os_error(errno.EIO)
        return b""


def _record_of(file: OpenFile) -> bytes:
    assert isinstance(file, LastingFile)
    return file.record()
