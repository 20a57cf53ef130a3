"""Looking up names and listing them.

A directory is read in *segments* of about 8 KiB: each from one entry of its index to the next or, without an index,
from the end of the segment before to the end of the run that makes it long enough. A bounded cache keeps them parsed,
so that a look-up is a search in a table, and continuing a listing costs nothing.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from viewfs.modules.formats.squashfs.directory import (
    INDEX_ENTRY_SIZE,
    Entry,
    IndexEntry,
    parse_index_entry,
    parse_listing,
)
from viewfs.modules.formats.squashfs.inode import Inode, place_of
from viewfs.modules.formats.squashfs.layout import METADATA_SIZE, Superblock
from viewfs.modules.formats.squashfs.metadata import Metadata
from viewfs.modules.framework.cache import Cache, SingleFlightCache
from viewfs.modules.framework.damage import damaged

__all__ = ["Directories"]

#: Bytes of listings that are kept parsed, which takes some ten times as much memory.
_CACHED = 2 << 20
#: How many entries of indexes are kept; each directory counts as one more.
_STARTS_CACHED = 32768
#: Without an index, a segment is at least this long, unless the listing ends before.
_SEGMENT = 8192
#: No run of names is longer than this.
_RUN_MAX = 12 + 256 * (8 + 256)
#: An index has an entry for each metadata block: the next run that begins.
_SEGMENT_MAX = METADATA_SIZE + 2 * _RUN_MAX
#: A longer listing without an index would take seconds to search, for each name that is not there. (mksquashfs makes an
#: index for listings above 8 KiB.)
_UNINDEXED_MAX = 4 << 20
_MAX_INDEX_ENTRIES = 1 << 16
#: What the kernel adds to the size of a listing for `.` and `..` (squashfs_readdir). Cookies are places plus this.
_DOTS = 3


class _Segment:
    """A part of a listing. Its entries have cookies instead of places."""

    def __init__(self, entries: list[Entry], size: int, end: int) -> None:
        """`size`: for the cache. `end`: where the next segment begins."""
        self.entries = entries
        self.size = size
        self.end = end
        self._by_name: dict[bytes, int] | None = None

    @property
    def by_name(self) -> dict[bytes, int]:
        """Name → reference. If two entries have the same name, the first counts, as in the kernel."""
        found = self._by_name
        if found is None:  # several threads may make it, and it is the same
            found = self._by_name = {entry[0]: entry[2] for entry in reversed(self.entries)}
        return found

    def behind(self, cookie: int) -> list[Entry]:
        """The entries after `cookie`."""
        entries = self.entries
        if not entries or cookie < entries[0][1]:
            return entries
        return entries[bisect_right(entries, cookie, key=_cookie_of) :]


_cookie_of = itemgetter(1)


class _Start(NamedTuple):
    """Where a segment begins: in the listing, and in the directory table."""

    place: int
    block: int
    offset: int


class _Key(NamedTuple):
    """What is needed to read a segment."""

    start: _Start
    #: How many bytes have to be read, and how many may be read to complete a run.
    least: int
    most: int


class _Directory:
    """Where the segments of one directory begin, as far as that is known."""

    def __init__(self, size: int, first: _Start, index: list[tuple[_Start, bytes]]) -> None:
        self.size = size
        self.indexed = bool(index)
        self.starts = [first, *(start for start, _name in index)]
        #: The first name of each segment but the first, if there is an index.
        self.names = [name for _start, name in index]
        #: The first error in a segment that was found while the directory was listed.
        self.damage: OSError | None = None
        self._lock = threading.Lock()

    def key(self, number: int) -> _Key:
        start = self.starts[number]
        left = self.size - start.place
        if self.indexed:
            length = self.starts[number + 1].place - start.place if number + 1 < len(self.starts) else left
            return _Key(start, length, length)
        return _Key(start, min(left, _SEGMENT), min(left, _SEGMENT + _RUN_MAX))

    def add(self, start: _Start) -> None:
        with self._lock:
            if start.place > self.starts[-1].place:
                self.starts.append(start)


class Directories:
    """Reads the directories of one file system. Any thread may call it."""

    def __init__(self, metadata: Metadata, superblock: Superblock) -> None:
        self._metadata = metadata
        self._table = superblock.directory_table
        self._inode_table = superblock.inode_table
        self._known: Cache[int, _Directory] = Cache(_STARTS_CACHED)
        self._segments: SingleFlightCache[_Key, _Segment] = SingleFlightCache(
            _CACHED, self._load, lambda segment: segment.size
        )

    def lookup(self, inode: Inode, name: bytes) -> int | None:
        """The reference of the inode that `name` stands for, or None. Raises OSError."""
        directory = self._directory(inode)
        if directory.indexed:
            number = bisect_right(directory.names, name)
            return self._segments.get(directory.key(number)).by_name.get(name)
        for segment in self._walk(directory, 0):
            found = segment.by_name.get(name)
            if found is not None:
                return found
        return None

    def entries(self, inode: Inode, start: int) -> Iterator[Entry]:
        """The names after cookie `start`, with cookies instead of places. Raises OSError, also during the iteration."""
        directory = self._directory(inode)
        place = max(start - _DOTS, 0)
        starts = directory.starts
        number = bisect_right(starts, place, key=lambda known: known.place) - 1
        if directory.indexed:
            yield from self._indexed_entries(directory, number, start)
            return
        for segment in self._walk(directory, number):
            yield from segment.behind(start)

    def _indexed_entries(self, directory: _Directory, number: int, cookie: int) -> Iterator[Entry]:
        """A damaged segment hides only the names in it: the error is raised last."""
        for each in range(number, len(directory.starts)):
            try:
                segment = self._segments.get(directory.key(each))
            except OSError as error:
                directory.damage = directory.damage or error
                continue
            yield from segment.behind(cookie)
        if (damage := directory.damage) is not None:  # perhaps of an earlier part of the listing
            raise OSError(damage.errno, damage.strerror)

    def _walk(self, directory: _Directory, number: int) -> Iterator[_Segment]:
        """The segments from `number` on, without an index: each one tells where the next begins."""
        while number < len(directory.starts):
            key = directory.key(number)
            if key.least <= 0:
                return
            segment = self._segments.get(key)
            yield segment
            number += 1
            if number == len(directory.starts) and segment.end < directory.size:
                start = key.start
                block, offset = self._metadata.skip(start.block, start.offset, segment.end - start.place)
                directory.add(_Start(segment.end, block, offset))

    def _directory(self, inode: Inode) -> _Directory:
        node = inode.attributes.ino
        return self._known.get(node) or self._known.put(node, self._open(inode), 1 + inode.index_entries)

    def _open(self, inode: Inode) -> _Directory:
        size = max(inode.attributes.size - _DOTS, 0)
        first = _Start(0, self._table + inode.start, inode.offset)
        try:
            index = self._read_index(inode, first)
        except OSError:
            index = []  # a listing can also be read sequentially
        if not index and size > _UNINDEXED_MAX:
            raise damaged(f"a directory has a listing of {size} bytes, and no index that can be read")
        return _Directory(size, first, index)

    def _read_index(self, inode: Inode, first: _Start) -> list[tuple[_Start, bytes]]:
        """The index; empty if there is none. Raises OSError if it is damaged."""
        count = inode.index_entries
        if count > _MAX_INDEX_ENTRIES:
            raise damaged(f"a directory has an index of {count} entries")
        index = [
            # Places count from the beginning of the listing, blocks from that of the table.
            (_Start(entry.place, self._table + entry.block, (inode.offset + entry.place) % METADATA_SIZE), entry.name)
            for entry in self._index(inode, count)
        ]
        places = [first.place, *(start.place for start, _name in index), inode.attributes.size - _DOTS]
        if index and not all(0 < two - one <= _SEGMENT_MAX for one, two in pairwise(places)):
            raise damaged("the index of a directory is out of order, or has gaps")
        return index

    def _index(self, inode: Inode, count: int) -> Iterator[IndexEntry]:
        read, skip = self._metadata.read, self._metadata.skip
        block, offset = place_of(inode, self._inode_table)
        block, offset = skip(block, offset, inode.tail)
        for _ in range(count):
            entry, length = parse_index_entry(read(block, offset, INDEX_ENTRY_SIZE))
            block, offset = skip(block, offset, INDEX_ENTRY_SIZE)
            yield entry._replace(name=read(block, offset, length))
            block, offset = skip(block, offset, length)

    def _load(self, key: _Key) -> _Segment:
        start = key.start
        data = self._metadata.read(start.block, start.offset, key.most)
        listing = parse_listing(data, start.place + _DOTS, least=key.least)
        return _Segment(listing.entries, len(data) + 1, listing.end - _DOTS)
