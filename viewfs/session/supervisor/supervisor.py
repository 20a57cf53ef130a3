"""The supervisor: the trio process outside the view that owns the session. It has no privilege at all.

It answers the control socket, keeps the epochs (`view`), and ends the session when the command that it was made for
has ended, when it is told to, or when the agent is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from functools import partial

import trio

from viewfs.linux.namespaces import namespace_id
from viewfs.linux.process import raise_descriptor_limit
from viewfs.session.ending import end_session
from viewfs.session.handles import RETIRED, SessionHandles, TheView
from viewfs.session.supervisor.agent_link import AgentLink, Child
from viewfs.session.supervisor.deposit import Deposit, Depositor, Entry, Row
from viewfs.session.supervisor.happenings import Happenings
from viewfs.session.supervisor.history import History
from viewfs.session.supervisor.host_root import RootNames
from viewfs.session.supervisor.requests import Connection
from viewfs.session.supervisor.root_names import follow_root
from viewfs.session.supervisor.servers import Servers
from viewfs.session.supervisor.view import View
from viewfs.session.supervisor.view_layers import ViewLayers
from viewfs.session.wire.async_channel import AsyncChannel
from viewfs.session.wire.channel import Channel
from viewfs.session.wire.protocol import ProtocolError

__all__ = ["Supervisor", "run_supervisor"]

#: A supervisor ends if it has had no client for so long, and has nothing to watch.
_IDLE_SECONDS = 10.0
#: Bytes of a line of the log that are kept.
_LINE_BYTES = 8192
_ACCEPT_AGAIN_SECONDS = 0.2


class Supervisor:
    """One session."""

    def __init__(
        self, handles: SessionHandles, view: TheView, deposit: Deposit, depositor: Depositor, root: RootNames
    ) -> None:
        self.handles = handles
        self.name = handles.name
        self.plan = handles.plan
        self.namespaces = view.namespaces
        self.calls_sender = handles.calls_sender
        self.command = handles.command
        self.log_lines = deposit.log
        self.happenings = Happenings(deposit.happenings, depositor.happening)
        self._deposit = deposit
        self._depositor = depositor
        self._view = view
        assert handles.link is not None
        self.agent = AgentLink(handles.link.socket)
        before = deposit.rows.get("session")
        self.started_ns: int = time.time_ns() if before is None else before.value["started_ns"]
        #: The session goes on without the process that the user started.
        self.kept: bool = handles.kept or (before is not None and before.value["kept"])
        history = History(view.namespaces["mnt"], keeps_all=handles.history, time_ns=self.started_ns)
        layers = ViewLayers(self.agent, handles.layers, history)
        self.servers = Servers(self.agent, history, log=self.log, keep=self.keep, tell=self.happenings.add)
        self.view = View(
            self.agent,
            history,
            layers,
            self.servers,
            log=self.log,
            keep=self.keep,
            sync=depositor.sync,
            families=handles.plan.families if handles.plan.calls else None,
        )
        #: Commands that run for clients.
        self.commands: dict[int, Child] = {}
        self.ending = trio.Event()
        self.nursery: trio.Nursery
        self._clients = 0
        self._last_client = 0.0
        self._root = root
        self._is_retired = False
        #: Connections that are closed when all has ended.
        self._waiting_for_end: list[int] = []

    def log(self, line: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {line}"
        self.log_lines.append(line)
        self._depositor.log(line)

    def keep(self) -> None:
        """Leave with the stand-by what another supervisor would have to know."""
        self._depositor.put(self._entries())
        self.happenings.add_changes(self.view.history.epochs.changes)

    def _entries(self) -> Iterator[Entry]:
        yield from self.view.entries()
        is_ending = self.ending.is_set() and not self._is_retired
        commands = list(self.commands)
        session = {"started_ns": self.started_ns, "kept": self.kept, "commands": commands, "ending": is_ending}
        yield Entry("session", session, partial(Row, session))

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = self.servers.nursery = nursery
            nursery.start_soon(self._watch_for_term)
            nursery.start_soon(self._watch_agent)
            nursery.start_soon(self._watch_standby)
            nursery.start_soon(self._watch_front)
            nursery.start_soon(self._read_log)
            await self._begin()
            nursery.start_soon(follow_root, self.view, self._root, self.log)
            nursery.start_soon(self._retire_when_idle)
            for listener in (self.handles.listener, self.handles.inside):
                if listener is not None:
                    nursery.start_soon(self._accept, trio.socket.from_stdlib_socket(listener))
            await self.ending.wait()
            self.keep()  # a supervisor after this one has to end the session too
            nursery.cancel_scope.cancel()

    async def _begin(self) -> None:
        if self._deposit.rows:
            await self.view.take_up(self._deposit.rows)
            for number in self._deposit.rows["session"].value["commands"]:
                child = self.commands[number] = await self.agent.find_child(number, is_waited_for=True)
                self.nursery.start_soon(self._forget_unless_awaited, child)
        else:
            for report in self._view.covers:
                self.view.layers.adopt(report)
            await self.view.import_before([root for report in self._view.covers for root in report.roots])
            await self.view.take_up_states()
        before = self._deposit.rows.get("session")
        if self.handles.told_to_end or (before is not None and before.value["ending"]):
            self.ending.set()

    def end(self) -> int:
        """End everything that lives in the session, unless it goes on without a supervisor. Returns the exit status."""
        if self._is_retired:
            return RETIRED
        spare = self._view.own | self.view.server_pids()
        discarded = self.view.layers.changed_paths()
        end_session(namespace_id(self.namespaces["user"]), spare=spare, release=self._release, agents=self._view.agents)
        if not self.handles.layers.is_kept:
            with contextlib.suppress(OSError):  # the front is gone
                self.handles.front.send({"discarding": discarded})
        self.handles.layers.end(self.view.layers.lock)
        return 0

    def stays_open(self, channel: AsyncChannel) -> None:
        """Keep the connection open until the session has ended: the client waits for it to be closed."""
        self._waiting_for_end.append(os.dup(channel.fileno()))

    def forget_command(self, child: Child) -> None:
        """Forget a command whose end has been announced."""
        if self.commands.pop(child.number, None) is not None:
            if child.pidfd is not None:
                os.close(child.pidfd)
            self.keep()

    async def _forget_unless_awaited(self, child: Child) -> None:
        """Forget a command of an earlier supervisor some time after its end, if no client has asked for that."""
        await child.ended.wait()
        await trio.sleep(_IDLE_SECONDS)
        self.forget_command(child)

    def _release(self) -> None:
        self._depositor.let_go()
        self.view.close()
        if self.handles.link is not None:
            self.handles.link.close()

    async def _retire_when_idle(self) -> None:
        """End this supervisor when it is idle: a view needs none if no mount has a server that has to be watched."""
        while True:
            await trio.sleep_until(max(self._last_client + _IDLE_SECONDS, trio.current_time() + 1))
            busy = self._clients or self.commands or any(one.server for one in self.view.history.served.values())
            if not busy and trio.current_time() - self._last_client >= _IDLE_SECONDS:
                self.keep()
                self._is_retired = True
                self.ending.set()
                return

    async def _watch_agent(self) -> None:
        try:
            await self.agent.run()
        finally:
            self.ending.set()

    async def _watch_standby(self) -> None:
        """End when the stand-by is gone. It sends nothing by itself, so its channel is readable only then."""
        await trio.lowlevel.wait_readable(self._depositor)
        self.ending.set()

    async def _watch_front(self) -> None:
        channel = AsyncChannel(self.handles.front.socket)
        while (received := await channel.receive()) is not None:
            message = received[0]
            self.kept = self.kept or bool(message.get("keep"))
            self.keep()
            if message.get("end"):
                self.ending.set()
        if not self.kept:
            self.ending.set()

    async def _watch_for_term(self) -> None:
        """End on SIGTERM, which an administrator sends, or the end of a session that this one lives in."""
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _number in signals:
                self.ending.set()

    async def _read_log(self) -> None:
        rest = b""
        stream = trio.lowlevel.FdStream(self.handles.log_fd)
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LINE_BYTES:
                lines, rest = [*lines, rest], b""  # too long without the end of a line: make one
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
        self._clients += 1
        try:
            with AsyncChannel(plain) as channel:
                if channel.peer_uid() != os.geteuid():
                    return  # the directory's mode should have kept them out; not a word
                try:
                    await Connection(self, channel).serve()
                except* (trio.BrokenResourceError, ProtocolError):
                    pass  # it has gone away, or it does not speak this protocol
        finally:
            self._clients -= 1
            self._last_client = trio.current_time()


def run_supervisor(handles: SessionHandles, view: TheView, deposit: Deposit, deposits: Channel, root: RootNames) -> int:
    """Own the session until it ends, or until there is nothing to do: the exit status. `deposit` is what a supervisor
    before this one has left."""
    raise_descriptor_limit()  # each mount takes some
    for channel in (handles.link, handles.front, deposits):
        if channel is not None:
            channel.socket = _as_trio_takes_it(channel.socket)
    handles.listener = _as_trio_takes_it(handles.listener)
    if handles.inside is not None:
        handles.inside = _as_trio_takes_it(handles.inside)
    supervisor = Supervisor(handles, view, deposit, Depositor(deposits.socket, deposit.rows), root)
    try:
        trio.run(supervisor.run)
    except Exception as error:
        supervisor.log("".join(traceback.format_exception(error)).rstrip())
        return 1  # another one may do better
    return supervisor.end()


def _as_trio_takes_it(plain: socket.socket) -> socket.socket:
    """A socket of the class that Python's own module has (see `viewfs.linux.plain`)."""
    return plain if isinstance(plain, socket.socket) else socket.socket(fileno=plain.detach())
