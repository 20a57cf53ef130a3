"""Several threads at once: the bytes are right, and nothing is read or decompressed twice."""

from __future__ import annotations

import random
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.unit.fuse_wire import reading
from tests.unit.images import MemoryImage
from tests.unit.squashfs.conftest import Opener, text
from tests.unit.squashfs.squashfs_damage import fails
from tests.unit.squashfs.squashfs_images import (
    COMPRESSORS,
    available,
    content,
    find,
    listing,
    mksquashfs,
    walk,
)
from tests.unit.squashfs.squashfs_parts import SUPERBLOCK, Parts, peek
from tests.unit.test_fuse_host import mounted
from viewfs.modules.api import Identities, Mounting
from viewfs.modules.formats.squashfs.module import Squashfs
from viewfs.modules.formats.squashfs.volume import Volume
from viewfs.mounts.fuse.protocol import Opcode

THREADS = 8
BLOCK = 1 << 17


@pytest.fixture(autouse=True)
def eager_switches() -> Iterator[None]:
    """Threads take turns so often that what is not safe shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Their results. All begin together, each in its thread."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(run, call) for call in calls]]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    noise = random.Random(11)
    return {
        "text": text(10 * BLOCK + 5000, 1),
        "noise": noise.randbytes(4 * BLOCK),
        **{f"small {index}": text(1000 + index, index) for index in range(50)},
    }


@pytest.fixture(scope="session")
def images(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[bytes, list[tuple[int, int]]]]:
    """An image by a compressor, and where the compressed blocks of `text` are in it."""
    root = tmp_path_factory.mktemp("files")
    for name, data in files.items():
        (root / name).write_bytes(data)

    def image(compressor: str) -> tuple[bytes, list[tuple[int, int]]]:
        # The tables are not compressed, for the words that tell the sizes of the blocks to be found.
        path = root.with_name(f"{root.name}-{compressor}")
        options = ("-comp", available(compressor), "-b", str(BLOCK), "-noI", "-noX")
        return (data := mksquashfs(path, root, *options).read_bytes()), blocks_of(data, "text", 10)

    return image


def blocks_of(image: bytes, path: str, count: int) -> list[tuple[int, int]]:
    parts = Parts.of(image)
    place = parts.find(path).inode
    assert parts.get(path, "type") == 2
    start, blocks = parts.get(path, "start"), []
    for index in range(count):
        size = peek(parts.inodes, {"word": (32 + 4 * index, "<I")}, "word", place) & 0xFFFFFF
        blocks.append((start, start + size))
        start += size
    return blocks


Images = Callable[[str], tuple[bytes, list[tuple[int, int]]]]


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_same_blocks(compressor: str, images: Images, files: dict[str, bytes]) -> None:
    """All threads want all blocks, in an order of their own, while the source is slow."""
    data, blocks = images(compressor)
    source = MemoryImage(data, delay=0.002)
    volume = Volume.open(source)
    node = find(volume, "text")
    source.reads.clear()

    def read(thread: int) -> None:
        order = list(range(0, len(files["text"]), 50_000))
        random.Random(thread).shuffle(order)
        for place in order:
            assert volume.read(node, place, 50_000) == files["text"][place : place + 50_000]

    at_once(*(lambda thread=thread: read(thread) for thread in range(THREADS)))
    assert [source.times_read(*block) for block in blocks] == [1] * len(blocks)


def test_one_block_at_the_same_moment(images: Images, files: dict[str, bytes]) -> None:
    data, blocks = images("gzip")
    for attempt in range(10):
        source = MemoryImage(data, delay=0.01)
        volume = Volume.open(source)
        node = find(volume, "text")
        source.reads.clear()
        place = attempt * BLOCK
        results = at_once(*[partial(volume.read, node, place, 777)] * THREADS)
        assert results == [files["text"][place : place + 777]] * THREADS
        assert source.times_read(*blocks[attempt]) == 1


def test_fragments_and_metadata(images: Images, files: dict[str, bytes]) -> None:
    """Small files share one block, and their inodes too: each is read once."""
    data, _ = images("gzip")
    source = MemoryImage(data, delay=0.002)
    volume = Volume.open(source)
    tables = peek(data, SUPERBLOCK, "inode_table"), peek(data, SUPERBLOCK, "fragment_table")

    def read(thread: int) -> None:
        names = [name for name in files if name.startswith("small")]
        random.Random(thread).shuffle(names)
        for name in names:
            assert content(volume, find(volume, name)) == files[name]

    at_once(*(lambda thread=thread: read(thread) for thread in range(THREADS)))
    small = [read for read in source.reads if tables[0] <= read[1] < tables[1]]
    assert len(small) == len(set(small)) <= 12, "the tables are two metadata blocks"
    # All that is left is the block of fragments, and the table that leads to it.
    behind = [read for read in source.reads if 96 < read[1] < tables[0]]
    assert len(behind) == len(set(behind)) <= 2


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_different_files_and_calls(compressor: str, images: Images, files: dict[str, bytes]) -> None:
    """Reading, listing, looking up and stat at the same time."""
    data, _ = images(compressor)
    volume = Volume.open(MemoryImage(data))
    expected = listing(Volume.open(MemoryImage(data)))

    def read(name: str) -> None:
        for _ in range(3):
            assert content(volume, find(volume, name)) == files[name]

    def look() -> None:
        for _ in range(5):
            assert listing(volume) == expected
            assert volume.statistics().files == len(files) + 1
            assert [dict(volume.xattrs(node)) for _, node in walk(volume)] == [{}] * len(files)

    names = ("text", "noise", "small 3", "text", "small 4", "noise")
    at_once(*(lambda name=name: read(name) for name in names), look, look)


def test_a_block_that_can_not_be_decompressed(images: Images, files: dict[str, bytes]) -> None:
    """All that wait for it get the error; the others their bytes."""
    data, blocks = images("gzip")
    changed = bytearray(data)
    start, end = blocks[3]
    changed[start:end] = b"\xaa" * (end - start)
    volume = Volume.open(MemoryImage(bytes(changed), delay=0.002))
    node = find(volume, "text")

    def bad() -> None:
        fails(lambda: volume.read(node, 3 * BLOCK + 5, 10))

    def good() -> None:
        assert volume.read(node, 0, 3 * BLOCK) == files["text"][: 3 * BLOCK]
        assert volume.read(node, 4 * BLOCK, 3 * BLOCK) == files["text"][4 * BLOCK : 7 * BLOCK]

    for _ in range(3):
        at_once(*[bad] * 6, *[good] * 2)


def test_a_source_that_recovers(images: Images, files: dict[str, bytes]) -> None:
    """An error of the source is not kept."""
    data, _ = images("gzip")
    source = MemoryImage(data)
    volume = Volume.open(source)
    node = find(volume, "text")
    source.broken = True
    for _ in range(2):
        with pytest.raises(OSError, match="not now"):
            volume.read(node, 0, 10)
    source.broken = False
    assert volume.read(node, 0, 10) == files["text"][:10]


def test_memory_is_bounded(tmp_path: Path, opened: Opener) -> None:
    """A file of 256 MiB that becomes small when compressed is read through, and forgotten again."""
    size = 256 << 20
    tree = tmp_path / "tree"
    tree.mkdir()
    piece = text(1 << 20, 3)
    with open(tree / "file", "wb") as file:
        for _ in range(size >> 20):
            file.write(piece)
    volume = opened(mksquashfs(tmp_path / "image", tree, "-b", "1M", "-comp", available("lz4")))
    (tree / "file").unlink()
    node = find(volume, "file")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for place in range(0, size, 1 << 17):
            assert len(volume.read(node, place, 1 << 17)) == 1 << 17
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept - before < size // 2
    assert peak - before < size // 2


def test_memory_is_bounded_for_many_inodes(tmp_path: Path, opened: Opener) -> None:
    """What is kept of names and inodes has a limit too: the same walk again takes no more."""
    tree = tmp_path / "tree"
    tree.mkdir()
    pseudo = "".join(f"a_rather_long_name_{index:05d} i 644 0 0 f\n" for index in range(6000))
    volume = opened(mksquashfs(tmp_path / "image", tree, pseudo=pseudo))

    def walk_all() -> None:
        for _, node in walk(volume):
            volume.attributes(node)

    walk_all()
    tracemalloc.start()
    try:
        walk_all()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4 << 20


class Meeting(MemoryImage):
    """Who reads a block of a file waits until somebody reads another."""

    def __init__(self, data: bytes, count: int) -> None:
        super().__init__(data)
        self._end = peek(bytearray(data), SUPERBLOCK, "inode_table")
        self._together = threading.Barrier(count, timeout=60)

    def pread(self, size: int, offset: int) -> bytes:
        if 96 <= offset < self._end:
            self._together.wait()
        return super().pread(size, offset)


def test_two_blocks_are_decompressed_at_once_by_a_server(tmp_path: Path) -> None:
    """Who waits for one is in the way of nobody who asks for another."""
    tree = tmp_path / "tree"
    tree.mkdir()
    contents = {"one": text(BLOCK, 2), "two": text(BLOCK, 3)}
    for name, data in contents.items():
        (tree / name).write_bytes(data)
    image = mksquashfs(tmp_path / "image", tree).read_bytes()
    sound = Volume.open(MemoryImage(image))
    values = {option.name: option.default for option in Squashfs.options}
    identities = Identities(1, 1, frozenset((1,)), frozenset((1,)))
    with mounted(Squashfs().open(Mounting(Meeting(image, 2), "image", "/mnt", identities, values))) as mount:
        asked = [mount.send(Opcode.READ, reading(0, BLOCK), find(sound, name)) for name in contents]
        answers = {unique: (error, body) for unique, error, body in (mount.receive(), mount.receive())}
    assert [answers[unique] for unique in asked] == [(0, data) for data in contents.values()]
