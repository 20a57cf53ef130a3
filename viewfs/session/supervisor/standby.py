"""The stand-by of a session: it starts the supervisor when there is something to do, and another where one dies.

It does nothing but poll(2), so that a view in which nobody asks for anything costs little. When somebody connects it
forks the supervisor, and keeps what that has to lose (`deposit`). A supervisor that has nothing to watch any more ends,
and comes again when it is asked for; one that was killed is replaced at once, and the next finds the session as it was.
The stand-by has no successor: when it is killed, the session ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from viewfs.linux.inotify import watch
from viewfs.linux.namespaces import namespace_id
from viewfs.linux.process import keep_only, pidfd_send_signal, set_name
from viewfs.session.ending import end_session
from viewfs.session.handles import DEBUG_VARIABLE, RETIRED, Cover, SessionHandles, TheView
from viewfs.session.layer_settings import take_servers
from viewfs.session.patience import Patience
from viewfs.session.runtime import listen_in_view
from viewfs.session.supervisor.deposit import Deposit
from viewfs.session.wire.channel import Channel, socket_pair
from viewfs.session.wire.protocol import ProtocolError

__all__ = ["standby_main"]

#: A tenth of the seconds for which supervisors may end without having done anything.
_DEADLINE_SECONDS = 3.0


def standby_main(handles: SessionHandles) -> NoReturn:
    """Own the session until it ends. Never returns."""
    status = 1
    try:
        os.setsid()
        keep_only(
            handles.listener.fileno(),
            handles.link.fileno(),
            handles.front.fileno(),
            handles.log_fd,
            handles.runtime.fd,
            handles.runtime.parent,
        )
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for stream in (0, 1) if os.environ.get(DEBUG_VARIABLE) else (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.chdir("/")
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        set_name("viewfs-standby")
        received = handles.link.receive()
        if received is not None and "ok" in received[0]:
            view = TheView.of_greeting(received[0]["ok"], received[1], handles.agent_process)
            handles.inside = listen_in_view(namespace_id(view.namespaces["user"]))
            status = _StandBy(handles, view).run()
        elif handles.plan.covers:  # there is no view; the front says why
            handles.layers.end()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            handles.runtime.remove(handles.name)
        os._exit(status)


class _StandBy:
    def __init__(self, handles: SessionHandles, view: TheView) -> None:
        self._handles = handles
        self._view = view
        self._deposit = Deposit()
        self._root_changes = _watch_root()
        #: The session is ending, and its supervisor sees to it.
        self._has_let_go = False
        #: From which can be read that SIGTERM came: from an administrator, or from the end of a session that this one
        #: lives in.
        self._told_to_end, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)

    def run(self) -> int:
        """Until the session has ended: the exit status."""
        patience, status = Patience(_DEADLINE_SECONDS), RETIRED
        while not (status == RETIRED and self._has_ended_unseen()):
            patience.begin(time.monotonic())
            status = self._supervise()
            if status == 0:
                return 0
            if status != RETIRED:
                # One that has failed by itself will do so again, whatever it has written down before.
                counted = self._deposit.changes if status < 0 else 0
                seconds = patience.seconds(time.monotonic(), counted)
                how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
                if self._has_let_go or seconds is None:
                    self._tell(f"its supervisors ended, one after the other ({how})")
                    break
                now = time.strftime("%H:%M:%S")
                self._deposit.log.append(f"{now} the supervisor ended ({how}); another goes on")
                self._pause(seconds)
        self._end()
        return 0

    def _pause(self, seconds: float) -> None:
        """Until another supervisor is to be tried, or the session is to end."""
        poll = select.poll()
        poll.register(self._told_to_end, select.POLLIN)
        poll.register(self._handles.link, select.POLLIN)
        if not self._handles.kept:
            poll.register(self._handles.front, select.POLLIN)
        poll.poll(seconds * 1000)

    def _tell(self, reason: str) -> None:
        """Have the process that the user started say why the session ends."""
        with contextlib.suppress(OSError):
            self._handles.front.send({"reason": reason})

    def _has_ended_unseen(self) -> bool:
        """Wait until there is something to do for a supervisor. True: the session is to end, and has never had one."""
        self._handles.told_to_end = not self._wait()
        return self._handles.told_to_end and not self._deposit.rows

    def _wait(self) -> bool:
        """Until somebody asks for something; False: the session is to end."""
        handles = self._handles
        while True:
            poll = select.poll()
            for end in (handles.listener, handles.inside, handles.link, None if handles.kept else handles.front):
                if end is not None:
                    poll.register(end, select.POLLIN)
            for fd in (handles.log_fd, self._told_to_end, self._root_changes):
                if fd is not None:
                    poll.register(fd, select.POLLIN)
            events = {fd for fd, _event in poll.poll()}
            if self._told_to_end in events:
                return False
            if handles.link.fileno() in events:
                return False  # the agent says nothing here, so that this is its end
            if handles.front.fileno() not in events:
                return True
            told = None if handles.front.is_at_end else handles.front.receive()
            if told is None or not told[0].get("keep"):
                return False
            handles.kept = True

    def _supervise(self) -> int:
        """Have a supervisor until it ends: its exit status, or minus the signal that killed it."""
        ours, theirs = map(Channel, socket_pair())
        agents, supervisors = socket_pair()
        with contextlib.suppress(OSError):  # its end is seen by the supervisor
            self._handles.link.send({"op": "link"}, [agents.fileno()])
        agents.close()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._handles.link.close()
            self._become_supervisor(theirs, Channel(supervisors))
        theirs.close()
        supervisors.close()
        pidfd = os.pidfd_open(pid)
        try:
            self._listen(ours, pidfd)
        finally:
            ours.close()
            os.close(pidfd)
            self._deposit.forget_part()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _listen(self, channel: Channel, supervisor: int) -> None:
        """Take what the supervisor deposits, until it has ended."""
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        poll.register(supervisor, select.POLLIN)
        poll.register(self._told_to_end, select.POLLIN)
        while True:
            events = {fd for fd, _event in poll.poll()}
            if self._told_to_end in events:
                os.read(self._told_to_end, 4096)
                pidfd_send_signal(supervisor, signal.SIGTERM)
            if channel.fileno() in events:
                try:
                    while (received := channel.receive()) is not None:
                        self._take(channel, *received)
                        if not channel.has_more:
                            break
                except (ProtocolError, OSError):
                    received = None
                    pidfd_send_signal(supervisor, signal.SIGKILL)
                if received is None:
                    poll.unregister(channel)
            elif supervisor in events:
                return

    def _take(self, channel: Channel, message: dict[str, Any], fds: list[int]) -> None:
        if message.get("let_go"):
            self._let_go()
            channel.send({"let_go": True})
            return
        self._deposit.take(message, fds)
        if self._view.covers and self._deposit.rows:
            self._view.forget_covers()  # they are in it

    def _become_supervisor(self, deposits: Channel, link: Channel) -> NoReturn:
        status = 1
        try:
            set_name("viewfs-supervisor")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until there is an event loop to hear it
            signal.set_wakeup_fd(-1)
            with contextlib.suppress(OSError):
                link.send({"op": "warm"})  # it imports what it needs while this process does
            from viewfs.session.supervisor.supervisor import run_supervisor

            self._handles.link = link
            status = run_supervisor(self._handles, self._view, self._deposit, deposits, self._root_changes)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _let_go(self) -> None:
        """Keep nothing open of the session."""
        self._has_let_go = True
        self._deposit.close()
        self._view.forget_covers()
        self._handles.link.close()

    def _end(self) -> None:
        """End the session: it has never had a supervisor, or there is none that lives."""
        layers, covers = self._handles.layers, self._view.covers
        spare = self._view.own.union(*(take_servers(fds) for _report, fds in covers), self._deposit.servers)
        changed = list(_changed(covers)) if covers and not layers.is_kept else None
        lock = next((os.dup(fds["lock"]) for _report, fds in covers if "lock" in fds), None)
        end_session(
            namespace_id(self._view.namespaces["user"]), spare=spare, release=self._let_go, agents=self._view.agents
        )
        if changed is not None:
            with contextlib.suppress(OSError):
                self._handles.front.send({"discarding": changed})
        if covers or "layers" in self._deposit.rows:
            layers.end(lock)


def _changed(covers: list[Cover]) -> Iterator[str]:
    """What has changes in it; the front tells of it if they go with the session."""
    from viewfs.cow.layer.layers import has_changes

    for report, fds in covers:
        for number, row in enumerate(report["layers"], 1):
            if has_changes(fds[f"layer{number}"]):
                yield row["path"]


def _watch_root() -> int | None:
    """From which can be read what comes to the host's root and goes; None where the kernel doesn't tell."""
    try:
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return watch(root)
        finally:
            os.close(root)
    except OSError:
        return None
