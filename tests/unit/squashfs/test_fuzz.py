"""Images with bytes changed at random: everything in them is read, and nothing but the allowed errors comes out.

A few seconds of it belong to every run of the tests. VIEWFS_FUZZ_SECONDS makes it go on for longer, with a seed of
its own each time, which a failure shows. The images are compressed in different ways: as a whole, where most changes
end in the decompressor; not at all, where they reach the parsers; and with tables that were changed before they were
compressed, which reach the parsers through the decompressor.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.images import MemoryImage, damaged_one_after_the_other
from tests.unit.limits import not_hanging
from tests.unit.squashfs.squashfs_damage import DAMAGE
from tests.unit.squashfs.squashfs_images import COMPRESSORS
from tests.unit.squashfs.squashfs_parts import SUPERBLOCK, Parts, packed, peek, poke
from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.squashfs.volume import Volume

pytestmark = pytest.mark.bounded_memory

#: The bytes that one file is read of, at its beginning and at its end.
PART = 1 << 18
#: Names that are followed in one image: damage can make each name that of every directory.
NAMES = 3000
TABLES = ("inodes", "directories", "fragments", "exports", "ids", "xattrs", "xattr_ids")
KINDS = [*COMPRESSORS, *(f"tables of {compressor}" for compressor in COMPRESSORS), "plain", "plain tables"]


class Reader:
    """Reads all that an image has."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.failed = 0
        self.names_left = NAMES

    def tolerate(self, call: object, *arguments: object) -> object:
        try:
            return call(*arguments)  # type: ignore[operator]
        except OSError as error:
            assert error.errno in DAMAGE, error
            self.failed += 1
            return None

    def all(self) -> None:
        seen = {self.volume.root}
        waiting = [self.volume.root]
        self.one(self.volume.root)
        while waiting:
            for name, node in self.names(waiting.pop()):
                assert name and len(name) <= 256 and b"/" not in name and b"\0" not in name
                if node in seen:
                    continue
                seen.add(node)
                if self.one(node):
                    waiting.append(node)

    def one(self, node: int) -> bool:
        """Returns whether it is a directory."""
        attributes = self.tolerate(self.volume.attributes, node)
        if attributes is None:
            return False
        mode, size = attributes.mode, attributes.size  # type: ignore[attr-defined]
        assert size >= 0
        self.tolerate(lambda: dict(self.volume.xattrs(node)))
        if stat.S_ISREG(mode):
            for offset in {0, size // 2, max(size - PART, 0)}:
                data = self.tolerate(self.volume.read, node, offset, PART)
                assert data is None or len(data) == min(PART, size - offset)  # type: ignore[arg-type]
        elif stat.S_ISLNK(mode):
            target = self.tolerate(self.volume.readlink, node)
            assert target is None or len(target) == size  # type: ignore[arg-type]
        return stat.S_ISDIR(mode)

    def names(self, directory: int) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        last = 0
        try:
            for name, cookie, node, kind in self.volume.entries(directory, 0):
                assert 1 << 63 > cookie > last and 0 < node < 1 << 64 and kind in (0, 1, 2, 4, 6, 8, 10, 12)
                last = cookie
                if name not in (b".", b".."):
                    found.append((name, node))
                self.names_left -= 1
                if self.names_left <= 0:
                    break
        except OSError as error:
            assert error.errno in DAMAGE, error
            self.failed += 1
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


def change(changed: bytearray, places: list[int], noise: random.Random) -> None:
    """A few bytes, among these places."""
    for _ in range(noise.choice((1, 1, 2, 5, 30))):
        place = noise.choice(places)
        kind = noise.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << noise.randrange(8)
        elif kind == 1:
            changed[place] = noise.randrange(256)
        elif kind == 2:
            word = noise.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0", b"\xff\x7f", b"\0\1"))
            changed[place : place + len(word)] = word[: len(changed) - place]
        elif kind == 3:
            other = noise.choice(places)
            size = min(noise.choice((2, 4, 8, 16)), len(changed) - max(place, other))
            changed[place : place + size] = changed[other : other + size]
        else:
            changed[place] = (changed[place] + noise.choice((1, -1, 2, -2))) & 0xFF


class Damager:
    """Makes damaged images of one kind from a sound one."""

    def __init__(self, kind: str, plains: Callable[[str], bytes]) -> None:
        self.compressor = kind.split()[-1] if kind.split()[-1] in COMPRESSORS else "gzip"
        self.of_tables = "tables" in kind
        self.plain = plains(self.compressor)
        self.packers = {} if kind.startswith("plain") else dict.fromkeys(TABLES, packed(self.compressor))
        self.sound = Parts.of(self.plain).assemble(self.packers)
        tables = peek(self.sound, SUPERBLOCK, "inode_table")
        # The places of the superblock and of the tables have the most to say; those of data are so many.
        front = list(range(96)) * 2
        self.places = front + list(range(tables, len(self.sound))) + list(range(96, tables, 40))

    def damaged(self, noise: random.Random) -> bytes:
        if self.of_tables:
            parts = Parts.of(self.plain)
            for name in noise.sample(("inodes", "directories", "xattrs"), noise.randrange(1, 3)):
                table = getattr(parts, name)
                change(table, list(range(len(table))), noise)
            for entries in (parts.fragments, parts.xattr_ids):
                if noise.random() < 0.1:
                    index = noise.randrange(len(entries))
                    entry = list(entries[index])
                    entry[noise.randrange(len(entry))] ^= 1 << noise.randrange(25)
                    entries[index] = tuple(entry)  # type: ignore[call-overload]
            return parts.assemble(self.packers)
        changed = bytearray(self.sound)
        change(changed, self.places, noise)
        size = noise.randrange(len(changed)) if noise.random() < 0.05 else len(changed)
        return bytes(changed[:size])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images(kind: str, plains: Callable[[str], bytes], tmp_path: Path) -> None:
    damager = Damager(kind, plains)
    reader = Reader(Volume.open(MemoryImage(damager.sound)))
    reader.all()
    assert not reader.failed and reader.names_left < NAMES - 120
    damaged_one_after_the_other(
        kind, 1 / len(KINDS), tmp_path, lambda noise, _seed: damager.damaged(noise), read_everything, moment=0.4
    )


quick = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def test_any_superblock(plains: Callable[[str], bytes]) -> None:
    plain = plains("gzip")
    forms = {name: st.integers(0, (1 << 8 * (8 if form[-1] == "Q" else 4 if form[-1] == "I" else 2)) - 1)
             for name, (_, form) in SUPERBLOCK.items() if name not in ("magic", "major")}  # fmt: skip
    near = {name: st.integers(-3, 3) for name in forms}

    @quick
    @given(st.fixed_dictionaries({}, optional=forms), st.fixed_dictionaries({}, optional=near))
    def check(fields: dict[str, int], changes: dict[str, int]) -> None:
        moved = {name: max(peek(plain, SUPERBLOCK, name) + by, 0) for name, by in changes.items()}
        moved = {name: value for name, value in moved.items() if value < 1 << 16 or name not in ("flags", "ids")}
        changed = bytearray(plain)
        poke(changed, SUPERBLOCK, **{name: value & _mask(name) for name, value in (moved | fields).items()})
        read_everything(bytes(changed))

    check()


def _mask(name: str) -> int:
    return int((1 << 8 * {"Q": 8, "I": 4, "H": 2}[SUPERBLOCK[name][1][-1]]) - 1)


def test_any_bytes_as_tables(plains: Callable[[str], bytes]) -> None:
    """A directory of noise, and inodes and attributes of noise."""
    plain = plains("gzip")
    size = len(Parts.of(plain).directories)

    @quick
    @given(
        st.sampled_from(("inodes", "directories", "xattrs")),
        st.lists(st.tuples(st.integers(0, size - 1), st.binary(min_size=1, max_size=16)), min_size=1, max_size=10),
    )
    def check(name: str, pieces: list[tuple[int, bytes]]) -> None:
        parts = Parts.of(plain)
        table = getattr(parts, name)
        for place, piece in pieces:
            place %= len(table)
            piece = piece[: len(table) - place]
            table[place : place + len(piece)] = piece
        read_everything(parts.assemble())

    check()


@quick
@given(st.binary(max_size=5000))
def test_any_bytes_as_an_image(data: bytes) -> None:
    for source in (data, b"hsqs" + data, b"\x7fELF\x02\x01" + data):
        assert Volume.probe(MemoryImage(source)) in (True, False)
        with pytest.raises(DamagedSourceError):
            Volume.open(MemoryImage(source))
