"""The notifier: a small process that receives the calls of a view, and has them answered.

It forks a worker for each call that the session answers, so that it never waits itself. All other calls the kernel goes
on with. If it is killed, another takes its place (`keeper`): what was received is in `Slots`, a worker goes on by
itself, and each call is answered once.
"""

from __future__ import annotations

import errno
import os
import select

from viewfs.linux.numbers import numbers_by_table
from viewfs.linux.plain import signal, socket
from viewfs.linux.process import CAP_SYS_ADMIN, die_with_parent, has_capability, keep_only, set_name
from viewfs.linux.scm import descriptors_in, room_for
from viewfs.linux.unotify import Listener, NotifiedCall
from viewfs.python import print_traceback
from viewfs.session.calls.mounting import CALLS, answer
from viewfs.session.calls.notified import NOTIFIED
from viewfs.session.runtime import connect_in_view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from viewfs.session.calls.slots import Slots

__all__ = ["Notifier", "become_notifier"]

#: Bytes of a message of the keeper: the number of a listener.
NUMBER_BYTES = 4


class Notifier:
    """Receives the calls of some listeners."""

    def __init__(
        self,
        slots: Slots,
        listeners: dict[int, int],
        keeper: socket.socket,
    ) -> None:
        """`listeners`: number → descriptor. More come from the `keeper`."""
        self._slots = slots
        self._keeper = keeper
        self._names = numbers_by_table(NOTIFIED)
        self._poll = select.poll()
        self._poll.register(keeper, select.POLLIN)
        self._listeners: dict[int, tuple[int, Listener]] = {}
        self._by_number: dict[int, Listener] = {}
        #: Pidfd → slot and pid of a worker.
        self._workers: dict[int, tuple[int, int]] = {}
        slots.look_again()
        for number, fd in listeners.items():
            self._add(number, fd)

    def _add(self, number: int, fd: int) -> None:
        self._listeners[fd] = number, Listener(fd)
        self._by_number[number] = self._listeners[fd][1]
        self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Receive calls until the keeper is gone."""
        for slot in list(self._slots.in_flight()):
            self._take_over(slot)
        while True:
            for fd, event in self._poll.poll():
                if fd in self._listeners:
                    self._hear_listener(fd, event)
                elif fd in self._workers:
                    self._end_worker(fd)
                elif not self._hear_keeper():
                    return

    def _hear_keeper(self) -> bool:
        data, ancillary, _flags, _address = self._keeper.recvmsg(NUMBER_BYTES, room_for(1))
        fds = descriptors_in(ancillary)
        if data and fds:
            self._add(int.from_bytes(data, "little"), fds[0])
        return bool(data)

    def _hear_listener(self, fd: int, event: int) -> None:
        number, listener = self._listeners[fd]
        if not event & select.POLLIN:  # nobody is left who could call
            self._poll.unregister(fd)
            del self._listeners[fd], self._by_number[number]
            listener.close()
            return
        if self._slots.are_full:
            return
        slot = self._slots.begin(number)
        if listener.receive(self._slots.address(slot)):
            self._dispatch(slot, listener)
        else:
            self._slots.clear(slot)
        if self._slots.are_full:
            self._heed_listeners(0)  # until a worker has ended

    def _heed_listeners(self, events: int) -> None:
        for fd in self._listeners:
            self._poll.modify(fd, events)

    def _dispatch(self, slot: int, listener: Listener) -> None:
        call = NotifiedCall(self._slots.call(slot))
        name = self._names.get(call.architecture, {}).get(call.number, "")
        if name in CALLS and not _may_itself(call.tid) and _is_in_view(call.tid):
            self._slots.give_to_worker(slot)
            self._begin_worker(slot, listener, call, name)
            return
        _finish(listener, call, None, name)
        self._slots.clear(slot)

    def _begin_worker(self, slot: int, listener: Listener, call: NotifiedCall, name: str) -> None:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                set_name(f"viewfs-{name}")
                self._slots.give_to_worker(slot, os.getpid())
                if listener.waits(call.id):  # else somebody has answered it
                    _finish(listener, call, answer(call, name), name)
                status = 0
            except BaseException:
                print_traceback()
            finally:
                os._exit(status)
        self._watch_worker(slot, pid)

    def _watch_worker(self, slot: int, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        self._workers[pidfd] = slot, pid
        self._poll.register(pidfd, select.POLLIN)

    def _end_worker(self, pidfd: int) -> None:
        """A worker has ended. If it has left its call unanswered, that fails."""
        slot, pid = self._workers.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # another notifier has forked it
        self._fail(slot, errno.EIO)
        self._heed_listeners(select.POLLIN)

    def _fail(self, slot: int, number: int) -> None:
        listener = self._by_number.get(self._slots.listener(slot))
        if listener is not None:
            listener.answer(NotifiedCall(self._slots.call(slot)).id, error=number)
        self._slots.clear(slot)

    def _take_over(self, slot: int) -> None:
        """See to a call that another notifier has received."""
        listener, worker = self._by_number.get(self._slots.listener(slot)), self._slots.worker(slot)
        if listener is None:
            self._slots.clear(slot)
        elif worker is None:
            self._dispatch(slot, listener)
        else:
            try:
                self._watch_worker(slot, worker)
            except (OSError, ValueError):  # it has ended, or has not begun
                self._fail(slot, errno.EINTR)


def _may_itself(tid: int) -> bool:
    """Has a thread the capability to mount, in its user namespace? So have processes of a session that runs in a view,
    and programs that make namespaces of their own."""
    try:
        return has_capability(tid, CAP_SYS_ADMIN)
    except OSError:
        return False


def _is_in_view(tid: int) -> bool:
    """Does a thread live in a view, of this session or of one inside that, and in no user namespace of its own?"""
    try:
        connect_in_view(tid, seconds=0).close()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _finish(listener: Listener, call: NotifiedCall, result: int | None, name: str) -> None:
    """Answer with what a function of `CALLS` has returned."""
    if result is not None:
        listener.answer(call.id, error=result)
    elif name:
        listener.let_pass(call.id)
    else:
        listener.answer(call.id, error=errno.ENOSYS)


def become_notifier(
    slots: Slots,
    listeners: dict[int, int],
    keeper: socket.socket,
) -> NoReturn:
    """Be the notifier, until the keeper is gone. Never returns."""
    status = 1
    try:
        die_with_parent(os.getppid())
        os.setpgid(0, 0)
        keep_only(keeper.fileno(), *listeners.values())
        set_name("viewfs-notifier")
        Notifier(slots, listeners, keeper).run()
        status = 0
    except BaseException:
        print_traceback()
    finally:
        os._exit(status)
