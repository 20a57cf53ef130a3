"""The index of hashed directories (Documentation/filesystems/ext4/directory.rst, "Hash Tree Directories").

The nodes of the tree are sorted by hash. An entry with an odd hash says that its block continues the names of the same
hash from the block before. Only then does a lookup go on to a second leaf.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from viewfs.modules.framework.damage import damaged

__all__ = ["IndexNode", "IndexRoot", "leaves", "parse_node", "parse_root"]

_BLOCK_MASK = 0x0FFFFFFF
#: Leaves that one lookup reads, at most; more names with the same hash do not occur in practice.
_MAX_LEAVES = 4096


class IndexNode(NamedTuple):
    """From `hashes[i]` on, look in block `blocks[i]` of the directory."""

    hashes: Sequence[int]
    blocks: Sequence[int]


class IndexRoot(NamedTuple):
    """Block 0 of a hashed directory."""

    hash_version: int
    #: Levels of nodes below this one, above the leaves.
    levels: int
    node: IndexNode


def parse_root(data: bytes, *, max_levels: int) -> IndexRoot | None:
    """None if the block is no index root, or one of an unknown kind: then the directory has to be read sequentially."""
    reserved, version, info_length, levels, flags = struct.unpack_from("<IBBBB", data, 24)
    if reserved or info_length != 8 or flags & 1 or levels > max_levels:
        return None
    node = _parse_entries(data, 24 + info_length)
    return None if node is None else IndexRoot(version, levels, node)


def parse_node(data: bytes) -> IndexNode:
    """Raises OSError(EUCLEAN)."""
    node = _parse_entries(data, 8)
    if node is None:
        raise damaged("the index of a directory has an impossible number of entries")
    return node


def _parse_entries(data: bytes, start: int) -> IndexNode | None:
    """`start` is where struct dx_countlimit begins, which takes the place of the first entry's hash."""
    limit, count = struct.unpack_from("<HH", data, start)
    if not 0 < count <= limit or start + limit * 8 > len(data):
        return None
    fields = struct.unpack_from(f"<{count * 2}I", data, start)
    return IndexNode((0, *fields[2::2]), tuple(block & _BLOCK_MASK for block in fields[1::2]))


def leaves(root: IndexRoot, wanted: int, load: Callable[[int], IndexNode]) -> Iterator[int]:
    """The blocks of the directory that may have names with the hash `wanted`; usually one."""
    for number, block in enumerate(_leaves(root.node, root.levels, wanted, load)):
        if number == _MAX_LEAVES:
            raise damaged("the index of a directory leads round and round")
        yield block


def _leaves(node: IndexNode, levels: int, wanted: int, load: Callable[[int], IndexNode]) -> Iterator[int]:
    hashes, blocks = node
    index = max(bisect_right(hashes, wanted) - 1, 0)
    while True:
        if levels:
            yield from _leaves(load(blocks[index]), levels - 1, wanted, load)
        else:
            yield blocks[index]
        index += 1
        if index == len(hashes) or hashes[index] != wanted | 1:
            return
