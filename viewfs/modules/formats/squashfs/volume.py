"""A squashfs file system in an image, as the module that mounts it uses it.

The parsers (`layout`, `inode`, `directory`) turn bytes into values and know nothing of images. `metadata` reads blocks
and tables, `directories` names, `content` what is in files, `xattr` extended attributes. Everything is read when it is
asked for. Every byte is taken to be hostile: what contradicts the format raises OSError(EUCLEAN), and what lies beyond
the end of the image raises OSError(EIO).

A node is the reference of an inode, with 2 added: it leads to the inode without a table, so the file system need not
remember the inodes that were looked up, and has no state at all. stat(2) shows another number, the inode number.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator, Mapping
from struct import Struct

from viewfs.errors import DamagedSourceError, os_error
from viewfs.modules.api import Attributes, Buffer, FileRange, FileSystemStatistics, Source
from viewfs.modules.formats.squashfs.codecs import decompressor
from viewfs.modules.formats.squashfs.content import Contents
from viewfs.modules.formats.squashfs.directories import Directories
from viewfs.modules.formats.squashfs.inode import (
    BEHIND_TARGET,
    INODE_SIZE,
    NODE_OF_REFERENCE,
    Inode,
    parse_inode,
    place_of,
)
from viewfs.modules.formats.squashfs.layout import NONE_32, SUPERBLOCK_SIZE, Flags, Superblock, parse_superblock
from viewfs.modules.formats.squashfs.metadata import Metadata, Table
from viewfs.modules.formats.squashfs.offsets import find_offset
from viewfs.modules.formats.squashfs.xattr import Xattrs
from viewfs.modules.framework.damage import damaged
from viewfs.modules.framework.owners import AS_STORED, Owners
from viewfs.modules.framework.sources import Section, joined

__all__ = ["Volume"]

_ID = Struct("<I")
_EXPORT = Struct("<Q")
_PATH_MAX = 4095
_DIRECTORY_KIND = 4


class Volume:
    """One file system. Any thread may call its methods, and several at once."""

    def __init__(self, image: Section, superblock: Superblock, owners: Owners) -> None:
        """Raises OSError if a table is missing."""
        self._superblock = superblock
        decompress = decompressor(superblock.compression)
        self._metadata = metadata = Metadata(image, decompress)
        ids = Table(image, metadata, superblock.id_table, superblock.id_count, _ID, "owner")
        stored = [ids[index][0] for index in range(superblock.id_count)]
        self._users = [owners.user(number) for number in stored]
        self._groups = [owners.group(number) for number in stored]
        self._directories = Directories(metadata, superblock)
        self._contents = Contents(image, superblock, metadata, decompress)
        self._xattrs = None
        if superblock.xattr_table is not None:
            self._xattrs = Xattrs(image, metadata, superblock.xattr_table)
        self._exports: Table | None = None
        if superblock.export_table is not None:
            self._exports = Table(
                image, metadata, superblock.export_table, superblock.inode_count, _EXPORT, "inode number"
            )
        #: The caches that count hits and misses.
        self.caches = (metadata.blocks, self._contents.blocks)
        #: Where the file system begins in its source, in bytes.
        self.offset = image.offset
        #: The node of the root directory.
        self.root = superblock.root_reference + NODE_OF_REFERENCE
        #: There are no extended attributes anywhere.
        self.no_xattrs = self._xattrs is None
        #: As mksquashfs spells it.
        self.compression = superblock.compression.name.lower()
        self.block_size = superblock.block_size
        self.inode_count = superblock.inode_count
        self.made_at = superblock.made_at
        self.flags: Flags = superblock.flags

    def call_before_work(self, function: Callable[[], None]) -> None:
        """`function` is to be called before a block of a file is decompressed."""
        self._contents.about_to_work = function

    @classmethod
    def open(
        cls, source: Source, *, offset: int | None = None, name: str = "image", owners: Owners = AS_STORED
    ) -> Volume:
        """The file system that begins at byte `offset` of `source`, or where it is found; `name` is for messages.

        Raises DamagedSourceError if there is none, if it can't be read at all, or if it uses something unknown.
        """
        if offset is None:
            offset = find_offset(source, anywhere=True) or 0
        if offset < 0:
            raise DamagedSourceError(f"{name} has nothing at byte {offset}", remedy="offsets count from its beginning")
        section = Section(source, offset)
        superblock = parse_superblock(section.pread_up_to(SUPERBLOCK_SIZE, 0), name)
        section = Section(source, offset, superblock.bytes_used)
        try:
            volume = cls(section, superblock, owners)
            if not stat.S_ISDIR(volume.attributes(volume.root).mode):
                raise os_error(errno.ENOTDIR)
        except OSError as error:
            what = "is cut short" if section.size < superblock.bytes_used else "is damaged"
            raise DamagedSourceError(f"{name} {what}: {error.strerror or error}") from None
        return volume

    @staticmethod
    def probe(source: Source) -> bool:
        """Is there a file system at the beginning of `source`, or behind a program there? Never raises."""
        try:
            return find_offset(source, anywhere=False) is not None
        except (OSError, OverflowError, ValueError):
            return False

    def _inode(self, node: int) -> Inode:
        reference = node - NODE_OF_REFERENCE
        if reference < 0:
            raise os_error(errno.ESTALE)
        position = self._superblock.inode_table + (reference >> 16)
        if position >= self._superblock.directory_table:
            raise damaged(f"inode {reference:#x} is not in the table of inodes")
        data, start = self._metadata.head(position, reference & 0xFFFF, INODE_SIZE)
        return parse_inode(data, start, node, self._users, self._groups)

    def attributes(self, node: int) -> Attributes:
        """What stat(2) returns for `node`. Raises OSError."""
        return self._inode(node).attributes

    def node(self, number: int) -> int:
        """The node of an inode number. Raises OSError(ESTALE) if the image has no export table (-no-exports)."""
        if self._exports is None:
            raise os_error(errno.ESTALE)
        reference = self._exports[number - 1][0]
        if reference >> 16 >= self._superblock.directory_table - self._superblock.inode_table:
            raise damaged(f"inode number {number} leads out of the table of inodes")
        return reference + NODE_OF_REFERENCE

    def _directory(self, node: int) -> Inode:
        inode = self._inode(node)
        if not stat.S_ISDIR(inode.attributes.mode):
            raise os_error(errno.ENOTDIR)
        return inode

    def lookup(self, directory: int, name: bytes) -> int | None:
        """The node that `name` stands for in `directory`, or None. Raises OSError."""
        inode = self._directory(directory)
        if name == b".":
            return directory
        if name == b"..":
            return directory if directory == self.root else self.node(inode.parent)
        reference = self._directories.lookup(inode, name)
        return None if reference is None else reference + NODE_OF_REFERENCE

    def entries(self, directory: int, start: int = 0) -> Iterator[tuple[bytes, int, int, int]]:
        """(name, cookie, node, DT_* type) for each name after cookie `start`, `.` and `..` included.

        `..` has the node of the directory itself if that of its parent is not known. Raises OSError, also during the
        iteration, after the names before the damage.
        """
        inode = self._directory(directory)
        if start < 1:
            yield b".", 1, directory, _DIRECTORY_KIND
        if start < 2:
            try:
                parent = directory if directory == self.root else self.node(inode.parent)
            except OSError:
                parent = directory
            yield b"..", 2, parent, _DIRECTORY_KIND
        for name, cookie, reference, _number, kind in self._directories.entries(inode, start):
            yield name, cookie, reference + NODE_OF_REFERENCE, kind

    def names(self, directory: int, start: int = 0) -> Iterator[tuple[bytes, int, int, int]]:
        """As `entries`, with inode numbers in place of nodes; that of `..` is not looked up."""
        inode = self._directory(directory)
        number = inode.attributes.shown_ino
        if start < 1:
            yield b".", 1, number, _DIRECTORY_KIND
        if start < 2:
            yield b"..", 2, number if directory == self.root else inode.parent, _DIRECTORY_KIND
        for name, cookie, _reference, shown, kind in self._directories.entries(inode, start):
            yield name, cookie, shown, kind

    def read(self, node: int, offset: int, size: int) -> bytes:
        """As `read_pieces`, joined."""
        return joined(self.read_pieces(node, offset, size))

    def read_pieces(self, node: int, offset: int, size: int) -> list[Buffer | FileRange]:
        """Up to `size` bytes of a regular file from `offset`, fewer only at its end. Raises OSError."""
        inode = self._inode(node)
        if not stat.S_ISREG(inode.attributes.mode):
            raise os_error(errno.EISDIR if stat.S_ISDIR(inode.attributes.mode) else errno.EINVAL)
        return self._contents.read(inode, max(offset, 0), size)

    def readlink(self, node: int) -> bytes:
        """Where a symbolic link points to. Raises OSError."""
        inode = self._inode(node)
        if not stat.S_ISLNK(inode.attributes.mode):
            raise os_error(errno.EINVAL)
        if inode.attributes.size > _PATH_MAX:
            raise damaged(f"inode {inode.attributes.shown_ino} is a symbolic link of an impossible length")
        target = self._behind(inode, inode.attributes.size)
        if not target or b"\0" in target:
            raise damaged(f"inode {inode.attributes.shown_ino} is a symbolic link to nowhere")
        return target

    def _behind(self, inode: Inode, size: int) -> bytes:
        """The first `size` bytes of an inode's tail."""
        position, offset = place_of(inode, self._superblock.inode_table)
        return self._metadata.read(*self._metadata.skip(position, offset, inode.tail), size)

    def xattrs(self, node: int) -> Mapping[bytes, bytes]:
        """Extended attributes by full name. Raises OSError."""
        inode = self._inode(node)
        index = inode.xattrs
        if index == BEHIND_TARGET:
            position, offset = place_of(inode, self._superblock.inode_table)
            at = self._metadata.skip(position, offset, inode.tail + min(inode.attributes.size, _PATH_MAX))
            index = int.from_bytes(self._metadata.read(*at, 4), "little")
        if index == NONE_32 or self._xattrs is None:
            return {}
        return self._xattrs.of(index)

    def statistics(self) -> FileSystemStatistics:
        """What statfs(2) returns (squashfs_statfs)."""
        superblock = self._superblock
        return FileSystemStatistics(
            block_size=superblock.block_size,
            blocks=-(-superblock.bytes_used // superblock.block_size),
            files=superblock.inode_count,
            name_max=255,
        )
