"""The supervisor: the trio process outside the view that owns the session. It has no privilege at all.

It answers the control socket, keeps the epochs (`viewfs.session.view`), and ends the session when the command that
it was made for has ended, when it is told to, or when the agent is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import deque

import trio

from viewfs.linux.namespaces import namespace_id
from viewfs.session.agent_link import AgentLink
from viewfs.session.async_channel import AsyncChannel
from viewfs.session.ending import end_session
from viewfs.session.left_layers import raise_descriptor_limit
from viewfs.session.protocol import ProtocolError
from viewfs.session.requests import Connection
from viewfs.session.root_names import follow_root
from viewfs.session.standby import Cover, SessionHandles
from viewfs.session.view import View
from viewfs.session.view_layers import ViewLayers

__all__ = ["Supervisor", "run_supervisor"]

_LOG_LINES = 1000
#: Bytes of a line of the log that are kept.
_LINE_BYTES = 8192
_ACCEPT_AGAIN_SECONDS = 0.2


class Supervisor:
    """One session."""

    def __init__(
        self,
        handles: SessionHandles,
        namespaces: dict[str, int],
        covers: list[Cover],
        agent_pidfd: int,
        own: set[int],
    ) -> None:
        self.handles = handles
        self.name = handles.name
        self.plan = handles.plan
        self.namespaces = namespaces
        self.started_ns = time.time_ns()
        self.command = handles.command
        self.log_lines: deque[str] = deque(maxlen=_LOG_LINES)
        self.own = own
        self._agent_pidfd = agent_pidfd
        self.agent = AgentLink(handles.link.socket)
        layers = ViewLayers(self.agent, handles.layers)
        self.view = View(self.agent, namespaces["mnt"], layers, keep_history=handles.history, log=self.log)
        for report, fds in covers:
            layers.adopt(self.view, report, fds)
        self.ending = trio.Event()
        #: The process that the user started need not be there for the session to go on.
        self.kept = handles.kept
        self.nursery: trio.Nursery

    def log(self, line: str) -> None:
        self.log_lines.append(f"{time.strftime('%H:%M:%S')} {line}")

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            nursery.start_soon(self._watch_for_term)
            nursery.start_soon(self._watch_agent)
            nursery.start_soon(self._watch_front)
            nursery.start_soon(self._read_log)
            nursery.start_soon(follow_root, self.view, self.log)
            await self.view.take_up_states()
            for listener in (self.handles.listener, self.handles.inside):
                if listener is not None:
                    nursery.start_soon(self._accept, trio.socket.from_stdlib_socket(listener))
            await self.ending.wait()
            nursery.cancel_scope.cancel()

    def end(self) -> None:
        """End everything that lives in the session."""
        spare = self.own | self.view.server_pids()
        discarded = self.view.layers.changed_paths()
        end_session(namespace_id(self.namespaces["user"]), spare=spare, release=self._release, agent=self._agent_pidfd)
        if not self.handles.layers.is_kept:
            with contextlib.suppress(OSError):  # the front is gone
                self.handles.front.send({"discarding": discarded})
        self.handles.layers.end(self.view.layers.lock)

    def _release(self) -> None:
        self.view.close()
        self.handles.link.close()

    async def _watch_agent(self) -> None:
        try:
            await self.agent.run()
        finally:
            self.ending.set()

    async def _watch_front(self) -> None:
        channel = AsyncChannel(self.handles.front.socket)
        while (received := await channel.receive()) is not None:
            message = received[0]
            self.kept = self.kept or bool(message.get("keep"))
            if message.get("end"):
                self.ending.set()
        if not self.kept:
            self.ending.set()

    async def _watch_for_term(self) -> None:
        """From an administrator, or from the end of a session that this one lives in."""
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _number in signals:
                self.ending.set()

    async def _read_log(self) -> None:
        rest = b""
        stream = trio.lowlevel.FdStream(self.handles.log_fd)
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LINE_BYTES:
                lines, rest = [*lines, rest], b""  # whoever writes no ends of lines gets them made
            for line in lines:
                self.log(line[:_LINE_BYTES].decode(errors="replace"))

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        while True:
            try:
                connected, _address = await listener.accept()
            except OSError as error:  # out of descriptors, say: others may give some back
                self.log(f"cannot accept a connection: {error}")
                await trio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            plain = socket.socket(fileno=connected.detach())
            self.nursery.start_soon(self._serve_client, plain)

    async def _serve_client(self, plain: socket.socket) -> None:
        with AsyncChannel(plain) as channel:
            if channel.peer_uid() != os.geteuid():
                return  # the directory's mode should have kept them out; not a word
            try:
                await Connection(self, channel).serve()
            except* (trio.BrokenResourceError, ProtocolError):
                pass  # it has gone away, or it does not speak this protocol


def run_supervisor(
    handles: SessionHandles, namespaces: dict[str, int], covers: list[Cover], agent_pidfd: int, own: set[int]
) -> None:
    """Own the session until it ends."""
    raise_descriptor_limit()  # each mount takes some
    supervisor = Supervisor(handles, namespaces, covers, agent_pidfd, own)
    try:
        trio.run(supervisor.run)
    finally:
        supervisor.end()
