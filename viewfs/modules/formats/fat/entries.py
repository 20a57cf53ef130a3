"""Entries of directories of FAT12, FAT16 and FAT32, long names included. Pure.

Microsoft, “FAT: General Overview of On-Disk Format”, sections “FAT Directory Structure” and “FAT Long Directory
Entries”; what these leave open is done as in Linux (fs/fat/dir.c): a long name counts only if all its parts are there,
in order, with the checksum of the short name right behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from enum import IntFlag
from typing import NamedTuple

from viewfs.modules.formats.fat.names import decode_utf16, is_name, mended_name, short_name
from viewfs.modules.formats.fat.times import dos_time

__all__ = ["ENTRY_SIZE", "Attribute", "FatEntry", "Fields", "find_label", "parse_entries", "parse_fields"]

ENTRY_SIZE = 32
_END, _DELETED = 0x00, 0xE5
_LAST_PART = 0x40
_UNITS = 13
_MOST_PARTS = 20
_DOTS = (b".          ", b"..         ")


class Attribute(IntFlag):
    """DIR_Attr."""

    READ_ONLY = 0x01
    HIDDEN = 0x02
    SYSTEM = 0x04
    VOLUME_ID = 0x08
    DIRECTORY = 0x10
    ARCHIVE = 0x20


_VOLUME_ID = int(Attribute.VOLUME_ID)
_LONG_NAME, _LONG_NAME_MASK = 0x0F, 0x3F


class FatEntry(NamedTuple):
    """One name."""

    #: The name that is shown, and the short name, by which it is found too.
    name: bytes
    alias: str
    #: The short entry, and its position in the volume, in bytes.
    raw: bytes
    position: int
    #: Where the entry ends in the directory, in bytes.
    end: int


class Fields(NamedTuple):
    """The fields of a short entry. Times are nanoseconds since 1970 in the volume's own time zone."""

    attributes: int
    first_cluster: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int

    @property
    def is_directory(self) -> bool:
        return bool(self.attributes & Attribute.DIRECTORY)


_FIELDS = struct.Struct("<11xBBBHHHHHHHI")


def parse_fields(raw: bytes, *, wide: bool) -> Fields:
    """`wide`: the entry is of FAT32, with 16 more bits for the first cluster."""
    attributes, _case, hundredths, ctime, cdate, adate, high, mtime, mdate, low, size = _FIELDS.unpack(raw)
    return Fields(
        attributes,
        low | high << 16 if wide else low,
        size,
        dos_time(mdate, mtime),
        dos_time(adate, 0) if adate else dos_time(mdate, mtime),
        dos_time(cdate, ctime, min(hundredths, 199)) if cdate else dos_time(mdate, mtime),
    )


def is_file(raw: bytes) -> bool:
    """Is `raw` the entry of a file or directory that has not been deleted?"""
    return len(raw) == ENTRY_SIZE and raw[0] not in (_END, _DELETED) and not raw[11] & _VOLUME_ID


def begins_directory(data: bytes) -> bool:
    """Is `data` the beginning of a directory other than the root, which has `.` and `..` first?"""
    return len(data) >= len(_DOTS) * ENTRY_SIZE and all(
        data[index * ENTRY_SIZE :][:11] == name and data[index * ENTRY_SIZE + 11] & Attribute.DIRECTORY
        for index, name in enumerate(_DOTS)
    )


def find_label(pieces: Iterable[tuple[bytes, int]], text: Callable[[bytes], str]) -> str:
    """The volume's label, from its root directory; empty if there is none."""
    for raw, _position in _slots(pieces):
        if raw[0] != _DELETED and raw[11] & _LONG_NAME_MASK != _LONG_NAME and raw[11] & _VOLUME_ID:
            return text(raw[:11]).strip()
    return ""


def parse_entries(
    pieces: Iterable[tuple[bytes, int]], text: Callable[[bytes], str], start: int = 0
) -> Iterator[FatEntry]:
    """The files and directories in a directory, whose bytes come in `pieces` with their positions in the volume.

    `start` is the number of bytes of the directory before the first piece. `.`, `..` and the label are left out. `text`
    decodes the code page. An OSError of `pieces` is raised after the names before it.
    """
    long_name = _LongName()
    end = start
    for raw, position in _slots(pieces):
        end += ENTRY_SIZE
        first, attributes = raw[0], raw[11]
        if first == _DELETED:
            long_name.drop()
        elif attributes & _LONG_NAME_MASK == _LONG_NAME:
            long_name.add(raw)
        elif attributes & _VOLUME_ID:
            long_name.drop()
        else:
            whole = long_name.take(raw)
            if raw[:11] in _DOTS:
                continue
            shown, stored = short_name(raw, text)
            name = whole if whole is not None and is_name(whole) else mended_name(shown.encode())
            if whole or shown:  # Linux skips names of nothing but spaces
                yield FatEntry(name, stored, raw, position, end)


def _slots(pieces: Iterable[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """The entries with their positions in the volume, up to the end of the directory."""
    for data, position in pieces:
        for offset in range(0, len(data) - ENTRY_SIZE + 1, ENTRY_SIZE):
            if data[offset] == _END:
                return
            yield data[offset : offset + ENTRY_SIZE], position + offset


class _LongName:
    """Collects the parts of a long name, which come in reverse order."""

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._parts: list[bytes] = []
        #: How many parts are still missing, and the checksum that all parts have.
        self._left = 0
        self._checksum = -1

    def add(self, raw: bytes) -> None:
        number, checksum = raw[0] & 0x3F, raw[13]
        if raw[0] & _LAST_PART:
            self.drop()
            if not 1 <= number <= _MOST_PARTS:
                return
            self._left, self._checksum = number, checksum
        if not self._left or number != self._left or checksum != self._checksum:
            self.drop()
            return
        self._parts.append(raw[1:11] + raw[14:26] + raw[28:32])
        self._left -= 1

    def take(self, raw: bytes) -> bytes | None:
        """The name, if it is complete and belongs to the short entry `raw`."""
        parts, whole, checksum = self._parts, bool(self._parts) and not self._left, self._checksum
        self.drop()
        if not whole or checksum != _checksum(raw):
            return None
        return decode_utf16(b"".join(reversed(parts)))


def _checksum(raw: bytes) -> int:
    value = 0
    for byte in raw[:11]:
        value = (value >> 1 | value << 7 & 0x80) + byte & 0xFF
    return value
