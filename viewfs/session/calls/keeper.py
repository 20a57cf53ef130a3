"""What the stand-by does for system calls: it keeps their listeners, and has a notifier as soon as there is work for
one."""

from __future__ import annotations

import os
import select
import time

from viewfs.linux.numbers import numbers_by_table
from viewfs.linux.plain import signal, socket
from viewfs.linux.process import pidfd_send_signal
from viewfs.linux.scm import descriptors_in, rights, room_for
from viewfs.linux.unotify import Listener, NotifiedCall
from viewfs.namespaces.enter import NO_LIMIT
from viewfs.session.calls.notified import LISTENER, MARKING, MISSING, MOUNTING, RARE, SPECIAL
from viewfs.session.wire import plain_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from viewfs.session.calls.slots import Slots

__all__ = ["Keeper"]

#: So many notifiers may fail; and how often one is tried, and after how long, where there are too few processes, say.
_FAILURES, _TIMES, _AGAIN_SECONDS = 5, 100, 0.05
#: So many calls are let pass without a notifier, which is quicker where more of them come.
_PASSED = 50
#: What /proc says that a listener is.
_LISTENER = "anon_inode:seccomp notify"


class Keeper:
    """Listeners, the modules that answer calls, and the notifier that goes between them."""

    def __init__(
        self,
        receiver: int | None,
        families: Sequence[str],
        log: int,
        fork: Callable[..., int],
    ) -> None:
        """New listeners come over the socket `receiver`; None: there are none. `families` of calls are notified besides
        the rare ones. `log`: a pipe of which the session's log is read. `fork` forks a notifier, as `Notifier` says."""
        self._receiver = None if receiver is None else socket.socket(fileno=receiver)
        self._families = families
        self._log = log
        self._fork = fork
        self._listeners: dict[int, int] = {}
        self._next_number = 1
        #: Listener → the epoch before which a module must have been loaded for its calls to reach it.
        self._limits: dict[int, int] = {}
        #: Listener of a module's server → what that server is known by, until the module's epoch is.
        self._tokens: dict[int, int] = {}
        #: Epoch of a module that answers calls → its socket, which is not ours, and what it is (`owner.Owner`).
        self._owners: dict[int, tuple[int, dict[str, Any]]] = {}
        self._slots: Slots | None = None
        #: Pid, pidfd and channel of the notifier.
        self._notifier: tuple[int, int, socket.socket] | None = None
        #: How many calls were let pass; and what they are called.
        self._passed = 0
        self._names: dict[int, dict[int, str]] | None = None
        #: How many could not be had, or failed by themselves, one after the other.
        self._failures = 0

    def wanted(self) -> Iterator[tuple[int, int]]:
        """Descriptors to poll, and for which events."""
        if self._receiver is not None:
            yield self._receiver.fileno(), select.POLLIN
        if self._notifier is not None:
            yield self._notifier[1], select.POLLIN
        for fd in self._listeners.values():
            yield fd, 0 if self._notifier is not None else select.POLLIN

    def heed(self, events: dict[int, int]) -> None:
        """Do what these events ask for, by descriptor; those of others are left alone."""
        if self._notifier is not None and self._notifier[1] in events:
            self._failures = self._failures + 1 if self._forget_notifier() > 0 else 0
            if self._listeners:
                self._have_notifier()
        for number, fd in list(self._listeners.items()):
            event = events.get(fd, 0)
            if event & select.POLLIN and self._notifier is None:
                if not self._let_pass(number, fd):
                    self._have_notifier()
            elif event & ~select.POLLIN:  # nobody is left who could call
                os.close(self._listeners.pop(number))
                self._limits.pop(number, None)
                self._tokens.pop(number, None)
        if self._receiver is not None and self._receiver.fileno() in events:
            self._take_listener()

    def _let_pass(self, number: int, fd: int) -> bool:
        """Receive a call, and let it pass if nobody would answer it: many programs ask for uname(2) once. False if it
        is for a notifier, which finds it among those in flight."""
        if self._owners or self._passed == _PASSED:
            return False
        self._passed += 1
        slots, listener = self._calls_in_flight(), Listener(fd)
        slot = slots.begin(number)
        if not listener.receive(slots.address(slot)):
            slots.clear(slot)
            return True
        call = NotifiedCall(slots.call(slot))
        if self._is_answered(call):
            return False
        listener.let_pass(call.id)
        slots.clear(slot)
        return True

    def _is_answered(self, call: NotifiedCall) -> bool:
        """Is that a call that a notifier has more to do with than to let it pass?"""
        if self._names is None:
            self._names = numbers_by_table((*RARE, *SPECIAL))
        name = self._names.get(call.architecture, {}).get(call.number)
        return name is None or name in (*MOUNTING, *MISSING, *MARKING)

    def _calls_in_flight(self) -> Slots:
        if self._slots is None:
            from viewfs.session.calls.slots import Slots

            self._slots = Slots()
        return self._slots

    def _take_listener(self) -> None:
        assert self._receiver is not None
        data, ancillary, _flags, _address = self._receiver.recvmsg(LISTENER.size, room_for(1))
        token, limit = LISTENER.unpack(data) if len(data) == LISTENER.size else (0, NO_LIMIT)
        for fd in descriptors_in(ancillary):
            if os.readlink(f"/proc/self/fd/{fd}") != _LISTENER:
                os.close(fd)
                continue
            number, self._next_number = self._next_number, self._next_number + 1
            self._listeners[number] = fd
            if limit != NO_LIMIT:
                self._limits[number] = limit
            if token:
                self._tokens[number] = token
                self._find_limits()
            self._tell({"listener": number, "limit": self._limits.get(number)}, fd)

    def set_owners(self, owners: Mapping[int, tuple[int, dict[str, Any]]]) -> None:
        """From now on these modules answer calls, and no others."""
        before, self._owners = self._owners, dict(owners)
        self._find_limits()
        for epoch in before.keys() - owners.keys():
            self._tell({"gone": epoch})
        for epoch, (fd, value) in sorted(owners.items()):
            if epoch not in before:
                self._tell({"owner": epoch, "value": value}, fd)
            elif before[epoch][1] != value:
                self._tell({"unloaded": epoch, "until": value["until"]})

    def _find_limits(self) -> None:
        """What the server of a module asks for itself is done by the modules before it."""
        epochs = {value["token"]: epoch for epoch, (_fd, value) in self._owners.items()}
        for number, token in list(self._tokens.items()):
            if token in epochs:
                self._limits[number] = epochs[token]
                del self._tokens[number]
                self._tell({"listener": number, "limit": epochs[token]})

    def _tell(self, message: dict[str, Any], fd: int | None = None) -> None:
        if self._notifier is not None:
            data, fds = plain_json.dumps(message).encode(), [] if fd is None else rights([fd])
            try:
                self._notifier[2].sendmsg([data], fds, socket.MSG_DONTWAIT)
            except BlockingIOError:  # it reads nothing any more
                pidfd_send_signal(self._notifier[1], signal.SIGKILL)
            except OSError:
                pass  # it has died; the next one is given all

    def _have_notifier(self) -> None:
        """Begin a notifier. If none can be had, the calls fail with ENOSYS from now on: nobody is to wait for ever."""
        for _time in range(_TIMES):
            if self._notifier is not None or self._failures >= _FAILURES:
                break
            try:
                self._begin_notifier()
            except OSError:
                time.sleep(_AGAIN_SECONDS)
        if self._notifier is None:
            for fd in self._listeners.values():
                os.close(fd)
            self._listeners.clear()

    def _begin_notifier(self) -> None:
        slots = self._calls_in_flight()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = self._fork(slots, self._listeners, theirs, self._owners, self._limits, self._families, self._log)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._notifier = pid, os.pidfd_open(pid), ours

    def _forget_notifier(self) -> int:
        """Its exit status, or minus the signal that killed it."""
        assert self._notifier is not None
        pid, pidfd, channel = self._notifier
        _pid, status = os.waitpid(pid, 0)
        os.close(pidfd)
        channel.close()
        self._notifier = None
        return os.waitstatus_to_exitcode(status)

    def leave(self) -> None:
        """Close what is kept, in a process that was forked from this one: nobody is to wait for it."""
        for fd in self._listeners.values():
            os.close(fd)
        self._listeners.clear()
        if self._receiver is not None:
            self._receiver.close()
        if self._notifier is not None:
            os.close(self._notifier[1])
            self._notifier[2].close()
            self._notifier = None

    def end(self) -> None:
        """End the notifier: calls that wait for it fail with ENOSYS once the listeners are closed."""
        if self._notifier is not None:
            pidfd_send_signal(self._notifier[1], signal.SIGKILL)
            self._forget_notifier()
