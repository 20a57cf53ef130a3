"""Events in another byte order: what is converted there and back is what it was, and what is not whole is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewfs.linux.byte_orders import fanotify_events, fanotify_responses, inotify_events, signalfd_events

SIGNED, UNSIGNED, LONG = st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ALL = [fanotify_events, inotify_events, signalfd_events]


def record(order: str, kind: int, rest: str, values: tuple[int, ...], tail: bytes) -> bytes:
    body = struct.pack(order + rest, *values) + tail
    return struct.pack(order + "BBH", kind, 0, 4 + len(body)) + body


HANDLES = st.tuples(st.sampled_from([1, 2, 3, 10, 12]), st.just("iiIi"), st.tuples(SIGNED, SIGNED, UNSIGNED, SIGNED))
RECORDS = st.one_of(
    HANDLES,
    st.tuples(st.just(4), st.just("i"), st.tuples(SIGNED)),
    st.tuples(st.just(5), st.just("iI"), st.tuples(SIGNED, UNSIGNED)),
    st.tuples(st.just(6), st.just("IQQ"), st.tuples(UNSIGNED, LONG, LONG)),
    st.tuples(st.just(7), st.just("Q"), st.tuples(LONG)),
    st.tuples(st.just(99), st.just(""), st.just(())),
)
EVENTS = st.lists(st.tuples(LONG, SIGNED, SIGNED, st.lists(st.tuples(RECORDS, st.binary(max_size=9)), max_size=3)))


def fanotify(order: str, events: list) -> bytes:  # type: ignore[type-arg]
    written = b""
    for mask, fd, pid, records in events:
        rest = b"".join(record(order, kind, layout, values, tail) for (kind, layout, values), tail in records)
        written += struct.pack(order + "IBBHQii", 24 + len(rest), 3, 0, 24, mask, fd, pid) + rest
    return written


@given(EVENTS)
def test_fanotify(events: list) -> None:  # type: ignore[type-arg]
    little, big = fanotify("<", events), fanotify(">", events)
    assert fanotify_events(little, "little", "big") == big
    assert fanotify_events(big, "big", "little") == little
    assert fanotify_events(big, "big", "big") == big


@given(st.lists(st.tuples(SIGNED, UNSIGNED, UNSIGNED, st.binary(max_size=40))))
def test_inotify(events: list[tuple[int, int, int, bytes]]) -> None:
    def written(order: str) -> bytes:
        return b"".join(
            struct.pack(order + "iIII", wd, mask, cookie, len(name)) + name for wd, mask, cookie, name in events
        )

    assert inotify_events(written("<"), "little", "big") == written(">")
    assert inotify_events(written(">"), "big", "little") == written("<")


@given(SIGNED, UNSIGNED, LONG, st.binary(min_size=28, max_size=28))
def test_signalfd(number: int, pid: int, address: int, rest: bytes) -> None:
    def written(order: str) -> bytes:
        head = struct.pack(order + "IiiIIiIIIIii", pid, number, number, pid, 0, number, 0, 0, 0, 0, number, number)
        tail = struct.pack(order + "QQQQHHiQI", address, address, 0, address, 7, 0, number, address, pid)
        return head + tail + rest

    assert len(written("<")) == 128, "sizeof(struct signalfd_siginfo)"
    assert signalfd_events(written("<") * 2, "little", "big") == written(">") * 2


@given(SIGNED, UNSIGNED, st.binary(max_size=8))
def test_responses(fd: int, response: int, more: bytes) -> None:
    little, big = struct.pack("<iI", fd, response) + more, struct.pack(">iI", fd, response) + more
    assert fanotify_responses(little, "little", "big") == big
    assert fanotify_responses(big, "big", "little") == little
    with pytest.raises(ValueError, match="short"):
        fanotify_responses(little[:7], "little", "big")


@pytest.mark.parametrize("convert", ALL)
@given(data=st.binary(max_size=200))
def test_what_is_no_row_of_events(convert: Callable[..., bytes], data: bytes) -> None:
    """It is refused, or has the same length."""
    try:
        assert len(convert(data, "little", "big")) == len(data)
    except ValueError:
        pass


@given(EVENTS, st.integers(1, 23))
def test_what_is_cut_short(events: list, missing: int) -> None:  # type: ignore[type-arg]
    data = fanotify(">", [*events, (1, 2, 3, [])])
    with pytest.raises(ValueError, match="short"):
        fanotify_events(data[:-missing], "big", "little")
