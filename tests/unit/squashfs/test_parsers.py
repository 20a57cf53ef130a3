"""Whatever bytes they are given, the parsers return or raise what they say: OSError(EUCLEAN), or EIO at the end."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.images import MemoryImage
from tests.unit.squashfs.conftest import text
from tests.unit.squashfs.squashfs_damage import DAMAGE
from tests.unit.squashfs.squashfs_images import COMPRESSORS
from tests.unit.squashfs.squashfs_parts import INODE, SUPERBLOCK, compress, poke, stored
from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.squashfs.codecs import decompressor
from viewfs.modules.formats.squashfs.directory import Listing, parse_index_entry, parse_listing
from viewfs.modules.formats.squashfs.inode import INODE_SIZE, parse_inode
from viewfs.modules.formats.squashfs.layout import METADATA_SIZE, NONE_32, Compression, parse_superblock
from viewfs.modules.formats.squashfs.metadata import Metadata, Table
from viewfs.modules.formats.squashfs.offsets import find_offset
from viewfs.modules.formats.squashfs.xattr import Xattrs
from viewfs.modules.framework.sources import Section

quick = settings(max_examples=80, deadline=None, database=None, derandomize=True)


def tolerated(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        assert error.errno in DAMAGE
        return None


# The superblock


SOUND = bytearray(96)
poke(
    SOUND, SUPERBLOCK, magic=0x73717368, inodes=5, block_size=1 << 17, compression=1, block_log=17, ids=1, major=4,
    bytes_used=1000, id_table=900, xattr_table=950, inode_table=200, directory_table=300, fragment_table=400,
    export_table=500,
)  # fmt: skip


@quick
@given(st.lists(st.tuples(st.integers(0, 95), st.integers(0, 255)), max_size=6), st.integers(0, 96))
@example([], 96)
def test_superblock(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(SOUND)
    for place, value in changes:
        data[place] = value
    try:
        superblock = parse_superblock(bytes(data[:length]), "name of it")
    except DamagedSourceError as error:
        assert "name of it" in str(error)
        assert changes or length < 96
    else:
        assert length == 96
        assert superblock.block_size in {1 << log for log in range(12, 21)}
        assert superblock.compression in Compression
        assert superblock.inode_table <= superblock.directory_table <= superblock.id_table <= superblock.bytes_used


@quick
@given(st.binary(min_size=92, max_size=92))
def test_superblock_of_noise(data: bytes) -> None:
    try:
        parse_superblock(b"hsqs" + data, "name of it")
    except DamagedSourceError as error:
        assert "name of it" in str(error)


# Inodes


@quick
@given(st.integers(0, 16), st.binary(max_size=80), st.integers(0, 90))
def test_inode(kind: int, data: bytes, at: int) -> None:
    inode = tolerated(lambda: parse_inode(struct.pack("<H", kind) + data, 0, 7, [5], [6]))
    if inode is not None:
        assert 1 <= kind <= 14
        assert inode.attributes.ino == 7  # type: ignore[attr-defined]
        assert inode.attributes.uid == 5 and inode.attributes.gid == 6  # type: ignore[attr-defined]
        assert inode.attributes.blocks >= 0 and inode.tail <= INODE_SIZE  # type: ignore[attr-defined]
    tolerated(lambda: parse_inode(data, at, 7, [5] * 65536, [6] * 65536))


@quick
@given(st.sampled_from(sorted(INODE)), st.data())
def test_every_field_of_an_inode(kind: int, source: st.DataObject) -> None:
    """At other places of the bytes than their beginning too."""
    fields = {name: form for name, form in INODE[kind].items() if name not in ("blocks", "index")}
    limits = {"H": 1 << 16, "I": 1 << 32, "Q": 1 << 64}
    values = {name: source.draw(st.integers(0, limits[form[1]] - 1), name) for name, (_, form) in fields.items()}
    at = source.draw(st.integers(0, 20), "at")
    data = bytearray(at + 64)
    struct.pack_into("<HHHHII", data, at, kind, 0o4751, 1, 0, 0xFFFFFFFE, 77)
    poke(data, fields, at, **values)
    inode = parse_inode(bytes(data), at, 9, [100, 101], [200, 201])
    attributes = inode.attributes
    assert attributes.mode & 0o7777 == 0o4751 and attributes.shown_ino == 77
    assert (attributes.uid, attributes.gid) == (101, 200)
    assert attributes.mtime_ns == attributes.atime_ns == attributes.ctime_ns == 0xFFFFFFFE * 10**9
    assert attributes.size == values.get("size", 0)
    assert attributes.nlink == values.get("nlink", 1)
    assert (inode.start, inode.offset) == (values.get("start", 0), values.get("offset", 0))
    assert inode.fragment == values.get("fragment", NONE_32) and inode.parent == values.get("parent", 0)
    if "rdev" in values:
        number = values["rdev"]
        expected = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & ~0xFF
        assert attributes.rdev in (os.makedev(*expected), number)
    for length in range(at, at + 64 - 1):
        tolerated(lambda length=length: parse_inode(bytes(data[:length]), at, 9, [100, 101], [200, 201]))
    with pytest.raises(OSError):
        parse_inode(bytes(data[: at + 18]), at, 9, [100, 101], [200, 201])
    with pytest.raises(OSError):
        parse_inode(bytes(data), at, 9, [100], [200])
    with pytest.raises(OSError):
        parse_inode(bytes(data), at, 9, [100, 101], [])


# Directories


#: The type of an entry, and what dirent.h has for it.
DIRENT = {1: 4, 2: 8, 3: 10, 4: 6, 5: 2, 6: 1, 7: 12}
names = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b".."))
entries = st.tuples(names, st.integers(0, 8191), st.integers(-0x8000, 0x7FFF), st.integers(1, 7))
runs = st.tuples(
    st.integers(0, 0xFFFFFFFF), st.integers(0x8000, 0xF0000000), st.lists(entries, min_size=1, max_size=12)
)


@quick
@given(st.lists(runs, max_size=6), st.integers(0, 1 << 33), st.integers(0, 3000))
def test_listing(wanted: list[tuple[int, int, list[tuple[bytes, int, int, int]]]], start: int, least: int) -> None:
    """Runs come out as they went in: whole ones, up to where enough was read."""
    data, expected, end = b"", [], None
    for block, number, group in wanted:
        if len(data) >= least and end is None:
            end = len(data), len(expected)
        data += struct.pack("<III", len(group) - 1, block, number)
        for name, offset, delta, kind in group:
            data += struct.pack("<HhHH", offset, delta, kind, len(name) - 1) + name
            expected.append((name, start + len(data), block << 16 | offset, number + delta, DIRENT[kind]))
    size, count = end or (len(data), len(expected))
    listing = parse_listing(data, start, least=least)
    assert listing.entries == expected[:count] and listing.end == start + size
    assert parse_listing(bytearray(data), start, least=len(data)).entries == expected
    if data:
        for cut in {len(data) - 1, len(data) // 2, 13} - {0}:
            part = tolerated(lambda cut=cut: parse_listing(data[:cut], start, least=cut))
            assert part is None or part.entries == expected[: len(part.entries)]  # type: ignore[attr-defined]


@quick
@given(st.binary(max_size=600), st.integers(0, 300), st.integers(0, 700))
def test_listing_of_noise(data: bytes, count: int, least: int) -> None:
    for listing in (data, struct.pack("<III", count, 0, 1) + data):
        found = tolerated(lambda listing=listing: parse_listing(listing, 0, least=least))
        if isinstance(found, Listing):
            assert all(entry[0] and b"/" not in entry[0] and b"\0" not in entry[0] for entry in found.entries)
            places = [entry[1] for entry in found.entries]
            assert places == sorted(set(places)) and (not places or places[-1] <= found.end <= len(listing))


@pytest.mark.parametrize("count", [256, 257, 0x7FFFFFFF, 0xFFFFFFFF])
def test_listing_with_too_many_names(count: int) -> None:
    entry = struct.pack("<HhHH", 0, 0, 2, 0) + b"x"
    with pytest.raises(OSError, match="256"):
        parse_listing(struct.pack("<III", count, 0, 1) + entry * 300, 0, least=9999)
    assert len(parse_listing(struct.pack("<III", 255, 0, 1) + entry * 256, 0, least=9999).entries) == 256


@pytest.mark.parametrize("name", [b".", b"..", b"/", b"a/b", b"\0", b"a\0"])
def test_names_that_can_not_be(name: bytes) -> None:
    with pytest.raises(OSError):
        parse_listing(struct.pack("<IIIHhHH", 0, 0, 1, 0, 0, 2, len(name) - 1) + name, 0, least=1)


@quick
@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_index_entry(place: int, block: int, length: int) -> None:
    for size in (length, length % 256):
        found = tolerated(lambda size=size: parse_index_entry(struct.pack("<III", place, block, size)))
        assert found == ((place, block, b""), size + 1) if size < 256 else found is None


# Metadata


def metadata(data: bytes, kind: Compression = Compression.GZIP) -> Metadata:
    return Metadata(Section(MemoryImage(data), 0), decompressor(kind))


def packed(blocks: list[tuple[bytes, bool]]) -> bytes:
    image = bytearray(b"ahead")
    for content, small in blocks:
        body = compress("gzip", content) if small else content
        image += struct.pack("<H", len(body) | (0 if small else 0x8000)) + body
    return bytes(image)


@quick
@given(st.binary(max_size=300), st.integers(0, 310), st.integers(0, 9000), st.integers(0, 30_000))
def test_metadata_of_noise(data: bytes, position: int, offset: int, size: int) -> None:
    blocks = metadata(data)
    for call in (blocks.at, blocks.head, blocks.read, blocks.skip):
        tolerated(lambda call=call: call(position, offset, size))
    found = tolerated(lambda: blocks.read(position, offset, size))
    assert found is None or len(found) == size  # type: ignore[arg-type]


@quick
@given(
    st.integers(0, 3), st.integers(1, METADATA_SIZE), st.lists(st.booleans(), min_size=4, max_size=4),
    st.integers(0, METADATA_SIZE * 3), st.integers(0, METADATA_SIZE * 4),
)  # fmt: skip
def test_reading_metadata(full: int, last: int, small: list[bool], start: int, size: int) -> None:
    """Any bytes of some blocks, the last of which is not full."""
    content = text(full * METADATA_SIZE + last, 1)
    parts = [content[place : place + METADATA_SIZE] for place in range(0, len(content), METADATA_SIZE)]
    # One that is not smaller when it is compressed is never compressed.
    image = packed([(part, flag and len(part) > 200) for part, flag in zip(parts, small, strict=False)])
    blocks = metadata(image)
    # Of the block in which it starts, the position.
    position = 5
    for _ in range(start // METADATA_SIZE):
        if position < len(image):
            position = blocks.block(position)[1]
    found = tolerated(lambda: blocks.read(position, start % METADATA_SIZE, size))
    if start + size <= len(content):
        assert found == content[start : start + size]
        data, at = blocks.at(position, start % METADATA_SIZE, size) if start < len(content) else (b"", 0)
        assert data[at : at + size] == found or start == len(content)
    else:
        assert found is None
    if start < len(content):
        data, at = blocks.head(position, start % METADATA_SIZE, 100)
        wanted = content[start : start + 100]
        assert data[at : at + len(wanted)] == wanted


@quick
@given(st.binary(min_size=100, max_size=400), st.integers(0, 90), st.integers(0, 5000), st.integers(-1, 6000))
def test_table_of_noise(data: bytes, start: int, count: int, index: int) -> None:
    def record() -> tuple[int, ...]:
        table = Table(Section(MemoryImage(data), 0), metadata(data), start, count, struct.Struct("<QII"), "fragment")
        return table[index]

    tolerated(record)


# Extended attributes


@quick
@given(st.binary(max_size=300), st.integers(0, 70_000), st.integers(0, 310), st.integers(0, 5))
def test_xattrs_of_noise(data: bytes, count: int, place: int, offset: int) -> None:
    """A list of noise; where lists are, and how many names they have, is noise as well."""
    image = struct.pack("<H", 0x8000 | len(data) or 1) + data
    ids = len(image)
    image += struct.pack("<HQII", 0x8000 | 16, place << 16 | offset, count, 0)
    table = len(image)
    image += struct.pack("<QIIQ", 0, 1, 0, ids)
    section = Section(MemoryImage(image), 0)
    for index in (0, 1):
        found = tolerated(lambda index=index: Xattrs(section, metadata(image), table).of(index))
        if found is not None:
            assert all(name.split(b".")[0] in (b"user", b"trusted", b"security") for name in found)  # type: ignore[attr-defined]


@quick
@given(st.dictionaries(st.binary(min_size=1, max_size=255), st.binary(max_size=600), max_size=60), st.data())
def test_xattrs(wanted: dict[bytes, bytes], source: st.DataObject) -> None:
    """Names and values come out as they went in, in line and out of it, and across metadata blocks."""
    kinds = [source.draw(st.tuples(st.integers(0, 2), st.booleans())) for _ in wanted]
    values = b"".join(struct.pack("<I", len(value)) + value for value in wanted.values())
    content, place = values, 0
    expected = {}
    for (name, value), (kind, elsewhere) in zip(wanted.items(), kinds, strict=True):
        reference = place // METADATA_SIZE * (METADATA_SIZE + 2) << 16 | place % METADATA_SIZE
        place += 4 + len(value)
        body = struct.pack("<IQ", 8, reference) if elsewhere else struct.pack("<I", len(value)) + value
        content += struct.pack("<HH", kind | 0x100 * elsewhere, len(name)) + name + body
        expected[(b"user.", b"trusted.", b"security.")[kind] + name] = value
    first = len(values) // METADATA_SIZE * (METADATA_SIZE + 2) << 16 | len(values) % METADATA_SIZE
    image = b"ahead" + stored(content)
    ids = len(image)
    image += struct.pack("<HQII", 0x8000 | 16, first, len(wanted), len(content) - len(values))
    table = len(image)
    image += struct.pack("<QIIQ", 5, 1, 0, ids)
    assert Xattrs(Section(MemoryImage(image), 0), metadata(image), table).of(0) == expected


# Where the file system is


@quick
@given(st.integers(0, 3000), st.binary(max_size=64), st.booleans(), st.sampled_from([b"", b"\x7fELF", b"#!", b"hsqs"]))
def test_offset(size: int, noise: bytes, there: bool, kind: bytes) -> None:
    """It is found wherever it is behind a program, and nowhere where it is not."""
    head = kind + noise + bytes(size)
    image = head + (bytes(SOUND).ljust(1000, b"x") if there else b"")
    expected = len(head) if there and head else (0 if there else None)
    assert find_offset(MemoryImage(image), anywhere=True) == expected
    assert find_offset(MemoryImage(image), anywhere=False) in (
        (expected,) if kind[:2] in (b"#!", b"\x7fE") else (None, expected)
    )


# Decompression


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_decompression(compressor: str) -> None:
    decode = decompressor(Compression[compressor.upper()])

    @settings(quick, max_examples=30)
    @given(st.binary(max_size=2000), st.integers(1, 40), st.integers(-3, 3), st.booleans())
    def check(data: bytes, repeat: int, more: int, cut: bool) -> None:
        data *= repeat
        small = compress(compressor, data)
        assert data == bytes(decode(small, len(data) + max(more, 0))) or not data
        if more < 0 and len(data) > -more:
            assert tolerated(lambda: decode(small, len(data) + more)) is None
        part = tolerated(lambda: bytes(decode(small[: len(small) // 2], len(data)))) if cut else None
        assert part is None or (len(part) <= len(data) and data.startswith(part)) or compressor in ("lzo", "lz4")
        # What comes behind it in the image is not of it.
        found = tolerated(lambda: bytes(decode(data, 8192)))
        assert found is None or len(found) <= 8192  # type: ignore[arg-type]

    check()


def test_noise_is_not_decompressed() -> None:
    @settings(quick, max_examples=60)
    @given(st.sampled_from(list(Compression)), st.binary(max_size=500), st.integers(0, 9000))
    def check(kind: Compression, data: bytes, limit: int) -> None:
        found = tolerated(lambda: decompressor(kind)(data, limit))
        assert found is None or len(found) <= limit  # type: ignore[arg-type]

    check()
