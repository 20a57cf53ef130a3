"""Where the blocks of a file are: extent trees and indirect blocks (ifork.rst, blockmap.rst).

Both have leaves that map runs of blocks of the file to blocks on disk. The same `Leaf` serves for an extent block and
for an indirect block, whose single block numbers are joined into runs once. What lies between the runs reads as zeros:
holes, and extents that are allocated but were never written.

No tree can be deeper than its root says, and no range is walked twice, so that looking up n blocks of a hostile file
costs at most n steps on each level.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from viewfs.modules.formats.ext.checksums import crc32c, stored
from viewfs.modules.framework.damage import damaged

__all__ = [
    "BlockMap",
    "Branch",
    "ChangedMap",
    "ExtentMap",
    "IndirectMap",
    "Leaf",
    "Limits",
    "Run",
    "joined",
    "parse_extent_node",
    "parse_pointer_runs",
    "parse_pointers",
]

_EXTENT_MAGIC = 0xF30A
_EXTENT_MAX_DEPTH = 5
_EXTENT = struct.Struct("<IHHI")
_EXTENT_HEADER = struct.Struct("<HHHH4x")
_UNWRITTEN = 0x8000
#: A file has at most this many blocks, however they are mapped.
MAX_BLOCKS = 1 << 32
_DIRECT = 12


class Limits(NamedTuple):
    """Blocks of files lie between these."""

    first: int
    end: int
    block_size: int


class Run(NamedTuple):
    """`length` blocks of a file from `logical` on are on disk from `physical` on."""

    logical: int
    physical: int
    length: int


class Leaf(NamedTuple):
    """Runs, as three columns; unwritten extents are left out."""

    firsts: Sequence[int]
    lengths: Sequence[int]
    physicals: Sequence[int]


class Branch(NamedTuple):
    """An inner node of an extent tree: from `firsts[i]` on, look in block `children[i]`."""

    depth: int
    firsts: Sequence[int]
    children: Sequence[int]


def parse_extent_node(data: bytes, limits: Limits, depth: int | None = None, seed: int | None = None) -> Leaf | Branch:
    """The node of an extent tree in `data`: the root in i_block if `depth` is None, else a block of that depth.

    Raises OSError(EUCLEAN) for a wrong checksum or structure.
    """
    magic, count, capacity, found_depth = _EXTENT_HEADER.unpack_from(data)
    if magic != _EXTENT_MAGIC:
        raise damaged("an extent tree has a node without its magic number")
    if count > capacity or 12 + capacity * 12 > len(data):
        raise damaged(f"an extent tree has a node with an impossible number of entries, {count} of {capacity}")
    if found_depth > _EXTENT_MAX_DEPTH or (depth is not None and found_depth != depth):
        raise damaged(f"an extent tree has a node of the wrong depth, {found_depth}")
    if depth is not None and seed is not None:
        _check_extent_tail(data, 12 + capacity * 12, seed)
    if found_depth:
        return _parse_branch(data, count, found_depth, limits)
    return _parse_extents(data, count, limits)


def _check_extent_tail(data: bytes, tail: int, seed: int) -> None:
    """Check struct ext4_extent_tail, which follows the space for entries."""
    if stored(crc32c(memoryview(data)[:tail], seed)) != int.from_bytes(data[tail : tail + 4], "little"):
        raise damaged("the checksum of a block of extents is wrong")


def _parse_branch(data: bytes, count: int, depth: int, limits: Limits) -> Branch:
    if not count:
        raise damaged("an extent tree has an inner node without entries")
    fields = struct.unpack_from("<" + "IIHH" * count, data, 12)
    firsts = array("Q", fields[0::4])
    children = array("Q", (low | high << 32 for low, high in zip(fields[1::4], fields[2::4], strict=True)))
    _check_ascending(firsts, [1] * count)
    if min(children) <= limits.first or max(children) >= limits.end:
        raise damaged("an extent tree leads outside of the file system")
    return Branch(depth, firsts, children)


def _parse_extent(data: bytes, limits: Limits) -> Leaf:
    """As `_parse_extents`, for a node with one extent, as in most files."""
    first, length, high, low = _EXTENT.unpack_from(data, 12)
    physical = low | high << 32
    unwritten = length > _UNWRITTEN
    if unwritten:
        length -= _UNWRITTEN
    _check_ascending((first,), (length,))
    if not limits.first < physical <= limits.end - length:
        raise damaged(f"an extent lies outside of the file system, at block {physical}")
    return Leaf((), (), ()) if unwritten else Leaf((first,), (length,), (physical,))


def _parse_extents(data: bytes, count: int, limits: Limits) -> Leaf:
    if count == 1:
        return _parse_extent(data, limits)
    fields = struct.unpack_from("<" + "IHHI" * count, data, 12)
    firsts, lengths = fields[0::4], fields[1::4]
    physicals = [low | high << 32 for low, high in zip(fields[3::4], fields[2::4], strict=True)]
    unwritten = [length > _UNWRITTEN for length in lengths]
    lengths = tuple(length - _UNWRITTEN if length > _UNWRITTEN else length for length in lengths)
    _check_ascending(firsts, lengths)
    for physical, length in zip(physicals, lengths, strict=True):
        if not limits.first < physical <= limits.end - length:
            raise damaged(f"an extent lies outside of the file system, at block {physical}")
    if any(unwritten):
        written = [not state for state in unwritten]
        firsts = tuple(value for value, keep in zip(firsts, written, strict=True) if keep)
        lengths = tuple(value for value, keep in zip(lengths, written, strict=True) if keep)
        physicals = [value for value, keep in zip(physicals, written, strict=True) if keep]
    return Leaf(array("Q", firsts), array("Q", lengths), array("Q", physicals))


def _check_ascending(firsts: Sequence[int], lengths: Sequence[int]) -> None:
    free = 0
    for first, length in zip(firsts, lengths, strict=True):
        if first < free or not length:
            raise damaged("an extent tree has entries that are empty, overlap or are out of order")
        free = first + length
    if free > MAX_BLOCKS:
        raise damaged("an extent tree reaches beyond the largest possible file")


def parse_pointers(data: bytes, limits: Limits) -> Sequence[int]:
    """The block numbers of an indirect block, 0 for a hole. Raises OSError(EUCLEAN) for an impossible number."""
    pointers = array("I", data)
    if sys.byteorder == "big":
        pointers.byteswap()
    if max(pointers, default=0) >= limits.end:
        raise damaged("an indirect block leads outside of the file system")
    return pointers


def parse_pointer_runs(pointers: Iterable[int]) -> Leaf:
    """Block numbers as runs of consecutive ones."""
    firsts, lengths, physicals = array("Q"), array("Q"), array("Q")
    expected = 0
    for index, pointer in enumerate(pointers):
        if not pointer:
            expected = 0
        elif pointer == expected:
            lengths[-1] += 1
            expected += 1
        else:
            firsts.append(index)
            lengths.append(1)
            physicals.append(pointer)
            expected = pointer + 1
    return Leaf(firsts, lengths, physicals)


def _leaf_runs(leaf: Leaf, base: int, first: int, end: int) -> Iterator[Run]:
    """The parts of `leaf`, which counts from block `base` of the file, between blocks `first` and `end`."""
    firsts, lengths, physicals = leaf
    for index in range(max(bisect_right(firsts, first - base) - 1, 0), len(firsts)):
        begin = firsts[index] + base
        if begin >= end:
            return
        start, stop = max(begin, first), min(begin + lengths[index], end)
        if start < stop:
            yield Run(start, physicals[index] + start - begin, stop - start)


class BlockMap(Protocol):
    """Where the blocks of one inode are."""

    def runs(self, first: int, end: int) -> Iterator[Run]:
        """The runs between the blocks `first` and `end` of the file, in order; blocks in no run read as zeros."""

    def run_at(self, block: int) -> Run | None:
        """The whole run that `block` is in, if that is faster to find than with `runs`; else None."""


class ExtentMap:
    """The extent tree of one inode. `load` reads the node of a given depth at a block, checked and perhaps cached."""

    def __init__(self, root: bytes, limits: Limits, load: Callable[[int, int], Leaf | Branch]) -> None:
        self._root = parse_extent_node(root, limits)
        self._load = load

    def runs(self, first: int, end: int) -> Iterator[Run]:
        """The written runs between the blocks `first` and `end` of the file, in order."""
        return self._walk(self._root, first, end)

    def run_at(self, block: int) -> Run | None:
        """The extent that `block` is in, if there is one."""
        node = self._root
        while True:
            index = bisect_right(node.firsts, block) - 1
            if index < 0:
                return None
            if isinstance(node, Leaf):
                first, length = node.firsts[index], node.lengths[index]
                return Run(first, node.physicals[index], length) if block < first + length else None
            node = self._load(node.children[index], node.depth - 1)

    def _walk(self, node: Leaf | Branch, first: int, end: int) -> Iterator[Run]:
        if isinstance(node, Leaf):
            yield from _leaf_runs(node, 0, first, end)
            return
        depth, firsts, children = node
        for index in range(max(bisect_right(firsts, first) - 1, 0), len(firsts)):
            begin = firsts[index]
            if begin >= end:
                return
            stop = firsts[index + 1] if index + 1 < len(firsts) else MAX_BLOCKS
            yield from self._walk(self._load(children[index], depth - 1), max(first, begin), min(end, stop))


class IndirectMap:
    """i_block with twelve direct blocks and three trees of indirect blocks.

    `load_pointers` reads an indirect block of indirect blocks, `load_leaf` one of the file's blocks.
    """

    def __init__(
        self,
        block: bytes,
        limits: Limits,
        load_pointers: Callable[[int], Sequence[int]],
        load_leaf: Callable[[int], Leaf],
    ) -> None:
        pointers = parse_pointers(block, limits)
        self._direct = parse_pointer_runs(pointers[:_DIRECT])
        self._trees = pointers[_DIRECT:]
        self._width = limits.block_size // 4
        self._load_pointers = load_pointers
        self._load_leaf = load_leaf

    def run_at(self, block: int) -> Run | None:
        """None: runs have to be put together from pointers."""
        return None

    def runs(self, first: int, end: int) -> Iterator[Run]:
        """The allocated runs between the blocks `first` and `end` of the file, in order."""
        yield from _leaf_runs(self._direct, 0, first, end)
        base = _DIRECT
        for depth, block in enumerate(self._trees, 1):
            span = self._width**depth
            if first < base + span and base < end:
                yield from self._walk(block, depth, base, max(first, base), min(end, base + span))
            base += span

    def _walk(self, block: int, depth: int, base: int, first: int, end: int) -> Iterator[Run]:
        if not block:
            return
        if depth == 1:
            yield from _leaf_runs(self._load_leaf(block), base, first, end)
            return
        pointers = self._load_pointers(block)
        span = self._width ** (depth - 1)
        for index in range((first - base) // span, (end - 1 - base) // span + 1):
            begin = base + index * span
            yield from self._walk(pointers[index], depth - 1, begin, max(first, begin), min(end, begin + span))


class ChangedMap:
    """The map `base`, except for the blocks in `changes`: these are at the places there, or holes if that is block 0.

    `changes` are in order and don't overlap.
    """

    def __init__(self, base: BlockMap, changes: Sequence[Run]) -> None:
        self._base = base
        self._changes = changes
        self._firsts = [run.logical for run in changes]

    def run_at(self, block: int) -> Run | None:
        """None: the run of `base` may have changed in part."""
        return None

    def runs(self, first: int, end: int) -> Iterator[Run]:
        for index in range(max(bisect_right(self._firsts, first) - 1, 0), len(self._changes)):
            logical, physical, length = self._changes[index]
            start, stop = max(logical, first), min(logical + length, end)
            if start >= end:
                break
            if start >= stop:
                continue
            if first < start:
                yield from self._base.runs(first, start)
            if physical:
                yield Run(start, physical + start - logical, stop - start)
            first = stop
        if first < end:
            yield from self._base.runs(first, end)


def joined(runs: Iterator[Run]) -> Iterator[Run]:
    """`runs`, with those joined that are consecutive both in the file and on disk."""
    current: Run | None = None
    for run in runs:
        if current is None:
            current = run
            continue
        logical, physical, length = current
        if run.logical == logical + length and run.physical == physical + length:
            current = Run(logical, physical, length + run.length)
        else:
            yield current
            current = run
    if current is not None:
        yield current
