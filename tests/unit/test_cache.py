"""Caches: what they keep and for how long, and that each value is made once, however many threads want it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.modules.framework.cache import Cache, SingleFlightCache

SECONDS = 20


class Model:
    """What `Cache` does, in the simplest way: (key, value, weight), the most recently used last."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: list[tuple[int, int, int]] = []

    def get(self, key: int) -> int | None:
        for one in self.kept:
            if one[0] == key:
                self.kept.remove(one)
                self.kept.append(one)
                return one[1]
        return None

    def put(self, key: int, value: int, weight: int) -> None:
        self.kept = [one for one in self.kept if one[0] != key] + [(key, value, weight)]
        while sum(weight for _key, _value, weight in self.kept) > self.limit:
            self.kept.pop(0)


keys = st.integers(0, 7)
steps = st.lists(st.tuples(keys) | st.tuples(keys, st.integers(1, 12)), max_size=60)


@settings(database=None, deadline=None)
@given(st.integers(0, 25), steps)
def test_the_most_recently_used_are_kept_within_the_bound(limit: int, steps: list[tuple[int, ...]]) -> None:
    cache: Cache[int, int] = Cache(limit)
    model = Model(limit)
    for value, step in enumerate(steps):
        if len(step) == 1:
            assert cache.get(step[0]) == model.get(step[0])
        else:
            assert cache.put(step[0], value, step[1]) == value
            model.put(step[0], value, step[1])
    # Each is asked for once, in an order that changes nothing about which are there.
    assert {key: cache.get(key) for key in range(8)} == {key: model.get(key) for key in range(8)}


@settings(database=None, deadline=None)
@given(st.integers(0, 25), st.lists(keys, max_size=60))
def test_a_value_is_made_when_it_is_not_kept(limit: int, asked: list[int]) -> None:
    made: list[int] = []

    def make(key: int) -> bytes:
        made.append(key)
        return bytes(key + 1)

    cache = SingleFlightCache(limit, make, len)
    model = Model(limit)
    expected = []
    for key in asked:
        if model.get(key) is None:
            expected.append(key)
            model.put(key, key, key + 1)
        assert cache.get(key) == bytes(key + 1)
    assert made == expected
    assert (cache.hits, cache.misses) == (len(asked) - len(made), len(made))


def test_nothing_is_lost_among_threads() -> None:
    """Bounds hold and no call fails, whatever several threads put and get."""
    cache: Cache[int, int] = Cache(50)

    def use(seed: int) -> None:
        for step in range(3000):
            key = (step * 7 + seed) % 40
            if step % 3:
                assert cache.get(key) in (None, key * 10)
            else:
                cache.put(key, key * 10, key % 5 + 1)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(use, seed) for seed in range(8)]:
            done.result(SECONDS)
    assert 0 < sum(key % 5 + 1 for key in range(40) if cache.get(key) is not None) <= 50


def ask_from_threads(count: int, ask: Callable[[], object]) -> list[object]:
    """What each of so many threads got, or the error that it got."""
    together = threading.Barrier(count)

    def one() -> object:
        together.wait(SECONDS)
        try:
            return ask()
        except OSError as error:
            return error

    with ThreadPoolExecutor(count) as threads:
        return [done.result(SECONDS) for done in [threads.submit(one) for _ in range(count)]]


def test_eight_threads_that_want_the_same_have_it_made_once() -> None:
    made: list[object] = []
    asking = threading.Semaphore(0)

    def make(key: str) -> object:
        for _thread in range(8):  # every one has come, or is about to
            assert asking.acquire(timeout=SECONDS)
        made.append(object())
        return made[-1]

    cache = SingleFlightCache(10, make, lambda _value: 1)

    def ask() -> object:
        asking.release()
        return cache.get("key")

    got = ask_from_threads(8, ask)
    assert len(made) == 1 and all(value is made[0] for value in got)
    assert (cache.hits, cache.misses) == (7, 1)


def test_different_ones_are_made_side_by_side() -> None:
    """Each is made only when all of them are being made: one at a time it would wait in vain."""
    all_at_it = threading.Barrier(4)

    def make(key: int) -> int:
        all_at_it.wait(SECONDS)
        return key * key

    cache = SingleFlightCache(10, make, lambda _value: 1)
    with ThreadPoolExecutor(4) as threads:
        assert [done.result(SECONDS) for done in [threads.submit(cache.get, key) for key in range(4)]] == [0, 1, 4, 9]


def test_others_can_be_had_while_one_is_being_made() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(key: str) -> str:
        if key == "slow":
            begun.set()
            assert go_on.wait(SECONDS)
        return key.upper()

    cache = SingleFlightCache(10, make, lambda _value: 1)
    assert cache.get("kept") == "KEPT"
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(cache.get, "slow")
        assert begun.wait(SECONDS)
        assert (cache.get("kept"), cache.get("quick")) == ("KEPT", "QUICK")
        assert not slow.done()
        go_on.set()
        assert slow.result(SECONDS) == "SLOW"


def test_an_error_goes_to_all_that_asked_and_is_forgotten() -> None:
    attempts: list[int] = []
    asking = threading.Semaphore(0)
    waiting = threading.Event()

    def make(key: str) -> str:
        attempts.append(1)
        if len(attempts) == 1:
            for _thread in range(8):
                assert asking.acquire(timeout=SECONDS)
            waiting.set()
            raise OSError(errno.EIO, "cannot be read")
        return "made after all"

    cache = SingleFlightCache(10, make, lambda _value: 1)

    def ask() -> object:
        asking.release()
        return cache.get("key")

    got = ask_from_threads(8, ask)
    failed = [error for error in got if isinstance(error, OSError)]
    # (One that came only after the failure has the value, for it had it made again.)
    assert failed and all(error.errno == errno.EIO for error in failed)
    assert set(got) - set(failed) <= {"made after all"}
    assert cache.get("key") == "made after all"
    assert len(attempts) == 2


@pytest.mark.parametrize("fault", [RuntimeError("a fault"), KeyError("a fault")])
def test_a_fault_in_making_leaves_nobody_waiting(fault: Exception) -> None:
    """It goes to whoever makes the value; others try for themselves."""
    attempts: list[int] = []

    def make(key: str) -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise fault
        return "made"

    cache = SingleFlightCache(10, make, lambda _value: 1)
    with pytest.raises(type(fault)):
        cache.get("key")
    with ThreadPoolExecutor(2) as threads:
        assert [done.result(SECONDS) for done in [threads.submit(cache.get, "key") for _ in range(2)]] == ["made"] * 2
    assert len(attempts) == 2


def test_what_is_too_heavy_to_keep_is_handed_out_all_the_same() -> None:
    cache = SingleFlightCache(10, lambda size: bytes(size), len)
    assert cache.get(5) == bytes(5)
    for _again in range(2):
        assert cache.get(11) == bytes(11)
    assert cache.misses == 3
