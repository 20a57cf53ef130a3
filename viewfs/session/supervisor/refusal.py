"""Answering for a file system whose servers keep dying: EIO at once, so that nobody waits beyond a deadline."""

from __future__ import annotations

import errno
import os

import trio

from viewfs.mounts.fuse.host import take_over
from viewfs.mounts.fuse.protocol import HEADER_SIZE, Opcode, decode, encode_error

__all__ = ["refuse"]

#: Room for the longest request there is: a write(2) of 1 MiB and what stands before it.
_BUFFER = (1 << 20) + (64 << 10)
#: INIT is left to the next server: an error would be the end of the mount.
_UNANSWERED = frozenset({Opcode.INIT, Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
_TRY_AGAIN = frozenset({errno.EAGAIN, errno.ENOENT, errno.EINTR})


async def refuse(fuse_fd: int) -> None:
    """Answer every request there is and comes, until cancelled. The descriptor stays the caller's."""
    buffer = bytearray(_BUFFER)
    os.set_blocking(fuse_fd, False)
    try:
        take_over(fuse_fd)
        while True:
            await trio.lowlevel.wait_readable(fuse_fd)
            try:
                size = os.readv(fuse_fd, [buffer])
                if size < HEADER_SIZE:
                    return
                request = decode(memoryview(buffer)[:size])
                if request.opcode not in _UNANSWERED:
                    os.write(fuse_fd, encode_error(request.unique, errno.EIO))
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return  # nobody has it mounted any more
                if error.errno not in _TRY_AGAIN:
                    raise
    finally:
        os.set_blocking(fuse_fd, True)  # the next server shares the open file description
