"""The supervisor's side of the link to the agent: requests and their replies, workers, and the ends of children."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio

from viewfs.errors import ViewfsError
from viewfs.linux.process import pid_of, pidfd_send_signal
from viewfs.session.wire.async_channel import AsyncChannel
from viewfs.session.wire.inbox import result_with
from viewfs.session.wire.protocol import Message
from viewfs.session.wire.reports import Decided, Found

__all__ = ["AgentLink", "Child", "WorkerProcess"]


#: Seconds in which the agent, which waits for nothing, has to answer.
_ANSWER_SECONDS = 20.0
#: Seconds that a worker may take to undo what it has begun.
_UNDO_SECONDS = 5.0


class Child:
    """A process that the agent started. `status` is None until it has ended, then as `os.waitstatus_to_exitcode`."""

    def __init__(self, number: int, pidfd: int | None, *, is_waited_for: bool = False) -> None:
        """`number`: the agent's number for it. The child owns `pidfd`, which is closed when it has ended; if a client
        waits for it (`is_waited_for`), by that client's task. None: it has ended, and `end` is called at once."""
        self.number = number
        self.pidfd = pidfd
        self._keeps_pidfd = is_waited_for
        #: As the supervisor sees it, for people to read.
        self.pid = -1 if pidfd is None else pid_of(pidfd)
        self.status: int | None = None
        self.ended = trio.Event()
        self._to_be_told: list[Callable[[], None]] = []

    def end(self, status: int) -> None:
        """Record that it has ended, and tell whoever waits for that."""
        self.status = status
        if not self._keeps_pidfd and self.pidfd is not None:
            os.close(self.pidfd)
        self.ended.set()
        for tell in self._to_be_told:
            tell()

    @contextmanager
    def when_ended(self, tell: Callable[[], None]) -> Iterator[None]:
        """While in the block: call `tell` when the child ends, or at once if it has ended already."""
        self._to_be_told.append(tell)
        try:
            if self.status is not None:
                tell()
            yield
        finally:
            self._to_be_told.remove(tell)

    @property
    def how_it_ended(self) -> str:
        """For people to read."""
        if self.status is None:
            return "it does not say how"
        return f"killed by {signal.Signals(-self.status).name}" if self.status < 0 else f"exit status {self.status}"

    def kill(self) -> None:
        if self.status is None and self.pidfd is not None:
            pidfd_send_signal(self.pidfd, signal.SIGKILL)


class WorkerProcess:
    """A worker and the conversation with it."""

    def __init__(self, child: Child, channel: AsyncChannel) -> None:
        self.child = child
        self.channel = channel

    async def answer(self, doing: str) -> tuple[dict[str, Any], list[int]]:
        """What it reports next. Raises the `ViewfsError` that it reports, and one if it ends instead."""
        received = await self.channel.receive()
        if received is None:
            with trio.move_on_after(5):
                await self.child.ended.wait()
            raise ViewfsError(f"{doing}: the worker ended ({self.child.how_it_ended})", remedy="see `viewfs log`")
        message, fds = received
        return result_with(message, fds)

    async def found(self, doing: str, decided: Decided) -> Found:
        """The second report of a server, which is shut in, and may have been taken over by its source since. Raises as
        `answer` does, and `ViewfsError` for what is no such report."""
        value, fds = await self.answer(doing)
        for fd in fds:
            os.close(fd)
        if fds:
            raise ViewfsError(f"{doing}: the server sends descriptors, which nobody asked for")
        try:
            return Found.from_json(value, has_devices=decided.has_devices)
        except ViewfsError as error:
            raise ViewfsError(f"{doing}: {error.message}") from None


class AgentLink:
    """Requests to the agent. `run` must be running."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = AsyncChannel(sock)
        self._next_id = 0
        self._replies: dict[int, tuple[Message, list[int]]] = {}
        self._waiting: dict[int, trio.Event] = {}
        #: The agent's number → child.
        self._children: dict[int, Child] = {}
        self._is_gone = False
        self._ended_early: dict[int, int] = {}

    async def run(self) -> None:
        """Pass on what the agent says, until it is gone; then whoever waits for an answer is told so."""
        try:
            await self._pass_on()
        finally:
            self._is_gone = True
            for event in self._waiting.values():
                event.set()

    async def _pass_on(self) -> None:
        while (received := await self._channel.receive()) is not None:
            message, fds = received
            if "ended" in message:
                self._end(message["ended"], message["status"])
                continue
            event = self._waiting.pop(message.get("id", 0), None)
            if event is None:
                for fd in fds:
                    os.close(fd)
                continue
            self._replies[message["id"]] = (message, fds)
            event.set()

    def _end(self, pid: int, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            self._ended_early[pid] = status
            return
        child.end(status)

    async def call(self, op: str, fds: list[int] | None = None, /, **arguments: Any) -> tuple[Message, list[int]]:
        """Ask the agent, which answers at once: it waits for nothing. Raises the `ViewfsError` that it answers with."""
        self._next_id += 1
        number = self._next_id
        self._waiting[number] = event = trio.Event()
        # (A reply that nobody waits for would lose its descriptors.)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _ANSWER_SECONDS):
            if not self._is_gone:
                try:
                    await self._channel.send({"id": number, "op": op} | arguments, fds)
                    await event.wait()
                except trio.BrokenResourceError:
                    pass
        if number not in self._replies:
            self._waiting.pop(number, None)
            gone = ViewfsError("the session is ending: its agent is gone", remedy="start another")
            raise gone if self._is_gone else ViewfsError("the agent does not answer", remedy="is it stopped?")
        message, received = self._replies.pop(number)
        return result_with(message, received)

    def _adopt(self, pid: int, pidfd: int, *, is_waited_for: bool = False) -> Child:
        child = Child(pid, pidfd, is_waited_for=is_waited_for)
        self._children[pid] = child
        if pid in self._ended_early:
            self._end(pid, self._ended_early.pop(pid))
        return child

    async def children(self) -> dict[int, str]:
        """The agent's number → kind, of all children that have not ended."""
        result, _none = await self.call("children")
        return {int(number): str(kind) for number, kind in result["children"]}

    async def find_child(self, number: int, *, is_waited_for: bool = False) -> Child:
        """A child of which an earlier supervisor knew, by the agent's number for it."""
        result, fds = await self.call("child", pid=number)
        if fds:
            return self._adopt(number, fds[0], is_waited_for=is_waited_for)
        child = Child(number, None)
        child.end(result["status"])
        return child

    @asynccontextmanager
    async def worker(
        self,
        kind: str,
        request: dict[str, Any],
        fds: list[int] | None = None,
        *,
        apart: bool = False,
        undoes: bool = False,
    ) -> AsyncIterator[WorkerProcess]:
        """A worker of that kind. It is killed where the block is left by an exception, and left alone otherwise.

        `apart`: in a pid namespace of its own. `undoes`: when its channel is closed it takes back what it has done, for
        which it has a moment before it is killed.
        """
        result, (channel_fd, pidfd) = await self.call("fork", fds, kind=kind, request=request, apart=apart)
        child = self._adopt(result["pid"], pidfd)
        with AsyncChannel(socket.socket(fileno=channel_fd)) as channel:
            try:
                yield WorkerProcess(child, channel)
            except BaseException:
                if undoes:
                    channel.close()
                    with trio.move_on_after(_UNDO_SECONDS, shield=True):
                        await child.ended.wait()
                child.kill()
                raise

    async def spawn(self, request: dict[str, Any], fds: list[int]) -> Child:
        """A command of a client inside the view, with its standard streams (and a mount namespace) in `fds`."""
        result, (pidfd,) = await self.call("spawn", fds, **request)
        return self._adopt(result["pid"], pidfd, is_waited_for=True)
