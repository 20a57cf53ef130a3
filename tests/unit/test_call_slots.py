"""Calls in flight, in memory that outlives who has received them."""

from __future__ import annotations

import ctypes

import pytest

from viewfs.linux.unotify import CALL_SIZE, NotifiedCall
from viewfs.session.calls.slots import COUNT, Slots


def receive(slots: Slots, slot: int, call: int) -> None:
    """What the kernel does."""
    ctypes.memmove(slots.address(slot), call.to_bytes(8, "little"), 8)


def test_a_call_on_its_way() -> None:
    slots = Slots()
    slot = slots.begin(7)
    assert list(slots.in_flight()) == [], "nothing was received yet"
    receive(slots, slot, 5)
    assert list(slots.in_flight()) == [slot] and NotifiedCall(slots.call(slot)).id == 5
    assert (slots.listener(slot), slots.worker(slot)) == (7, None)
    slots.give_to_worker(slot)
    assert (slots.listener(slot), slots.worker(slot)) == (7, 0)
    slots.give_to_worker(slot, 1234)
    assert (slots.listener(slot), slots.worker(slot)) == (7, 1234)
    slots.clear(slot)
    assert list(slots.in_flight()) == [] and slots.call(slot) == bytes(CALL_SIZE), "the kernel wants it so"


def test_another_is_in_charge() -> None:
    slots = Slots()
    for number in range(3):
        receive(slots, slots.begin(1), number + 1)
    slots.begin(1)  # and nothing was received
    slots.look_again()
    assert len(list(slots.in_flight())) == 3
    for _number in range(COUNT - 3):
        assert not slots.are_full
        slots.begin(1)
    assert slots.are_full
    with pytest.raises(IndexError):
        slots.begin(1)
