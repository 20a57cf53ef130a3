"""Whatever features a file system has, it reads as the tree it was made of."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from conftest import Opener
from ext_images import check, content, debugfs, e2fsck, find, mke2fs, stats, walk

from viewfs.modules.formats.ext.volume import ROOT, Volume

MIXES: dict[str, tuple[str, ...]] = {
    "ext2-1k": ("-t", "ext2", "-b", "1024"),
    "ext2-4k": ("-t", "ext2", "-b", "4096"),
    "ext2-revision-0": ("-t", "ext2", "-b", "1024", "-r", "0"),
    "ext2-without-filetype": ("-t", "ext2", "-O", "^filetype"),
    "ext2-without-dir_index": ("-t", "ext2", "-O", "^dir_index"),
    "ext2-without-sparse_super": ("-t", "ext2", "-b", "1024", "-g", "1024", "-O", "^sparse_super,^resize_inode"),
    "ext3-1k": ("-t", "ext3", "-b", "1024"),
    "ext3-4k": ("-t", "ext3", "-b", "4096"),
    "ext4-1k": ("-t", "ext4", "-b", "1024"),
    "ext4-2k": ("-t", "ext4", "-b", "2048"),
    "ext4-4k": ("-t", "ext4", "-b", "4096"),
    "ext4-64k": ("-t", "ext4", "-b", "65536"),
    "128-byte-inodes": ("-t", "ext4", "-I", "128"),
    "1024-byte-inodes": ("-t", "ext4", "-b", "4096", "-I", "1024"),
    "uninit_bg": ("-t", "ext4", "-b", "1024", "-g", "2048", "-O", "^metadata_csum,uninit_bg"),
    "uninit_bg-32bit": ("-t", "ext4", "-b", "1024", "-g", "2048", "-O", "^metadata_csum,uninit_bg,^64bit"),
    "no-checksums": ("-t", "ext4", "-O", "^metadata_csum"),
    "metadata_csum_seed": ("-t", "ext4", "-O", "metadata_csum,metadata_csum_seed"),
    "without-64bit": ("-t", "ext4", "-O", "^64bit"),
    "without-extents": ("-t", "ext4", "-b", "1024", "-O", "^extent,^64bit"),
    "without-flex_bg": ("-t", "ext4", "-b", "1024", "-g", "1024", "-O", "^flex_bg"),
    "without-huge_file": ("-t", "ext4", "-O", "^huge_file,^extra_isize,^dir_nlink"),
    "without-journal": ("-t", "ext4", "-O", "^has_journal"),
    "meta_bg": ("-t", "ext4", "-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode,^flex_bg"),
    "bigalloc-1k": ("-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"),
    "bigalloc-1k-meta_bg": ("-t", "ext4", "-b", "1024", "-O", "bigalloc,meta_bg,^resize_inode", "-C", "16384"),
    "bigalloc-4k": ("-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "65536"),
    "inline_data": ("-t", "ext4", "-b", "1024", "-O", "inline_data"),
    "inline_data-1k-inodes": ("-t", "ext4", "-b", "4096", "-I", "1024", "-O", "inline_data"),
    "inline_data-no-checksums": ("-t", "ext4", "-b", "4096", "-O", "inline_data,^metadata_csum"),
    "sparse_super2": ("-t", "ext4", "-b", "1024", "-g", "1024", "-O", "sparse_super2,^resize_inode"),
    "ea_inode": ("-t", "ext4", "-I", "512", "-O", "ea_inode"),
    "casefold": ("-t", "ext4", "-O", "casefold", "-E", "encoding=utf8"),
    "large_dir": ("-t", "ext4", "-O", "large_dir"),
    "quota": ("-t", "ext4", "-O", "quota,project", "-I", "256"),
    "orphan_file": ("-t", "ext4", "-O", "orphan_file"),
    "encrypt-and-verity": ("-t", "ext4", "-O", "encrypt,verity,stable_inodes"),
    "fast_commit": ("-t", "ext4", "-O", "fast_commit"),
}


@pytest.fixture(params=MIXES)
def image(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Path:
    options = MIXES[request.param]
    if request.param == "sparse_super2" or "64k" in request.param:
        return mke2fs(tmp_path / "image", *options, "-d", tree, size="32M")
    return mke2fs(tmp_path / "image", *options, "-d", tree, size="24M", unsupported="Invalid filesystem option set")


def compare(volume: Volume, image: Path, tree: Path) -> None:
    """Paths, content, and every attribute."""
    found = dict(walk(volume))
    expected = {os.fsencode(path.relative_to(tree)) for path in tree.rglob("*")}
    assert set(found) == expected
    told = stats(image, found.values())
    for path, inode in found.items():
        source = tree / os.fsdecode(path)
        attributes, wanted = volume.attributes(inode), source.lstat()
        assert (attributes.mode, attributes.uid, attributes.gid) == (wanted.st_mode, wanted.st_uid, wanted.st_gid)
        assert attributes.mtime_ns // 10**9 == wanted.st_mtime_ns // 10**9
        if not stat.S_ISDIR(wanted.st_mode):
            assert attributes.nlink == wanted.st_nlink
            assert attributes.size == wanted.st_size
        if stat.S_ISREG(wanted.st_mode):
            data = source.read_bytes()
            assert volume.read(inode, 0, len(data) + 1) == data, path
            for offset, size in ((0, 1), (59, 3), (1023, 2), (65_000, 70_000), (len(data) - 1, 9), (len(data), 1)):
                assert volume.read(inode, max(offset, 0), size) == data[max(offset, 0) :][:size]
        elif stat.S_ISLNK(wanted.st_mode):
            assert volume.readlink(inode) == os.fsencode(os.readlink(source))
        assert list(volume.xattrs(inode)) == []
        mine = (attributes.size, attributes.nlink, attributes.blocks, attributes.atime_ns, attributes.mtime_ns)
        theirs = told[inode]
        # Content in the inode takes up no blocks, but the kernel has it count, lest it looks like a hole.
        inline = attributes.size + 511 >> 9 if theirs.kind == "regular" and theirs.flags & 0x10000000 else 0
        assert mine == (theirs.size, theirs.nlink, theirs.blocks + inline, theirs.atime_ns, theirs.mtime_ns), path
        assert attributes.ctime_ns == theirs.ctime_ns
        directory, _, name = path.rpartition(b"/")
        assert volume.lookup(find(volume, directory) if directory else ROOT, name) == inode


def test_reads_as_the_tree(image: Path, tree: Path, opened: Opener) -> None:
    compare(opened(image), image, tree)


def test_reads_as_the_tree_with_indexed_directories(image: Path, tree: Path, opened: Opener) -> None:
    e2fsck(image, "-D")
    check(image)
    compare(opened(image), image, tree)


def test_tells_of_the_file_system(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-L", "label", "-m", "5", "-d", tree)
    volume = opened(image)
    facts = {}
    for line in debugfs(image, "stats -h").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            facts[name] = value.strip()
    assert (volume.label, volume.uuid) == ("label", facts["Filesystem UUID"])
    assert list(volume.features) == facts["Filesystem features"].split()
    statistics = volume.statistics()
    assert statistics.block_size == int(facts["Block size"])
    assert statistics.blocks == int(facts["Block count"]) - int(facts.get("Overhead clusters", 0))
    assert statistics.free_blocks == int(facts["Free blocks"])
    # The kernel keeps a fiftieth for itself besides.
    kept = int(facts["Reserved block count"]) + int(facts["Block count"]) // 50
    assert statistics.available_blocks == statistics.free_blocks - kept
    assert (statistics.files, statistics.free_files) == (int(facts["Inode count"]), int(facts["Free inodes"]))
    assert (volume.replayed, volume.warnings, volume.no_xattrs) == (0, (), False)


def test_multiple_mount_protection_does_not_matter(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-d", tree)
    debugfs(image, "feature mmp")  # mke2fs and every later opening would wait for eleven seconds.
    volume = opened(image)
    assert "mmp" in volume.features
    assert content(volume, find(volume, "large")) == (tree / "large").read_bytes()


def test_file_system_inside_a_larger_image(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-d", tree)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20) + image.read_bytes())
    compare(opened(disk, offset=1 << 20), image, tree)
