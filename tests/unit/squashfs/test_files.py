"""Every kind of file, by every compressor: the same as in the tree it was made of, and as unsquashfs says.

Numbers that squashfs makes up (the sizes of directories, how many inodes there are) are compared with unsquashfs, and
all that a file system has with what unsquashfs extracts.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.images import ImageFile
from tests.unit.squashfs.conftest import Opener, text
from tests.unit.squashfs.squashfs_images import (
    COMPRESSORS,
    assert_same_tree,
    available,
    content,
    find,
    listing,
    mksquashfs,
    names_in,
    opened_bytes,
    superblock_says,
    unsquashfs,
    unsquashfs_listing,
    walk,
)
from tests.unit.squashfs.squashfs_parts import Parts, peek
from viewfs.modules.formats.squashfs.volume import Volume

BLOCK_SIZES = {"4K": 4096, "128K": 1 << 17, "1M": 1 << 20}
#: Only root can make these in a tree.
DEVICES = """\
null c 666 0 0 1 3
disk b 660 1 6 259 1048575
great c 600 4294967294 4294967293 4095 300000
"""
DEVICE_NAMES = frozenset({b"null", b"disk", b"great"})


def assert_devices(volume: Volume) -> None:
    for path, mode, uid, gid, device in (
        ("null", stat.S_IFCHR | 0o666, 0, 0, os.makedev(1, 3)),
        ("disk", stat.S_IFBLK | 0o660, 1, 6, os.makedev(259, 1048575)),
        ("great", stat.S_IFCHR | 0o600, 4294967294, 4294967293, os.makedev(4095, 300_000)),
    ):
        attributes = volume.attributes(find(volume, path))
        assert (attributes.mode, attributes.rdev) == (mode, device)
        assert (attributes.uid, attributes.gid, attributes.nlink) == (uid, gid, 1)


def assert_statistics(volume: Volume, image: Path) -> None:
    said = superblock_says(image)
    statistics = volume.statistics()
    assert statistics.files == said["inodes"]
    assert statistics.free_blocks == statistics.available_blocks == statistics.free_files == 0
    assert 0 <= statistics.blocks * statistics.block_size - said["Filesystem size"] < statistics.block_size
    assert volume.block_size == said["Block size"]
    inodes = {node: volume.attributes(node).shown_ino for node in {node for _, node in walk(volume)} | {volume.root}}
    assert sorted(inodes.values()) == list(range(1, said["inodes"] + 1))


# All of it


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_every_kind_of_file(
    compressor: str, block_size: str, trees: Callable[[int], Path], tmp_path: Path, opened: Opener
) -> None:
    tree = trees(BLOCK_SIZES[block_size])
    options = ("-comp", available(compressor), "-b", block_size)
    image = mksquashfs(tmp_path / "image", tree, *options, pseudo=DEVICES)
    volume = opened(image)
    assert volume.compression == compressor
    assert len(assert_same_tree(volume, tree, ignored=DEVICE_NAMES)) > 80
    assert_devices(volume)
    assert_statistics(volume, image)
    assert listing(volume) == unsquashfs_listing(image)
    with ImageFile(image) as source:
        assert Volume.probe(source)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_unsquashfs_extracts_the_same(compressor: str, tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mksquashfs(tmp_path / "image", tree, "-comp", available(compressor), "-b", "4K", pseudo=DEVICES)
    out = unsquashfs(image, tmp_path / "out")
    try:
        # It makes no setuid and setgid files for an ordinary user.
        bits = 0o7777 if os.geteuid() == 0 else 0o1777
        assert_same_tree(opened(image), out, owners=False, bits=bits, ignored=DEVICE_NAMES)
    finally:
        shutil.rmtree(out)


@pytest.mark.parametrize(
    "options",
    [
        ("-no-fragments",),
        ("-always-use-fragments",),
        ("-noI",),
        ("-noD",),
        ("-noF",),
        ("-noI", "-noD", "-noF", "-noX"),
        ("-noI", "-noD", "-noF", "-noX", "-no-fragments"),
        ("-noD", "-noF", "-comp", "lz4"),
        ("-no-exports",),
        ("-no-xattrs",),
        ("-nopad",),
        ("-no-duplicates",),
        ("-no-sparse",),
        ("-no-sparse", "-always-use-fragments", "-comp", "zstd"),
        ("-not-reproducible",),
        ("-b", "8K", "-always-use-fragments", "-comp", "xz"),
        ("-comp", "gzip", "-Xcompression-level", "1", "-Xwindow-size", "8"),
        ("-comp", "gzip", "-Xstrategy", "default,filtered,huffman_only,run_length_encoded,fixed"),
        ("-comp", "xz", "-Xbcj", "x86,arm,powerpc", "-b", "64K"),
        ("-comp", "xz", "-Xdict-size", "8K", "-b", "256K"),
        ("-comp", "lz4", "-Xhc"),
        ("-comp", "lzo", "-Xalgorithm", "lzo1x_1"),
        ("-comp", "lzo", "-Xalgorithm", "lzo1x_1_15", "-b", "512K"),
        ("-comp", "zstd", "-Xcompression-level", "1"),
        ("-comp", "zstd", "-Xcompression-level", "22", "-b", "1M"),
    ],
    ids=" ".join,
)
def test_options_of_mksquashfs(options: tuple[str, ...], tree: Path, tmp_path: Path, opened: Opener) -> None:
    if "-comp" in options:
        available(options[options.index("-comp") + 1])
    elif "-b" not in options:
        options = ("-b", "4K", *options)
    image = mksquashfs(tmp_path / "image", tree, *options, pseudo=DEVICES)
    volume = opened(image)
    assert_same_tree(volume, tree, ignored=DEVICE_NAMES)
    assert_devices(volume)
    assert_statistics(volume, image)
    assert listing(volume) == unsquashfs_listing(image)


@pytest.mark.parametrize("option", ["-all-root", "-root-owned"])
def test_all_files_of_root(option: str, tree: Path, tmp_path: Path, opened: Opener) -> None:
    volume = opened(mksquashfs(tmp_path / "image", tree, option, "-b", "4K"))
    assert_same_tree(volume, tree, owners=False)
    for _, node in [(b"", volume.root), *walk(volume)]:
        assert (volume.attributes(node).uid, volume.attributes(node).gid) == (0, 0)


def test_image_that_was_appended_to(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mksquashfs(tmp_path / "image", tree, "-b", "4K")
    more = tmp_path / "more"
    more.mkdir()
    (more / "added").write_bytes(text(50_000, 1))
    mksquashfs(image, more, "-keep-as-directory", append=True)
    volume = opened(image)
    assert content(volume, find(volume, "more/added")) == (more / "added").read_bytes()
    assert names_in(volume, find(volume, "more")) == [b"added"]
    for path in ("many", "small", "hole inside"):
        assert content(volume, find(volume, path)) == (tree / path).read_bytes()
    assert listing(volume) == unsquashfs_listing(image)
    assert_statistics(volume, image)


def test_nothing_in_it(tmp_path: Path, opened: Opener) -> None:
    (tmp_path / "tree").mkdir()
    for options in ((), ("-noI", "-noX"), ("-no-exports", "-no-fragments", "-nopad")):
        image = mksquashfs(tmp_path / "image", tmp_path / "tree", *options)
        volume = opened(image)
        assert [(name, node) for name, _, node, _ in volume.entries(volume.root, 0)] == [
            (b".", volume.root),
            (b"..", volume.root),
        ]
        assert volume.lookup(volume.root, b"absent") is None
        assert not volume.xattrs(volume.root)
        assert_statistics(volume, image)
        assert listing(volume) == unsquashfs_listing(image)


# Bytes


@pytest.mark.parametrize("options", [(), ("-always-use-fragments",), ("-no-fragments",)], ids=" ".join)
def test_pieces_of_files(options: tuple[str, ...], tree: Path, tmp_path: Path, opened: Opener) -> None:
    """Any part of a file is that part of it, whatever was read before."""
    volume = opened(mksquashfs(tmp_path / "image", tree, "-b", "4K", *options))
    choice = random.Random(3)
    for path in ("tiny", "under", "exact", "over", "many", "noise", "hole first", "hole inside", "hole last", "hole"):
        node, data = find(volume, path), (tree / path).read_bytes()
        places = [0, 1, 4095, 4096, 4097, 8191, len(data) - 1, len(data), len(data) + 1, 1 << 40]
        for place in places + [choice.randrange(len(data)) for _ in range(20)]:
            for size in (0, 1, 4095, 4096, 4097, 10_000, 1 << 30):
                assert volume.read(node, place, size) == data[place : place + size], (path, place, size)


def test_odd_requests(tree: Path, tmp_path: Path, opened: Opener) -> None:
    volume = opened(mksquashfs(tmp_path / "image", tree, "-b", "4K", pseudo=DEVICES))
    small = find(volume, "small")
    data = (tree / "small").read_bytes()
    assert volume.read(small, 3, 1 << 62) == data[3:]
    assert volume.read(small, 0, 0) == volume.read(small, len(data), 5) == volume.read(small, 1 << 62, 5) == b""
    kinds = {path: find(volume, path) for path in ("small", "void", "link", "fifo", "socket", "null", "disk")}
    for path, node in kinds.items():
        if path != "small":
            with pytest.raises(IsADirectoryError if path == "void" else OSError):
                volume.read(node, 0, 1)
        if path != "link":
            with pytest.raises(OSError):
                volume.readlink(node)
        if path != "void":
            with pytest.raises(NotADirectoryError):
                volume.lookup(node, b"x")
            with pytest.raises(NotADirectoryError):
                list(volume.entries(node, 0))
    for node in (-1, 1 << 63, 1 << 80, volume.root + 1, volume.root + (1 << 40)):
        with pytest.raises(OSError):
            volume.attributes(node)


def test_fragments_of_many_files_in_one_block(tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for index in range(500):
        (tree / f"{index}").write_bytes(text(index * 7, index))
    for options in (("-b", "1M"), ("-b", "4K"), ("-b", "4K", "-noF")):
        volume = opened(mksquashfs(tmp_path / "image", tree, *options))
        for index in range(500):
            assert content(volume, find(volume, f"{index}")) == text(index * 7, index)


def test_duplicates_share_their_blocks(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mksquashfs(tmp_path / "image", tree, "-b", "4K", "-noI", "-noX")
    parts = Parts.of(image.read_bytes())
    assert parts.get("over", "start") == parts.get("twin", "start")
    volume = opened(image)
    assert find(volume, "over") != find(volume, "twin")
    assert content(volume, find(volume, "over")) == content(volume, find(volume, "twin"))
    assert volume.attributes(find(volume, "over")).shown_ino != volume.attributes(find(volume, "twin")).shown_ino


def test_allocated_space(tree: Path, tmp_path: Path, opened: Opener) -> None:
    """What stat(2) tells as blocks is without the holes, as with the kernel's driver."""
    image = mksquashfs(tmp_path / "image", tree, "-b", "4K", "-noI", "-noX")
    parts = Parts.of(image.read_bytes())
    volume = opened(image)
    for path in ("hole first", "hole inside", "hole last", "hole"):
        attributes = volume.attributes(find(volume, path))
        sparse = parts.get(path, "sparse")
        assert sparse
        assert attributes.blocks == (attributes.size - sparse + 511) // 512, path
    for path in ("small", "many", "noise"):
        attributes = volume.attributes(find(volume, path))
        assert attributes.blocks == (attributes.size + 511) // 512


def test_file_of_more_than_4_gib(tmp_path: Path, opened: Opener) -> None:
    """In memory, for mksquashfs reads every hole. It ends with data, which is where it would be missed."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("no /dev/shm to write to")
    tree = memory / f"viewfs-{os.getpid()}"
    tree.mkdir()
    size = (4 << 30) + (3 << 20)
    data = random.Random(1).randbytes(3_000_000)
    try:
        with open(tree / "file", "wb") as file:
            file.write(data)
            file.seek(size - len(data))
            file.write(data)
        image = mksquashfs(tmp_path / "image", tree, "-b", "1M", "-comp", available("lz4"))
    finally:
        shutil.rmtree(tree)
    volume = opened(image)
    node = find(volume, "file")
    attributes = volume.attributes(node)
    assert attributes.size == size and attributes.blocks * 512 < 10_000_000
    assert volume.read(node, 0, 4_000_000) == data + bytes(1_000_000)
    assert volume.read(node, size - 4_000_000, 8_000_000) == bytes(1_000_000) + data
    assert volume.read(node, (1 << 32) - 10, 20) == bytes(20)
    assert listing(volume) == unsquashfs_listing(image)


def test_file_of_many_blocks(plain: bytes) -> None:
    """A million holes of 4 KiB, and two blocks with bytes; each place is found at once."""
    parts = Parts.of(plain)
    count = 1_500_000
    start = parts.get("exact", "start")
    word = peek(parts.inodes, {"word": (0, "<I")}, "word", parts.find("exact").inode + 32)
    inode = bytearray(parts.inodes[parts.find("sparse").inode :][:56])
    inode += word.to_bytes(4, "little") + bytes(4 * count) + word.to_bytes(4, "little")
    data = bytes(parts.data[start - 96 :][:4096]), bytes(parts.data[start + 4096 - 96 :][:4096])
    size = (count + 2) * 4096
    place = parts.add_large(inode)
    parts.set(place, start=start, size=size, sparse=count * 4096, fragment=0xFFFFFFFF)
    parts.redirect("alone/file", place)
    volume = opened_bytes(parts.assemble())
    node = find(volume, "alone/file")
    assert volume.attributes(node).size == size
    assert volume.read(node, 0, 5000) == data[0] + bytes(904)
    assert volume.read(node, size - 5000, 9000) == bytes(904) + data[1]
    for index in range(300):
        assert volume.read(node, 4096 * (1 + index * (count // 300)), 4096) == bytes(4096)
