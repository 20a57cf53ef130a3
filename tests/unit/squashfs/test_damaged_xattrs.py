"""Extended attributes that lie."""

from __future__ import annotations

import struct

import pytest

from tests.unit.squashfs.squashfs_damage import all_of, either, fails, readable, refused, tolerated
from tests.unit.squashfs.squashfs_images import content, find, opened_bytes
from tests.unit.squashfs.squashfs_parts import METADATA, NOTHING, SUPERBLOCK, Parts, patched, peek

pytestmark = [pytest.mark.bounded_memory, pytest.mark.usefixtures("bounded_time")]


def test_xattr_index_out_of_range(parts: Parts, plain: bytes) -> None:
    for index in (len(parts.xattr_ids), 512, 0x7FFFFFFF, 0xFFFFFFFE):
        for path in ("marked", "marked directory", "marked link", "marked null", "marked fifo"):
            if path != "marked link":
                parts.set(path, xattr=index)
        place = parts.find("marked link").inode + 24 + parts.get("marked link", "size")
        struct.pack_into("<I", parts.inodes, place, index)
        volume = opened_bytes(parts.assemble())
        for path in ("marked", "marked directory", "marked link", "marked null", "marked fifo"):
            fails(lambda volume=volume, path=path: dict(volume.xattrs(find(volume, path))))
            assert volume.attributes(find(volume, path)).nlink
        assert content(volume, find(volume, "marked")) == b"x"
        assert dict(volume.xattrs(find(volume, "marked too")))
    assert readable(volume, plain)


def test_inodes_with_xattrs_where_there_is_no_table(plain: bytes) -> None:
    volume = opened_bytes(patched(plain, xattr_table=NOTHING))
    assert volume.no_xattrs
    for path in ("marked", "marked link", "small"):
        assert not tolerated(lambda path=path: dict(volume.xattrs(find(volume, path))))
    assert content(volume, find(volume, "marked")) == b"x"


@pytest.mark.parametrize("count", [0, 1, 3, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF])
def test_table_of_xattrs_of_impossible_length(count: int, plain: bytes) -> None:
    changed = bytearray(plain)
    struct.pack_into("<I", changed, peek(plain, SUPERBLOCK, "xattr_table") + 8, count)
    either(bytes(changed), all_of)


@pytest.mark.parametrize("start", [0, 96, 57_344, 1 << 40, 1 << 63, NOTHING], ids=hex)
def test_names_of_xattrs_that_are_nowhere(start: int, plain: bytes) -> None:
    changed = bytearray(plain)
    struct.pack_into("<Q", changed, peek(plain, SUPERBLOCK, "xattr_table"), start)
    refused(bytes(changed), lambda volume: dict(volume.xattrs(find(volume, "marked"))))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        *((0, value) for value in (0xFFFF, 1 << 16, 1 << 40, NOTHING, METADATA, 8191)),
        *((1, value) for value in (0, 1, 4, 1 << 16, 1 << 31, 0xFFFFFFFF)),
        *((2, value) for value in (0, 1, 1 << 31, 0xFFFFFFFF)),
    ],
)
def test_set_of_xattrs_that_lies(position: int, value: int, parts: Parts, plain: bytes) -> None:
    """Where its first is, how many there are, and how many bytes."""
    index = parts.get("marked", "xattr")
    real = parts.xattr_ids[index]
    parts.xattr_ids[index] = tuple(value if field == position else old for field, old in enumerate(real))  # type: ignore[assignment]
    volume = opened_bytes(parts.assemble())
    node = find(volume, "marked")
    if position == 0 or (position == 1 and value > 1000):
        fails(lambda: dict(volume.xattrs(node)))
    else:
        tolerated(lambda: dict(volume.xattrs(node)))
    assert content(volume, node) == b"x"
    assert dict(volume.xattrs(find(volume, "marked directory"))) == {b"user.d": b"4"}
    assert readable(volume, plain)


def xattr_places(parts: Parts, path: str) -> dict[bytes, int]:
    """Where the entries of a file are, by name without prefix."""
    reference, count, _ = parts.xattr_ids[parts.get(path, "xattr")]
    place, found = reference, {}
    for _ in range(count):
        size = struct.unpack_from("<H", parts.xattrs, place + 2)[0]
        found[bytes(parts.xattrs[place + 4 : place + 4 + size])] = place
        place += 4 + size
        place += 4 + int(struct.unpack_from("<I", parts.xattrs, place)[0])
    return found


@pytest.mark.parametrize("kind", [3, 4, 0xFF, 0x103, 0x200, 0x8000, 0xFFFF])
def test_xattr_of_unknown_namespace(kind: int, parts: Parts) -> None:
    """The driver leaves those out whose namespace it does not know."""
    struct.pack_into("<H", parts.xattrs, xattr_places(parts, "marked")[b"a"], kind)
    volume = opened_bytes(parts.assemble())
    found = tolerated(lambda: dict(volume.xattrs(find(volume, "marked"))))
    if isinstance(found, dict):
        assert b"security.b" in found
        assert all(name.split(b".")[0] in (b"user", b"trusted", b"security") for name in found)


def test_xattr_with_names_and_values_of_impossible_length(parts: Parts, plain: bytes) -> None:
    place = xattr_places(parts, "marked directory")[b"d"]
    for position, form, value in (
        (2, "<H", 0),
        (2, "<H", 256),
        (2, "<H", 0xFFFF),
        (5, "<I", 65_537),
        (5, "<I", 1 << 20),
        (5, "<I", 1 << 31),
        (5, "<I", 0xFFFFFFFF),
    ):
        changed = Parts.of(plain)
        struct.pack_into(form, changed.xattrs, place + position, value)
        volume = opened_bytes(changed.assemble())
        node = find(volume, "marked directory")
        if value:
            fails(lambda volume=volume, node=node: dict(volume.xattrs(node)))
        else:
            tolerated(lambda volume=volume, node=node: dict(volume.xattrs(node)))
        assert volume.attributes(node).nlink == 2
        assert readable(volume, plain)


def test_value_out_of_line_that_is_nowhere(parts: Parts, plain: bytes) -> None:
    """Or that leads to itself."""
    path = next(name for name in ("marked", "marked too") if _out_of_line(parts, name) is not None)
    place = _out_of_line(parts, path)
    assert place is not None
    reference = place + 4 + len("shared") + 4
    for target in (place, reference - 4, reference, len(parts.xattrs), 0x1FFF, 0xFFFF, 1 << 16, 1 << 40, NOTHING):
        changed = Parts.of(plain)
        struct.pack_into("<Q", changed.xattrs, reference, target)
        volume = opened_bytes(changed.assemble())
        node = find(volume, path)
        value = tolerated(lambda volume=volume, node=node: dict(volume.xattrs(node)))
        if target >= len(parts.xattrs):
            assert value is None
        assert content(volume, node)
        assert readable(volume, plain)
    for size in (0, 7, 9, 1 << 20, 0xFFFFFFFF):  # Of the reference itself, which is 8 bytes.
        changed = Parts.of(plain)
        struct.pack_into("<I", changed.xattrs, reference - 4, size)
        volume = opened_bytes(changed.assemble())
        node = find(volume, path)
        tolerated(lambda volume=volume, node=node: dict(volume.xattrs(node)))
        if size == 1 << 20:
            fails(lambda volume=volume, node=node: dict(volume.xattrs(node)))
        assert readable(volume, plain)


def _out_of_line(parts: Parts, path: str) -> int | None:
    place = xattr_places(parts, path)[b"shared"]
    return place if struct.unpack_from("<H", parts.xattrs, place)[0] & 0x100 else None


def test_many_xattrs_of_one_value(parts: Parts) -> None:
    """Each of 20,000 entries refers to the same 64 KiB: what is asked for is more than a gigabyte."""
    value_place = len(parts.xattrs) + (-len(parts.xattrs) % METADATA)
    parts.xattrs += bytes(value_place - len(parts.xattrs))
    parts.xattrs += struct.pack("<HH", 0, 1) + b"v" + struct.pack("<I", 65_536) + bytes(65_536)
    parts.xattrs += bytes(-len(parts.xattrs) % METADATA)
    value = (value_place // METADATA * (METADATA + 2)) << 16 | 5
    first = len(parts.xattrs) // METADATA * (METADATA + 2) << 16
    count = 20_000
    entries = (struct.pack("<HHHIQ", 0x100, 2, index, 8, value) for index in range(count))
    parts.xattrs += b"".join(entries)
    parts.xattr_ids[parts.get("marked", "xattr")] = first, count, 0xFFFFFFFF
    volume = opened_bytes(parts.assemble())
    node = find(volume, "marked")
    names = tolerated(lambda: list(volume.xattrs(node)))
    assert names is None or len(names) == count  # type: ignore[arg-type]


def test_many_files_with_large_xattrs(parts: Parts) -> None:
    """A list of 150 names, each of which refers to the same 64 KiB, is that of 100 files: as many lists, so that the
    reader may well keep some of them, but not all."""
    parts.xattrs += bytes(-len(parts.xattrs) % METADATA)
    value = (len(parts.xattrs) // METADATA * (METADATA + 2)) << 16
    parts.xattrs += struct.pack("<I", 65_536) + bytes(65_536)
    parts.xattrs += bytes(-len(parts.xattrs) % METADATA)
    first = len(parts.xattrs) // METADATA * (METADATA + 2) << 16
    parts.xattrs += b"".join(struct.pack("<HHHIQ", 0x100, 2, index, 8, value) for index in range(150))
    inode = bytearray(parts.inodes[parts.find("marked fifo").inode :][:24])
    parts.inodes += bytes(-len(parts.inodes) % METADATA)
    paths = [f"many/name {index:03d}" for index in range(100)]
    for path in paths:
        struct.pack_into("<I", inode, 20, len(parts.xattr_ids))
        parts.xattr_ids.append((first, 150, 150 * 65_536))
        parts.replace(path, bytes(inode))
    volume = opened_bytes(parts.assemble())
    for path in paths:
        node = find(volume, path)
        tolerated(lambda node=node: [len(value) for value in dict(volume.xattrs(node)).values()] == [65_536] * 150)
