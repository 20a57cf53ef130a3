"""Events that are read from descriptors, in another byte order: for programs of another machine that run in an
emulator, whose structures the kernel does not know.

Structures: fanotify(7) (linux/fanotify.h), inotify(7) (linux/inotify.h), signalfd(2) (linux/signalfd.h). All fields
have the same sizes and places in every word size.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Literal

__all__ = ["ByteOrder", "fanotify_events", "fanotify_responses", "inotify_events", "signalfd_events"]

ByteOrder = Literal["little", "big"]
_SIGNS: dict[str, str] = {"little": "<", "big": ">"}

#: event_len, vers, reserved, metadata_len, mask, fd, pid.
_METADATA = "IBBHQii"
#: info_type, pad, len.
_INFO = "BBH"
#: enum of linux/fanotify.h: records with a file handle, which begins with fsid (two ints), handle_bytes, handle_type.
_WITH_HANDLE = frozenset({1, 2, 3, 10, 12})
_HANDLE = "iiIi"
_PIDFD, _ERROR, _RANGE, _MOUNT = 4, 5, 6, 7
#: pidfd; error, error_count; pad, offset, count; mnt_id.
_REST = {_PIDFD: "i", _ERROR: "iI", _RANGE: "IQQ", _MOUNT: "Q"}
_RESPONSE = "iI"
#: wd, mask, cookie, len; then the name.
_INOTIFY = "iIII"
#: struct signalfd_siginfo: signo, errno, code, pid, uid, fd, tid, band, overrun, trapno, status, int, ptr, utime,
#: stime, addr, addr_lsb, pad, syscall, call_addr, arch, pad.
_SIGNALFD = "IiiIIiIIIIiiQQQQHHiQI28s"


def fanotify_events(data: bytes, source: ByteOrder, target: ByteOrder = sys.byteorder) -> bytes:
    """What was read from a group, converted. Raises ValueError for what is no row of whole events."""

    def convert(event: bytes) -> bytes:
        found = bytearray(event)
        size = struct.calcsize("=" + _METADATA)
        _swap(found, 0, _METADATA, source, target)
        at = size
        while at < len(event):
            _type, _pad, length = _unpack(event, at, _INFO, source)
            if length < struct.calcsize("=" + _INFO) or at + length > len(event):
                raise ValueError("an information record that is cut short")
            _swap_record(found, at, event[at], at + length, source, target)
            at += length
        return bytes(found)

    return _each(data, _METADATA, lambda fields: fields[0], source, convert)


def _swap_record(data: bytearray, at: int, kind: int, end: int, source: ByteOrder, target: ByteOrder) -> None:
    _swap(data, at, _INFO, source, target)
    at += struct.calcsize("=" + _INFO)
    rest = _HANDLE if kind in _WITH_HANDLE else _REST.get(kind, "")
    if at + struct.calcsize("=" + rest) > end:
        raise ValueError("an information record that is cut short")
    # (What is in a handle is for the kernel alone; a name has no order.)
    _swap(data, at, rest, source, target)


def fanotify_responses(data: bytes, source: ByteOrder, target: ByteOrder = sys.byteorder) -> bytes:
    """What is to be written to a group, converted. What follows the first response is left as it is. Raises ValueError
    for what is too short."""
    found = bytearray(data)
    _swap(found, 0, _RESPONSE, source, target)
    return bytes(found)


def inotify_events(data: bytes, source: ByteOrder, target: ByteOrder = sys.byteorder) -> bytes:
    """As `fanotify_events`, of inotify(7)."""
    size = struct.calcsize("=" + _INOTIFY)

    def convert(event: bytes) -> bytes:
        found = bytearray(event)
        _swap(found, 0, _INOTIFY, source, target)
        return bytes(found)

    return _each(data, _INOTIFY, lambda fields: size + fields[3], source, convert)


def signalfd_events(data: bytes, source: ByteOrder, target: ByteOrder = sys.byteorder) -> bytes:
    """As `fanotify_events`, of signalfd(2)."""

    def convert(event: bytes) -> bytes:
        found = bytearray(event)
        _swap(found, 0, _SIGNALFD, source, target)
        return bytes(found)

    return _each(data, _SIGNALFD, lambda _fields: struct.calcsize("=" + _SIGNALFD), source, convert)


def _unpack(data: bytes, at: int, layout: str, order: ByteOrder) -> tuple[int, ...]:
    try:
        return struct.unpack_from(_SIGNS[order] + layout, data, at)
    except struct.error:
        raise ValueError("an event that is cut short") from None


def _swap(data: bytearray, at: int, layout: str, source: ByteOrder, target: ByteOrder) -> None:
    struct.pack_into(_SIGNS[target] + layout, data, at, *_unpack(bytes(data), at, layout, source))


def _each(
    data: bytes,
    layout: str,
    length_of: Callable[[tuple[int, ...]], int],
    source: ByteOrder,
    convert: Callable[[bytes], bytes],
) -> bytes:
    found, at = [], 0
    while at < len(data):
        length = length_of(_unpack(data, at, layout, source))
        if length < struct.calcsize("=" + layout) or at + length > len(data):
            raise ValueError("an event that is cut short")
        found.append(convert(data[at : at + length]))
        at += length
    return b"".join(found)
