"""The journal, jbd2 (Documentation/filesystems/ext4/journal.rst). Everything in it is big-endian.

`replay` reads the log once, from the place that the journal's superblock gives to the first incomplete transaction: one
without a commit block, or with a wrong checksum. It returns the state after the last complete one: for each block of
the file system, the place in the journal of its newest version, unless a later transaction revoked it.

Fast commits, which may follow the last complete transaction, are in a separate part of the journal, which `fastcommit`
reads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntFlag
from typing import NamedTuple

from viewfs.modules.formats.ext.checksums import crc32_big_endian, crc32c, stored
from viewfs.modules.framework.damage import damaged

__all__ = [
    "JournalFeatures",
    "JournalSuperblock",
    "Logged",
    "Replay",
    "fast_commit_blocks",
    "parse_journal_superblock",
    "replay",
]

_MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _SUPERBLOCK_1, _SUPERBLOCK_2, _REVOKE = 1, 2, 3, 4, 5
_HEADER = struct.Struct(">III")
_TAIL_SIZE = 4
#: Blocks at the end for fast commits, if s_num_fc_blks is 0.
_FAST_COMMIT_BLOCKS = 256
_MIN_BLOCKS = 1024
#: mke2fs makes no larger journals.
_MAX_BLOCKS = 10_240_000


class JournalFeatures(IntFlag):
    """s_feature_incompat of the journal's superblock."""

    REVOKE = 0x1
    BIT64 = 0x2
    ASYNC_COMMIT = 0x4
    CSUM_V2 = 0x8
    CSUM_V3 = 0x10
    FAST_COMMIT = 0x20


_KNOWN_FEATURES = 0x3F
_COMPAT_CHECKSUM = 0x1


class _TagFlags(IntFlag):
    ESCAPE = 0x1
    SAME_UUID = 0x2
    DELETED = 0x4
    LAST = 0x8


@dataclass(frozen=True, slots=True)
class JournalSuperblock:
    """struct journal_superblock_s. Block numbers count from the beginning of the journal."""

    block_size: int
    #: The log is a ring of the blocks from `first` to before `end`.
    first: int
    end: int
    #: Fast commits are from `end` to before this block.
    fast_commit_end: int
    #: Where the oldest transaction begins, or 0 if there is none to replay; and its number.
    start: int
    sequence: int
    features: JournalFeatures
    #: Commit blocks have a CRC-32 of the transaction (v1).
    commit_checksums: bool
    #: The seed of the checksums of v2 and v3; None without them.
    checksum_seed: int | None


def parse_journal_superblock(data: bytes, block_size: int, blocks: int) -> JournalSuperblock:
    """`blocks` is the number of blocks of the journal's file. Raises OSError(EUCLEAN)."""
    magic, kind, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC or kind not in (_SUPERBLOCK_1, _SUPERBLOCK_2):
        raise damaged("the journal has no superblock")
    found_size, length, first, sequence, start = struct.unpack_from(">5I", data, 0xC)
    compat, incompat, _ro_compat = struct.unpack_from(">3I", data, 0x24) if kind == _SUPERBLOCK_2 else (0, 0, 0)
    features = JournalFeatures(incompat)
    if incompat & ~_KNOWN_FEATURES:
        raise damaged(f"the journal has unknown features, {incompat & ~_KNOWN_FEATURES:#x}")
    seed = None
    if features & (JournalFeatures.CSUM_V2 | JournalFeatures.CSUM_V3):
        content = data[:0xFC] + b"\0\0\0\0" + data[0x100:0x400]
        if stored(crc32c(content)) != int.from_bytes(data[0xFC:0x100], "big"):
            raise damaged("the checksum of the journal's superblock is wrong")
        seed = crc32c(data[0x30:0x40])
    end = length
    if JournalFeatures.FAST_COMMIT in features:
        reserved = int.from_bytes(data[0x54:0x58], "big") or _FAST_COMMIT_BLOCKS
        if length - reserved >= _MIN_BLOCKS:
            end = length - reserved
    if found_size != block_size or not 0 < first < end or length > min(blocks, _MAX_BLOCKS) or start >= end:
        raise damaged("the journal's superblock contradicts itself")
    if start and start < first:
        raise damaged("the journal's superblock contradicts itself")
    return JournalSuperblock(
        block_size, first, end, length, start, sequence, features, bool(compat & _COMPAT_CHECKSUM), seed
    )


class Logged(NamedTuple):
    """The version of a block in the journal."""

    #: The number of the journal's block.
    place: int
    #: Its first four bytes were jbd2's magic number, and are zeros in the journal.
    escaped: bool


class _Tag(NamedTuple):
    block: int
    flags: int
    checksum: int


@dataclass(slots=True)
class _Transaction:
    written: list[tuple[int, Logged]] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of reading the log."""

    blocks: dict[int, Logged]
    transactions: int
    #: The number of the transaction after the last complete one; fast commits belong to it.
    next_sequence: int
    #: Why the log ended early, or None.
    stopped: str | None


def replay(superblock: JournalSuperblock, read: Callable[[int], bytes], blocks_count: int) -> Replay:
    """Read the log. `read` returns a block of the journal, or raises OSError, which ends the log there."""
    log = _Log(superblock, read, blocks_count)
    transactions = list(log.transactions()) if superblock.start else []
    revoked: dict[int, int] = {}
    for number, transaction in enumerate(transactions):
        revoked.update(dict.fromkeys(transaction.revoked, number))
    blocks: dict[int, Logged] = {}
    for number, transaction in enumerate(transactions):
        for block, logged in transaction.written:
            # A revocation also applies to its own transaction: it is cancelled if the block is written again after it.
            if revoked.get(block, -1) < number:
                blocks[block] = logged
    return Replay(blocks, len(transactions), log.sequence, log.stopped)


def fast_commit_blocks(superblock: JournalSuperblock) -> range:
    """The blocks of the journal that may have fast commits. jbd2 does not use the first of those reserved for them
    (j_fc_first)."""
    if not superblock.start:
        return range(0)
    return range(superblock.end + 1, superblock.fast_commit_end)


class _Log:
    """Reads the log block by block, never more blocks than the ring has."""

    def __init__(self, superblock: JournalSuperblock, read: Callable[[int], bytes], blocks_count: int) -> None:
        self._superblock = superblock
        self._read = read
        self._blocks_count = blocks_count
        self._at = superblock.start
        self._left = superblock.end - superblock.first
        self.sequence = superblock.sequence
        self.stopped: str | None = None

    def transactions(self) -> Iterator[_Transaction]:
        """The complete transactions, in order."""
        try:
            while (transaction := self._transaction()) is not None:
                self.sequence = self.sequence + 1 & 0xFFFFFFFF
                yield transaction
        except OSError as error:
            self.stopped = f"transaction {self.sequence} of the journal can't be replayed: {error.strerror}"

    def _next(self) -> int:
        """Step over a block of the ring, and return its number."""
        if not self._left:
            raise damaged("it goes on for longer than the journal")
        self._left -= 1
        place = self._at
        self._at = place + 1 if place + 1 < self._superblock.end else self._superblock.first
        return place

    def _transaction(self) -> _Transaction | None:
        """The next transaction, or None where the log ends regularly."""
        transaction = _Transaction()
        crc = _CommitChecksum() if self._superblock.commit_checksums else None
        while self._left:
            data = self._read(self._next())
            magic, kind, sequence = _HEADER.unpack_from(data)
            if magic != _MAGIC or sequence != self.sequence:
                return None
            if kind == _DESCRIPTOR:
                self._descriptor(data, transaction, crc)
            elif kind == _REVOKE:
                transaction.revoked += self._revocations(data)
            elif kind == _COMMIT:
                self._check_commit(data, crc)
                return transaction
            else:
                return None
        return None

    def _descriptor(self, data: bytes, transaction: _Transaction, crc: _CommitChecksum | None) -> None:
        self._check_tail(data)
        if crc is not None:
            crc.add(data)
        seed = self._superblock.checksum_seed
        for tag in self._tags(data):
            place = self._next()
            if tag.block >= self._blocks_count:
                raise damaged(f"it writes to block {tag.block}, which is not in the file system")
            if crc is not None or seed is not None:
                content = self._read(place)
                if crc is not None:
                    crc.add(content)
                if seed is not None:
                    self._check_content(tag, content, seed)
            transaction.written.append((tag.block, Logged(place, bool(tag.flags & _TagFlags.ESCAPE))))

    def _check_content(self, tag: _Tag, content: bytes, seed: int) -> None:
        value = stored(crc32c(content, crc32c(self.sequence.to_bytes(4, "big"), seed)))
        if JournalFeatures.CSUM_V3 not in self._superblock.features:
            value &= 0xFFFF
        if value != tag.checksum:
            raise damaged(f"the checksum of its block {tag.block} is wrong")

    def _tags(self, data: bytes) -> Iterator[_Tag]:
        """The block tags of a descriptor block, in the format that the journal's features determine."""
        features = self._superblock.features
        version_3 = JournalFeatures.CSUM_V3 in features
        wide = JournalFeatures.BIT64 in features
        # In version 2 the tag is two bytes longer than its fields; the checksum was first meant to be there.
        size = 16 if version_3 else 8 + 2 * (JournalFeatures.CSUM_V2 in features) + 4 * wide
        end = len(data) - (_TAIL_SIZE if self._superblock.checksum_seed is not None else 0)
        position = _HEADER.size
        while position + size <= end:
            if version_3:
                block, flags, high, checksum = struct.unpack_from(">4I", data, position)
            else:
                block, checksum, flags = struct.unpack_from(">IHH", data, position)
                high = int.from_bytes(data[position + 8 : position + 12], "big")
            yield _Tag(block | high << 32 if wide else block, flags, checksum)
            if flags & _TagFlags.LAST:
                return
            position += size + (0 if flags & _TagFlags.SAME_UUID else 16)

    def _revocations(self, data: bytes) -> list[int]:
        """The block numbers of a revoke block; its r_count is in bytes, including the 16 of the header."""
        self._check_tail(data)
        size = 8 if JournalFeatures.BIT64 in self._superblock.features else 4
        used = int.from_bytes(data[12:16], "big")
        if not 16 <= used <= len(data) - (_TAIL_SIZE if self._superblock.checksum_seed is not None else 0):
            raise damaged("it has a revoke block of an impossible length")
        count = (used - 16) // size
        return list(struct.unpack_from(f">{count}{'Q' if size == 8 else 'I'}", data, 16))

    def _check_tail(self, data: bytes) -> None:
        """Check struct jbd2_journal_block_tail, at the end of descriptor and revoke blocks."""
        seed = self._superblock.checksum_seed
        if seed is not None:
            value = crc32c(data[:-_TAIL_SIZE] + b"\0\0\0\0", seed)
            if stored(value) != int.from_bytes(data[-_TAIL_SIZE:], "big"):
                raise damaged("the checksum of one of its descriptor blocks is wrong")

    def _check_commit(self, data: bytes, crc: _CommitChecksum | None) -> None:
        kind, size = data[12], data[13]
        checksum = int.from_bytes(data[16:20], "big")
        if crc is not None and (kind, size, checksum) not in ((1, 4, crc.value), (0, 0, 0)):
            raise damaged("its checksum is wrong")
        seed = self._superblock.checksum_seed
        if seed is None:
            return
        whole = data[:16] + b"\0\0\0\0" + data[20:]
        # Some kernels checksummed the fields only and did not clear the rest of the block (commit header: 60 bytes).
        fields = whole[:60] + bytes(len(data) - 60)
        if checksum not in (stored(crc32c(whole, seed)), stored(crc32c(fields, seed))):
            raise damaged("the checksum of its commit block is wrong")


class _CommitChecksum:
    """The CRC-32 of all descriptor and data blocks of a transaction (h_chksum, v1)."""

    def __init__(self) -> None:
        self.value = crc32_big_endian()

    def add(self, data: bytes) -> None:
        self.value = crc32_big_endian(data, self.value)
