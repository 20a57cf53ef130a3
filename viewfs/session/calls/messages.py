"""What a notifier and the server of a module say to each other about system calls: packets of a socket.

The notifier reads the caller's memory, and writes to it; the server sees copies. What a server says may come from
somebody who has taken it over, and is refused if it is not exactly of this form.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = [
    "AGAIN", "ANSWER", "BEGUN", "BUFFER", "CALL", "CALLER", "CANCEL", "CANCELLED", "COUNTED", "CWD", "DESCRIPTOR",
    "ERRNO_END", "ERROR", "FACTS", "FILE", "GIVEN", "GO_ON", "HANDED", "HAS",
    "IS_SPECIAL", "MARK", "MOST", "NUMBER", "NUMBERS", "OPENED", "PART_MOST", "RELATIVE", "Answer",
    "Request", "counted_names", "pack_answer", "pack_request", "unpack_answer", "unpack_request",
]  # fmt: skip

#: How many of a module's calls are counted each by itself; all others are together.
COUNTED = 63
#: Bytes of one part of a packet, and of a packet with six of them, at most; and the buffer that this takes (the kernel
#: doubles it: SO_SNDBUF of socket(7)).
PART_MOST = 1 << 16
MOST = 6 * PART_MOST + 8192
BUFFER = 212992
#: Kinds of requests: a call; give up that call; the server that has begun by this number has read all that was sent
#: before it did (0: it is to say again that it has); a call that another notifier may have asked for before; the
#: numbers that a caller has for what it was handed.
CALL, CANCEL, MARK, AGAIN, GIVEN = range(5)
#: Kinds of answers: a value; an errno; as if the module were not there; it was given up; a descriptor, which comes with
#: the packet; a file with the content that is in the packet; a server has begun, in place of another, and
#: by this number; these calls it
#: has of those that were sent before the mark; a file of the caller's view, opened with the flags that are the value; a
#: value, and data with numbers of descriptors, which lie in the queue of a socket that comes with the packet.
ANSWER, ERROR, GO_ON, CANCELLED, DESCRIPTOR, FILE, BEGUN, HAS, OPENED, HANDED = range(10)
#: In place of an argument: the part is the working directory; facts of the caller; where the numbers of descriptors go;
#: which arguments were relative paths.
CWD, CALLER, NUMBERS, RELATIVE = 6, 7, 8, 9
#: Flag of `OPENED`, besides those of open(2): the descriptor is a special one.
IS_SPECIAL = 1 << 40
#: Of `NUMBERS`: where a number goes in the data; how much of the data is good if there is no number; close-on-exec.
NUMBER = struct.Struct("=IIB")
#: Errors from here on are the kernel's own (ERESTARTSYS, say), which no program is to see.
ERRNO_END = 512
#: Of the caller: process, thread, effective user and group.
FACTS = struct.Struct("=IIII")

#: Id, kind, which of the module's calls, bits of a word, the six words; then the parts.
_REQUEST = struct.Struct("=QBHB6Q")
#: Id, kind, close-on-exec, value; then the parts.
_ANSWER = struct.Struct("=QBBq")
#: Of a part: which argument, how many bytes follow, or as many as there is room for.
_PART = struct.Struct("=BBI")
_BYTES, _ROOM = 0, 1


class Request(NamedTuple):
    """A call. `copied`: argument → its bytes, or how many bytes may be written there."""

    id: int
    kind: int
    which: int
    bits: int
    words: tuple[int, ...]
    copied: dict[int, bytes | int]


class Answer(NamedTuple):
    """What the caller is to get. `outs`: argument → bytes to be written there; in a `FILE`, argument 0 is its content,
    in `OPENED` its path;
    in `HAS`, it is the ids, each of 8 bytes."""

    id: int
    kind: int
    value: int = 0
    close_on_exec: bool = False
    outs: tuple[tuple[int, bytes], ...] = ()
    #: What a server sends with the packet.
    descriptor: int | None = None


def counted_names(calls: list[list[str]]) -> list[str]:
    """What the counters of a server count that answers these calls."""
    return [*(name for name, _signature in calls[:COUNTED]), "others"]


def pack_request(request: Request) -> bytes:
    parts = [_REQUEST.pack(request.id, request.kind, request.which, request.bits, *request.words)]
    for argument, value in request.copied.items():
        if isinstance(value, int):
            parts.append(_PART.pack(argument, _ROOM, value))
        else:
            parts += _PART.pack(argument, _BYTES, len(value)), value
    return b"".join(parts)


def unpack_request(packet: bytes) -> Request:
    call, kind, which, bits, *words = _REQUEST.unpack_from(packet)
    return Request(call, kind, which, bits, tuple(words), dict(_parts(packet, _REQUEST.size)))


def pack_answer(answer: Answer) -> bytes:
    parts = [_ANSWER.pack(answer.id, answer.kind, answer.close_on_exec, answer.value)]
    for argument, data in answer.outs:
        parts += _PART.pack(argument, _BYTES, len(data)), data
    return b"".join(parts)


def unpack_answer(packet: bytes) -> Answer:
    """Raises ValueError for what no honest server says."""
    if len(packet) < _ANSWER.size:
        raise ValueError("an answer that is too short")
    call, kind, close_on_exec, value = _ANSWER.unpack_from(packet)
    outs = []
    for argument, data in _parts(packet, _ANSWER.size):
        if isinstance(data, int):
            raise ValueError("room, in an answer")
        outs.append((argument, data))
    if kind > HANDED:
        raise ValueError(f"an answer of kind {kind}")
    return Answer(call, kind, value, bool(close_on_exec), tuple(outs))


def _parts(packet: bytes, at: int) -> list[tuple[int, bytes | int]]:
    found: list[tuple[int, bytes | int]] = []
    while at < len(packet):
        if at + _PART.size > len(packet):
            raise ValueError("half a part")
        argument, kind, length = _PART.unpack_from(packet, at)
        at += _PART.size
        if kind == _ROOM:
            found.append((argument, length))
            continue
        if kind != _BYTES or at + length > len(packet):
            raise ValueError("a part that is longer than its packet")
        found.append((argument, packet[at : at + length]))
        at += length
    return found
