"""Lies of the superblock and of tables, one at a time: each is told of where it is met, and the rest stays readable.

The images have nothing compressed unless it is compression that lies, so no decompressor stands between the lie and
the parsers. What is in the tables lies in the other modules.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import pytest

from tests.unit.images import MemoryImage
from tests.unit.squashfs.squashfs_damage import all_of, all_of_and_more, either, fails, readable, refused
from tests.unit.squashfs.squashfs_images import COMPRESSORS, content, find, opened_bytes
from tests.unit.squashfs.squashfs_parts import (
    METADATA,
    NOTHING,
    SUPERBLOCK,
    Named,
    Parts,
    compress,
    packed,
    patched,
    peek,
    stored,
)
from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.squashfs.volume import Volume

pytestmark = [pytest.mark.bounded_memory, pytest.mark.usefixtures("bounded_time")]

BLOCK = 4096
TABLES = ("inodes", "directories", "fragments", "exports", "ids", "xattrs", "xattr_ids")


def test_parts_of_an_image_make_an_image(plain: bytes) -> None:
    """The tests below change just what they say."""
    whole = Parts.of(plain).assemble()
    assert whole == plain[: len(whole)]
    all_of(opened_bytes(whole))


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_tables_that_are_compressed(compressor: str, plains: Callable[[str], bytes]) -> None:
    """What `compress` makes is what the reader takes, so that the bombs below are bombs."""
    plain = plains(compressor)
    data = Parts.of(plain).assemble(dict.fromkeys(TABLES, packed(compressor)))
    assert len(data) < len(plain)
    volume = opened_bytes(data)
    all_of(volume)
    assert readable(volume, plain)


# The superblock


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": 0x71736873},
        {"magic": 0},
        {"block_size": 0},
        {"block_size": 1},
        {"block_size": 2048, "block_log": 11},
        {"block_size": 4097},
        {"block_size": 8192},
        {"block_size": 1 << 21, "block_log": 21},
        {"block_size": 1 << 31, "block_log": 31},
        {"block_size": 0xFFFFFFFF},
        {"block_log": 0},
        {"block_log": 11},
        {"block_log": 63},
        {"block_log": 0xFFFF},
        {"major": 0},
        {"major": 3},
        {"major": 5},
        {"compression": 0},
        {"compression": 7},
        {"compression": 0x100},
    ],
    ids=str,
)
def test_superblock_that_can_not_be(fields: dict[str, int], plain: bytes) -> None:
    with pytest.raises(DamagedSourceError, match="name of it"):
        Volume.open(MemoryImage(patched(plain, **fields)), name="name of it")


@pytest.mark.parametrize(
    "root",
    [0xFFFF, 0x1FFF, 1 << 16, 1 << 32, (1 << 48) - 1, 1 << 48, 1 << 63, NOTHING, 5],
    ids=hex,
)
def test_root_that_is_nowhere(root: int, plain: bytes) -> None:
    refused(patched(plain, root=root), all_of)


def test_root_that_is_no_directory(plain: bytes) -> None:
    parts = Parts.of(plain)
    for path in ("small", "link", "null", "fifo", "sparse"):
        with pytest.raises(DamagedSourceError):
            opened_bytes(patched(plain, root=parts.find(path).inode))


@pytest.mark.parametrize("name", ["inode_table", "directory_table", "fragment_table", "id_table"])
@pytest.mark.parametrize(
    "start",
    [0, 1, 95, 96, 97, 56_000, 57_343, 57_344, 1 << 20, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, NOTHING - 1, NOTHING],
    ids=hex,
)
def test_tables_that_are_nowhere(name: str, start: int, plain: bytes) -> None:
    refused(patched(plain, **{name: start}), all_of)


@pytest.mark.parametrize("name", ["xattr_table", "export_table"])
@pytest.mark.parametrize("start", [0, 96, 57_344, 1 << 32, 1 << 62, 1 << 63, NOTHING - 1], ids=hex)
def test_tables_that_need_not_be(name: str, start: int, plain: bytes) -> None:
    """The reader may do without one of these, or not: but what there is in files stays."""
    either(patched(plain, **{name: start}), all_of)


TABLE_STARTS = ["inode_table", "directory_table", "fragment_table", "export_table", "id_table", "xattr_table"]


@pytest.mark.parametrize("other", TABLE_STARTS)
@pytest.mark.parametrize("name", TABLE_STARTS)
def test_tables_in_each_other(name: str, other: str, plain: bytes) -> None:
    """Each begins where another does, and the two change places."""
    starts = {key: peek(plain, SUPERBLOCK, key) for key in TABLE_STARTS}
    either(patched(plain, **{name: starts[other]}), all_of)
    either(patched(plain, **{name: starts[other], other: starts[name]}), all_of)
    either(patched(plain, **{name: starts[other] + 1}), all_of)
    either(patched(plain, **{name: starts[other] - 1}), all_of)


@pytest.mark.parametrize("used", [0, 1, 95, 96, 1000, 55_000, 1 << 40, 1 << 63, NOTHING])
def test_length_that_is_wrong(used: int, plain: bytes) -> None:
    either(patched(plain, bytes_used=used), all_of)


@pytest.mark.parametrize("name", ["inodes", "fragments", "ids", "flags", "mkfs_time", "minor"])
@pytest.mark.parametrize("value", [0, 1, 2, 0x7FFF, 0xFFFF])
def test_numbers_that_are_wrong(name: str, value: int, plain: bytes) -> None:
    either(patched(plain, **{name: value}), all_of)


def test_numbers_that_are_far_too_large(plain: bytes) -> None:
    either(patched(plain, inodes=0xFFFFFFFF), all_of)
    refused(patched(plain, fragments=0xFFFFFFFF), all_of)
    refused(patched(plain, fragments=1_000_000), all_of)
    refused(patched(plain, fragments=0, flags=0), lambda volume: content(volume, find(volume, "few/two")))
    refused(patched(plain, ids=0), lambda volume: volume.attributes(volume.root))


def test_every_bit_of_the_superblock(plain: bytes) -> None:
    for bit in range(96 * 8):
        changed = bytearray(plain)
        changed[bit // 8] ^= 1 << bit % 8
        either(bytes(changed), all_of)


def test_lzma_and_lz4_options_that_are_damaged(plains: Callable[[str], bytes]) -> None:
    """lz4 images begin with a version, and some others have options that only mksquashfs needs."""
    plain = plains("lz4")
    (size,) = struct.unpack_from("<H", plain, 96)
    assert size == 0x8008
    for options in (b"\x08\x80" + bytes(8), b"\x08\x80" + b"\xff" * 8, b"\0\0", b"\xff\xff", b"\x04\x80"):
        either(plain[:96] + options + plain[96 + len(options) :], all_of)


# Metadata blocks


def one_block(header: int, body: bytes = b"") -> Callable[[bytes], bytes]:
    return lambda data: struct.pack("<H", header) + (body or data)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "header", [0, 0x8000, 0x8001, 0x8000 | METADATA + 1, 0xFFFF, 0x7FFF, METADATA, METADATA + 1, 1], ids=hex
)
def test_metadata_of_impossible_length(table: str, header: int, parts: Parts) -> None:
    """Nothing at all, more than a block has, more than there is, and what is not compressed although it says so."""
    refused(parts.assemble({table: one_block(header)}), all_of_and_more)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("table", TABLES)
def test_metadata_that_becomes_too_large(compressor: str, table: str, plains: Callable[[str], bytes]) -> None:
    """A kilobyte that is a mebibyte, or as many as fit: never more than 8 KiB may be made of it."""
    parts = Parts.of(plains(compressor))
    for size in (METADATA + 1, METADATA * 2, 1 << 20):

        def bomb(data: bytes, size: int = size) -> bytes:
            small = compress(compressor, data + bytes(size - len(data)))
            if len(small) > METADATA:
                small = small[:METADATA]
            return struct.pack("<H", len(small)) + small

        refused(parts.assemble({table: bomb}), all_of_and_more)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("table", TABLES)
def test_metadata_that_ends_too_early(compressor: str, table: str, plains: Callable[[str], bytes]) -> None:
    """The stream is cut off, followed by others, of nothing, or of too little."""
    parts = Parts.of(plains(compressor))
    for cut in (
        lambda data: compress(compressor, data)[:-5],
        lambda data: compress(compressor, data)[: len(data) // 4],
        lambda data: compress(compressor, b""),
        lambda data: compress(compressor, data[: len(data) // 3]),
        lambda data: compress(compressor, data)[:1],
        lambda data: bytes(100),
        lambda data: b"\xff" * 100,
        lambda data: compress("gzip" if compressor != "gzip" else "zstd", data),
    ):

        def block(data: bytes, cut: Callable[[bytes], bytes] = cut) -> bytes:
            small = cut(data)
            return struct.pack("<H", len(small)) + small

        refused(parts.assemble({table: block}), all_of_and_more)


def test_metadata_in_small_blocks(parts: Parts, plain: bytes) -> None:
    """Only the last of a table may be smaller than 8 KiB. Whatever is made of it, it ends."""

    def small(size: int) -> Callable[[bytes], bytes]:
        return lambda data: b"".join(stored(data[place : place + size]) for place in range(0, len(data), size))

    for table in TABLES:
        for size in (1, 7, 100):
            either(parts.assemble({table: small(size)}), all_of)


@pytest.mark.parametrize("table", ["fragment_table", "export_table", "id_table", "xattr_table"])
def test_table_that_leads_to_itself(table: str, plain: bytes) -> None:
    """The index of a table says where its metadata is."""
    place = peek(plain, SUPERBLOCK, table) + (16 if table == "xattr_table" else 0)
    for target in (place, place - 1, place + 8, 0, 96, len(plain), 1 << 40, 1 << 63, NOTHING):
        changed = bytearray(plain)
        struct.pack_into("<Q", changed, place, target)
        (either if table == "export_table" else refused)(bytes(changed), all_of_and_more)


# The end of the image


def test_image_that_is_cut_off_anywhere(plain: bytes) -> None:
    used = peek(plain, SUPERBLOCK, "bytes_used")
    starts = [peek(plain, SUPERBLOCK, name) for name in TABLE_STARTS]
    lengths = {place + by for place in (0, 96, used, *starts) for by in (-9, -1, 0, 1, 2, 8, 17)}
    for length in sorted({*lengths, *range(0, used, 1501)}):
        if 0 <= length < used:
            refused(plain[:length], all_of_and_more)


def test_padding_that_is_cut_off(plain: bytes) -> None:
    used = peek(plain, SUPERBLOCK, "bytes_used")
    for length in (used, used + 1, len(plain)):
        all_of(opened_bytes(plain[:length]))


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_compressed_image_that_is_cut_off(compressor: str, plains: Callable[[str], bytes]) -> None:
    data = Parts.of(plains(compressor)).assemble(dict.fromkeys(TABLES, packed(compressor)))
    for length in range(0, len(data), len(data) // 40):
        refused(data[:length], all_of_and_more)


def test_source_that_gives_less_than_it_says(plain: bytes) -> None:
    for length in (50, 96, 5000, 40_000, 50_000, 54_000, 55_000):
        source = MemoryImage(plain[:length])
        source.size = len(plain)
        try:
            volume = Volume.open(source)
        except DamagedSourceError:
            continue
        fails(lambda volume=volume: all_of_and_more(volume))


def test_source_that_becomes_shorter(plain: bytes) -> None:
    source = MemoryImage(plain)
    volume = Volume.open(source)
    node = find(volume, "large")
    source._data = plain[:100]
    fails(lambda: content(volume, node))


def test_source_with_an_error_in_it(plain: bytes) -> None:
    """What the medium does not give is EIO, and only that."""

    class Worn(MemoryImage):
        def pread(self, size: int, offset: int) -> bytes:
            if offset < place + BLOCK and place < offset + size:
                raise OSError(5, os.strerror(5))
            return super().pread(size, offset)

    place = Parts.of(plain).get("large", "start") + 3 * BLOCK
    volume = Volume.open(Worn(plain))
    node = find(volume, "large")
    assert len(volume.read(node, 0, 3 * BLOCK)) == 3 * BLOCK
    with pytest.raises(OSError) as caught:
        volume.read(node, 3 * BLOCK, 10)
    assert caught.value.errno == 5
    assert len(volume.read(node, 4 * BLOCK, 3 * BLOCK)) == 3 * BLOCK
    assert readable(volume, plain, "tail", "few/two")


def test_named_is_what_parts_finds(parts: Parts) -> None:
    """The helper of all these tests."""
    named = parts.find("few/one")
    assert isinstance(named, Named) and parts.get(named.inode, "size") == 1
    assert parts.directories[named.entry + 8 :][:3] == b"one"
