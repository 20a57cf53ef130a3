"""Images made by the tools of each format, where their files' bytes are in them, and what a checksum covers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.ext.ext_images import mke2fs
from tests.unit.fat.exfat_writer import ExfatWriter, Folder
from tests.unit.fat.fat_images import Kind, mcopy, mkfs, mkfs_exfat
from tests.unit.squashfs.squashfs_images import STORED, available, mksquashfs

#: Content is found in an image by pieces of this size, of which no two are the same.
SECTOR = 512
SIZES = {"empty": 0, "small": 700, "block": 4096, "more": 9000, "large": 70_000}


def content(number: int, size: int) -> bytes:
    """Text that can be compressed, and of which no line is like another anywhere."""
    lines = (b"file %06d has a line with the number %07d\n" % (number, line) for line in range(size // 40 + 1))
    return b"".join(lines)[:size]


def make_tree(root: Path, *, links: bool) -> Path:
    root.mkdir()
    few = root / "few" / "deeper"
    few.mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        (root / f"{name}.txt").write_bytes(content(number, size))
    (few / "At the bottom").write_bytes(content(20, 5000))
    (root / "noise").write_bytes(random.Random(3).randbytes(6000))
    many = root / "many"
    many.mkdir()
    for number in range(60):
        (many / f"a name that is long {number:03}").write_bytes(content(100 + number, number * 11))
    if links:
        (root / "link").symlink_to("few/deeper")
        (root / "long link").symlink_to("few/../" * 30 + "few")
    return root


@dataclass
class Made:
    """A sound image."""

    module: str
    data: bytes
    #: Where pieces of files are in it: the place in the image, the path, the offset in the file, how many bytes.
    pieces: list[tuple[int, str, int, int]] = field(default_factory=list)
    #: Bytes that a checksum covers, so that a change of them is told of, or changes nothing; from, to.
    covered: list[tuple[int, int]] = field(default_factory=list)
    #: How many bytes that follow each other may change there without deceiving the checksum.
    burst: int = 4


def find_pieces(data: bytes, tree: Path) -> list[tuple[int, str, int, int]]:
    """Where whole sectors of files are, of files whose content is stored as it is."""
    found = []
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        whole = path.read_bytes()
        for offset in range(0, len(whole) - SECTOR + 1, SECTOR):
            place = data.find(whole[offset : offset + SECTOR])
            if place >= 0:
                found.append((place, f"/{path.relative_to(tree)}", offset, SECTOR))
    return found


def gaps(taken: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """What is between them."""
    found = []
    for first, last in sorted(taken):
        if start < first:
            found.append((start, first))
        start = max(start, last)
    if start < end:
        found.append((start, end))
    return found


# -- ext

EXT = {
    "ext2": ("-t", "ext2", "-b", "1024"),
    "ext3": ("-t", "ext3", "-b", "1024", "-J", "size=1"),
    "ext4": ("-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "metadata_csum"),
}


def make_ext(kind: str, directory: Path) -> Made:
    tree = make_tree(directory / "tree", links=True)
    options: tuple[str | Path, ...] = (*EXT[kind], "-I", "256", "-N", "256", "-d", tree)
    data = mke2fs(directory / "image", *options, size="4M").read_bytes()
    made = Made("ext", data, find_pieces(data, tree))
    if kind == "ext4":
        # Ends of files, and targets of links that are long, have no checksum: the blocks that they are in are left out.
        own = [(place // 1024 * 1024, place // 1024 * 1024 + 1024) for place, *_ in made.pieces]
        for text in (b"file 0", b"few/../few/../"):
            own += [(place // 1024 * 1024, place // 1024 * 1024 + 1024) for place in _all(data, text)]
        noise = (tree / "noise").read_bytes()
        last = data.find(noise[5 * 1024 :])
        own.append((last, last + 1024))
        # Without the feature, or the revision that knows of features, nobody looks at checksums.
        own += [(1024 + 0x4C, 1024 + 0x50), (1024 + 0x60, 1024 + 0x68)]
        made.covered = gaps(own, 1024, len(data))
        # Most of it is empty.
        made.covered = [
            (start, end) for first, last in made.covered for start, end in _used(data, first, last) if start < end
        ]
    return made


def _all(data: bytes, text: bytes) -> Iterator[int]:
    place = data.find(text)
    while place >= 0:
        yield place
        place = data.find(text, place + 1024 - place % 1024)


def _used(data: bytes, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Those parts that have something in them."""
    for start in range(first, last, 128):
        if any(data[start : min(start + 128, last)]):
            yield start, min(start + 128, last)


# -- squashfs


def make_squashfs(kind: str, directory: Path) -> Made:
    compressor, _, stored = kind.partition(" ")
    tree = make_tree(directory / "tree", links=True)
    options = ["-comp", available(compressor), "-b", "4096", *(STORED if stored else ())]
    data = mksquashfs(directory / "image", tree, *options).read_bytes()
    made = Made("squashfs", data, find_pieces(data, tree) if stored else [])
    if compressor in ("gzip", "xz") and not stored:
        # The checksums of zlib and of xz.
        inodes, fragments = struct.unpack_from("<Q", data, 64)[0], struct.unpack_from("<Q", data, 80)[0]
        noise = [(place, place + SECTOR) for place, *_ in find_pieces(data, tree)]
        assert noise, "what can't be compressed is stored"
        made.covered = gaps([(min(noise)[0], max(noise)[1] + 6000 % SECTOR)], 96, inodes)
        made.covered += _blocks(data, inodes, fragments)
    return made


def _blocks(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The compressed metadata blocks, without their headers. (The last are the fragments'.)"""
    while start + 2 < end:
        (header,) = struct.unpack_from("<H", data, start)
        size = header & 0x7FFF
        if not header & 0x8000:
            yield start + 2, start + 2 + size
        start += 2 + size


# -- FAT

FAT = {
    "fat12": Kind(12, 512, 1, 1000),
    "fat16": Kind(16, 512, 1, 2400),
    "fat32": Kind(32, 512, 1, 36_000),
}


def make_fat(kind: str, directory: Path) -> Made:
    tree = make_tree(directory / "tree", links=False)
    image = mcopy(mkfs(directory / "image", FAT[kind]), *sorted(tree.iterdir()))
    data = image.read_bytes()
    return Made("vfat", data, find_pieces(data, tree))


def make_exfat(kind: str, directory: Path) -> Made:
    tree = make_tree(directory / "tree", links=False)
    empty = mkfs_exfat(directory / "image", 2 << 20, "-b", "64K", "-c", "1K")
    writer = ExfatWriter(empty.read_bytes())
    places = [*_fill_exfat(writer, writer.root, tree)]
    data = writer.finish()
    made = Made("exfat", data, find_pieces(data, tree), burst=1)
    # The type of an entry is not covered: one that is not in use is not there.
    made.covered = [(place + 1, place + 32) for place in places]
    return made


def _fill_exfat(writer: ExfatWriter, folder: Folder, tree: Path) -> Iterator[int]:
    """Returns where the entries are."""
    for number, path in enumerate(sorted(tree.iterdir())):
        if path.is_dir():
            count = -(-sum(4 for _ in path.iterdir()) * 32 // writer.cluster) + 1
            below = folder.folder(path.name, count, contiguous=False)
            assert below.entry is not None
            yield from below.entry.at
            yield from _fill_exfat(writer, below, path)
        else:
            how = {"contiguous": number % 3 == 1, "fragmented": number % 3 == 2}
            yield from folder.file(path.name, path.read_bytes(), **how).at  # type: ignore[arg-type]


MAKERS: dict[str, Callable[[str, Path], Made]] = {
    **dict.fromkeys(EXT, make_ext),
    **dict.fromkeys(("gzip", "xz", "zstd", "gzip stored"), make_squashfs),
    **dict.fromkeys(FAT, make_fat),
    "exfat": make_exfat,
}
