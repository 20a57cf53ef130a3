"""Fast commits (feature fast_commit; journal.rst, "Fast commits"): the changes since the last complete transaction.

They hold no blocks, but tags that say what changed: a name was added or removed, blocks were mapped or unmapped, an
inode has new fields. `parse_fast_commits` turns their part of the journal into tags, up to the last complete commit.
`changes` turns the tags into what has to be read instead of what is on disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from viewfs.modules.formats.ext.checksums import crc32c, seed_from_disk, stored
from viewfs.modules.framework.damage import damaged

__all__ = ["FastCommits", "FieldsTag", "NameTag", "RangeTag", "Tag", "TagKind", "parse_fast_commits"]


class TagKind(IntEnum):
    """fc_tag of struct ext4_fc_tl (fs/ext4/fast_commit.h)."""

    ADD_RANGE = 1
    DEL_RANGE = 2
    CREAT = 3
    LINK = 4
    UNLINK = 5
    INODE = 6
    PAD = 7
    TAIL = 8
    HEAD = 9


_HEADER = struct.Struct("<HH")
_PAIR = struct.Struct("<II")
_TRIPLE = struct.Struct("<III")
#: struct ext4_fc_add_range, with the struct ext4_extent in it.
_ADD_RANGE = struct.Struct("<IIHHI")
_UNWRITTEN = 0x8000
_NAME_MAX = 255
_SMALL_INODE = 128


class NameTag(NamedTuple):
    """`name` in directory `parent` was made with a new inode (CREAT), made for an inode (LINK) or removed (UNLINK)."""

    kind: int
    parent: int
    inode: int
    name: bytes


class FieldsTag(NamedTuple):
    """The inode's new fields: `data` is the first part of struct ext4_inode."""

    inode: int
    data: bytes


class RangeTag(NamedTuple):
    """`length` blocks of the inode from `logical` on are on disk from `physical` on, or read as zeros if that is 0."""

    inode: int
    logical: int
    length: int
    physical: int


Tag: TypeAlias = NameTag | FieldsTag | RangeTag


class FastCommits(NamedTuple):
    """The complete fast commits of a journal."""

    commits: int
    tags: Sequence[Tag]
    #: Why reading stopped, if not at a regular end; else None.
    stopped: str | None


def parse_fast_commits(blocks: Iterable[bytes], sequence: int, inode_size: int) -> FastCommits:
    """Read the journal's blocks for fast commits; valid commits belong to transaction `sequence`.

    Each transaction overwrites the blocks from the first one on, so the commits usually end where those of an older
    transaction are left. An OSError of `blocks` ends them too. Never raises.
    """
    parser = _Parser(sequence, inode_size)
    try:
        for block in blocks:
            if not parser.block(block):
                break
    except OSError as error:
        parser.stopped = str(error.strerror)
    return FastCommits(parser.commits, parser.whole, parser.stopped)


class _Parser:
    def __init__(self, sequence: int, inode_size: int) -> None:
        self._sequence = sequence
        self._inode_size = inode_size
        self._started = False
        self._pending: list[Tag] = []
        self._checksum = seed_from_disk(0)
        self.whole: list[Tag] = []
        self.commits = 0
        self.stopped: str | None = None

    def block(self, data: bytes) -> bool:
        """Parse one block; returns whether to continue with the next. Raises OSError."""
        position = 0
        while position + _HEADER.size <= len(data):
            tag, length = _HEADER.unpack_from(data, position)
            start, end = position + _HEADER.size, position + _HEADER.size + length
            if not self._started:
                # Commits of an older transaction, or none at all.
                if tag != TagKind.HEAD or length != _PAIR.size or _PAIR.unpack_from(data, start)[1] != self._sequence:
                    return False
                self._started = True
            if end > len(data) or not self._is_length(tag, length):
                return self._end("a tag of an unknown kind or length")
            value = data[start:end]
            if tag == TagKind.TAIL:
                transaction, checksum = _PAIR.unpack_from(value)
                content = memoryview(data)[position : start + 4]
                if transaction != self._sequence or stored(crc32c(content, self._checksum)) != checksum:
                    return self._end("a wrong checksum")
                self.whole += self._pending
                self._pending = []
                self.commits += 1
                self._checksum = seed_from_disk(0)
            else:
                if tag == TagKind.HEAD:
                    features, transaction = _PAIR.unpack(value)
                    if features:
                        raise damaged(f"they use unknown features, {features:#x}")
                    if transaction != self._sequence:
                        return self._end("the beginning of another transaction's")
                self._checksum = crc32c(memoryview(data)[position:end], self._checksum)
                if tag not in (TagKind.HEAD, TagKind.PAD):
                    self._pending.append(_parse_tag(tag, value))
            position = end
        return True

    def _is_length(self, tag: int, length: int) -> bool:
        match tag:
            case TagKind.ADD_RANGE:
                return length == _ADD_RANGE.size
            case TagKind.DEL_RANGE:
                return length == _TRIPLE.size
            case TagKind.CREAT | TagKind.LINK | TagKind.UNLINK:
                return 1 <= length - _PAIR.size <= _NAME_MAX
            case TagKind.INODE:
                return _SMALL_INODE <= length - 4 <= self._inode_size
            case TagKind.PAD:
                return True
            case TagKind.TAIL:
                return length >= _PAIR.size
            case TagKind.HEAD:
                return length == _PAIR.size
        return False

    def _end(self, why: str) -> bool:
        """Stop. After a complete fast commit, invalid bytes are left from older ones; before the first, it's damage."""
        if not self.commits:
            self.stopped = f"the first of them has {why}"
        return False


def _parse_tag(tag: int, value: bytes) -> Tag:
    if tag == TagKind.ADD_RANGE:
        inode, logical, length, high, low = _ADD_RANGE.unpack(value)
        if length > _UNWRITTEN:
            return RangeTag(inode, logical, length - _UNWRITTEN, 0)
        return RangeTag(inode, logical, length, low | high << 32)
    if tag == TagKind.DEL_RANGE:
        inode, logical, length = _TRIPLE.unpack(value)
        return RangeTag(inode, logical, length, 0)
    if tag == TagKind.INODE:
        return FieldsTag(int.from_bytes(value[:4], "little"), value[4:])
    parent, inode = _PAIR.unpack_from(value)
    return NameTag(tag, parent, inode, value[_PAIR.size :])
