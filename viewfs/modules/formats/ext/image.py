"""The bytes of a file system: the source from some offset on, as a replayed journal would leave them.

A journal is not copied into memory to be replayed. For each block of which the journal has a newer version, only the
position of that version is remembered, and the block is read from there.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from viewfs.modules.api import Buffer, FileRange, Source
from viewfs.modules.framework.sources import Section

__all__ = ["Image", "Moved"]


log = logging.getLogger("viewfs.ext")


class Moved(NamedTuple):
    """The position of the valid version of a block."""

    #: Bytes from the beginning of the file system.
    position: int
    #: The block began with jbd2's magic number, and was written to the journal with zeros there (journal.rst).
    escaped: bool


class Image(Section):
    """Reads at byte positions counted from the beginning of the file system. Raises OSError(EIO) beyond the end."""

    def __init__(self, source: Source, offset: int, name: str = "image") -> None:
        super().__init__(source, offset)
        self._name = name
        #: Damage in spite of which something was read.
        self.warnings: list[str] = []
        self._moved: Mapping[int, Moved] = {}
        self._moved_blocks: list[int] = []
        self._block_size = 1024

    def warn(self, text: str) -> None:
        """Warn, once for each `text`, that something damaged was read all the same."""
        if text not in self.warnings:
            self.warnings.append(text)
            log.warning("%s: %s", self._name, text)

    def replay(self, moved: Mapping[int, Moved], block_size: int) -> None:
        """From now on read the blocks that are keys of `moved` from the positions there."""
        self._moved = moved
        self._moved_blocks = sorted(moved)
        self._block_size = block_size

    def pread(self, size: int, position: int) -> bytes:
        """Exactly `size` bytes."""
        if self._moved_blocks:
            index = self._first_moved(size, position)
            if index is not None:
                return self._replayed(size, position, index)
        return super().pread(size, position)

    def _first_moved(self, size: int, position: int) -> int | None:
        """The index of the first moved block in the range, if there is one."""
        first = position // self._block_size
        last = (position + size - 1) // self._block_size
        index = bisect_left(self._moved_blocks, first)
        return index if index < len(self._moved_blocks) and self._moved_blocks[index] <= last else None

    def span(self, size: int, position: int) -> Buffer | FileRange:
        """As `pread`, but bytes of an open file are returned as a `FileRange`."""
        if self._moved_blocks and self._first_moved(size, position) is not None:
            return self.pread(size, position)
        return super().span(size, position)

    def available(self, size: int, position: int) -> int:
        """How many of `size` bytes at `position` the source has. Replayed blocks are not looked at."""
        return max(min(size, self.size - position), 0)

    def _replayed(self, size: int, position: int, index: int) -> bytes:
        """As `pread`, where the moved block number `index` is the first in the range."""
        pieces = []
        block_size, end = self._block_size, position + size
        while position < end:
            block = self._moved_blocks[index] if index < len(self._moved_blocks) else end
            start = min(block * block_size, end)
            if position < start:
                pieces.append(super().pread(start - position, position))
                position = start
                continue
            stop = min(start + block_size, end)
            pieces.append(self._moved_block(block)[position - start : stop - start])
            position = stop
            index += 1
        return b"".join(pieces)

    def _moved_block(self, block: int) -> bytes:
        place = self._moved[block]
        data = super().pread(self._block_size, place.position)
        return b"\xc0\x3b\x39\x98" + data[4:] if place.escaped else data
