"""Descriptors over a unix socket: the ancillary data of sendmsg(2) and recvmsg(2) (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import os
import struct

from viewfs.linux.plain import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "MAX_WITH_ONE",
    "Ancillary",
    "descriptors_in",
    "in_pieces",
    "parked",
    "rights",
    "room_for",
    "taken_out",
    "unparked",
]

#: How many descriptors the kernel takes with one message (unix(7), SCM_MAX_FD).
MAX_WITH_ONE = 253
#: Bytes that one descriptor takes.
_INT = struct.calcsize("i")
#: Level, type and data of one control message, as recvmsg gives them.
Ancillary = tuple[int, int, bytes]


def rights(fds: list[int] | None) -> list[Ancillary]:
    """Descriptors as sendmsg takes them. They stay the sender's own, too."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []


def in_pieces(data: bytes, fds: list[int] | None) -> Iterator[tuple[bytes, list[int]]]:
    """Pieces of `data` and descriptors, one for each sendmsg(2): the kernel takes only so many descriptors with each.

    Each piece but the last has one byte of the data, which must be long enough for that.
    """
    left = fds or []
    while len(left) > MAX_WITH_ONE:
        yield data[:1], left[:MAX_WITH_ONE]
        data, left = data[1:], left[MAX_WITH_ONE:]
    yield data, left


def room_for(count: int) -> int:
    """Bytes of ancillary data that `count` descriptors take."""
    return socket.CMSG_SPACE(count * _INT)


def descriptors_in(ancillary: Iterable[Ancillary]) -> list[int]:
    """The descriptors that came, which the receiver closes. An incomplete one at the end of the data is left out."""
    found: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            count = len(payload) // _INT
            found += struct.unpack(f"{count}i", payload[: count * _INT])
    return found


def parked(*fds: int) -> int:
    """A socket in whose queue copies of `fds` lie. `unparked` takes another copy of a single one out, `taken_out` all
    of them; the caller closes the socket.

    To close a file of a FUSE server that hangs means waiting for it (FUSE_FLUSH), for good and even if one is killed.
    A copy that lies in a queue goes without that. Raises OSError (ETOOMANYREFS if the user has too many in queues).
    """
    keeping, filling = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        filling.sendmsg([b"."], rights(list(fds)))
        return keeping.detach()
    finally:
        filling.close()
        keeping.close()


def _duplicate(sock: int) -> socket.socket:
    fd = os.dup(sock)
    try:
        return socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise


def taken_out(sock: int) -> list[int]:
    """What lies in the queue of `sock`, where nothing is left. Raises OSError."""
    keeping = _duplicate(sock)
    try:
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        _data, ancillary, _flags, _address = keeping.recvmsg(1, room_for(MAX_WITH_ONE), flags)
        return descriptors_in(ancillary)
    finally:
        keeping.close()


def unparked(sock: int) -> int:
    """A copy of what lies in the queue of `sock`, where it stays. Raises OSError."""
    keeping = _duplicate(sock)
    try:
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        _data, ancillary, _flags, _address = keeping.recvmsg(1, room_for(1), flags)
        (fd,) = descriptors_in(ancillary)
    finally:
        keeping.close()
    return fd
