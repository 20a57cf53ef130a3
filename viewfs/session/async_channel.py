"""A protocol connection for trio: what `viewfs.session.channel` is for code that blocks."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from types import TracebackType

import trio

from viewfs.session.protocol import MAX_FDS, FrameDecoder, Message, encode

__all__ = ["AsyncChannel"]


class AsyncChannel:
    """One end of a connection; several tasks may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._decoder = FrameDecoder()
        self._messages: deque[Message] = deque()
        self._fds: deque[int] = deque()
        self._sending = trio.Lock()

    async def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Raises `trio.BrokenResourceError` if the other end is gone."""
        data = encode(message, len(fds or ()))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._sending:
            try:
                sent = await self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
                while sent < len(data):
                    sent += await self._socket.send(data[sent:], socket.MSG_NOSIGNAL)
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors, which are the caller's now; None when the other end has closed."""
        while not self._messages:
            try:
                data, ancillary, _flags, _address = await self._socket.recvmsg(
                    1 << 16, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionError:
                return None
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

    def peer_uid(self) -> int:
        """The effective user id of the process at the other end when it connected (unix(7), SO_PEERCRED)."""
        return int.from_bytes(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], "little")

    def close(self) -> None:
        self._socket.close()
        while self._fds:
            os.close(self._fds.popleft())

    def __enter__(self) -> AsyncChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
