"""The process that the user starts: it opens a session, runs the command in it, and stays until all of it has ended.

It is the command's parent, in the same process group and terminal session, so job control, Ctrl-C and the exit status
are the kernel's doing. It waits for signals and nothing else: the ends of its three children come as SIGCHLD.
"""

from __future__ import annotations

import os
import select
import time

from viewfs.errors import ViewfsError
from viewfs.linux.namespaces import namespace_id
from viewfs.linux.plain import signal, socket
from viewfs.linux.process import how_it_ended, pidfd_is_dead, pidfd_open, pidfd_send_signal
from viewfs.namespaces.enter import Asking, Namespaces
from viewfs.namespaces.members import wait_for_ends
from viewfs.session.ending import end_session
from viewfs.session.front.entering import start_command
from viewfs.session.front.signals import FROM_TERMINAL, WAITED_FOR, next_signal
from viewfs.session.handles import SessionHandles
from viewfs.session.supervisor.standby import standby_main
from viewfs.session.wire.channel import Channel, socket_pair
from viewfs.session.wire.protocol import result_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from viewfs.session.front.claiming import Claimed
    from viewfs.session.front.making import Making
    from viewfs.session.plans import AgentPlan, InitialChange, SessionPlan

__all__ = ["Front"]

_END_SECONDS = 30.0
_BLAME_SECONDS = 0.3


class Front:
    """The session's first process, once it has its name."""

    def __init__(self, plan: SessionPlan, warn: Callable[[str], None], claimed: Claimed, making: Making | None) -> None:
        """`making`: the command, if it makes its view itself."""
        self._plan = plan
        self._warn = warn
        self._making = making
        self._runtime, self._listener, self.name = claimed.runtime, claimed.listener, claimed.name
        self._layers = claimed.layers
        self._calls_sender, self._calls_receiver = claimed.calls_sender, claimed.calls_receiver
        self._covers = plan.covers
        self._to_standby: Channel
        #: The channel from the agent, if that makes the view.
        self._ready: Channel | None = None
        self._namespaces: Namespaces | None = None
        self._processes: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._kept = False
        #: What the stand-by has said: that nothing is left of the session, and which part of it was lost.
        self._is_empty = False
        self._lost_part: str | None = None
        self._is_told = True
        #: How many of the first changes have been made, and why the next one has failed.
        self._made: int | None = None
        self._failure: dict[str, Any] | None = None
        #: The user has been told why the session ended.
        self._has_told = False

    def open(self) -> None:
        """Have the view made, and fork the stand-by that owns it."""
        self._to_standby, front_end = map(Channel, socket_pair())
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        if self._making is None:
            handles = self._have_agent_make_it(log_write)
        else:
            self._processes["command"] = self._making.pid
            handles = {"link": None, "log_writer": log_write}
        standby = os.fork()
        if standby == 0:
            standby_main(
                SessionHandles(
                    name=self.name,
                    layers=self._layers,
                    plan=self._view_plan(),
                    command=list(self._plan.command),
                    history=self._plan.history,
                    first=[change.arguments for change in self._plan.first],
                    formats={change.likely_format for change in self._plan.first},
                    listener=self._listener,
                    front=front_end,
                    log_fd=log_read,
                    runtime=self._runtime,
                    calls_sender=self._calls_sender,
                    calls_receiver=self._calls_receiver,
                    **handles,
                )
            )
        self._processes["standby"] = standby
        if handles["link"] is not None:
            handles["link"].close()
        front_end.close()
        self._listener.close()
        os.close(log_read)
        os.close(log_write)
        if self._calls_receiver is not None:
            os.close(self._calls_receiver)
        if self._making is not None:
            self._namespaces = Namespaces(self._making.namespaces(), self._asking())
            self._to_standby.send({"kinds": list(self._namespaces.fds)}, list(self._namespaces.fds.values()))
        elif self._ready is not None:
            self._await_agent(self._ready)

    def _have_agent_make_it(self, log_write: int) -> dict[str, Any]:
        """Fork an agent that makes the view, because something has to be done in it before the command is there."""
        agent_end, standby_end = map(Channel, socket_pair())
        self._ready, ready_end = map(Channel, socket_pair())
        agent = os.fork()
        if agent == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED_FOR)
            from viewfs.session.agent.agent import agent_main

            agent_main(
                self._view_plan(),
                agent_end,
                ready_end,
                log_write,
                self._runtime,
                self.name,
                self._layers,
                self._calls_sender,
            )
        self._processes["agent"] = agent
        agent_end.close()
        ready_end.close()
        return {"link": standby_end, "agent_process": agent}

    def _await_agent(self, ready: Channel) -> None:
        received = ready.receive()
        ready.close()
        if received is None:
            raise ViewfsError("the agent ended before the view was there", remedy="`viewfs doctor` tries each step")
        view = result_of(received[0])
        for message in view["messages"]:
            self._warn(message)
        self._namespaces = Namespaces(dict(zip(view["kinds"], received[1], strict=True)), self._asking())

    def _asking(self) -> Asking | None:
        sender = self._calls_sender
        return None if sender is None else Asking(sender, self._plan.view.families)

    def _view_plan(self) -> AgentPlan:
        paths = [str(change.arguments["path"]) for change in self._covers]
        covers = tuple(
            self._layers.request(
                path,
                [],
                os.getcwd(),
                locked=number > 0,
                exclude=self._plan.exclude,
                include=self._plan.include,
            )
            for number, path in enumerate(paths)
        )
        return self._plan.view.with_covers(covers)

    def run(self) -> int:
        self._make_changes()
        if self._making is not None:
            command = self._making.pid
            self._making.let_go()
        else:
            assert self._namespaces is not None
            environment = self._plan.environment_in(self.name, self._runtime.path)
            command = start_command(
                self._namespaces, list(self._plan.command), environment, as_root=self._plan.view.as_root
            )
            self._processes["command"] = command
        status = self._wait(command)
        if self._plan.keep and self._lost() is None and "standby" not in self._ended:
            self._to_standby.send({"keep": True})
            self._kept = True
        return status

    def _make_changes(self) -> None:
        changes = self._plan.changes[len(self._covers) :]
        if not changes:
            return
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_TERMINAL)  # the user can give up a mount that takes long
        try:
            self._request(changes[self._first_made() :])
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, FROM_TERMINAL)

    def _first_made(self) -> int:
        """How many changes have been made without a supervisor. Raises the `ViewfsError` that ended this."""
        if not self._plan.first:
            return 0
        while self._made is None and self._is_told:
            self._hear(None)
        if self._failure is not None:
            raise ViewfsError.from_json(self._failure)
        return self._made or 0

    def _request(self, changes: Sequence[InitialChange]) -> None:
        """Have the supervisor make these."""
        if not changes:
            return
        from viewfs.session.client import Session

        session = Session.connect(self._runtime, self.name)
        try:
            for change in changes:
                arguments = change.arguments
                if change.request == "cow":
                    arguments = arguments | {"exclude": self._plan.exclude, "include": self._plan.include}
                for message in session.request(change.request, **arguments).get("messages", ()):
                    self._warn(message)
        finally:
            session.close()

    def _wait(self, command: int) -> int:
        """Wait until the command has ended, or the stand-by or the agent has failed. Returns the exit code."""
        while "command" not in self._ended:
            if next_signal(command) == signal.SIGCHLD:
                self._reap()
            if (lost := self._lost()) is not None:
                return lost
        code = self._ended["command"]
        # If the session killed it because it lost a part of itself, that is what the user has to be told.
        if (code < 0 or code > 128) and (lost := self.lost_soon(_BLAME_SECONDS)) is not None:
            return lost
        return code if code >= 0 else 128 - code

    def lost_soon(self, seconds: float) -> int | None:
        """The exit code if the stand-by or the agent has failed, or fails within `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            self._reap()
            if (lost := self._lost()) is not None:
                return lost
            if (left := deadline - time.monotonic()) <= 0:
                return None
            if not self._is_told:  # the stand-by has closed the channel, and is about to end
                time.sleep(min(left, 0.01))
            self._hear(left)

    @property
    def has_ended(self) -> bool:
        """Has the stand-by ended the session?"""
        return "standby" in self._ended or not self._is_told

    def _lost(self) -> int | None:
        """The exit code if the stand-by or the agent has failed."""
        self._hear(0)
        lost = self._lost_part
        for name in ("standby", "agent"):
            if self._ended.get(name, 0) != 0:
                lost = lost or f"its {name} {how_it_ended(self._ended[name])}"
        if lost is None:
            return None
        if not self._has_told:
            self._has_told = True
            self._warn(f"the session ended: {lost}")
        return 1

    def _hear(self, seconds: float | None) -> None:
        """Take what the stand-by has said; if it has said nothing, wait for at most `seconds` (None: until it does)."""
        poll = select.poll()
        poll.register(self._to_standby.fileno(), select.POLLIN)
        while self._is_told and (self._to_standby.has_more or poll.poll(None if seconds is None else seconds * 1000)):
            received = self._to_standby.receive()
            self._is_told = received is not None
            if received is None:
                return
            said, seconds = received[0], 0
            self._is_empty |= "empty" in said
            if self._made is None and "mounted" in said:
                self._made, self._failure = said["mounted"], said.get("error")
            self._lost_part = self._lost_part or said.get("lost")
            if "reason" in said:
                self._warn(f"the session ended: {said['reason']}")
                self._lost_part, self._has_told = said["reason"], True
            for path in said.get("discarding", ()):
                self._warn(f"what was changed in {path} is discarded with the view (to keep it: --name)")

    def _reap(self) -> None:
        """Note which children have ended. If the command has stopped, stop too, for whoever waits for this process."""
        for name, pid in self._processes.items():
            if name in self._ended:
                continue
            done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if not done:
                continue
            if os.WIFSTOPPED(status):
                if name == "command":
                    os.kill(os.getpid(), signal.SIGSTOP)
            else:
                self._ended[name] = os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the session, whatever is left of it, unless it was kept."""
        if self._kept:
            self._to_standby.close()
            return
        if self._making is not None:
            self._making.give_up()
        try:
            self._to_standby.send({"end": True})
            # A supervisor may be killed when it has read the message; the next one still sees the end of the stream.
            self._to_standby.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        if "standby" in self._processes:
            self._await_standby()
        if self._namespaces is not None and not self._is_empty:
            left = end_session(namespace_id(self._namespaces.fds["user"]), grace_seconds=0)
            if left:
                self._warn(f"{left} processes of the session could not be ended")
        if self._namespaces is not None:
            self._namespaces.close()
        for name, pid in self._processes.items():
            if name not in self._ended:
                self._end_child(pid)
        if self._covers or not self._is_empty:
            self._layers.end()  # usually the supervisor has done it
        self._layers.sweep()
        if self._has_told:  # nothing may be left of a session inside this one that would do it
            self._runtime.sweep()
        self._runtime.remove(self.name)
        self._runtime.close()

    def _end_child(self, pid: int) -> None:
        """Wait for a child that is about to end. If it does not, because somebody has stopped it, kill it."""
        pidfd = pidfd_open(pid)
        wait_for_ends([pidfd], _END_SECONDS)
        pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(pid, 0)

    def _await_standby(self) -> None:
        """Wait for the stand-by to end the session in good order. If it takes too long it is killed."""
        if "standby" not in self._ended:
            pid = self._processes["standby"]
            pidfd = pidfd_open(pid)
            wait_for_ends([pidfd], _END_SECONDS)
            if not pidfd_is_dead(pidfd):
                self._warn("the stand-by does not end; it is killed")
                pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            _pid, status = os.waitpid(pid, 0)
            self._ended["standby"] = os.waitstatus_to_exitcode(status)
        self._hear(0)
