"""How a system call is made from Python: prototypes that are frozen when they are declared, and errno as `OSError`.

Calls that the C library wraps are taken from it by name. The others go through syscall(2) by number
(`viewfs.linux.numbers`).
"""

from __future__ import annotations

import errno
import os
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    addressof,
    dlopen,
    dlsym,
    get_errno,
)

from viewfs.linux.numbers import syscall_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "address_of", "addressof", "c_char_p", "c_int", "c_long", "c_size_t", "c_uint", "c_ulong", "c_void_p",
    "check", "function", "get_errno", "path_bytes", "syscall",
]  # fmt: skip


# The types of `ctypes` that prototypes need. (Code that runs before the view is there does without the rest.)
if TYPE_CHECKING:
    from ctypes import c_char_p, c_int, c_long, c_uint, c_ulong, c_void_p
else:
    c_char_p, c_int, c_long, c_uint, c_ulong, c_void_p = (
        type(f"c_{name}", (_SimpleCData,), {"_type_": code})
        for name, code in (("char_p", "z"), ("int", "i"), ("long", "l"), ("uint", "I"), ("ulong", "L"), ("void_p", "P"))
    )
c_size_t = c_ulong
_c_char: Any = type("c_char", (_SimpleCData,), {"_type_": "c"})

_library = dlopen(None, 0)  # type: ignore[arg-type]
_CHECKED, _LOCKED = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO, FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO | FUNCFLAG_PYTHONAPI


def _prototype(result: type, flags: int, arguments: tuple[type, ...]) -> type[CFuncPtr]:
    return type("Prototype", (CFuncPtr,), {"_restype_": result, "_argtypes_": arguments, "_flags_": flags})


def function(name: str, *argument_types: type, result: type = c_int) -> Callable[..., int]:
    """The C library's function `name`, returning a number."""
    return _prototype(result, _CHECKED, argument_types)(dlsym(_library, name))


def syscall(name: str, *argument_types: type, holds_lock: bool = False) -> Callable[..., int]:
    """System call `name` by number. The number is looked up at the first call, so that importing never fails.

    `holds_lock`: Python's global interpreter lock is not released during the call.
    """
    flags = _LOCKED if holds_lock else _CHECKED
    entry = _prototype(c_long, flags, (c_long, *argument_types))(dlsym(_library, "syscall"))
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
    """`result`; if it is an error, raises the `OSError` that errno says, with the call's name and the path in it."""
    if result >= 0:
        return result
    number = get_errno()
    message = f"{call}: {os.strerror(number)}"
    if path is None:
        raise OSError(number, message)
    raise OSError(number, message, os.fsdecode(path))


def address_of(buffer: Any) -> int:
    """Where the writable `buffer` begins; it can't be closed or resized from then on."""
    return addressof(_c_char.from_buffer(buffer))


def path_bytes(path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None) -> bytes | None:
    """A path as the kernel takes it. Raises `ValueError` for one with a NUL in it."""
    if path is None:
        return None
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("a path has no NUL byte in it")
    return encoded
