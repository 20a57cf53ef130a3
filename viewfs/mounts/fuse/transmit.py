"""Writing messages to a /dev/fuse descriptor with as few copies as possible.

Data in memory are written with one writev(2). Data in a file, such as the content of most images, are not read into
memory: they are spliced from the file's pages into a pipe and from there to the kernel, which copies them once, into
the reader's pages (splice(2)).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence

from viewfs.modules.api import Content, FileRange
from viewfs.modules.framework.damage import missing

__all__ = ["Transmitter", "length_of", "pieces_of"]

_PAGE = 4096
#: The largest pipe of an ordinary user, in bytes (pipe(7), pipe-max-size). Partial pages count as whole ones.
_PIPE_SIZE = 1 << 20
#: Less than this is copied, which is cheaper than the two additional system calls.
_SPLICE_MIN = 32 << 10
#: Pieces that one writev(2) takes besides the header (UIO_MAXIOV).
_MAX_PIECES = 1023


def pieces_of(content: Content) -> Sequence[bytes | bytearray | memoryview | FileRange]:
    """Content as the sequence of pieces that it is made of."""
    # (A FileRange is a tuple itself.)
    return content if isinstance(content, list) else [content]


def length_of(pieces: Sequence[bytes | bytearray | memoryview | FileRange]) -> int:
    """Bytes of all the pieces."""
    length = 0
    for piece in pieces:
        length += piece.size if isinstance(piece, FileRange) else len(piece)
    return length


class Transmitter:
    """Sends messages over one descriptor, from one thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pipe: tuple[int, int] | None = None
        self._slots = 0

    def send(self, header: bytes, pieces: Sequence[bytes | bytearray | memoryview | FileRange]) -> None:
        """Send one message. Raises OSError: EIO if a file is shorter than its pieces say, else the kernel's error."""
        in_files = 0
        for piece in pieces:
            if isinstance(piece, FileRange):
                in_files += piece.size
        if in_files >= _SPLICE_MIN and self._splice(header, pieces):
            return
        if in_files:
            pieces = [_load(piece) for piece in pieces]
        if len(pieces) > _MAX_PIECES:
            pieces = [b"".join(pieces)]  # type: ignore[arg-type]
        os.writev(self._fd, [header, *pieces])  # type: ignore[list-item]  # no FileRange is left

    def _splice(self, header: bytes, pieces: Sequence[bytes | bytearray | memoryview | FileRange]) -> bool:
        """Send through a pipe; False if it does not fit in one."""
        reading, writing = self._open_pipe()
        length = len(header) + length_of(pieces)
        if length // _PAGE + 2 * len(pieces) + 2 > self._slots:
            return False
        try:
            os.write(writing, header)
            for piece in pieces:
                if isinstance(piece, FileRange):
                    _fill(writing, piece)
                else:
                    os.write(writing, piece)
            os.splice(reading, self._fd, length)
        except OSError as error:
            self.close()  # which discards what is in the pipe
            if isinstance(error, BlockingIOError):
                return False  # the image's file system takes more slots of the pipe than expected
            raise
        return True

    def _open_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC)
            try:
                size = fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            except OSError:  # the user's limit for pipe buffers is used up
                size = fcntl.fcntl(self._pipe[1], fcntl.F_GETPIPE_SZ)
            self._slots = size // _PAGE
        return self._pipe

    def close(self) -> None:
        """Close the pipe. More messages can be sent; a new pipe is made if one is needed."""
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None


def _fill(writing: int, piece: FileRange) -> None:
    fd, offset, size = piece
    while size:
        done = os.splice(fd, writing, size, offset_src=offset, flags=os.SPLICE_F_NONBLOCK)
        if not done:
            raise missing("the image has become shorter")
        offset, size = offset + done, size - done


def _load(piece: bytes | bytearray | memoryview | FileRange) -> bytes | bytearray | memoryview:
    if not isinstance(piece, FileRange):
        return piece
    fd, offset, size = piece
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise missing("the image has become shorter")
        data += more
    return data
