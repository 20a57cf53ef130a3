"""The notifier: a small process that receives the calls of a view, and has them answered.

The newest module that has a handler for a call is asked first. One that lets it go on, or has been unloaded, is
followed by those loaded before it, by the session, which answers the calls that mount, and by the kernel. The session's
work is done by a worker, forked for each call, so that the notifier never waits itself.

If it is killed, another takes its place (`keeper`): what was received is in `Slots`, a worker goes on by itself, what
modules have answered is still in their sockets, and each call is answered once.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from collections import defaultdict

from viewfs.linux.numbers import numbers_by_table
from viewfs.linux.plain import signal, socket
from viewfs.linux.process import (
    die_with_parent,
    has_deliverable_signal,
    keep_only,
    set_name,
)
from viewfs.linux.scm import descriptors_in, room_for
from viewfs.linux.unotify import OPEN_FLAGS, VIRTUAL, Listener, NotifiedCall
from viewfs.linux.vdso import have_time_asked_for, made_at_the_start
from viewfs.python import print_traceback
from viewfs.session.calls.answering import bits_of, give_answer
from viewfs.session.calls.caller import is_of_view
from viewfs.session.calls.messages import (
    BEGUN,
    CANCELLED,
    DESCRIPTOR,
    GO_ON,
    HAS,
    MOST,
    OPENED,
    Answer,
)
from viewfs.session.calls.notified import MISSING, MOUNTING, RARE, calls_of
from viewfs.session.calls.owner import Owner, is_harmless
from viewfs.session.wire import plain_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from viewfs.session.calls.slots import Slots

__all__ = ["Notifier", "become_notifier"]

#: OPEN_TREE_CLONE of linux/mount.h.
_CLONE = 1
#: Behind every epoch.
_ALL = 1 << 62
#: Seconds after which callers who still wait are looked at: a signal may have come for them.
_LOOK_SECONDS = 0.05


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
        self._names = numbers_by_table((*RARE, *calls_of(families)))
        #: Calls of programs that begin, and whose vDSO is to be changed.
        self._first_calls = made_at_the_start() if "clock_gettime" in calls_of(families) else ()
        self._poll = select.poll()
        self._poll.register(keeper, select.POLLIN)
        self._listeners: dict[int, tuple[int, Listener]] = {}
        self._by_number: dict[int, Listener] = {}
        self._limits = dict(limits)
        #: The newest first.
        self._owners: dict[int, Owner] = {}
        self._owner_of: dict[int, Owner] = {}
        #: Epoch of a module → id of a call that it has → slot.
        self._asked: dict[int, dict[int, int]] = defaultdict(dict)
        #: Epoch of a module that has another server → the calls that the one before may have begun.
        self._begun_before: dict[int, set[int]] = {}
        self._next_look = 0.0
        self._has_complained = False
        #: Pidfd → slot and pid of a worker.
        self._workers: dict[int, tuple[int, int]] = {}
        slots.look_again()
        for number, fd in listeners.items():
            self._add(number, fd)
        for epoch, (fd, value) in owners.items():
            self._add_owner(epoch, fd, value)

    def _add(self, number: int, fd: int) -> None:
        self._listeners[fd] = number, Listener(fd)
        self._by_number[number] = self._listeners[fd][1]
        self._poll.register(fd, select.POLLIN)

    def _add_owner(self, epoch: int, fd: int, value: dict[str, Any]) -> None:
        owner = Owner(epoch, fd, value)
        self._owners = {epoch: owner, **self._owners}
        self._owners = {epoch: self._owners[epoch] for epoch in sorted(self._owners, reverse=True)}
        self._owner_of[owner.fileno()] = owner
        self._poll.register(owner, select.POLLIN)

    def _forget_owner(self, owner: Owner) -> None:
        """Its module was unloaded, or its server is dead: what it has not answered fails."""
        self._poll.unregister(owner)
        del self._owners[owner.epoch], self._owner_of[owner.fileno()]
        owner.close()
        for slot in list(self._asked.pop(owner.epoch, {}).values()):
            self._fail(slot, errno.EIO)

    def run(self) -> None:
        """Receive calls until the keeper is gone."""
        for slot in list(self._slots.in_flight()):
            self._take_over(slot)
        while True:
            events = dict(self._poll.poll(_LOOK_SECONDS * 1000 if self._is_asking else None))
            if self._keeper.fileno() in events and not self._hear_keeper():
                return
            for fd, event in events.items():
                if fd in self._listeners:
                    self._hear_listener(fd, event)
                elif fd in self._owner_of:
                    self._hear_owner(self._owner_of[fd], event)
                elif fd in self._workers:
                    self._end_worker(fd)
            if self._is_asking:
                self._look_at_callers()

    @property
    def _is_asking(self) -> bool:
        return any(self._asked.values())

    def _hear_keeper(self) -> bool:
        data, ancillary, _flags, _address = self._keeper.recvmsg(MOST, room_for(1))
        fds = descriptors_in(ancillary)
        if not data:
            return False
        message = plain_json.loads(data.decode())
        if message.get("limit") is not None:
            self._limits[message["listener"]] = message["limit"]
        if "gone" in message:
            if (owner := self._owners.get(message["gone"])) is not None:
                self._forget_owner(owner)
        elif "unloaded" in message:
            if (owner := self._owners.get(message["unloaded"])) is not None:
                owner.until = message["until"]
        elif "owner" in message:
            self._add_owner(message["owner"], fds[0], message["value"])
        elif fds:
            self._add(message["listener"], fds[0])
        return True

    # -- calls

    def _hear_listener(self, fd: int, event: int) -> None:
        number, listener = self._listeners[fd]
        if not event & select.POLLIN:  # nobody is left who could call
            self._poll.unregister(fd)
            del self._listeners[fd], self._by_number[number]
            self._limits.pop(number, None)
            listener.close()
            return
        if self._slots.are_full:
            return
        slot = self._slots.begin(number)
        if listener.receive(self._slots.address(slot)):
            self._dispatch(slot, listener)
        else:
            self._clear(slot)
        if self._slots.are_full:
            self._heed_listeners(0)  # until something is answered

    def _clear(self, slot: int) -> None:
        """The call was answered, or nobody waits for it."""
        were_full = self._slots.are_full
        self._slots.clear(slot)
        if were_full:
            self._heed_listeners(select.POLLIN)

    def _heed_listeners(self, events: int) -> None:
        for fd in self._listeners:
            self._poll.modify(fd, events)

    def _name_of(self, call: NotifiedCall) -> str:
        """Its name; its number, if no kernel has it; empty for what nobody has asked to be notified of."""
        if call.number >= VIRTUAL:
            return str(call.number)
        return self._names.get(call.architecture, {}).get(call.number, "")

    def _dispatch(self, slot: int, listener: Listener, below: int = _ALL) -> None:
        """Have a call answered by the newest module loaded before the epoch `below` that answers it; else by the
        session, or the kernel."""
        call = NotifiedCall(self._slots.call(slot))
        name = self._name_of(call)
        if self._owners:
            limit = self._limits.get(self._slots.listener(slot), _ALL)
            try:
                if self._ask(slot, call, name, min(below, limit), limit):
                    return
            except OSError as error:
                self._reply(listener, call, error.errno or errno.EIO, name)
                self._clear(slot)
                return
        if name in self._first_calls:
            try:
                have_time_asked_for(call.tid)
            except OSError as error:
                self._log(f"process {call.tid} sees the real time: its vDSO can't be changed: {error}")
        result = None
        if name in (*MOUNTING, *MISSING) and is_of_view(call.tid):
            if name in MOUNTING:
                self._slots.give_to_worker(slot)
                self._begin_worker(slot, listener, call, name, lambda: self._mount(listener, call, name))
                return
            # (Without OPEN_TREE_CLONE, open_tree(2) is as open(2).)
            result = errno.ENOSYS if name != "open_tree" or call.arguments[2] & _CLONE else None
        self._reply(listener, call, result, name)
        self._clear(slot)

    def _ask(self, slot: int, call: NotifiedCall, name: str, below: int, limit: int) -> bool:
        """Ask the newest module that has this call, if any has that was loaded before the epoch `below`, and not
        unloaded before the epoch `limit`. Raises OSError, which is the caller's errno."""
        for epoch, owner in self._owners.items():
            if epoch >= below or not owner.has(name) or (owner.until is not None and owner.until < limit):
                continue
            try:
                packet = owner.request(call, name, bits_of(call))
            except PermissionError:
                if not self._has_complained:
                    self._log(f"calls go on without modules: the memory of process {call.tid} can't be read here")
                self._has_complained = True
                return False
            if packet is None:
                continue
            self._slots.give_to_owner(slot, epoch)
            if not self._is_asking:
                self._next_look = time.monotonic() + _LOOK_SECONDS
            self._asked[epoch][call.id] = slot
            if not owner.send(slot, packet):
                self._poll.modify(owner, select.POLLIN | select.POLLOUT)
            return True
        return False

    def _reply(self, listener: Listener, call: NotifiedCall, result: int | None, name: str) -> None:
        """Answer with 0 or an errno; None: as if nobody had been asked."""
        if result is not None:
            listener.answer(call.id, error=result)
        elif name and call.number < VIRTUAL:
            listener.let_pass(call.id)
        else:
            listener.answer(call.id, error=errno.ENOSYS)

    def _fail(self, slot: int, number: int) -> None:
        listener = self._by_number.get(self._slots.listener(slot))
        if listener is not None:
            listener.answer(NotifiedCall(self._slots.call(slot)).id, error=number)
        self._clear(slot)

    # -- modules

    def _hear_owner(self, owner: Owner, event: int) -> None:
        if event & select.POLLOUT and owner.send_rest():
            self._poll.modify(owner, select.POLLIN)
        if not event & ~select.POLLOUT:
            return
        try:
            received = owner.receive()
            if received is None:  # it was unloaded, or its server is dead, as the supervisor says
                self._forget_owner(owner)
                return
            given, fds = received
            self._take(owner, given, fds)
            owner.done()
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self._log(f"module {owner.module} is unloaded: its server says what can't be: {error}")
            self._forget_owner(owner)

    def _take(self, owner: Owner, given: Answer, fds: list[int]) -> None:
        """Give a caller the answer of a module. Raises ValueError for what no honest server says."""
        asked = self._asked[owner.epoch]
        try:
            if fds and given.kind != DESCRIPTOR:
                raise ValueError("a descriptor that nobody asked for")
            if given.kind == BEGUN:
                self._begun_before[owner.epoch] = {call for call, slot in asked.items() if slot not in owner.unsent}
                if not owner.mark():
                    self._poll.modify(owner, select.POLLIN | select.POLLOUT)
                return
            if given.kind == HAS:
                self._begin_anew(owner, dict(given.outs).get(0, b""))
                return
            slot = asked.pop(given.id, None)
            if slot is None:  # it was answered before, by another notifier
                return
            listener = self._by_number.get(self._slots.listener(slot))
            if listener is None:
                self._clear(slot)
                return
            call = NotifiedCall(self._slots.call(slot))
            if given.kind == GO_ON:
                self._dispatch(slot, listener, owner.epoch)
                return
            if given.kind == CANCELLED and not self._slots.is_given_up(slot):
                listener.answer(call.id, error=errno.EIO)
                self._clear(slot)
                raise ValueError("a call that was given up, which nobody asked for")
            if given.kind == OPENED:
                self._open_for(slot, listener, call, given)
                return
            if listener.waits(call.id):
                give_answer(owner, listener, call, self._name_of(call), given, fds)
            self._clear(slot)
        finally:
            for fd in fds:
                if is_harmless(fd):
                    os.close(fd)

    def _open_for(self, slot: int, listener: Listener, call: NotifiedCall, given: Answer) -> None:
        """Have the caller get a file of its view. Whoever serves that may take its time: a worker waits."""
        path = dict(given.outs).get(0, b"")
        if given.value & ~OPEN_FLAGS or not path.startswith(b"/") or b"\0" in path:
            listener.answer(call.id, error=errno.EIO)
            self._clear(slot)
            raise ValueError("a file that can't be opened")

        def work() -> None:
            from viewfs.session.calls.opening import open_for

            try:
                fd = open_for(call.tid, path, given.value)
                listener.give_descriptor(call.id, fd, close_on_exec=bool(given.value & os.O_CLOEXEC), is_answer=True)
            except OSError as error:
                listener.answer(call.id, error=error.errno or errno.EIO)

        self._slots.give_to_worker(slot)
        self._begin_worker(slot, listener, call, "opening", work)

    def _begin_anew(self, owner: Owner, ids: bytes) -> None:
        """Another server has begun, which has the calls `ids` of those that were sent before the mark: the others were
        lost with the server before."""
        here = {int.from_bytes(ids[at : at + 8], sys.byteorder) for at in range(0, len(ids), 8)}
        asked = self._asked[owner.epoch]
        for call in self._begun_before.pop(owner.epoch, set()) - here:
            if (slot := asked.pop(call, None)) is not None:
                self._fail(slot, errno.EIO)

    def _look_at_callers(self) -> None:
        """Have calls given up whose callers have a signal to see to."""
        now = time.monotonic()
        if now < self._next_look:
            return
        for epoch, asked in self._asked.items():
            owner = self._owners[epoch]
            for call, slot in asked.items():
                if slot in owner.unsent or self._slots.is_given_up(slot):
                    continue
                if has_deliverable_signal(NotifiedCall(self._slots.call(slot)).tid):
                    self._slots.give_up(slot)
                    owner.give_up(call)
        self._next_look = time.monotonic() + max(_LOOK_SECONDS, 20 * (time.monotonic() - now))

    # -- workers

    def _mount(self, listener: Listener, call: NotifiedCall, name: str) -> None:
        from viewfs.session.calls.mounting import answer

        self._reply(listener, call, answer(call, name), name)

    def _begin_worker(
        self, slot: int, listener: Listener, call: NotifiedCall, name: str, work: Callable[[], None]
    ) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._fail(slot, error.errno or errno.EAGAIN)
            return
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                set_name(f"viewfs-{name}")
                self._slots.give_to_worker(slot, os.getpid())
                if listener.waits(call.id):  # else somebody has answered it
                    work()
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

    # -- after another notifier

    def _take_over(self, slot: int) -> None:
        """See to a call that another notifier has received."""
        listener, worker = self._by_number.get(self._slots.listener(slot)), self._slots.worker(slot)
        epoch = self._slots.owner(slot)
        if listener is None:
            self._clear(slot)
        elif epoch is not None:
            self._take_over_asked(slot, epoch)
        elif worker is None:
            self._dispatch(slot, listener)
        else:
            try:
                self._watch_worker(slot, worker)
            except (OSError, ValueError):  # it has ended, or has not begun
                self._fail(slot, errno.EINTR)

    def _take_over_asked(self, slot: int, epoch: int) -> None:
        """A module has been asked, or was about to be: it is asked again, and answers each call once."""
        call = NotifiedCall(self._slots.call(slot))
        owner = self._owners.get(epoch)
        if owner is None:
            self._fail(slot, errno.EIO)
            return
        try:
            packet = owner.request(call, self._name_of(call), bits_of(call))
        except OSError:
            packet = None
        if packet is None:
            self._fail(slot, errno.EINTR)
            return
        self._asked[epoch][call.id] = slot
        if not owner.send(slot, packet):
            self._poll.modify(owner, select.POLLIN | select.POLLOUT)

    def _log(self, line: str) -> None:
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
