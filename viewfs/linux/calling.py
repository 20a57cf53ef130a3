"""Making a system call by its number, with arguments as Python has them."""

from __future__ import annotations

import ctypes
import os

from viewfs.linux.libc import c_long, check
from viewfs.linux.libc import function as prototype

__all__ = ["call"]

_MOST = 6


def call(number: int, *arguments: int | bytes | str | os.PathLike[str] | bytearray | memoryview | None) -> int:
    """Make system call `number`, as syscall(2) does, and return its result.

    An argument is a number; a text, of which the call gets the address with a NUL behind it (`str` as file names are
    encoded); a `bytearray` or another buffer that the call may write to; or None for a null pointer. Raises OSError
    with the errno of the call: ENOSYS if nobody answers it.
    """
    if len(arguments) > _MOST:
        raise TypeError(f"a system call has {_MOST} arguments at most")
    kept: list[object] = []
    words = [_word(argument, kept) for argument in arguments]
    entry = prototype("syscall", c_long, *[c_long] * len(words), result=c_long)
    return check(entry(number, *words), f"system call {number}")


def _word(argument: object, kept: list[object]) -> int:
    """The argument as the call gets it; what has to live as long is `kept`."""
    if argument is None:
        return 0
    if isinstance(argument, int):
        return ctypes.c_long(argument).value
    if isinstance(argument, bytes | str | os.PathLike):
        buffer: object = ctypes.create_string_buffer(os.fsencode(argument))
    else:
        whole = memoryview(argument).cast("B")  # type: ignore[arg-type]
        buffer = (ctypes.c_char * len(whole)).from_buffer(whole)
    kept.append(buffer)
    return ctypes.addressof(buffer)  # type: ignore[arg-type]
