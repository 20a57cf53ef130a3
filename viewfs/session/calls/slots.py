"""The calls that are being answered, in memory that outlives a notifier: the next one answers what this one has begun.

The kernel tells of each call once. So it writes them right into that memory.
"""

from __future__ import annotations

import mmap
import os
import struct

from viewfs.linux.libc import address_of
from viewfs.linux.unotify import CALL_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COUNT", "Slots"]

#: How many calls can be in flight. More wait in the kernel.
COUNT = 4096
_SIZE = 128
#: Behind the call: the number of its listener; who has it, and that worker's pid or that module's epoch; flags.
_STATE = struct.Struct("=IIII")
_NOBODY, _WORKER, _OWNER, _COPIER = range(4)
_GIVEN_UP, _CERTAINLY, _LEFT = 1, 2, 4
_EMPTY = bytes(_SIZE)


class Slots:
    """Places for calls. One is free if the call's id is 0."""

    def __init__(self) -> None:
        fd = os.memfd_create("viewfs-calls", os.MFD_CLOEXEC)
        os.ftruncate(fd, COUNT * _SIZE)
        self._memory = mmap.mmap(fd, COUNT * _SIZE)
        os.close(fd)
        self._address = address_of(self._memory)
        self._free = list(range(COUNT))

    def look_again(self) -> None:
        """Find out which are free: another process was in charge of them."""
        self._free = [slot for slot in range(COUNT) if self._is_free(slot)]

    @property
    def are_full(self) -> bool:
        return not self._free

    def begin(self, listener: int) -> int:
        """A free slot, for a call of this listener."""
        slot = self._free.pop()
        self._set(slot, listener)
        return slot

    def clear(self, slot: int) -> None:
        """The call was answered, or nobody waits for it."""
        self._memory[slot * _SIZE : (slot + 1) * _SIZE] = _EMPTY
        self._free.append(slot)

    def address(self, slot: int) -> int:
        """Where the kernel is to write the call."""
        return self._address + slot * _SIZE

    def call(self, slot: int) -> bytes:
        """The call, as `NotifiedCall` takes it."""
        return self._memory[slot * _SIZE : slot * _SIZE + CALL_SIZE]

    def _set(self, slot: int, listener: int, holder: int = _NOBODY, which: int = 0, flags: int = 0) -> None:
        _STATE.pack_into(self._memory, slot * _SIZE + CALL_SIZE, listener, holder, which, flags)

    def _state(self, slot: int) -> tuple[int, int, int, int]:
        return _STATE.unpack_from(self._memory, slot * _SIZE + CALL_SIZE)

    def listener(self, slot: int) -> int:
        return self._state(slot)[0]

    def give_to_worker(self, slot: int, pid: int = 0) -> None:
        """Note that a worker is about to begin with it, or has done so, with this pid."""
        self._set(slot, self.listener(slot), _WORKER, pid)

    def give_to_copier(self, slot: int, pid: int = 0) -> None:
        """The same of a worker that only copies what the caller's memory has for a module."""
        self._set(slot, self.listener(slot), _COPIER, pid)

    def worker(self, slot: int) -> int | None:
        """The pid of its worker; 0 if one was about to begin; None if it has none."""
        _listener, holder, pid, _flags = self._state(slot)
        return pid if holder in (_WORKER, _COPIER) else None

    def is_being_copied(self, slot: int) -> bool:
        """Has no module been asked yet, but is about to be?"""
        return self._state(slot)[1] == _COPIER

    def give_to_owner(self, slot: int, epoch: int) -> None:
        """Note that the module which was loaded in that epoch is about to be asked, or has been."""
        self._set(slot, self.listener(slot), _OWNER, epoch)

    def owner(self, slot: int) -> int | None:
        """The epoch of the module that has it; None if none has."""
        _listener, holder, epoch, _flags = self._state(slot)
        return epoch if holder == _OWNER else None

    def _flag(self, slot: int, flag: int) -> None:
        listener, holder, which, flags = self._state(slot)
        self._set(slot, listener, holder, which, flags | flag)

    def give_up(self, slot: int, *, certainly: bool) -> None:
        """Note that its module was asked to give it up, for the caller has a signal, certainly or perhaps."""
        self._flag(slot, _GIVEN_UP | (_CERTAINLY if certainly else 0))

    def is_given_up(self, slot: int) -> bool:
        return bool(self._state(slot)[3] & _GIVEN_UP)

    def has_signal(self, slot: int) -> bool:
        """Was it given up because the caller certainly has a signal to see to?"""
        return bool(self._state(slot)[3] & _CERTAINLY)

    def leave_to_successor(self, slot: int) -> None:
        """Note that its module has another server, which may not have it."""
        self._flag(slot, _LEFT)

    def is_left(self, slot: int) -> bool:
        return bool(self._state(slot)[3] & _LEFT)

    def in_flight(self) -> Iterator[int]:
        """The slots that are not free."""
        return (slot for slot in range(COUNT) if not self._is_free(slot))

    def _is_free(self, slot: int) -> bool:
        return self._memory[slot * _SIZE : slot * _SIZE + 8] == _EMPTY[:8]
