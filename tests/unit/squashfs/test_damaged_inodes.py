"""Inodes and symbolic links that lie."""

from __future__ import annotations

import stat
import struct

import pytest

from tests.unit.squashfs.squashfs_damage import all_of, all_of_one, either, fails, readable, tolerated
from tests.unit.squashfs.squashfs_images import content, find, opened_bytes
from tests.unit.squashfs.squashfs_parts import METADATA, Parts, peek

pytestmark = [pytest.mark.bounded_memory, pytest.mark.usefixtures("bounded_time")]

BLOCK = 4096


@pytest.mark.parametrize("kind", [0, 15, 16, 0x0102, 0xFFFF])
def test_inode_of_unknown_type(kind: int, parts: Parts, plain: bytes) -> None:
    parts.set("small", type=kind)
    volume = opened_bytes(parts.assemble())
    node = volume.lookup(volume.root, b"small")
    assert node is not None
    for call in (volume.attributes, volume.xattrs, volume.readlink, lambda node: volume.read(node, 0, 1)):
        fails(lambda call=call: call(node))
    assert readable(volume, plain)


def test_inode_of_another_type(parts: Parts) -> None:
    """Bytes that were meant for one kind, read as each other."""
    for path in ("small", "few", "link", "null", "fifo", "sparse", "marked", "marked directory", "marked link"):
        real = parts.get(path, "type")
        for kind in range(1, 15):
            place = parts.find(path).inode
            parts.inodes[place] = kind
            either(parts.assemble(), all_of)
            parts.inodes[place] = real


def test_type_of_entry_and_inode_differ(parts: Parts, plain: bytes) -> None:
    for path, kind in (("small", 1), ("few", 2), ("link", 2), ("small", 0), ("small", 8), ("small", 0xFFFF)):
        real = peek(parts.directories, {"type": (4, "<H")}, "type", parts.find(path).entry)
        parts.set_entry(path, type=kind)
        volume = opened_bytes(parts.assemble())
        tolerated(lambda volume=volume: all_of(volume))
        for name in ("large", "sparse", "tail"):
            tolerated(lambda volume=volume, name=name: content(volume, find(volume, name)))
        parts.set_entry(path, type=real)


def test_inodes_that_are_nowhere(parts: Parts, plain: bytes) -> None:
    entry = parts.find("few/one")
    for offset in (len(parts.inodes) - 1, len(parts.inodes), METADATA - 1, METADATA, 0xFFFF):
        parts.set_entry("few/one", offset=offset)
        volume = opened_bytes(parts.assemble())
        tolerated(lambda volume=volume: all_of(volume))
        fails(lambda volume=volume: content(volume, find(volume, "few/one")))
        assert readable(volume, plain, "large", "tail")
    parts.set_entry("few/one", offset=parts.find("few").inode)
    for start in (1, METADATA, METADATA + 2, 1 << 20, 0xFFFFFFFF):
        struct.pack_into("<I", parts.directories, entry.header + 4, start)
        volume = opened_bytes(parts.assemble())
        fails(lambda volume=volume: content(volume, find(volume, "few/one")))
        assert readable(volume, plain, "large", "tail")


def test_inode_in_the_middle_of_another(parts: Parts, plain: bytes) -> None:
    for offset in range(0, len(parts.inodes), 17):
        parts.set_entry("few/one", offset=offset)
        volume = opened_bytes(parts.assemble())
        tolerated(lambda volume=volume: all_of(volume))
        tolerated(lambda volume=volume: all_of_one(volume, "few/one"))
        assert readable(volume, plain, "large", "tail")


def test_owner_out_of_range(parts: Parts, plain: bytes) -> None:
    for name in ("uid", "gid"):
        for index in (len(parts.ids), len(parts.ids) + 1, 2048, 0xFFFF):
            real = parts.get("small", name)
            parts.set("small", **{name: index})
            volume = opened_bytes(parts.assemble())
            fails(lambda volume=volume: volume.attributes(find(volume, "small")))
            assert readable(volume, plain)
            parts.set("small", **{name: real})


def test_numbers_of_inodes(parts: Parts) -> None:
    for number in (0, 123, 0xFFFFFFFF):
        parts.set("small", number=number)
        either(parts.assemble(), all_of)


@pytest.mark.parametrize("nlink", [0, 1, 0xFFFFFFFF])
def test_numbers_of_links(nlink: int, parts: Parts) -> None:
    for path in ("few", "link", "null", "fifo", "large", "marked directory"):
        parts.set(path, nlink=nlink)
    volume = opened_bytes(parts.assemble())
    tolerated(lambda: all_of(volume))


def test_modes_with_a_type_in_them(parts: Parts) -> None:
    """The type is what the inode's type says; the bits of another must not be mixed in."""
    parts.set("small", mode=0o040755 | 0o7000)
    volume = opened_bytes(parts.assemble())
    mode = tolerated(lambda: volume.attributes(find(volume, "small")).mode)
    assert mode in (None, stat.S_IFREG | 0o7755)


# Symbolic links


@pytest.mark.parametrize("size", [65_537, 1 << 20, 1 << 30, 0x7FFFFFFF, 0xFFFFFFFF])
def test_link_of_impossible_length(size: int, parts: Parts, plain: bytes) -> None:
    for path in ("link", "marked link"):
        parts.set(path, size=size)
    volume = opened_bytes(parts.assemble())
    for path in ("link", "marked link"):
        fails(lambda path=path: volume.readlink(find(volume, path)))
        tolerated(lambda path=path: volume.xattrs(find(volume, path)))
    assert readable(volume, plain)


def test_link_that_ends_with_the_table(parts: Parts) -> None:
    place = parts.replace("link", parts.inodes[parts.find("link").inode :][:24] + b"target")
    parts.set(place, size=6)
    volume = opened_bytes(parts.assemble())
    assert volume.readlink(find(volume, "link")) == b"target"
    parts.set(place, size=7)
    volume = opened_bytes(parts.assemble())
    fails(lambda: volume.readlink(find(volume, "link")))


def test_empty_link(parts: Parts) -> None:
    parts.set("link", size=0)
    volume = opened_bytes(parts.assemble())
    assert tolerated(lambda: bytes(volume.readlink(find(volume, "link")))) in (None, b"")
