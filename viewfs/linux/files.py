"""openat2(2) and syncfs(2), which Python has no functions for. Constants: linux/openat2.h."""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag

from viewfs.linux.libc import check, function, path_bytes, syscall

__all__ = ["Resolve", "openat2", "syncfs"]


class Resolve(IntFlag):
    """RESOLVE_* of linux/openat2.h."""

    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_openat2 = syscall("openat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_syncfs = function("syncfs", ctypes.c_int)


def openat2(directory: int, path: str | bytes, flags: int, resolve: Resolve, mode: int = 0) -> int:
    """openat2(2): a close-on-exec descriptor."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, int(resolve))
    return check(_openat2(directory, path_bytes(path), ctypes.addressof(how), ctypes.sizeof(how)), "openat2", path)


def syncfs(fd: int) -> None:
    """syncfs(2): all that was written to the file system of `fd` is on its disk."""
    check(_syncfs(fd), "syncfs")
