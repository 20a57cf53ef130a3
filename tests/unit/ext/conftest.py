"""What all tests of the ext2, ext3 and ext4 reader share."""

from __future__ import annotations

import os
import random
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.images import ImageFile

sys.path.insert(0, str(Path(__file__).parent))  # For `ext_images`, whichever import mode pytest is in.


from viewfs.modules.formats.ext.volume import Volume

Opener = Callable[..., Volume]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens images, and closes them after the test."""
    with ExitStack() as stack:

        def open_volume(path: Path, **options: int) -> Volume:
            return Volume.open(stack.enter_context(ImageFile(path)), name=path.name, **options)

        yield open_volume


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind, for mke2fs to copy."""
    root = tmp_path_factory.mktemp("tree")
    noise = random.Random(1)
    for name, size in {"empty": 0, "small": 10, "sixty": 60, "more": 100, "block": 4096, "large": 300_001}.items():
        (root / name).write_bytes(noise.randbytes(size))
    with open(root / "holes", "wb") as file:
        # mke2fs gets the size of a file wrong that ends in a hole, under inline_data, so it ends with a block.
        for position in (0, 70_000, 1_000_000, 5_242_880):
            file.seek(position)
            file.write(noise.randbytes(8192))
    with open(root / "fragments", "wb") as file:
        for index in range(200):
            file.seek(index * 16384)
            file.write(noise.randbytes(4096))
    for name, target in {"link": "small", "link59": "a" * 59, "link60": "b" * 60, "link900": "c/" * 450}.items():
        (root / name).symlink_to(target)
    many = root / "directory" / "many"
    many.mkdir(parents=True)
    for index in range(150):
        (many / f"{index:03d}-a name of middle length").write_bytes(b"%d" % index)
    few = root / "directory" / "few"
    few.mkdir()
    (few / "one").write_bytes(b"1")
    (root / "void").mkdir()
    (few / ("n" * 255)).write_bytes(b"long")
    (few / os.fsdecode(b"\xff\xfe not utf-8 \xc3\xa9")).write_bytes(b"bytes")
    os.link(root / "small", root / "hard link")
    os.mkfifo(root / "fifo")
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    (root / "block").chmod(0o4751)
    os.utime(root / "more", (1, 2))
    return root
