"""Descriptors over a unix socket: the ancillary data of sendmsg(2) and recvmsg(2) (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import array
import socket
from collections.abc import Iterable

__all__ = ["Ancillary", "descriptors_in", "rights", "room_for"]

#: Level, type and data of one control message, as recvmsg gives them.
Ancillary = tuple[int, int, bytes]


def rights(fds: list[int] | None) -> list[tuple[int, int, array.array[int]]]:
    """Descriptors as sendmsg takes them. They stay the sender's own, too."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def room_for(count: int) -> int:
    """Bytes of ancillary data that `count` descriptors take."""
    return socket.CMSG_SPACE(count * array.array("i").itemsize)


def descriptors_in(ancillary: Iterable[Ancillary]) -> list[int]:
    """The descriptors that came, which are the receiver's to close; cut-off rests of the data are no descriptor."""
    found = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    return found.tolist()
