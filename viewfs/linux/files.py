"""Calls on files that Python has no functions for: openat2(2), renameat2(2), fallocate(2), syncfs(2).

Constants: linux/openat2.h, linux/fs.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from enum import IntFlag

from viewfs.linux.libc import check, function, get_errno, path_bytes, syscall

__all__ = [
    "Rename",
    "Resolve",
    "birth_ns",
    "chmod_at",
    "device_of",
    "fallocate",
    "is_on_fuse",
    "mount_number",
    "openat2",
    "pwrite_at",
    "renameat2",
    "syncfs",
]


class Resolve(IntFlag):
    """RESOLVE_* of linux/openat2.h."""

    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


class Rename(IntFlag):
    """RENAME_* of linux/fs.h."""

    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2
    WHITEOUT = 4


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_ATTEMPTS = 1000
_openat2 = syscall("openat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_statx = function("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
#: struct statx and its flags, of linux/stat.h: its size, and where the time of birth, the device and the number of
#: the mount are.
_STATX_SIZE, _STATX_BIRTH, _STATX_DEVICE, _STATX_MOUNT = 256, 80, 136, 144
_STATX_BTIME, _STATX_MNT_ID = 0x800, 0x1000
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC, _AT_FDCWD = 0x1000, 0x4000, -100
#: RWF_NOAPPEND of linux/fs.h.
_RWF_NOAPPEND = 0x20
_fstatfs = function("fstatfs", ctypes.c_int, ctypes.c_void_p)
#: Bytes: more than any struct statfs has; f_type is its first field.
_STATFS_SIZE = 256
_FUSE_SUPER_MAGIC = 0x65735546
_syncfs = function("syncfs", ctypes.c_int)
_fallocate = function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_renameat2 = syscall("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def openat2(directory: int, path: str | bytes, flags: int, resolve: Resolve, mode: int = 0) -> int:
    """openat2(2): a close-on-exec descriptor."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, int(resolve))
    for _again in range(_ATTEMPTS):
        # EAGAIN: something was renamed or mounted anywhere meanwhile, so that a ".." could have led out of the tree.
        fd = _openat2(directory, path_bytes(path), ctypes.addressof(how), ctypes.sizeof(how))
        if fd >= 0 or get_errno() != errno.EAGAIN:
            break
    return check(fd, "openat2", path)


def birth_ns(fd: int) -> int:
    """When the open file was made (statx(2), STATX_BTIME); 0 if that isn't kept.

    It differs from that of every other file that has had the same inode number.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    check(_statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, ctypes.addressof(buffer)), "statx")
    (mask,) = struct.unpack_from("=I", buffer)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _STATX_BIRTH)
    return seconds * 10**9 + nanoseconds if mask & _STATX_BTIME else 0


def mount_number(path: str) -> int:
    """The number of the mount that `path` is on (statx(2), STATX_MNT_ID). Who serves it is not asked, if it is a link
    of /proc/PID. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    place = ctypes.addressof(buffer)
    check(_statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_MNT_ID, place), "statx", path)
    number: int = struct.unpack_from("=Q", buffer, _STATX_MOUNT)[0]
    return number


def device_of(fd: int) -> int:
    """st_dev of an open file. Who serves it is not asked. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    check(_statx(fd, b"", flags, 0, ctypes.addressof(buffer)), "statx")
    return os.makedev(*struct.unpack_from("=II", buffer, _STATX_DEVICE))


def chmod_at(directory: int, name: bytes, mode: int) -> None:
    """chmod(2) of what is called `name` in the open `directory`, which must not be a symbolic link. Raises OSError.

    (chmod with AT_SYMLINK_NOFOLLOW is a system call since Linux 6.6 only, and Python doesn't make it.)
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def syncfs(fd: int) -> None:
    """syncfs(2): all that was written to the file system of `fd` is on its disk."""
    check(_syncfs(fd), "syncfs")


def renameat2(directory: int, name: bytes, new_directory: int, new_name: bytes, flags: Rename) -> None:
    """renameat2(2). EINVAL where the file system does not know a flag."""
    check(_renameat2(directory, name, new_directory, new_name, int(flags)), "renameat2", new_name)


def pwrite_at(fd: int, data: bytes, offset: int) -> int:
    """Write at `offset` to a file that is open with O_APPEND, where pwrite(2) would append (pwrite(2), BUGS)."""
    try:
        return os.pwritev(fd, [data], offset, _RWF_NOAPPEND)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # before Linux 6.9
            raise
    here = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        return os.pwrite(here, data, offset)
    finally:
        os.close(here)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), with any of its modes."""
    check(_fallocate(fd, mode, offset, length), "fallocate")


def is_on_fuse(fd: int) -> bool:
    """Does a FUSE server serve the file (fstatfs(2), FUSE_SUPER_MAGIC)?"""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    check(_fstatfs(fd, ctypes.addressof(buffer)), "fstatfs")
    return ctypes.c_long.from_buffer(buffer).value == _FUSE_SUPER_MAGIC
