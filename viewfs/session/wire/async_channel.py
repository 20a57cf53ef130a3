"""A protocol connection for trio: what `viewfs.session.wire.channel` is for code that blocks."""

from __future__ import annotations

import socket
import struct
from types import TracebackType

import trio

from viewfs.linux.scm import in_pieces, rights
from viewfs.session.wire.inbox import ANCILLARY_SIZE, Inbox, Received
from viewfs.session.wire.protocol import Message, encode

__all__ = ["AsyncChannel"]


class AsyncChannel:
    """One end of a connection; several tasks may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._inbox = Inbox()
        self._sending = trio.Lock()

    def fileno(self) -> int:
        return self._socket.fileno()

    async def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Raises `trio.BrokenResourceError` if the other end is gone."""
        data = encode(message, len(fds or ()))
        async with self._sending:
            try:
                for piece, with_it in in_pieces(data, fds):
                    sent = await self._socket.sendmsg([piece], rights(with_it), socket.MSG_NOSIGNAL)
                    while sent < len(piece):
                        sent += await self._socket.send(piece[sent:], socket.MSG_NOSIGNAL)
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def receive(self) -> Received | None:
        """The next message; None when the other end has closed."""
        while not self._inbox:
            try:
                data, ancillary, flags, _address = await self._socket.recvmsg(
                    1 << 16, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionError:
                return None
            self._inbox.add(data, ancillary, flags)
            if not data:
                return None
        return self._inbox.pop()

    def peer_uid(self) -> int:
        """The effective user id of the process at the other end when it connected (unix(7), SO_PEERCRED)."""
        _pid, uid, _gid = struct.unpack("=iii", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(uid)

    def close(self) -> None:
        self._socket.close()
        self._inbox.close()

    def __enter__(self) -> AsyncChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
