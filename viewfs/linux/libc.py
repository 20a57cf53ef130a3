"""How a system call is made from Python: prototypes that are frozen when they are declared, and errno as `OSError`.

Calls that the C library wraps are taken from it by name. The others go through syscall(2) by number
(`viewfs.linux.numbers`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

from viewfs.linux.numbers import syscall_number

__all__ = ["check", "function", "path_bytes", "syscall"]

_libc = ctypes.CDLL(None, use_errno=True)
_locked_libc = ctypes.PyDLL(None, use_errno=True)


def function(name: str, *argument_types: Any) -> Callable[..., int]:
    """The C library's function `name`, returning an int."""
    return ctypes.CFUNCTYPE(ctypes.c_int, *argument_types, use_errno=True)((name, _libc))


def syscall(name: str, *argument_types: Any, holds_lock: bool = False) -> Callable[..., int]:
    """System call `name` by number. The number is looked up at the first call, so that importing never fails.

    `holds_lock`: Python's own lock is not let go meanwhile.
    """
    entry: Any
    if holds_lock:
        entry = _locked_libc["syscall"]
        entry.restype, entry.argtypes = ctypes.c_long, (ctypes.c_long, *argument_types)
    else:
        entry = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *argument_types, use_errno=True)(("syscall", _libc))
    number: int | None = None

    def call(*arguments: Any) -> int:
        nonlocal number
        if number is None:
            number = syscall_number(name)
            if number is None:
                raise OSError(errno.ENOSYS, f"this architecture has no system call {name}")
        return int(entry(number, *arguments))

    return call


def check(result: int, call: str, path: str | bytes | None = None) -> int:
    """`result`, or the `OSError` that errno says, with the call's name and the path in it."""
    if result >= 0:
        return result
    number = ctypes.get_errno()
    message = f"{call}: {os.strerror(number)}"
    if path is None:
        raise OSError(number, message)
    raise OSError(number, message, os.fsdecode(path))


def path_bytes(path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None) -> bytes | None:
    """A path as the kernel takes it. Raises `ValueError` for one with a NUL in it."""
    if path is None:
        return None
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("a path has no NUL byte in it")
    return encoded
