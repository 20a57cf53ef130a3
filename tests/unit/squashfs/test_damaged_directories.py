"""Directories that lie: of their names, of what those stand for, of their size and their index."""

from __future__ import annotations

import struct

import pytest

from tests.unit.squashfs.squashfs_damage import DAMAGE, fails, readable, tolerated
from tests.unit.squashfs.squashfs_images import content, find, opened_bytes
from tests.unit.squashfs.squashfs_parts import METADATA, NOTHING, Parts
from viewfs.modules.formats.squashfs.volume import Volume

pytestmark = [pytest.mark.bounded_memory, pytest.mark.usefixtures("bounded_time")]


def test_directory_in_itself(parts: Parts, plain: bytes) -> None:
    """Which nothing that walks could ever end with: the kernel allows no second name for a directory."""
    parts.redirect("few/one", parts.find("few").inode)
    parts.set_entry("few/one", type=1)
    volume = opened_bytes(parts.assemble())
    few = find(volume, "few")
    names = tolerated(lambda: [name for name, *_ in volume.entries(few, 0)])
    assert names in (None, [b".", b"..", b"hard link", b"one", b"two"])
    inner = tolerated(lambda: volume.lookup(few, b"one"))
    for _ in range(50):
        if isinstance(inner, int):
            assert inner == few
            inner = tolerated(lambda: volume.lookup(few, b"one"))
    assert readable(volume, plain, "large", "tail")


def test_root_in_itself(parts: Parts, plain: bytes) -> None:
    parts.redirect("few/one", parts.find("").inode)
    parts.set_entry("few/one", type=1)
    volume = opened_bytes(parts.assemble())
    few = find(volume, "few")
    tolerated(lambda: volume.lookup(few, b"one"))
    tolerated(lambda: list(volume.entries(few, 0)))
    assert readable(volume, plain, "large", "tail")


@pytest.mark.parametrize("parent", [0, 1, 5, 122, 123, 1 << 31, 0xFFFFFFFF])
def test_parent_that_is_wrong(parent: int, parts: Parts, plain: bytes) -> None:
    parts.set("few", parent=parent)
    parts.set("marked directory", parent=parent)
    volume = opened_bytes(parts.assemble())
    for path in ("few", "marked directory"):
        node = find(volume, path)
        tolerated(lambda node=node: list(volume.entries(node, 0)))
    assert find(volume, "few/two")
    assert readable(volume, plain)


def test_exports_that_lie(parts: Parts, plain: bytes) -> None:
    """The table by which `..` may be found."""
    for reference in (0, 1, 0xFFFF, 1 << 32, NOTHING, 1 << 63, parts.find("small").inode):
        parts.exports = [reference] * len(parts.exports)
        volume = opened_bytes(parts.assemble())
        nodes = tolerated(lambda volume=volume: [entry[2] for entry in volume.entries(find(volume, "few"), 0)])
        assert nodes is None or all(0 < node < 1 << 64 for node in nodes), "the kernel's numbers have 64 bits"  # type: ignore[attr-defined]
        assert readable(volume, plain, "large", "tail")


@pytest.mark.parametrize("count", [256, 257, 1000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
def test_header_with_too_many_names(count: int, parts: Parts, plain: bytes) -> None:
    """256 are all that it may be for. The field is one less, so that there can't be none."""
    parts.set_header("few/one", count=count)
    volume = opened_bytes(parts.assemble())
    fails(lambda: list(volume.entries(find(volume, "few"), 0)))
    fails(lambda: volume.lookup(find(volume, "few"), b"zz"))
    assert readable(volume, plain, "large", "tail")


@pytest.mark.parametrize("count", [3, 10, 255])
def test_header_with_more_names_than_there_are(count: int, parts: Parts, plain: bytes) -> None:
    parts.set_header("few/one", count=count)
    volume = opened_bytes(parts.assemble())
    fails(lambda: list(volume.entries(find(volume, "few"), 0)))
    fails(lambda: volume.lookup(find(volume, "few"), b"zz"))
    assert readable(volume, plain, "large", "tail")


def test_header_with_fewer_names_than_there_are(parts: Parts, plain: bytes) -> None:
    """The next entry is taken to be a header."""
    for count in (0, 1):
        parts = Parts.of(plain)
        parts.set_header("few/one", count=count)
        volume = opened_bytes(parts.assemble())
        fails(lambda volume=volume: list(volume.entries(find(volume, "few"), 0)))
        assert readable(volume, plain, "large", "tail")


def test_names_before_the_damage_are_listed(parts: Parts) -> None:
    """Of a directory, all names come that can be trusted, and then the error."""
    parts.set_entry("many/name 050", size=0xFFFF)
    volume = opened_bytes(parts.assemble())
    many = find(volume, "many")
    found = []
    with pytest.raises(OSError) as caught:
        for name, *_ in volume.entries(many, 0):
            found.append(name)
    assert caught.value.errno in DAMAGE
    assert found in ([], [b".", b".."], [b".", b"..", *(b"name %03d" % index for index in range(50))])


@pytest.mark.parametrize("size", [256, 257, 1000, 0x7FFF, 0xFFFF])
def test_names_that_are_too_long(size: int, parts: Parts, plain: bytes) -> None:
    """255 bytes are the most there can be, so the field is 254."""
    for path in ("few/two", "few/one", "few/hard link"):
        parts.set_entry(path, size=size)
        volume = opened_bytes(parts.assemble())
        few = find(volume, "few")
        fails(lambda volume=volume, few=few: list(volume.entries(few, 0)))
        fails(lambda volume=volume, few=few: volume.lookup(few, b"zz"))
        assert readable(volume, plain, "large", "tail")
        parts = Parts.of(plain)


@pytest.mark.parametrize("name", [b"\0bc", b"a\0c", b"a/c", b"/bc", b"...", b"ab\0"])
def test_names_that_can_not_be(name: bytes, parts: Parts, plain: bytes) -> None:
    """No name has a slash or a zero in it. What the kernel would be told of it, is told it; or it is damage."""
    place = parts.find("few/two").entry + 8
    parts.directories[place : place + 3] = name
    volume = opened_bytes(parts.assemble())
    few = find(volume, "few")
    names = tolerated(lambda: [name for name, *_ in volume.entries(few, 0)])
    if name == b"...":
        assert isinstance(names, list) and name in names
    else:
        assert names is None, "a name with a slash or a zero byte must not come out"
    assert readable(volume, plain, "large", "tail")


@pytest.mark.parametrize("name", [b".", b".."])
def test_dots_as_names(name: bytes, parts: Parts, plain: bytes) -> None:
    """They would stand for something else than where they are. The name is the last of its directory, so none moves
    because it is shorter."""
    entry = parts.find("few/two").entry
    parts.directories[entry + 8 : entry + 11] = name.ljust(3, b"x")
    struct.pack_into("<H", parts.directories, entry + 6, len(name) - 1)
    parts.set("few", size=parts.get("few", "size") - 3 + len(name))
    volume = opened_bytes(parts.assemble())
    few = find(volume, "few")
    names = tolerated(lambda: [entry[0] for entry in volume.entries(few, 0)])
    assert names is None or names == [b".", b"..", b"hard link", b"one"]
    assert tolerated(lambda: volume.lookup(few, b".")) in (few, None)
    assert readable(volume, plain, "large", "tail")


def test_names_that_are_there_twice(parts: Parts, plain: bytes) -> None:
    place = parts.find("few/two").entry + 8
    parts.directories[place : place + 3] = b"one"
    volume = opened_bytes(parts.assemble())
    few = find(volume, "few")
    tolerated(lambda: list(volume.entries(few, 0)))
    tolerated(lambda: volume.lookup(few, b"one"))
    assert readable(volume, plain, "large", "tail")


def test_names_out_of_order(parts: Parts, plain: bytes) -> None:
    """Lookups may stop where the name would have been; listing shows it, or tells of it."""
    place = parts.find("many/name 050").entry + 8
    parts.directories[place : place + 8] = b"a early!"
    volume = opened_bytes(parts.assemble())
    many = find(volume, "many")
    tolerated(lambda: list(volume.entries(many, 0)))
    tolerated(lambda: volume.lookup(many, b"a early!"))
    tolerated(lambda: volume.lookup(many, b"name 099"))
    good = opened_bytes(plain)
    assert content(volume, find(volume, "large")) == content(good, find(good, "large"))


@pytest.mark.parametrize("size", [4, 5, 14, 15, 20, 50, 55, 100, 1000, 1949, 1952, 5000, 0xFFFF])
def test_directory_of_impossible_size(size: int, parts: Parts, plain: bytes) -> None:
    """Shorter and longer than what is in it, and longer than the table."""
    real = parts.get("few", "size")
    assert real == 54
    parts.set("few", size=size)
    volume = opened_bytes(parts.assemble())
    few = find(volume, "few")
    tolerated(lambda: list(volume.entries(few, 0)))
    tolerated(lambda: volume.lookup(few, b"two"))
    if size > len(parts.directories) + 3:
        fails(lambda: list(volume.entries(few, 0)))
        fails(lambda: volume.lookup(few, b"zz"))
    assert readable(volume, plain, "large", "tail")


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_directory_that_is_smaller_than_nothing(size: int, parts: Parts, plain: bytes) -> None:
    """3 is the size of one that is empty: mksquashfs adds it for `.` and `..`."""
    parts.set("few", size=size)
    volume = opened_bytes(parts.assemble())
    few = find(volume, "few")
    names = tolerated(lambda: [name for name, *_ in volume.entries(few, 0)])
    assert names in (None, [b".", b".."])
    assert tolerated(lambda: volume.lookup(few, b"two")) is None
    assert readable(volume, plain, "large", "tail")


@pytest.mark.parametrize("size", [1 << 20, 1 << 31, 0xFFFFFFFF])
def test_extended_directory_of_impossible_size(size: int, parts: Parts, plain: bytes) -> None:
    parts.set("marked directory", size=size)
    volume = opened_bytes(parts.assemble())
    node = find(volume, "marked directory")
    fails(lambda: list(volume.entries(node, 0)))
    fails(lambda: volume.lookup(node, b"zz"))
    tolerated(lambda: volume.attributes(node))
    assert readable(volume, plain)


def test_directories_that_are_nowhere(parts: Parts, plain: bytes) -> None:
    for fields in (
        {"start": 1},
        {"start": METADATA + 2},
        {"start": 1 << 20},
        {"start": 0xFFFFFFFF},
        {"offset": METADATA - 1},
        {"offset": METADATA},
        {"offset": 0xFFFF},
        {"offset": len(parts.directories)},
    ):
        changed = Parts.of(plain)
        changed.set("few", **fields)
        volume = opened_bytes(changed.assemble())
        few = find(volume, "few")
        fails(lambda volume=volume, few=few: list(volume.entries(few, 0)))
        fails(lambda volume=volume, few=few: volume.lookup(few, b"two"))
        assert readable(volume, plain, "large", "tail")


def test_listing_that_begins_anywhere(parts: Parts, plain: bytes) -> None:
    for offset in range(0, len(parts.directories), 23):
        for size in (54, 2000):
            parts.set("few", offset=offset, size=size)
            volume = opened_bytes(parts.assemble())
            few = find(volume, "few")
            tolerated(lambda volume=volume, few=few: all_of_names(volume, few))
            assert readable(volume, plain, "large", "tail")


def all_of_names(volume: Volume, node: int) -> None:
    for name, _, inner, _ in volume.entries(node, 0):
        tolerated(lambda name=name: volume.lookup(node, name))
        tolerated(lambda inner=inner: volume.attributes(inner))


def large_directory(parts: Parts, names: int = 1500) -> tuple[int, list[bytes]]:
    """Let `apart/directory` have this many names, all of one file, with an index. Returns the place of its inode."""
    small = parts.find("small").inode
    base = len(parts.directories)
    parts.directories += bytes(-base % METADATA)
    start = len(parts.directories) // METADATA * (METADATA + 2)
    wanted = [b"name %06d" % index for index in range(names)]
    listing, index = bytearray(), []
    for first in range(0, names, 200):
        group = wanted[first : first + 200]
        index.append((len(listing), group[0]))
        listing += struct.pack("<III", len(group) - 1, 0, 1)
        for name in group:
            listing += struct.pack("<HhHH", small, 0, 2, len(name) - 1) + name
    parts.directories += listing
    inode = bytearray(parts.inodes[parts.find("apart/directory").inode :][:40])
    for place, name in index[1:]:
        block = start + place // METADATA * (METADATA + 2)
        inode += struct.pack("<III", place, block, len(name) - 1) + name
    place = parts.add_large(bytes(inode))
    parts.set(place, size=len(listing) + 3, start=start, offset=0, index_count=len(index) - 1)
    parts.redirect("apart/directory", place)
    return place, wanted


def test_index_that_lies(plain: bytes) -> None:
    parts = Parts.of(plain)
    place, wanted = large_directory(parts)
    volume = opened_bytes(parts.assemble())
    node = find(volume, "apart/directory")
    assert [name for name, *_ in volume.entries(node, 0)][2:] == wanted
    assert all(volume.lookup(node, name) == find(volume, "small") for name in wanted[::100] + wanted[-1:])
    assert volume.lookup(node, b"name") is volume.lookup(node, b"zz") is None
    for position, value in (
        (0, 0),
        (0, 1),
        (0, 0x7FFFFFFF),
        (0, 0xFFFFFFFF),
        (4, 0),
        (4, 1),
        (4, 1 << 20),
        (4, 0xFFFFFFFF),
        (8, 255),
        (8, 256),
        (8, 0xFFFF),
        (8, 0xFFFFFFFF),
    ):
        for number in (0, 3, 6):
            parts = Parts.of(plain)
            place, _ = large_directory(parts)
            struct.pack_into("<I", parts.inodes, place + 40 + number * (12 + 11) + position, value)
            volume = opened_bytes(parts.assemble())
            node = find(volume, "apart/directory")
            for name in (wanted[0], wanted[700], wanted[-1], b"zz", b"a"):
                tolerated(lambda volume=volume, node=node, name=name: volume.lookup(node, name))
            names = tolerated(lambda volume=volume, node=node: [name for name, *_ in volume.entries(node, 0)][2:])
            assert names in (None, wanted)
            assert readable(volume, plain, "large", "tail")


@pytest.mark.parametrize("count", [0, 1, 8, 1000, 0xFFFF])
def test_index_of_impossible_length(count: int, parts: Parts, plain: bytes) -> None:
    place, wanted = large_directory(parts)
    parts.set(place, index_count=count)
    volume = opened_bytes(parts.assemble())
    node = find(volume, "apart/directory")
    tolerated(lambda: volume.attributes(node))
    for name in (wanted[0], wanted[700], wanted[-1], b"zz"):
        found = tolerated(lambda name=name: volume.lookup(node, name))
        assert found in (None, find(volume, "small"))
        if count <= 1 and name in wanted:
            assert found == find(volume, "small")
    assert readable(volume, plain, "large", "tail")


def test_index_without_order(parts: Parts, plain: bytes) -> None:
    """All names of it are the same, or the last comes first."""
    for names in ([b"name 000000"] * 7, [b"zzzz 000000"] * 7, [b"name 00%04d" % (9999 - n) for n in range(7)]):
        parts = Parts.of(plain)
        place, wanted = large_directory(parts)
        for number, name in enumerate(names):
            start = place + 40 + number * 23 + 12
            parts.inodes[start : start + 11] = name
        volume = opened_bytes(parts.assemble())
        node = find(volume, "apart/directory")
        for name in (wanted[0], wanted[700], wanted[-1], b"zz"):
            tolerated(lambda volume=volume, node=node, name=name: volume.lookup(node, name))
