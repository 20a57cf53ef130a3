"""System calls that modules answer: signatures, packets between notifier and server, and what is checked of them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewfs.linux.numbers import AUDIT_ARCH, numbers_by_table, syscall_number
from viewfs.linux.scm import parked, taken_out
from viewfs.linux.signatures import FAMILIES, SIGNATURES, parse_signature
from viewfs.linux.unotify import VIRTUAL, NotifiedCall
from viewfs.modules.api.calls import CallModule, call
from viewfs.session.calls.answering import hand_over
from viewfs.session.calls.messages import (
    ANSWER,
    CALL,
    GIVEN,
    HANDED,
    MOST,
    NUMBER,
    NUMBERS,
    PART_MOST,
    Answer,
    Request,
    counted_names,
    pack_answer,
    pack_request,
    unpack_answer,
    unpack_request,
)
from viewfs.session.calls.notified import RARE, calls_of, group_names, is_notified, needed_family
from viewfs.session.calls.owner import Owner
from viewfs.session.calls.serving import calls_of_module

words = st.tuples(*[st.integers(0, (1 << 64) - 1)] * 6)
parts = st.dictionaries(st.integers(0, 7), st.binary(max_size=300) | st.integers(0, PART_MOST), max_size=8)
ids = st.integers(1, (1 << 64) - 1)


# -- signatures


def test_signatures_are_in_order() -> None:
    for name, signature in SIGNATURES.items():
        arguments = parse_signature(signature)
        for argument in arguments:
            if argument.kind in ("in", "out"):
                assert (argument.length is not None) != (argument.sizes != (0, 0)), name
    assert {name for names in FAMILIES.values() for name in names} <= SIGNATURES.keys()


def test_every_call_has_a_number() -> None:
    """On this machine, or for programs of 32 bits."""
    numbers = {name for table in numbers_by_table(SIGNATURES).values() for name in table.values()}
    missing = SIGNATURES.keys() - numbers
    assert not missing or platform.machine() == "aarch64", missing


@pytest.mark.parametrize(
    "signature",
    [
        "pointer",
        "in",
        "out:x",
        "in@",
        "out@9 size",
        "int int int int int int int",
        "out@1",
        "in@-1 int",
        "in:-5",
        "out:4/-4",
        "??",
    ],
)
def test_what_is_no_signature(signature: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_signature(signature)


# -- what a module declares


class Several(CallModule):
    name = "several"

    @call("unlink")
    @call("rmdir")
    def remove(self, caller: object, path: str) -> None: ...

    @call("open")
    def family(self, caller: object, path: str, flags: int, mode: int) -> None: ...

    @call("creat")
    def one(self, caller: object, path: str, mode: int) -> None: ...

    @call(5000)
    def own(self, caller: object, *words: int) -> None: ...


def test_handlers_of_a_module() -> None:
    found = {name: [handler.method for handler in handlers] for name, _signature, handlers in calls_of_module(Several)}
    assert found["creat"] == ["one", "family"], "one for the call itself comes first"
    assert found["unlinkat"] == ["remove", "remove"] and found["openat"] == ["family"] and found["5000"] == ["own"]
    names = sorted(found)
    assert list(found) == names and counted_names([[name, ""] for name in names]) == [*names, "others"]
    many = counted_names([[str(number), ""] for number in range(100)])
    assert len(many) == 64 and many[-1] == "others"


@pytest.mark.parametrize("which", ["nothing", "", 999, -1, 1 << 30])
def test_what_can_not_be_answered(which: str | int) -> None:
    with pytest.raises(ValueError, match=r"."):
        call(which)
    with pytest.raises(ValueError, match="has a signature"):
        call("uname", "int")


# -- which calls are notified


def test_families_and_groups() -> None:
    everything = set(calls_of(["all"]))
    assert {"openat", "read", "fsync", "clock_gettime", "execve", "getxattr"} <= everything
    assert not everything & set(RARE)
    assert set(calls_of(["open", "read"])) == {*FAMILIES["open"], *FAMILIES["read"]}
    assert list(calls_of([])) == [] and {"all", "paths", "open"} <= set(group_names())
    assert is_notified("uname", []) and is_notified("5000", []) and not is_notified("read", ["open"])
    assert needed_family("preadv2") == "pread" and needed_family("nothing") is None
    for name in SIGNATURES:
        assert name in RARE or needed_family(name) in group_names(), f"{name} can't be asked for"


# -- packets


@given(ids, st.integers(0, 2), st.integers(0, 255), st.sampled_from([32, 64]), words, parts)
def test_requests(number: int, kind: int, which: int, bits: int, given_words: tuple[int, ...], copied: dict) -> None:  # type: ignore[type-arg]
    request = Request(number, kind, which, bits, given_words, copied)
    assert unpack_request(pack_request(request)) == request


@given(ids, st.integers(0, HANDED), st.integers(-(1 << 63), (1 << 63) - 1), st.booleans(),
       st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=6))  # fmt: skip
def test_answers(number: int, kind: int, value: int, close: bool, outs: list[tuple[int, bytes]]) -> None:
    answer = Answer(number, kind, value, close, tuple(outs))
    assert unpack_answer(pack_answer(answer)) == answer


@given(st.binary(max_size=400))
def test_what_is_no_answer(packet: bytes) -> None:
    """It is refused, or read as one; nothing else happens."""
    try:
        found = unpack_answer(packet)
    except ValueError:
        return
    assert found.kind <= HANDED and sum(len(data) for _argument, data in found.outs) <= len(packet)


@given(st.data())
def test_answers_that_are_damaged(data: st.DataObject) -> None:
    packet = bytearray(pack_answer(Answer(7, ANSWER, 1, False, ((2, b"some bytes"), (1, b"")))))
    for _flip in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] ^= data.draw(st.integers(1, 255))
    del packet[data.draw(st.integers(0, len(packet))) :]
    try:
        unpack_answer(bytes(packet))
    except ValueError:
        pass


# -- what an answer may do: the caller is this process


@pytest.fixture
def owner() -> Iterator[tuple[Owner, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    calls = [["5000", "text out@2 size"], ["5001", "in:4 outv@2 int"], ["read", SIGNATURES["read"]]]
    found = Owner(3, ours.detach(), {"module": "m", "calls": calls, "places": [""], "until": None, "token": 1})
    yield found, theirs
    found.close()
    theirs.close()


def notified(number: int, *arguments: int) -> NotifiedCall:

    six = (*arguments, *[0] * (6 - len(arguments)))
    return NotifiedCall(struct.pack("=QIIiIQ6Q", 77, os.getpid(), 0, number, 0, 0, *six))


def test_what_a_server_is_sent(owner: tuple[Owner, socket.socket]) -> None:
    one, server = owner
    text, room = ctypes.create_string_buffer(b"hello"), ctypes.create_string_buffer(10)
    packet = one.request(notified(5000, ctypes.addressof(text), ctypes.addressof(room), 10), "5000", 64, quick=True)
    assert packet is not None and one.send(1, packet)
    request = unpack_request(server.recv(MOST))
    assert (request.id, request.kind, request.which, request.bits) == (77, CALL, 0, 64)
    assert request.copied[0] == b"hello" and request.copied[1] == 10
    with pytest.raises(OSError, match=r"\[Errno 14\]"):
        one.request(notified(5000, 8, 0, 0), "5000", 64, quick=False)
    with pytest.raises(OSError, match=r"\[Errno 22\]"):
        one.request(notified(5001, ctypes.addressof(text), ctypes.addressof(room), 5000), "5001", 64, quick=False)


@pytest.mark.parametrize("out", [(0, b"x"), (2, b"x"), (5, b"x"), (200, b"x"), (1, bytes(11))])
def test_what_no_answer_may_write(owner: tuple[Owner, socket.socket], out: tuple[int, bytes]) -> None:
    """Through an argument that the call does not write to, or more than there is room for."""
    text, room = ctypes.create_string_buffer(b"hello"), ctypes.create_string_buffer(b"." * 30)
    asked = notified(5000, ctypes.addressof(text), ctypes.addressof(room), 10)
    with pytest.raises(ValueError, match="5000"):
        owner[0].put(asked, "5000", 64, Answer(77, ANSWER, 0, outs=(out,)), quick=False)
    assert text.value == b"hello" and room.value == b"." * 30
    owner[0].put(asked, "5000", 64, Answer(77, ANSWER, 0, outs=((1, b"0123456789"),)), quick=False)
    assert room.value == b"0123456789" + b"." * 20


class Caller:
    """A listener that gives this process duplicates, as many as there is room for."""

    def __init__(self, room: int = 99) -> None:
        self.given: list[int] = []
        self.answers: list[tuple[int, int]] = []
        self._room = room

    def give_descriptor(self, call: int, fd: int, **_how: object) -> int:
        if len(self.given) == self._room:
            raise OSError(errno.EMFILE, "too many")
        self.given.append(os.dup(fd))
        return self.given[-1]

    def answer(self, call: int, value: int = 0, error: int = 0) -> None:
        self.answers.append((value, error))


def handed(one: Owner, caller: Caller, queue: int, data: bytes, *places: tuple[int, int], argument: int = 1) -> bytes:
    """Have data with numbers handed over to a caller with room for 24 bytes: what is in that then."""
    text, room = ctypes.create_string_buffer(b"hello"), ctypes.create_string_buffer(b"." * 24, 24)
    asked = notified(5000, ctypes.addressof(text), ctypes.addressof(room), 24)
    numbers = b"".join(NUMBER.pack(*place, 0) for place in places)
    answer = Answer(77, HANDED, len(data), outs=((argument, data), (NUMBERS, numbers)))
    hand_over(one, caller, asked, "5000", answer, queue)  # type: ignore[arg-type]
    for fd in (queue, *caller.given):
        os.close(fd)
    return room.raw


def test_descriptors_with_data(owner: tuple[Owner, socket.socket]) -> None:
    one, server = owner
    caller = Caller()
    found = handed(one, caller, parked(0, 1), bytes(16), (4, 0), (12, 8))
    assert struct.unpack_from("=4xi4xi", found) == tuple(caller.given) and caller.answers == [(16, 0)]
    told = unpack_request(server.recv(MOST))
    assert told.kind == GIVEN and told.copied[0] == struct.pack("=2i", *caller.given)
    caller = Caller(room=1)
    assert handed(one, caller, parked(0, 1), bytes(16), (4, 0), (12, 8))[8:] == b"." * 16
    assert caller.answers == [(8, 0)] and len(unpack_request(server.recv(MOST)).copied[0]) == 4  # type: ignore[arg-type]
    caller = Caller(room=0)
    handed(one, caller, parked(0), bytes(16), (4, 0))
    assert caller.answers == [(0, errno.EMFILE)] and unpack_request(server.recv(MOST)).copied[0] == b""


def an_empty_queue() -> int:
    queue = parked(0)
    for fd in taken_out(queue):
        os.close(fd)
    return queue


@pytest.mark.parametrize(
    ("queue", "data", "places", "argument"),
    [
        (an_empty_queue, bytes(16), [(4, 0)], 1),
        (lambda: parked(0), bytes(16), [(4, 0), (12, 8)], 1),
        (lambda: parked(0, 1), bytes(16), [(4, 0)], 1),
        (lambda: parked(0), bytes(16), [(13, 0)], 1),
        (lambda: parked(0), bytes(16), [(1 << 31, 0)], 1),
        (lambda: parked(0), bytes(25), [(4, 0)], 1),
        (lambda: parked(0), bytes(4), [(0, 0)], 0),
        (lambda: os.open("/dev/null", os.O_RDONLY), bytes(16), [(4, 0)], 1),
    ],
)
def test_what_no_server_hands_over(
    owner: tuple[Owner, socket.socket],
    queue: Callable[[], int],
    data: bytes,
    places: list[tuple[int, int]],
    argument: int,
) -> None:
    caller = Caller()
    assert handed(owner[0], caller, queue(), data, *places, argument=argument) == b"." * 24
    ((_value, error),) = caller.answers
    assert error


def test_a_queue_that_is_full(owner: tuple[Owner, socket.socket]) -> None:
    one, server = owner
    packet = pack_request(Request(1, CALL, 0, 64, (0,) * 6, {0: bytes(60_000)}))
    sent = 0
    while one.send(sent, packet):
        sent += 1
    assert 0 < sent < 1000 and list(one.unsent) == [sent]
    for _packet in range(sent):
        assert server.recv(MOST) == packet
    assert one.send_rest() and not one.unsent and server.recv(MOST) == packet


def test_names_of_numbers() -> None:
    assert VIRTUAL == 1000 and syscall_number("uname") in numbers_by_table(["uname"])[AUDIT_ARCH[platform.machine()]]
