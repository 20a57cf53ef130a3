"""The reader of vfat with hostile bytes: nothing but the allowed errors comes out, and it ends."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewfs.errors import DamagedSourceError
from viewfs.modules.sources import Section
from viewfs.modules.vfat import VfatVolume, is_fat

#: Entries that are followed in one image: damage can make each that of every directory.
NAMES = 2000
SECONDS = float(os.environ.get("VIEWFS_FUZZ_SECONDS", "2"))
#: What a damaged image may take, on a slow machine.
LIMIT = 20.0


class Bytes:
    """A source in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def pread(self, size: int, offset: int) -> bytes:
        return self.data[offset : offset + size]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    top = tmp_path_factory.mktemp("vfat")
    (top / "tree/deeper/deepest").mkdir(parents=True)
    for number in range(40):
        (top / f"tree/deeper/a long name {number}").write_bytes(bytes([number]) * number * 100)
    made = []
    for bits, size in ((12, 1024), (16, 10240), (32, 34000)):
        image = top / f"{bits}"
        subprocess.run(["mkfs.vfat", "-s1", "-F", f"{bits}", "-C", image, f"{size}"], check=True, capture_output=True)
        subprocess.run(["mcopy", "-s", "-i", image, top / "tree", "::"], check=True)
        made.append(image.read_bytes())
    return made


def read_all(image: bytes) -> int:
    """Read all that can be; how many names there were."""
    volume = VfatVolume(Section(Bytes(image), 0), "image", 1, 1)
    waiting, seen, names = [volume.root], {volume.root}, 0
    while waiting and names < NAMES:
        directory = waiting.pop()
        try:
            entries = list(volume.entries(directory, 0))
        except OSError as error:
            assert error.errno in (errno.EUCLEAN, errno.EIO, errno.ENOTDIR), error
            continue
        for name, _cookie, inode, kind in entries:
            names += 1
            assert name and b"/" not in name and name not in (b".", b"..")
            if kind == stat.S_IFDIR >> 12 and inode not in seen:
                seen.add(inode)
                waiting.append(inode)
            try:
                assert stat.S_IFMT(volume.attributes(inode).mode) == kind << 12
                assert volume.lookup(directory, name) is not None
                assert len(volume.read_pieces(inode, 0, 1 << 17)) <= 1 << 17
            except OSError as error:
                assert error.errno in (errno.EUCLEAN, errno.EIO, errno.ENOTDIR), error
    return names


@pytest.mark.needs("mkfs.vfat", "mcopy")
def test_fuzz_bytes_changed_at_random(images: list[bytes]) -> None:
    assert [read_all(image) for image in images] == [43, 43, 43]
    seed = random.SystemRandom().randrange(1 << 32) if "VIEWFS_FUZZ_SECONDS" in os.environ else 1
    chance = random.Random(seed)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        original = chance.choice(images)
        image = bytearray(original)
        used = len(original.rstrip(b"\0"))
        for _ in range(chance.choice((1, 3, 20))):
            image[chance.choice((chance.randrange(90), chance.randrange(used)))] = chance.randrange(256)
        begun = time.monotonic()
        try:
            read_all(bytes(image))
        except DamagedSourceError:
            pass
        except OSError as error:
            assert error.errno in (errno.EUCLEAN, errno.EIO), (seed, error)  # the root
        assert time.monotonic() - begun < LIMIT


@pytest.mark.needs("mkfs.vfat", "mcopy")
def test_a_file_system_is_known_by_its_boot_sector(images: list[bytes]) -> None:
    assert all(is_fat(image[:512]) for image in images)
    assert not is_fat(b"") and not is_fat(images[0][:511]) and not is_fat(bytes(512))


@given(st.binary(max_size=600))
def test_any_bytes_can_be_looked_at(head: bytes) -> None:
    assert is_fat(head) in (True, False)
    with pytest.raises(DamagedSourceError, match="has no FAT"):
        VfatVolume(Section(Bytes(head), 0), "image", 1, 1)


def test_a_disk_with_a_boot_loader_is_not_taken_for_one() -> None:
    """Its first sector ends alike, and may begin with a jump; the parameters of a file system are what tells."""
    assert not is_fat(b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa")
