"""Whatever bytes they are given, the parsers return or raise OSError(EUCLEAN)."""

from __future__ import annotations

import errno
import struct
import uuid
from collections.abc import Callable, Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.modules.formats.ext.checksums import crc16, crc32c, stored
from viewfs.modules.formats.ext.directory import parse_entries, parse_inline_entries, verify_block
from viewfs.modules.formats.ext.features import Compat, Incompat, ReadOnlyCompat, feature_names
from viewfs.modules.formats.ext.htree import IndexNode, IndexRoot, leaves, parse_node, parse_root
from viewfs.modules.formats.ext.inode import InodeFormat, parse_inode
from viewfs.modules.formats.ext.journal import parse_journal_superblock, replay
from viewfs.modules.formats.ext.layout import Superblock, parse_group_descriptor, parse_superblock
from viewfs.modules.formats.ext.mapping import (
    Branch,
    ExtentMap,
    IndirectMap,
    Leaf,
    Limits,
    Run,
    joined,
    parse_extent_node,
    parse_pointer_runs,
    parse_pointers,
)
from viewfs.modules.formats.ext.namehash import HashVersion, name_hash
from viewfs.modules.formats.ext.xattr import acl_to_wire, parse_block, parse_inode_tail
from viewfs.modules.framework.cache import Cache

LIMITS = Limits(1, 5000, 1024)
quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def blocks(size: int = 1024) -> st.SearchStrategy[bytes]:
    """Noise, and mostly zeros with some noise, of exactly `size` bytes."""
    sprinkled = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=40).map(
        lambda pairs: bytes(bytearray(dict(pairs).get(index, 0) for index in range(size)))
    )
    return st.one_of(st.binary(min_size=size, max_size=size), sprinkled)


def tolerated(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        assert error.errno == errno.EUCLEAN
        return None


def plant(data: bytes, **fields: tuple[int, bytes]) -> bytes:
    changed = bytearray(data)
    for position, value in fields.values():
        changed[position : position + len(value)] = value
    return bytes(changed)


@quick
@given(blocks(), st.integers(0, 6), st.booleans())
def test_superblock(data: bytes, shift: int, plausible: bool) -> None:
    data = plant(data, magic=(0x38, b"\x53\xef"), block=(0x18, bytes([shift, 0, 0, 0])))
    if plausible:
        data = plant(data, inode=(0x58, b"\x00\x01"), groups=(0x20, struct.pack("<III", 8192, 8192, 1024)))
    superblock = tolerated(lambda: parse_superblock(data))
    if isinstance(superblock, Superblock):
        assert superblock.groups > 0
        tolerated(lambda: parse_group_descriptor(superblock, 0, data[: superblock.descriptor_size]))
        superblock.descriptor_block(3, 1)


@quick
@given(blocks(256), st.sampled_from([128, 256]), st.booleans(), st.sampled_from([None, 7]))
def test_inode(data: bytes, size: int, features: bool, seed: int | None) -> None:
    data = plant(data[:size], links=(0x1A, b"\1\0"), mode=(0, b"\xa4\x81"))
    tolerated(lambda: parse_inode(12, data, InodeFormat(size, 1024, features, features, features, seed)))


@quick
@given(blocks(), st.integers(0, 90), st.integers(0, 6), st.sampled_from([None, 9]))
def test_extent_tree(data: bytes, count: int, depth: int, seed: int | None) -> None:
    data = plant(data, header=(0, struct.pack("<HHHH", 0xF30A, count, 84, depth)))
    tolerated(lambda: parse_extent_node(data, LIMITS, depth, seed))
    tolerated(lambda: parse_extent_node(data[:60], LIMITS))

    def load(_block: int, depth: int) -> Leaf | Branch:
        return parse_extent_node(data, LIMITS, depth)

    tolerated(lambda: list(ExtentMap(data, LIMITS, load).runs(0, 3000)))


@quick
@given(blocks(), st.integers(0, 1 << 24), st.integers(0, 300))
def test_indirect_blocks(data: bytes, first: int, count: int) -> None:
    def pointers(_block: int) -> object:
        return parse_pointers(data, LIMITS)

    def runs() -> list[Run]:
        tree = IndirectMap(data[:60], LIMITS, pointers, lambda block: parse_pointer_runs(pointers(block)))
        return list(tree.runs(first, first + count))

    tolerated(runs)


@quick
@given(st.lists(st.integers(0, 40), max_size=60))
def test_runs_are_what_was_joined(pointers: list[int]) -> None:
    leaf = parse_pointer_runs(pointers)
    single = (Run(index, block, 1) for index, block in enumerate(pointers) if block)
    columns = zip(leaf.firsts, leaf.physicals, leaf.lengths, strict=True)
    assert list(joined(single)) == [Run(*run) for run in columns]


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=30), st.integers(0, 90), st.integers(0, 90))
def test_runs_are_found_in_deep_trees(shape: list[tuple[int, int]], first: int, end: int) -> None:
    """A tree of depth 5 with two entries in each node, against the list of its extents."""
    extents = []
    logical, physical = 0, 100
    for gap, length in shape:
        logical += gap
        extents.append((logical, length, physical))
        logical, physical = logical + length, physical + length + 1
    nodes: dict[tuple[int, int], bytes] = {}

    def node(depth: int, part: list[tuple[int, int, int]], block: int, capacity: int) -> bytes:
        if not depth:
            packed = [struct.pack("<IHHI", logical, length, 0, physical) for logical, length, physical in part]
        else:
            packed = []
            half = len(part) if len(part) < 2 else len(part) // 2
            for index, half_part in enumerate(filter(None, (part[:half], part[half:]))):
                child = block * 2 + index
                nodes[child, depth - 1] = node(depth - 1, half_part, child, 84)
                packed.append(struct.pack("<IIHH", half_part[0][0], child, 0, 0))
        return struct.pack("<HHHHI", 0xF30A, len(packed), capacity, depth, 0) + b"".join(packed).ljust(12 * capacity)

    limits = Limits(1, 10_000, 1024)
    root = node(5 if extents else 0, extents, 2, 84)
    tree = ExtentMap(root, limits, lambda block, depth: parse_extent_node(nodes[block, depth], limits, depth))
    expected = {
        logical + index: physical + index
        for logical, length, physical in extents
        for index in range(length)
        if first <= logical + index < end
    }
    found = {run.logical + i: run.physical + i for run in joined(tree.runs(first, end)) for i in range(run.length)}
    assert found == expected


@quick
@given(blocks(), st.booleans(), st.sampled_from([1024, 65536]), st.booleans(), st.booleans())
def test_directory(data: bytes, file_types: bool, block_size: int, first: bool, indexed: bool) -> None:
    tolerated(lambda: parse_entries(data, 0, 1024, 0, [], inodes=500, file_types=file_types, block_size=block_size))
    tolerated(lambda: parse_inline_entries(data[:80], 12, inodes=500, file_types=file_types, block_size=block_size))
    tolerated(lambda: verify_block(data, 0, 1024, 5, first=first, indexed=indexed))


@quick
@given(blocks(), st.integers(0, 200), st.integers(0, 3))
def test_index(data: bytes, count: int, levels: int) -> None:
    data = plant(data, info=(24, struct.pack("<IBBBBHH", 0, 1, 8, levels, 0, 123, count)))
    root = tolerated(lambda: parse_root(data, max_levels=2))
    node = plant(data, node=(8, struct.pack("<HH", 126, count)))
    if isinstance(root, IndexRoot):
        tolerated(lambda: sum(1 for _ in leaves(root, 0x1234, lambda _: parse_node(node))))


def test_index_that_goes_on_for_ever() -> None:
    node = IndexNode((0, *[1] * 500), (7,) * 501)
    assert tolerated(lambda: list(leaves(IndexRoot(1, 2, node), 0, lambda _: node))) is None


@quick
@given(blocks(), st.integers(1, 4), st.sampled_from([None, 3]))
def test_extended_attributes(data: bytes, blocks: int, seed: int | None) -> None:
    data = plant(data, header=(0, struct.pack("<III", 0xEA020000, 1, blocks)))
    tolerated(lambda: parse_inode_tail(data[:100]))
    tolerated(lambda: parse_block(data, 99, seed))


@quick
@given(st.binary(max_size=60))
def test_access_control_list(data: bytes) -> None:
    tolerated(lambda: acl_to_wire(data))
    tolerated(lambda: acl_to_wire(b"\1\0\0\0" + data))


@quick
@given(st.lists(blocks(), min_size=1, max_size=6), st.lists(st.sampled_from([1, 2, 5, 4, 9]), min_size=20, max_size=20))
def test_journal(noise: list[bytes], kinds: list[int]) -> None:
    incompat = noise[0][99] & 0x3F
    header = struct.pack(">12I", 0xC03B3998, 4, 0, 1024, 20, 1, 1, 1, 0, noise[0][98], incompat, 0)
    data = plant(noise[0], header=(0, header))
    if incompat & 0x18:
        value = stored(crc32c(data[:0xFC] + bytes(4) + data[0x100:]))
        data = plant(data, checksum=(0xFC, value.to_bytes(4, "big")))
    journal = [data]
    for number in range(1, 20):
        start = struct.pack(">III", 0xC03B3998, kinds[number], 1 + number // 5)
        journal.append(plant(noise[number % len(noise)], header=(0, start)))
    superblock = parse_journal_superblock(data, 1024, 20)
    outcome = replay(superblock, journal.__getitem__, 5000)
    assert all(block < 5000 for block in outcome.blocks)


@quick
@given(st.binary(max_size=255), st.sampled_from(HashVersion), st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 4))
def test_hash_is_an_even_word(name: bytes, version: HashVersion, seed: tuple[int, int, int, int]) -> None:
    value = name_hash(version, name, seed)
    assert 0 <= value < 0xFFFFFFFE and value % 2 == 0
    if name.isascii():
        other = HashVersion((version + 3) % 6)
        assert name_hash(other, name, seed) == value


def test_checksums_are_the_known_ones() -> None:
    assert stored(stored(crc32c(b"123456789"))) == 0xE3069283
    assert crc16(b"123456789", 0) == 0xBB3D  # CRC-16/ARC


def test_features_have_the_names_of_mke2fs() -> None:
    incompat = Incompat.EXTENT | Incompat.BIT64 | Incompat(1 << 31)
    names = feature_names(Compat.HAS_JOURNAL | Compat.DIR_INDEX, incompat, ReadOnlyCompat.METADATA_CSUM)
    assert names == ("has_journal", "dir_index", "extent", "64bit", "FEATURE_I31", "metadata_csum")


def test_cache_keeps_what_was_used_last() -> None:
    cache: Cache[int, uuid.UUID] = Cache(3)
    values = [uuid.UUID(int=number) for number in range(5)]

    def held() -> Iterator[int]:
        return (number for number in range(5) if number in cache._values)

    for number in range(3):
        cache.put(number, values[number])
    assert cache.get(0) is values[0]
    cache.put(3, values[3])
    assert list(held()) == [0, 2, 3]
    cache.put(4, values[4], weight=3)
    assert list(held()) == [4]
    cache.put(1, values[1], weight=9)
    assert list(held()) == []
    cache.put(1, values[1], weight=2)
    cache.put(1, values[1], weight=1)
    cache.put(2, values[2], weight=2)
    assert list(held()) == [1, 2]
