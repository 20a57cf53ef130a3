"""exFAT: names, contents and times, of images made by mkfs.exfat and by the writer of these tests.

Rules (Microsoft's specification, and what fs/exfat does):

- A file is an entry (0x85), its stream (0xC0) right behind it, and the parts of its name (0xC1); what may follow are
  benign secondary entries, which mean nothing to who doesn't know them. Benign primary ones (0xA0) are passed over, and
  entries without the bit 0x80 are not in use. Type 0 ends a directory.
- Content is the first DataLength bytes of the clusters: those that follow each other (NoFatChain), or a chain. What is
  behind ValidDataLength was never written, and reads as zeros.
- Names are compared by the up-case table of the volume, each UTF-16 unit for itself. There are no short names. Dots at
  the end of a name that is looked for don't count.
- Times are local with their own offset from UTC in quarters of an hour where the zone's byte has the bit 0x80, and of
  the zone of the option `tz` where it has not. Creation and modification count hundredths of a second.
"""

from __future__ import annotations

import calendar
import random
import stat
import struct
from pathlib import Path

import pytest

from tests.unit.fat.conftest import Opener
from tests.unit.fat.exfat_writer import (
    CONTIGUOUS,
    DIRECTORY,
    GUID,
    HIDDEN,
    IN_USE,
    READ_ONLY,
    SYSTEM,
    VENDOR,
    VENDOR_ALLOCATION,
    ExfatWriter,
    Folder,
    Stamp,
    stamp,
)
from tests.unit.fat.fat_images import fsck_exfat, mkfs_exfat

SECOND = 1_000_000_000
NAMES = (
    "a",
    "fifteen units.t",
    "sixteen units.tx",
    "x" * 255,
    "日" * 85,
    "😀 of two units",
    "Ünïcödé ☃ naïve.txt",
    " leading space",
    "..two dots",
    "$%'-_@~`!(){}^#&+,;=[]",
    "UPPER.TXT",
    "lower.txt",
)


def fill(writer: ExfatWriter) -> dict[str, bytes | None]:
    """Files of every kind; what is there then."""
    chance = random.Random(1)
    root, size = writer.root, writer.cluster
    found: dict[str, bytes | None] = {}

    def put(folder: Folder, above: str, name: str, content: bytes, **fields: object) -> None:
        folder.file(name, content, **fields)  # type: ignore[arg-type]
        found[above + name] = content

    for name in NAMES:
        put(root, "", name, name.encode())
    put(root, "", "empty", b"")
    for number, length in enumerate((1, size - 1, size, size + 1, 3 * size + 5)):
        data = chance.randbytes(length)
        put(root, "", f"chain {number}", data)
        put(root, "", f"contiguous {number}", data, contiguous=True)
        put(root, "", f"fragmented {number}", data, fragmented=True)
    writer.root.delete(writer.root.file("deleted file", b"deleted"))
    for kind in ({"contiguous": True}, {"fragmented": True}, {}):
        above = f"folder {' '.join(kind) or 'in a chain'}"
        folder = root.folder(above, -(-3 * 150 * 32 // size), **kind)  # type: ignore[arg-type]
        found[above] = None
        for number in range(120):
            put(folder, above + "/", f"file number {number}", b"" if number % 9 else b"%d" % number)
    deep, above = root, ""
    for level in range(5):
        deep = deep.folder(f"level {level}")
        above += f"level {level}"
        found[above] = None
        above += "/"
    put(deep, above, "file", b"at the bottom")
    return found


@pytest.mark.parametrize(
    ("sector", "per_cluster"), [(512, 8), (512, 1), (512, 64), (1024, 2), (2048, 4), (4096, 1), (4096, 8), (512, 256)]
)
def test_every_kind_of_file(open_image: Opener, sector: int, per_cluster: int) -> None:
    writer = ExfatWriter(
        sector=sector, per_cluster=per_cluster, clusters=1000 if per_cluster == 1 else 200, label="A LABEL"
    )
    found = fill(writer)
    volume = open_image(writer.finish())
    assert volume.tree() == found and not volume.errors()
    assert volume.find("deleted file") is None and volume.find("A LABEL") is None


@pytest.mark.parametrize("options", [{"compressed": False}, {"tables": 2}, {"tables": 2, "active": 1}])
def test_other_ways_to_store_it(open_image: Opener, options: dict[str, int]) -> None:
    """An up-case table that is not compressed, and two tables, of which either is the one that counts (TexFAT)."""
    writer = ExfatWriter(**options)  # type: ignore[arg-type]
    found = fill(writer)
    volume = open_image(writer.finish())
    assert volume.tree() == found and not volume.errors()
    assert volume.find("ÜNÏCÖDÉ ☃ NAÏVE.TXT") is not None


@pytest.mark.needs("mkfs.exfat", "fsck.exfat")
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2 << 20, ("-b", "64K")),
        (4 << 20, ("-c", "512")),
        (8 << 20, ("-c", "4K", "-L", "a label")),
        (16 << 20, ("-c", "32K")),
        (48 << 20, ("-c", "128K", "-b", "1M")),
        (8 << 20, ("-c", "4K", "--pack-bitmap")),
    ],
)
def test_images_of_mkfs(open_image: Opener, tmp_path: Path, size: int, options: tuple[str, ...]) -> None:
    image = mkfs_exfat(tmp_path / "image", size, *options)
    assert open_image(image).tree() == {}
    writer = ExfatWriter(image.read_bytes())
    found = fill(writer)
    image.write_bytes(writer.finish())
    fsck_exfat(image)
    volume = open_image(image)
    assert volume.tree() == found and not volume.errors()


@pytest.mark.needs("mkfs.exfat")
@pytest.mark.parametrize("size", [256 << 20, 40 << 30, 3 << 40])
def test_large_images_of_mkfs(open_image: Opener, tmp_path: Path, size: int) -> None:
    """They are sparse files. Nothing in them takes time or memory by their size."""
    image = mkfs_exfat(tmp_path / "image", size, "-L", "large")
    volume = open_image(image)
    statistics = volume.system.statfs()
    assert volume.tree() == {} and size * 0.9 < statistics.block_size * statistics.blocks <= size


def test_what_was_never_written_is_zero(open_image: Opener) -> None:
    writer = ExfatWriter()
    data = b"x" * 30_000
    expected = {}
    for valid in (0, 1, 4095, 4096, 4097, 20_000, 29_999, 30_000):
        for contiguous in (True, False):
            name = f"{valid} {contiguous}"
            writer.root.file(name, data, valid=valid, contiguous=contiguous)
            expected[name] = data[:valid] + bytes(30_000 - valid)
    volume = open_image(writer.finish())
    assert volume.tree() == expected
    chance = random.Random(3)
    for _ in range(100):
        name, offset, size = chance.choice(list(expected)), chance.randrange(31_000), chance.randrange(1, 9000)
        assert volume.read(name, offset, size) == expected[name][offset : offset + size]


def test_benign_entries_are_passed_over(open_image: Opener) -> None:
    writer = ExfatWriter()
    vendor = struct.pack("<BB16s14s", VENDOR, 0, b"guid of a vendor", b"what it wants.")
    more = writer.allocate(1)
    allocation = struct.pack("<BB16sHIQ", VENDOR_ALLOCATION, 3, b"guid of a vendor", 0, more[0], 4096)
    writer.root.put(struct.pack("<BBHH16s10x", GUID, 0, 0, 0, b"guid of a volume"))
    writer.root.put(bytes((0xA1,)) + bytes(31))
    for number, extra in enumerate(([vendor], [allocation], [vendor, allocation, vendor], [vendor] * 14)):
        writer.root.file(f"file {number}", b"content", extra=extra)
    writer.root.put(*[bytes((VENDOR & ~IN_USE,)) + bytes(31)] * 3)
    writer.root.file("behind", b"content")
    assert open_image(writer.finish()).tree() == dict.fromkeys(
        ("file 0", "file 1", "file 2", "file 3", "behind"), b"content"
    )


def test_attributes(open_image: Opener) -> None:
    writer = ExfatWriter()
    cases = {"plain": 0, "read-only": READ_ONLY, "hidden": HIDDEN, "system": SYSTEM, "all": 0x27}
    for name, attributes in cases.items():
        writer.root.file(name, b"content", attributes=attributes)
    writer.root.folder("folder", attributes=DIRECTORY | READ_ONLY | HIDDEN)
    volume = open_image(writer.finish())
    for name, attributes in cases.items():
        assert volume.stat(name).mode == stat.S_IFREG | (0o555 if attributes & READ_ONLY else 0o755)
    assert volume.stat("folder").mode == stat.S_IFDIR | 0o755


LOOKUPS = {
    "A Long Name.txt": b"long",
    "a LONG nAME.TXT": b"long",
    "A Long Name.txt...": b"long",
    "A Long Name.txt ": None,
    "ALONGN~1.TXT": None,
    "äöü É ñ": b"umlauts",
    "aou e n": None,
    "привет": b"cyrillic",
    "😀": b"pair",
    "gone": None,
    "...": None,
    "FOLDER/deep FILE": b"deep",
    "x" * 255: None,
    "x" * 256: None,
}


@pytest.mark.parametrize("wanted", LOOKUPS)
def test_lookups(open_image: Opener, wanted: str) -> None:
    writer = ExfatWriter(label="a label")
    root = writer.root
    for name, content in {
        "A Long Name.txt": b"long", "ÄÖÜ é Ñ": b"umlauts", "ПРИВет": b"cyrillic", "😀": b"pair",
    }.items():  # fmt: skip
        root.file(name, content)
    root.delete(root.file("gone", b"gone"))
    root.folder("folder").file("Deep File", b"deep")
    volume = open_image(writer.finish())
    found, expected = volume.find(wanted), LOOKUPS[wanted]
    assert (found is None) == (expected is None)
    assert found is None or volume.content(found) == expected


def test_the_table_of_the_volume_decides(open_image: Opener) -> None:
    """Here it has a letter of its own: "a" stays what it is, and "b" is the small letter of "X"."""
    from tests.unit.fat import exfat_writer

    units = list(exfat_writer.upcase_units())
    units[ord("a")], units[ord("b")] = ord("a"), ord("X")
    table = struct.pack("<65536H", *units)
    writer = ExfatWriter(compressed=False)
    writer.fill(writer.upcase, table)
    writer.patch(writer.upcase_slot + 4, "I", exfat_writer.checksum(table, 32))

    def hashed(name: str) -> int:
        upper = b"".join(units[ord(letter)].to_bytes(2, "little") for letter in name)
        return exfat_writer.checksum(upper, 16)

    for name in ("a", "b", "c"):
        writer.root.file(name, name.encode(), hash_=hashed(name))
    volume = open_image(writer.finish())
    assert volume.tree() == {name: name.encode() for name in "abc"}
    assert volume.find("A") is None and volume.find("B") is None
    assert volume.find("X") is not None and volume.find("x") is not None and volume.find("C") is not None


@pytest.mark.parametrize(
    ("stored", "zone", "shown"),
    [
        (stamp(1980, 1, 1), "UTC", (1980, 1, 1, 0, 0, 0)),
        (stamp(2024, 6, 30, 12, 34, 57), "UTC", (2024, 6, 30, 12, 34, 57)),
        (stamp(2048, 1, 2, 3, 4, 5), "America/New_York", (2048, 1, 2, 3, 4, 5)),
        (stamp(2107, 12, 31, 23, 59, 59), "UTC", (2107, 12, 31, 23, 59, 59)),
        (stamp(2024, 6, 30, 12, 0, 0, quarters=8), "UTC", (2024, 6, 30, 10, 0, 0)),
        (stamp(2024, 6, 30, 12, 0, 0, quarters=23), "Europe/Berlin", (2024, 6, 30, 6, 15, 0)),
        (stamp(2024, 6, 30, 12, 0, 0, quarters=-16), "UTC", (2024, 6, 30, 16, 0, 0)),
        (stamp(2024, 6, 30, 12, 0, 0, quarters=-1), "UTC", (2024, 6, 30, 12, 15, 0)),
        (stamp(2024, 6, 30, 12, 0, 0, quarters=None), "UTC", (2024, 6, 30, 12, 0, 0)),
        (stamp(2024, 6, 30, 12, 0, 0, quarters=None), "America/New_York", (2024, 6, 30, 16, 0, 0)),
        (stamp(2024, 1, 30, 12, 0, 0, quarters=None), "America/New_York", (2024, 1, 30, 17, 0, 0)),
        (stamp(2100, 2, 28, 23, 59, 59), "UTC", (2100, 2, 28, 23, 59, 59)),
    ],
)
def test_times(open_image: Opener, stored: Stamp, zone: str, shown: tuple[int, ...]) -> None:
    writer = ExfatWriter()
    writer.root.file("file", b"", modified=stored, read=stored)
    writer.root.file("hundredths", b"", modified=stored._replace(hundredths=stored.hundredths + 37))
    volume = open_image(writer.finish(), tz=zone)
    seconds = calendar.timegm((*shown, 0, 0, 0))
    assert volume.stat("file").mtime_ns == seconds * SECOND
    assert volume.stat("file").atime_ns == (seconds - seconds % 2) * SECOND
    assert volume.stat("hundredths").mtime_ns == seconds * SECOND + 370_000_000


def test_times_that_there_are_not(open_image: Opener) -> None:
    writer = ExfatWriter(clusters=300)
    for number, packed in enumerate((0, 0xFFFFFFFF, 44 << 25 | 2 << 21 | 31 << 16, 0x0000FFFF, 44 << 25 | 15 << 21)):
        for zone in (0x80, 0xFF, 0xC0, 0xBF, 0):
            when = Stamp(packed, 255, zone)
            writer.root.file(f"{number} {zone}", b"", modified=when, created=when, read=when)
    volume = open_image(writer.finish(), tz="Pacific/Auckland")
    assert len(volume.names()) == 25
    for name in volume.names():
        for shown in (volume.stat(name).mtime_ns, volume.stat(name).atime_ns):
            assert calendar.timegm((1979, 11, 1, 0, 0, 0)) <= shown // SECOND <= calendar.timegm((2109, 1, 1, 0, 0, 0))


def test_a_file_without_clusters_needs_none(open_image: Opener) -> None:
    """Size 0 with a cluster that there is not, and flags that say that there can be none."""
    writer = ExfatWriter()
    writer.root.file("one", b"", first=0xFFFFFF, flags=CONTIGUOUS)
    writer.root.file("two", b"", first=0, flags=0)
    volume = open_image(writer.finish())
    assert volume.read("two", 0, 100) == b"" and volume.names() == ["one", "two"]
