"""What came over a unix socket: bytes put together to messages, and the descriptors that belong to each."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Iterable

from viewfs.session.protocol import MAX_FDS, FrameDecoder, Message

__all__ = ["ANCILLARY_SIZE", "Inbox", "Received", "ancillary_of"]

#: A message and the descriptors that came with it, which are the receiver's now.
Received = tuple[Message, list[int]]
Ancillary = tuple[int, int, bytes]
#: Room to give to recvmsg(2) for ancillary data, in bytes.
ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


def ancillary_of(fds: list[int] | None) -> list[tuple[int, int, array.array[int]]]:
    """Descriptors as sendmsg(2) takes them."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


class Inbox:
    """Messages in the order in which they came."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._messages: deque[Message] = deque()
        self._fds: deque[int] = deque()

    def __bool__(self) -> bool:
        """Is a whole message there?"""
        return bool(self._messages)

    def add(self, data: bytes, ancillary: Iterable[Ancillary]) -> None:
        """What one recvmsg(2) gave. Raises `ProtocolError` on bytes that can't be messages."""
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
        self._messages.extend(self._decoder.feed(data))

    def pop(self) -> Received:
        message = self._messages.popleft()
        return message, [self._fds.popleft() for _ in range(min(message.get("fds", 0), len(self._fds)))]

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self._fds:
            os.close(self._fds.popleft())
