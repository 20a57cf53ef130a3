"""Groups of fanotify(7) and what is refused, without a kernel: queues, masks, ignore masks, priorities, answers."""

from __future__ import annotations

import errno
import itertools
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewfs.linux.fanotify import METADATA_SIZE, Event, Init, Mark, pack_metadata, pack_pidfd, unpack_response
from viewfs.modules.calls.fanotify.groups import QUEUE_MOST, Group, Groups, Happening, Queued, Thing, described
from viewfs.modules.calls.fanotify.rules import check_init, check_mark

FILE = Thing((1, 10), (1, 2), 5, is_directory=False)
DIRECTORY = Thing((1, 2), (1, 1), 5, is_directory=True)
EVENTS = [Event.ACCESS, Event.MODIFY, Event.CLOSE_WRITE, Event.CLOSE_NOWRITE, Event.OPEN, Event.OPEN_EXEC]
_numbers = itertools.count(1)


def group(flags: int = 0, released: list[Queued] | None = None) -> Group:
    return Group(next(_numbers), Init(flags), os.O_RDONLY, (released if released is not None else []).append)


def tell(groups: Groups, thing: Thing, mask: Event, pid: int = 7) -> None:
    groups.tell(Happening(thing, mask, pid, pid + 1), lambda: -1)


def watching(*marks: tuple[object, Event], flags: int = 0) -> tuple[Groups, Group]:
    groups, one = Groups(), group(flags)
    groups.add(one)
    for key, mask in marks:
        one.add_mark(key, mask, Mark.ADD, on_directory=False, written_to=False)  # type: ignore[arg-type]
    return groups, one


def masks(one: Group) -> list[int]:
    return [int(event.mask) for event in one.queue]


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(1, 3), st.integers(10, 12)), max_size=30))
def test_events_of_one_program_on_one_file_are_one(happened: list[tuple[Event, int, int]]) -> None:
    groups, one = watching((("filesystem", 1, 0), Event(0x3FFF)))
    expected: dict[tuple[int, int], int] = {}
    for mask, pid, inode in happened:
        tell(groups, FILE._replace(inode=(1, inode)), mask, pid)
        expected[pid, inode] = expected.get((pid, inode), 0) | mask
    found = [(event.pid, event.thing.inode[1], int(event.mask)) for event in one.queue if event.thing is not None]
    assert found == [(pid, inode, mask) for (pid, inode), mask in expected.items()]


def test_after_reading_an_event_is_a_new_one() -> None:
    groups, one = watching((("inode", 1, 10), Event.OPEN))
    for _time in range(2):
        tell(groups, FILE, Event.OPEN)
        assert len(one.take(METADATA_SIZE, lambda event: METADATA_SIZE)) == 1
    with pytest.raises(OSError) as refused:
        tell(groups, FILE, Event.OPEN)
        one.take(METADATA_SIZE - 1, lambda event: METADATA_SIZE)
    assert refused.value.errno == errno.EINVAL and len(one.queue) == 1


def test_a_queue_that_is_full() -> None:
    groups, one = watching((("filesystem", 1, 0), Event.OPEN))
    for inode in range(QUEUE_MOST + 100):
        tell(groups, FILE._replace(inode=(1, inode)), Event.OPEN)
    assert len(one.queue) == QUEUE_MOST + 1 and one.queue[-1].mask == Event.Q_OVERFLOW
    one.take(1 << 30, lambda event: METADATA_SIZE)
    tell(groups, FILE, Event.OPEN)
    assert masks(one) == [Event.OPEN]
    groups, one = watching((("filesystem", 1, 0), Event.OPEN), flags=Init.UNLIMITED_QUEUE)
    for inode in range(QUEUE_MOST + 100):
        tell(groups, FILE._replace(inode=(1, inode)), Event.OPEN)
    assert len(one.queue) == QUEUE_MOST + 100


@pytest.mark.parametrize(
    ("key", "mask", "thing", "sees"),
    [
        (("inode", 1, 10), Event.OPEN, FILE, True),
        (("inode", 1, 11), Event.OPEN, FILE, False),
        (("inode", 1, 2), Event.OPEN, FILE, False),
        (("inode", 1, 2), Event.OPEN | Event.EVENT_ON_CHILD, FILE, True),
        (("inode", 1, 2), Event.OPEN | Event.EVENT_ON_CHILD, DIRECTORY, False),
        (("inode", 1, 2), Event.OPEN | Event.ONDIR, DIRECTORY, True),
        (("inode", 1, 1), Event.OPEN | Event.EVENT_ON_CHILD, DIRECTORY, False),
        (("inode", 1, 1), Event.OPEN | Event.EVENT_ON_CHILD | Event.ONDIR, DIRECTORY, True),
        (("mount", 5, 0), Event.OPEN, FILE, True),
        (("mount", 6, 0), Event.OPEN, FILE, False),
        (("mount", 5, 0), Event.OPEN, DIRECTORY, False),
        (("filesystem", 1, 0), Event.CLOSE_WRITE, FILE, False),
    ],
)
def test_what_a_mark_sees(key: object, mask: Event, thing: Thing, sees: bool) -> None:
    groups, one = watching((key, mask))
    tell(groups, thing, Event.OPEN | (Event.ONDIR if thing.is_directory else Event(0)))
    assert masks(one) == ([Event.OPEN] if sees else [])


def test_what_is_ignored() -> None:
    groups, one = watching((("mount", 5, 0), Event.OPEN | Event.MODIFY))

    def ignore(key: object, mask: Event, flags: Mark, *, on_directory: bool = False, written_to: bool = False) -> None:
        one.add_mark(key, mask, Mark.ADD | flags, on_directory=on_directory, written_to=written_to)  # type: ignore[arg-type]

    def sees() -> bool:
        tell(groups, FILE, Event.OPEN)
        found = masks(one)
        one.take(1 << 20, lambda event: METADATA_SIZE)
        return any(mask & Event.OPEN for mask in found)

    ignore(("inode", 1, 10), Event.OPEN, Mark.IGNORED_MASK, written_to=True)
    assert sees(), "somebody has it open for writing"
    ignore(("inode", 1, 10), Event.OPEN, Mark.IGNORED_MASK)
    assert not sees()
    tell(groups, FILE, Event.MODIFY)
    assert sees(), "it was modified"
    ignore(("inode", 1, 10), Event.OPEN, Mark.IGNORED_MASK | Mark.IGNORED_SURV_MODIFY)
    tell(groups, FILE, Event.MODIFY)
    assert not sees()
    one.remove_mark(("inode", 1, 10), Event.OPEN, Mark.REMOVE | Mark.IGNORED_MASK, Event(0))
    assert sees() and ("inode", 1, 10) not in one.marks
    ignore(
        ("inode", 1, 2), Event.OPEN | Event.EVENT_ON_CHILD, Mark.IGNORE | Mark.IGNORED_SURV_MODIFY, on_directory=True
    )
    assert not sees()
    for flags in (Mark.IGNORED_MASK, Mark.IGNORE, Mark.IGNORE | Mark.EVICTABLE):
        with pytest.raises(OSError) as refused:
            ignore(("inode", 1, 2), Event.OPEN, flags, on_directory=True)
        assert refused.value.errno == errno.EEXIST


def test_who_is_asked_first() -> None:
    groups = Groups()
    order = [group(0), group(Init.CLASS_CONTENT), group(Init.CLASS_PRE_CONTENT), group(Init.CLASS_CONTENT)]
    for one in order:
        groups.add(one)
        one.add_mark(("mount", 5, 0), Event.OPEN_PERM, Mark.ADD, on_directory=False, written_to=False)
    assert groups.who_is_asked(FILE, Event.OPEN_PERM) == [order[2], order[1], order[3]]
    assert groups.who_is_asked(FILE, Event.ACCESS_PERM) == []


def test_answers() -> None:
    said: list[int] = []
    released: list[Queued] = []
    one = group(Init.CLASS_CONTENT, released)
    happening = Happening(FILE, Event(0), 7, 8)
    for fd in (3, 4, 5):
        queued = one.ask(happening, Event.OPEN_PERM, lambda: -1, said.append)
        assert queued is not None
        taken = one.take(METADATA_SIZE, lambda event: METADATA_SIZE)
        one.arrived(taken)
        one.asked.append((fd, taken[0]))
    one.respond(4, 2)
    one.respond(3, 1)
    assert said == [errno.EPERM, 0]
    for fd, response, number in (
        (4, 1, errno.ENOENT),
        (-1, 1, errno.EINVAL),
        (5, 3, errno.EINVAL),
        (5, 0x11, errno.EINVAL),
    ):
        with pytest.raises(OSError) as refused:
            one.respond(fd, response)
        assert refused.value.errno == number
    withdrawn = one.ask(happening, Event.OPEN_PERM, lambda: -1, said.append)
    assert withdrawn is not None
    one.withdraw(withdrawn)
    assert not one.queue
    one.ask(happening, Event.OPEN_PERM, lambda: -1, said.append)
    one.close()
    assert said == [errno.EPERM, 0, 0, 0] and len(released) == 5


def test_what_a_group_is_said_to_be() -> None:
    _groups, one = watching((("inode", os.makedev(8, 1), 10), Event.OPEN), (("mount", 5, 0), Event.MODIFY))
    one.add_mark(("filesystem", 3, 0), Event.OPEN, Mark.ADD | Mark.IGNORED_MASK, on_directory=False, written_to=False)
    assert described(one, "pos:\t0\n").splitlines() == [
        "pos:\t0", "fanotify flags:0 event-flags:0",
        "fanotify ino:a sdev:800001 mflags: 0 mask:20 ignored_mask:0 ",
        "fanotify mnt_id:5 mflags:0 mask:2 ignored_mask:0",
        "fanotify sdev:3 mflags:0 mask:0 ignored_mask:20",
    ]  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_only_known_flags_make_a_group(flags: int, file_flags: int) -> None:
    try:
        check_init(flags, file_flags)
    except OSError as error:
        assert error.errno == errno.EINVAL
    else:
        assert not flags & ~0x7FFF and not file_flags & ~0o5316003


@given(st.integers(0, 2**32 - 1) | st.integers(0, 0x7FF), st.integers(0, 2**64 - 1) | st.sampled_from([*Event]))
def test_only_known_flags_make_a_mark(flags: int, mask: int) -> None:
    try:
        found = check_mark(group(Init.CLASS_CONTENT), flags, mask)
    except OSError as error:
        assert error.errno == errno.EINVAL
    else:
        assert not flags & ~0x7FF and not found & ~mask


def test_structures() -> None:
    assert pack_metadata(0x20, 5, 77, 8) == struct.pack("=IBBHQii", 32, 3, 0, 24, 0x20, 5, 77)
    assert pack_pidfd(9) == struct.pack("=BBHi", 4, 0, 8, 9)
    assert unpack_response(struct.pack("=iI", 3, 2) + b"more") == (3, 2)
    with pytest.raises(ValueError, match="short"):
        unpack_response(b"1234567")
