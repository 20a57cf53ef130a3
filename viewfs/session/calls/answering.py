"""Giving a caller what a module has answered, as far as it is an answer."""

from __future__ import annotations

import errno
import fcntl
import os

from viewfs.linux.numbers import AUDIT_ARCH_I386
from viewfs.linux.unotify import RESTART
from viewfs.session.calls.messages import ANSWER, CANCELLED, DESCRIPTOR, ERRNO_END, ERROR, FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from viewfs.linux.unotify import Listener, NotifiedCall
    from viewfs.session.calls.messages import Answer
    from viewfs.session.calls.owner import Owner

__all__ = ["bits_of", "give_answer"]


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
