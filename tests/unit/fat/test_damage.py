"""Damaged FAT and exFAT: an errno or something plausible, soon and in little memory; the rest can be read.

What has been deleted is never shown.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from tests.unit.fat.conftest import DAMAGE, Opened, file_system
from tests.unit.fat.exfat_writer import ExfatWriter
from tests.unit.fat.fat_damage import (
    ALL,
    EXFAT_DAMAGE,
    EXFAT_HARMLESS,
    FAT_DAMAGE,
    HARMLESS,
    SECRET,
    Damage,
    Scene,
)
from tests.unit.fat.fat_writer import FatWriter
from tests.unit.images import MemoryImage
from viewfs.errors import DamagedSourceError

pytestmark = pytest.mark.usefixtures("bounded")

#: What a reader may ask of a damaged image: so many requests, and so many bytes.
REQUESTS, ASKED = 50_000, 256 << 20
WRITERS: dict[str, Callable[[], FatWriter | ExfatWriter]] = {
    "fat12": lambda: FatWriter(12),
    "fat16": lambda: FatWriter(16),
    "fat32": lambda: FatWriter(32),
    "exfat": lambda: ExfatWriter(),
}
FATS = [kind for kind in WRITERS if kind != "exfat"]


def scene(kind: str) -> Scene:
    return Scene(WRITERS[kind]())


def look(image: bytes) -> Opened | None:
    """All of it has been read, if it can be opened."""
    source = MemoryImage(image)
    try:
        volume = Opened(file_system(source))
    except DamagedSourceError as error:
        assert str(error) and "\n" not in str(error)
        return None
    volume.tree()
    volume.system.statfs()
    assert set(volume.errors().values()) <= DAMAGE | {errno.ELOOP}
    assert len(source.reads) < REQUESTS and source.asked < ASKED
    assert not any(SECRET in path for path in volume.tree())
    return volume


def is_below(path: str, tops: tuple[str, ...]) -> bool:
    return any(top == "" or path == top or path.startswith(f"{top}/") for top in tops)


def check(scene: Scene, damage: Damage) -> None:
    volume = look(scene.image())
    if volume is None:
        assert damage.touched == ALL, "the image is refused for damage to one file"
        return
    found, errors = volume.tree(), volume.errors()
    # A directory may say at the end of its listing that there was something wrong in it, or show what has no name.
    above = {path.rpartition("/")[0] for path in damage.touched}
    above |= {f"{path}/\ufffd".lstrip("/") for path in above}
    for path, content in scene.contents.items():
        if not is_below(path, damage.touched):
            assert path not in errors or path in above, path
            assert found.get(path, "missing") == content, path
    assert [path for path in errors if path not in above and not is_below(path, damage.touched)] == []
    if damage.error:
        assert damage.touched[0] in errors


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_damaged(kind: str) -> None:
    check(scene(kind), Damage(lambda _: None, ()))


@pytest.mark.parametrize("kind", FATS)
@pytest.mark.parametrize("damage", FAT_DAMAGE)
def test_damage_to_fat(kind: str, damage: str) -> None:
    made = scene(kind)
    FAT_DAMAGE[damage].apply(made)
    check(made, FAT_DAMAGE[damage])


@pytest.mark.parametrize("damage", EXFAT_DAMAGE)
def test_damage_to_exfat(damage: str) -> None:
    made = scene("exfat")
    EXFAT_DAMAGE[damage].apply(made)
    check(made, EXFAT_DAMAGE[damage])


@pytest.mark.parametrize("kind", FATS)
@pytest.mark.parametrize("change", HARMLESS)
def test_what_nothing_depends_on_in_fat(kind: str, change: str) -> None:
    bits, place, value = HARMLESS[change]
    made = scene(kind)
    if bits in (0, made.writer.bits):
        made.writer.data[place : place + len(value)] = value
        check(made, Damage(lambda _: None, ()))


@pytest.mark.parametrize("change", EXFAT_HARMLESS)
def test_what_nothing_depends_on_in_exfat(change: str) -> None:
    place, value = EXFAT_HARMLESS[change]
    made = scene("exfat")
    made.writer.data[place : place + len(value)] = value
    check(made, Damage(lambda _: None, ()))


def test_only_the_main_boot_region_of_exfat_counts() -> None:
    image = bytearray(scene("exfat").image())
    image[12 * 512 : 24 * 512] = b"\xa5" * (12 * 512)
    volume = look(bytes(image))
    assert volume is not None and volume.tree() == scene("exfat").contents


def test_a_boot_region_with_a_wrong_checksum_is_refused_or_read() -> None:
    volume = look(scene("exfat").writer.finish(boot_sum=0x12345678))
    assert volume is None or volume.tree() == scene("exfat").contents or volume.tree() == {}


@pytest.mark.parametrize("kind", WRITERS)
def test_each_byte_of_the_boot_sector(kind: str) -> None:
    """Whatever it says: refused, or all that is found can be read or is an errno."""
    original, made = scene(kind), bytearray(scene(kind).image())
    exfat = isinstance(original.writer, ExfatWriter)
    for place in range(11, 121 if exfat else 90):
        for value in {0, 0x80, 0xFF, made[place] ^ 1}:
            if exfat:
                image = bytearray(made)
                image[place] = value
                writer = original.writer
                writer.data[:] = image
                look(writer.finish())
            else:
                image = bytearray(made)
                image[place] = value
                look(bytes(image))


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_in_front_of_damage_can_be_read(kind: str) -> None:
    made = scene(kind)
    made.writer.link(made.victim.clusters[2], 0)
    volume = look(made.image())
    assert volume is not None
    size, content = made.writer.cluster, made.contents["victim"]
    assert content is not None
    assert volume.stat("victim").size == len(content)
    assert volume.read("victim", 0, 3 * size) == content[: 3 * size]
    assert volume.read("victim", size - 9, size) == content[size - 9 : 2 * size - 9]
    for offset, length in ((3 * size, 1), (5 * size, 10), (0, 4 * size)):
        with pytest.raises(OSError) as raised:
            volume.read("victim", offset, length)
        assert raised.value.errno in DAMAGE


@pytest.mark.parametrize("kind", WRITERS)
def test_no_read_is_cut_short_by_damage(kind: str) -> None:
    """Linux takes a short answer for the end of the file: programs would see that instead of an error."""
    made = scene(kind)
    made.writer.link(made.victim.clusters[2], 0)
    volume = look(made.image())
    assert volume is not None
    with pytest.raises(OSError):
        volume.system.read(volume.stat("victim").ino, 0, 4 * made.writer.cluster)


def cuts(size: int, heap: int) -> Iterator[int]:
    """Where an image is cut: everywhere in front, and here and there behind."""
    yield from (0, 1, 3, 36, 62, 90, 510, 511, 512, 513, 1023, 1024, 4096, 4097)
    yield from range(max(heap - 3000, 0), min(heap + 12_000, size), 333)
    yield from range(heap, size, max((size - heap) // 60, 1))


@pytest.mark.parametrize("kind", WRITERS)
def test_an_image_that_is_cut_short(kind: str) -> None:
    """What is in front of the cut can be read."""
    made = scene(kind)
    image, writer = made.image(), made.writer
    for cut in cuts(len(image), writer.heap):
        volume = look(image[:cut])
        roots = writer.root.clusters or []
        if volume is None or cut < writer.heap or any(writer.place(cluster + 1) > cut for cluster in roots):
            continue
        for path, content in made.contents.items():
            if path in made.entries and "/" not in path:
                last = max(made.entries[path].clusters)
                if writer.place(last + 1) <= cut:
                    assert volume.tree()[path] == content, (cut, path)
                elif len(content or b"") % writer.cluster == 0:
                    assert volume.errors()[path] == errno.EIO, (cut, path)


class Failing(MemoryImage):
    """A source that can't be read at some place, or is shorter there than it was said to be."""

    def __init__(self, data: bytes, place: int, short: bool) -> None:
        super().__init__(data)
        self._place, self._short = place, short

    def pread(self, size: int, offset: int) -> bytes:
        if offset <= self._place < offset + size:
            if self._short:
                return super().pread(self._place - offset, offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(size, offset)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_source_that_fails(kind: str, short: bool) -> None:
    made = scene(kind)
    image, writer = made.image(), made.writer
    places = {"boot": 100, "table": writer.table_place(made.victim.clusters[1]) + 1, "root": writer.root.place(0)}
    for name, cluster in (("victim", made.victim.clusters[3]), ("victims", made.victims.clusters[0])):
        places[name] = writer.place(cluster) + 5
    for where, place in places.items():
        try:
            volume = Opened(file_system(Failing(image, place, short)))
        except (DamagedSourceError, OSError) as error:
            assert where in ("boot", "table", "root"), error
            continue
        assert set(volume.errors().values()) <= DAMAGE
        if where in ("victim", "victims"):
            assert where in volume.errors()
            for path, content in made.contents.items():
                assert is_below(path, (where,)) or volume.tree()[path] == content


@pytest.mark.parametrize("data", [b"", b"\0" * 512, b"\xff" * 4096, b"\xeb\x76\x90EXFAT   " + bytes(600), b"MZ" * 5000])
def test_what_is_no_file_system_is_refused(data: bytes) -> None:
    assert look(data) is None


@pytest.mark.parametrize("kind", WRITERS)
def test_a_chain_that_leads_into_its_own_middle(kind: str) -> None:
    """What lies before that is read, though its clusters come in another order than in the chain."""
    made = WRITERS[kind]()
    size = made.cluster
    clusters = made.allocate(7)
    chain = [clusters[5], clusters[6], *clusters[:5]]
    content = bytes(range(1, 8)) * size
    fields = {"length": 9 * size, "flags": 1} if kind == "exfat" else {"size": 9 * size}
    made.root.file("ring", b"", first=chain[0], **fields)  # type: ignore[arg-type]
    for cluster, number in zip(chain, range(7), strict=True):
        at = made.place(cluster)
        made.data[at : at + size] = content[number * size : (number + 1) * size]
    made.chain(chain)
    made.link(chain[-1], chain[0])
    image = made.finish() if kind == "exfat" else bytes(made.data)
    volume = Opened(file_system(MemoryImage(image)))
    assert b"".join(volume.read("ring", number * size, size) for number in range(7)) == content
    with pytest.raises(OSError) as caught:
        volume.read("ring", 7 * size, size)
    assert caught.value.errno == errno.EUCLEAN


def test_an_exfat_root_full_of_tables() -> None:
    """The first of each kind counts: what a small image asks for is bounded."""
    writer = ExfatWriter(per_cluster=8, clusters=2000)
    at = writer.upcase_slot
    slot = bytes(writer.data[at : at + 32])
    writer.data[at + 4] ^= 0xFF
    wrong = bytes(writer.data[at : at + 32])
    for _time in range(1000):
        writer.root.put(wrong)
    writer.root.put(slot)
    source = MemoryImage(writer.finish())
    assert Opened(file_system(source)).tree() == {}
    assert source.asked < 4 << 20


def test_the_end_of_an_image_in_front_of_a_directory() -> None:
    writer = FatWriter(12)
    folder = writer.root.folder("folder")
    folder.file("inside", b"x")
    assert folder.clusters
    volume = Opened(file_system(MemoryImage(bytes(writer.data[: writer.place(folder.clusters[0])]))))
    assert volume.errors() == {"folder": errno.EIO}


def test_a_damaged_name_does_not_take_that_of_another() -> None:
    """One byte has made one name of exFAT another, which comes first in the directory."""
    writer = ExfatWriter()
    for name in ("a file 1", "a file 2"):
        writer.root.file(name, name.encode())
    image = bytearray(writer.finish())
    place = image.index("a file 1".encode("utf-16-le"))
    image[place + 14] = ord("2")
    volume = Opened(file_system(MemoryImage(bytes(image))))
    assert volume.names() == ["a file 2~2", "a file 2"]
    node = volume.find("a file 2")
    assert node is not None and volume.content(node) == b"a file 2"
    assert volume.errors() == {"a file 2~2": errno.EUCLEAN}
