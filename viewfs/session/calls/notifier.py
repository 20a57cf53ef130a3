"""The notifier: a small process that receives the calls of a view, and has them answered.

The newest module that has a handler for a call is asked first. One that lets it go on, or has been unloaded, is
followed by those loaded before it, by the session, which answers the calls that mount, and by the kernel. What may have
to be waited for is done by workers, so that the notifier never waits itself.

If it is killed, another takes its place (`keeper`): what was received is in `Slots`, a worker goes on by itself, what
modules have answered is still in their sockets, and each call is answered once.
"""

from __future__ import annotations

import errno
import os
import select

from viewfs.linux.numbers import AUDIT_ARCH_I386, numbers_by_table
from viewfs.linux.plain import socket
from viewfs.linux.process import die_with_parent, keep_only, set_name
from viewfs.linux.scm import descriptors_in, room_for
from viewfs.linux.signatures import OTHERS_OF_32_BITS, special
from viewfs.linux.unotify import VIRTUAL, WINDOW, NotifiedCall
from viewfs.linux.vdso import have_time_asked_for, made_at_the_start
from viewfs.python import print_traceback
from viewfs.session.calls.caller import is_of_view
from viewfs.session.calls.flight import InFlight
from viewfs.session.calls.messages import MOST
from viewfs.session.calls.modules import ALL, LOOK_SECONDS, Modules
from viewfs.session.calls.notified import MARKING, MISSING, MOUNTING, OF_WHOLE_MOUNTS, RARE, SPECIAL, calls_of
from viewfs.session.calls.workers import Workers
from viewfs.session.wire import plain_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from viewfs.session.calls.slots import Slots

__all__ = ["Notifier", "become_notifier"]

#: OPEN_TREE_CLONE of linux/mount.h.
_CLONE = 1


class Notifier:
    """Receives the calls of some listeners."""

    def __init__(
        self,
        slots: Slots,
        listeners: dict[int, int],
        keeper: socket.socket,
        owners: dict[int, tuple[int, dict[str, Any]]],
        limits: dict[int, int],
        families: Sequence[str],
    ) -> None:
        """`listeners`: number → descriptor. `owners`: epoch of a module → its socket, and what `Owner` takes. `limits`:
        number of a listener → the epoch whose modules its calls come to, and earlier ones. More come from the
        `keeper`."""
        self._slots = slots
        self._keeper = keeper
        self._names = numbers_by_table(dict.fromkeys((*RARE, *SPECIAL, *calls_of(families))))
        #: Calls of programs that begin, and whose vDSO is to be changed.
        self._first_calls = made_at_the_start() if "clock_gettime" in calls_of(families) else ()
        self._limits = dict(limits)
        self._poll = select.poll()
        self._poll.register(keeper, select.POLLIN)
        self._flight = InFlight(slots, self._poll)
        self._workers = Workers(self._poll)
        self._modules = Modules(self._flight, self._workers, self._poll, self._name_of, self._dispatch, _log)
        for number, fd in listeners.items():
            self._flight.add(number, fd)
        for epoch, (fd, value) in owners.items():
            self._modules.add(epoch, fd, value)

    def run(self) -> None:
        """Receive calls until the keeper is gone."""
        self._modules.mark_all()
        for slot in list(self._slots.in_flight()):
            self._guarded(slot, self._take_over, slot)
        while True:
            events = dict(self._poll.poll(LOOK_SECONDS * 1000 if self._modules.are_asked else None))
            if self._keeper.fileno() in events and not self._hear_keeper():
                return
            for fd, event in events.items():
                if fd in self._flight:
                    self._hear_listener(fd, event)
                elif fd in self._modules:
                    self._modules.hear(fd, event)
                elif fd in self._workers:
                    self._end_worker(fd)
            if self._modules.are_asked:
                self._modules.look_at_callers()

    def _hear_keeper(self) -> bool:
        data, ancillary, _flags, _address = self._keeper.recvmsg(MOST, room_for(1))
        fds = descriptors_in(ancillary)
        if not data:
            return False
        message = plain_json.loads(data.decode())
        if message.get("limit") is not None:
            self._limits[message["listener"]] = message["limit"]
        if "gone" in message:
            self._modules.remove(message["gone"])
        elif "unloaded" in message:
            self._modules.unload(message["unloaded"], message["until"])
        elif "owner" in message:
            self._modules.add(message["owner"], fds[0], message["value"])
        elif fds:
            self._flight.add(message["listener"], fds[0])
        return True

    def _hear_listener(self, fd: int, event: int) -> None:
        if not event & select.POLLIN:
            self._limits.pop(self._flight.forget(fd), None)
            return
        slot = self._flight.receive(fd)
        if slot is not None:
            self._guarded(slot, self._dispatch, slot, ALL)

    def _guarded(self, slot: int, work: Callable[..., None], *arguments: Any) -> None:
        """A defect here is one call's: it fails with EIO."""
        try:
            work(*arguments)
        except Exception:
            print_traceback()
            self._flight.fail(slot, errno.EIO)

    def _name_of(self, call: NotifiedCall) -> str:
        """Its name, which is another for special descriptors; its number, if no kernel has it; empty for what nobody
        has asked to be notified of."""
        if call.number >= VIRTUAL:
            return str(call.number)
        name = self._names.get(call.architecture, {}).get(call.number, "")
        if name in SPECIAL and call.arguments[0] & 0xFFFFFFFF in WINDOW:
            return special(name)
        return OTHERS_OF_32_BITS.get(name, name) if call.architecture == AUDIT_ARCH_I386 else name

    def _dispatch(self, slot: int, below: int) -> None:
        """Have a call answered by the newest module loaded before the epoch `below` that answers it; else by the
        session, or the kernel."""
        call = self._flight.call(slot)
        name = self._name_of(call)
        result = None
        if self._modules:
            limit = self._limits.get(self._slots.listener(slot), ALL)
            try:
                if self._modules.ask(slot, name, min(below, limit), limit):
                    return
            except OSError as error:
                self._flight.fail(slot, error.errno or errno.EIO)
                return
        if name in self._first_calls:
            try:
                have_time_asked_for(call.tid)
            except OSError as error:
                _log(f"process {call.tid} sees the real time: its vDSO can't be changed: {error}")
        is_mark = name in MARKING and bool(call.arguments[1] & OF_WHOLE_MOUNTS)
        if (is_mark or name in (*MOUNTING, *MISSING)) and is_of_view(call.tid):
            if name not in MISSING:
                self._slots.give_to_worker(slot)
                if not self._workers.begin(slot, call.id, name, lambda pid: self._mount(slot, call, name, pid)):
                    self._flight.fail(slot, errno.EAGAIN)
                return
            # (Without OPEN_TREE_CLONE, open_tree(2) is as open(2).)
            result = errno.ENOSYS if name != "open_tree" or call.arguments[2] & _CLONE else None
        self._reply(slot, call, result, name)
        self._flight.clear(slot)

    def _mount(self, slot: int, call: NotifiedCall, name: str, pid: int) -> None:
        from viewfs.session.calls.mounting import answer

        self._slots.give_to_worker(slot, pid)
        if self._flight.waits(slot):  # else somebody has answered it
            self._reply(slot, call, answer(call, name), name)

    def _reply(self, slot: int, call: NotifiedCall, result: int | None, name: str) -> None:
        """Answer with 0 or an errno; None: as if nobody had been asked."""
        listener = self._flight.listener(slot)
        if listener is None:
            return
        if result is not None:
            listener.answer(call.id, error=result)
        elif name and call.number < VIRTUAL:
            listener.let_pass(call.id)
        else:
            listener.answer(call.id, error=errno.ENOSYS)

    def _end_worker(self, pidfd: int) -> None:
        """A worker has ended. If it has left its call unanswered, that fails."""
        pid, slot, call, epoch = self._workers.take_ended(pidfd)
        if self._flight.call(slot).id != call:  # it was answered, and another has its slot
            return
        # Another worker may go on where this one has ended.
        is_its_own = self._slots.worker(slot) in (0, pid) and not self._workers.are_at(slot, call)
        if self._slots.owner(slot) is not None or (is_its_own and self._slots.is_being_copied(slot)):
            self._guarded(slot, self._modules.was_copied, slot, epoch)
        elif is_its_own:
            self._flight.fail(slot, errno.EIO)

    def _take_over(self, slot: int) -> None:
        """See to a call that another notifier has received."""
        worker, epoch = self._slots.worker(slot), self._slots.owner(slot)
        if self._flight.listener(slot) is None:
            self._flight.clear(slot)
        elif epoch is not None:
            self._modules.take_over(slot, epoch)
        elif worker is None or (worker == 0 and self._slots.is_being_copied(slot)):
            self._dispatch(slot, ALL)
        else:
            try:
                self._workers.watch(slot, self._flight.call(slot).id, worker)
            except (OSError, ValueError):  # it has ended, or has not begun
                if self._slots.is_being_copied(slot):
                    self._dispatch(slot, ALL)
                elif (asked := self._slots.owner(slot)) is not None:
                    self._modules.take_over(slot, asked)
                else:
                    self._flight.fail(slot, errno.EINTR)


def _log(line: str) -> None:
    try:
        os.write(2, f"{line}\n".encode())
    except OSError:
        pass  # nobody reads it


def _write_to(log: int) -> None:
    """Have standard error be that pipe; a message for which it has no room is lost."""
    try:
        end = os.open(f"/proc/self/fd/{log}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # nobody reads it
        return
    os.dup2(end, 2)
    os.close(end)


def become_notifier(
    slots: Slots,
    listeners: dict[int, int],
    keeper: socket.socket,
    owners: dict[int, tuple[int, dict[str, Any]]],
    limits: dict[int, int],
    families: Sequence[str],
    log: int,
) -> NoReturn:
    """Be the notifier, until the keeper is gone. Never returns. `log`: the pipe of what it and its workers have to say
    (or its other end)."""
    status = 1
    try:
        die_with_parent(os.getppid())
        os.setpgid(0, 0)
        _write_to(log)
        keep_only(keeper.fileno(), *listeners.values(), *(fd for fd, _value in owners.values()))
        set_name("viewfs-notifier")
        Notifier(slots, listeners, keeper, owners, limits, families).run()
        status = 0
    except BaseException:
        print_traceback()
    finally:
        os._exit(status)
