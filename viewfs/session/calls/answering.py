"""Giving a caller what a module has answered, as far as it is an answer."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from viewfs.linux.numbers import AUDIT_ARCH_I386
from viewfs.linux.scm import taken_out
from viewfs.linux.unotify import RESTART
from viewfs.session.calls.messages import (
    ANSWER,
    CANCELLED,
    DESCRIPTOR,
    ERRNO_END,
    ERROR,
    FILE,
    NUMBER,
    NUMBERS,
    Answer,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from viewfs.linux.unotify import Listener, NotifiedCall
    from viewfs.session.calls.owner import Owner

__all__ = ["bits_of", "give_answer", "hand_over"]

_INT = struct.Struct("=i")


def bits_of(call: NotifiedCall) -> int:
    """The word size of the caller: 64, or 32."""
    return 32 if call.architecture == AUDIT_ARCH_I386 else 64


def give_answer(
    owner: Owner,
    listener: Listener,
    call: NotifiedCall,
    name: str,
    given: Answer,
    fds: list[int],
    *,
    has_signal: bool,
    quick: bool,
) -> None:
    """Give the caller of `call`, who has a signal to see to or not, what `owner` has answered, with the descriptors
    that came with it. Raises ValueError for what no honest server says, the call having failed with EIO; and
    `NotAtHand`, nothing having been answered, if it is to be `quick` and memory may have to be waited for."""
    try:
        if given.kind == ANSWER:
            if -ERRNO_END < given.value < 0:
                raise ValueError(f"the value {given.value}")
            owner.put(call, name, bits_of(call), given, quick=quick)
            listener.answer(call.id, value=given.value)
        elif given.kind == ERROR:
            if not 0 < given.value < ERRNO_END:
                raise ValueError(f"an errno {given.value}")
            listener.answer(call.id, error=given.value)
        elif given.kind == CANCELLED:
            listener.answer(call.id, error=RESTART if has_signal else errno.EINTR)
        elif given.kind == DESCRIPTOR:
            if len(fds) != 1:
                raise ValueError("a descriptor, and none came with it")
            listener.give_descriptor(call.id, fds[0], close_on_exec=given.close_on_exec, is_answer=True)
        elif given.kind == FILE:
            fd = _sealed_file(dict(given.outs).get(0, b""))
            try:
                listener.give_descriptor(call.id, fd, close_on_exec=given.close_on_exec, is_answer=True)
            finally:
                os.close(fd)
    except ValueError:
        listener.answer(call.id, error=errno.EIO)
        raise
    except OSError as error:
        listener.answer(call.id, error=error.errno or errno.EIO)


def hand_over(owner: Owner, listener: Listener, call: NotifiedCall, name: str, given: Answer, sock: int) -> None:
    """Give the caller of `call` the descriptors that lie in the queue of `sock`, and the data with their numbers; and
    tell `owner` the numbers. What there is no more room for is left out; nothing at all: EMFILE."""
    parts = dict(given.outs)
    places = list(NUMBER.iter_unpack(parts.pop(NUMBERS, b"")))
    ((argument, written),) = parts.items()
    data, value, numbers = bytearray(written), given.value, []
    error, failed = 0, False
    fds: list[int] = []
    try:
        fds = taken_out(sock)
        if len(fds) != len(places):
            raise OSError(errno.EIO, "as many places as descriptors")
        for (offset, good, close_on_exec), fd in zip(places, fds, strict=True):
            try:
                number = listener.give_descriptor(call.id, fd, close_on_exec=bool(close_on_exec), is_answer=False)
            except OSError as problem:
                failed, error = True, 0 if good else problem.errno or errno.EIO
                value, data = good, data[:good]
                break
            if number is None:
                break
            _INT.pack_into(data, offset, number)
            numbers.append(number)
        if not error:
            owner.put(
                call, name, bits_of(call), Answer(call.id, ANSWER, value, outs=((argument, bytes(data)),)), quick=False
            )
    except (OSError, ValueError, struct.error) as problem:
        failed, error = True, (problem.errno if isinstance(problem, OSError) else None) or errno.EIO
    owner.tell_numbers(call.id, b"".join(map(_INT.pack, numbers)), failed=failed)
    listener.answer(call.id, value=value, error=error)
    for fd in fds:
        os.close(fd)


def _sealed_file(content: bytes) -> int:
    """A file in memory that nobody can change (memfd_create(2))."""
    fd = os.memfd_create("viewfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        # A descriptor of its own that can only read: the offset is the caller's alone.
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
