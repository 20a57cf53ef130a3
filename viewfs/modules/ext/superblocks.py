"""Which superblock to believe: the primary one, or where that is damaged one of its copies (super.rst)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from viewfs.errors import DamagedSourceError
from viewfs.modules.ext.damage import damaged
from viewfs.modules.ext.features import READABLE, Incompat, feature_names
from viewfs.modules.ext.image import Image
from viewfs.modules.ext.layout import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock, parse_superblock

__all__ = ["Found", "find_superblock"]

#: The first groups that have a copy under sparse_super; sparse_super2 too has one in group 1.
_BACKUP_GROUPS = (1, 3, 5, 7, 9)
_BLOCK_SIZES = tuple(1024 << shift for shift in range(7))
#: Groups are larger by this under bigalloc; 16 is what mke2fs takes if it isn't told.
_CLUSTER_RATIOS = (1, 16)


class Found(NamedTuple):
    """A superblock, and what is wrong with the primary one if this is a copy."""

    superblock: Superblock
    primary_error: str | None


def find_superblock(image: Image, name: str) -> Found:
    """Raises DamagedSourceError if there is none, or one with a feature that can't be read."""
    error: str | None = None
    superblock: Superblock | None
    try:
        superblock = _read(image, SUPERBLOCK_OFFSET)
    except OSError as reason:
        error = str(reason.strerror)
        superblock = next(_backups(image), None)
    if superblock is None:
        raise DamagedSourceError(f"{name} is not a readable ext2, ext3 or ext4 file system: {error}")
    if Incompat.JOURNAL_DEV in superblock.incompat:
        raise DamagedSourceError(f"{name} is the external journal of a file system, not a file system")
    unreadable = superblock.incompat & ~READABLE
    if unreadable:
        names = ", ".join(feature_names(unreadable))
        raise DamagedSourceError(f"{name} uses what can't be read: feature {names}")
    return Found(superblock, error)


def _read(image: Image, position: int) -> Superblock:
    return parse_superblock(image.pread(SUPERBLOCK_SIZE, position))


def _backups(image: Image) -> Iterator[Superblock]:
    """Valid copies where mke2fs puts them; each must say itself that it belongs there."""
    for position in sorted(set(_backup_positions(image))):
        try:
            superblock = _read(image, position)
            if superblock.group_first_block(superblock.group) * superblock.block_size != position:
                raise damaged("a superblock is not where it says")
        except OSError:
            continue
        yield superblock


def _backup_positions(image: Image) -> Iterator[int]:
    """First what the primary superblock says of itself, then everything usual. Byte positions inside the image."""
    shapes = [
        (block_size, block_size * 8 * ratio, int(block_size == 1024 and ratio == 1))
        for block_size in _BLOCK_SIZES
        for ratio in _CLUSTER_RATIOS
    ]
    if image.size >= SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
        data = image.pread(0x28, SUPERBLOCK_OFFSET)
        block_size = 1024 << (int.from_bytes(data[0x18:0x1C], "little") & 7)
        first, per_group = int.from_bytes(data[0x14:0x18], "little"), int.from_bytes(data[0x20:0x24], "little")
        shapes.append((block_size, per_group, first))
    for block_size, per_group, first in shapes:
        for group in _BACKUP_GROUPS:
            position = (first + group * per_group) * block_size
            if position + SUPERBLOCK_SIZE <= image.size and position > SUPERBLOCK_OFFSET:
                yield position
