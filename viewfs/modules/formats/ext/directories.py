"""Looking up names and listing them, on top of the bytes of directories.

There are three ways from a name to an inode number. In a large hashed directory, the index is used, which takes two or
three blocks. Any other directory is read once and kept as a table of names; so is a hashed one that is used again and
again. A directory that is too large for a table is read up to the name, each time.

A damaged block hides only the names in it: listing gives those before and after it, and then the error; looking up
fails for a name that is in no other block. (The kernel skips such a block without an error.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from viewfs.modules.formats.ext.changes import DirectoryChanges
from viewfs.modules.formats.ext.content import Contents
from viewfs.modules.formats.ext.directory import Entry, parse_entries, parse_inline_entries, verify_block
from viewfs.modules.formats.ext.features import Compat, Incompat
from viewfs.modules.formats.ext.htree import IndexNode, IndexRoot, leaves, parse_node, parse_root
from viewfs.modules.formats.ext.image import Image
from viewfs.modules.formats.ext.inode import Inode, InodeFlags
from viewfs.modules.formats.ext.layout import Superblock
from viewfs.modules.formats.ext.mapping import MAX_BLOCKS
from viewfs.modules.formats.ext.namehash import HashVersion, name_hash
from viewfs.modules.framework.cache import Cache
from viewfs.modules.framework.damage import damaged, encrypted

__all__ = ["Directories"]

_CASEFOLD = int(InodeFlags.CASEFOLD)
_ENCRYPT = int(InodeFlags.ENCRYPT)
_INDEX = int(InodeFlags.INDEX)
_INLINE_DATA = int(InodeFlags.INLINE_DATA)

#: Bytes read at once when listing.
_BATCH = 65536
#: Bytes of directories that are kept as tables of names; a single one may take all of it.
_TABLES_CACHED = 16 << 20
#: Bytes of leaves and inner nodes of indexes that are kept, parsed.
_INDEXES_CACHED = 8 << 20
#: Directories whose look-ups are counted.
_ASKED_CACHED = 4096
#: A directory of at most this many blocks is made a table of at once, even if it has an index.
_FEW_BLOCKS = 4
#: The cookies of names that are in no block are above this: no directory is that large.
_ADDED = 1 << 48
_DOT, _DOTDOT = (b".", 12), (b"..", 24)
_DIRECTORY = 2
#: Consecutive blocks without a name after which a listing stops. Deleting leaves some; more than this are an attack.
_MAX_EMPTY_BLOCKS = 1 << 20


class _Names(NamedTuple):
    """The names of a directory, and the first error in one of its blocks."""

    by_name: Mapping[bytes, int]
    error: OSError | None = None

    def find(self, name: bytes) -> int | None:
        """Raises the error if `name` is not among the names that could be read."""
        found = self.by_name.get(name)
        if found is None and self.error is not None:
            raise _again(self.error)
        return found


class Directories:
    """Reads directories of one file system."""

    def __init__(
        self,
        image: Image,
        superblock: Superblock,
        contents: Contents,
        changes: Mapping[int, DirectoryChanges] | None = None,
    ) -> None:
        """`changes` are the names, by directory, that differ from the image."""
        self._changes = changes or {}
        self._image = image
        self._superblock = superblock
        self._contents = contents
        self._block_size = superblock.block_size
        self._inodes = superblock.inodes_count
        self._file_types = Incompat.FILETYPE in superblock.incompat
        self._indexes = Compat.DIR_INDEX in superblock.compat
        self._max_levels = 2 if Incompat.LARGE_DIR in superblock.incompat else 1
        self._tables: Cache[int, _Names] = Cache(_TABLES_CACHED)
        #: The first error of each directory that was found while it was listed.
        self._damage: Cache[int, OSError] = Cache(_ASKED_CACHED)
        self._asked: Cache[int, int] = Cache(_ASKED_CACHED)
        self._leaves: Cache[tuple[int, int], Mapping[bytes, int]] = Cache(_INDEXES_CACHED)
        self._nodes: Cache[tuple[int, int], IndexNode] = Cache(_INDEXES_CACHED)
        self._roots: Cache[int, IndexRoot] = Cache(_INDEXES_CACHED)

    # Listing

    def entries(self, inode: Inode, start: int) -> Iterator[Entry]:
        """The names after cookie `start`, in the order of the directory's blocks. Raises OSError."""
        changes = self._changes.get(inode.attributes.ino)
        if changes is None:
            return self._entries_on_disk(inode, start)
        return self._changed_entries(inode, start, changes)

    def _changed_entries(self, inode: Inode, start: int, changes: DirectoryChanges) -> Iterator[Entry]:
        if changes.parent is not None:
            kind = _DIRECTORY if self._file_types else 0
            for (name, cookie), number in ((_DOT, inode.attributes.ino), (_DOTDOT, changes.parent)):
                if cookie > start:
                    yield name, cookie, number, kind
        elif start < _ADDED:
            yield from (entry for entry in self._entries_on_disk(inode, start) if entry[0] not in changes.hidden)
        for cookie, (name, (number, kind)) in enumerate(changes.added.items(), _ADDED + 1):
            if cookie > start:
                yield name, cookie, number, kind

    def _entries_on_disk(self, inode: Inode, start: int) -> Iterator[Entry]:
        if inode.flags & _ENCRYPT:
            raise encrypted(f"directory {inode.attributes.ino}")
        if inode.flags & _INLINE_DATA:
            return iter([entry for entry in self._inline_entries(inode) if entry[1] > start])
        return self._entries(inode, start)

    def _inline_entries(self, inode: Inode) -> list[Entry]:
        return parse_inline_entries(
            self._contents.inline(inode),
            inode.attributes.ino,
            inodes=self._inodes,
            file_types=self._file_types,
            block_size=self._block_size,
        )

    def _entries(self, inode: Inode, start: int) -> Iterator[Entry]:
        number, blocks = inode.attributes.ino, self._block_count(inode)
        block = start // self._block_size
        empty = 0
        batch = 1
        while block < blocks:
            end = min(block + batch, blocks)
            for entries, error in self._parsed(inode, block, end):
                if error is not None:
                    self._damage.put(number, self._damage.get(number) or error)
                if entries and entries[0][1] <= start:
                    entries = [entry for entry in entries if entry[1] > start]
                yield from entries
                empty = 0 if entries else empty + 1
                if empty > _MAX_EMPTY_BLOCKS:
                    raise damaged(f"directory {number} has nothing but empty blocks")
            block = end
            batch = max(_BATCH // self._block_size, 1)
        # The damaged blocks may have been skipped in an earlier part of the listing.
        if (found := self._damage.get(number)) is not None:
            raise _again(found)

    def _block_count(self, inode: Inode) -> int:
        size, number = inode.attributes.size, inode.attributes.ino
        count, rest = divmod(size, self._block_size)
        if rest or not size or size > self._image.size or count > min(self._superblock.blocks_count, MAX_BLOCKS):
            raise damaged(f"directory {number} has an impossible size, {size}")
        return count

    def _parsed(self, inode: Inode, first: int, end: int) -> Iterator[tuple[list[Entry], OSError | None]]:
        """The names in each of the blocks from `first` to before `end`, and the error if the block is damaged."""
        size = self._block_size
        for block, data, start in self._blocks(inode, first, end):
            entries: list[Entry] = []
            if isinstance(data, OSError):
                yield entries, data
                continue
            try:
                stop = self._verified(inode, block, data, start)
                parse_entries(
                    data,
                    start,
                    stop,
                    block * size,
                    entries,
                    inodes=self._inodes,
                    file_types=self._file_types,
                    block_size=size,
                )
            except OSError as error:
                yield entries, error
            else:
                yield entries, None

    def _blocks(self, inode: Inode, first: int, end: int) -> Iterator[tuple[int, bytes | OSError, int]]:
        """For each block: its number, the bytes that contain it (or the error), and its position in these bytes."""
        size = self._block_size
        expected = first
        number = inode.attributes.ino
        # (A node of the extent tree that can't be read hides all blocks that follow.)
        for logical, physical, length in self._contents.runs(inode, first, end):
            if logical != expected:
                yield expected, damaged(f"directory {number} has a hole at block {expected}"), 0
            expected = logical + length
            data: bytes | None = None
            if self._image.available(length * size, physical * size) == length * size:
                with contextlib.suppress(OSError):
                    data = self._image.pread(length * size, physical * size)
            if data is None:
                for index in range(length):  # One by one, so that the readable blocks can still be listed.
                    yield logical + index, self._read_one(physical + index), 0
                continue
            for index in range(length):
                yield logical + index, data, index * size
        if expected < end:
            yield expected, damaged(f"directory {number} has a hole at block {expected}"), 0

    def _read_one(self, physical: int) -> bytes | OSError:
        try:
            return self._image.pread(self._block_size, physical * self._block_size)
        except OSError as error:
            return error

    def _verified(self, inode: Inode, block: int, data: bytes, start: int) -> int:
        """Check the checksum of a block; returns where its entries end."""
        end = start + self._block_size
        if inode.checksum_seed is None:
            return end
        indexed = self._indexes and bool(inode.flags & _INDEX)
        try:
            return verify_block(data, start, end, inode.checksum_seed, first=block == 0, indexed=indexed)
        except OSError as error:
            raise damaged(f"block {block} of directory {inode.attributes.ino}: {error.strerror}") from None

    # Looking up

    def lookup(self, inode: Inode, name: bytes) -> int | None:
        """The inode number that `name` stands for, or None. Raises OSError."""
        number = inode.attributes.ino
        changes = self._changes.get(number)
        if changes is not None:
            if name in changes.added:
                return changes.added[name][0]
            if changes.parent is not None:
                return {b".": number, b"..": changes.parent}.get(name)
            if name in changes.hidden:
                return None
        table = self._tables.get(number)
        if table is not None:
            return table.find(name)
        if inode.flags & _ENCRYPT:
            raise encrypted(f"directory {number}")
        if inode.flags & _INLINE_DATA:
            table = _Names(_table(self._inline_entries(inode)))
            return self._tables.put(number, table, self._block_size).find(name)
        blocks = self._block_count(inode)
        if blocks > _FEW_BLOCKS and self._indexes and inode.flags & (_INDEX | _CASEFOLD) == _INDEX:
            with contextlib.suppress(OSError):  # if the index or a leaf is damaged, all blocks are searched instead
                root = self._root(inode)
                if root is not None:
                    self._notice(inode, blocks)
                    found = self._indexed(inode, root, name)
                    if found is not None or self._hash_is_certain(name):
                        return found
        return self._linear(inode, name)

    def _notice(self, inode: Inode, blocks: int) -> None:
        """Count a look-up; after as many as the directory has blocks, make a table of it if it is not too large."""
        number = inode.attributes.ino
        asked = (self._asked.get(number) or 0) + 1
        self._asked.put(number, asked)
        if asked == blocks and inode.attributes.size <= _TABLES_CACHED:
            with contextlib.suppress(OSError):  # There is damage, but perhaps not where the index leads.
                self._linear(inode, b"")

    def _linear(self, inode: Inode, name: bytes) -> int | None:
        number, size = inode.attributes.ino, inode.attributes.size
        table: dict[bytes, int] = {}
        keep = size <= _TABLES_CACHED
        damage: OSError | None = None
        try:
            for entries, error in self._parsed(inode, 0, self._block_count(inode)):
                damage = damage or error
                if keep:
                    for found, _, target, _ in entries:
                        table.setdefault(found, target)
                else:
                    for found, _, target, _ in entries:
                        if found == name:
                            return target
        except OSError as error:
            damage = damage or error  # the rest of the block map can't be read
        names = _Names(table, damage)
        return self._tables.put(number, names, size).find(name) if keep else names.find(name)

    def _root(self, inode: Inode) -> IndexRoot | None:
        number = inode.attributes.ino
        root = self._roots.get(number)
        if root is None:
            root = parse_root(self._index_block(inode, 0), max_levels=self._max_levels)
            if root is not None:
                self._roots.put(number, root, self._block_size)
        return root

    def _indexed(self, inode: Inode, root: IndexRoot, name: bytes) -> int | None:
        if name in (b".", b".."):  # They are in block 0, and not in the order of the hashes.
            return self._leaf(inode, 0).get(name)
        version = root.hash_version
        if version <= HashVersion.TEA and self._superblock.signed_hash is False:
            version += HashVersion.LEGACY_UNSIGNED
        if version > HashVersion.TEA_UNSIGNED:
            return self._linear(inode, name)
        wanted = name_hash(HashVersion(version), name, self._superblock.hash_seed)
        for block in leaves(root, wanted, lambda node: self._node(inode, node)):
            found = self._leaf(inode, block).get(name)
            if found is not None:
                return found
        return None

    def _hash_is_certain(self, name: bytes) -> bool:
        """Does a miss in the index mean that there is no such name? Not for characters above 127 if the superblock does
        not tell how to hash them."""
        return self._superblock.signed_hash is not None or name.isascii()

    def _node(self, inode: Inode, block: int) -> IndexNode:
        key = inode.attributes.ino, block
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes.put(key, parse_node(self._index_block(inode, block)), self._block_size)
        return node

    def _leaf(self, inode: Inode, block: int) -> Mapping[bytes, int]:
        key = inode.attributes.ino, block
        table = self._leaves.get(key)
        if table is None:
            self._check_block(inode, block)
            entries, error = next(self._parsed(inode, block, block + 1))
            if error is not None:
                raise error
            table = self._leaves.put(key, _table(entries), self._block_size)
        return table

    def _index_block(self, inode: Inode, block: int) -> bytes:
        self._check_block(inode, block)
        _, data, start = next(self._blocks(inode, block, block + 1))
        if isinstance(data, OSError):
            raise data
        self._verified(inode, block, data, start)
        return data

    def _check_block(self, inode: Inode, block: int) -> None:
        if block >= self._block_count(inode):
            raise damaged(f"the index of directory {inode.attributes.ino} leads to block {block}, which is not there")


def _again(error: OSError) -> OSError:
    """A copy of `error` to raise: an exception raised twice gets a longer traceback each time, and keeps it alive."""
    return OSError(error.errno, error.strerror)


def _table(entries: list[Entry]) -> Mapping[bytes, int]:
    table: dict[bytes, int] = {}
    for name, _, target, _ in entries:
        table.setdefault(name, target)
    return table
