"""The superblock and the group descriptors (Documentation/filesystems/ext4/super.rst, group_descr.rst).

Everything is little-endian. A superblock that `parse_superblock` returns is consistent in itself: sizes are powers of
two within the format's limits, and no divisor is zero. Whether the image is long enough for it is not checked here.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from viewfs.modules.formats.ext.checksums import crc16, crc32c, seed_from_disk, stored
from viewfs.modules.formats.ext.features import Compat, Incompat, ReadOnlyCompat
from viewfs.modules.framework.damage import damaged

__all__ = [
    "MAGIC",
    "SUPERBLOCK_OFFSET",
    "SUPERBLOCK_SIZE",
    "ExternalJournalError",
    "GroupDescriptor",
    "Superblock",
    "parse_group_descriptor",
    "parse_superblock",
    "uuid_text",
]

MAGIC = 0xEF53
#: Bytes from the beginning of the file system to its primary superblock.
SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 1024

_CHECKSUM_OFFSET = 0x3FC
_CRC32C_CHUNK = 1
_FLAG_SIGNED_HASH = 0x1
_FLAG_UNSIGNED_HASH = 0x2
_MAX_LOG_BLOCK_SIZE = 6
_JOURNAL_BACKUP_BLOCKS = 1


class ExternalJournalError(OSError):
    """The superblock belongs to an external journal, which has neither groups nor inodes."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """struct ext4_super_block, as far as reading needs it. Sizes in bytes, block counts in blocks."""

    inodes_count: int
    blocks_count: int
    reserved_blocks: int
    free_blocks: int
    free_inodes: int
    first_data_block: int
    block_size: int
    cluster_size: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    #: Which group this copy of the superblock is in.
    group: int
    #: Revision 1 or later, which has features, and records in each copy the group that it is in.
    is_dynamic: bool
    compat: Compat
    incompat: Incompat
    ro_compat: ReadOnlyCompat
    #: 16 bytes; `uuid_text` shows them.
    uuid: bytes
    label: str
    journal_inode: int
    journal_uuid: bytes
    #: i_block and i_size of the journal inode, from their copy in the superblock (s_jnl_blocks); None without a copy.
    journal_backup: tuple[bytes, int] | None
    hash_seed: tuple[int, int, int, int]
    #: Whether names were hashed as signed characters; None if the superblock doesn't tell.
    signed_hash: bool | None
    first_meta_bg: int
    backup_groups: tuple[int, int]
    #: Blocks used for metadata; 0 if the superblock doesn't tell.
    overhead: int
    #: In the form of `checksums`; also used without metadata_csum, for the values of ea_inode.
    checksum_seed: int

    @property
    def groups(self) -> int:
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @property
    def descriptors_per_block(self) -> int:
        return self.block_size // self.descriptor_size

    @property
    def metadata_checksums(self) -> bool:
        return ReadOnlyCompat.METADATA_CSUM in self.ro_compat

    def group_first_block(self, group: int) -> int:
        return self.first_data_block + group * self.blocks_per_group

    def has_superblock(self, group: int) -> bool:
        """Whether `group` begins with a copy of the superblock (blockgroup.rst, super.rst: sparse_super)."""
        if group == 0:
            return True
        if Compat.SPARSE_SUPER2 in self.compat:
            return group in self.backup_groups
        if group == 1 or ReadOnlyCompat.SPARSE_SUPER not in self.ro_compat:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def descriptor_block(self, index: int, copy: int = 0) -> int:
        """The block that holds block number `index` of the group descriptors.

        `copy` 0 is the primary one; another number means the backup copy in that group, which has a superblock. Under
        meta_bg the copies are in the second and the last group of the meta group instead (blockgroup.rst).
        """
        if Incompat.META_BG not in self.incompat or index < self.first_meta_bg:
            # The superblock of group 0 is in block 1 if blocks are 1 KiB (even under bigalloc, where group 0 begins
            # with block 0), and in block 0 otherwise.
            superblock = (self.block_size == 1024) if copy == 0 else self.group_first_block(copy)
            return superblock + 1 + index
        group = index * self.descriptors_per_block + (1 if copy else 0)
        block = self.group_first_block(group) + self.has_superblock(group)
        return block + (group == 0 and self.block_size == 1024 and self.first_data_block == 0)


def _is_power(number: int, base: int) -> bool:
    power = base
    while power < number:
        power *= base
    return power == number


def parse_superblock(data: bytes) -> Superblock:
    """Raises OSError(EUCLEAN) if these 1024 bytes are no superblock, or an inconsistent one."""
    if len(data) < SUPERBLOCK_SIZE:
        raise damaged("the superblock is cut off")

    def u8(offset: int) -> int:
        return data[offset]

    def u16(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 2], "little")

    def u32(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 4], "little")

    if u16(0x38) != MAGIC:
        raise damaged("no superblock: the magic number 0xEF53 is missing")
    dynamic = u32(0x4C) >= 1  # Revision 0 has neither features nor other inode sizes.
    compat = Compat(u32(0x5C) if dynamic else 0)
    incompat = Incompat(u32(0x60) if dynamic else 0)
    ro_compat = ReadOnlyCompat(u32(0x64) if dynamic else 0)
    _check_checksum(data, ro_compat, u8(0x175))
    if Incompat.JOURNAL_DEV in incompat:
        raise ExternalJournalError(errno.EUCLEAN, "this is the external journal of a file system")
    wide = Incompat.BIT64 in incompat

    def count(low: int, high: int) -> int:
        return u32(low) | (u32(high) << 32 if wide else 0)

    block_size, cluster_size = _block_sizes(u32(0x18), u32(0x1C), ReadOnlyCompat.BIGALLOC in ro_compat)
    volume_uuid = data[0x68:0x78]
    seed = seed_from_disk(u32(0x270)) if Incompat.METADATA_CSUM_SEED in incompat else crc32c(volume_uuid)
    flags = u32(0x160)
    backup = None
    if u8(0xFD) == _JOURNAL_BACKUP_BLOCKS:
        backup = (data[0x10C : 0x10C + 60], u32(0x10C + 64) | u32(0x10C + 60) << 32)
    superblock = Superblock(
        inodes_count=u32(0x0),
        blocks_count=count(0x4, 0x150),
        reserved_blocks=count(0x8, 0x154),
        free_blocks=count(0xC, 0x158),
        free_inodes=u32(0x10),
        first_data_block=u32(0x14),
        block_size=block_size,
        cluster_size=cluster_size,
        blocks_per_group=u32(0x20),
        inodes_per_group=u32(0x28),
        inode_size=u16(0x58) if dynamic else 128,
        descriptor_size=u16(0xFE) if wide else 32,
        group=u16(0x5A) if dynamic else 0,
        is_dynamic=dynamic,
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        uuid=volume_uuid,
        label=data[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
        journal_inode=u32(0xE0),
        journal_uuid=data[0xD0:0xE0],
        journal_backup=backup,
        hash_seed=struct.unpack_from("<4I", data, 0xEC),
        signed_hash=True if flags & _FLAG_SIGNED_HASH else False if flags & _FLAG_UNSIGNED_HASH else None,
        first_meta_bg=u32(0x104),
        backup_groups=(u32(0x24C), u32(0x250)),
        overhead=u32(0x248) * (cluster_size // block_size),
        checksum_seed=seed,
    )
    _check_geometry(superblock)
    return superblock


def _check_checksum(data: bytes, ro_compat: ReadOnlyCompat, kind: int) -> None:
    if ReadOnlyCompat.METADATA_CSUM not in ro_compat:
        return
    if kind != _CRC32C_CHUNK:
        raise damaged(f"the superblock names an unknown kind of checksum, {kind}")
    if stored(crc32c(data[:_CHECKSUM_OFFSET])) != int.from_bytes(data[_CHECKSUM_OFFSET:SUPERBLOCK_SIZE], "little"):
        raise damaged("the checksum of the superblock is wrong")


def _block_sizes(log_block_size: int, log_cluster_size: int, bigalloc: bool) -> tuple[int, int]:
    if log_block_size > _MAX_LOG_BLOCK_SIZE:
        raise damaged(f"the superblock gives an impossible block size, 2^{10 + log_block_size}")
    block_size = 1024 << log_block_size
    if not bigalloc:
        return block_size, block_size
    if not log_block_size <= log_cluster_size <= 20:
        raise damaged(f"the superblock gives an impossible cluster size, 2^{10 + log_cluster_size}")
    return block_size, 1024 << log_cluster_size


def _check_geometry(superblock: Superblock) -> None:
    block_size, inode_size = superblock.block_size, superblock.inode_size
    bits = block_size * 8
    if not 128 <= inode_size <= block_size or inode_size & (inode_size - 1):
        raise damaged(f"the superblock gives an impossible inode size, {inode_size}")
    size = superblock.descriptor_size
    least = 64 if Incompat.BIT64 in superblock.incompat else 32
    if not least <= size <= 1024 or size & (size - 1):
        raise damaged(f"the superblock gives an impossible size of group descriptors, {size}")
    if not 0 < superblock.inodes_per_group <= bits:
        raise damaged(f"the superblock gives an impossible number of inodes per group, {superblock.inodes_per_group}")
    if not 0 < superblock.blocks_per_group <= bits * (superblock.cluster_size // block_size):
        raise damaged(f"the superblock gives an impossible number of blocks per group, {superblock.blocks_per_group}")
    if superblock.first_data_block > (block_size == 1024) or superblock.first_data_block >= superblock.blocks_count:
        raise damaged(f"the superblock gives an impossible first data block, {superblock.first_data_block}")
    if superblock.blocks_count > 1 << 48:
        raise damaged(f"the superblock gives an impossible number of blocks, {superblock.blocks_count}")
    if not 0 < superblock.inodes_count <= superblock.groups * superblock.inodes_per_group:
        raise damaged(f"the superblock gives an impossible number of inodes, {superblock.inodes_count}")


@dataclass(frozen=True, slots=True)
class GroupDescriptor:
    """struct ext4_group_desc, as far as reading needs it."""

    #: First block of the group's part of the inode table.
    inode_table: int
    free_blocks: int
    free_inodes: int


_DESCRIPTOR = struct.Struct("<8xIHH14x")
_DESCRIPTOR_HIGH = struct.Struct("<8xIHH")
_DESCRIPTOR_CHECKSUM = 0x1E


def parse_group_descriptor(superblock: Superblock, group: int, data: bytes, *, checked: bool = True) -> GroupDescriptor:
    """`data` has s_desc_size bytes. Raises OSError(EUCLEAN) for a wrong checksum or an impossible inode table.

    Without `checked`, the checksum may be wrong.
    """
    expected = _descriptor_checksum(superblock, group, data)
    found = int.from_bytes(data[_DESCRIPTOR_CHECKSUM : _DESCRIPTOR_CHECKSUM + 2], "little")
    if checked and expected not in (None, found):
        raise damaged(f"the checksum of group descriptor {group} is wrong")
    table, free_blocks, free_inodes = _DESCRIPTOR.unpack_from(data)
    if len(data) >= 64:
        table_high, free_blocks_high, free_inodes_high = _DESCRIPTOR_HIGH.unpack_from(data, 32)
        table |= table_high << 32
        free_blocks |= free_blocks_high << 16
        free_inodes |= free_inodes_high << 16
    blocks = -(-superblock.inodes_per_group * superblock.inode_size // superblock.block_size)
    if not superblock.first_data_block < table <= superblock.blocks_count - blocks:
        raise damaged(f"group descriptor {group} has its inode table at an impossible block, {table}")
    cluster = superblock.cluster_size // superblock.block_size
    return GroupDescriptor(table, free_blocks * cluster, free_inodes)


def uuid_text(raw: bytes) -> str:
    """The 16 bytes of a UUID as people know them (RFC 9562, section 4)."""
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _descriptor_checksum(superblock: Superblock, group: int, data: bytes) -> int | None:
    """What bg_checksum should be (group_descr.rst); None if descriptors have none."""
    number = group.to_bytes(4, "little")
    before, after = data[:_DESCRIPTOR_CHECKSUM], data[_DESCRIPTOR_CHECKSUM + 2 :]
    if superblock.metadata_checksums:
        return stored(crc32c(number + before + b"\0\0" + after, superblock.checksum_seed)) & 0xFFFF
    if ReadOnlyCompat.UNINIT_BG in superblock.ro_compat:
        return crc16(superblock.uuid + number + before + after)
    return None
