"""The owners of files as the host has them: a process outside of the view's user namespace is asked.

In a view with users of its own (subuid(5)) the host's users have no number, so that stat(2) shows all their files with
the overflow id. A tree that viewfs serves shows such a file as belonging to the view's user of the same number: what
belongs to the host's `man` belongs to the view's `man`. The process is sent descriptors of files (O_PATH), and answers
with two numbers. Each server has a connection of its own, so that each gets its own answers.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct

from viewfs.linux.process import set_name

__all__ = ["OwnersOutside", "start"]

#: What a descriptor comes with: a connection, or a file.
_CONNECT, _ASK = b"+", b"?"
_OWNER = struct.Struct("<II")
_KEPT = 200_000


def start() -> socket.socket:
    """Fork the process; it ends when the last copy of the socket that is returned is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return ours
    try:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the socket tells the end of the session
        fd = theirs.detach()
        os.closerange(0, fd)
        os.closerange(fd + 1, 1 << 16)
        set_name("viewfs-owners")
        _answer(socket.socket(fileno=fd))
    finally:
        os._exit(0)


def _answer(first: socket.socket) -> None:
    """Answer until all connections are closed: the `first`, and those that come over it."""
    poll = select.poll()
    connections: dict[int, socket.socket] = {}

    def add(connection: socket.socket) -> None:
        connections[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)

    add(first)
    while connections:
        for number, _event in poll.poll():
            connection = connections[number]
            try:
                message, fds, _flags, _address = socket.recv_fds(connection, 1, 1)
            except ConnectionError:  # a client that was killed before it had read its answer
                message, fds = b"", []
            if not message or not fds:
                poll.unregister(number)
                connections.pop(number).close()
            elif message == _CONNECT:
                add(socket.socket(fileno=fds[0]))
            else:
                status = os.fstat(fds[0])
                os.close(fds[0])
                with contextlib.suppress(ConnectionError):  # the client is gone
                    connection.send(_OWNER.pack(status.st_uid, status.st_gid))


class OwnersOutside:
    """The answers of the process, cached. Made for one thread."""

    def __init__(self, channel: socket.socket) -> None:
        """`channel`: a copy of the socket of `start`, which stays the caller's."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(channel, [_CONNECT], [theirs.fileno()])
        self._known: dict[tuple[int, int, int], tuple[int, int]] = {}

    def of(self, fd: int, status: os.stat_result) -> tuple[int, int]:
        """The user and group of the file open in `fd`, of which stat(2) says `status` here. Raises OSError."""
        key = status.st_dev, status.st_ino, status.st_ctime_ns
        found = self._known.get(key)
        if found is None:
            socket.send_fds(self._channel, [_ASK], [fd])
            answer = self._channel.recv(_OWNER.size)
            if len(answer) < _OWNER.size:
                return status.st_uid, status.st_gid
            uid, gid = _OWNER.unpack(answer)
            if len(self._known) >= _KEPT:
                self._known.clear()
            found = self._known[key] = uid, gid
        return found
