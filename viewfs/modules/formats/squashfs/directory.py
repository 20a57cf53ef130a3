"""Listings and indexes of directories (squashfs_dir_header, _entry and _index of squashfs_fs.h). Pure.

A listing consists of runs of up to 256 names whose inodes begin in the same metadata block; names are sorted by their
bytes. The index of a long directory has the first names and the places of some of the runs.
"""

from __future__ import annotations

from struct import Struct, error
from typing import NamedTuple, TypeAlias

from viewfs.modules.framework.damage import damaged

__all__ = ["Entry", "IndexEntry", "Listing", "INDEX_ENTRY_SIZE", "parse_index_entry", "parse_listing"]

Buffer: TypeAlias = bytes | bytearray

_HEADER = Struct("<IIi")  # names less one, metadata block of the inodes, inode number that the names' count from
_ENTRY = Struct("<HhHH")  # offset in that block, inode number, type, length of the name less one
_INDEX_ENTRY = Struct("<III")  # place in the listing, metadata block of that place, length of the name less one
INDEX_ENTRY_SIZE = _INDEX_ENTRY.size
_MAX_RUN = 256
_NAME_MAX = 256
#: Types of inodes as DT_* of dirent.h; listings do not distinguish the extended types from the basic ones.
_KINDS = (0, 4, 8, 10, 6, 2, 1, 12)
_NOT_NAMES = (b".", b"..")

#: Name, place in the listing where the next one begins, reference of the inode, inode number, DT_* type.
Entry: TypeAlias = tuple[bytes, int, int, int, int]


class Listing(NamedTuple):
    """A part of a listing."""

    entries: list[Entry]
    #: The place in the listing of the first run that is not in `entries`.
    end: int


class IndexEntry(NamedTuple):
    """Where a run begins, and its first name."""

    place: int
    #: From the beginning of the directory table.
    block: int
    name: bytes = b""


def parse_listing(data: Buffer, start: int, *, least: int) -> Listing:
    """The runs in `data`, which begins `start` bytes into a listing, up to the one that makes them `least` bytes long.

    Raises OSError(EUCLEAN) if a run is cut short or invalid.
    """
    data = bytes(data)
    entries: list[Entry] = []
    add, unpack, kinds = entries.append, _ENTRY.unpack_from, _KINDS
    at, size = 0, len(data)
    stop = min(size, least)
    try:
        while at < stop:
            count, block, base = _HEADER.unpack_from(data, at)
            if count >= _MAX_RUN:
                raise damaged(f"a directory has a run of {count + 1} names, and {_MAX_RUN} are the most")
            at += 12
            block <<= 16
            for _ in range(count + 1):
                offset, delta, kind, length = unpack(data, at)
                name_at = at + 8
                at = name_at + length + 1
                if length >= _NAME_MAX or at > size:
                    raise damaged("a name of a directory is longer than it can be")
                add((data[name_at:at], start + at, block | offset, (base + delta) & 0xFFFFFFFF, kinds[kind]))
    except (error, IndexError):
        raise damaged("the listing of a directory is cut short or has an unknown type in it") from None
    _check_names([entry[0] for entry in entries])
    return Listing(entries, start + at)


def _check_names(names: list[bytes]) -> None:
    """Raise OSError(EUCLEAN) if one of `names` is none. (All are searched at once: a listing may have 50,000.)"""
    together = b"".join(names)
    if b"/" not in together and b"\0" not in together and not any(name in names for name in _NOT_NAMES):
        return
    wrong = next(name for name in names if b"/" in name or b"\0" in name or name in _NOT_NAMES)
    raise damaged(f"a directory has {wrong!r} for a name")


def parse_index_entry(data: Buffer) -> tuple[IndexEntry, int]:
    """The fixed part of an index entry, without its name, and the length of the name. Raises OSError(EUCLEAN)."""
    place, block, length = _INDEX_ENTRY.unpack_from(data)
    if length >= _NAME_MAX:
        raise damaged("the index of a directory has a name that is longer than it can be")
    return IndexEntry(place, block), length + 1
