"""Inodes: from the bytes of the inode table to what stat(2) returns (Documentation/filesystems/ext4/inodes.rst).

This is the hottest parser of the reader, called for every file that is looked at: one `struct` for everything up to the
times, and no loop.
"""

from __future__ import annotations

import stat
import struct
from enum import IntFlag
from os import makedev
from typing import NamedTuple

from viewfs.modules.api import Attributes
from viewfs.modules.formats.ext.checksums import crc32c, stored
from viewfs.modules.formats.ext.features import Incompat, ReadOnlyCompat
from viewfs.modules.formats.ext.layout import Superblock
from viewfs.modules.framework.damage import damaged

__all__ = ["Inode", "InodeFlags", "InodeFormat", "inode_seed", "parse_inode"]


class InodeFlags(IntFlag):
    """i_flags, as far as they change how an inode is to be read."""

    ENCRYPT = 0x800
    INDEX = 0x1000
    HUGE_FILE = 0x40000
    EXTENTS = 0x80000
    VERITY = 0x100000
    EA_INODE = 0x200000
    INLINE_DATA = 0x10000000
    CASEFOLD = 0x40000000


_HUGE_FILE = int(InodeFlags.HUGE_FILE)
_INLINE_DATA = int(InodeFlags.INLINE_DATA)

#: The first 128 bytes, struct ext4_inode of ext2.
_SMALL = struct.Struct("<HHIiiiIHHII4x60sIII4xHHHHH2x")
#: The fields up to i_atime_extra, of inodes larger than 128 bytes.
_LARGE = struct.Struct(_SMALL.format + "HHIII")
_SMALL_SIZE = _SMALL.size
_CHECKSUM_LOW = 0x7C
_CHECKSUM_HIGH = 0x82
_FIELDS_END = 0xA0 - _SMALL_SIZE
_NO_EXTRA = (0, 0, 0, 0, 0)
_SECOND = 1_000_000_000


class InodeFormat(NamedTuple):
    """The properties of the file system that determine the layout of an inode."""

    size: int
    block_size: int
    #: i_blocks has 48 bits (huge_file).
    huge_files: bool
    #: Directories have 64-bit sizes too (large_dir).
    large_directories: bool
    #: Block numbers have 48 bits (64bit).
    wide: bool
    #: The seed of the checksums; None without metadata_csum.
    checksum_seed: int | None

    @classmethod
    def of(cls, superblock: Superblock) -> InodeFormat:
        return cls(
            size=superblock.inode_size,
            block_size=superblock.block_size,
            huge_files=ReadOnlyCompat.HUGE_FILE in superblock.ro_compat,
            large_directories=Incompat.LARGE_DIR in superblock.incompat,
            wide=Incompat.BIT64 in superblock.incompat,
            checksum_seed=superblock.checksum_seed if superblock.metadata_checksums else None,
        )


class Inode(NamedTuple):
    """struct ext4_inode as far as reading needs it."""

    attributes: Attributes
    #: `InodeFlags`, as a plain number because testing an IntFlag takes a microsecond.
    flags: int
    #: i_block: the root of the extent tree, block numbers, a short symbolic link, or content.
    block: bytes
    #: The block with extended attributes, or 0.
    xattr_block: int
    #: The bytes after the fields of the inode: extended attributes, if there is room for them.
    tail: bytes
    #: The seed of the checksums of the inode's own blocks; None without metadata_csum.
    checksum_seed: int | None
    #: i_atime as it is on disk: for the inode of an extended attribute's value, a hash of the value.
    raw_atime: int


def inode_seed(seed: int, number: int, generation: int) -> int:
    """The checksum of an inode's identity, from which those of its blocks continue (checksums.rst)."""
    return crc32c(struct.pack("<II", number, generation), seed)


#: Makes a named tuple without calling its own `__new__`.
_new = tuple.__new__


def parse_inode(number: int, data: bytes, form: InodeFormat) -> Inode:
    """`data` has s_inode_size bytes. Raises OSError(EUCLEAN) for a wrong checksum or an invalid or unused inode."""
    if form.size > _SMALL_SIZE:
        fields = _LARGE.unpack_from(data)
        extra_size, checksum_high, ctime_extra, mtime_extra, atime_extra = fields[20:]
    else:
        fields = _SMALL.unpack_from(data)
        extra_size, checksum_high, ctime_extra, mtime_extra, atime_extra = _NO_EXTRA
    mode, uid, size, atime, ctime, mtime, _dtime, gid, nlink, blocks, flags, block = fields[:12]
    generation, xattr_block, size_high, blocks_high, xattr_block_high, uid_high, gid_high, checksum = fields[12:20]

    if extra_size and (extra_size & 3 or _SMALL_SIZE + extra_size > form.size):
        raise damaged(f"inode {number} has an impossible extra size, {extra_size}")
    seed = form.checksum_seed
    if seed is not None:
        seed = inode_seed(seed, number, generation)
        if extra_size >= 4:  # There is room for i_checksum_hi.
            content = b"%b\0\0%b\0\0%b" % (data[:0x7C], data[0x7E:0x82], data[0x84:])
            good = stored(crc32c(content, seed)) == checksum | checksum_high << 16
        else:
            content = b"%b\0\0%b" % (data[:0x7C], data[0x7E:])
            good = stored(crc32c(content, seed)) & 0xFFFF == checksum
        if not good and any(data):
            raise damaged(f"the checksum of inode {number} is wrong")
    if not nlink:
        raise damaged(f"inode {number} is not in use")

    tail = b""
    if form.size > _SMALL_SIZE:
        if extra_size:
            tail = data[_SMALL_SIZE + extra_size :]
        else:
            extra_size = _FIELDS_END  # As in the kernel: the fields exist, but were never written to.
    kind = mode & 0xF000
    if kind == stat.S_IFREG or form.large_directories:
        size |= size_high << 32
        if size >> 63:
            raise damaged(f"inode {number} has an impossible size, {size}")
    rdev = 0
    if kind == stat.S_IFCHR or kind == stat.S_IFBLK:
        rdev = _device(block)
    elif not _is_kind[kind >> 12]:
        raise damaged(f"inode {number} is of an unknown type, {mode:#o}")
    if form.huge_files:
        blocks |= blocks_high << 32
        if flags & _HUGE_FILE:
            blocks *= form.block_size // 512
    if flags & _INLINE_DATA and kind == stat.S_IFREG:
        blocks += size + 511 >> 9  # As the kernel reports: tar takes a file without blocks for a single hole.
    if extra_size >= 16:
        times = _time(atime, atime_extra), _time(mtime, mtime_extra), _time(ctime, ctime_extra)
    else:
        times = (
            atime * _SECOND,
            _time(mtime, mtime_extra) if extra_size >= 12 else mtime * _SECOND,
            _time(ctime, ctime_extra) if extra_size >= 8 else ctime * _SECOND,
        )
    attributes: Attributes = _new(Attributes, (
        number, mode, size, nlink, uid | uid_high << 16, gid | gid_high << 16, rdev, *times, blocks, form.block_size, 0
    ))  # fmt: skip
    if form.wide:
        xattr_block |= xattr_block_high << 32
    return _new(Inode, (attributes, flags, block, xattr_block, tail, seed, atime & 0xFFFFFFFF))


_is_kind = [bool(kind in (0x1, 0x2, 0x4, 0x6, 0x8, 0xA, 0xC)) for kind in range(16)]


def _time(seconds: int, extra: int) -> int:
    """Nanoseconds since 1970: `extra` has two more bits of seconds below and thirty of nanoseconds above."""
    return (seconds + ((extra & 3) << 32)) * _SECOND + (extra >> 2)


def _device(block: bytes) -> int:
    """The number of a device node: in the first word with 8 bits each, else in the second with 12 and 20 bits."""
    old, new = struct.unpack_from("<II", block)
    if old:
        return makedev(old >> 8 & 0xFF, old & 0xFF)
    return makedev(new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00)
