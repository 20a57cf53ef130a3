"""seccomp(2) filters: rules as data, compiled to the kernel's BPF (linux/filter.h, linux/seccomp.h), and installed.

A program loads the system call's number and compares it with each rule in turn; what a rule says ends the program. The
architecture is checked first, and with it the other call tables that a 64-bit kernel also serves (i386, x32).
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from viewfs.linux.libc import check, syscall
from viewfs.linux.numbers import audit_architecture, syscall_number

__all__ = ["ALLOW", "KILL", "ArgumentRule", "compile_filter", "deny", "install_filter"]

#: SECCOMP_RET_*: what happens to a call.
ALLOW = 0x7FFF0000
KILL = 0x80000000
_ERRNO = 0x00050000


def deny(number: int) -> int:
    """The call fails with errno `number`."""
    return _ERRNO | number


@dataclass(frozen=True)
class ArgumentRule:
    """`then` if argument `index`, masked with `mask`, equals `value` or one of several, else `otherwise`. Only the low
    32 bits are compared: the kernel looks at no others of an int. A pointer has more, and is compared whole with 0."""

    index: int
    value: int | tuple[int, ...]
    then: int
    otherwise: int
    mask: int = 0xFFFFFFFF
    #: The argument is a pointer.
    is_pointer: bool = False


#: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K, BPF_ALU|BPF_AND|BPF_K, BPF_RET|BPF_K
_LOAD, _JUMP_EQUAL, _JUMP_NOT_BELOW, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
#: Offsets in struct seccomp_data: nr, arch, args[0] (64 bits each, the low half first on both architectures).
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32_BIT = 0x40000000
_INSTRUCTION = struct.Struct("=HBBI")


def compile_filter(rules: Mapping[str, int | ArgumentRule], default: int) -> bytes:
    """The BPF program for `rules` (system call name → what happens) and `default` for all other calls.

    Rules for calls that this architecture lacks are left out. Raises OSError(ENOSYS) on an unknown architecture.
    """
    emit = _INSTRUCTION.pack
    program = [
        emit(_LOAD, 0, 0, _ARCHITECTURE),
        emit(_JUMP_EQUAL, 1, 0, audit_architecture()),
        emit(_RETURN, 0, 0, KILL),
        emit(_LOAD, 0, 0, _NUMBER),
        emit(_JUMP_NOT_BELOW, 0, 1, _X32_BIT),
        emit(_RETURN, 0, 0, KILL),
    ]
    for name, rule in rules.items():
        number = syscall_number(name)
        if number is None:
            continue
        if isinstance(rule, int):
            program += [emit(_JUMP_EQUAL, 0, 1, number), emit(_RETURN, 0, 0, rule)]
        else:
            values = rule.value if isinstance(rule.value, tuple) else (rule.value,)
            if rule.is_pointer:
                low = _ARGUMENTS + 8 * rule.index
                program += [
                    emit(_JUMP_EQUAL, 0, 6, number),
                    emit(_LOAD, 0, 0, low),
                    emit(_JUMP_EQUAL, 0, 2, values[0]),
                    emit(_LOAD, 0, 0, low + 4),
                    emit(_JUMP_EQUAL, 1, 0, 0),
                    emit(_RETURN, 0, 0, rule.otherwise),
                    emit(_RETURN, 0, 0, rule.then),
                ]
                continue
            program += [
                emit(_JUMP_EQUAL, 0, 4 + len(values), number),
                emit(_LOAD, 0, 0, _ARGUMENTS + 8 * rule.index),
                emit(_AND, 0, 0, rule.mask),
                *(emit(_JUMP_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)),
                emit(_RETURN, 0, 0, rule.otherwise),
                emit(_RETURN, 0, 0, rule.then),
            ]
    program.append(emit(_RETURN, 0, 0, default))
    return b"".join(program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_seccomp = syscall("seccomp", ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)
_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1


def install_filter(program: bytes) -> None:
    """Put all threads of this process under `program`; no_new_privs must be set. There is no way back."""
    if len(program) % _INSTRUCTION.size:
        raise OSError(errno.EINVAL, "not a whole number of BPF instructions")
    buffer = ctypes.create_string_buffer(program, len(program))
    header = _Program(len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
    check(_seccomp(_SET_MODE_FILTER, _FLAG_TSYNC, ctypes.addressof(header)), "seccomp")
