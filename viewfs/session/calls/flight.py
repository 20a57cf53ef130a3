"""The calls in flight of some listeners, as the notifier that is in charge of them has them."""

from __future__ import annotations

import select

from viewfs.linux.unotify import Listener, NotifiedCall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from viewfs.session.calls.slots import Slots

__all__ = ["InFlight"]


class InFlight:
    """Slots, and the listeners at which their calls were received."""

    def __init__(self, slots: Slots, poll: select.poll) -> None:
        slots.look_again()
        self.slots = slots
        self._poll = poll
        self._by_fd: dict[int, tuple[int, Listener]] = {}
        self._by_number: dict[int, Listener] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_fd

    def add(self, number: int, fd: int) -> None:
        """Receive from this listener too."""
        listener = self._by_number[number] = Listener(fd)
        self._by_fd[fd] = number, listener
        self._poll.register(fd, 0 if self.slots.are_full else select.POLLIN)

    def forget(self, fd: int) -> int:
        """Close a listener: nobody is left who could call. Returns its number."""
        number, listener = self._by_fd.pop(fd)
        self._poll.unregister(fd)
        del self._by_number[number]
        listener.close()
        return number

    def receive(self, fd: int) -> int | None:
        """The slot of a call that has come; None if there was none, or no room for it."""
        number, listener = self._by_fd[fd]
        if self.slots.are_full:
            return None
        slot = self.slots.begin(number)
        if self.slots.are_full:
            self._heed(0)  # until something is answered
        if listener.receive(self.slots.address(slot)):
            return slot
        self.clear(slot)
        return None

    def listener(self, slot: int) -> Listener | None:
        """None if nobody is left who could call there."""
        return self._by_number.get(self.slots.listener(slot))

    def call(self, slot: int) -> NotifiedCall:
        return NotifiedCall(self.slots.call(slot))

    def waits(self, slot: int) -> bool:
        """Does its caller still wait?"""
        listener = self.listener(slot)
        return listener is not None and listener.waits(self.call(slot).id)

    def fail(self, slot: int, number: int) -> None:
        """Have the call fail with this errno."""
        listener = self.listener(slot)
        if listener is not None:
            listener.answer(self.call(slot).id, error=number)
        self.clear(slot)

    def clear(self, slot: int) -> None:
        """The call was answered, or nobody waits for it."""
        were_full = self.slots.are_full
        self.slots.clear(slot)
        if were_full:
            self._heed(select.POLLIN)

    def _heed(self, events: int) -> None:
        for fd in self._by_fd:
            self._poll.modify(fd, events)
