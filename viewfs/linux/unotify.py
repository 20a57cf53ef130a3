"""System calls that another process answers: seccomp user notification (seccomp_unotify(2), linux/seccomp.h).

A filter notifies calls by their number alone, so that the kernel remembers for each number that it is let pass, and
such a call costs what it did before (within a tenth). Whoever holds the filter's *listener* receives the notified
calls and answers them, in any order. A call whose listener nobody holds any more fails with ENOSYS.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from viewfs.linux.libc import c_char_p, c_int, c_uint, c_ulong, c_void_p, check, function, syscall
from viewfs.linux.numbers import AUDIT_ARCH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CALL_SIZE", "FIRST_VIRTUAL", "RESTART", "Listener", "NotifiedCall", "install_listener", "notifying_filter"]

#: Numbers from here on are no calls of the kernel. (x32 calls are those of x86_64 with bit 30.)
FIRST_VIRTUAL = 1000
_X32_BIT = 0x40000000

#: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K, BPF_RET|BPF_K
_LOAD, _JUMP_EQUAL, _JUMP_NOT_BELOW, _RETURN = 0x20, 0x15, 0x35, 0x06
#: Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE = 0, 4
_INSTRUCTION = struct.Struct("=HBBI")
#: SECCOMP_RET_*
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000

_SET_MODE_FILTER = 1
#: SECCOMP_FILTER_FLAG_*: NEW_LISTENER; and WAIT_KILLABLE_RECV: signals that have handlers wait for the answer once the
#: call has been received, for a call that was interrupted would be received again, and done twice.
_NEW_LISTENER, _WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
_seccomp = syscall("seccomp", c_uint, c_ulong, c_char_p)
_ioctl = function("ioctl", c_int, c_ulong, c_void_p)

#: struct seccomp_notif: id, pid, flags; number, architecture, instruction pointer, six arguments.
_CALL = struct.Struct("=QIIiIQ6Q")
CALL_SIZE = _CALL.size
#: struct seccomp_notif_resp: id, value, error, flags.
_ANSWER = struct.Struct("=QqiI")
#: struct seccomp_notif_addfd: id, flags, source, its number there, flags of the new descriptor.
_ADD = struct.Struct("=QIIII")
#: SECCOMP_IOCTL_NOTIF_*
_RECEIVE = 3 << 30 | CALL_SIZE << 16 | 0x21 << 8 | 0
_SEND = 3 << 30 | _ANSWER.size << 16 | 0x21 << 8 | 1
_IS_VALID = 1 << 30 | 8 << 16 | 0x21 << 8 | 2
_ADD_FD = 1 << 30 | _ADD.size << 16 | 0x21 << 8 | 3
_SET_FLAGS = 1 << 30 | 8 << 16 | 0x21 << 8 | 4
_CONTINUE, _SYNC_WAKE_UP, _SETFD, _ADD_AND_SEND = 1, 1, 1, 2

#: The error by which the kernel runs the signal's handler, and then begins the call again or ends it with EINTR, as the
#: handler was installed: -ERESTARTSYS (linux/errno.h).
RESTART = 512


def notifying_filter(tables: Mapping[int, Iterable[int]], *, virtual: bool = True) -> bytes:
    """The BPF program that notifies the calls of these numbers, by system call table (AUDIT_ARCH), and lets all others
    pass. `virtual`: with them all numbers from `FIRST_VIRTUAL` on. Calls by other tables pass."""
    emit = _INSTRUCTION.pack
    allow, notify = emit(_RETURN, 0, 0, _ALLOW), emit(_RETURN, 0, 0, _NOTIFY)
    program = [emit(_LOAD, 0, 0, _ARCHITECTURE)]
    for table, numbers in tables.items():
        part = [emit(_LOAD, 0, 0, _NUMBER)]
        if table == AUDIT_ARCH["x86_64"]:
            part += [emit(_JUMP_NOT_BELOW, 0, 1, _X32_BIT), allow]
        if virtual:
            part += [emit(_JUMP_NOT_BELOW, 0, 1, FIRST_VIRTUAL), notify]
        for number in sorted(numbers):
            part += [emit(_JUMP_EQUAL, 0, 1, number), notify]
        part.append(allow)
        # A conditional jump reaches 255 instructions, an unconditional one any.
        program += [emit(_JUMP_EQUAL, 1, 0, table), emit(0x05, 0, 0, len(part)), *part]
    program.append(allow)
    return b"".join(program)


def install_listener(program: bytes) -> int:
    """Put this process of one thread, and all it starts, under `program`; the descriptor of its listener,
    close-on-exec. no_new_privs must be set. There is no way back.

    Raises OSError: EBUSY if it is under such a filter already.
    """
    buffer = c_char_p(program)
    header = struct.pack("@HP", len(program) // _INSTRUCTION.size, c_void_p.from_buffer(buffer).value)  # sock_fprog
    return check(_seccomp(_SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE_RECV, header), "seccomp")


class NotifiedCall:
    """A call that waits for its answer."""

    __slots__ = ("architecture", "arguments", "id", "number", "tid")

    def __init__(self, received: bytes | bytearray | memoryview) -> None:
        self.id, self.tid, _flags, self.number, self.architecture, _ip, *self.arguments = _CALL.unpack(received)


class Listener:
    """The end of a filter at which calls are received. It can be held by several processes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:  # Linux 6.6: the caller goes on, on the processor of whoever answers, as soon as that waits
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        os.close(self.fd)

    def receive(self, place: int) -> bool:
        """Have the kernel write a call to the address `place`, `CALL_SIZE` bytes that are zero; it waits for one. False
        if there was one, and the caller has died. Raises OSError."""
        if _ioctl(self.fd, _RECEIVE, place) == 0:
            return True
        try:
            check(-1, "receiving a system call")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return False
            raise
        return False

    def answer(self, call: int, value: int = 0, error: int = 0) -> bool:
        """Have call number `call` return `value`, or fail with the errno `error`. False if nobody waits for it any
        more."""
        return self._send(_ANSWER.pack(call, value, -error, 0))

    def let_pass(self, call: int) -> bool:
        """Have the kernel do what the caller asked for. (It looks at the arguments anew, so this decides nothing that
        is meant to be a rule.)"""
        return self._send(_ANSWER.pack(call, 0, 0, _CONTINUE))

    def _send(self, answer: bytes) -> bool:
        try:
            fcntl.ioctl(self.fd, _SEND, answer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):  # the caller is gone, or it was answered
                return False
            raise
        return True

    def waits(self, call: int) -> bool:
        """Does the caller still wait? Then its pid was not given to another process in between."""
        try:
            fcntl.ioctl(self.fd, _IS_VALID, struct.pack("=Q", call))
        except FileNotFoundError:
            return False
        return True

    def give(self, call: int, fd: int, number: int | None = None, *, close_on_exec: bool = False) -> int:
        """Put a duplicate of `fd` into the caller, as its descriptor `number`, or the lowest that is free; the number.
        Raises OSError: ENOENT if the caller is gone, EBADF for what is O_PATH."""
        flags = _SETFD if number is not None else 0
        added = _ADD.pack(call, flags, fd, number or 0, os.O_CLOEXEC if close_on_exec else 0)
        return int(fcntl.ioctl(self.fd, _ADD_FD, added))

    def answer_with(self, call: int, fd: int, *, close_on_exec: bool = False) -> int:
        """`give`, and have the call return the number, in one step. Raises OSError as that does."""
        added = _ADD.pack(call, _ADD_AND_SEND, fd, 0, os.O_CLOEXEC if close_on_exec else 0)
        return int(fcntl.ioctl(self.fd, _ADD_FD, added))
