"""What a server writes down for the next one, and how long that is waited for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewfs.mounts.fuse.ledger import LastRequest, Ledger
from viewfs.session.patience import LIFE_SECONDS, Patience


@pytest.fixture
def fd() -> Iterator[int]:
    made = Ledger.create()
    yield made
    os.close(made)


@given(st.lists(st.tuples(st.integers(0, 9) | st.integers(0, 2**64 - 1), st.none() | st.binary(max_size=9000))))
def test_the_last_record_of_each_number_counts(changes: list[tuple[int, bytes | None]]) -> None:
    """For whoever opens it next, however often it had to make room."""
    fd = Ledger.create()
    try:
        ledger, known = Ledger(fd), dict[int, bytes]()
        for number, value in changes * 3:
            if value is None:
                ledger.drop(number)
                known.pop(number, None)
            else:
                ledger.put(number, value)
                known[number] = value
        assert ledger.records() == known == Ledger(fd).records()
    finally:
        os.close(fd)


def test_it_takes_no_more_room_than_what_is_known(fd: int) -> None:
    ledger = Ledger(fd)
    for number in range(200_000):
        ledger.put(number % 100, b"x" * (number % 1000))
    assert os.fstat(fd).st_blocks * 512 < 1_000_000
    assert os.fstat(fd).st_size < 1_000_000
    assert len(Ledger(fd).records()) == 100


def test_a_successor_is_told_how_far_the_last_request_came(fd: int) -> None:
    ledger = Ledger(fd)
    assert Ledger(fd).last() is None
    ledger.begin(12, 345)
    assert Ledger(fd).last() == LastRequest(12, 345, None)
    ledger.finish(0, b"answer")
    assert Ledger(fd).last() == LastRequest(12, 345, (0, b"answer"))
    ledger.begin(14)
    ledger.finish(17, b"")
    assert Ledger(fd).last() == LastRequest(14, 0, (17, b""))


def test_servers_that_answer_are_replaced_at_once() -> None:
    patience = Patience()
    for second in range(100):
        patience.begin(second)
        assert patience.seconds(second + 0.5, second + 1) == 0


def test_servers_that_answer_nothing_are_waited_for_longer_and_longer() -> None:
    patience, now, pauses, over = Patience(30), 0.0, list[float](), list[float]()
    while True:
        patience.begin(now)
        seconds = patience.seconds(now, 0)
        if seconds is None:
            break
        if patience.is_over(now):
            over.append(now)
        pauses.append(seconds)
        now += seconds
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8] and max(pauses) == LIFE_SECONDS
    assert 30 < over[0] < 45 and 300 < now < 315


def test_a_server_that_has_lived_for_a_while_is_in_order() -> None:
    patience = Patience(30)
    for _ in range(5):
        patience.seconds(0, 0)
    patience.begin(100)
    assert patience.seconds(100 + LIFE_SECONDS + 1, 0) == 0
