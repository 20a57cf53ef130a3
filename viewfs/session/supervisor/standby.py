"""The stand-by of a session: it starts the supervisor when there is something to do, and another where one dies.

It does nothing but poll(2), so that a view in which nobody asks for anything costs little. When somebody connects it
forks the supervisor, and keeps the state that would be lost with that process (`deposit`). A supervisor that has
nothing to watch any more ends, and another is forked when somebody connects again. A supervisor that was killed is
replaced at once, and its successor finds the session as it was. The stand-by has no successor: when it is killed, the
session ends.
"""

from __future__ import annotations

import os
import select
import time

from viewfs.linux.namespaces import namespace_id
from viewfs.linux.plain import signal
from viewfs.linux.process import (
    how_it_ended,
    keep_only,
    pidfd_is_dead,
    pidfd_send_signal,
    raise_descriptor_limit,
    set_name,
)
from viewfs.namespaces.members import members_of, wait_for_exits
from viewfs.python import complete, print_traceback
from viewfs.session.calls.keeper import Keeper
from viewfs.session.ending import end_session
from viewfs.session.handles import DEBUG_VARIABLE, RETIRED, TheView
from viewfs.session.patience import Patience
from viewfs.session.runtime import listen_in_view
from viewfs.session.supervisor.children import become_mounter, become_supervisor, fork, fork_agent, fork_notifier
from viewfs.session.supervisor.host_root import RootNames
from viewfs.session.wire.channel import Channel, socket_pair
from viewfs.session.wire.protocol import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, NoReturn

    from viewfs.linux.plain import socket
    from viewfs.session.covers import CoverReport
    from viewfs.session.handles import SessionHandles
    from viewfs.session.supervisor.deposit import Deposit
    from viewfs.session.wire.protocol import Message

__all__ = ["standby_main"]

#: A tenth of the seconds for which supervisors may end without having done anything.
_DEADLINE_SECONDS = 3.0
#: So many supervisors may fail by themselves, one after the other.
_FAILURES = 5
#: Seconds for which an agent is waited for that has nothing to do but end.
_AGENT_SECONDS = 5.0
#: After this time a view is taken for one that lasts, and begins to follow the host's root.
_SHORT_SECONDS = 0.3


def standby_main(handles: SessionHandles) -> NoReturn:
    """Own the session until it ends. Never returns."""
    status = 1
    try:
        # In a process group of its own, for the terminal's signals are for the command; but in the same terminal
        # session, for the agent that this process forks starts commands that have the terminal.
        os.setpgid(0, 0)
        keep_only(
            handles.listener.fileno(),
            *(() if handles.link is None else (handles.link.fileno(),)),
            *(() if handles.log_writer is None else (handles.log_writer,)),
            handles.front.fileno(),
            handles.log_fd,
            handles.runtime.fd,
            handles.runtime.parent,
            *(fd for fd in (handles.calls_sender, handles.calls_receiver) if fd is not None),
        )
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for stream in (0, 1) if os.environ.get(DEBUG_VARIABLE) else (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.chdir("/")
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        told_to_end = _hear_term()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the front waits for signals that are blocked
        set_name("viewfs-standby")
        agent = None
        if handles.first:
            if handles.link is None:
                agent = fork_agent(handles)  # both import what they need while somebody else makes the view
            import viewfs.session.supervisor.first_mounts  # noqa: F401
        view = _made_view(handles)
        if view is not None:
            handles.inside = listen_in_view(namespace_id(view.namespaces["user"]))
            status = _StandBy(handles, view, told_to_end, agent).run()
        elif handles.plan.covers:  # there is no view; the front says why
            handles.layers.end()
    except BaseException:
        print_traceback()
    finally:
        try:
            handles.runtime.remove(handles.name)
        except OSError:
            pass
        os._exit(status)


def _hear_term() -> int:
    """A pipe that is readable when SIGTERM has come: from an administrator, or from the end of a session that this one
    lives in."""
    told_to_end, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    return told_to_end


def _made_view(handles: SessionHandles) -> TheView | None:
    """The view, made by the agent, or by the command as the front then reports; None if that has failed."""
    if handles.agent_process is None or handles.link is None:
        received = handles.front.receive()
        if received is None or "kinds" not in received[0]:
            return None
        return TheView(dict(zip(received[0]["kinds"], received[1], strict=True)), [], [], set())
    try:
        handles.link.send({"op": "begin"})  # from now on this process takes away what the agent makes
    except OSError:
        return None
    received = handles.link.receive()
    if received is None or "ok" not in received[0]:
        return None
    return TheView.of_greeting(received[0]["ok"], received[1], handles.agent_process)


class _StandBy:
    def __init__(
        self, handles: SessionHandles, view: TheView, told_to_end: int, agent: tuple[int, Channel] | None
    ) -> None:
        """`told_to_end`: see `_hear_term`. `agent` has been forked already (`fork_agent`), and waits for the view."""
        self._handles = handles
        self._view = view
        self._calls = Keeper(handles.calls_receiver, handles.plan.families, handles.log_fd, fork_notifier)
        self._early_agent = agent
        #: None until there has been a supervisor.
        self._deposit: Deposit | None = None
        self._root = RootNames()
        #: Pid of the agent, if this process has forked it.
        self._agent: int | None = None
        #: There are servers that no supervisor has ever watched.
        self._is_unwatched = False
        #: The session is ending, and its supervisor sees to it.
        self._has_let_go = False
        self._told_to_end = told_to_end
        #: A change is half here that changes who answers system calls.
        self._owners_changed = False

    def run(self) -> int:
        """Run until the session has ended. Returns the exit status."""
        patience, status, failed = Patience(_DEADLINE_SECONDS), RETIRED, 0
        if self._handles.first:
            status = self._make_first_mounts()
        while not (status == RETIRED and self._has_ended_unseen()):
            patience.begin(time.monotonic())
            try:
                status = self._supervise()
            except OSError:  # too few descriptors, or processes
                status = 1
            if status == 0:
                self._calls.end()
                return 0
            if status != RETIRED:
                if any(map(pidfd_is_dead, self._view.agents)):
                    break  # without the agent no supervisor can do anything
                # A supervisor that has failed by itself will fail again, whatever it has deposited before: there may be
                # too few descriptors for it, say.
                failed = failed + 1 if status > 0 else 0
                counted = self._deposit.changes if status < 0 and self._deposit is not None else 0
                seconds = patience.seconds(time.monotonic(), counted)
                how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
                if self._has_let_go or seconds is None or failed == _FAILURES:
                    self._tell(f"its supervisors ended, one after the other ({how})")
                    break
                now = time.strftime("%H:%M:%S")
                if self._deposit is not None:
                    self._deposit.log.append(f"{now} the supervisor ended ({how}); another goes on")
                self._pause(seconds)
        self._end()
        self._calls.end()
        if self._agent is not None:
            os.waitpid(self._agent, os.WNOHANG)  # whoever adopts it may never ask after it
        return 0

    def _make_first_mounts(self) -> int:
        """Make the mounts that the view begins with, in a process of its own: its exit status, as of a supervisor."""
        status = self._supervise(first=True)
        assert self._deposit is not None
        names = [name.partition(" ") for name in self._deposit.rows]
        if status != RETIRED:
            self._send_to_front({"mounted": sum(kind == "mount" for kind, _blank, _epoch in names)})
        self._is_unwatched = bool(self._deposit.servers)
        return status

    def _pause(self, seconds: float) -> None:
        """Wait until another supervisor is to be tried, or the session is to end."""
        front = None if self._handles.kept else self._handles.front
        self._readable([self._told_to_end, self._handles.link, front], seconds)

    def _readable(self, ends: Iterable[int | Channel | socket.socket | None], seconds: float | None = None) -> set[int]:
        """Wait until some of these can be read, and return which; none after that time. Calls of the view are seen to
        meanwhile."""
        deadline = None if seconds is None else time.monotonic() + seconds
        fds = {end if isinstance(end, int) else end.fileno() for end in ends if end is not None}
        while True:
            poll = select.poll()
            for fd in fds:
                poll.register(fd, select.POLLIN)
            for fd, events in self._calls.wanted():
                poll.register(fd, events)
            left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
            happened = dict(poll.poll(left))
            readable = fds & happened.keys()
            self._calls.heed(happened)
            if readable or (deadline is not None and time.monotonic() >= deadline):
                return readable

    def _tell(self, reason: str) -> None:
        """Have the process that the user started say why the session ends."""
        self._send_to_front({"reason": reason})

    def _send_to_front(self, message: Message) -> None:
        try:
            self._handles.front.send(message)
        except OSError:
            pass  # it is gone

    def _has_ended_unseen(self) -> bool:
        """Wait until there is something to do for a supervisor. True: the session is to end, and has never had one."""
        self._handles.told_to_end = self._handles.told_to_end or not self._wait()
        has_none = self._deposit is None or not self._deposit.rows or self._is_unwatched
        return self._handles.told_to_end and has_none

    def _wait(self) -> bool:
        """Wait until a supervisor is needed; False: the session is to end."""
        handles = self._handles
        while True:
            front = None if handles.kept else handles.front
            ends = (handles.listener, handles.inside, handles.link, front)
            others = (handles.log_fd, self._told_to_end, self._root.changes)
            events = self._readable((*ends, *others), None if self._root.is_watched else _SHORT_SECONDS)
            if not events:
                self._root.watch()
                if self._root.missed or self._is_unwatched:
                    return True
                continue
            if self._told_to_end in events:
                return False
            if handles.link is not None and handles.link.fileno() in events:
                self._tell_of_agent()
                return False  # the agent says nothing here, so that this is its end
            if handles.front.fileno() not in events:
                return True
            told = None if handles.front.is_at_end else handles.front.receive()
            if told is None or not told[0].get("keep"):
                return False
            handles.kept = True

    def _supervise(self, *, first: bool = False) -> int:
        """Fork a supervisor, or what makes the `first` mounts, and wait until it ends. Returns its exit status, or
        minus the signal that killed it."""
        if not first:
            self._is_unwatched = False
            self._root.watch()
        link = self._handles.link or self._have_an_agent()
        if self._deposit is None:
            from viewfs.session.supervisor.deposit import Deposit  # not needed by a view that nobody asks anything

            self._deposit = Deposit()
        raise_descriptor_limit()  # of this process; what the agent starts has the user's
        ours, theirs = map(Channel, socket_pair())
        agents, supervisors = socket_pair()
        try:
            link.send({"op": "link"}, [agents.fileno()])
        except OSError:
            pass  # its end is seen by the supervisor
        agents.close()
        pid = fork()
        if pid == 0:
            ours.close()
            link.close()
            self._calls.leave()
            self._handles.link = Channel(supervisors)
            if first:
                become_mounter(self._handles, self._view, theirs)
            become_supervisor(self._handles, self._view, self._deposit, theirs, self._root)
        theirs.close()
        supervisors.close()
        pidfd = os.pidfd_open(pid)
        try:
            self._listen(self._deposit, ours, pidfd)
        finally:
            ours.close()
            os.close(pidfd)
            self._root.missed.clear()
            self._deposit.forget_part()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _have_an_agent(self) -> Channel:
        """Fork an agent that joins the view, which the command has made itself."""
        pid, link = self._early_agent or fork_agent(self._handles)
        self._early_agent = None
        namespaces = self._view.namespaces
        try:
            link.send({"kinds": list(namespaces)}, list(namespaces.values()))
        except OSError:
            pass  # its end is seen by whoever asks it for something
        self._handles.link = link
        self._agent = pid
        self._view.agents.append(os.pidfd_open(pid))
        self._view.own.add(pid)
        return link

    def _tell_of_agent(self) -> None:
        """Have the front say how the agent has ended, if this process has forked it and it was not told to."""
        if self._agent is None:
            return
        _pid, status = os.waitpid(self._agent, 0)
        self._agent = None
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            self._send_to_front({"lost": f"its agent {how_it_ended(code)}"})

    def _listen(self, deposit: Deposit, channel: Channel, supervisor: int) -> None:
        """Take what the supervisor deposits, until it has ended."""
        said: Channel | None = channel
        agents = list(self._view.agents) if self._agent is not None else []
        while True:
            events = self._readable([said, supervisor, self._told_to_end, *agents])
            for pidfd in events.intersection(agents):
                self._tell_of_agent()
                agents.remove(pidfd)
            if self._told_to_end in events:
                os.read(self._told_to_end, 4096)
                self._handles.told_to_end = True  # even if this supervisor is killed
                pidfd_send_signal(supervisor, signal.SIGTERM)
            if said is not None and said.fileno() in events:
                try:
                    while (received := channel.receive()) is not None:
                        self._take(deposit, channel, *received)
                        if not channel.has_more:
                            break
                except (ProtocolError, OSError):
                    received = None
                    pidfd_send_signal(supervisor, signal.SIGKILL)
                if received is None:
                    said = None
            elif supervisor in events:
                return

    def _take(self, deposit: Deposit, channel: Channel, message: dict[str, Any], fds: list[int]) -> None:
        if message.get("let_go"):
            self._let_go()
            channel.send({"let_go": True})
            return
        deposit.take(message, fds)
        if message.get("sync"):  # whoever waits for this knows that the notifier has been told
            channel.send({"sync": True})
        elif _changes_owners(message) or (self._owners_changed and not message.get("more")):
            self._owners_changed = bool(message.get("more"))
            if not self._owners_changed:
                self._calls.set_owners(_owners_in(deposit))
        if self._view.covers and deposit.rows:
            self._view.forget_covers()  # the deposit has them now

    def _let_go(self) -> None:
        """Keep nothing open of the session."""
        self._has_let_go = True
        if self._deposit is not None:
            self._deposit.close()
        self._view.forget_covers()
        if self._handles.link is not None:
            self._handles.link.close()

    def _end_of_nothing(self) -> bool:
        """End the session if nothing lives in it but the agent, and nobody has ever been let in: True if so."""
        members = members_of(namespace_id(self._view.namespaces["user"]), spare=self._view.own)
        for pidfd in members.values():
            os.close(pidfd)
        if members:
            return False
        try:
            if self._handles.link is not None:
                self._handles.link.send({"op": "alone"})
        except OSError:
            return False
        self._let_go()
        wait_for_exits(self._view.agents, _AGENT_SECONDS)
        if not all(map(pidfd_is_dead, self._view.agents)):
            return False
        self._send_to_front({"empty": True})
        return True

    def _end(self) -> None:
        """End the session, which has never had a supervisor, or has none that lives."""
        if self._deposit is None and not self._view.covers and self._end_of_nothing():
            return
        layers, covers, deposit = self._handles.layers, self._view.covers, self._deposit
        servers = deposit.servers if deposit is not None else set()
        spare = self._view.own.union(*(report.take_servers() for report in covers), servers)
        changed = list(_changed(covers)) if covers and not layers.is_kept else None
        lock = next((os.dup(report.fds["lock"]) for report in covers if "lock" in report.fds), None)
        left = end_session(
            namespace_id(self._view.namespaces["user"]), spare=spare, release=self._let_go, agents=self._view.agents
        )
        if changed is not None:
            self._send_to_front({"discarding": changed})
        if covers or deposit is not None:
            layers.end(lock)
        layers.sweep()
        if not left:
            self._send_to_front({"empty": True})


#: How rows of the deposit are called that are of modules which answer system calls.
_OWNER = "calls "


def _changes_owners(message: Message) -> bool:
    """Does a message of a supervisor change which modules answer system calls?"""
    names = [*(row[0] for row in message.get("put", ())), *message.get("drop", ())]
    return any(name.startswith(_OWNER) for name in names)


def _owners_in(deposit: Deposit) -> dict[int, tuple[int, dict[str, Any]]]:
    """The modules that answer system calls: epoch → socket to its server, and what the notifier is told of it."""
    return {
        int(name.removeprefix(_OWNER)): (row.fds[0], row.value)
        for name, row in deposit.rows.items()
        if name.startswith(_OWNER)
    }


def _changed(covers: list[CoverReport]) -> Iterator[str]:
    """The paths of layers with changes; the front names them if they are discarded with the session."""
    complete()
    from viewfs.cow.layer.layers import has_changes

    for report in covers:
        for row, _lower, layer, _view in report.layers():
            if has_changes(layer):
                yield row["path"]
