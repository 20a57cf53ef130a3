"""Sources of mounts: bytes that can be read at an offset."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from viewfs.errors import UsageError, ViewfsError, explain_os_error
from viewfs.modules.api import Buffer, FileRange, Source
from viewfs.modules.framework.damage import missing

__all__ = ["FileSource", "Section", "checked_offset", "identity_of", "joined", "open_source"]


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """What differs as soon as the file is another one, or has other content."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.EISDIR)


class FileSource:
    """An open file, read with pread(2) rather than mapped.

    If somebody truncates the file, or its own file system fails, one request then fails with an errno; with a mapping,
    the whole server would get SIGBUS.
    """

    def __init__(self, fd: int, size: int, *, writable: bool = False) -> None:
        self.fd = fd
        self._size = size
        self.writable = writable

    @property
    def size(self) -> int:
        return self._size

    def pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self.fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]  # a read may be short without being at the end: signals, and files of other FUSE servers
        while (done := sum(map(len, parts))) < size:
            more = os.pread(self.fd, size - done, offset + done)
            if not more:
                break
            parts.append(more)
        return b"".join(parts)

    def pwrite(self, data: Buffer, offset: int) -> int:
        """Write at `offset`; returns how many bytes were taken. Raises OSError: EBADF if it is not `writable`."""
        return os.pwrite(self.fd, data, offset)

    def sync(self) -> None:
        """fdatasync(2)."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def checked_offset(source: Source, offset: int, name: str) -> int:
    """`offset`, at which a file system begins in `source`. Raises `UsageError` if it is not within the source."""
    if offset and offset >= source.size:
        raise UsageError(
            f"{name} has {source.size} bytes, and no file system at offset {offset}",
            remedy="`viewfs inspect` shows what is where",
        )
    return offset


class Section:
    """A source from some offset on, for a file system that does not begin at the beginning of a file."""

    def __init__(self, source: Source, offset: int, size: int | None = None) -> None:
        """`size` in bytes; up to the end of the source if it is None or more than there is."""
        self._read = source.pread
        self._fd = source.fd if isinstance(source, FileSource) else None
        #: Where it begins in the source.
        self.offset = offset
        there = max(source.size - offset, 0)
        #: How many bytes there are.
        self.size = there if size is None else min(size, there)

    def pread(self, size: int, position: int) -> bytes:
        """Exactly `size` bytes. Raises OSError(EIO) if not all of them are there."""
        if position < 0 or position + size > self.size:
            raise missing(f"the image ends before byte {position + size}")
        data = self._read(size, self.offset + position)
        if len(data) != size:
            raise missing(f"the image could not be read at byte {position}")
        return data

    def span(self, size: int, position: int) -> Buffer | FileRange:
        """As `pread`, but bytes of an open file are returned as a `FileRange`; reading that may fail later."""
        fd = self._fd
        if fd is None or position < 0 or position + size > self.size:
            return self.pread(size, position)
        return FileRange(fd, self.offset + position, size)

    def pread_up_to(self, size: int, position: int) -> bytes:
        """As many of `size` bytes as there are."""
        if position < 0 or position >= self.size:
            return b""
        return self._read(min(size, self.size - position), self.offset + position)


def joined(pieces: Iterable[Buffer | FileRange]) -> bytes:
    """The bytes of all the pieces. Raises OSError."""
    return b"".join(
        FileSource(piece.fd, piece.offset + piece.size).pread(piece.size, piece.offset)
        if isinstance(piece, FileRange)
        else piece
        for piece in pieces
    )


def open_source(path: str, *, writing: bool = False) -> FileSource:
    """The file or block device at `path`, for reading, and for `writing` too where that is allowed.

    Raises `ViewfsError` that says why it can't be a source.
    """
    # O_NONBLOCK: opening a FIFO must not wait for somebody to write to it.
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    writable = False
    try:
        # access(2) is asked because this process's privilege would open the user's own files even without w.
        if writing and os.access(path, os.W_OK):
            try:
                fd = os.open(path, os.O_RDWR | flags)
                writable = True
            except OSError as error:
                if error.errno not in _NOT_WRITABLE:
                    raise
        if not writable:
            fd = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        raise explain_os_error("cannot open the source", error) from error
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind == stat.S_IFDIR:
            raise UsageError(f"{path} is a directory, not an image", remedy="to show a directory elsewhere: -t bind")
        if kind not in (stat.S_IFREG, stat.S_IFBLK):
            raise UsageError(f"{path} is neither a file nor a block device")
        os.set_blocking(fd, True)
        return FileSource(fd, os.lseek(fd, 0, os.SEEK_END), writable=writable)
    except ViewfsError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        if error.errno == errno.ESPIPE:
            raise UsageError(f"{path} can't be read at an offset") from error
        raise explain_os_error(f"cannot read the source {path}", error) from error
