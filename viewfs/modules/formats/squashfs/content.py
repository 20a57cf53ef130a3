"""The content of files: blocks that are compressed one by one, and fragments, blocks that the ends of files share."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from struct import Struct
from sys import byteorder

from viewfs.modules.api import Buffer, FileRange
from viewfs.modules.formats.squashfs.codecs import Decompressor
from viewfs.modules.formats.squashfs.inode import Inode, place_of
from viewfs.modules.formats.squashfs.layout import METADATA_SIZE, NONE_32, Superblock
from viewfs.modules.formats.squashfs.metadata import Metadata, Table
from viewfs.modules.framework.cache import Cache, SingleFlightCache
from viewfs.modules.framework.damage import damaged
from viewfs.modules.framework.sources import Section

__all__ = ["Contents"]

#: Bit 24 of a block's size: it is not compressed.
_UNCOMPRESSED = 1 << 24
_SIZE = _UNCOMPRESSED - 1
#: squashfs_fragment_entry: position, size, unused.
FRAGMENT = Struct("<QII")
#: Bytes of decompressed blocks that are kept, and the least number of blocks.
_CACHED = 24 << 20
_BLOCKS_CACHED = 8
#: Blocks whose positions are kept; each file counts as `_FILE_WEIGHT` more.
_PLACES_CACHED, _FILE_WEIGHT = 1 << 18, 64
#: Entries of a block list that are read at once.
_CHUNK = METADATA_SIZE // 4
#: A file can't have more blocks than this, because the block list has to be read from its beginning to find the last.
_BLOCKS_MAX = 1 << 28


class _BlockList:
    """The positions of the blocks of one file. A list is read in chunks when they are needed, and of a long one only
    the beginnings of chunks are kept."""

    def __init__(self, inode: Inode, metadata: Metadata, superblock: Superblock) -> None:
        size = inode.attributes.size
        whole, rest = divmod(size, superblock.block_size)
        #: Blocks of this file alone; the end of the file is not counted if it is in a fragment.
        self.count = whole + bool(rest and inode.fragment == NONE_32)
        if self.count > _BLOCKS_MAX or inode.start > superblock.bytes_used:
            raise damaged(f"a file claims to have {self.count} blocks from {inode.start} on")
        self._metadata = metadata
        block, offset = metadata.skip(*place_of(inode, superblock.inode_table), inode.tail)
        #: Of each chunk that has been reached: the place of its part of the list, and the position of its first block.
        self._chunks = [(block, offset, inode.start)]
        self._last: tuple[int, Sequence[int], Sequence[int]] | None = None
        self._lock = threading.Lock()

    def find(self, index: int) -> tuple[int, int]:
        """The position of block `index` in the image, and its size as stored. Raises OSError."""
        number, slot = divmod(index, _CHUNK)
        last = self._last
        if last is None or last[0] != number:
            last = self._reach(number)
        return last[2][slot], last[1][slot]

    def _reach(self, number: int) -> tuple[int, Sequence[int], Sequence[int]]:
        with self._lock:
            for reached in range(min(number, len(self._chunks) - 1), number + 1):
                block, offset, position = self._chunks[reached]
                length = min(_CHUNK, self.count - reached * _CHUNK)
                sizes = array("I", self._metadata.read(block, offset, length * 4))
                if byteorder == "big":
                    sizes.byteswap()
                positions = array("Q", accumulate((size & _SIZE for size in sizes), initial=position))
                if reached + 1 == len(self._chunks) and length == _CHUNK:
                    self._chunks.append((*self._metadata.skip(block, offset, length * 4), positions[-1]))
                self._last = number, sizes, positions
            assert self._last is not None
            return self._last


class Contents:
    """Reads the content of the files of one file system. Any thread may call it; while a block is cached, it is
    decompressed only once."""

    def __init__(self, image: Section, superblock: Superblock, metadata: Metadata, decompress: Decompressor) -> None:
        self._image = image
        self._superblock = superblock
        self._metadata = metadata
        self._decompress = decompress
        self._block_size = superblock.block_size
        self._fragments: Table | None = None
        if superblock.fragment_table is not None:
            self._fragments = Table(
                image, metadata, superblock.fragment_table, superblock.fragment_count, FRAGMENT, "fragment"
            )
        #: The fragment that was used last: the ends of the files of a directory are often in the same one.
        self._last_fragment: tuple[int, bytes | bytearray] = (NONE_32, b"")
        self._lists: Cache[int, _BlockList] = Cache(_PLACES_CACHED)
        #: Called before a block is decompressed.
        self.about_to_work: Callable[[], None] = lambda: None
        self._zeros = memoryview(bytes(self._block_size))
        #: (position, size as stored) → content.
        self.blocks: SingleFlightCache[tuple[int, int], bytes | bytearray] = SingleFlightCache(
            max(_CACHED, _BLOCKS_CACHED * self._block_size), self._load, len
        )

    def _load(self, key: tuple[int, int]) -> bytes | bytearray:
        position, size = key
        length = size & _SIZE
        if not 0 < length <= self._block_size or size >> 25:
            raise damaged(f"the block at {position} has an impossible length, {length} bytes")
        self.about_to_work()
        stored = self._image.pread(length, position)
        return stored if size & _UNCOMPRESSED else self._decompress(stored, self._block_size)

    def read(self, inode: Inode, offset: int, size: int) -> list[Buffer | FileRange]:
        """Up to `size` bytes from `offset`, fewer only at the end, as pieces that need not be copied. Raises
        OSError.
        """
        length, block_size = inode.attributes.size, self._block_size
        end = min(offset + size, length)
        pieces: list[Buffer | FileRange] = []
        if length < block_size and inode.fragment != NONE_32:  # most files
            return [self._fragment(inode, offset, end)] if offset < end else pieces
        while offset < end:
            index, start = divmod(offset, block_size)
            stop = min(start + end - offset, block_size)
            pieces.append(self._piece(inode, index, start, stop))
            offset += stop - start
        return pieces

    def _piece(self, inode: Inode, index: int, start: int, stop: int) -> Buffer | FileRange:
        """The bytes from `start` to `stop` of block `index`."""
        node, length = inode.attributes.ino, inode.attributes.size
        blocks = self._lists.get(node)
        if blocks is None:
            blocks = _BlockList(inode, self._metadata, self._superblock)
            self._lists.put(node, blocks, min(blocks.count, _CHUNK) + _FILE_WEIGHT)
        if index >= blocks.count:
            return self._fragment(inode, start, stop)
        position, size = blocks.find(index)
        if not size:
            return self._zeros[start:stop]
        expected = min(self._block_size, length - index * self._block_size)
        if size & _UNCOMPRESSED:
            if size != expected | _UNCOMPRESSED:
                raise damaged(f"block {index} of inode {inode.attributes.shown_ino} has not the length that it should")
            return self._image.span(stop - start, position + start)
        content = self.blocks.get((position, size))
        if len(content) != expected:
            raise damaged(f"block {index} of inode {inode.attributes.shown_ino} has not the length that it should")
        return content if stop - start == len(content) else memoryview(content)[start:stop]

    def _fragment(self, inode: Inode, start: int, stop: int) -> Buffer | FileRange:
        if self._fragments is None:
            raise damaged("a file ends in a fragment, and there are none")
        number, content = self._last_fragment
        if number == inode.fragment:
            self.blocks.hits += 1
        else:
            position, size, _unused = self._fragments[inode.fragment]
            content = self.blocks.get((position, size))
            self._last_fragment = inode.fragment, content
        start, stop = start + inode.offset, stop + inode.offset
        if stop > len(content):
            raise damaged(f"inode {inode.attributes.shown_ino} ends behind its fragment")
        return memoryview(content)[start:stop]
