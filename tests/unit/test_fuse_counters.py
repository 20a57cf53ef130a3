"""Counters of a server: classes of latencies, rows of threads, and what is read of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.mounts.fuse.counters import MAX_ROWS, Counters, Latency, bucket_of, latency_of, upper_bound_ns
from viewfs.mounts.fuse.protocol import Opcode

#: Latencies from here to there are told apart: 1.024 µs, and 15 s.
SHORTEST, LONGEST = 1 << 10, 15_000_000_000
CLASSES = 96

durations = st.integers(0, LONGEST) | st.integers(0, 34).flatmap(lambda bits: st.integers(0, min(1 << bits, LONGEST)))


@pytest.fixture
def counters() -> Iterator[Counters]:
    counters = Counters.create()
    yield counters
    counters.close()


# -- classes of latencies


@settings(max_examples=500, database=None, deadline=None)
@given(durations)
def test_a_class_says_how_long_it_took(nanoseconds: int) -> None:
    bound = upper_bound_ns(bucket_of(nanoseconds))
    assert nanoseconds <= bound
    if nanoseconds >= SHORTEST:
        assert bound <= nanoseconds * 1.25
    else:
        assert bound == SHORTEST


@settings(max_examples=300, database=None, deadline=None)
@given(durations, durations)
def test_what_takes_longer_is_in_no_lower_class(one: int, other: int) -> None:
    shorter, longer = sorted((one, other))
    assert bucket_of(shorter) <= bucket_of(longer)


def test_classes_follow_one_another_without_gaps() -> None:
    bounds = [upper_bound_ns(bucket) for bucket in range(CLASSES)]
    assert bounds == sorted(set(bounds))
    for bucket, bound in enumerate(bounds[:-1]):
        assert (bucket_of(bound - 1), bucket_of(bound)) == (bucket, bucket + 1)


@pytest.mark.parametrize("nanoseconds", [1 << 34, 1 << 40, 1 << 62])
def test_what_takes_longer_than_any_is_in_the_last(nanoseconds: int) -> None:
    assert bucket_of(nanoseconds) == CLASSES - 1


@settings(max_examples=300, database=None, deadline=None)
@given(st.lists(durations, min_size=1, max_size=300))
def test_quantiles_are_those_of_the_sorted_list(measured: list[int]) -> None:
    counts = [0] * CLASSES
    for nanoseconds in measured:
        counts[bucket_of(nanoseconds)] += 1
    found = latency_of(counts)
    assert found is not None and found.p50 <= found.p99
    measured.sort()
    for percent, shown in ((50, found.p50), (99, found.p99)):
        # The least of them that so many of a hundred do not exceed.
        true = measured[-(-len(measured) * percent // 100) - 1]
        assert true <= shown <= max(true * 1.25, SHORTEST)


def test_no_latency_without_requests() -> None:
    assert latency_of([0] * CLASSES) is None


# -- rows


def test_rows_are_added_up(counters: Counters) -> None:
    for number, row in enumerate(counters.rows, 1):
        for _time in range(number):
            row.count(Opcode.READ, 100, failed=False)
        row.count(Opcode.LOOKUP, 0, failed=True)
        row.count_error()
        row.count_pushed(10 * number)
        row.count_latency(Opcode.READ, 5000 * number)
    total = sum(range(1, MAX_ROWS + 1))
    snapshot = counters.snapshot()
    assert snapshot.requests == {"read": total, "lookup": MAX_ROWS}
    assert snapshot.total == total + MAX_ROWS
    assert (snapshot.bytes_out, snapshot.errors) == (100 * total, 2 * MAX_ROWS)
    assert (snapshot.pushes, snapshot.bytes_pushed) == (MAX_ROWS, 10 * total)


def test_names_are_those_of_the_protocol(counters: Counters) -> None:
    for opcode in Opcode:
        counters.rows[0].count(opcode, 1, failed=False)
        counters.rows[1].count_latency(opcode, 3000)
    snapshot = counters.snapshot()
    assert snapshot.requests == {opcode.name.lower(): 1 for opcode in Opcode}
    # Within a quarter of 3 µs.
    assert set(snapshot.latency) == set(snapshot.requests) | {"all"}
    assert all(3000 <= latency.p50 == latency.p99 <= 3750 for latency in snapshot.latency.values())


def test_each_kind_has_latencies_of_its_own(counters: Counters) -> None:
    row = counters.rows[2]
    for opcode, nanoseconds, times in ((Opcode.LOOKUP, 2000, 90), (Opcode.READ, 1_000_000, 10)):
        for _time in range(times):
            row.count(opcode, 0, failed=False)
            row.count_latency(opcode, nanoseconds)
    latency = counters.snapshot().latency
    assert 2000 <= latency["lookup"].p99 <= 2500
    assert 1_000_000 <= latency["read"].p50 <= 1_250_000
    assert latency["all"] == Latency(latency["lookup"].p50, latency["read"].p99)


def test_opcodes_that_nobody_knows_spoil_nothing(counters: Counters) -> None:
    for opcode in (0, 7, 63, 64, 95, 4096, (1 << 32) - 1):
        counters.rows[0].count(opcode, 1, failed=True)
        counters.rows[0].count_latency(opcode, 1 << 62)
    snapshot = counters.snapshot()
    assert (snapshot.requests, snapshot.latency) == ({}, {})
    assert (snapshot.bytes_out, snapshot.errors, snapshot.pushes, snapshot.hits) == (7, 7, 0, 0)


def test_caches_say_what_they_have_counted_so_far(counters: Counters) -> None:
    class Counts:
        def __init__(self, hits: int, misses: int) -> None:
            self.hits, self.misses = hits, misses

    one, other = Counts(3, 1), Counts(10, 20)
    for _time in range(2):
        counters.rows[0].note_caches([one, other])
        assert (counters.snapshot().hits, counters.snapshot().misses) == (13, 21)
    other.hits += 5
    counters.rows[0].note_caches([one, other])
    assert counters.snapshot().hits == 18
    other.misses += 2
    counters.rows[1].note_caches([one, other])
    assert (counters.snapshot().hits, counters.snapshot().misses) == (18, 23), "another thread, the same caches"


def test_threads_in_rows_of_their_own_lose_nothing(counters: Counters) -> None:
    times = 5000
    together = Barrier(MAX_ROWS)

    def count(number: int) -> None:
        row = counters.rows[number]
        together.wait(20)
        for time in range(times):
            row.count(Opcode.READ, 3, failed=time % 2 == 0)
            row.count_latency(Opcode.READ, 1000 * time)
            row.count_pushed(2)

    with ThreadPoolExecutor(MAX_ROWS) as threads:
        for done in [threads.submit(count, number) for number in range(MAX_ROWS)]:
            done.result(20)
    snapshot = counters.snapshot()
    total = times * MAX_ROWS
    assert snapshot.requests == {"read": total}
    assert (snapshot.bytes_out, snapshot.errors) == (3 * total, total // 2)
    assert (snapshot.pushes, snapshot.bytes_pushed) == (total, 2 * total)


def test_who_has_the_descriptor_can_read_them(counters: Counters) -> None:
    """A supervisor reads what its server counts."""
    counters.rows[1].count(Opcode.GETATTR, 104, failed=False)
    reader = Counters(os.dup(counters.fd))
    try:
        assert reader.snapshot() == counters.snapshot()
        counters.rows[MAX_ROWS - 1].count(Opcode.GETATTR, 104, failed=False)
        assert reader.snapshot().requests == {"getattr": 2}
    finally:
        reader.close()
