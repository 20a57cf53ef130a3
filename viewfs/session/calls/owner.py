"""A module that answers system calls, as the notifier sees it: which calls are its own, and what is copied for them.

The module's server gets copies of what arguments point to, made once, and its answers are checked: they reach the
caller that it was asked about, the arguments that the call writes to, and no more bytes than there is room for.
"""

from __future__ import annotations

import errno
import os
import struct

from viewfs.errors import os_error
from viewfs.linux.plain import socket
from viewfs.linux.process import thread_group_of
from viewfs.linux.scm import descriptors_in, room_for
from viewfs.linux.signatures import Argument, parse_signature
from viewfs.paths import is_at_or_below
from viewfs.session.calls.caller import Caller
from viewfs.session.calls.messages import (
    AGAIN,
    CALL,
    CALLER,
    CANCEL,
    CWD,
    FACTS,
    GIVEN,
    MARK,
    MOST,
    PART_MOST,
    RELATIVE,
    Answer,
    Request,
    pack_request,
    unpack_answer,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from viewfs.linux.unotify import NotifiedCall

__all__ = ["Owner", "is_harmless"]

#: For the packets of all servers, one after the other.
_buffer = memoryview(bytearray(MOST))
#: struct iovec, for callers of 64 and of 32 bits.
_IOVEC = {64: struct.Struct("=QQ"), 32: struct.Struct("=II")}
#: Pieces of one readv(2) or writev(2), and texts of an argv, that are looked at.
_PIECES, _TEXTS = 1024, 1024


class Owner:
    """One module. It owns the socket `fd`."""

    def __init__(self, epoch: int, fd: int, value: dict[str, Any]) -> None:
        """`value`: its `calls`, each with a signature, the `place` that it owns, if it is not all of them, and `until`
        which epoch it was loaded, if that has ended."""
        self.epoch = epoch
        self.socket = socket.socket(fileno=fd)
        self.module = str(value["module"])
        self._calls: dict[str, tuple[int, tuple[Argument, ...]]] = {
            name: (index, parse_signature(signature)) for index, (name, signature) in enumerate(value["calls"])
        }
        #: The place, as it was written and without links.
        self._places: list[str] = [place for place in dict.fromkeys(value["places"]) if place]
        self.until: int | None = value["until"]
        #: Requests for which its queue had no room, by slot.
        self.unsent: dict[int, bytes] = {}

    def fileno(self) -> int:
        return self.socket.fileno()

    def has(self, name: str) -> bool:
        """Is there a handler for this call?"""
        return name in self._calls

    def request(self, call: NotifiedCall, name: str, bits: int, *, quick: bool, again: bool = False) -> bytes | None:
        """What its server is to be asked; None if the call leads elsewhere than to its place. `again`: another notifier
        may have asked it before. Raises OSError, which is the caller's errno; and `NotAtHand` if this is to be `quick`
        and memory may have to be waited for."""
        index, signature = self._calls[name]
        caller = Caller(call.tid, quick=quick)
        copied: dict[int, bytes | int] = {}
        paths = []
        relative: list[int] = []
        start: str | None = None
        for number, argument in enumerate(signature):
            word = call.arguments[number]
            match argument.kind:
                case "int" | "size" | "off" | "address":
                    continue
                case "at":
                    start = None if _signed(word) == _AT_FDCWD else _descriptor_path(caller, _signed(word))
                    continue
                case "fd":
                    if self._places:
                        paths.append(_descriptor_path(caller, _signed(word)))
                    continue
                case "descriptor":
                    paths.append(_descriptor_path(caller, _signed(word)))
                    copied[number] = _how_opened(caller, word) + os.fsencode(paths[-1] or "")
                    continue
                case "path":
                    path = caller.text(word)
                    if path is not None:
                        if not path.startswith(b"/"):
                            relative.append(number)
                        whole = _absolute(caller, path, start)
                        copied[number] = whole
                        paths.append(os.fsdecode(whole) if path else start)
                    elif start is not None:
                        paths.append(start)
                    start = None
                    continue
            value = _copied(caller, argument, word, call.arguments, bits)
            if value is not None:
                copied[number] = value
        if self._places and not any(
            path is not None and is_at_or_below(path, place) for path in paths for place in self._places
        ):
            return None
        if relative:
            copied[RELATIVE] = bytes(relative)
        copied[CWD] = _link(f"/proc/{call.tid}/cwd")
        copied[CALLER] = _facts_of(call.tid)
        return pack_request(Request(call.id, AGAIN if again else CALL, index, bits, tuple(call.arguments), copied))

    def send(self, slot: int, packet: bytes) -> bool:
        """Send a request; False if there is no room for it now: then it is `unsent`."""
        try:
            self.socket.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self.unsent[slot] = packet
            return False
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # buffers of sockets are small here (wmem_max of socket(7))
                raise os_error(errno.E2BIG) from None
            # Its server is gone, as the socket's end tells.
        return True

    def send_patiently(self, packet: bytes) -> None:
        """Send a request, and wait until there is room for it. Raises OSError: E2BIG, EIO."""
        try:
            self.socket.send(packet, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise os_error(errno.E2BIG if error.errno == errno.EMSGSIZE else errno.EIO) from None

    def send_rest(self) -> bool:
        """Send what is unsent; True if nothing is left of it."""
        for slot, packet in list(self.unsent.items()):
            if not self.send(slot, packet):
                return False
            del self.unsent[slot]
        return True

    def give_up(self, call: int) -> None:
        """Ask it to give up a call, which it answers with `CANCELLED` if that can be done."""
        self.send(-1 - call, pack_request(Request(call, CANCEL, 0, 0, (0,) * 6, {})))

    def tell_numbers(self, call: int, numbers: bytes, *, failed: bool) -> None:
        """Tell it which numbers a caller has got for what it was handed, and whether it `failed` to get more. (Else it
        is gone if it has not got all.)"""
        try:
            self.send_patiently(pack_request(Request(call, GIVEN, 0, 0, (0,) * 6, {0: numbers, 1: b"." * failed})))
        except OSError:
            pass  # it is gone

    def mark(self, number: int) -> bool:
        """Tell a server that has said by this number that it has begun that what comes from now on was not sent before;
        0: ask it to say so again, if it waits for that. Returns as `send` does."""
        return self.send(_MARK_SLOT - number, pack_request(Request(number, MARK, 0, 0, (0,) * 6, {})))

    def receive(self) -> tuple[Answer, list[int]] | None:
        """The next answer, which stays in the queue until `done`, and the descriptors that came with it; None if its
        server is gone. Raises ValueError for what is no answer."""
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        size, ancillary, received, _address = self.socket.recvmsg_into([_buffer], room_for(1), flags)
        fds = descriptors_in(ancillary)
        if not size:
            return None
        try:
            if received & socket.MSG_TRUNC:
                raise ValueError("an answer that is too long")
            return unpack_answer(bytes(_buffer[:size])), fds
        except ValueError:
            for fd in fds:
                os.close(fd)
            raise

    def done(self) -> None:
        """Take the answer out of the queue."""
        self.socket.recv(1, socket.MSG_DONTWAIT)

    def put(self, call: NotifiedCall, name: str, bits: int, answer: Answer, *, quick: bool) -> None:
        """Put what an answer says into the caller's memory. Raises ValueError for what the call does not write, and
        as `request` does."""
        signature = self._calls[name][1]
        caller = Caller(call.tid, quick=quick)
        for number, data in answer.outs:
            argument = signature[number] if number < len(signature) else None
            if argument is None or not argument.is_out:
                raise ValueError(f"{name} writes nothing through argument {number}")
            room = _copied(caller, argument, call.arguments[number], call.arguments, bits)
            if not isinstance(room, int) or len(data) > room:
                raise ValueError(f"{name} has no room for {len(data)} bytes in argument {number}")
            if argument.kind == "out":
                caller.write(call.arguments[number], data)
            else:
                _scatter(caller, call.arguments[number], call.arguments[argument.length or 0], bits, data)

    def close(self) -> None:
        self.socket.close()

    def end(self) -> None:
        """Have its server end: whoever has the socket besides finds it closed."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already


_AT_FDCWD = -100
#: In place of a slot, for what is no call. (Ids have 64 bits.)
_MARK_SLOT = -1 << 65


def _signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >> 31 else word


def _facts_of(tid: int) -> bytes:
    """Process, thread, effective user and group, as the host has them. Raises OSError if the thread is gone."""
    try:
        status = os.stat(f"/proc/{tid}")
    except OSError:
        raise os_error(errno.ESRCH) from None
    return FACTS.pack(thread_group_of(tid), tid, status.st_uid, status.st_gid)


def _link(path: str) -> bytes:
    try:
        return os.fsencode(os.readlink(path))
    except OSError:
        return b""


def _descriptor_path(caller: Caller, number: int) -> str | None:
    """Where a descriptor of the caller leads. (This asks nobody who serves it.)"""
    return os.fsdecode(_link(f"/proc/{caller.tid}/fd/{number}")) or None


def _how_opened(caller: Caller, number: int) -> bytes:
    """The flags of an open descriptor of the caller (proc_pid_fdinfo(5)). Raises OSError."""
    with open(f"/proc/{caller.tid}/fdinfo/{number & 0xFFFFFFFF}") as lines:
        return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:")).to_bytes(4, "little")


def _absolute(caller: Caller, path: bytes, start: str | None) -> bytes:
    """`path` from the root; links are not followed. An empty path stays empty."""
    if not path:
        return b""
    if not path.startswith(b"/"):
        base = os.fsencode(start) if start is not None else _link(f"/proc/{caller.tid}/cwd")
        path = base + b"/" + path
    whole = os.path.normpath(path)
    return whole[1:] if whole.startswith(b"//") else whole


def _copied(caller: Caller, argument: Argument, word: int, words: list[int], bits: int) -> bytes | int | None:
    """What a server gets of an argument that is an address: what is there, or how many bytes may be written; None for a
    null pointer. Raises OSError."""
    kind = argument.kind
    if not word or kind in ("int", "size", "off", "fd", "at", "address", "path"):
        return None
    if kind == "text":
        return caller.text(word, PART_MOST)
    if kind == "argv":
        return _texts(caller, word, bits)
    size = argument.sizes[bits == 32] if argument.length is None else words[argument.length]
    if kind in ("inv", "outv"):
        pieces = _pieces(caller, word, size, bits)
        if kind == "outv":
            return min(sum(length for _address, length in pieces), PART_MOST)
        found = b""
        for address, length in pieces:
            found += caller.read(address, min(length, PART_MOST - len(found)))
        return found
    size = min(size, PART_MOST)
    return size if kind == "out" else caller.read(word, size)


def _pieces(caller: Caller, address: int, count: int, bits: int) -> list[tuple[int, int]]:
    if not 0 <= _signed(count) <= _PIECES:
        raise os_error(errno.EINVAL)
    layout = _IOVEC[bits]
    return list(layout.iter_unpack(caller.read(address, _signed(count) * layout.size)))


def _scatter(caller: Caller, address: int, count: int, bits: int, data: bytes) -> None:
    for at, length in _pieces(caller, address, count, bits):
        caller.write(at, data[:length])
        data = data[length:]


def _texts(caller: Caller, address: int, bits: int) -> bytes:
    """Texts, each with a NUL, as many as fit."""
    found, size = b"", bits // 8
    for number in range(_TEXTS):
        pointer = int.from_bytes(caller.read(address + number * size, size), "little")
        if not pointer:
            break
        text = caller.text(pointer, PART_MOST) or b""
        if len(found) + len(text) >= PART_MOST:
            break
        found += text + b"\0"
    return found


def is_harmless(fd: int) -> bool:
    """Can this descriptor of a server be closed here without waiting for anybody? Pipes, sockets and what the kernel
    makes without a file system; not a file of somebody who may hang (close(2) sends FUSE_FLUSH)."""
    return not os.readlink(f"/proc/self/fd/{fd}").startswith("/")
