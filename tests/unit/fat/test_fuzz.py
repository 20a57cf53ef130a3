"""FAT and exFAT with bytes changed at random: everything is read, and nothing but the allowed errors comes out.

A few seconds of it belong to every run of the tests. VIEWFS_FUZZ_SECONDS makes it go on for longer, with a seed of
its own, which a failure shows.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fat.conftest import DAMAGE, Opened, file_system
from tests.unit.fat.exfat_writer import ExfatWriter
from tests.unit.fat.fat_damage import Scene
from tests.unit.fat.fat_writer import FatWriter
from tests.unit.images import MemoryImage, damaged_one_after_the_other
from tests.unit.limits import not_hanging
from viewfs.errors import DamagedSourceError

KINDS = {
    "fat12": lambda: FatWriter(12, clusters=150),
    "fat16": lambda: FatWriter(16),
    "fat32": lambda: FatWriter(32, clusters=150, sector=1024),
    "exfat": lambda: ExfatWriter(per_cluster=1, clusters=400),
    "texfat": lambda: ExfatWriter(per_cluster=2, clusters=200, tables=2, active=1),
}


def damage(original: bytes, used: list[int], chance: random.Random) -> bytes:
    """A few bytes changed, mostly ones that were in use, sometimes with the end cut off."""
    image = bytearray(original)
    for _ in range(chance.choice((1, 1, 2, 5, 30))):
        # What is in front has the most to say.
        place = chance.choice(used) if chance.random() < 0.8 else chance.randrange(128)
        kind = chance.randrange(5)
        if kind == 0:
            image[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            image[place] = chance.choice((0, 1, 0x0F, 0x10, 0x40, 0x85, 0xC0, 0xC1, 0xE5, 0xFF))
        elif kind == 2:
            image[place] = chance.randrange(256)
        elif kind == 3:
            place &= ~3
            value = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xf7\xff\xff\x0f", b"\2\0\0\0", b"\3\0\0\0"))
            image[place : place + 4] = value
        else:
            there, other = place & ~31, chance.choice(used) & ~31
            image[there : there + 32] = image[other : other + 32]
    size = chance.randrange(len(image)) if chance.random() < 0.05 else len(original)
    return bytes(image[:size])


def read_everything(image: bytes) -> None:
    with not_hanging():
        _read_everything(image)


def _read_everything(image: bytes) -> None:
    try:
        volume = Opened(file_system(MemoryImage(image)))
    except DamagedSourceError as error:
        assert str(error)
        return
    assert set(volume.errors().values()) <= DAMAGE | {errno.ELOOP}
    volume.system.statfs()
    for name in ("absent", "FIRST.TXT", "folder/inside 1.", "victims/x"):
        try:
            volume.find(name)
        except OSError as error:
            assert error.errno in DAMAGE | {errno.ENOTDIR, errno.ELOOP}


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_changed_at_random(kind: str, tmp_path: Path) -> None:
    made = Scene(KINDS[kind]())  # type: ignore[no-untyped-call]
    data = made.image()
    assert Opened(file_system(MemoryImage(data))).tree() == made.contents
    used = [place for place, byte in enumerate(data) if byte]

    def damaged(noise: random.Random, seed: int) -> bytes:
        changed = damage(data, used, noise)
        if kind.endswith("exfat") and seed % 2:
            made.writer.data[:] = changed.ljust(len(data), b"\0")
            changed = made.writer.finish()[: len(changed)]  # with a right checksum of the boot region
        return changed

    damaged_one_after_the_other(kind, 1 / len(KINDS), tmp_path, damaged, read_everything)


@given(st.binary(max_size=700), st.sampled_from((b"\xeb\x76\x90EXFAT   ", b"\xeb\x3c\x90MSDOS5.0", b"")))
def test_any_bytes_can_be_looked_at(data: bytes, head: bytes) -> None:
    read_everything(head + data)
