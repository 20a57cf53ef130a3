"""What the stand-by does for system calls: it keeps their listeners, and has a notifier as soon as a call waits."""

from __future__ import annotations

import os
import select
import time

from viewfs.linux.plain import signal, socket
from viewfs.linux.process import pidfd_send_signal
from viewfs.linux.scm import descriptors_in, rights, room_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from viewfs.session.calls.slots import Slots

__all__ = ["Keeper"]

#: So many notifiers may fail, and how long one waits before the next where there are too few descriptors, say.
_FAILURES, _AGAIN_SECONDS = 5, 0.05


class Keeper:
    """Listeners, and the notifier that receives from them."""

    def __init__(self, receiver: int | None, fork: Callable[[Slots, dict[int, int], socket.socket], int]) -> None:
        """New listeners come over the socket `receiver`; None: there are none. `fork` forks a notifier, which receives
        from these listeners, and from others that it is sent."""
        self._receiver = None if receiver is None else socket.socket(fileno=receiver)
        self._fork = fork
        self._listeners: dict[int, int] = {}
        self._next_number = 1
        self._slots: Slots | None = None
        #: Pid, pidfd and channel of the notifier.
        self._notifier: tuple[int, int, socket.socket] | None = None
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
                self._have_notifier()
            elif event & ~select.POLLIN:  # nobody is left who could call
                os.close(self._listeners.pop(number))
        if self._receiver is not None and self._receiver.fileno() in events:
            self._take_listener()

    def _take_listener(self) -> None:
        assert self._receiver is not None
        _data, ancillary, _flags, _address = self._receiver.recvmsg(1, room_for(1))
        for fd in descriptors_in(ancillary):
            number, self._next_number = self._next_number, self._next_number + 1
            self._listeners[number] = fd
            if self._notifier is not None:
                try:
                    self._notifier[2].sendmsg([number.to_bytes(4, "little")], rights([fd]))
                except OSError:
                    pass  # it has died; the next one is given all

    def _have_notifier(self) -> None:
        """Begin a notifier. If none can be had, the calls fail with ENOSYS from now on: nobody is to wait for ever."""
        while self._notifier is None and self._failures < _FAILURES:
            try:
                self._begin_notifier()
            except OSError:
                self._failures += 1
                time.sleep(_AGAIN_SECONDS)
        if self._notifier is None:
            for fd in self._listeners.values():
                os.close(fd)
            self._listeners.clear()

    def _begin_notifier(self) -> None:
        if self._slots is None:
            from viewfs.session.calls.slots import Slots

            self._slots = Slots()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = self._fork(self._slots, self._listeners, theirs)
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

    def end(self) -> None:
        """End the notifier: calls that wait for it fail with ENOSYS once the listeners are closed."""
        if self._notifier is not None:
            pidfd_send_signal(self._notifier[1], signal.SIGKILL)
            self._forget_notifier()
