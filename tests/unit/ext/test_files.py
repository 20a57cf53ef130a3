"""Bytes of files: extent trees, indirect blocks, holes, and how often the source is read for them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from conftest import Opener
from ext_images import check, content, debugfs, find, mke2fs

from tests.unit.images import MemoryImage
from viewfs.modules.formats.ext.volume import Volume


def sparse(path: Path, size: int, positions: list[int]) -> Path:
    """A file of `size` bytes with data at `positions`; the same again and again."""
    with open(path, "wb") as file:
        for position in positions:
            file.seek(position)
            file.write(random.Random(position).randbytes(4096))
        file.truncate(size)
    return path


def assert_same(volume: Volume, inode: int, path: Path, positions: list[int]) -> None:
    with open(path, "rb") as file:
        for position in positions:
            start = max(position - 10_000, 0)
            file.seek(start)
            assert volume.read(inode, start, 24_000) == file.read(24_000), position


INDIRECT = [0, 8 * 1024, 12 * 1024, 260 * 1024, 268 * 1024, 300 * 1024, 1 << 20, 65 << 20, 66 << 20, 70 << 20]


@pytest.mark.parametrize("block_size", [1024, 2048, 4096])
def test_indirect_blocks_of_three_levels(block_size: int, tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    scale = {1024: 1, 2048: 16, 4096: 80}[block_size]  # So that 70 MiB become more than two levels hold.
    positions = [position * scale // 4096 * 4096 for position in INDIRECT]
    path = sparse(tree / "file", positions[-1] + 5000, positions)
    image = mke2fs(tmp_path / "image", "-t", "ext2", "-b", str(block_size), "-d", tree)
    check(image)
    assert "TIND" in debugfs(image, "stat /file")
    volume = opened(image)
    inode = find(volume, "file")
    assert volume.attributes(inode).size == path.stat().st_size
    assert_same(volume, inode, path, positions)
    assert volume.read(inode, positions[-1] - (1 << 20), 1 << 20) == bytes(1 << 20)


@pytest.mark.parametrize("options", [("ext4", "-b", "1024"), ("ext4", "-b", "4096"), ("ext3", "-b", "4096")])
def test_very_fragmented_file(options: tuple[str, ...], tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    positions = [index * 8192 for index in range(1500)]
    path = sparse(tree / "file", positions[-1] + 6000, positions)
    image = mke2fs(tmp_path / "image", "-t", *options, "-d", tree, size="24M")
    check(image)
    volume = opened(image)
    assert content(volume, find(volume, "file")) == path.read_bytes()
    assert_same(volume, find(volume, "file"), path, positions[::50])


def test_sparse_file_of_a_tebibyte(tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    end = 1 << 40
    path = sparse(tree / "file", end, [0, end // 2, end - 8192])
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-d", tree)
    volume = opened(image)
    inode = find(volume, "file")
    assert volume.attributes(inode).size == end
    assert_same(volume, inode, path, [0, end // 2, end - 8192])
    assert volume.read(inode, end - 10, 100) == bytes(10)
    assert volume.read(inode, end, 100) == b""


def test_unwritten_extents_are_zeros(tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 8192)
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-b", "4096", "-d", tree)
    debugfs(image, "fallocate /file 2 9", "sif /file size 32768")
    assert "Uninit" in debugfs(image, "dump_extents /file")
    volume = opened(image)
    assert content(volume, find(volume, "file")) == b"x" * 8192 + bytes(32768 - 8192)


def test_contiguous_bytes_are_read_at_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    data = random.Random(3).randbytes(3_000_000)
    (tree / "file").write_bytes(data)
    for kind in ("ext2", "ext4"):
        image = mke2fs(tmp_path / kind, "-t", kind, "-b", "4096", "-d", tree)
        source = MemoryImage(image.read_bytes())
        volume = Volume.open(source)
        inode = find(volume, "file")
        assert volume.read(inode, 1_000_000, 1_000_000) == data[1_000_000:2_000_000]
        source.reads.clear()
        assert volume.read(inode, 500_000, 123_456) == data[500_000:623_456]
        assert [size for size, _ in source.reads] == [123_456]


def test_odd_requests(tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"0123456789")
    (tree / "directory").mkdir()
    (tree / "link").symlink_to("file")
    os.mkfifo(tree / "fifo")
    volume = opened(mke2fs(tmp_path / "image", "-t", "ext4", "-d", tree))
    inode = find(volume, "file")
    assert volume.read(inode, 0, 0) == volume.read(inode, 10, 5) == volume.read(inode, 1 << 62, 5) == b""
    assert volume.read(inode, 3, 1 << 62) == b"3456789"
    for call, error in (
        (lambda: volume.read(find(volume, "directory"), 0, 1), IsADirectoryError),
        (lambda: volume.read(find(volume, "fifo"), 0, 1), OSError),
        (lambda: volume.readlink(inode), OSError),
        (lambda: volume.lookup(inode, b"x"), NotADirectoryError),
        (lambda: volume.entries(inode, 0), NotADirectoryError),
        (lambda: volume.attributes(0), OSError),
        (lambda: volume.attributes(1 << 40), OSError),
        (lambda: volume.attributes(-1), OSError),
        (lambda: volume.attributes(50), OSError),
    ):
        with pytest.raises(error):
            call()


def test_inline_file_that_was_made_longer(tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"y" * 100)
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-O", "inline_data", "-d", tree)
    debugfs(image, "sif /file size 5000")
    volume = opened(image)
    inode = find(volume, "file")
    assert content(volume, inode) == b"y" * 100 + bytes(4900)
    assert volume.read(inode, 4000, 10) == bytes(10)
