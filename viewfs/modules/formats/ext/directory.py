"""Directory blocks: names and inode numbers (Documentation/filesystems/ext4/directory.rst).

A directory is a file of entries that fill each block exactly. Blocks of a hashed directory's index look like blocks
without names to a reader that does not know of them. So reading the blocks in order finds every name once, whether the
directory is hashed or not.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from viewfs.modules.formats.ext.checksums import crc32c, stored
from viewfs.modules.framework.damage import damaged

__all__ = ["Entry", "parse_entries", "parse_inline_entries", "verify_block"]

_ENTRY = struct.Struct("<IHBB")
_LEAST_RECORD = 12
_TAIL_SIZE = 12
#: The checksum of a directory block has the form of an entry: inode 0, 12 bytes, no name, type 0xDE.
_TAIL = struct.pack("<IHBB", 0, _TAIL_SIZE, 0, 0xDE)
#: i_block holds the parent's inode number and then entries (inlinedata.rst).
_INLINE_PARENT = 4
_DOT, _DOTDOT = 12, 24
_DIRECTORY = 2


#: One name: the name, its cookie, its inode, and EXT4_FT_* (0 unknown, 1 regular file, 2 directory, 3 character and
#: 4 block device, 5 FIFO, 6 socket, 7 symbolic link). The cookie is the position after it in the directory, in bytes.
#: A plain tuple, because there are so many of them.
Entry: TypeAlias = tuple[bytes, int, int, int]


def parse_entries(
    data: bytes,
    start: int,
    end: int,
    position: int,
    entries: list[Entry],
    *,
    inodes: int,
    file_types: bool,
    block_size: int,
) -> None:
    """Add to `entries` the names in `data[start:end]`, one block, which begins at byte `position` of the directory.

    `inodes` is the highest inode number there is; without `file_types` (feature filetype) the byte for the type is
    the high half of the length. Raises OSError(EUCLEAN) for invalid entries; those before them have been added to
    `entries` then.
    """
    unpack = _ENTRY.unpack_from
    slashes = b"/" in data
    shift = position - start
    large = block_size >= 65536
    while start < end:
        if end - start < _LEAST_RECORD:
            raise damaged("a directory has an entry that does not fit into its block")
        inode, record, length, kind = unpack(data, start)
        if large:  # 65536 does not fit into 16 bits; the two lowest bits, otherwise zero, are used as bits 16 and 17.
            record = 65536 if record in (0, 65535) else record & 0xFFFC | (record & 3) << 16
        after = start + record
        if record < _LEAST_RECORD or record & 3 or after > end or length + 8 > record:
            raise damaged("a directory has an entry of an impossible length")
        if inode:
            if inode > inodes:
                raise damaged(f"a directory has an entry for inode {inode}, which can't be")
            name = data[start + 8 : start + 8 + length]
            if not name or 0 in name or (slashes and b"/" in name):
                raise damaged("a directory has an entry with an impossible name")
            if not file_types:
                if kind:
                    raise damaged("a directory has an entry of an impossible length")
            elif kind > 7:
                kind = 0
            entries.append((name, after + shift, inode, kind))
        start = after


def parse_inline_entries(data: bytes, number: int, *, inodes: int, file_types: bool, block_size: int) -> list[Entry]:
    """The names of directory `number`, whose content is in its inode (inlinedata.rst).

    `.` and `..` are not stored. All names get the cookies that they would have in a block.
    """
    parent = int.from_bytes(data[:_INLINE_PARENT], "little")
    if not 0 < parent <= inodes:
        raise damaged(f"directory {number} has an impossible parent, inode {parent}")
    kind = _DIRECTORY if file_types else 0
    entries = [(b".", _DOT, number, kind), (b"..", _DOTDOT, parent, kind)]
    parse_entries(
        data, _INLINE_PARENT, len(data), _DOTDOT, entries, inodes=inodes, file_types=file_types, block_size=block_size
    )
    return entries


def verify_block(data: bytes, start: int, end: int, seed: int, *, first: bool, indexed: bool) -> int:
    """Check the checksum of the directory block `data[start:end]`; returns where its entries end.

    `first`: it is block 0 of the directory. Raises OSError(EUCLEAN).
    """
    tail = end - _TAIL_SIZE
    if indexed and (first or _is_index_node(data, start, end)):
        _verify_index(data, start, end, seed)
        return end
    if data[tail : tail + 8] != _TAIL:
        raise damaged("a directory block has no checksum")
    if stored(crc32c(memoryview(data)[start:tail], seed)) != int.from_bytes(data[tail + 8 : end], "little"):
        raise damaged("the checksum of a directory block is wrong")
    return tail


def _is_index_node(data: bytes, start: int, end: int) -> bool:
    """Inner nodes of the index begin with an entry without an inode that takes up the whole block."""
    record = int.from_bytes(data[start + 4 : start + 6], "little")
    size = end - start
    return record == size or (size == 65536 and record in (0, 65535))


def _verify_index(data: bytes, start: int, end: int, seed: int) -> None:
    """Check struct dx_tail, which follows the space for index entries."""
    counts = start + (8 if _is_index_node(data, start, end) else 32)
    limit, count = struct.unpack_from("<HH", data, counts)
    tail = counts + limit * 8
    if tail + 8 > end or count > limit:
        raise damaged("the index of a directory has an impossible number of entries")
    value = crc32c(memoryview(data)[start : counts + count * 8], seed)
    value = crc32c(data[tail : tail + 4] + b"\0\0\0\0", value)
    if stored(value) != int.from_bytes(data[tail + 4 : tail + 8], "little"):
        raise damaged("the checksum of a directory's index is wrong")
