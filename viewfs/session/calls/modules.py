"""The modules that answer calls: which of them is asked, and what is done with their answers."""

from __future__ import annotations

import errno
import os
import select
import sys
import time

from viewfs.errors import os_error
from viewfs.linux.memory import NotAtHand
from viewfs.linux.process import Waiting, deliverable_signal, thread_group_of
from viewfs.linux.unotify import OPEN_FLAGS, VIRTUAL
from viewfs.python import print_traceback
from viewfs.session.calls.answering import bits_of, give_answer, hand_over
from viewfs.session.calls.messages import (
    BEGUN,
    CANCELLED,
    DESCRIPTOR,
    GO_ON,
    HANDED,
    HAS,
    IS_SPECIAL,
    OPENED,
)
from viewfs.session.calls.opening import Numbers, open_for
from viewfs.session.calls.owner import Owner, is_harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from viewfs.linux.unotify import NotifiedCall
    from viewfs.session.calls.flight import InFlight
    from viewfs.session.calls.messages import Answer
    from viewfs.session.calls.workers import Workers

__all__ = ["ALL", "LOOK_SECONDS", "Modules"]

#: Behind every epoch.
ALL = 1 << 62
#: Seconds after which callers who still wait are looked at: a signal may have come for them, or their end.
LOOK_SECONDS = 0.05
#: So many calls of one module at once; there is room for others' then.
_MOST = 1024


class Modules:
    """The modules of a view, the newest first."""

    def __init__(
        self,
        flight: InFlight,
        workers: Workers,
        poll: select.poll,
        name_of: Callable[[NotifiedCall], str],
        go_on: Callable[[int, int], None],
        log: Callable[[str], None],
    ) -> None:
        """`go_on` has the call in a slot answered by whoever was there before an epoch."""
        self._flight = flight
        self._slots = flight.slots
        self._workers = workers
        self._poll = poll
        self._name_of = name_of
        self._go_on = go_on
        self._log = log
        self._owners: dict[int, Owner] = {}
        self._by_fd: dict[int, Owner] = {}
        #: Epoch of a module → id of a call that it has → slot.
        self._asked: dict[int, dict[int, int]] = {}
        self._next_look = 0.0
        #: Calls whose callers perhaps have a signal to see to.
        self._suspects: set[int] = set()
        self._has_complained = False
        self._numbers = Numbers()

    def __bool__(self) -> bool:
        return bool(self._owners)

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_fd

    @property
    def are_asked(self) -> bool:
        return any(self._asked.values())

    def add(self, epoch: int, fd: int, value: dict[str, Any]) -> None:
        """A module was loaded (`Owner`)."""
        owner = Owner(epoch, fd, value)
        self._owners = dict(sorted({**self._owners, epoch: owner}.items(), reverse=True))
        self._by_fd[owner.fileno()] = owner
        self._asked[epoch] = {}
        self._poll.register(owner, select.POLLIN)

    def remove(self, epoch: int) -> None:
        """It was unloaded."""
        if epoch in self._owners:
            self._forget(self._owners[epoch])

    def unload(self, epoch: int, until: int) -> None:
        """It was unloaded, but for modules that see the view as it was until that epoch."""
        if epoch in self._owners:
            self._owners[epoch].until = until

    def _forget(self, owner: Owner) -> None:
        """It was unloaded, or its server is dead: what it has not answered fails."""
        self._poll.unregister(owner)
        del self._owners[owner.epoch], self._by_fd[owner.fileno()]
        owner.close()
        for slot in self._asked.pop(owner.epoch).values():
            if not self._slots.is_being_copied(slot):
                self._flight.fail(slot, errno.EIO)

    # -- asking

    def ask(self, slot: int, name: str, below: int, limit: int) -> bool:
        """Ask the newest module that has this call, if any has that was loaded before the epoch `below`, and not
        unloaded before the epoch `limit`. Raises OSError, which is the caller's errno."""
        call = self._flight.call(slot)
        for epoch, owner in self._owners.items():
            if epoch >= below or not owner.has(name) or (owner.until is not None and owner.until < limit):
                continue
            if len(self._asked[epoch]) >= _MOST:
                raise os_error(errno.EAGAIN)
            try:
                packet = owner.request(call, name, bits_of(call), quick=True)
            except NotAtHand:
                self._ask_slowly(slot, call, name, owner)
                return True
            except OSError as error:
                return self._can_not_ask(call, error)
            if packet is not None:
                self._slots.give_to_owner(slot, epoch)
                self._note(slot, call, owner)
                self._send(slot, owner, packet)
                return True
        return False

    def _can_not_ask(self, call: NotifiedCall, error: OSError) -> bool:
        """What can't be read is for the kernel, which knows what is wrong with it."""
        if isinstance(error, PermissionError) and not self._has_complained:
            self._has_complained = True
            self._log(f"calls of process {call.tid} go on without modules: its memory can't be read")
        if call.number >= VIRTUAL:
            raise error
        return False

    def _note(self, slot: int, call: NotifiedCall, owner: Owner) -> None:
        if not self.are_asked:
            self._next_look = time.monotonic() + LOOK_SECONDS
        self._asked[owner.epoch][call.id] = slot

    def _send(self, slot: int, owner: Owner, packet: bytes) -> None:
        if not owner.send(slot, packet):
            self._poll.modify(owner, select.POLLIN | select.POLLOUT)

    def _ask_slowly(self, slot: int, call: NotifiedCall, name: str, owner: Owner) -> None:
        """Have a worker read memory that may have to be waited for, and ask the module."""

        def work(pid: int) -> None:
            self._slots.give_to_copier(slot, pid)
            listener = self._flight.listener(slot)
            assert listener is not None
            try:
                packet = owner.request(call, name, bits_of(call), quick=False)
                if packet is None:
                    return  # it is for somebody else
                self._slots.give_to_owner(slot, owner.epoch)
                owner.send_patiently(packet)
            except OSError as error:
                if call.number >= VIRTUAL:
                    listener.answer(call.id, error=error.errno or errno.EIO)
                else:
                    listener.let_pass(call.id)

        self._slots.give_to_copier(slot)
        self._note(slot, call, owner)
        if not self._workers.begin(slot, call.id, "copy", work, owner.epoch):
            del self._asked[owner.epoch][call.id]
            raise os_error(errno.EAGAIN)

    def was_copied(self, slot: int, epoch: int | None) -> None:
        """A worker that read memory for a module has ended."""
        call = self._flight.call(slot)
        if (asked := self._slots.owner(slot)) is not None:
            if asked in self._asked:
                self._asked[asked][call.id] = slot
            else:
                self._flight.fail(slot, errno.EIO)
            return
        if epoch is not None and epoch in self._asked:
            self._asked[epoch].pop(call.id, None)
        if self._flight.waits(slot):
            self._go_on(slot, ALL if epoch is None else epoch)
        else:
            self._flight.clear(slot)

    # -- answers

    def hear(self, fd: int, event: int) -> None:
        """Something has come from the server of a module, or there is room again."""
        owner = self._by_fd[fd]
        if event & select.POLLOUT and owner.send_rest():
            self._poll.modify(owner, select.POLLIN)
        if not event & ~select.POLLOUT:
            return
        try:
            received = owner.receive()
            if received is None:  # it was unloaded, or its server is dead, as the supervisor says
                self._forget(owner)
                return
            self._take(owner, *received)
            owner.done()
        except BlockingIOError:
            return
        except ConnectionError:
            self._forget(owner)
        except Exception as error:
            if not isinstance(error, OSError | ValueError):
                print_traceback()
            self._log(f"module {owner.module} is unloaded: its server says what can't be: {error}")
            owner.end()
            self._forget(owner)

    def _take(self, owner: Owner, given: Answer, fds: list[int]) -> None:
        """Give a caller the answer of a module. Raises ValueError for what no honest server says."""
        if not all(map(is_harmless, fds)):  # which could not even be closed without waiting for somebody
            raise ValueError("a descriptor that no module may hand out")
        try:
            if fds and given.kind not in (DESCRIPTOR, HANDED):
                raise ValueError("a descriptor that nobody asked for")
            if given.kind == BEGUN:
                for slot in self._asked[owner.epoch].values():
                    if slot not in owner.unsent and not self._slots.is_being_copied(slot):
                        self._slots.leave_to_successor(slot)
                self._mark(owner, given.value)
            elif given.kind == HAS:
                self._begin_anew(owner, dict(given.outs).get(0, b""))
            else:
                asked = self._asked[owner.epoch].pop(given.id, None)
                if asked is not None:  # else it was answered before, or nobody waits any more
                    self._take_answer(owner, asked, given, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _take_answer(self, owner: Owner, slot: int, given: Answer, fds: list[int]) -> None:
        call, listener = self._flight.call(slot), self._flight.listener(slot)
        if listener is None or not listener.waits(call.id):
            self._flight.clear(slot)
            return
        if given.kind == GO_ON:
            self._go_on(slot, owner.epoch)
            return
        if given.kind == OPENED:
            self._open_for(slot, call, given)
            return
        if given.kind == HANDED:
            self._hand_over(owner, slot, call, given, fds)
            return
        if given.kind == CANCELLED and not self._slots.is_given_up(slot):
            self._flight.fail(slot, errno.EIO)
            raise ValueError("a call that was given up, which nobody asked for")
        name, is_certain = self._name_of(call), self._slots.has_signal(slot)
        try:
            give_answer(owner, listener, call, name, given, fds, has_signal=is_certain, quick=True)
            self._flight.clear(slot)
        except ValueError:
            self._flight.clear(slot)
            raise
        except NotAtHand:

            def work(pid: int) -> None:
                self._slots.give_to_worker(slot, pid)
                give_answer(owner, listener, call, name, given, fds, has_signal=is_certain, quick=False)

            self._have_done(slot, "answer", work)

    def _have_done(self, slot: int, name: str, work: Callable[[int], None]) -> None:
        self._slots.give_to_worker(slot)
        if not self._workers.begin(slot, self._flight.call(slot).id, name, work):
            self._flight.fail(slot, errno.EAGAIN)

    def _open_for(self, slot: int, call: NotifiedCall, given: Answer) -> None:
        """Have the caller get a file of its view. Whoever serves that may take its time: a worker waits."""
        path, flags = dict(given.outs).get(0, b""), given.value & ~IS_SPECIAL
        if flags & ~OPEN_FLAGS or not path.startswith(b"/") or b"\0" in path:
            self._flight.fail(slot, errno.EIO)
            raise ValueError("a file that can't be opened")
        listener = self._flight.listener(slot)
        assert listener is not None
        try:
            number = self._numbers.free(call.tid) if given.value & IS_SPECIAL else None
        except OSError as error:
            self._flight.fail(slot, error.errno or errno.EIO)
            return

        def work(pid: int) -> None:
            self._slots.give_to_worker(slot, pid)
            try:
                fd = open_for(call.tid, path, flags)
                close_on_exec = bool(flags & os.O_CLOEXEC)
                listener.give_descriptor(call.id, fd, close_on_exec=close_on_exec, is_answer=True, number=number)
            except OSError as error:
                if number is not None and error.errno == errno.EBADF:  # beyond RLIMIT_NOFILE
                    error = os_error(errno.EMFILE)
                listener.answer(call.id, error=error.errno or errno.EIO)

        self._have_done(slot, "open", work)

    def _hand_over(self, owner: Owner, slot: int, call: NotifiedCall, given: Answer, fds: list[int]) -> None:
        """Hand descriptors to a caller. They are files that somebody serves, who may take their time: a worker has
        them."""
        listener = self._flight.listener(slot)
        assert listener is not None
        if len(fds) != 1:
            self._flight.fail(slot, errno.EIO)
            raise ValueError("descriptors, and none came with it")
        name = self._name_of(call)

        def work(pid: int) -> None:
            self._slots.give_to_worker(slot, pid)
            hand_over(owner, listener, call, name, given, fds[0])

        self._have_done(slot, "hand", work)

    # -- servers that end, and notifiers

    def _mark(self, owner: Owner, number: int) -> None:
        if not owner.mark(number):
            self._poll.modify(owner, select.POLLIN | select.POLLOUT)

    def _begin_anew(self, owner: Owner, ids: bytes) -> None:
        """Another server has begun, which has the calls `ids` of those that were sent before the mark: the others were
        lost with the server before."""
        here = {int.from_bytes(ids[at : at + 8], sys.byteorder) for at in range(0, len(ids), 8)}
        asked = self._asked[owner.epoch]
        for call, slot in list(asked.items()):
            if call in here or not self._slots.is_left(slot):
                continue
            del asked[call]
            self._flight.fail(slot, errno.EIO)

    def mark_all(self) -> None:
        """Another notifier may have died before it told a server that has begun that it has."""
        for owner in self._owners.values():
            self._mark(owner, 0)

    def take_over(self, slot: int, epoch: int) -> None:
        """A module has been asked by another notifier, or was about to be: it is asked again, and answers each call
        once."""
        call, owner = self._flight.call(slot), self._owners.get(epoch)
        if owner is None:
            self._flight.fail(slot, errno.EIO)
            return
        self._note(slot, call, owner)
        if self._slots.is_left(slot):  # its server is about to say whether it has it
            return
        name = self._name_of(call)

        def work(pid: int) -> None:
            packet = owner.request(call, name, bits_of(call), quick=False, again=True)
            if packet is not None:
                owner.send_patiently(packet)

        try:
            packet = owner.request(call, name, bits_of(call), quick=True, again=True)
            if packet is not None:
                self._send(slot, owner, packet)
                return
        except NotAtHand:
            if self._workers.begin(slot, call.id, "copy", work, epoch):
                return
        except OSError:
            pass
        del self._asked[epoch][call.id]
        self._flight.fail(slot, errno.EINTR)

    def look_at_callers(self) -> None:
        """Have calls given up whose callers have a signal to see to, or are gone."""
        began = time.monotonic()
        if began < self._next_look:
            return
        perhaps: set[int] = set()
        before, self._suspects = self._suspects, set()
        for epoch, asked in self._asked.items():
            owner = self._owners[epoch]
            for call, slot in list(asked.items()):
                if self._slots.is_being_copied(slot):
                    continue
                if not self._flight.waits(slot):
                    del asked[call]
                    if owner.unsent.pop(slot, None) is None:
                        owner.give_up(call)
                    self._flight.clear(slot)
                elif slot not in owner.unsent and not self._slots.is_given_up(slot):
                    self._look_at_signals(owner, call, slot, before, perhaps)
        now = time.monotonic()
        self._next_look = now + max(LOOK_SECONDS, 20 * (now - began))

    def _look_at_signals(self, owner: Owner, call: int, slot: int, before: set[int], perhaps: set[int]) -> None:
        """`before`: calls whose callers perhaps had a signal when they were looked at last. `perhaps`: processes of
        which one call was given up for that."""
        tid = self._flight.call(slot).tid
        found = deliverable_signal(tid)
        if found == Waiting.PERHAPS:
            self._suspects.add(call)
            if call not in before:  # it may just be on its way to another thread
                return
            process = thread_group_of(tid)
            if process in perhaps:
                return
            perhaps.add(process)
        if found != Waiting.NONE:
            self._slots.give_up(slot, certainly=found == Waiting.CERTAINLY)
            owner.give_up(call)
