"""A protocol connection for code that blocks: messages and descriptors over a unix stream socket.

Descriptors that arrive belong to whoever receives the message; those that are sent stay the sender's.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import Any

from viewfs.session.protocol import MAX_FDS, FrameDecoder, Message, encode, result_of

__all__ = ["Channel", "Received", "socket_pair"]

#: A message and the descriptors that came with it.
Received = tuple[Message, list[int]]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Channel:
    """One end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._decoder = FrameDecoder()
        self._messages: deque[Message] = deque()
        self._fds: deque[int] = deque()
        self._next_id = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Raises OSError if the other end is gone."""
        data = encode(message, len(fds or ()))
        # Not socket.send_fds and recv_fds: Python 3.11 takes their flags and does not pass them on.
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        if sent < len(data):
            self.socket.sendall(data[sent:], socket.MSG_NOSIGNAL)

    def receive(self) -> Received | None:
        """The next message; None when the other end has closed."""
        while not self._messages:
            try:
                data, ancillary, _flags, _address = self.socket.recvmsg(
                    1 << 16, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError:
                return None  # it has closed without having read all that it was sent
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array.array("i")
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                    self._fds.extend(fds)
            if not data:
                return None
            self._messages.extend(self._decoder.feed(data))
        message = self._messages.popleft()
        return message, [self._fds.popleft() for _ in range(min(message.get("fds", 0), len(self._fds)))]

    @property
    def last_id(self) -> int:
        """The number of the newest request made by `call`."""
        return self._next_id

    @property
    def has_more(self) -> bool:
        """Is another message here already, so that poll(2) would not tell of it?"""
        return bool(self._messages)

    def call(self, op: str, fds: list[int] | None = None, /, **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """Send a request and wait for its reply.

        Raises the `ViewfsError` that the other side answers with, and `ConnectionError` if it goes away.
        """
        self._next_id += 1
        self.send({"id": self._next_id, "op": op} | arguments, fds)
        while (received := self.receive()) is not None:
            message, received_fds = received
            if message.get("id") == self._next_id:
                return result_of(message), received_fds
            for fd in received_fds:
                os.close(fd)
        raise ConnectionError(f"the connection ended before {op} was answered")

    def close(self) -> None:
        self.socket.close()
        while self._fds:
            os.close(self._fds.popleft())
