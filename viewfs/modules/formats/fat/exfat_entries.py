"""Entry sets of exFAT's directories. Pure.

Microsoft, “exFAT file system specification”, sections 6 and 7. A set consists of a file's entry, one with the place of
its content, those with its name, and others that a reader may skip.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from viewfs.modules.formats.fat.names import decode_utf16
from viewfs.modules.formats.fat.times import Zone, dos_time, utc_offset
from viewfs.modules.framework.damage import damaged

__all__ = ["ENTRY_SIZE", "EntryType", "ExfatFile", "RawSet", "parse_sets", "parse_file"]

ENTRY_SIZE = 32
_SECOND = 1_000_000_000


class EntryType(IntEnum):
    """EntryType, of entries that are in use (bit 7)."""

    END = 0x00
    BITMAP = 0x81
    UP_CASE = 0x82
    LABEL = 0x83
    FILE = 0x85
    STREAM = 0xC0
    NAME = 0xC1


_IN_USE, _SECONDARY = 0x80, 0x40
_UNITS = 15
_FILE, _STREAM, _NAME = int(EntryType.FILE), int(EntryType.STREAM), int(EntryType.NAME)


class RawSet(NamedTuple):
    """The bytes of an entry and of its secondary entries, of which some may be missing."""

    data: bytes
    #: The position of the first entry in the volume, in bytes.
    position: int
    #: Where the set ends in the directory, in bytes.
    end: int

    @property
    def kind(self) -> int:
        return self.data[0]


class ExfatFile(NamedTuple):
    """The file that a set describes. Times in nanoseconds since 1970; lengths in bytes."""

    name: bytes
    attributes: int
    first_cluster: int
    length: int
    #: What lies beyond this was never written, and reads as zeros.
    valid_length: int
    #: Its clusters are consecutive, and have no chain in the table.
    is_contiguous: bool
    mtime_ns: int
    atime_ns: int
    ctime_ns: int

    @property
    def is_directory(self) -> bool:
        return bool(self.attributes & 0x10)


def parse_sets(pieces: Iterable[tuple[bytes, int]], start: int = 0) -> Iterator[RawSet]:
    """The sets of a directory that are in use; its bytes come in `pieces` with their positions in the volume.

    `start` is the number of bytes of the directory before the first piece. An OSError of `pieces` is raised after the
    sets before it.
    """
    waiting: list[bytes] = []
    position = wanted = 0
    end = start
    for entry, here in _slots(pieces):
        kind = entry[0]
        if waiting and (kind & (_IN_USE | _SECONDARY) != _IN_USE | _SECONDARY):
            yield RawSet(b"".join(waiting), position, end)  # cut short
            waiting = []
        end += ENTRY_SIZE
        if waiting:
            waiting.append(entry)
        elif kind & (_IN_USE | _SECONDARY) == _IN_USE:
            waiting, position = [entry], here
            wanted = 1 + entry[1] if kind == _FILE else 1
        if waiting and len(waiting) >= wanted:
            yield RawSet(b"".join(waiting), position, end)
            waiting = []
    if waiting:
        yield RawSet(b"".join(waiting), position, end)


def _slots(pieces: Iterable[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    for data, position in pieces:
        for offset in range(0, len(data) - ENTRY_SIZE + 1, ENTRY_SIZE):
            if data[offset] == EntryType.END:
                return
            yield data[offset : offset + ENTRY_SIZE], position + offset


_FILE_FIELDS = struct.Struct("<BBHH2xIIIBBBBB7x")
_STREAM_FIELDS = struct.Struct("<BBxBH2xQ4xIQ")


def set_name(data: bytes) -> bytes:
    """The name in a file's set, as far as its entries are there."""
    length = data[ENTRY_SIZE + 3] if len(data) >= 2 * ENTRY_SIZE and data[ENTRY_SIZE] == _STREAM else 255
    units = b"".join(
        data[offset + 2 : offset + ENTRY_SIZE]
        for offset in range(2 * ENTRY_SIZE, len(data) - ENTRY_SIZE + 1, ENTRY_SIZE)
        if data[offset] == _NAME
    )
    return decode_utf16(units[: 2 * length])


def parse_file(data: bytes, zone: Zone) -> ExfatFile:
    """The file that a set describes. Raises OSError(EUCLEAN) for an incomplete or inconsistent set."""
    if len(data) < 3 * ENTRY_SIZE or data[0] != _FILE or data[ENTRY_SIZE] != _STREAM:
        raise damaged("a directory has an incomplete entry")
    _kind, secondary, checksum, attributes, ctime, mtime, atime, c10, m10, c_zone, m_zone, a_zone = (
        _FILE_FIELDS.unpack_from(data)
    )
    if len(data) != (1 + secondary) * ENTRY_SIZE:
        raise damaged("a directory has an incomplete entry")
    if _checksum(data) != checksum:
        raise damaged("the checksum of a directory's entry is wrong")
    _kind, flags, name_length, _hash, valid, first, length = _STREAM_FIELDS.unpack_from(data, ENTRY_SIZE)
    names = -(-name_length // _UNITS)
    if (
        not name_length
        or secondary < 1 + names
        or any(data[(2 + index) * ENTRY_SIZE] != _NAME for index in range(names))
    ):
        raise damaged("a directory's entry has too little of a name")
    if valid > length:
        raise damaged(f"a file has {valid} valid bytes of {length}")
    return ExfatFile(
        set_name(data),
        attributes,
        first,
        length,
        valid,
        bool(flags & 2),
        _time(mtime, m10, m_zone, zone),
        _time(atime, 0, a_zone, zone),
        _time(ctime, c10, c_zone, zone),
    )


def _time(packed: int, hundredths: int, offset: int, zone: Zone) -> int:
    local = dos_time(packed >> 16, packed & 0xFFFF, min(hundredths, 199))
    east = utc_offset(offset)
    if east is not None:
        return local - east * _SECOND
    return zone.to_utc(local // _SECOND) * _SECOND + local % _SECOND


def _checksum(data: bytes) -> int:
    """The checksum of a set, of all bytes but its own (section 6.3.3)."""
    value = 0
    for byte in data[:2] + data[4:]:
        value = (value << 15 & 0x8000 | value >> 1) + byte & 0xFFFF
    return value
