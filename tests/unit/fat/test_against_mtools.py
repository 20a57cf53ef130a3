"""Images of real mkfs.vfat in every size: names, contents and times are what mtools was given to put there."""

from __future__ import annotations

import os
import random
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.fat.conftest import Opener
from tests.unit.fat.fat_images import KINDS, Kind, fsck, mattrib, mcopy, mdir, mkfs, run
from tests.unit.fat.fat_writer import FatWriter, Folder, dos

pytestmark = pytest.mark.needs("mkfs.vfat", "mcopy")

SECOND = 1_000_000_000
NAMES = (
    "A long name é.txt",
    "日本語ファイル.txt",
    "Ünïcödé ☃ naïve.txt",
    "two.dots.in.it",
    ".hidden",
    "a+b=c[d],;.txt",
    "UPPER.TXT",
    "lower.txt",
    "Mixed.Txt",
    "no extension",
    "n" * 195,
    "$%'-_@~`!(){}^#&",
)
#: Seconds since 1970 that can be stored: even, from 1980 on, beyond 2038 and 2048, to 2107; leap days.
TIMES = (315_532_800, 951_782_400, 1_719_750_896, 2_147_483_648, 2_461_450_000, 3_155_760_000, 4_107_542_400)


def make_tree(root: Path, most: int) -> None:
    """Files that go into `most` KiB, with times that can be stored."""
    chance = random.Random(1)
    few = root / "few"
    (few / "deeper" / "Deepest Of All").mkdir(parents=True)
    (few / "empty").mkdir()
    sizes = (0, 1, 511, 512, 513, 4095, 4096, 4097, 30_000) if most < 2000 else (0, 1, 4096, 65_537, 400_000)
    for size in sizes:
        (few / "deeper" / f"{size}.bin").write_bytes(chance.randbytes(size))
    (few / "deeper" / "Deepest Of All" / "file").write_bytes(b"at the bottom")
    for name in NAMES:
        (root / name).write_text(name)
    many = root / "many"
    many.mkdir()
    for number in range(20 if most < 2000 else 70):
        (many / f"a name that takes several entries {number}").write_bytes(b"%d" % number)
    for number, path in enumerate(sorted(root.rglob("*"))):
        time = TIMES[number % len(TIMES)] + number * 2
        os.utime(path, (time, time))


def contents(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in root.rglob("*")}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A small one for floppy disks, and another one."""
    made = {}
    for small in (True, False):
        made[small] = tmp_path_factory.mktemp("trees") / "tree"
        made[small].mkdir()
        make_tree(made[small], 1000 if small else 5000)
    return made


def tree_for(trees: dict[bool, Path], kind: Kind) -> Path:
    return trees[kind.kib < 12_000 or (kind.cluster * kind.sector > 16384 and kind.kib < 100_000)]


def fill(image: Path, tree: Path) -> Path:
    """What mcopy would do, for a FAT32 that has so few clusters that mtools takes it for something else."""
    writer = FatWriter(data=image.read_bytes())

    def copy(source: Path, folder: Folder) -> None:
        for path in sorted(source.iterdir()):
            time = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            modified = dos(time.year, time.month, time.day, time.hour, time.minute, time.second)
            if path.is_dir():
                copy(path, folder.folder(path.name))
            else:
                folder.file(path.name, path.read_bytes(), modified=modified)

    copy(tree, writer.root)
    image.write_bytes(writer.data)
    fsck(image)
    return image


@pytest.fixture
def filled(tmp_path: Path, trees: dict[bool, Path], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """An image of a kind, and the tree in it."""
    kind = request.param
    if kind.kib < 100:
        tree = tmp_path / "little"
        (tree / "directory").mkdir(parents=True)
        (tree / "directory" / "A file of it").write_bytes(b"content" * 300)
        (tree / "SHORT.TXT").write_bytes(b"short")
        for path in tree.rglob("*"):
            os.utime(path, (TIMES[2], TIMES[2]))
    else:
        tree = tree_for(trees, kind)
    if kind.bits == 32 and kind.kib < 35_000:
        return fill(mkfs(tmp_path / "image", kind), tree), tree
    return mcopy(mkfs(tmp_path / "image", kind), *sorted(tree.iterdir())), tree


@pytest.mark.parametrize("filled", KINDS, indirect=True, ids=str)
def test_every_kind_of_image(open_image: Opener, filled: tuple[Path, Path]) -> None:
    image, tree = filled
    volume = open_image(image)
    expected = contents(tree)
    found = volume.tree()
    assert not volume.errors()
    assert sorted(found) == sorted(expected)
    assert {path for path, data in found.items() if data != expected[path]} == set()
    for path in expected:
        attributes, stored = volume.stat(path), (tree / path).stat()
        assert stat.S_IFMT(attributes.mode) == stat.S_IFMT(stored.st_mode)
        if stat.S_ISREG(stored.st_mode):
            assert attributes.mtime_ns == int(stored.st_mtime) * SECOND, path
            assert attributes.size == stored.st_size
            assert attributes.blocks * 512 >= stored.st_size


@pytest.mark.parametrize("kind", [KINDS[3], KINDS[12], KINDS[24]], ids=str)
def test_mtools_sees_the_same_names(open_image: Opener, tmp_path: Path, trees: dict[bool, Path], kind: Kind) -> None:
    image = mcopy(mkfs(tmp_path / "image", kind), *sorted(tree_for(trees, kind).iterdir()))
    fsck(image)
    assert set(open_image(image).tree()) == mdir(image)


@pytest.mark.parametrize("kind", [KINDS[1], KINDS[11], KINDS[21], KINDS[24]], ids=str)
def test_an_image_without_files(open_image: Opener, tmp_path: Path, kind: Kind) -> None:
    volume = open_image(mkfs(tmp_path / "image", kind))
    assert volume.tree() == {} and not volume.errors()
    assert stat.S_ISDIR(volume.stat("").mode)
    statistics = volume.system.statfs()
    assert 0 < statistics.block_size * statistics.blocks <= kind.kib << 10


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_deleted_files_are_not_there(open_image: Opener, tmp_path: Path, bits: int) -> None:
    cluster, kib = {12: (1, 1440), 16: (4, 16_384), 32: (1, 70_000)}[bits]
    image = mkfs(tmp_path / "image", Kind(bits, 512, cluster, kib))
    for name in ("first", "A long name that is deleted", "last one"):
        (tmp_path / name).write_text(name)
        mcopy(image, tmp_path / name)
    run("mdel", "-i", image, "::first", "::A long name that is deleted")
    volume = open_image(image)
    assert volume.tree() == {"last one": b"last one"}
    for name in ("first", "A long name that is deleted", "ALONGN~1", "A LABEL", "ALABEL"):
        assert volume.find(name) is None


@pytest.mark.parametrize(
    ("flags", "path", "mode"),
    [
        ("+r", "UPPER.TXT", 0o555),
        ("+h", "UPPER.TXT", 0o755),
        ("+s", "UPPER.TXT", 0o755),
        ("-a", "UPPER.TXT", 0o755),
        ("+r +h +s", "UPPER.TXT", 0o555),
        ("+r", "few", 0o755),
        ("+h +s", "few", 0o755),
    ],
)
def test_attributes(
    open_image: Opener, tmp_path: Path, trees: dict[bool, Path], flags: str, path: str, mode: int
) -> None:
    """Hidden and system files are shown, read-only files have no permission to write; directories keep theirs."""
    image = mcopy(mkfs(tmp_path / "image", KINDS[3]), trees[True] / "UPPER.TXT", trees[True] / "few")
    mattrib(image, flags, path)
    volume = open_image(image)
    assert path in volume.names()
    assert stat.S_IMODE(volume.stat(path).mode) == mode


def test_reads_that_are_not_whole(open_image: Opener, tmp_path: Path) -> None:
    """Any part of a file that is scattered, also behind its end."""
    image = mkfs(tmp_path / "image", Kind(16, 512, 2, 16_384))
    data = random.Random(2).randbytes(100_000)
    for number in range(4):
        (tmp_path / f"f{number}").write_bytes(bytes(3000))
        mcopy(image, tmp_path / f"f{number}")
    run("mdel", "-i", image, "::f0", "::f2")
    (tmp_path / "data").write_bytes(data)
    mcopy(image, tmp_path / "data")
    volume = open_image(image)
    chance = random.Random(3)
    for _ in range(200):
        offset, size = chance.randrange(110_000), chance.choice((1, 511, 512, 1024, 5000, 200_000))
        assert volume.read("data", offset, size) == data[offset : offset + size]


def test_offset_in_a_disk(open_image: Opener, tmp_path: Path, trees: dict[bool, Path]) -> None:
    """The file system begins somewhere in its source."""
    image = mcopy(mkfs(tmp_path / "image", KINDS[3]), trees[True] / "few")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20) + image.read_bytes())
    assert open_image(disk, offset=1 << 20).tree() == open_image(image).tree()


@pytest.mark.parametrize(
    ("zone", "option", "shift"),
    [
        ("UTC", "UTC", 0),
        ("America/New_York", "America/New_York", 0),
        ("Europe/Berlin", "Europe/Berlin", 0),
        ("Asia/Kathmandu", "Asia/Kathmandu", 0),
        ("America/New_York", "UTC", -4 * 3600),
        ("Europe/Berlin", "UTC", 2 * 3600),
    ],
)
def test_times_are_those_of_a_zone(open_image: Opener, tmp_path: Path, zone: str, option: str, shift: int) -> None:
    """Wall-clock time is stored; `shift` is what the zone where it was written is ahead of the one it is read in."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    os.utime(file, (1_719_750_896, 1_719_750_896))  # in summer
    image = mcopy(mkfs(tmp_path / "image", KINDS[3]), file, TZ=zone)
    assert open_image(image, tz=option).stat("file").mtime_ns == (1_719_750_896 + shift) * SECOND
