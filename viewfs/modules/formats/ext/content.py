"""The contents of inodes: the bytes of files, however they are stored, and extended attributes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from viewfs.modules.api import Buffer, FileRange
from viewfs.modules.formats.ext.image import Image
from viewfs.modules.formats.ext.inode import Inode, InodeFlags
from viewfs.modules.formats.ext.layout import Superblock
from viewfs.modules.formats.ext.mapping import (
    MAX_BLOCKS,
    BlockMap,
    Branch,
    ChangedMap,
    ExtentMap,
    IndirectMap,
    Leaf,
    Limits,
    Run,
    parse_extent_node,
    parse_pointer_runs,
    parse_pointers,
)
from viewfs.modules.formats.ext.mapping import (
    joined as joined_runs,
)
from viewfs.modules.formats.ext.table import InodeTable
from viewfs.modules.formats.ext.xattr import SYSTEM, Attribute, acl_to_wire, parse_block, parse_inode_tail, verify_hash
from viewfs.modules.framework.cache import Cache
from viewfs.modules.framework.damage import damaged, encrypted
from viewfs.modules.framework.sources import joined

__all__ = ["Contents"]

_ENCRYPT = int(InodeFlags.ENCRYPT)
_EXTENTS = int(InodeFlags.EXTENTS)
_INLINE_DATA = int(InodeFlags.INLINE_DATA)
_EA_INODE = int(InodeFlags.EA_INODE)
_MAPS_CACHED = 4096
#: Blocks that are mapped at once, at least: if they are contiguous, reads of the rest need no look-up.
_WINDOW = 4096
#: Bytes of metadata blocks that are kept parsed.
_NODE_BYTES_CACHED = 4 << 20
_INLINE_ATTRIBUTE = b"data"
_PATH_MAX = 4096


class Contents:
    """Reads the contents of the inodes of one file system."""

    def __init__(
        self,
        image: Image,
        superblock: Superblock,
        table: InodeTable,
        changes: Mapping[int, Sequence[Run]] | None = None,
    ) -> None:
        """`changes` are the runs, by inode, that differ from the image (see `mapping.ChangedMap`)."""
        self._image = image
        self._changes = changes or {}
        self._table = table
        self._block_size = superblock.block_size
        self._cluster_size = superblock.cluster_size
        self.limits = Limits(superblock.first_data_block, superblock.blocks_count, superblock.block_size)
        self._seed = superblock.checksum_seed
        self._block_seed = superblock.checksum_seed if superblock.metadata_checksums else None
        self._maps: Cache[int, BlockMap] = Cache(_MAPS_CACHED)
        self._recent: Cache[int, Run] = Cache(_MAPS_CACHED)
        self._nodes: Cache[tuple[int, int, int], Leaf | Branch] = Cache(_NODE_BYTES_CACHED)
        self._pointers: Cache[int, Sequence[int]] = Cache(_NODE_BYTES_CACHED)
        self._leaves: Cache[int, Leaf] = Cache(_NODE_BYTES_CACHED)

    # Bytes

    def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """As `read_pieces`, joined."""
        return joined(self.read_pieces(inode, offset, size))

    def read_pieces(self, inode: Inode, offset: int, size: int) -> list[Buffer | FileRange]:
        """Up to `size` bytes from `offset`, fewer only at the end. Raises OSError(EUCLEAN), EIO, or ENOKEY."""
        if inode.flags & _ENCRYPT:
            raise encrypted(f"inode {inode.attributes.ino}")
        end = min(offset + size, inode.attributes.size)
        if offset < 0 or offset >= end:
            return []
        if end > MAX_BLOCKS * self._block_size:
            # To return fewer bytes would mean the end of the file.
            raise damaged(f"inode {inode.attributes.ino} has {inode.attributes.size} bytes, which can't be")
        if inode.flags & _INLINE_DATA:
            # A file that was extended without being written to is still inline, and reads as zeros beyond its data.
            return [self.inline(inode)[offset:end].ljust(end - offset, b"\0")]
        number, block_size = inode.attributes.ino, self._block_size
        first, last = offset // block_size, (end - 1) // block_size
        run = self._recent.get(number)
        if run is None or first < run.logical or last >= run.logical + run.length:
            run = self._map(inode).run_at(first)
            if run is None or last >= run.logical + run.length:
                pieces, run = self._pieces(inode, offset, end)
                if run is not None:
                    self._recent.put(number, run)
                return pieces
            self._recent.put(number, run)
        return [self._image.span(end - offset, (run.physical - run.logical) * block_size + offset)]

    def _pieces(self, inode: Inode, offset: int, end: int) -> tuple[list[Buffer | FileRange], Run | None]:
        """The bytes between `offset` and `end`, with one piece for each contiguous part of the image; and the last run.

        The look-up is for a range beyond `end`, so that the last run also serves the next read. But no run is fetched
        once `end` is reached: damage behind it must not make this read fail.
        """
        block_size = self._block_size
        pieces: list[Buffer | FileRange] = []
        place, start, stop = 0, offset, offset  # Bytes from `start` to `stop` are at `place`, and are not read yet.
        run: Run | None = None
        first = offset // block_size
        for run in self._map(inode).runs(first, max(-(-end // block_size), first + _WINDOW)):
            logical, physical, length = run
            begin, finish = max(logical * block_size, offset), min((logical + length) * block_size, end)
            if begin >= end:
                break
            here = (physical - logical) * block_size + begin
            if begin != stop or here != place + stop - start:
                if start < stop:
                    pieces.append(self._image.span(stop - start, place))
                if stop < begin:
                    pieces.append(bytes(begin - stop))
                place, start = here, begin
            stop = finish
            if stop == end:
                break
        if start < stop:
            pieces.append(self._image.span(stop - start, place))
        if stop < end:
            pieces.append(bytes(end - stop))
        return pieces, run

    def runs(self, inode: Inode, first: int, end: int) -> Iterator[Run]:
        """The runs of the blocks from `first` to before `end`; what is between the runs reads as zeros."""
        return joined_runs(self._map(inode).runs(first, end))

    def _map(self, inode: Inode) -> BlockMap:
        number = inode.attributes.ino
        found = self._maps.get(number)
        if found is None:
            found = self._map_on_disk(inode)
            if number in self._changes:
                found = ChangedMap(found, self._changes[number])
            self._maps.put(number, found)
        return found

    def _map_on_disk(self, inode: Inode) -> BlockMap:
        if not inode.flags & _EXTENTS:
            return IndirectMap(inode.block, self.limits, self._load_pointers, self._load_leaf)
        number, seed = inode.attributes.ino, inode.checksum_seed

        def load(block: int, depth: int) -> Leaf | Branch:
            key = number, block, depth
            node = self._nodes.get(key)
            if node is None:
                node = parse_extent_node(self._block(block), self.limits, depth, seed)
                self._nodes.put(key, node, self._block_size)
            return node

        return ExtentMap(inode.block, self.limits, load)

    def _load_pointers(self, block: int) -> Sequence[int]:
        found = self._pointers.get(block)
        if found is None:
            found = self._pointers.put(block, parse_pointers(self._block(block), self.limits), self._block_size)
        return found

    def _load_leaf(self, block: int) -> Leaf:
        found = self._leaves.get(block)
        if found is None:
            pointers = parse_pointers(self._block(block), self.limits)
            found = self._leaves.put(block, parse_pointer_runs(pointers), self._block_size)
        return found

    def _block(self, block: int) -> bytes:
        return self._image.pread(self._block_size, block * self._block_size)

    def inline(self, inode: Inode) -> bytes:
        """Content that is in the inode: in i_block, continued in the attribute system.data (inlinedata.rst)."""
        for attribute in parse_inode_tail(inode.tail):
            if attribute.space == SYSTEM and attribute.name == _INLINE_ATTRIBUTE:
                if attribute.value_inode:
                    raise damaged(f"the content of inode {inode.attributes.ino} is not where inline_data has it")
                return inode.block + attribute.value
        return inode.block

    def link_target(self, inode: Inode) -> bytes:
        """What a symbolic link points to. Raises OSError."""
        number, size = inode.attributes.ino, inode.attributes.size
        if inode.flags & _ENCRYPT:
            raise encrypted(f"inode {number}")
        if not 0 < size <= min(self._block_size, _PATH_MAX):
            raise damaged(f"inode {number} is a symbolic link of an impossible length, {size}")
        if inode.flags & _INLINE_DATA:
            target = self.inline(inode)[:size]
        elif size < len(inode.block) and inode.attributes.blocks == self._attribute_sectors(inode):
            target = inode.block[:size]  # No blocks for content, so i_block has the target instead of their numbers.
        else:
            target = self.read(inode, 0, size)
        if len(target) != size or b"\0" in target:
            raise damaged(f"inode {number} is a symbolic link that is shorter than its length")
        return target

    def _attribute_sectors(self, inode: Inode) -> int:
        """The part of i_blocks that is for extended attributes."""
        return self._cluster_size // 512 if inode.xattr_block else 0

    # Extended attributes

    def attributes(self, inode: Inode) -> Mapping[bytes, bytes]:
        """Extended attributes by name. Values with an inode of their own are read when they are asked for."""
        if not inode.xattr_block and not inode.tail:
            return {}
        found: dict[bytes, Attribute] = {}
        for attribute in (*parse_inode_tail(inode.tail), *self._block_attributes(inode)):
            name = attribute.full_name
            if name is not None:
                found.setdefault(name, attribute)
        return _Attributes(found, self)

    def _block_attributes(self, inode: Inode) -> Sequence[Attribute]:
        block = inode.xattr_block
        if not block:
            return ()
        if not self.limits.first < block < self.limits.end:
            raise damaged(f"inode {inode.attributes.ino} has its extended attributes outside of the file system")
        return parse_block(self._block(block), block, self._block_seed)

    def attribute_value(self, attribute: Attribute) -> bytes:
        value = attribute.value
        if attribute.value_inode:
            inode = self._table.inode(attribute.value_inode)
            if not inode.flags & _EA_INODE or inode.attributes.size != attribute.value_size:
                raise damaged(f"inode {attribute.value_inode} is not the value of an extended attribute")
            value = self.read(inode, 0, attribute.value_size)
            verify_hash(attribute, value, inode.raw_atime, self._seed)
        return acl_to_wire(value) if attribute.is_acl else value


class _Attributes(Mapping[bytes, bytes]):
    """Extended attributes of one inode, whose values are only read when they are asked for."""

    def __init__(self, attributes: Mapping[bytes, Attribute], contents: Contents) -> None:
        self._attributes = attributes
        self._contents = contents

    def __getitem__(self, name: bytes) -> bytes:
        return self._contents.attribute_value(self._attributes[name])

    def __contains__(self, name: object) -> bool:
        return name in self._attributes

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._attributes)

    def __len__(self) -> int:
        return len(self._attributes)

    def __repr__(self) -> str:
        return f"<extended attributes {', '.join(os.fsdecode(name) for name in self._attributes)}>"
