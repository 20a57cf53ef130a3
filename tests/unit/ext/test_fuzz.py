"""Images with bytes changed at random: everything in them is read, and nothing but the allowed errors comes out.

A few seconds of it belong to every run of the tests. VIEWFS_FUZZ_SECONDS makes it go on for longer, with a seed of
its own each time, which a failure shows.
"""

from __future__ import annotations

import errno
import lzma
import os
import random
import stat
from pathlib import Path

import pytest
from ext_images import debugfs, e2fsck, mke2fs

from tests.unit.images import MemoryImage, damaged_one_after_the_other
from tests.unit.limits import not_hanging
from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.ext.volume import ROOT, Volume

DATA = Path(__file__).parents[2] / "data"
ALLOWED = {errno.EUCLEAN, errno.EIO, errno.ENOKEY}
#: The bytes that one file is read of, at its beginning and at its end.
PART = 1 << 18

KINDS = {
    "ext2": ("-t", "ext2", "-b", "1024"),
    "ext3": ("-t", "ext3", "-b", "1024", "-J", "size=1"),
    "ext4": ("-t", "ext4", "-b", "1024", "-J", "size=1"),
    "unchecked": ("-t", "ext4", "-b", "1024", "-O", "^metadata_csum,large_dir,^has_journal"),
    "inline": ("-t", "ext4", "-b", "1024", "-O", "^metadata_csum,inline_data,^has_journal", "-I", "256"),
    "ea_inode": ("-t", "ext4", "-b", "4096", "-O", "^metadata_csum,ea_inode,bigalloc,^has_journal", "-I", "512"),
    "journal": ("-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"),
    "journal_v3": ("-t", "ext4", "-b", "1024", "-J", "size=1"),
}


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    noise = random.Random(5)
    for index in range(120):
        path = root / "directory" / f"{index}-{'long' * (index % 9)}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(noise.randbytes(index))
    with open(root / "fragments", "wb") as file:
        for index in range(60):
            file.seek(index * 8192)
            file.write(noise.randbytes(4096))
    (root / "file").write_bytes(noise.randbytes(50_000))
    (root / "link").symlink_to("x" * 50)
    (root / "long").symlink_to("y" * 500)
    (root / "few").mkdir()
    (root / "few" / "one").touch()
    os.mkfifo(root / "fifo")
    return root


def make(path: Path, kind: str, tree: Path) -> bytes:
    mke2fs(path, *KINDS[kind], "-N", "256", "-d", tree, size="4M" if "ea_inode" not in kind else "12M")
    e2fsck(path, "-D")
    value = path.with_suffix(".value")
    value.write_bytes(random.Random(6).randbytes(800))
    attributes = [f"ea_set -f {value} {name} user.{size}" for name in ("file", "few", "link") for size in ("a", "b")]
    debugfs(path, *attributes, "ea_set file security.c d", "ea_set few trusted.e f", "mknod device c 1 3")
    if kind.startswith("journal"):
        data = path.read_bytes()
        block = path.with_suffix(".block")
        number = next(place for place in range(4000) if data[place * 1024 :][:7].endswith(b"\1") and place > 100)
        block.write_bytes(data[number * 1024 : (number + 1) * 1024] + data[3000 * 1024 : 3001 * 1024])
        commands = [f"jw -b {number} {block}", "jw -r 3000,3001", f"jw -b {number},3000 {block}"]
        debugfs(path, "jo -c -v 3" if kind == "journal_v3" else "jo", *commands, "jc")
    return path.read_bytes()


def damage(data: bytes, used: list[int], noise: random.Random) -> bytes:
    """A few bytes changed, mostly ones that were in use, sometimes with the end cut off."""
    changed = bytearray(data)
    for _ in range(noise.choice((1, 1, 2, 5, 30))):
        # The blocks in front have the most to say.
        place = noise.choice(used) if noise.random() < 0.7 else 1024 + noise.randrange(1024)
        kind = noise.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << noise.randrange(8)
        elif kind == 1:
            changed[place] = noise.randrange(256)
        elif kind == 2:
            place &= ~3
            changed[place : place + 4] = noise.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0"))
        else:
            other = noise.choice(used) & ~3
            changed[place & ~3 : (place & ~3) + 8] = changed[other : other + 8]
    size = len(data)
    if noise.random() < 0.05:
        size = noise.randrange(len(data))
    return bytes(changed[:size])


class Reader:
    """Reads all that an image has."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.failed = 0

    def tolerate(self, call: object, *arguments: object) -> object:
        try:
            return call(*arguments)  # type: ignore[operator]
        except OSError as error:
            assert error.errno in ALLOWED, error
            self.failed += 1
            return None

    def all(self) -> None:
        seen = {ROOT}
        waiting = [ROOT]
        while waiting:
            for name, inode in self.names(waiting.pop()):
                if inode in seen:
                    continue
                seen.add(inode)
                attributes = self.tolerate(self.volume.attributes, inode)
                if attributes is None:
                    continue
                self.tolerate(lambda inode=inode: dict(self.volume.xattrs(inode)))
                if stat.S_ISDIR(attributes.mode):  # type: ignore[attr-defined]
                    waiting.append(inode)
                elif stat.S_ISREG(attributes.mode):  # type: ignore[attr-defined]
                    size = attributes.size  # type: ignore[attr-defined]
                    for offset in {0, size // 2, max(size - PART, 0)}:
                        data = self.tolerate(self.volume.read, inode, offset, PART)
                        assert data is None or len(data) <= PART  # type: ignore[arg-type]
                elif stat.S_ISLNK(attributes.mode):  # type: ignore[attr-defined]
                    self.tolerate(self.volume.readlink, inode)
                assert name

    def names(self, directory: int) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        last = 0
        try:
            for name, cookie, inode, kind in self.volume.entries(directory, 0):
                assert cookie > last and 0 <= kind <= 7
                last = cookie
                found.append((name, inode))
        except OSError as error:
            assert error.errno in ALLOWED, error
        for name, _ in found[::7]:
            self.tolerate(self.volume.lookup, directory, name)
        self.tolerate(self.volume.lookup, directory, b"absent")
        return found


def read_everything(data: bytes) -> None:
    source = MemoryImage(data)
    with not_hanging():
        Volume.probe(source)
        try:
            volume = Volume.open(source)
        except DamagedSourceError as error:
            assert str(error)
        else:
            volume.statistics()
            Reader(volume).all()


@pytest.mark.parametrize("kind", [*KINDS, "fast_commit"])
def test_damaged_images(kind: str, small_tree: Path, tmp_path: Path) -> None:
    if kind == "fast_commit":
        data = lzma.decompress((DATA / "fast-commit.img.xz").read_bytes())
    else:
        data = make(tmp_path / "image", kind, small_tree)
    volume = Volume.open(MemoryImage(data))
    reader = Reader(volume)
    reader.all()
    assert not reader.failed
    if kind == "fast_commit":
        assert volume.replayed
    else:
        assert volume.replayed == (3 if kind.startswith("journal") else 0)
    used = [place for place, byte in enumerate(data) if byte]
    damaged_one_after_the_other(
        kind, 1 / len(KINDS), tmp_path, lambda noise, _seed: damage(data, used, noise), read_everything
    )
