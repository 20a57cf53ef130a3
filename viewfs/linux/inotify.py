"""inotify(7): being told of names that come and go in a directory. Constants: linux/inotify.h."""

from __future__ import annotations

import os
import struct

from viewfs.linux.libc import c_char_p, c_int, c_uint, check, function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NAMES", "changed_names", "watch"]

_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_OVERFLOW = 0x4000
_ONLYDIR = 0x01000000
#: Names come and go, or another file has one.
NAMES = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_CLOEXEC = os.O_CLOEXEC
_EVENT = struct.Struct("iIII")
_BUFFER = 65536

_init = function("inotify_init1", c_int)
_add_watch = function("inotify_add_watch", c_int, c_char_p, c_uint)


def watch(directory: int) -> int:
    """A descriptor from which the changes of names in an open directory can be read. Raises OSError."""
    fd = check(_init(_CLOEXEC), "inotify_init1")
    try:
        check(_add_watch(fd, b"/proc/self/fd/%d" % directory, NAMES | _ONLYDIR), "inotify_add_watch")
    except OSError:
        os.close(fd)
        raise
    return fd


def changed_names(fd: int) -> Iterator[bytes | None]:
    """Wait for changes; the names that have changed, or None where some were lost. Raises OSError."""
    data = os.read(fd, _BUFFER)
    position = 0
    while position < len(data):
        _watch, mask, _cookie, length = _EVENT.unpack_from(data, position)
        position += _EVENT.size
        name = data[position : position + length].rstrip(b"\0")
        position += length
        yield None if mask & _OVERFLOW else name
