"""Files that lie of their size, their blocks, and the fragment that their end is in; and bombs."""

from __future__ import annotations

import random
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.squashfs.squashfs_damage import DAMAGE, fails, readable, tolerated
from tests.unit.squashfs.squashfs_images import (
    COMPRESSORS,
    STORED,
    available,
    content,
    find,
    mksquashfs,
    opened_bytes,
)
from tests.unit.squashfs.squashfs_parts import METADATA, NO_FRAGMENT, NOTHING, Parts, compress

pytestmark = [pytest.mark.bounded_memory, pytest.mark.usefixtures("bounded_time")]

BLOCK = 4096
#: Bit 24 of the size of a block of data: it is not compressed.
RAW = 1 << 24


@pytest.mark.parametrize("size", [1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63, NOTHING], ids=hex)
def test_file_of_impossible_size(size: int, parts: Parts, plain: bytes) -> None:
    """There are no words for its blocks."""
    parts.set("large", size=size)
    volume = opened_bytes(parts.assemble())
    node = find(volume, "few/hard link")
    tolerated(lambda: volume.attributes(node))
    for place in (0, 1 << 20, size // 2, size - 10):
        data = tolerated(lambda place=place: volume.read(node, place, 100))
        assert data is None or place == 0 or not data
    fails(lambda: volume.read(node, size // 2 if size < 1 << 63 else 1 << 50, 100))
    assert readable(volume, plain, "tail", "few/two")


@pytest.mark.parametrize("size", [1 << 24, 1 << 31, 0xFFFFFFFF], ids=hex)
def test_small_file_of_impossible_size(size: int, parts: Parts, plain: bytes) -> None:
    for path in ("small", "exact", "tail"):
        parts.set(path, size=size)
    volume = opened_bytes(parts.assemble())
    for path in ("small", "exact", "tail"):
        node = find(volume, path)
        fails(lambda node=node: volume.read(node, size - 100, 100))
        tolerated(lambda node=node: volume.read(node, 0, 100))
    assert readable(volume, plain)


def test_no_bytes_are_made_up(parts: Parts) -> None:
    """A file of 2^60 bytes that is all one hole would take 2^50 words. Reading it from end to end isn't begun."""
    inode = bytearray(parts.inodes[parts.find("sparse").inode :][:56])
    place = parts.add_large(inode)
    parts.set(place, size=1 << 60, sparse=0, fragment=NO_FRAGMENT)
    parts.redirect("alone/file", place)
    volume = opened_bytes(parts.assemble())
    node = find(volume, "alone/file")
    fails(lambda: volume.read(node, 0, 1 << 59))
    fails(lambda: volume.read(node, 1 << 59, 1 << 17))


def word(parts: Parts, path: str, index: int, value: int | None = None) -> int:
    """The size of a block of a file, and another one in its place."""
    place = parts.find(path).inode + {2: 32, 9: 56}[parts.get(path, "type")] + 4 * index
    (real,) = struct.unpack_from("<I", parts.inodes, place)
    if value is not None:
        struct.pack_into("<I", parts.inodes, place, value)
    return int(real)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_many_files_of_many_blocks(parts: Parts) -> None:
    """4,000 files that are holes of 8 MiB, which an image of some kilobytes may have, and each of them is read."""
    parts.inodes += bytes(-len(parts.inodes) % METADATA)
    parts.directories += bytes(-len(parts.directories) % METADATA)
    start = len(parts.directories) // METADATA * (METADATA + 2)
    template = parts.inodes[parts.find("sparse").inode :][:56]
    listing = bytearray()
    for index in range(4000):
        place = parts.add_large(template + bytes(4 * 2048))
        parts.set(place, size=2048 * BLOCK, sparse=0, fragment=NO_FRAGMENT)
        listing += struct.pack("<III", 0, place // METADATA * (METADATA + 2), 1)
        listing += struct.pack("<HhHH", place % METADATA, 0, 2, 4) + b"%05d" % index
    parts.directories += listing
    inode = bytearray(parts.inodes[parts.find("apart/directory").inode :][:40])
    place = parts.add_large(bytes(inode))
    parts.set(place, size=len(listing) + 3, start=start, offset=0, index_count=0)
    parts.redirect("apart/directory", place)
    volume = opened_bytes(parts.assemble())
    nodes = [entry[2] for entry in volume.entries(find(volume, "apart/directory"), 0)][2:]
    assert len(nodes) == 4000
    before = resident()
    for node in nodes:
        assert volume.read(node, 1 << 20, 10) == bytes(10)
    assert resident() - before < 128 << 20


@pytest.mark.parametrize(
    "value",
    [
        RAW | BLOCK - 1,  # Less than a block, in the middle of a file.
        RAW | BLOCK + 1,
        RAW | 1,
        RAW,
        BLOCK + 1,
        BLOCK,  # What is compressed is not.
        100,
        1,
        (1 << 24) - 1,
        RAW | (1 << 24) - 1,
        1 << 25,
        0xFFFFFFFF,
        0x80000000 | BLOCK,
    ],
    ids=hex,
)
def test_block_of_impossible_length(value: int, parts: Parts, plain: bytes) -> None:
    word(parts, "large", 2, value)
    volume = opened_bytes(parts.assemble())
    node = find(volume, "large")
    fails(lambda: volume.read(node, 2 * BLOCK, BLOCK))
    fails(lambda: content(volume, node))
    good = opened_bytes(plain)
    assert volume.read(node, 0, 2 * BLOCK) == good.read(find(good, "large"), 0, 2 * BLOCK)
    assert readable(volume, plain, "tail", "few/two")


def test_block_that_became_a_hole(parts: Parts) -> None:
    """That is no lie that could be found; the place of the others is then another."""
    word(parts, "large", 2, 0)
    volume = opened_bytes(parts.assemble())
    assert volume.read(find(volume, "large"), 2 * BLOCK, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize(
    "start", [57_344, 1 << 32, 1 << 48, 1 << 62, (1 << 63) - 1, 1 << 63, NOTHING, NOTHING - 30_000]
)
def test_blocks_that_are_nowhere(start: int, parts: Parts, plain: bytes) -> None:
    parts.set("large", start=start)
    volume = opened_bytes(parts.assemble())
    fails(lambda: content(volume, find(volume, "large")))
    assert readable(volume, plain, "tail", "few/two")


def test_blocks_in_the_tables(parts: Parts) -> None:
    """What is not compressed can be any bytes; but it stays within the image."""
    parts.set("large", start=0)
    volume = opened_bytes(parts.assemble())
    data = tolerated(lambda: bytes(volume.read(find(volume, "large"), 0, 4)))
    assert data in (None, b"hsqs")


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_data_that_becomes_too_large_or_too_small(compressor: str, plains: Callable[[str], bytes]) -> None:
    parts = Parts.of(plains(compressor))
    plain = parts.assemble()
    start = parts.get("large", "start")
    noise = random.Random(1)
    for data in (
        bytes(BLOCK + 1),
        bytes(BLOCK * 2),
        bytes(1 << 20),
        noise.randbytes(BLOCK // 2) * 3,
        bytes(BLOCK - 1),
        bytes(10),
        b"",
    ):
        small = compress(compressor, data)[: BLOCK - 1]
        changed = Parts.of(plain)
        changed.data[start - 96 : start - 96 + len(small)] = small
        word(changed, "large", 0, len(small))
        volume = opened_bytes(changed.assemble())
        node = find(volume, "large")
        for _ in range(2):
            fails(lambda volume=volume, node=node: volume.read(node, 0, 100))
        assert readable(volume, plain, "tail", "few/two")


#: Reads a block that is a bomb, and tells how many kilobytes more than before that took at its height.
MEASURE = """
import sys
from pathlib import Path

from tests.unit.images import MemoryImage
from viewfs.modules.formats.squashfs.volume import Volume

def height():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

volume = Volume.open(MemoryImage(Path(sys.argv[1]).read_bytes()))
node = volume.lookup(volume.root, b"file")
before = height()
try:
    volume.read(node, 0, 10)
except OSError as error:
    print(error.errno, height() - before)
"""


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_memory_that_a_bomb_takes(compressor: str, tmp_path: Path) -> None:
    """The largest blocks there are, with 48 MiB in one, or as much as can be: it is not decompressed to the end."""
    tree = tmp_path / "tree"
    tree.mkdir()
    block = 1 << 20
    (tree / "file").write_bytes(random.Random(2).randbytes(block))
    options = (*STORED, "-b", "1M", "-comp", available(compressor), "-no-fragments")
    parts = Parts.of(mksquashfs(tmp_path / "image", tree, *options).read_bytes())
    bomb = compress(compressor, bytes(48 << 20), quick=True)[:block]
    place = parts.get("file", "start") - 96
    parts.data[place : place + len(bomb)] = bomb
    word(parts, "file", 0, len(bomb))
    (tmp_path / "image").write_bytes(parts.assemble())
    command = [sys.executable, "-c", MEASURE, tmp_path / "image"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr
    error, kilobytes = map(int, done.stdout.split())
    assert error in DAMAGE
    # The library for lzo can't be told where to stop; what it can make of a block is 255 times as much.
    assert kilobytes < (300 << 10 if compressor == "lzo" else 24 << 10)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_fragments_that_become_too_large_or_too_small(compressor: str, plains: Callable[[str], bytes]) -> None:
    """No more is needed of a block of fragments than the file that is in it, and no more than a block is taken."""
    base = Parts.of(plains(compressor))
    index = base.get("few/two", "fragment")
    start, size = base.fragments[index]
    whole = bytes(base.data[start - 96 :][: size & ~RAW])
    end = base.get("few/two", "offset") + 2
    for data in (whole + bytes(1 << 20), whole + bytes(BLOCK + 1 - len(whole)), whole[: end - 1], b""):
        parts = Parts.of(plains(compressor))
        small = compress(compressor, data)
        place = 96 + len(parts.data)
        parts.data += small
        parts.fragments[index] = place, len(small)
        volume = opened_bytes(parts.assemble())
        fails(lambda volume=volume: content(volume, find(volume, "few/two")))
        assert readable(volume, base.assemble(), "exact")
    small = compress(compressor, whole)
    base.data += small
    base.fragments[index] = 96 + len(base.data) - len(small), len(small)
    volume = opened_bytes(base.assemble())
    assert content(volume, find(volume, "few/two")) == b"22"


def test_fragment_out_of_range(parts: Parts, plain: bytes) -> None:
    for index in (len(parts.fragments), 512, 0x7FFFFFFF, 0xFFFFFFFE):
        parts.set("tail", fragment=index)
        volume = opened_bytes(parts.assemble())
        node = find(volume, "tail")
        fails(lambda volume=volume, node=node: volume.read(node, 8192, 100))
        tolerated(lambda volume=volume, node=node: volume.read(node, 0, 4096))
        assert readable(volume, plain)


def test_place_in_a_fragment_out_of_range(parts: Parts, plain: bytes) -> None:
    for offset in (BLOCK - 1, BLOCK, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF):
        parts.set("tail", offset=offset)
        volume = opened_bytes(parts.assemble())
        fails(lambda volume=volume: volume.read(find(volume, "tail"), 8192, 808))
        assert readable(volume, plain)


@pytest.mark.parametrize(
    "entry",
    [
        (0, RAW | 100),
        (1 << 40, RAW | 100),
        (1 << 63, RAW | 100),
        (NOTHING, RAW | 1),
        (96, 0),
        (96, RAW),
        (96, RAW | BLOCK + 1),
        (96, 0xFFFFFFFF),
        (96, (1 << 24) - 1),
        (96, 1 << 25 | 100),
    ],
    ids=str,
)
def test_fragments_that_are_nowhere(entry: tuple[int, int], parts: Parts, plain: bytes) -> None:
    """Nor can they be longer than a block, or nothing."""
    parts.fragments[parts.get("tail", "fragment")] = entry
    volume = opened_bytes(parts.assemble())
    fails(lambda: volume.read(find(volume, "tail"), 8192, 808))
    good = opened_bytes(plain)
    for path in ("exact", "sparse"):
        assert content(volume, find(volume, path)) == content(good, find(good, path))
