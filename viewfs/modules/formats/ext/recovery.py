"""Finding the journal of a file system, and replaying it in memory, so that reads of the image see its blocks."""

from __future__ import annotations

import stat
from bisect import bisect_right
from typing import NamedTuple

from viewfs.errors import DamagedSourceError
from viewfs.modules.api import Attributes, InodeNumber
from viewfs.modules.formats.ext.content import Contents
from viewfs.modules.formats.ext.fastcommit import FastCommits, parse_fast_commits
from viewfs.modules.formats.ext.features import Compat, Incompat
from viewfs.modules.formats.ext.image import Image, Moved
from viewfs.modules.formats.ext.inode import Inode, InodeFlags
from viewfs.modules.formats.ext.journal import Replay, fast_commit_blocks, parse_journal_superblock, replay
from viewfs.modules.formats.ext.layout import Superblock, uuid_text
from viewfs.modules.formats.ext.mapping import Run
from viewfs.modules.formats.ext.table import InodeTable
from viewfs.modules.framework.damage import damaged, missing

__all__ = ["NOTHING_RECOVERED", "Recovered", "fast_commits_warning", "recover"]

_EXTENT_MAGIC = b"\x0a\xf3"


class Recovered(NamedTuple):
    transactions: int
    warnings: tuple[str, ...]
    fast_commits: FastCommits


_NO_FAST_COMMITS = FastCommits(0, (), None)
NOTHING_RECOVERED = Recovered(0, (), _NO_FAST_COMMITS)


def fast_commits_warning(why: str) -> str:
    return f"what was synchronized last is not seen, since fast commits of the journal can't be replayed: {why}"


def recover(
    image: Image, superblock: Superblock, table: InodeTable, contents: Contents, name: str, *, from_backup: bool
) -> Recovered:
    """Replay the journal into `image` if there is anything to replay. Raises DamagedSourceError.

    needs_recovery is only kept up to date in the primary superblock. With one of its copies (`from_backup`), the
    journal itself decides.
    """
    needed = Incompat.NEEDS_RECOVERY in superblock.incompat
    if Compat.HAS_JOURNAL not in superblock.compat or not (needed or from_backup):
        return NOTHING_RECOVERED
    if not superblock.journal_inode:
        if not needed:
            return NOTHING_RECOVERED
        raise DamagedSourceError(
            f"{name} was not unmounted, and its journal is on another device "
            f"(journal UUID {uuid_text(superblock.journal_uuid)})",
            remedy="replay it where both are, with e2fsck, or read it as it is with -o norecovery",
        )
    try:
        journal = _Journal(image, superblock, _journal_inode(superblock, table), contents)
        outcome = journal.replay(superblock.blocks_count)
        moved = {
            block: Moved(journal.position(logged.place), logged.escaped) for block, logged in outcome.blocks.items()
        }
        fast_commits = journal.fast_commits(outcome.next_sequence, superblock.inode_size)
    except OSError as error:
        raise DamagedSourceError(
            f"{name} was not unmounted, and its journal can't be read: {error.strerror}",
            remedy="-o norecovery reads it as it is: what was written last may be missing, or there in part",
        ) from None
    image.replay(moved, superblock.block_size)
    warnings: tuple[str, ...] = (outcome.stopped,) if outcome.stopped else ()
    if fast_commits.stopped:
        warnings += (fast_commits_warning(fast_commits.stopped),)
    return Recovered(outcome.transactions, warnings, fast_commits)


def _journal_inode(superblock: Superblock, table: InodeTable) -> Inode:
    """The journal's inode, or its copy in the superblock."""
    number = superblock.journal_inode
    try:
        inode = table.inode(number)
        if not stat.S_ISREG(inode.attributes.mode):
            raise damaged(f"inode {number} should be the journal, and is no file")
        return inode
    except OSError:
        if superblock.journal_backup is None:
            raise
    block, size = superblock.journal_backup
    flags = int(InodeFlags.EXTENTS) if block.startswith(_EXTENT_MAGIC) else 0
    return Inode(Attributes(InodeNumber(number), stat.S_IFREG, size), flags, block, 0, b"", None, 0)


class _Journal:
    """The blocks of the journal, wherever they are in the image."""

    def __init__(self, image: Image, superblock: Superblock, inode: Inode, contents: Contents) -> None:
        self._image = image
        self._block_size = superblock.block_size
        blocks = inode.attributes.size // self._block_size
        if blocks > superblock.blocks_count or inode.attributes.size > max(image.size, 1):
            raise damaged("it is larger than the file system")
        self._runs = list(contents.runs(inode, 0, blocks))
        self._firsts = [run.logical for run in self._runs]
        _check_disjoint(self._runs)
        self._superblock = parse_journal_superblock(self.read(0), self._block_size, blocks)

    def position(self, place: int) -> int:
        """Where block `place` of the journal is, in bytes."""
        index = bisect_right(self._firsts, place) - 1
        if index < 0 or place >= self._runs[index].logical + self._runs[index].length:
            raise missing(f"the journal has a hole at block {place}")
        run = self._runs[index]
        return (run.physical + place - run.logical) * self._block_size

    def read(self, place: int) -> bytes:
        return self._image.pread(self._block_size, self.position(place))

    def replay(self, blocks_count: int) -> Replay:
        return replay(self._superblock, self.read, blocks_count)

    def fast_commits(self, sequence: int, inode_size: int) -> FastCommits:
        blocks = fast_commit_blocks(self._superblock)
        return parse_fast_commits(map(self.read, blocks), sequence, inode_size)


def _check_disjoint(runs: list[Run]) -> None:
    """Raises OSError(EUCLEAN) if runs overlap: a log that leads to the same block again could go on for ever."""
    end = 0
    for _, physical, length in sorted(runs, key=lambda run: run.physical):
        if physical < end:
            raise damaged("it has a block twice")
        end = physical + length
