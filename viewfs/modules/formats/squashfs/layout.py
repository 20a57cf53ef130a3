"""The superblock, and constants that the rest of the format shares.

Structures are those of the kernel's fs/squashfs/squashfs_fs.h (version 4.0); all of them are little-endian and packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct

from viewfs.errors import DamagedSourceError

__all__ = [
    "MAGIC",
    "METADATA_SIZE",
    "NONE_32",
    "SUPERBLOCK_SIZE",
    "Compression",
    "Flags",
    "Superblock",
    "parse_superblock",
]

MAGIC = b"hsqs"
SUPERBLOCK_SIZE = 96
#: Bytes of a metadata block once it is decompressed; only the last of a table has fewer.
METADATA_SIZE = 8192
#: Means "none", for fragments and extended attributes.
NONE_32 = 0xFFFFFFFF
_NONE_64 = 0xFFFFFFFFFFFFFFFF
_MIN_BLOCK_LOG, _MAX_BLOCK_LOG = 12, 20

_SUPERBLOCK = Struct("<4s4I6H8Q")


class Compression(IntEnum):
    """ZLIB_COMPRESSION and so on, by their names in mksquashfs."""

    GZIP = 1
    LZMA = 2
    LZO = 3
    XZ = 4
    LZ4 = 5
    ZSTD = 6


class Flags(IntFlag):
    """SQUASHFS_NOI and so on: how the image was made."""

    UNCOMPRESSED_INODES = 1 << 0
    UNCOMPRESSED_DATA = 1 << 1
    UNCOMPRESSED_FRAGMENTS = 1 << 3
    NO_FRAGMENTS = 1 << 4
    ALWAYS_FRAGMENTS = 1 << 5
    DUPLICATES_REMOVED = 1 << 6
    EXPORTABLE = 1 << 7
    UNCOMPRESSED_XATTRS = 1 << 8
    NO_XATTRS = 1 << 9
    COMPRESSOR_OPTIONS = 1 << 10
    UNCOMPRESSED_IDS = 1 << 11


@dataclass(frozen=True)
class Superblock:
    """squashfs_super_block. Positions are bytes from the beginning of the file system; None: there is no such table."""

    inode_count: int
    #: Seconds since 1970.
    made_at: int
    #: Bytes of a data block, from 4 KiB to 1 MiB.
    block_size: int
    fragment_count: int
    compression: Compression
    flags: Flags
    id_count: int
    #: The reference of the root's inode (see `metadata`).
    root_reference: int
    bytes_used: int
    id_table: int
    xattr_table: int | None
    inode_table: int
    directory_table: int
    fragment_table: int | None
    export_table: int | None


def parse_superblock(data: bytes, name: str) -> Superblock:
    """The superblock in the first `SUPERBLOCK_SIZE` bytes of a file system; `name` is for messages.

    Raises `DamagedSourceError`, which says what is wrong with it.
    """
    if len(data) < SUPERBLOCK_SIZE:
        raise DamagedSourceError(f"{name} is too short for a squashfs file system")
    (
        magic, inode_count, made_at, block_size, fragment_count, compression, block_log, flags, id_count,
        major, minor, root, bytes_used, ids, xattrs, inodes, directories, fragments, exports,
    ) = _SUPERBLOCK.unpack_from(data)  # fmt: skip
    if magic != MAGIC:
        raise DamagedSourceError(f"{name} is not a squashfs file system", remedy="is there an offset to be given?")
    if (major, minor) != (4, 0):
        raise DamagedSourceError(f"{name} is squashfs {major}.{minor}, and only 4.0 can be read")
    if not _MIN_BLOCK_LOG <= block_log <= _MAX_BLOCK_LOG or block_size != 1 << block_log:
        raise DamagedSourceError(f"the superblock of {name} has an impossible block size, {block_size} ({block_log})")
    if compression not in Compression._value2member_map_:
        raise DamagedSourceError(f"{name} is compressed in a way that is not known, number {compression}")
    if not id_count or not inode_count:
        raise DamagedSourceError(f"the superblock of {name} says that there are no inodes or no owners")
    # The kernel requires the tables in this order (squashfs_fill_super).
    optional = [table for table in (fragments, exports) if table != _NONE_64]
    order = [SUPERBLOCK_SIZE, inodes, directories, *optional, ids, *([xattrs] if xattrs != _NONE_64 else [])]
    if order != sorted(order) or order[-1] > bytes_used:
        raise DamagedSourceError(f"the tables of {name} lie where they can't be")
    if fragment_count and fragments == _NONE_64:
        raise DamagedSourceError(f"{name} has fragments but no table of them")
    return Superblock(
        inode_count=inode_count,
        made_at=made_at,
        block_size=block_size,
        fragment_count=fragment_count,
        compression=Compression(compression),
        flags=Flags(flags & 0xFFF),
        id_count=id_count,
        root_reference=root,
        bytes_used=bytes_used,
        id_table=ids,
        xattr_table=None if xattrs == _NONE_64 else xattrs,
        inode_table=inodes,
        directory_table=directories,
        fragment_table=None if fragments == _NONE_64 else fragments,
        export_table=None if exports == _NONE_64 else exports,
    )
