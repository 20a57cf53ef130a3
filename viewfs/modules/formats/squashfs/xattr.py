"""Extended attributes: lists of names and values. Inodes with the same attributes share a list.

A value that several lists share may be stored outside of them ("out of line"); a list then has a reference to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import TypeAlias

from viewfs.modules.formats.squashfs.metadata import Metadata, Table
from viewfs.modules.framework.cache import Cache
from viewfs.modules.framework.damage import damaged, missing
from viewfs.modules.framework.sources import Section

__all__ = ["Xattrs"]

_TABLE = Struct("<QII")  # position of the lists, number of lists, unused
_ID = Struct("<QII")  # reference of a list, how many names are in it, its size
_NAME = Struct("<HH")  # type, length of the name
_LENGTH = Struct("<I")
_REFERENCE = Struct("<Q")
_OUT_OF_LINE = 0x100
#: SQUASHFS_XATTR_USER and so on.
_PREFIXES = {0: b"user.", 1: b"trusted.", 2: b"security."}
#: linux/limits.h: XATTR_SIZE_MAX, XATTR_LIST_MAX.
_VALUE_MAX = 65536
_LIST_MAX = 65536
_NAMES_CACHED = 8192

#: A metadata block in the image, and an offset into its content.
_Place: TypeAlias = tuple[int, int]


class Xattrs:
    """The extended attributes of one file system, by the index in the inode."""

    def __init__(self, image: Section, metadata: Metadata, table: int) -> None:
        """`table` is where the table of ids begins. Raises OSError."""
        header = image.pread_up_to(_TABLE.size, table)
        if len(header) < _TABLE.size:
            raise missing("the image ends before the table of extended attributes")
        self._start, count, _unused = _TABLE.unpack(header)
        self._metadata = metadata
        self._ids = Table(image, metadata, table + _TABLE.size, count, _ID, "list of extended attributes")
        self._lists: Cache[int, Mapping[bytes, _Place]] = Cache(_NAMES_CACHED)

    def of(self, index: int) -> Mapping[bytes, bytes]:
        """Names and values of list `index`; values are read when they are accessed. Raises OSError."""
        found = self._lists.get(index)
        if found is None:
            found = self._read(index)
            self._lists.put(index, found, len(found) + 1)
        return _Values(found, self._metadata)

    def _read(self, index: int) -> Mapping[bytes, _Place]:
        reference, count, _size = self._ids[index]
        read, skip = self._metadata.read, self._metadata.skip
        at = self._place(reference)
        found: dict[bytes, _Place] = {}
        listed = 0
        for _ in range(count):
            kind, length = _NAME.unpack(read(*at, _NAME.size))
            at = skip(*at, _NAME.size)
            name = read(*at, length)
            at = skip(*at, length)
            listed += length + 1
            if listed > _LIST_MAX:
                raise damaged(f"list {index} of extended attributes is too long")
            value = at
            (size,) = _LENGTH.unpack(read(*at, _LENGTH.size))
            if kind & _OUT_OF_LINE:
                if size != _REFERENCE.size:
                    raise damaged(f"list {index} of extended attributes has a value that is nowhere")
                value = self._place(_REFERENCE.unpack(read(*skip(*at, _LENGTH.size), size))[0])
            elif size > _VALUE_MAX:
                raise damaged(f"an extended attribute has a value of {size} bytes")
            at = skip(*at, _LENGTH.size + size)
            prefix = _PREFIXES.get(kind & 0xFF)
            if prefix is not None:  # the kernel leaves out unknown ones, too
                found.setdefault(prefix + name, value)
        return found

    def _place(self, reference: int) -> _Place:
        return self._start + (reference >> 16), reference & 0xFFFF


class _Values(Mapping[bytes, bytes]):
    """The values of one list, read only when they are accessed: many lists may share a long value."""

    def __init__(self, places: Mapping[bytes, _Place], metadata: Metadata) -> None:
        self._places = places
        self._metadata = metadata

    def __getitem__(self, name: bytes) -> bytes:
        at = self._places[name]
        (length,) = _LENGTH.unpack(self._metadata.read(*at, _LENGTH.size))
        if length > _VALUE_MAX:
            raise damaged(f"an extended attribute has a value of {length} bytes")
        return self._metadata.read(*self._metadata.skip(*at, _LENGTH.size), length)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
