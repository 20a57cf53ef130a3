"""FUSE servers that a worker forks: file systems of viewfs's own, over directories that the user has anyway.

The worker stays as their parent, and keeps what another server needs to take over: the descriptor of the mount, the
directories, and the ledger (`mounts.fuse.ledger`). So a server that dies is replaced, and programs notice only a delay.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import select
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from viewfs.linux.namespaces import CloneFlags, unshare
from viewfs.linux.plain import signal
from viewfs.linux.process import die_with_parent, hide_memory, keep_only, pidfd_open, set_name
from viewfs.mounts.attach import create_fuse_mount, open_fuse_device
from viewfs.mounts.fuse.counters import Counters
from viewfs.session.patience import Patience
from viewfs.session.wire.channel import Channel

if TYPE_CHECKING:
    from viewfs.modules.api.lasting import LastingFileSystem

__all__ = ["ForkedServer", "pidfds", "server_names", "stay"]

log = logging.getLogger("viewfs.worker")


class ForkedServer:
    """A mount that is attached nowhere yet, and the process that serves it, or the successor of that."""

    def __init__(
        self,
        make: Callable[..., LastingFileSystem],
        *,
        name: str,
        place: str,
        descriptors: Sequence[int | None],
        root_mode: int,
        source: str,
        subtype: str,
        writable: bool,
    ) -> None:
        """Raises OSError and `MachineError`.

        `make` returns the file system when it is called, in the server, with copies of the `descriptors`. The server is
        called `name`, has no others, and is confined to files that the user has. `place` is what the log calls the
        mount; `source` and `subtype` are what the mount table shows.
        """
        # Imported once, and not by each server; few workers fork servers.
        import viewfs.mounts.fuse.host
        import viewfs.mounts.fuse.once
        import viewfs.namespaces.sandbox  # noqa: F401
        from viewfs.mounts.fuse.ledger import Ledger

        self.name, self.place = name, place
        self._make = make
        self._fuse = open_fuse_device()
        #: The mount, which whoever attaches it closes.
        self.mount = create_fuse_mount(
            self._fuse,
            root_mode=root_mode,
            source=source,
            subtype=subtype,
            writable=writable,
            uid=os.getuid(),
            gid=os.getgid(),
        )
        self._counters = Counters.create()
        self._ledger = Ledger.create()
        self._descriptors = [None if fd is None else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in descriptors]
        self._patience = Patience()
        #: No other server can take over any more.
        self.is_given_up = False
        self.pid = self._start(successor=False)
        # Until `keep`, this process looks at the mount, and could wait for a dead server: the thread prevents that.
        self._is_kept = os.eventfd(0, os.EFD_CLOEXEC)
        apart = threading.Event()
        self._guard = threading.Thread(target=self._give_up_when_dead, args=[pidfd_open(self.pid), apart], daemon=True)
        self._guard.start()
        apart.wait()

    @property
    def fds(self) -> list[int]:
        """The descriptors that a server is to have open."""
        return [self._fuse, self._counters.fd, self._ledger, *(fd for fd in self._descriptors if fd is not None)]

    def _start(self, *, successor: bool) -> int:
        parent = os.getpid()
        self._patience.begin(time.monotonic())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            return pid
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # programs of the view are told to end first
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            die_with_parent(parent)
            set_name(self.name)
            keep_only(*self.fds)
            self._serve(successor=successor)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _serve(self, *, successor: bool) -> None:
        from viewfs.mounts.fuse.host import serve, take_over
        from viewfs.mounts.fuse.ledger import Ledger
        from viewfs.mounts.fuse.once import LastingOperations
        from viewfs.namespaces.sandbox import Confinement, Needs, confine

        # The server has each file open that a program of the view has open.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        confine(Confinement.VIEW, Needs.OWN_FILES)
        if successor:
            take_over(self._fuse)
        file_system = self._make(*self._descriptors)
        serve(file_system, self._fuse, self._counters, LastingOperations(file_system, Ledger(self._ledger)))

    def _give_up_when_dead(self, pidfd: int, apart: threading.Event) -> None:
        try:
            unshare(CloneFlags.FS)  # else no other thread could join a mount namespace (setns(2))
        finally:
            apart.set()
        poll = select.poll()
        for fd in (pidfd, self._is_kept):
            poll.register(fd, select.POLLIN)
        if (pidfd, select.POLLIN) in poll.poll():
            self.give_up()
        os.close(pidfd)

    def keep(self) -> None:
        """From now on the caller looks after the server: `seconds_to_replace`, `replace`, `give_up`."""
        os.eventfd_write(self._is_kept, 1)
        self._guard.join()
        os.close(self._is_kept)

    def seconds_to_replace(self) -> float | None:
        """After its death: how long to wait before `replace`; None: it is not to be replaced."""
        return self._patience.seconds(time.monotonic(), self._counters.snapshot().total)

    def replace(self) -> None:
        """Start another server, which goes on where this one has died."""
        self.pid = self._start(successor=True)

    def end(self) -> None:
        """End a server on which `keep` was not called, for good, and wait until it has ended."""
        self.keep()
        self.give_up()
        os.kill(self.pid, signal.SIGKILL)  # a child that is not reaped yet
        os.waitpid(self.pid, 0)

    def give_up(self) -> None:
        """Close the descriptors: whoever waits for an answer gets an error, and no other server takes over."""
        if not self.is_given_up:
            self.is_given_up = True
            for fd in self.fds:
                os.close(fd)


def server_names(servers: Sequence[ForkedServer]) -> list[str]:
    """The names that the descriptors of `pidfds` have in a report."""
    return [f"server{number}" for number in range(len(servers) + 1)] if servers else []


def pidfds(servers: Sequence[ForkedServer]) -> list[int]:
    """Pidfds of the processes that serve, and of this process, which waits for them."""
    return [pidfd_open(pid) for pid in (*(server.pid for server in servers), os.getpid())] if servers else []


def stay(
    channel: Channel,
    servers: Sequence[ForkedServer],
    watched: Mapping[int, Callable[[], None]] | None = None,
    ends: Collection[int] = (),
    kept: Collection[int] = (),
) -> None:
    """Wait until the descriptors that were sent have been received (they must not be closed here before), and then as
    long as there are servers.

    `watched` says what to do when a descriptor is readable; the descriptors `kept` are needed for that. This process
    also stays as long as one of `ends` is not readable.
    """
    channel.receive()
    watched = watched or {}
    for server in servers:
        server.keep()
    if servers or ends:
        hide_memory()  # from programs of the view, which have the same user
        needed = [fd for server in servers if not server.is_given_up for fd in server.fds]
        keep_only(*{*watched, *ends, *kept, *needed})
        _Keeper(servers, watched, ends).run()


class _Keeper:
    """Waits for servers that die, and replaces them."""

    def __init__(
        self, servers: Sequence[ForkedServer], watched: Mapping[int, Callable[[], None]], ends: Collection[int]
    ) -> None:
        self._watched, self._ends = watched, {*ends}
        self._serving = {pidfd_open(server.pid): server for server in servers}
        #: When a server is to be replaced (monotonic), and which.
        self._waiting: list[tuple[float, ForkedServer]] = []
        self._poll = select.poll()
        for fd in (*watched, *ends, *self._serving):
            self._poll.register(fd, select.POLLIN)
        # With servers this process is among those that are ended last; without them SIGTERM may end it like any other.
        signal.signal(signal.SIGTERM, self._end if servers else signal.SIG_DFL)

    def run(self) -> None:
        try:
            while self._serving or self._waiting or self._ends:
                self._take_turn()
        except _ToldToEndError:
            for _moment, server in self._waiting:
                server.give_up()
            for server in self._serving.values():
                server.give_up()
                os.kill(server.pid, signal.SIGKILL)  # a child that is not reaped yet
            for server in self._serving.values():
                os.waitpid(server.pid, 0)

    def _take_turn(self) -> None:
        now = time.monotonic()
        due = [server for moment, server in self._waiting if moment <= now]
        self._waiting = [(moment, server) for moment, server in self._waiting if moment > now]
        for server in due:
            server.replace()
            self._serving[pidfd := pidfd_open(server.pid)] = server
            self._poll.register(pidfd, select.POLLIN)
            log.warning("another server has taken over %s", server.place)
        first = min((moment for moment, _server in self._waiting), default=None)
        for fd, _event in self._poll.poll(None if first is None else max(0, (first - now) * 1000) + 1):
            if (action := self._watched.get(fd)) is not None:
                action()
                continue
            self._poll.unregister(fd)
            self._ends.discard(fd)
            if fd in self._serving:
                self._has_ended(fd)

    def _has_ended(self, pidfd: int) -> None:
        server = self._serving[pidfd]
        _pid, status = os.waitpid(server.pid, 0)
        del self._serving[pidfd]
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(status)
        if code == 0 or server.is_given_up:
            server.give_up()
            return
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        log.warning("the server of %s ended: %s", server.place, how)
        seconds = server.seconds_to_replace()
        if seconds is None:
            log.error("no other server can take over %s: they end without having answered anything", server.place)
            server.give_up()
            return
        self._waiting.append((time.monotonic() + seconds, server))

    def _end(self, _number: int, _frame: object) -> None:
        raise _ToldToEndError


class _ToldToEndError(BaseException):
    """This process got SIGTERM."""
