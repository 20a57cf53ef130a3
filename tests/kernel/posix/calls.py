"""System calls that Python has no function for, and small helpers around those that it has."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "AT_SYMLINK_FOLLOW",
    "KEEP_SIZE",
    "OMIT",
    "NOW",
    "PUNCH_HOLE",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RawEntry",
    "ZERO_RANGE",
    "after_a_tick",
    "child_does",
    "fallocate",
    "getdents",
    "getxattr_into",
    "inotify_add_watch",
    "inotify_events",
    "inotify_init",
    "linkat",
    "listxattr_into",
    "opened",
    "rename_with",
    "start_child",
    "sync_file_range",
    "utimensat",
    "wait_for",
    "write_all",
]

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
#: CLOCK_REALTIME_COARSE: the one that files are stamped with.
_COARSE = 5
AT_SYMLINK_FOLLOW = 0x400
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
KEEP_SIZE = 1
PUNCH_HOLE = 2
ZERO_RANGE = 16
#: UTIME_NOW and UTIME_OMIT, in place of nanoseconds.
NOW = (1 << 30) - 1
OMIT = (1 << 30) - 2

AnyPath = str | bytes | Path


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def rename_with(source: AnyPath, target: AnyPath, flags: int) -> None:
    """renameat2(2)."""
    _checked(_libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags))


def linkat(source: AnyPath, target: AnyPath, flags: int = 0, directory: int = _AT_FDCWD) -> None:
    """linkat(2), `source` being looked up from the open `directory`."""
    _checked(_libc.linkat(directory, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """sync_file_range(2)."""
    _checked(_libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), flags))


def utimensat(path: AnyPath, access: tuple[int, int], modification: tuple[int, int]) -> None:
    """utimensat(2); times are seconds and nanoseconds, or those in which `NOW` and `OMIT` mean something."""
    _checked(_libc.utimensat(_AT_FDCWD, os.fsencode(path), struct.pack("=qqqq", *access, *modification), 0))


def getxattr_into(path: AnyPath, name: str, room: int) -> int:
    """How many bytes getxattr(2) says, given a buffer of `room`."""
    return _checked(_libc.getxattr(os.fsencode(path), name.encode(), ctypes.create_string_buffer(room or 1), room))


def listxattr_into(path: AnyPath, room: int) -> int:
    """How many bytes listxattr(2) says, given a buffer of `room`."""
    return _checked(_libc.listxattr(os.fsencode(path), ctypes.create_string_buffer(room or 1), room))


class RawEntry(NamedTuple):
    """An entry as getdents64(2) gives it."""

    name: bytes
    type: int
    ino: int
    offset: int


def getdents(fd: int, room: int = 4096) -> list[RawEntry]:
    """What one call of getdents64(2) gives; nothing at the end."""
    buffer = ctypes.create_string_buffer(room)
    length = _checked(_libc.getdents64(fd, buffer, room))
    entries, position = [], 0
    while position < length:
        ino, offset, size, kind = struct.unpack_from("=QqHB", buffer.raw, position)
        name = buffer.raw[position + 19 : position + size].split(b"\0", 1)[0]
        entries.append(RawEntry(name, kind, ino, offset))
        position += size
    return entries


def inotify_init() -> int:
    """A descriptor that does not block."""
    return _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))


def inotify_add_watch(fd: int, path: AnyPath, mask: int) -> int:
    """inotify_add_watch(2)."""
    return _checked(_libc.inotify_add_watch(fd, os.fsencode(path), mask))


def inotify_events(fd: int) -> list[tuple[int, bytes]]:
    """What has happened so far: mask and name."""
    found = []
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return []
    while data:
        _watch, mask, _cookie, length = struct.unpack_from("=iIII", data)
        found.append((mask, data[16 : 16 + length].rstrip(b"\0")))
        data = data[16 + length :]
    return found


@contextmanager
def opened(path: AnyPath, flags: int, mode: int = 0o644, directory: int | None = None) -> Iterator[int]:
    """An open descriptor, closed afterwards."""
    fd = os.open(path, flags, mode, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, in as many calls as it takes."""
    while data:
        data = data[os.write(fd, data) :]


def start_child(does: Callable[[], object]) -> int:
    """Have another process do something; its id. It ends with 0 if that raises nothing."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            does()
            code = 0
        finally:
            os._exit(code)
    return child


def wait_for(child: int) -> int:
    """How it ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def child_does(does: Callable[[], object]) -> int:
    """Have another process do something, and wait for how it ends."""
    return wait_for(start_child(does))


def after_a_tick(*paths: AnyPath) -> None:
    """Return when the clock that files are stamped with is past all times that these have."""
    latest = max(max(s.st_ctime_ns, s.st_mtime_ns) for s in (os.lstat(path) for path in paths))
    while time.clock_gettime_ns(_COARSE) <= latest:
        pass
