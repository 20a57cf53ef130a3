"""Replaying fast commits in memory: from their tags to the differences from what is on disk.

`replay_fast_commits` applies the tags one by one, because each depends on those before it. Where the kernel's replay
gives another result than what was written, this follows the kernel: a new directory has one link and does not count in
its parent, and the blocks of an inode come from the ranges, not from its fields. The sizes and times of directories
stay as they are on disk; the kernel gives them the time of the mount.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from typing import NamedTuple

from viewfs.modules.formats.ext.fastcommit import FieldsTag, NameTag, RangeTag, Tag, TagKind
from viewfs.modules.formats.ext.inode import Inode, InodeFlags, InodeFormat, inode_seed, parse_inode
from viewfs.modules.formats.ext.mapping import MAX_BLOCKS, Limits, Run
from viewfs.modules.framework.damage import damaged

__all__ = ["NO_CHANGES", "Base", "Changes", "DirectoryChanges", "replay_fast_commits"]


@dataclass(slots=True)
class DirectoryChanges:
    """How the names of a directory differ from those in its blocks."""

    #: The directory is new, in this parent, and has no blocks.
    parent: int | None = None
    #: Names that are in the blocks but were removed.
    hidden: set[bytes] = field(default_factory=set)
    #: Inode number and EXT4_FT_* by name.
    added: dict[bytes, tuple[int, int]] = field(default_factory=dict)


class Changes(NamedTuple):
    """The differences from what is on disk, by inode number."""

    #: None: the inode is not in use any more.
    inodes: Mapping[int, Inode | None]
    #: In order, without overlap. Blocks of runs with `physical` 0 read as zeros.
    runs: Mapping[int, Sequence[Run]]
    directories: Mapping[int, DirectoryChanges]
    #: By how many sectors and inodes more (or, if negative, fewer) are in use.
    sectors: int
    inode_count: int
    #: Why not all tags could be replayed, or None.
    stopped: str | None
    #: Inodes without the flag for extents that were given blocks during the replay. They are read as they were written;
    #: the kernel takes what it finds for extents (6.18 loses the content, or crashes).
    without_extents: Sequence[int]


NO_CHANGES = Changes({}, {}, {}, 0, 0, None, ())


class Base(NamedTuple):
    """The file system as the last complete transaction left it. The calls raise OSError."""

    #: An inode's s_inode_size bytes, and the inode if it is valid.
    raw: Callable[[int], bytes]
    inode: Callable[[int], Inode]
    #: The inode number of a name in a directory.
    lookup: Callable[[int, bytes], int | None]
    form: InodeFormat
    limits: Limits
    inodes_count: int
    #: Directory entries have a type (feature filetype).
    file_types: bool


def replay_fast_commits(tags: Iterable[Tag], base: Base) -> Changes:
    """Apply `tags` to `base`. Never raises: a tag that can't be replayed ends the replay, as in the kernel."""
    replay = _Replay(base)
    stopped = None
    try:
        for tag in tags:
            replay.apply(tag)
    except OSError as error:
        stopped = str(error.strerror)
    inodes = {number: replay.inode(number) for number in replay.changed}
    runs = {number: list(_flattened(ranges)) for number, ranges in replay.ranges.items()}
    befores = [_Replay(base).inode(number) for number in inodes]
    sectors = _sectors(inodes.values()) - _sectors(befores)
    count = sum(inode is not None for inode in inodes.values()) - sum(inode is not None for inode in befores)
    return Changes(inodes, runs, replay.directories, sectors, count, stopped, sorted(replay.without_extents))


def _sectors(inodes: Iterable[Inode | None]) -> int:
    """The sectors in use. Content in the inode itself takes none, although stat(2) shows some for it."""
    return sum(inode.attributes.blocks for inode in inodes if inode and not inode.flags & InodeFlags.INLINE_DATA)


_ROOT = 2
#: Inodes before this one are the file system's own (s_first_ino; special_inodes.rst).
_FIRST_INODE = 11
# Fields of struct ext4_inode (inodes.rst).
_MODE, _LINKS, _SIZE, _SECTORS, _FLAGS, _BLOCK, _GENERATION = 0x0, 0x1A, 0x4, 0x1C, 0x20, 0x28, 0x64
_SIZE_HIGH = 0x6C
#: struct ext4_extent_header of an i_block without extents.
_NO_EXTENTS = struct.pack("<HHHHI", 0xF30A, 0, 4, 0, 0)
_EXTENT_MAGIC = _NO_EXTENTS[:2]
#: EXT4_FT_* by the upper four bits of a mode.
_KINDS = {0x1: 5, 0x2: 3, 0x4: 2, 0x6: 4, 0x8: 1, 0xA: 7, 0xC: 6}


class _Replay:
    """The state that each tag changes."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._form = base.form._replace(checksum_seed=None)  # The stored checksums are those of the old fields.
        self.changed: dict[int, bytearray] = {}
        self.ranges: dict[int, list[RangeTag]] = {}
        self.directories: dict[int, DirectoryChanges] = {}
        self.without_extents: set[int] = set()

    def apply(self, tag: Tag) -> None:
        """Raises OSError."""
        if isinstance(tag, FieldsTag):
            self._set_fields(tag)
        elif isinstance(tag, RangeTag):
            self._map(tag)
        elif tag.kind == TagKind.UNLINK:
            self._unlink(tag)
        else:
            self._link(tag)

    def inode(self, number: int) -> Inode | None:
        """Inode `number` in its present state; None if it is not valid or not in use."""
        if not self._is_ordinary(number):
            return None
        raw = self.changed.get(number)
        try:
            if raw is None:
                return self._base.inode(number)
            inode = parse_inode(number, bytes(raw), self._form)
        except OSError:
            return None
        seed = self._base.form.checksum_seed
        if seed is None:
            return inode
        return inode._replace(checksum_seed=inode_seed(seed, number, _number(raw, _GENERATION, 4)))

    def _is_ordinary(self, number: int) -> bool:
        return number == _ROOT or _FIRST_INODE <= number <= self._base.inodes_count

    def _directory(self, number: int) -> DirectoryChanges | None:
        """The changes of directory `number`; None if that is not a directory."""
        inode = self.inode(number)
        if inode is None or not stat.S_ISDIR(inode.attributes.mode):
            return None
        return self.directories.setdefault(number, DirectoryChanges())

    def _raw(self, number: int) -> bytearray:
        """The bytes of an inode, to be changed."""
        if number not in self.changed:
            self.changed[number] = bytearray(self._base.raw(number))
        return self.changed[number]

    def _set_fields(self, tag: FieldsTag) -> None:
        """Set all fields but i_block, which the ranges determine."""
        if not self._is_ordinary(tag.inode):
            return
        raw, data = self._raw(tag.inode), tag.data
        raw[:_BLOCK] = data[:_BLOCK]
        raw[_GENERATION : len(data)] = data[_GENERATION:]
        flags = _number(raw, _FLAGS, 4)
        if flags & InodeFlags.EXTENTS:
            if raw[_BLOCK : _BLOCK + 2] != _EXTENT_MAGIC:
                raw[_BLOCK : _BLOCK + len(_NO_EXTENTS)] = _NO_EXTENTS
        elif flags & InodeFlags.INLINE_DATA:
            raw[_BLOCK:_GENERATION] = data[_BLOCK:_GENERATION]

    def _map(self, tag: RangeTag) -> None:
        inode = self.inode(tag.inode)
        if inode is None or not tag.length:
            return
        if tag.physical and not inode.flags & InodeFlags.EXTENTS:
            self.without_extents.add(tag.inode)
        limits = self._base.limits
        if tag.logical + tag.length > MAX_BLOCKS:
            raise damaged("a range reaches beyond the largest possible file")
        if tag.physical and not limits.first < tag.physical <= limits.end - tag.length:
            raise damaged(f"a range lies outside of the file system, at block {tag.physical}")
        self.ranges.setdefault(tag.inode, []).append(tag)

    def _link(self, tag: NameTag) -> None:
        inode = self.inode(tag.inode)
        if inode is None:
            if tag.kind == TagKind.CREAT:
                raise damaged(f"inode {tag.inode} is given a name, and is not in use")
            return
        _check_name(tag.name)
        mode = inode.attributes.mode
        new_directory = tag.kind == TagKind.CREAT and stat.S_ISDIR(mode)
        directory = self._directory(tag.parent)
        if new_directory and (directory is None or not self._make_directory(tag)):
            return
        if directory is not None and self._lookup(tag.parent, directory, tag.name) is None:
            kind = _KINDS[mode >> 12] if self._base.file_types else 0
            directory.added[tag.name] = tag.inode, kind
            self._set_links(tag.inode, inode.attributes.nlink + 1)
        if tag.kind == TagKind.CREAT:
            self._set_links(tag.inode, 1)

    def _make_directory(self, tag: NameTag) -> bool:
        """Make an empty directory: its blocks aren't in the journal. False if that is not possible."""
        raw = self._raw(tag.inode)
        if _number(raw, _FLAGS, 4) & InodeFlags.EXTENTS and _number(raw, _BLOCK + 2, 2):
            return False  # The inode was another directory's, which still has its blocks.
        size = self._base.form.block_size
        raw[_SIZE : _SIZE + 4], raw[_SIZE_HIGH : _SIZE_HIGH + 4] = size.to_bytes(4, "little"), bytes(4)
        raw[_SECTORS : _SECTORS + 4] = (size // 512).to_bytes(4, "little")
        self.directories[tag.inode] = DirectoryChanges(tag.parent)
        return True

    def _unlink(self, tag: NameTag) -> None:
        inode, directory = self.inode(tag.inode), self._directory(tag.parent)
        if inode is None or directory is None:
            return
        _check_name(tag.name)
        found = self._lookup(tag.parent, directory, tag.name)
        if found is None:
            return
        if found == tag.inode:
            directory.added.pop(tag.name, None)
            directory.hidden.add(tag.name)
        # A name that now belongs to another inode is kept, but the link count is reduced all the same.
        self._set_links(tag.inode, inode.attributes.nlink - 1)
        if inode.attributes.nlink == 1:
            self._free(tag.inode)

    def _free(self, number: int) -> None:
        """Clear the inode's blocks and names, for the case that it is reused."""
        raw = self._raw(number)
        if _number(raw, _SECTORS, 4):
            extents = _number(raw, _FLAGS, 4) & InodeFlags.EXTENTS
            raw[_BLOCK:_GENERATION] = (_NO_EXTENTS if extents else b"").ljust(_GENERATION - _BLOCK, b"\0")
        self.ranges.pop(number, None)
        self.directories.pop(number, None)

    def _lookup(self, number: int, directory: DirectoryChanges, name: bytes) -> int | None:
        if name in directory.added:
            return directory.added[name][0]
        if name in directory.hidden or directory.parent is not None:
            return None
        return self._base.lookup(number, name)

    def _set_links(self, number: int, links: int) -> None:
        self._raw(number)[_LINKS : _LINKS + 2] = min(links, 0xFFFF).to_bytes(2, "little")


def _number(raw: bytearray, offset: int, size: int) -> int:
    return int.from_bytes(raw[offset : offset + size], "little")


def _check_name(name: bytes) -> None:
    if name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise damaged("a directory is given an impossible name")


def _flattened(ranges: Sequence[RangeTag]) -> Iterator[Run]:
    """The ranges of one inode as runs in order; where ranges overlap, the later one counts."""
    starts = sorted(range(len(ranges)), key=lambda index: ranges[index].logical)
    bounds = sorted({tag.logical for tag in ranges} | {tag.logical + tag.length for tag in ranges})
    open_ranges: list[int] = []  # A heap of negated indexes, so that the latest range comes first.
    waiting = 0
    for start, end in pairwise(bounds):
        while waiting < len(starts) and ranges[starts[waiting]].logical <= start:
            heappush(open_ranges, -starts[waiting])
            waiting += 1
        while open_ranges and ranges[-open_ranges[0]].logical + ranges[-open_ranges[0]].length <= start:
            heappop(open_ranges)
        if open_ranges:
            _, logical, _, physical = ranges[-open_ranges[0]]
            yield Run(start, physical and physical + start - logical, end - start)
