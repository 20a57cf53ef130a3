"""Choosing the superblock: the primary one, or one of its copies if that is damaged (super.rst)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.ext.features import READABLE, Incompat, feature_names
from viewfs.modules.formats.ext.image import Image
from viewfs.modules.formats.ext.layout import (
    MAGIC,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    ExternalJournalError,
    Superblock,
    parse_superblock,
)
from viewfs.modules.framework.damage import damaged

__all__ = ["Found", "find_superblock", "has_backup"]

#: The first groups with a copy under sparse_super; under sparse_super2, group 1 has one too.
_BACKUP_GROUPS = (1, 3, 5, 7, 9)
_BLOCK_SIZES = tuple(1024 << shift for shift in range(7))
#: Under bigalloc, groups are larger by this factor; the default of mke2fs is 16.
_CLUSTER_RATIOS = (1, 16)
#: s_magic, which is searched in the first `_SEARCHED` bytes if no copy is at a usual position.
_MAGIC = MAGIC.to_bytes(2, "little")
_MAGIC_OFFSET = 0x38
_SEARCHED = 256 << 20
_SEARCH_STEP = 1 << 20


class Found(NamedTuple):
    """A superblock, and what is wrong with the primary one if this is a copy."""

    superblock: Superblock
    primary_error: str | None


def find_superblock(image: Image, name: str) -> Found:
    """Raises DamagedSourceError if there is none, or if it has an unsupported feature."""
    error: str | None = None
    superblock: Superblock | None
    try:
        superblock = _read(image, SUPERBLOCK_OFFSET)
    except ExternalJournalError:
        raise DamagedSourceError(f"{name} is the external journal of a file system, not a file system") from None
    except OSError as reason:
        error = str(reason.strerror)
        superblock = next(_backups(image), None)
    if superblock is None:
        raise DamagedSourceError(f"{name} is not a readable ext2, ext3 or ext4 file system: {error}")
    unreadable = Incompat(int(superblock.incompat) & ~int(READABLE))  # ~ of a flag leaves unknown bits out.
    if unreadable:
        names = ", ".join(feature_names(unreadable))
        raise DamagedSourceError(f"{name} uses what can't be read: feature {names}")
    return Found(superblock, error)


def _read(image: Image, position: int) -> Superblock:
    return parse_superblock(image.pread(SUPERBLOCK_SIZE, position))


def has_backup(image: Image) -> bool:
    """Is there a valid copy where mke2fs puts them?"""
    return next(_valid(image, _usual_positions(image)), None) is not None


def _backups(image: Image) -> Iterator[Superblock]:
    """Valid copies."""
    return _valid(image, chain(_usual_positions(image), _likely_positions(image)))


def _valid(image: Image, positions: Iterable[int]) -> Iterator[Superblock]:
    """The valid copies at `positions`; the group that each one names must begin there."""
    for position in positions:
        try:
            superblock = _read(image, position)
            if not superblock.is_dynamic:
                # Copies of revision 0 don't say where they are (s_block_group_nr came later).
                group, rest = divmod(position // superblock.block_size, superblock.blocks_per_group)
                if rest != superblock.first_data_block or not 0 < group < superblock.groups:
                    raise damaged("a superblock is not where a group begins")
                superblock = replace(superblock, group=group)
            if superblock.group_first_block(superblock.group) * superblock.block_size != position:
                raise damaged("a superblock is not where it says")
        except OSError:
            continue
        yield superblock


def _usual_positions(image: Image) -> Iterator[int]:
    """The positions where mke2fs puts the first copies, unless it chooses smaller groups."""
    for block_size in _BLOCK_SIZES:
        for ratio in _CLUSTER_RATIOS:
            for group in _BACKUP_GROUPS:
                block = group * block_size * 8 * ratio + (block_size == 1024 and ratio == 1)
                if block * block_size + SUPERBLOCK_SIZE <= image.size:
                    yield block * block_size


def _likely_positions(image: Image) -> Iterator[int]:
    """The positions in the first part of the image that have the magic number, in order."""
    for start in range(0, min(image.size, _SEARCHED), _SEARCH_STEP):
        try:
            data = image.pread(min(_SEARCH_STEP, image.size - start), start)
        except OSError:
            continue
        low, high = data[_MAGIC_OFFSET::1024], data[_MAGIC_OFFSET + 1 :: 1024]
        index = low.find(_MAGIC[0])
        while index >= 0:
            position = start + index * 1024
            if high[index : index + 1] == _MAGIC[1:] and position > SUPERBLOCK_OFFSET:
                yield position
            index = low.find(_MAGIC[0], index + 1)
