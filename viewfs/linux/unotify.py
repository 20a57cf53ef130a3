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
from viewfs.linux.process import no_new_privileges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CALL_SIZE", "OPEN_FLAGS", "RESTART", "VIRTUAL", "WINDOW", "Listener", "NotifiedCall", "install_listener",
    "is_asking_another", "notifying_filter",
]  # fmt: skip

#: System calls from this number on exist in no kernel: what they do is up to the session.
VIRTUAL = 1000
#: Numbers of special descriptors: some calls are notified only if their first argument is one of them. A process gets
#: such a number only if somebody means it to: the kernel gives the lowest that is free.
WINDOW = range(960, 1024)
#: What a file may be opened with for a caller (open(2)): with nothing that makes or empties it.
OPEN_FLAGS = os.O_ACCMODE | os.O_NONBLOCK | os.O_APPEND | os.O_DIRECTORY | os.O_CLOEXEC
#: As the error of an answer (ERESTARTSYS): the caller sees to its signals, and then calls again, or gets EINTR, as the
#: handlers say (SA_RESTART of sigaction(2)).
RESTART = 512

#: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JA, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K, BPF_RET|BPF_K
_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_NOT_BELOW, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x06
#: Offsets in struct seccomp_data; of the first argument the low half, for the kernel takes a descriptor for an unsigned
#: int.
_NUMBER, _ARCHITECTURE, _FIRST = 0, 4, 16
_INSTRUCTION = struct.Struct("=HBBI")
#: SECCOMP_RET_*
_ALLOW, _NOTIFY, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
_X32_BIT = 0x40000000

_SET_MODE_FILTER = 1
#: SECCOMP_FILTER_FLAG_*. SPEC_ALLOW: this is no sandbox, for which older kernels would have the processor slow down.
#: WAIT_KILLABLE_RECV: signals that have handlers wait for the answer once the call has been received, for a call that
#: was interrupted would be received again, and done twice.
_SPEC_ALLOW, _NEW_LISTENER, _WAIT_KILLABLE_RECV = 1 << 2, 1 << 3, 1 << 5
_seccomp = syscall("seccomp", c_uint, c_ulong, c_char_p)
_ioctl = function("ioctl", c_int, c_ulong, c_void_p)

#: struct seccomp_notif: id, pid, flags; number, architecture, instruction pointer, six arguments.
_CALL = struct.Struct("=QIIiIQ6Q")
CALL_SIZE = _CALL.size
#: struct seccomp_notif_resp: id, value, error, flags.
_ANSWER = struct.Struct("=QqiI")
#: SECCOMP_IOCTL_NOTIF_*
_RECEIVE = 3 << 30 | CALL_SIZE << 16 | 0x21 << 8 | 0
_SEND = 3 << 30 | _ANSWER.size << 16 | 0x21 << 8 | 1
_IS_VALID = 1 << 30 | 8 << 16 | 0x21 << 8 | 2
_ADD_DESCRIPTOR = 1 << 30 | 24 << 16 | 0x21 << 8 | 3
_SET_FLAGS = 1 << 30 | 8 << 16 | 0x21 << 8 | 4
_CONTINUE, _SYNC_WAKE_UP = 1, 1
#: struct seccomp_notif_addfd: id, flags, descriptor here, descriptor there, its flags. SECCOMP_ADDFD_FLAG_SETFD: it has
#: to be that number there; SECCOMP_ADDFD_FLAG_SEND: it is the answer.
_DESCRIPTOR = struct.Struct("=QIIII")
_AT_NUMBER, _AS_ANSWER = 1, 2


def notifying_filter(
    tables: Mapping[int, Iterable[int]],
    missing: Mapping[int, Iterable[int]] | None = None,
    special: Mapping[int, Iterable[int]] | None = None,
) -> bytes:
    """The BPF program that notifies the calls of these numbers, by system call table (AUDIT_ARCH), those that are
    `VIRTUAL`, and those of `special` numbers for descriptors in the `WINDOW`. It has the `missing` ones fail with
    ENOSYS, and lets all others pass: also those of other tables, and those of x32, whose numbers have bit 30.

    (Of special calls the kernel can't remember that they are let pass. So they come first.)
    """
    emit = _INSTRUCTION.pack
    allow, notify = emit(_RETURN, 0, 0, _ALLOW), emit(_RETURN, 0, 0, _NOTIFY)
    fail = emit(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    program = [emit(_LOAD, 0, 0, _ARCHITECTURE)]
    for table, numbers in tables.items():
        part = [emit(_LOAD, 0, 0, _NUMBER)]
        for number in sorted(set((special or {}).get(table, ())) - set(numbers)):
            part += [
                emit(_JUMP_EQUAL, 0, 5, number),
                emit(_LOAD, 0, 0, _FIRST),
                emit(_JUMP_NOT_BELOW, 0, 2, WINDOW.start),
                emit(_JUMP_NOT_BELOW, 1, 0, WINDOW.stop),
                *(notify, allow),
            ]
        part += [
            *(emit(_JUMP_NOT_BELOW, 0, 1, _X32_BIT), allow),
            *(emit(_JUMP_NOT_BELOW, 0, 1, VIRTUAL), notify),
        ]
        for number in sorted(numbers):
            part += [emit(_JUMP_EQUAL, 0, 1, number), notify]
        for number in sorted((missing or {}).get(table, ())):
            part += [emit(_JUMP_EQUAL, 0, 1, number), fail]
        part.append(allow)
        # A conditional jump reaches 255 instructions, an unconditional one any.
        program += [emit(_JUMP_EQUAL, 1, 0, table), emit(_JUMP, 0, 0, len(part)), *part]
    program.append(allow)
    return b"".join(program)


def install_listener(program: bytes) -> int:
    """Put this process of one thread, and all it starts, under `program`; the descriptor of its listener,
    close-on-exec. no_new_privs must be set. There is no way back.

    Raises OSError: EBUSY if it is under such a filter already.
    """
    buffer = c_char_p(program)
    header = struct.pack("@HP", len(program) // _INSTRUCTION.size, c_void_p.from_buffer(buffer).value)  # sock_fprog
    return check(_seccomp(_SET_MODE_FILTER, _SPEC_ALLOW | _NEW_LISTENER | _WAIT_KILLABLE_RECV, header), "seccomp")


def is_asking_another() -> bool:
    """Is this process under such a filter, so that it can't have another?

    (A filter that lets everything pass is tried in a child.)
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            no_new_privileges()
            install_listener(notifying_filter({}))
            status = 0
        except OSError as error:
            status = 2 if error.errno == errno.EBUSY else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


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

    def give_descriptor(
        self, call: int, fd: int, *, close_on_exec: bool, is_answer: bool, number: int | None = None
    ) -> int | None:
        """Give the caller a duplicate of `fd`: the number that it has there (`number`, if given, in place of what the
        caller has by that number), which the call returns if it `is_answer`; None if nobody waits for it any more.
        Raises OSError: EMFILE if the caller has too many, EBADF if it can't have that number."""
        flags = (_AS_ANSWER if is_answer else 0) | (0 if number is None else _AT_NUMBER)
        wanted = _DESCRIPTOR.pack(call, flags, fd, number or 0, os.O_CLOEXEC if close_on_exec else 0)
        try:
            given: int = fcntl.ioctl(self.fd, _ADD_DESCRIPTOR, bytearray(wanted))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                return None
            raise
        return given

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
