"""What came over a unix socket: bytes put together to messages, and the descriptors that belong to each."""

from __future__ import annotations

import os

from viewfs.errors import ViewfsError
from viewfs.linux.plain import socket
from viewfs.linux.scm import MAX_WITH_ONE, descriptors_in, room_for
from viewfs.session.wire.protocol import FrameDecoder, Message, ProtocolError, result_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable
    from typing import Any

    from viewfs.linux.scm import Ancillary
else:
    from _collections import deque

__all__ = ["ANCILLARY_SIZE", "Inbox", "Received", "result_with"]

#: A message and the descriptors that came with it, which are the receiver's now.
Received = tuple[Message, list[int]]
#: Room to give to recvmsg(2) for ancillary data, in bytes.
ANCILLARY_SIZE = room_for(MAX_WITH_ONE)


def result_with(reply: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
    """The result in a reply, and its descriptors. Raises the `ViewfsError` that it carries, after closing these."""
    try:
        return result_of(reply), fds
    except ViewfsError:
        for fd in fds:
            os.close(fd)
        raise


class Inbox:
    """Messages in the order in which they came."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._messages: deque[Message] = deque()
        self._fds: deque[int] = deque()

    def __bool__(self) -> bool:
        """Is a whole message there?"""
        return bool(self._messages)

    def add(self, data: bytes, ancillary: Iterable[Ancillary], flags: int = 0) -> None:
        """Add what one recvmsg(2) returned. Raises `ProtocolError` for bytes that can't be messages, and if descriptors
        were lost."""
        self._fds.extend(descriptors_in(ancillary))
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError("no descriptor is free: too many files are open", remedy="see `ulimit -n`")
        self._messages.extend(self._decoder.feed(data))

    def pop(self) -> Received:
        """The next message. Raises `ProtocolError` if it says that descriptors came with it, and they did not."""
        message = self._messages.popleft()
        count = message.get("fds", 0)
        if count > len(self._fds):
            raise ProtocolError(f"a message with {len(self._fds)} descriptors, where {count} were announced")
        return message, [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self._fds:
            os.close(self._fds.popleft())
