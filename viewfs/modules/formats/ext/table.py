"""The inode table: from an inode's number to the inode, through the descriptor of its group."""

from __future__ import annotations

from collections.abc import Mapping

from viewfs.modules.formats.ext.image import Image
from viewfs.modules.formats.ext.inode import Inode, InodeFormat, parse_inode
from viewfs.modules.formats.ext.layout import GroupDescriptor, Superblock, parse_group_descriptor
from viewfs.modules.framework.cache import Cache
from viewfs.modules.framework.damage import damaged

__all__ = ["InodeTable"]

#: Inodes that are used together are near each other, so the table is read in pieces of this many bytes.
_PIECE = 16384
#: 16 MiB: directories list inodes in the order of hashes, all over the table.
_PIECES_CACHED = 1024
_INODES_CACHED = 8192
_GROUPS_CACHED = 65536
_GROUPS_COUNTED = 16384
#: How many inodes are checked to tell whether a block is the beginning of an inode table.
_INODES_TRIED = 16
#: i_links_count of an inode.
_LINKS = 0x1A


class InodeTable:
    """Finds, checks and keeps inodes."""

    def __init__(self, image: Image, superblock: Superblock, changes: Mapping[int, Inode | None] | None = None) -> None:
        """`changes` are the inodes that differ from the image; None for one that is not in use."""
        self._image = image
        self._superblock = superblock
        self._changes = changes or {}
        self.format = InodeFormat.of(superblock)
        self._copies = (0, *_first_backup(superblock))
        self._groups: Cache[int, GroupDescriptor] = Cache(_GROUPS_CACHED)
        self._pieces: Cache[int, bytes] = Cache(_PIECES_CACHED)
        self._inodes: Cache[int, Inode] = Cache(_INODES_CACHED)

    def inode(self, number: int) -> Inode:
        """Raises OSError(EUCLEAN) if there is no valid inode of that number in use, EIO if the image ends before it."""
        found = self._inodes.get(number)
        if found is not None:
            return found
        if number in self._changes:
            changed = self._changes[number]
            if changed is None:
                raise damaged(f"inode {number} is not in use")
            return self._inodes.put(number, changed)
        return self._inodes.put(number, parse_inode(number, self.raw(number), self.format))

    def raw(self, number: int) -> bytes:
        """The inode's bytes in the image, s_inode_size of them. Raises OSError."""
        superblock = self._superblock
        if not 0 < number <= superblock.inodes_count:
            raise damaged(f"inode {number} can't be: there are {superblock.inodes_count}")
        group, index = divmod(number - 1, superblock.inodes_per_group)
        size = superblock.inode_size
        position = self.group(group).inode_table * superblock.block_size + index * size
        # Tables begin at a block boundary and sizes are powers of two, so no inode lies in two pieces.
        piece_size = max(_PIECE, size)
        piece, start = divmod(position, piece_size)
        data = self._pieces.get(piece)
        if data is None:
            if self._image.available(piece_size, piece * piece_size) < piece_size:
                return self._image.pread(size, position)
            data = self._pieces.put(piece, self._image.pread(piece_size, piece * piece_size))
        return data[start : start + size]

    def free(self) -> tuple[int, int] | None:
        """Free blocks and inodes, summed over all groups; None if there are too many groups, or one can't be read."""
        blocks = inodes = 0
        if self._superblock.groups > _GROUPS_COUNTED:
            return None
        try:
            for number in range(self._superblock.groups):
                group = self.group(number)
                blocks, inodes = blocks + group.free_blocks, inodes + group.free_inodes
        except OSError:
            return None
        return blocks, inodes

    def group(self, group: int) -> GroupDescriptor:
        """The descriptor of a group, or the first valid copy of it. Raises OSError(EUCLEAN) or EIO.

        If none is valid, it is the first whose inode table is at a possible place and has inodes there. Only this field
        of a descriptor is needed, so a wrong byte elsewhere in it need not hide the group's files.
        """
        found = self._groups.get(group)
        if found is not None:
            return found
        superblock = self._superblock
        index, slot = divmod(group, superblock.descriptors_per_block)
        size = superblock.descriptor_size
        error: OSError | None = None
        for checked in (True, False):
            for copy in self._copies:
                position = superblock.descriptor_block(index, copy) * superblock.block_size + slot * size
                try:
                    data = self._image.pread(size, position)
                    descriptor = parse_group_descriptor(superblock, group, data, checked=checked)
                    if not checked and not self._has_inodes(group, descriptor):
                        continue
                except OSError as reason:
                    error = error or reason
                    continue
                if not checked:
                    self._image.warn(f"the checksum of group descriptor {group} is wrong; it is used all the same")
                return self._groups.put(group, descriptor)
        raise error or damaged(f"group {group} has no descriptor")

    def _has_inodes(self, group: int, descriptor: GroupDescriptor) -> bool:
        """Does the group's inode table begin where its descriptor says?

        It does if, of the first inodes there, all that are in use are valid, and at least one is valid.
        """
        superblock, size = self._superblock, self._superblock.inode_size
        first = group * superblock.inodes_per_group + 1
        count = min(_INODES_TRIED, superblock.inodes_per_group)
        data = self._image.pread(count * size, descriptor.inode_table * superblock.block_size)
        found = 0
        for index in range(count):
            raw = data[index * size : (index + 1) * size]
            if not any(raw):
                continue
            try:
                parse_inode(first + index, raw, self.format)
                found += 1
            except OSError:
                # Reserved and deleted inodes are not in use.
                if int.from_bytes(raw[_LINKS : _LINKS + 2], "little"):
                    return False
        return found > 0


def _first_backup(superblock: Superblock) -> tuple[int, ...]:
    """The first group after 0 with a copy of the descriptors, if there is one."""
    candidates = (superblock.group, 1, *superblock.backup_groups)
    return tuple(group for group in candidates if 0 < group < superblock.groups and superblock.has_superblock(group))[
        :1
    ]
