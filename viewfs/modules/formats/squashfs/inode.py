"""Inodes: seven kinds, each with a basic and an extended form (squashfs_*_inode of squashfs_fs.h). Pure.

The part of an inode that has no fixed length (the sizes of a file's blocks, the index of a directory, the target of a
link) is read when it is needed; `Inode.tail` tells where it begins.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from struct import Struct, error
from typing import NamedTuple, TypeAlias

from viewfs.modules.api import Attributes, InodeNumber
from viewfs.modules.formats.squashfs.layout import NONE_32
from viewfs.modules.framework.damage import damaged

__all__ = ["BEHIND_TARGET", "INODE_SIZE", "NODE_OF_REFERENCE", "Inode", "parse_inode", "place_of"]

Buffer: TypeAlias = bytes | bytearray

#: No inode is longer than this, without its tail.
INODE_SIZE = 64
#: The nodes that the kernel is given are references with this added: 0 is no node, and 1 is always the root.
NODE_OF_REFERENCE = 2

#: Each inode begins with: type, mode, index of the owner, of the group, modification time, inode number.
_BASE = "<HHHHII"
_FILE = Struct(_BASE + "IIII")  # start, fragment, offset in it, size
_LONG_FILE = Struct(_BASE + "QQQIIII")  # start, size, sparse, links, fragment, offset in it, xattrs
_DIRECTORY = Struct(_BASE + "IIHHI")  # block, links, size, offset, parent
_LONG_DIRECTORY = Struct(_BASE + "IIIIHHI")  # links, size, block, parent, entries of the index, offset, xattrs
_LINK = Struct(_BASE + "II")  # links, size
_DEVICE = Struct(_BASE + "II")  # links, device
_LONG_DEVICE = Struct(_BASE + "III")  # links, device, xattrs
_OTHER = Struct(_BASE + "I")  # links
_LONG_OTHER = Struct(_BASE + "II")  # links, xattrs

#: `Inode.xattrs` of an extended link: the index is in the 32 bits after the target.
BEHIND_TARGET = -1
_MODE = 0o7777
#: Makes a named tuple without calling its own `__new__`, which would take longer than everything else.
_new = tuple.__new__


class Inode(NamedTuple):
    """An inode. `tail` counts from where the inode begins."""

    attributes: Attributes
    #: Of a file, where its blocks begin in the image; of a directory, the metadata block in which its listing begins.
    start: int = 0
    #: Of a file, where its end begins in a fragment; of a directory, where its listing begins in the block.
    offset: int = 0
    #: Of a file, the fragment that has its end, or `NONE_32`.
    fragment: int = NONE_32
    #: Of a directory, the number of entries of its index, and the inode number of its parent.
    index_entries: int = 0
    parent: int = 0
    #: Index of its extended attributes, `NONE_32`, or `BEHIND_TARGET`.
    xattrs: int = NONE_32
    tail: int = 0


_Fields: TypeAlias = tuple[int, ...]
_Parser: TypeAlias = Callable[[Buffer, int, int, Sequence[int], Sequence[int]], Inode]


def _attributes(
    node: int, kind: int, fields: _Fields, owners: Sequence[int], groups: Sequence[int], nlink: int, size: int,
    rdev: int = 0, blocks: int = 0,
) -> Attributes:  # fmt: skip
    mtime = fields[4] * 1_000_000_000
    return Attributes(
        InodeNumber(node), kind | fields[1] & _MODE, size, nlink, owners[fields[2]], groups[fields[3]], rdev,
        mtime, mtime, mtime, blocks, 4096, fields[5],
    )  # fmt: skip


def _file(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
    fields = _FILE.unpack_from(data, at)
    _type, mode, owner, group, mtime, number, start, fragment, offset, size = fields
    mtime *= 1_000_000_000
    # Written out, because most inodes of a file system are of this kind.
    attributes = _new(Attributes, (
        node, 0o100000 | mode & _MODE, size, 1, owners[owner], groups[group], 0,
        mtime, mtime, mtime, (size + 511) >> 9, 4096, number,
    ))  # fmt: skip
    return _new(Inode, (attributes, start, offset, fragment, 0, 0, NONE_32, 32))


def _long_file(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
    fields = _LONG_FILE.unpack_from(data, at)
    start, size, sparse, nlink, fragment, offset, xattrs = fields[6:]
    blocks = (max(size - sparse, 0) + 511) >> 9
    attributes = _attributes(node, stat.S_IFREG, fields, owners, groups, nlink, size, blocks=blocks)
    return Inode(attributes, start, offset, fragment, xattrs=xattrs, tail=_LONG_FILE.size)


def _directory(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
    fields = _DIRECTORY.unpack_from(data, at)
    start, nlink, size, offset, parent = fields[6:]
    attributes = _attributes(node, stat.S_IFDIR, fields, owners, groups, nlink, size)
    return Inode(attributes, start, offset, parent=parent, tail=_DIRECTORY.size)


def _long_directory(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
    fields = _LONG_DIRECTORY.unpack_from(data, at)
    nlink, size, start, parent, index_entries, offset, xattrs = fields[6:]
    attributes = _attributes(node, stat.S_IFDIR, fields, owners, groups, nlink, size)
    return Inode(
        attributes,
        start,
        offset,
        index_entries=index_entries,
        parent=parent,
        xattrs=xattrs,
        tail=_LONG_DIRECTORY.size,
    )


def _link(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
    fields = _LINK.unpack_from(data, at)
    nlink, size = fields[6:]
    return Inode(_attributes(node, stat.S_IFLNK, fields, owners, groups, nlink, size), tail=_LINK.size)


def _long_link(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
    return _link(data, at, node, owners, groups)._replace(xattrs=BEHIND_TARGET)


def _number(encoded: int) -> int:
    """A device number encoded by new_encode_dev of linux/kdev_t.h, as `os.makedev` makes it."""
    return os.makedev((encoded & 0xFFF00) >> 8, (encoded & 0xFF) | (encoded >> 12 & 0xFFF00))


def _device(kind: int) -> _Parser:
    def parse(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
        fields = _DEVICE.unpack_from(data, at)
        nlink, rdev = fields[6:]
        return Inode(_attributes(node, kind, fields, owners, groups, nlink, 0, _number(rdev)))

    return parse


def _long_device(kind: int) -> _Parser:
    def parse(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
        fields = _LONG_DEVICE.unpack_from(data, at)
        nlink, rdev, xattrs = fields[6:]
        return Inode(_attributes(node, kind, fields, owners, groups, nlink, 0, _number(rdev)), xattrs=xattrs)

    return parse


def _other(kind: int) -> _Parser:
    def parse(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
        fields = _OTHER.unpack_from(data, at)
        return Inode(_attributes(node, kind, fields, owners, groups, fields[6], 0))

    return parse


def _long_other(kind: int) -> _Parser:
    def parse(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
        fields = _LONG_OTHER.unpack_from(data, at)
        return Inode(_attributes(node, kind, fields, owners, groups, fields[6], 0), xattrs=fields[7])

    return parse


#: SQUASHFS_DIR_TYPE and so on, from 1.
_PARSERS: tuple[_Parser, ...] = (
    _directory, _file, _link, _device(stat.S_IFBLK), _device(stat.S_IFCHR), _other(stat.S_IFIFO), _other(stat.S_IFSOCK),
    _long_directory, _long_file, _long_link, _long_device(stat.S_IFBLK), _long_device(stat.S_IFCHR),
    _long_other(stat.S_IFIFO), _long_other(stat.S_IFSOCK),
)  # fmt: skip


def parse_inode(data: Buffer, at: int, node: int, owners: Sequence[int], groups: Sequence[int]) -> Inode:
    """The inode that begins at index `at` in `data`; `node` is its node number, `owners` and `groups` are the table of
    ids.

    Raises OSError(EUCLEAN).
    """
    try:
        kind = data[at] | data[at + 1] << 8
        if not 0 < kind <= len(_PARSERS):
            raise damaged(f"inode {node - NODE_OF_REFERENCE:#x} is of no known type, {kind}")
        return _PARSERS[kind - 1](data, at, node, owners, groups)
    except error:
        raise damaged(f"inode {node - NODE_OF_REFERENCE:#x} is cut short") from None
    except IndexError:
        raise damaged(f"inode {node - NODE_OF_REFERENCE:#x} is cut short, or its owner is not in the table") from None


def place_of(inode: Inode, table: int) -> tuple[int, int]:
    """The position of the metadata block in which an inode begins, and the offset in it; `table` is the position of the
    inode table."""
    reference = inode.attributes.ino - NODE_OF_REFERENCE
    return table + (reference >> 16), reference & 0xFFFF
