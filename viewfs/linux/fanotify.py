"""Structures and flags of fanotify(7) (linux/fanotify.h)."""

from __future__ import annotations

import os
import struct
from enum import IntFlag
from typing import NamedTuple

from viewfs.linux.libc import c_char_p, c_int, c_uint, c_ulong, check, function

__all__ = [
    "ADMIN_FLAGS", "EVENT_FILE_FLAGS", "FD_EVENTS", "FID_FLAGS", "INIT_FLAGS", "MARK_FLAGS", "METADATA_SIZE", "NO_FD",
    "NO_PIDFD", "PERMISSION_EVENTS", "Event", "Init", "Mark", "Response", "fanotify_mark",
    "pack_metadata", "pack_pidfd", "unpack_response",
]  # fmt: skip


_AT_FDCWD = -100
_fanotify_mark = function("fanotify_mark", c_int, c_uint, c_ulong, c_int, c_char_p)


class Init(IntFlag):
    """Flags of fanotify_init(2), without FAN_ in front."""

    CLOEXEC = 0x1
    NONBLOCK = 0x2
    CLASS_CONTENT = 0x4
    CLASS_PRE_CONTENT = 0x8
    UNLIMITED_QUEUE = 0x10
    UNLIMITED_MARKS = 0x20
    ENABLE_AUDIT = 0x40
    REPORT_PIDFD = 0x80
    REPORT_TID = 0x100
    REPORT_FID = 0x200
    REPORT_DIR_FID = 0x400
    REPORT_NAME = 0x800
    REPORT_TARGET_FID = 0x1000
    REPORT_FD_ERROR = 0x2000
    REPORT_MNT = 0x4000


#: All of them. (A number, for ~ of an `IntFlag` knows no other bits.)
INIT_FLAGS = 0x7FFF
#: Groups that name files by handles instead of descriptors; and those that name mounts.
FID_FLAGS = Init.REPORT_FID | Init.REPORT_DIR_FID | Init.REPORT_NAME | Init.REPORT_TARGET_FID
#: What the kernel grants to an administrator only.
ADMIN_FLAGS = (
    Init.CLASS_CONTENT | Init.CLASS_PRE_CONTENT | Init.REPORT_TID | Init.REPORT_PIDFD | Init.REPORT_FD_ERROR
    | Init.UNLIMITED_QUEUE | Init.UNLIMITED_MARKS
)  # fmt: skip
#: O_ACCMODE, O_APPEND, O_NONBLOCK, O_SYNC, O_DSYNC, O_CLOEXEC, O_LARGEFILE, O_NOATIME.
EVENT_FILE_FLAGS = 0o3 | 0o2000 | 0o4000 | 0o4010000 | 0o2000000 | 0o100000 | 0o1000000


class Mark(IntFlag):
    """Flags of fanotify_mark(2), without FAN_MARK_ in front."""

    ADD = 0x1
    REMOVE = 0x2
    DONT_FOLLOW = 0x4
    ONLYDIR = 0x8
    MOUNT = 0x10
    IGNORED_MASK = 0x20
    IGNORED_SURV_MODIFY = 0x40
    FLUSH = 0x80
    FILESYSTEM = 0x100
    EVICTABLE = 0x200
    IGNORE = 0x400


MARK_FLAGS = 0x7FF


class Event(IntFlag):
    """Bits of a mask, without FAN_ in front."""

    ACCESS = 0x1
    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    CLOSE_NOWRITE = 0x10
    OPEN = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    OPEN_EXEC = 0x1000
    Q_OVERFLOW = 0x4000
    FS_ERROR = 0x8000
    OPEN_PERM = 0x10000
    ACCESS_PERM = 0x20000
    OPEN_EXEC_PERM = 0x40000
    PRE_ACCESS = 0x100000
    MNT_ATTACH = 0x1000000
    MNT_DETACH = 0x2000000
    EVENT_ON_CHILD = 0x8000000
    RENAME = 0x10000000
    ONDIR = 0x40000000


#: Those that are reported with a descriptor; those that somebody waits for, who was asked.
FD_EVENTS = (
    Event.ACCESS | Event.MODIFY | Event.CLOSE_WRITE | Event.CLOSE_NOWRITE | Event.OPEN | Event.OPEN_EXEC
    | Event.OPEN_PERM | Event.ACCESS_PERM | Event.OPEN_EXEC_PERM | Event.PRE_ACCESS
)  # fmt: skip
PERMISSION_EVENTS = Event.OPEN_PERM | Event.ACCESS_PERM | Event.OPEN_EXEC_PERM

#: struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid.
_METADATA = struct.Struct("=IBBHQii")
METADATA_SIZE = _METADATA.size
_VERSION = 3
NO_FD = -1
#: struct fanotify_event_info_pidfd: info_type, pad, len, pidfd. FAN_NOPIDFD: the process is gone.
_PIDFD = struct.Struct("=BBHi")
_INFO_PIDFD = 4
NO_PIDFD = -1
#: struct fanotify_response: fd, response.
_RESPONSE = struct.Struct("=iI")


class Response(NamedTuple):
    """struct fanotify_response, with FAN_ALLOW, FAN_DENY and FAN_AUDIT in `response`."""

    fd: int
    response: int


def fanotify_mark(group: int, flags: int, mask: int, path: str) -> None:
    """fanotify_mark(2). Raises OSError."""
    check(_fanotify_mark(group, flags, mask, _AT_FDCWD, os.fsencode(path)), "fanotify_mark", path)


def pack_metadata(mask: int, fd: int, pid: int, more: int = 0) -> bytes:
    """struct fanotify_event_metadata, behind which come `more` bytes of information."""
    return _METADATA.pack(METADATA_SIZE + more, _VERSION, 0, METADATA_SIZE, mask, fd, pid)


def pack_pidfd(pidfd: int) -> bytes:
    """struct fanotify_event_info_pidfd."""
    return _PIDFD.pack(_INFO_PIDFD, 0, _PIDFD.size, pidfd)


def unpack_response(data: bytes) -> Response:
    """Raises ValueError for what is too short."""
    if len(data) < _RESPONSE.size:
        raise ValueError("a response that is too short")
    return Response(*_RESPONSE.unpack_from(data))
