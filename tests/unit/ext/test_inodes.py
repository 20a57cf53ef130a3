"""Times, owners, device numbers and sizes: what stat(2) tells."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from conftest import Opener
from ext_images import debugfs, find, mke2fs

SECOND = 10**9


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    (tree / "directory").mkdir()
    return mke2fs(tmp_path / "image", "-t", "ext4", "-b", "4096", "-d", tree)


@pytest.mark.parametrize(
    ("low", "extra", "expected"),
    [
        (0, 0, 0),
        (1, 5 << 2, SECOND + 5),
        (-1, 0, -SECOND),
        (-1, 999_999_999 << 2, -1),
        (-(1 << 31), 0, -(1 << 31) * SECOND),
        (-(1 << 31), 1, (1 << 31) * SECOND),
        (0, 1 | 123_456_789 << 2, (1 << 32) * SECOND + 123_456_789),
        ((1 << 31) - 1, 3, ((3 << 32) + (1 << 31) - 1) * SECOND),
    ],
)
def test_times(low: int, extra: int, expected: int, image: Path, opened: Opener) -> None:
    fields = ("mtime", "atime", "ctime")
    word = struct.unpack("<I", struct.pack("<i", low))[0]
    debugfs(
        image,
        *(f"sif /file {field} @0x{word:x}" for field in fields),
        *(f"sif /file {field}_extra 0x{extra:x}" for field in fields),
    )
    volume = opened(image)
    attributes = volume.attributes(find(volume, "file"))
    assert (attributes.mtime_ns, attributes.atime_ns, attributes.ctime_ns) == (expected, expected, expected)


@pytest.mark.parametrize(("extra_size", "which"), [(0, 3), (4, 0), (8, 1), (12, 2), (16, 3), (32, 3)])
def test_times_where_an_inode_has_room_for_them(extra_size: int, which: int, tmp_path: Path, opened: Opener) -> None:
    """ctime, mtime, atime: each has its additional bits only if i_extra_isize says so; 0 is taken for all of it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").touch()
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-O", "^metadata_csum", "-d", tree)
    fields = ("ctime", "mtime", "atime")
    debugfs(
        image,
        *(f"sif /file {field} @0x10" for field in fields),
        *(f"sif /file {field}_extra 0x1d" for field in fields),
        f"sif /file extra_isize {extra_size}",
    )
    volume = opened(image)
    attributes = volume.attributes(find(volume, "file"))
    full, plain = (16 + (1 << 32)) * SECOND + 7, 16 * SECOND
    found = (attributes.ctime_ns, attributes.mtime_ns, attributes.atime_ns)
    assert found == (full,) * which + (plain,) * (3 - which)


def test_times_of_small_inodes(tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").touch()
    os.utime(tree / "file", (10, 20))
    volume = opened(mke2fs(tmp_path / "image", "-t", "ext4", "-I", "128", "-d", tree))
    assert volume.attributes(find(volume, "file")).mtime_ns == 20 * SECOND


def test_devices(image: Path, opened: Opener) -> None:
    numbers = {
        "null": ("c", 1, 3),
        "disk": ("b", 8, 1),
        "large": ("b", 259, 50_000),
        "most": ("c", 4095, (1 << 20) - 1),
    }
    debugfs(
        image,
        *(f"mknod {name} {kind} {major} {minor & 0xFFFF}" for name, (kind, major, minor) in numbers.items()),
        "sif most block[1] 0xFFFFFFFF",  # debugfs takes no minor numbers above 65535.
    )
    volume = opened(image)
    for name, (kind, major, minor) in numbers.items():
        attributes = volume.attributes(find(volume, name))
        assert attributes.rdev == os.makedev(major, minor)
        assert attributes.mode >> 12 == {"c": 2, "b": 6}[kind]
    assert volume.attributes(find(volume, "file")).rdev == 0


def test_owners_and_links_beyond_16_bits(image: Path, opened: Opener) -> None:
    debugfs(
        image,
        *("sif /file uid_lo 34464", "sif /file uid_hi 1", "sif /file gid 200000"),
        *("sif /directory links_count 1", "sif /file links_count 65000"),
    )
    volume = opened(image)
    attributes = volume.attributes(find(volume, "file"))
    assert (attributes.uid, attributes.gid) == (100_000, 200_000)
    assert attributes.nlink == 65_000
    assert volume.attributes(find(volume, "directory")).nlink == 1


def test_sizes(image: Path, opened: Opener) -> None:
    """i_size_high; and i_blocks, which under huge_file has 48 bits and may count whole blocks."""
    debugfs(image, "sif /file size 0x7fffffff123", "sif /file blocks_lo 24", "sif /file blocks_hi 1")
    volume = opened(image)
    attributes = volume.attributes(find(volume, "file"))
    assert (attributes.size, attributes.blocks) == (0x7FFFFFFF123, 24 + (1 << 32))
    debugfs(image, "sif /file blocks_hi 0", "sif /file flags 0xC0000")
    volume = opened(image)
    assert volume.attributes(find(volume, "file")).blocks == 24 * 8
