"""Talking to sessions: which are there, which one this process lives in, and requests to one."""

from __future__ import annotations

import os
import time

from viewfs.errors import NotFoundError, ViewfsError
from viewfs.session.runtime import SESSION_VARIABLE, RuntimeDirectory, connect_in_view
from viewfs.session.wire.channel import Channel
from viewfs.session.wire.protocol import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from viewfs.linux.plain import socket
    from viewfs.namespaces.enter import Namespaces

__all__ = ["Session", "find_session", "sessions"]


#: How long a session may take to send its greeting: one that hangs must not block requests to others.
_GREETING_SECONDS = 10.0
#: How often a connection is tried, and seconds between two attempts.
_ATTEMPTS, _AGAIN_SECONDS = 20, 0.02


class Session:
    """A connection to one session's supervisor."""

    def __init__(self, channel: Channel, status: dict[str, Any]) -> None:
        self._channel = channel
        self.name: str = status["name"]
        self.status = status

    @classmethod
    def connect(cls, directory: RuntimeDirectory, name: str) -> Session:
        """Raises OSError where nobody answers, `ViewfsError` where the answer is not understood."""
        return cls._of(lambda: directory.connect(name, _GREETING_SECONDS), f"session {name}")

    @classmethod
    def of_view(cls, process: int | None = None) -> Session:
        """The session whose view `process` (None: this one) lives in. Raises the same errors as `connect`."""
        return cls._of(lambda: connect_in_view(process), "the session of this view")

    @classmethod
    def _of(cls, connect: Callable[[], socket.socket], called: str) -> Session:
        """Try again if the supervisor is killed before it has sent its greeting: another one takes over."""
        for _again in range(_ATTEMPTS - 1):
            connected = connect()
            try:
                return cls.greeted(Channel(connected), called)
            except ConnectionError:
                time.sleep(_AGAIN_SECONDS)
        return cls.greeted(Channel(connect()), called)

    @classmethod
    def greeted(cls, channel: Channel, called: str) -> Session:
        """The session at the other end of `channel`, from which nothing was read yet; messages call it `called`."""
        channel.socket.settimeout(_GREETING_SECONDS)
        try:
            greeting = channel.receive()
            if greeting is None:
                raise ConnectionError(f"{called} has closed the connection")
            if greeting[0].get("viewfs") != VERSION:
                raise ViewfsError(f"{called} is of another version of viewfs")
            status = greeting[0].get("status")
            if not isinstance(status, dict):
                raise ViewfsError(f"{called} does not say what it is")
        except TimeoutError:
            channel.close()
            raise ViewfsError(
                f"{called} does not answer", remedy="is it stopped? its supervisor can be killed"
            ) from None
        except BaseException:
            channel.close()
            raise
        channel.socket.settimeout(None)
        return cls(channel, status)

    def request(self, op: str, fds: list[int] | None = None, /, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises the `ViewfsError` that the reply carries."""
        result, received = self._channel.call(op, fds, **arguments)
        for fd in received:
            os.close(fd)
        return result

    def request_fds(self, op: str, /, **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """As `request`, if the reply brings descriptors. The caller closes them."""
        return self._channel.call(op, **arguments)

    def namespaces(self, epoch: int | None = None) -> Namespaces:
        """The namespaces of the live view or of an epoch, for a process that may join them; the caller closes them."""
        from viewfs.namespaces.enter import Asking, Namespaces  # not needed by a client that only sends requests

        result, fds = self._channel.call("enter", epoch=epoch)
        calls = Asking(fds.pop(), result["families"], result["limit"]) if result["calls"] else None
        return Namespaces(dict(zip(result["kinds"], fds, strict=True)), calls)

    def spawn(self, argv: list[str], *, epoch: int | None, group: int) -> tuple[int, int]:
        """Have a command started with this process's streams, environment and directory.

        Returns its pidfd, and the number by which `wait_for_end` knows it.
        """
        from viewfs.session.wire.command_file import write_command

        file = write_command(argv, dict(os.environ), os.getcwd())
        try:
            result, (pidfd,) = self._channel.call("spawn", [0, 1, 2, file], epoch=epoch, group=group)
        finally:
            os.close(file)
        return pidfd, int(result["number"])

    def wait_for_end(self, number: int) -> int:
        """The exit code of what `spawn` started (negative: the signal that killed it)."""
        while True:
            while (received := self._channel.receive()) is not None:
                if received[0].get("ended") == number:
                    return int(received[0]["status"])
            self._channel.close()
            try:  # the supervisor may have been killed, and another takes over
                self._channel = Session.of_view()._channel
                self._channel.call("await", number=number)
            except (OSError, ViewfsError):
                raise ViewfsError("the session ended before the command did") from None

    def is_view_of_caller(self) -> bool:
        """Does this process live in the session's user namespace?"""
        status = os.stat("/proc/self/ns/user")
        return [status.st_dev, status.st_ino] == list(self.status["namespaces"]["user"])

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def end(self) -> None:
        """End it, and wait until nothing of it is left."""
        self.request("end")
        while self._channel.receive() is not None:
            pass


def sessions() -> Iterator[Session]:
    """Every session of this user that answers; the caller closes them. Sockets that nobody listens on are removed."""
    for directory in RuntimeDirectory.existing():
        with directory:
            for name in directory.names():
                try:
                    yield Session.connect(directory, name)
                except ConnectionRefusedError:
                    directory.remove(name)
                except (OSError, ViewfsError):
                    continue


def find_session(name: str | None) -> Session:
    """The session called `name`, or else the one whose view this process lives in.

    Raises `NotFoundError`.
    """
    if name is not None:
        for directory in RuntimeDirectory.existing():
            with directory:
                try:
                    return Session.connect(directory, name)
                except OSError:
                    continue
        if (session := _session_of_view()) is not None:
            if session.name == name:
                return session
            session.close()
        raise NotFoundError(f"no session is called {name}", remedy="`viewfs ps` lists them")
    hint = os.environ.get(SESSION_VARIABLE)
    if hint is not None:
        try:
            session = find_session(hint)
        except ViewfsError:
            pass
        else:
            if session.is_view_of_caller():
                return session
            session.close()
    for session in sessions():
        if session.is_view_of_caller():
            return session
        session.close()
    if (session := _session_of_view()) is not None:
        return session
    raise NotFoundError("this is not inside a view", remedy="start one with `viewfs shell`, or name one with --session")


def _session_of_view() -> Session | None:
    """The session whose view this process lives in; found even if the view has covered the runtime directory."""
    try:
        return Session.of_view()
    except (OSError, ViewfsError):
        return None
