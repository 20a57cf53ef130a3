"""An ext2, ext3 or ext4 file system in an image, as the module that mounts it uses it.

The parsers (`layout`, `inode`, `mapping`, `directory`, `htree`, `xattr`, `journal`) turn bytes into values and know
nothing of images. `image` reads bytes, `table` inodes, `content` what is in them and `directories` names; `recovery`
replays the journal, and `changes` its fast commits. Everything is read when it is asked for, and nothing is ever
written. Every byte is taken to be hostile: what contradicts the format raises OSError(EUCLEAN), and what lies beyond
the end of the image raises OSError(EIO).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Mapping, Sequence

from viewfs.errors import DamagedSourceError, os_error
from viewfs.modules.api import Attributes, Buffer, FileRange, FileSystemStatistics, Source
from viewfs.modules.formats.ext.changes import NO_CHANGES, Base, Changes, replay_fast_commits
from viewfs.modules.formats.ext.content import Contents
from viewfs.modules.formats.ext.directories import Directories
from viewfs.modules.formats.ext.features import Compat, Incompat, feature_names
from viewfs.modules.formats.ext.image import Image
from viewfs.modules.formats.ext.layout import MAGIC, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock, uuid_text
from viewfs.modules.formats.ext.recovery import NOTHING_RECOVERED, Recovered, fast_commits_warning, recover
from viewfs.modules.formats.ext.superblocks import find_superblock, has_backup
from viewfs.modules.formats.ext.table import InodeTable
from viewfs.modules.framework.sources import joined

__all__ = ["ROOT", "Volume"]

#: The inode number of the root directory (special_inodes.rst).
ROOT = 2


class Volume:
    """One file system. Any thread may call its methods, and several at once."""

    def __init__(
        self, image: Image, superblock: Superblock, recovered: Recovered, changes: Changes = NO_CHANGES
    ) -> None:
        self._superblock = superblock
        self._table = InodeTable(image, superblock, changes.inodes)
        self._contents = Contents(image, superblock, self._table, changes.runs)
        self._directories = Directories(image, superblock, self._contents, changes.directories)
        # The counts in the superblock are those of the last unmount.
        counted = self._table.free() if recovered.transactions else None
        free_blocks, free_inodes = counted or (superblock.free_blocks, superblock.free_inodes)
        free_blocks -= changes.sectors * 512 // superblock.block_size
        self._free = max(free_blocks, 0), max(free_inodes - changes.inode_count, 0)
        self.label = superblock.label
        self.uuid = uuid_text(superblock.uuid)
        #: As mke2fs spells them.
        self.features = feature_names(superblock.compat, superblock.incompat, superblock.ro_compat)
        #: Transactions of the journal that were replayed, and fast commits.
        self.replayed = recovered.transactions + recovered.fast_commits.commits
        #: What is wrong with the image although it can be read: to be shown, one line each.
        self.warnings = recovered.warnings
        #: The warnings of the image itself (`Image.warn`); more may be added later.
        self.damage: Sequence[str] = image.warnings
        self.root = ROOT
        #: There are no extended attributes anywhere.
        self.no_xattrs = Compat.EXT_ATTR not in superblock.compat

    @classmethod
    def open(cls, source: Source, *, offset: int = 0, name: str = "image", replay: bool = True) -> Volume:
        """The file system that begins at byte `offset` of `source`; `name` is for messages.

        An unclean journal is replayed, in memory, unless `replay` is false (as with `mount -o noload`). Raises
        DamagedSourceError if there is no file system, if it can't be read at all, or if it has unsupported features.
        """
        image = Image(source, offset, name)
        superblock, error = find_superblock(image, name)
        recovered = NOTHING_RECOVERED
        if replay:
            table = InodeTable(image, superblock)
            contents = Contents(image, superblock, table)
            recovered = recover(image, superblock, table, contents, name, from_backup=error is not None)
            if recovered.transactions:
                superblock, error = find_superblock(image, name)
        if error is not None:
            warning = f"{error}; the copy in group {superblock.group} is used"
            recovered = recovered._replace(warnings=(warning, *recovered.warnings))
        volume = cls(image, superblock, recovered)
        if recovered.fast_commits.tags:
            changes = replay_fast_commits(recovered.fast_commits.tags, volume._as_base())
            warnings = recovered.warnings
            if changes.stopped:
                warnings += (fast_commits_warning(changes.stopped),)
            if changes.without_extents:
                numbers = ", ".join(map(str, changes.without_extents[:10]))
                warnings += (f"mounting it may lose content that is read here, of files without extents: {numbers}",)
            recovered = recovered._replace(warnings=warnings)
            volume = cls(image, superblock, recovered, changes)
        try:
            if not stat.S_ISDIR(volume.attributes(ROOT).mode):
                raise os_error(errno.ENOTDIR)
        except OSError as reason:
            raise DamagedSourceError(f"the root directory of {name} can't be read: {reason.strerror}") from None
        return volume

    def _as_base(self) -> Base:
        """This file system, as the state to which fast commits are applied."""
        return Base(
            raw=self._table.raw,
            inode=self._table.inode,
            lookup=self.lookup,
            form=self._table.format,
            limits=self._contents.limits,
            inodes_count=self._superblock.inodes_count,
            file_types=Incompat.FILETYPE in self._superblock.incompat,
        )

    @staticmethod
    def probe_copies(source: Source) -> bool:
        """Is there a copy of a superblock where mke2fs puts them, and none at the beginning? Never raises."""
        try:
            return has_backup(Image(source, 0))
        except (OSError, OverflowError, ValueError):
            return False

    @staticmethod
    def probe(source: Source, offset: int = 0) -> bool:
        """Is there a superblock where it should be? Never raises."""
        try:
            data = source.pread(SUPERBLOCK_SIZE, offset + SUPERBLOCK_OFFSET)
        except (OSError, OverflowError, ValueError):
            return False
        return len(data) == SUPERBLOCK_SIZE and int.from_bytes(data[0x38:0x3A], "little") == MAGIC and data[0x18] <= 6

    def attributes(self, inode: int) -> Attributes:
        """What stat(2) returns for `inode`, with the ids that are on disk. Raises OSError."""
        return self._table.inode(inode).attributes

    def lookup(self, directory: int, name: bytes) -> int | None:
        """The inode number that `name` stands for in `directory`, or None. Raises OSError."""
        inode = self._table.inode(directory)
        if not stat.S_ISDIR(inode.attributes.mode):
            raise os_error(errno.ENOTDIR)
        return self._directories.lookup(inode, name)

    def entries(self, directory: int, start: int = 0) -> Iterator[tuple[bytes, int, int, int]]:
        """(name, cookie, inode, EXT4_FT_* type) for each name after cookie `start`, `.` and `..` included.

        Cookies grow: each is the position in the directory where its entry ends, in bytes. Raises OSError, also during
        the iteration, after the names before the damage.
        """
        inode = self._table.inode(directory)
        if not stat.S_ISDIR(inode.attributes.mode):
            raise os_error(errno.ENOTDIR)
        return self._directories.entries(inode, max(start, 0))

    #: stat(2) shows the inode numbers of `entries`.
    names = entries

    def read(self, inode: int, offset: int, size: int) -> bytes:
        """As `read_pieces`, joined."""
        return joined(self.read_pieces(inode, offset, size))

    def read_pieces(self, inode: int, offset: int, size: int) -> list[Buffer | FileRange]:
        """Up to `size` bytes of a regular file from `offset`, fewer only at its end. Raises OSError."""
        found = self._table.inode(inode)
        if not stat.S_ISREG(found.attributes.mode):
            raise os_error(errno.EISDIR if stat.S_ISDIR(found.attributes.mode) else errno.EINVAL)
        return self._contents.read_pieces(found, offset, size)

    def readlink(self, inode: int) -> bytes:
        """Where a symbolic link points to. Raises OSError."""
        found = self._table.inode(inode)
        if not stat.S_ISLNK(found.attributes.mode):
            raise os_error(errno.EINVAL)
        return self._contents.link_target(found)

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        """Extended attributes by full name. A value in an inode of its own is read, and checked, when it is accessed.

        Access control lists are as getxattr(2) returns them, with the ids that are on disk. Raises OSError.
        """
        return self._contents.attributes(self._table.inode(inode))

    def statistics(self) -> FileSystemStatistics:
        """What statfs(2) returns."""
        superblock = self._superblock
        free_blocks, free_inodes = self._free
        kept = superblock.reserved_blocks + self._kept_for_splits()
        return FileSystemStatistics(
            block_size=superblock.block_size,
            blocks=max(superblock.blocks_count - superblock.overhead, 0),
            free_blocks=free_blocks,
            available_blocks=max(free_blocks - kept, 0),
            files=superblock.inodes_count,
            free_files=free_inodes,
        )

    def _kept_for_splits(self) -> int:
        """The blocks that the kernel reserves for extent trees that grow when a hole is written to: statfs(2) does not
        count them as available (ext4_calculate_resv_clusters)."""
        superblock = self._superblock
        if Incompat.EXTENT not in superblock.incompat:
            return 0
        cluster = superblock.cluster_size // superblock.block_size
        return min(superblock.blocks_count // cluster // 50, 4096) * cluster
