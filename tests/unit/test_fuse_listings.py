"""Listings that are made before they are asked for: which, how often, and that nobody notices but by the clock."""

from __future__ import annotations

import errno
import logging
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.memory_fs import failed
from viewfs.modules.api import Attributes, DirectoryEntry, InodeNumber
from viewfs.mounts.fuse.dirents import encode_directory, encode_names
from viewfs.mounts.fuse.listings import Listing, Listings

SECONDS = 20
ROOT = 1
Question = tuple[int, int, int]
Work = Callable[[], object]


class Tree:
    """Directories by number: what is in each, files (negative numbers) and directories. `asked`: for what, in order."""

    def __init__(self, names: dict[int, list[int]]) -> None:
        self.names = names
        self.asked: list[Question] = []
        self.broken: set[int] = set()

    def listing(self, directory: int, start: int, size: int) -> Listing:
        if directory in self.broken:
            raise failed(errno.EIO)
        numbers = [(b".", directory), (b"..", ROOT), *((b"name %d" % n, n) for n in self.names[directory])]
        entries = [
            DirectoryEntry(name, cookie, Attributes(InodeNumber(abs(number)), self._mode(number)))
            for cookie, (name, number) in enumerate(numbers, 1)
        ]
        return encode_directory(entries[start:], size, (1, 0), ROOT, plus=True)

    @staticmethod
    def _mode(number: int) -> int:
        return stat.S_IFREG | 0o644 if number < 0 else stat.S_IFDIR | 0o755

    def make(self, directory: InodeNumber, start: int, size: int) -> Listing:
        self.asked.append((directory, start, size))
        return self.listing(directory, start, size)

    def listings(self, run_later: Callable[[Work], object]) -> Listings:
        return Listings(self.make, lambda work: run_later(work) and None)


def at_once(work: Work) -> None:
    """As another thread that is always in time. An error is its own, as in the one that sends ahead."""
    with suppress(OSError):
        work()


def ask(listings: Listings, directory: int, start: int = 0, size: int = 4096) -> Listing:
    return listings.answer(InodeNumber(directory), start, size)


def whole(listings: Listings, directory: int) -> int:
    """List it to its end, as readdir(3) does; returns how many names there are."""
    cookie = count = 0
    while True:
        body, entries = ask(listings, directory, cookie)
        if not body:
            return count
        cookie = entries[-1].cookie
        count += len(entries)


FILES = [-number for number in range(1000, 1200)]
SMALL = {ROOT: [-10, 2, -11, 3, 4], 2: [5, -12], 3: [-13], 4: [], 5: [-14]}


# -- what is made


def test_the_rest_of_a_long_listing_comes_first() -> None:
    tree = Tree({ROOT: [2, *FILES], 2: []})
    listings = tree.listings(at_once)
    cookie = ask(listings, ROOT)[1][-1].cookie
    assert tree.asked == [(ROOT, 0, 4096), (ROOT, cookie, 4096)], "made before it is asked for"
    ask(listings, ROOT, cookie)
    assert tree.asked.count((ROOT, cookie, 4096)) == 1, "and not made again"
    assert len(tree.asked) == 3 and tree.asked[2][0] == ROOT, "but what follows it is"


def test_the_first_directory_inside_is_next() -> None:
    tree = Tree(SMALL)
    listings = tree.listings(at_once)
    ask(listings, ROOT)
    assert tree.asked == [(ROOT, 0, 4096), (2, 0, 4096)]
    ask(listings, 2)
    assert tree.asked == [(ROOT, 0, 4096), (2, 0, 4096), (5, 0, 4096)]


def test_the_one_behind_is_next_where_there_is_none_inside() -> None:
    tree = Tree(SMALL)
    listings = tree.listings(at_once)
    ask(listings, ROOT)
    ask(listings, 3)
    assert tree.asked[-1] == (4, 0, 4096)


def test_the_one_behind_the_directory_above_is_next_at_the_end_of_a_branch() -> None:
    tree = Tree(SMALL)
    listings = tree.listings(at_once)
    for directory in (ROOT, 2, 5):
        ask(listings, directory)
    assert tree.asked[-1] == (3, 0, 4096)


def test_nothing_is_next_at_the_very_end() -> None:
    tree = Tree(SMALL)
    listings = tree.listings(at_once)
    ask(listings, ROOT)
    before = len(tree.asked)
    ask(listings, 4)
    assert tree.asked[before:] == [(4, 0, 4096)]


def test_walking_a_tree_never_has_to_wait() -> None:
    """Depth first, as find(1) goes: every listing but the first is made ahead, and each once."""
    names: dict[int, list[int]] = {ROOT: [2, -50, 3, 4], 2: [5, 6, -51], 3: [7], 4: [8, 9], 5: [-52], 6: [], 7: [-53]}
    names |= {8: [-54], 9: [-55]}
    tree = Tree(names)
    listings = tree.listings(at_once)

    def walk(directory: int) -> Iterator[int]:
        yield directory
        for number in names[directory]:
            if number > 0:
                yield from walk(number)

    order = list(walk(ROOT))
    for place, directory in enumerate(order):
        asked = len(tree.asked)
        ask(listings, directory)
        # Only what comes next is made now.
        expected = [(other, 0, 4096) for other in ([] if place else [ROOT]) + order[place + 1 : place + 2]]
        assert tree.asked[asked:] == expected, directory


def test_the_size_that_is_asked_for_counts() -> None:
    tree = Tree(SMALL)
    listings = tree.listings(at_once)
    ask(listings, ROOT)
    assert ask(listings, 2, size=200) == tree.listing(2, 0, 200)
    assert ask(listings, 2, size=8192) == tree.listing(2, 0, 8192)


def test_at_most_one_is_made_ahead() -> None:
    """What the other thread comes to late, after something else was asked for, is not made any more."""
    tree = Tree({ROOT: [2, 3, 4], 2: [5], 3: [6], 4: [7], 5: [], 6: [], 7: []})
    later: list[Work] = []
    listings = tree.listings(later.append)
    for directory in (ROOT, 2, 3, 4):
        ask(listings, directory)
    assert tree.asked == [(ROOT, 0, 4096), (2, 0, 4096), (3, 0, 4096), (4, 0, 4096)]
    for work in later:
        work()
    assert tree.asked[4:] == [(7, 0, 4096)]


def test_what_was_made_ahead_is_used_once() -> None:
    """It is not a cache: the kernel has that."""
    tree = Tree(SMALL)
    later: list[Work] = []
    listings = tree.listings(later.append)
    ask(listings, ROOT)
    later.pop()()
    ask(listings, 2)
    ask(listings, 2)
    assert tree.asked.count((2, 0, 4096)) == 2


# -- errors


@pytest.mark.parametrize("run_later", [at_once, lambda work: None], ids=["made ahead", "not made ahead"])
def test_an_error_is_raised_to_who_asks(run_later: Callable[[Work], object]) -> None:
    tree = Tree(SMALL)
    tree.broken = {2}
    listings = tree.listings(run_later)
    assert ask(listings, ROOT) == tree.listing(ROOT, 0, 4096)
    for _again in range(2):
        with pytest.raises(OSError) as caught:
            ask(listings, 2)
        assert caught.value.errno == errno.EIO
    assert ask(listings, 3) == tree.listing(3, 0, 4096)
    tree.broken = set()
    assert ask(listings, 2) == tree.listing(2, 0, 4096), "and is not kept"


# -- several threads


class Slow(Tree):
    """Whose directory 2 takes until it is told to go on."""

    def __init__(self, names: dict[int, list[int]]) -> None:
        super().__init__(names)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def make(self, directory: InodeNumber, start: int, size: int) -> Listing:
        listing = super().make(directory, start, size)
        if directory == 2:
            self.begun.set()
            assert self.go_on.wait(SECONDS)
        return listing


def test_who_asks_for_what_is_being_made_waits_for_it() -> None:
    tree = Slow(SMALL)
    with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(4) as threads:
        listings = tree.listings(other.submit)
        ask(listings, ROOT)
        assert tree.begun.wait(SECONDS)
        asking: list[Future[Listing]] = [threads.submit(ask, listings, 2)]
        assert ask(listings, 4) == tree.listing(4, 0, 4096), "others are answered meanwhile"
        assert not asking[0].done()
        tree.go_on.set()
        assert asking[0].result(SECONDS) == tree.listing(2, 0, 4096)
    # (That 4 was asked for could have made it be forgotten; then it was made by who asked.)
    assert tree.asked.count((2, 0, 4096)) <= 2


def test_it_is_made_once_for_who_waits() -> None:
    tree = Slow(SMALL)
    with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as threads:
        listings = tree.listings(other.submit)
        ask(listings, ROOT)
        assert tree.begun.wait(SECONDS)
        waiting = threads.submit(ask, listings, 2)
        tree.go_on.set()
        assert waiting.result(SECONDS) == tree.listing(2, 0, 4096)
    assert tree.asked.count((2, 0, 4096)) == 1


def test_many_threads_at_once() -> None:
    names = {ROOT: list(range(2, 40))} | {number: [-number * 100 - more for more in FILES] for number in range(2, 40)}
    tree = Tree(names)
    together = threading.Barrier(6)
    with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(6) as threads:
        listings = tree.listings(other.submit)

        def walk() -> list[int]:
            together.wait(SECONDS)
            return [whole(listings, number) for number in [ROOT, *names[ROOT]]]

        for done in [threads.submit(walk) for _thread in range(6)]:
            assert done.result(SECONDS) == [40] + [202] * 38


# -- whatever is asked for, in whatever order


@st.composite
def trees(draw: st.DrawFn) -> dict[int, list[int]]:
    names: dict[int, list[int]] = {ROOT: []}
    for number in range(2, draw(st.integers(2, 12))):
        names[draw(st.sampled_from(sorted(names)))].append(number)
        names[number] = []
    for number, inside in names.items():
        for more in range(draw(st.sampled_from([0, 1, 3, 30]))):
            inside.insert(draw(st.integers(0, len(inside))), -1000 * number - more)
    return names


@settings(max_examples=100, database=None, deadline=None)
@given(st.data(), trees(), st.sampled_from(["at once", "late", "never", "in a thread"]))
def test_the_answer_is_always_what_there_is(data: st.DataObject, names: dict[int, list[int]], when: str) -> None:
    tree = Tree(names)
    tree.broken = data.draw(st.sets(st.sampled_from(sorted(names)), max_size=2), "broken")
    later: list[Work] = []
    with ThreadPoolExecutor(1) as thread:
        run: dict[str, Callable[[Work], object]] = {
            "at once": at_once,
            "late": later.append,
            "never": lambda work: None,
            "in a thread": thread.submit,
        }
        listings = tree.listings(run[when])
        likely: list[Question] = []
        for _question in range(data.draw(st.integers(1, 15), "questions")):
            anything = st.tuples(
                st.sampled_from(sorted(names)), st.integers(0, 35), st.sampled_from([200, 1000, 4096, 1 << 16])
            )
            question = data.draw(st.sampled_from(likely) | anything if likely else anything, "question")
            try:
                answer = ask(listings, *question)
            except OSError:
                assert question[0] in tree.broken
                continue
            assert question[0] not in tree.broken and answer == tree.listing(*question)
            # What a program would ask for next.
            directory, _start, size = question
            likely = [(number, 0, size) for number in [*names[directory], *sorted(names)] if number > 0]
            if answer[1]:
                likely.append((directory, answer[1][-1].cookie, size))
            while later and data.draw(st.booleans(), "now"):
                at_once(later.pop(0))


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@given(names=st.lists(st.binary(min_size=1, max_size=300), max_size=20), size=st.integers(0, 4096))
def test_names_alone_are_packed_as_names_with_attributes_are(names: list[bytes], size: int) -> None:
    """In an answer to READDIR, as many as fit."""
    modes = [stat.S_IFDIR, stat.S_IFREG | 0o644, stat.S_IFLNK]
    entries = [
        DirectoryEntry(name, cookie, Attributes(InodeNumber(cookie << 33), modes[cookie % 3]))
        for cookie, name in enumerate(names, 1)
    ]
    whole, _taken = encode_directory(entries, size, (1, 0), ROOT, plus=False)
    bare = [(entry.name, entry.cookie, entry.attributes.ino, entry.attributes.mode) for entry in entries]
    assert encode_names(bare, size) == whole
