"""Messages in pieces, from memory and from files, as whoever reads the descriptor gets them.

(A stream socket stands for /dev/fuse: unlike there what is spliced may come in several parts, and a message is told by
the length in its header.)
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from viewfs.modules.api import Buffer, FileRange
from viewfs.mounts.fuse.protocol import encode_reply_header
from viewfs.mounts.fuse.transmit import Transmitter, length_of, pieces_of

#: Fewer bytes of files are copied.
SPLICED = 32 << 10
Piece = Buffer | FileRange


class Wire:
    """Both ends; what arrives is read by a thread of its own."""

    def __init__(self) -> None:
        self.ours, self._theirs = socket.socketpair()
        self._arrived = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.transmitter = Transmitter(self._theirs.fileno())

    def _read(self) -> None:
        while data := self.ours.recv(1 << 20):
            self._arrived += data

    def send(self, unique: int, pieces: Sequence[Piece]) -> None:
        self.transmitter.send(encode_reply_header(unique, length_of(pieces)), pieces)

    def close(self) -> None:
        self.transmitter.close()
        self._theirs.close()
        self._reader.join(20)
        assert not self._reader.is_alive()
        self.ours.close()

    def messages(self) -> list[tuple[int, bytes]]:
        """(unique, body) of all that has been sent; nothing can be sent after it."""
        self.close()
        found, at = [], 0
        while at < len(self._arrived):
            length, error, unique = struct.unpack_from("=IiQ", self._arrived, at)
            assert error == 0 and at + length <= len(self._arrived), "whole"
            found.append((unique, bytes(self._arrived[at + 16 : at + length])))
            at += length
        return found


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


CONTENT = random.Random(1).randbytes(3 << 20)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transmit") / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def file(content: Path) -> Iterator[int]:
    fd = os.open(content, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def splices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that something was spliced from, as it was: the call is made."""
    seen: list[int] = []
    splice = os.splice

    def watched(src: int, dst: int, count: int, **offsets: int) -> int:
        seen.append(src)
        return splice(src, dst, count, **offsets)

    monkeypatch.setattr(os, "splice", watched)
    return seen


def said(pieces: Sequence[Piece]) -> bytes:
    """What `pieces` are, from the file's content rather than from the file."""
    return b"".join(CONTENT[p.offset :][: p.size] if isinstance(p, FileRange) else bytes(p) for p in pieces)


def test_the_kinds_of_pieces(wire: Wire, file: int) -> None:
    several: list[list[Piece]] = [
        [],
        [b"bytes"],
        [bytearray(b"array"), memoryview(b"a view of it")[2:6], b""],
        [FileRange(file, 5, 100)],
        [b"before", FileRange(file, 4095, 2), bytearray(b"behind")],
        [FileRange(file, 4097, 100_000)],
        [b"before", FileRange(file, 0, 65_536), memoryview(b"between"), FileRange(file, 12_345, 54_321), b"behind"],
        [FileRange(file, 0, 1 << 20)],
        [bytes(200_000), FileRange(file, 1, 40_000)],
    ]
    for unique, pieces in enumerate(several, 1):
        wire.send(unique, pieces)
    assert wire.messages() == [(unique, said(pieces)) for unique, pieces in enumerate(several, 1)]


def test_content_as_pieces(file: int) -> None:
    part = FileRange(file, 1, 2)
    assert pieces_of(part) == [part] and pieces_of(b"x") == [b"x"] and pieces_of([part, b"x"]) == [part, b"x"]
    assert length_of([part, b"xyz", bytearray(4), memoryview(bytes(8))]) == 17


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(
            st.binary(max_size=9000)
            | st.binary(max_size=300).map(bytearray)
            | st.tuples(st.integers(0, 2 << 20), st.integers(1, 1 << 19)),
            max_size=12,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_it_is_made_of_arrives(file: int, drawn: list[list[bytes | bytearray | tuple[int, int]]]) -> None:
    messages = [[FileRange(file, *piece) if isinstance(piece, tuple) else piece for piece in one] for one in drawn]
    wire = Wire()
    try:
        for unique, pieces in enumerate(messages):
            wire.send(unique, pieces)
    finally:
        assert wire.messages() == [(unique, said(pieces)) for unique, pieces in enumerate(messages)]


def test_what_is_large_is_spliced_and_what_is_small_is_copied(wire: Wire, file: int, splices: list[int]) -> None:
    wire.send(1, [b"x" * 100_000])
    wire.send(2, [FileRange(file, 0, SPLICED - 1)])
    assert splices == []
    wire.send(3, [FileRange(file, 0, SPLICED)])
    assert file in splices
    splices.clear()
    wire.send(4, [FileRange(file, 3, 20_000), b"between", FileRange(file, 50_000, 20_000)])
    assert splices.count(file) >= 2, "it is what they come to together that counts"
    assert [len(body) for _unique, body in wire.messages()] == [100_000, SPLICED - 1, SPLICED, 40_007]


# -- files that are shorter than was said


@pytest.mark.parametrize("size", [100, 200_000, 1 << 20, 2 << 20], ids=["copied", "spliced", "full pipe", "too large"])
@pytest.mark.parametrize("kept", [0, 50, 50_000])
def test_a_file_that_has_become_shorter(wire: Wire, tmp_path: Path, file: int, size: int, kept: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT[: min(kept, size - 1)])
    short = os.open(path, os.O_RDONLY)
    try:
        wire.send(1, [FileRange(file, 0, 70_000)])
        with pytest.raises(OSError) as caught:
            wire.send(2, [b"in memory", FileRange(short, 0, size), b"behind"])
        assert caught.value.errno == errno.EIO
        wire.send(3, [FileRange(file, 70_000, 70_000)])
        wire.send(4, [b"in memory"])
    finally:
        os.close(short)
    # Nothing of the second one has been seen by anybody.
    assert wire.messages() == [(1, CONTENT[:70_000]), (3, CONTENT[70_000:140_000]), (4, b"in memory")]


def test_sending_to_nobody(file: int) -> None:
    """The errno is the one that the descriptor gives, however it is sent, and descriptors are given back."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        transmitter = Transmitter(theirs.fileno())
        try:
            for pieces in ([b"x"], [FileRange(file, 0, 100_000)], [b"x"]):
                with pytest.raises(BrokenPipeError):
                    transmitter.send(b"header", pieces)
        finally:
            transmitter.close()


# -- many pieces


def of_both_kinds(file: int, count: int) -> list[Piece]:
    return [b"%d" % number if number % 2 else FileRange(file, number * 300, 200) for number in range(count)]


def of_a_file(file: int, count: int) -> list[Piece]:
    return [FileRange(file, number * 2048, 1024) for number in range(count)]


def of_memory(file: int, count: int) -> list[Piece]:
    return [b"%d" % number for number in range(count)]


@pytest.mark.parametrize("make", [of_both_kinds, of_a_file, of_memory])
@pytest.mark.parametrize("count", [127, 400, 1000, 1024])
def test_more_pieces_than_a_pipe_has_slots(
    wire: Wire, file: int, make: Callable[[int, int], list[Piece]], count: int
) -> None:
    """1024 is what a reply of 1 MiB has where the blocks of an image are of 1 KiB, and one more than writev(2)
    takes.
    """
    pieces = make(file, count)
    wire.send(1, pieces)
    wire.send(2, [FileRange(file, 5, 50_000)])
    assert wire.messages() == [(1, said(pieces)), (2, CONTENT[5:50_005])]
