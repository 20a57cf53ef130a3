"""Making an immutable file system that is not thread-safe callable by any thread.

With this, the thread that sends ahead (`ahead`) can also work for such file systems: each call, and each step of a
listing, holds the lock. Returned data are copied if the next call might change them.
"""

from __future__ import annotations

import errno
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from viewfs.modules.api import (
    Answer,
    Attributes,
    Content,
    DirectoryEntry,
    FileSystem,
    FileSystemStatistics,
    InodeNumber,
)

__all__ = ["OneAtATime", "is_plain"]

T = TypeVar("T")

_METHODS = ("getattr", "lookup", "readdir", "read", "readlink", "listxattr", "getxattr", "statfs")


def is_plain(file_system: FileSystem) -> bool:
    """Is none of its methods an `async def`? (A plain one may still return a promise.)"""
    return not any(inspect.iscoroutinefunction(getattr(file_system, name)) for name in _METHODS)


class OneAtATime(FileSystem):
    """`file_system`, called with `lock` held. A promise is passed on, unless `never_waits`: then it is closed, and the
    call raises BlockingIOError."""

    immutable = True
    concurrent = True

    def __init__(self, file_system: FileSystem, lock: threading.Lock, *, never_waits: bool) -> None:
        self._fs = file_system
        self._lock = lock
        self._never_waits = never_waits
        self.root = file_system.root
        self.no_xattrs = file_system.no_xattrs
        self.caches = file_system.caches
        self.name_max = file_system.name_max
        self.read_ahead = file_system.read_ahead

    def _call(self, method: Callable[..., Answer[T]], *arguments: Any) -> Answer[T]:
        with self._lock:
            answer = method(*arguments)
        if self._never_waits and isinstance(answer, Awaitable):
            cast(Any, answer).close()
            raise BlockingIOError(errno.EAGAIN, "that would have to be waited for")
        return answer

    def getattr(self, inode: InodeNumber) -> Answer[Attributes]:
        return self._call(self._fs.getattr, inode)

    def lookup(self, directory: InodeNumber, name: bytes) -> Answer[Attributes | None]:
        return self._call(self._fs.lookup, directory, name)

    def readdir(self, directory: InodeNumber, start: int) -> Answer[Iterable[DirectoryEntry]]:
        entries = self._call(self._fs.readdir, directory, start)
        return entries if isinstance(entries, Awaitable) else self._step_by_step(iter(entries))

    def _step_by_step(self, entries: Iterator[DirectoryEntry]) -> Iterator[DirectoryEntry]:
        while True:
            with self._lock:
                entry = next(entries, None)
            if entry is None:
                return
            yield entry

    def read(self, inode: InodeNumber, offset: int, size: int) -> Answer[Content]:
        def read_and_copy() -> Answer[Content]:
            content = self._fs.read(inode, offset, size)
            if isinstance(content, list):
                return [bytes(piece) if isinstance(piece, bytearray | memoryview) else piece for piece in content]
            return bytes(content) if isinstance(content, bytearray | memoryview) else content

        return self._call(read_and_copy)

    def readlink(self, inode: InodeNumber) -> Answer[bytes]:
        return self._call(self._fs.readlink, inode)

    def listxattr(self, inode: InodeNumber) -> Answer[Iterable[bytes]]:
        def list_all() -> Answer[Iterable[bytes]]:
            names = self._fs.listxattr(inode)
            return names if isinstance(names, Awaitable) else list(names)

        return self._call(list_all)

    def getxattr(self, inode: InodeNumber, name: bytes) -> Answer[bytes | None]:
        return self._call(self._fs.getxattr, inode, name)

    def statfs(self) -> Answer[FileSystemStatistics]:
        return self._call(self._fs.statfs)
