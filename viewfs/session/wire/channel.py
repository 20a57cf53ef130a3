"""A protocol connection for code that blocks: messages and descriptors over a unix stream socket.

Descriptors that arrive belong to whoever receives the message; those that are sent stay the sender's.
"""

from __future__ import annotations

import os

from viewfs.linux.plain import socket
from viewfs.linux.scm import in_pieces, rights
from viewfs.session.wire.inbox import ANCILLARY_SIZE, Inbox, Received, result_with
from viewfs.session.wire.protocol import Message, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Channel", "Received", "socket_pair"]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Channel:
    """One end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._inbox = Inbox()
        self._next_id = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Raises OSError if the other end is gone."""
        data = encode(message, len(fds or ()))
        if not fds:
            self.socket.sendall(data, socket.MSG_NOSIGNAL)  # all that a sealed process may send with
            return
        # Not socket.send_fds and recv_fds: Python 3.11 takes their flags and does not pass them on.
        for piece, with_it in in_pieces(data, fds):
            sent = self.socket.sendmsg([piece], rights(with_it), socket.MSG_NOSIGNAL)
            if sent < len(piece):
                self.socket.sendall(piece[sent:], socket.MSG_NOSIGNAL)

    def receive(self) -> Received | None:
        """The next message; None when the other end has closed."""
        while not self._inbox:
            try:
                data, ancillary, flags, _address = self.socket.recvmsg(1 << 16, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                return None  # it has closed without having read all that it was sent
            self._inbox.add(data, ancillary, flags)
            if not data:
                return None
        return self._inbox.pop()

    @property
    def is_at_end(self) -> bool:
        """Is there nothing to receive? If poll(2) has reported the socket, this means that the other end has closed."""
        if self._inbox:
            return False
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return True

    @property
    def has_more(self) -> bool:
        """Is another message here already, so that poll(2) would not tell of it?"""
        return bool(self._inbox)

    def call(self, op: str, fds: list[int] | None = None, /, **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """Send a request and wait for its reply.

        Raises the `ViewfsError` that the other side answers with, and `ConnectionError` if it goes away.
        """
        self._next_id += 1
        try:
            self.send({"id": self._next_id, "op": op} | arguments, fds)
        except ConnectionError as error:
            raise ConnectionError(f"the connection ended before {op} was asked for") from error
        while (received := self.receive()) is not None:
            message, received_fds = received
            if message.get("id") == self._next_id:
                return result_with(message, received_fds)
            for fd in received_fds:
                os.close(fd)
        raise ConnectionError(f"the connection ended before {op} was answered")

    def close(self) -> None:
        self.socket.close()
        self._inbox.close()
