"""Ways to damage a FAT and an exFAT, and the images that are damaged."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.unit.fat import exfat_writer as ex
from tests.unit.fat import fat_writer as fat

#: What nobody may see: a file that has been deleted.
SECRET = "deleted secret"


class Scene:
    """An image, what is in it, and what of it is to be damaged."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.entries: dict[str, Any] = {}
        self.contents: dict[str, bytes | None] = {}
        chance, root, cluster = random.Random(1), writer.root, writer.cluster
        self.put(root, "", "first.txt", b"first")
        self.put(root, "", "chain", chance.randbytes(5 * cluster - 7))
        self.put(root, "", "fragments", chance.randbytes(7 * cluster), fragmented=True)
        secret = root.file(SECRET, b"SECRET" * 400)
        if isinstance(writer, fat.FatWriter):
            root.delete(secret, 2)
        else:
            writer.root.delete(secret)
        self.victim = self.put(root, "", "victim", chance.randbytes(6 * cluster - 100))
        self.folder = self._folder("folder", 12)
        self.victims = self._folder("victims", 9)
        self.put(root, "", "last one", b"last")

    def put(self, folder: Any, above: str, name: str, content: bytes, **fields: Any) -> Any:
        self.entries[above + name] = entry = folder.file(name, content, **fields)
        self.contents[above + name] = content
        return entry

    def _folder(self, name: str, files: int) -> Any:
        self.contents[name] = None
        if isinstance(self.writer, ex.ExfatWriter):
            folder: Any = self.writer.root.folder(name, -(-(files + 2) * 3 * ex.SLOT // self.writer.cluster))
        else:
            folder = self.writer.root.folder(name)
        for number in range(files):
            self.put(folder, f"{name}/", f"inside {number}", b"%d" % number)
        return folder

    def image(self) -> bytes:
        writer = self.writer
        return writer.finish() if isinstance(writer, ex.ExfatWriter) else bytes(writer.data)


class Damage(NamedTuple):
    """What is done, which paths (and what is below them) may then be wrong, and whether the first must be an error."""

    apply: Callable[[Scene], object]
    touched: tuple[str, ...] = ("victim",)
    error: bool = False


def _link(place: int, value: Callable[[Scene], int]) -> Callable[[Scene], object]:
    """The entry of the table for a cluster of the victim is changed."""
    return lambda scene: scene.writer.link(scene.victim.clusters[place], value(scene))


def _victim(offset: int, form: str, *values: int) -> Callable[[Scene], object]:
    return lambda scene: scene.writer.patch(scene.victim.at + offset, form, *values)


def _first(cluster: Callable[[Scene], int], folder: bool = False) -> Callable[[Scene], object]:
    """The first cluster of the victim, or of the directory of victims, is changed."""

    def apply(scene: Scene) -> None:
        at, value = (scene.victims.entry if folder else scene.victim).at, cluster(scene)
        scene.writer.patch(at + 26, "H", value & 0xFFFF)
        if scene.writer.bits == 32:
            scene.writer.patch(at + 20, "H", value >> 16)

    return apply


def _noise(scene: Scene) -> None:
    for cluster in scene.victims.clusters:
        scene.writer.fill([cluster], random.Random(2).randbytes(scene.writer.cluster))


def _own_child(scene: Scene) -> None:
    cluster = scene.victims.clusters[0]
    scene.victims.put(fat.short_slot(b"CHILD      ", cluster, attributes=fat.DIRECTORY))


def _root_inside(scene: Scene) -> None:
    for name, cluster in ((b"ROOT       ", 0), (b"ROOT2      ", 2)):
        scene.victims.put(fat.short_slot(name, cluster, attributes=fat.DIRECTORY))


def _dots(first: int, second: int) -> Callable[[Scene], object]:
    def apply(scene: Scene) -> None:
        at = scene.victims.place(0)
        scene.writer.patch(at + 26, "H", first)
        scene.writer.patch(at + 32 + 26, "H", second)

    return apply


def _cross(scene: Scene) -> None:
    scene.writer.link(scene.victim.clusters[1], scene.entries["chain"].clusters[2])


def _no_table(scene: Scene) -> None:
    at, size = scene.writer.table_place(0, 1), scene.writer.table_sectors * scene.writer.sector
    scene.writer.data[at : at + size] = b"\xa5" * size


def _beyond_the_last(scene: Scene) -> None:
    """The victim has the last cluster there is, and that one leads to the one behind it."""
    last = scene.writer.count + 1
    scene.writer.link(last, last + 1)
    if isinstance(scene.writer, ex.ExfatWriter):
        _stream(20, "I", last)(scene)
    else:
        _first(lambda _: last)(scene)


FAT_DAMAGE: dict[str, Damage] = {
    "chain is a loop": Damage(_link(-1, lambda scene: scene.victim.clusters[0])),
    "cluster follows itself": Damage(_link(1, lambda scene: scene.victim.clusters[1])),
    "loop and a size that needs it": Damage(
        lambda scene: (
            scene.writer.link(scene.victim.clusters[-1], scene.victim.clusters[0]),
            scene.writer.patch(scene.victim.at + 28, "I", 0xFFFFFFF0),
        ),
    ),
    "chain beyond the last cluster": Damage(_beyond_the_last, error=True),
    "chain ends early": Damage(_link(2, lambda scene: fat.END[scene.writer.bits]), error=True),
    "chain into a free cluster": Damage(_link(2, lambda _: 0), error=True),
    "chain into cluster 1": Damage(_link(2, lambda _: 1), error=True),
    "chain into a bad cluster": Damage(_link(2, lambda scene: fat.BAD[scene.writer.bits]), error=True),
    "chain out of the volume": Damage(_link(2, lambda scene: scene.writer.count + 2), error=True),
    "chain far out of the volume": Damage(_link(2, lambda scene: fat.BAD[scene.writer.bits] - 1), error=True),
    "chains cross": Damage(_cross),
    "chain into a directory": Damage(_link(2, lambda scene: scene.folder.clusters[0])),
    "first cluster 0": Damage(_first(lambda _: 0)),
    "first cluster 1": Damage(_first(lambda _: 1), error=True),
    "first cluster out of the volume": Damage(_first(lambda scene: scene.writer.count + 2), error=True),
    "first cluster at the end of numbers": Damage(_first(lambda scene: fat.END[scene.writer.bits]), error=True),
    "first cluster of another file": Damage(_first(lambda scene: scene.entries["chain"].clusters[0])),
    "first cluster is the root's": Damage(_first(lambda _: 2)),
    "size beyond the volume": Damage(_victim(28, "I", 0x7FFFFFFF), error=True),
    "largest size": Damage(_victim(28, "I", 0xFFFFFFFF), error=True),
    "size beyond the chain": Damage(
        lambda scene: scene.writer.patch(scene.victim.at + 28, "I", 6 * scene.writer.cluster + 1), error=True
    ),
    "small size": Damage(_victim(28, "I", 3)),
    "all attributes": Damage(_victim(11, "B", 0xFF)),
    "unknown attributes": Damage(_victim(11, "B", 0xE0), ()),
    "file is called a directory": Damage(_victim(11, "B", fat.DIRECTORY)),
    "directory is called a file": Damage(
        lambda scene: scene.writer.patch(scene.victims.entry.at + 11, "B", fat.ARCHIVE), ("victims",)
    ),
    "directory with a size": Damage(lambda scene: scene.writer.patch(scene.victims.entry.at + 28, "I", 0x12345), ()),
    "directory without clusters": Damage(_first(lambda _: 0, True), ("victims",)),
    "directory at cluster 1": Damage(_first(lambda _: 1, True), ("victims",), error=True),
    "directory out of the volume": Damage(_first(lambda scene: scene.writer.count + 9, True), ("victims",), error=True),
    "directory is a loop": Damage(
        lambda scene: scene.writer.chain([*scene.victims.clusters, scene.victims.clusters[0]]), ("victims",)
    ),
    "directory into free clusters": Damage(lambda scene: scene.writer.link(scene.victims.clusters[0], 0), ("victims",)),
    "directory out of a bad cluster": Damage(
        lambda scene: scene.writer.link(scene.victims.clusters[0], fat.BAD[scene.writer.bits]), ("victims",)
    ),
    "directory of noise": Damage(_noise, ("victims",)),
    "directory in itself": Damage(_own_child, ("victims",)),
    "root in a directory": Damage(_root_inside, ("victims",)),
    ".. is wrong": Damage(_dots(9, 9), ()),
    ".. is out of the volume": Damage(_dots(0xFFFF, 0xFFFF), ()),
    ".. is the directory": Damage(lambda scene: _dots(3, scene.victims.clusters[0])(scene), ()),
    ". and .. are files": Damage(
        lambda scene: [scene.writer.patch(scene.victims.place(slot) + 11, "B", 0) for slot in (0, 1)], ("victims",)
    ),
    "second table is noise": Damage(_no_table, ()),
}
#: Places and values of the boot sector that nothing depends on, by bits (0: all).
HARMLESS: dict[str, tuple[int, int, bytes]] = {
    "no 55 AA": (0, 510, b"\0\0"),
    "no jump": (0, 0, b"\0\0\0"),
    "another OEM name": (0, 3, b"mkfs\xff\0\x01x"),
    "no heads": (0, 24, b"\0\0\0\0"),
    "hidden sectors": (0, 28, b"\xff\xff\xff\xff"),
    "another type": (16, 54, b"FAT32   "),
    "another type 12": (12, 54, b"garbage!"),
    "another type 32": (32, 82, b"FAT12   "),
    "dirty": (16, 37, b"\x03"),
    "dirty 32": (32, 65, b"\x03"),
    "FSINFO elsewhere": (32, 48, b"\x05\0"),
    "backup elsewhere": (32, 50, b"\xff\xff"),
    "medium 0xF0": (0, 21, b"\xf0"),
}


def _stream(offset: int, form: str, *values: int, entry: str = "victim") -> Callable[[Scene], object]:
    """A field of the stream of an entry is changed, and its checksum made right."""

    def apply(scene: Scene) -> None:
        set_ = scene.victims.entry if entry == "victims" else scene.entries[entry]
        scene.writer.patch(set_.at[1] + offset, form, *values)
        scene.writer.rewrite(set_)

    return apply


def _file(offset: int, form: str, *values: int) -> Callable[[Scene], object]:
    """A field of the first entry; no checksum is right then."""
    return lambda scene: scene.writer.patch(scene.victim.at[0] + offset, form, *values)


def _named(name: bytes) -> Callable[[Scene], object]:
    return lambda scene: scene.writer.root.file(name, b"odd")


def _at_the_end(scene: Scene) -> None:
    """The last slot of the last cluster of a directory begins a set."""
    last = scene.writer.cluster // ex.SLOT - 1
    while scene.victims.used < last:
        scene.victims.put(bytes((ex.VENDOR & ~ex.IN_USE,)) + bytes(31))
    scene.victims.put(ex.entry_set("cut")[0])


def _table(field: int, form: str, *values: int) -> Callable[[Scene], object]:
    return lambda scene: scene.writer.patch(scene.writer.upcase_slot + field, form, *values)


def _bitmap(field: int, form: str, *values: int) -> Callable[[Scene], object]:
    return lambda scene: scene.writer.patch(scene.writer.bitmap_slot + field, form, *values)


def _child(first: Callable[[Scene], int]) -> Callable[[Scene], object]:
    return lambda scene: scene.victims.put(
        *ex.entry_set("child", first(scene), scene.writer.cluster, attributes=ex.DIRECTORY)
    )


#: Everything may be wrong, or the image refused.
ALL = ("",)
EXFAT_DAMAGE: dict[str, Damage] = {
    "chain is a loop": Damage(_link(-1, lambda scene: scene.victim.clusters[0])),
    "cluster follows itself": Damage(_link(1, lambda scene: scene.victim.clusters[1])),
    "chain beyond the last cluster": Damage(_beyond_the_last, error=True),
    "chain ends early": Damage(_link(2, lambda _: ex.END), error=True),
    "chain into a free cluster": Damage(_link(2, lambda _: 0), error=True),
    "chain into cluster 1": Damage(_link(2, lambda _: 1), error=True),
    "chain into a bad cluster": Damage(_link(2, lambda _: ex.BAD), error=True),
    "chain out of the volume": Damage(_link(2, lambda scene: scene.writer.count + 2), error=True),
    "chain far out of the volume": Damage(_link(2, lambda _: ex.BAD - 1), error=True),
    "chains cross": Damage(_cross),
    "first cluster 0": Damage(_stream(20, "I", 0), error=True),
    "first cluster 1": Damage(_stream(20, "I", 1), error=True),
    "first cluster out of the volume": Damage(_stream(20, "I", 258), error=True),
    "last number of a cluster": Damage(_stream(20, "I", 0xFFFFFFFF), error=True),
    "contiguous out of the volume": Damage(
        lambda scene: (_stream(1, "B", 3)(scene), _stream(20, "I", 255)(scene)), error=True
    ),
    "contiguous at the end of numbers": Damage(
        lambda scene: (_stream(1, "B", 3)(scene), _stream(20, "I", 0xFFFFFFFE)(scene)), error=True
    ),
    "no clusters possible": Damage(_stream(1, "B", 0)),
    "all flags": Damage(_stream(1, "B", 0xFF)),
    "size beyond the volume": Damage(_stream(24, "Q", 1 << 40), error=True),
    "sizes beyond the volume": Damage(
        lambda scene: (_stream(24, "Q", 1 << 62)(scene), _stream(8, "Q", 1 << 62)(scene)), error=True
    ),
    "size of 64 bits": Damage(
        lambda scene: (_stream(24, "Q", (1 << 64) - 1)(scene), _stream(8, "Q", (1 << 64) - 1)(scene)), error=True
    ),
    "size beyond the chain": Damage(_stream(24, "Q", 6 * 4096 + 1), error=True),
    "valid beyond the size": Damage(_stream(8, "Q", 1 << 40)),
    "wrong checksum": Damage(_file(2, "H", 0x1234)),
    "wrong hash": Damage(_stream(4, "H", 0x1234)),
    **{f"name of {length} units": Damage(_stream(3, "B", length)) for length in (0, 1, 5, 7, 16, 255)},
    **{f"{count} secondary entries": Damage(_file(1, "B", count)) for count in (0, 1, 3, 18, 19, 255)},
    "stream is gone": Damage(lambda scene: scene.writer.patch(scene.victim.at[1], "B", 0x40)),
    "name is gone": Damage(lambda scene: scene.writer.patch(scene.victim.at[2], "B", 0x41)),
    "stream is unknown": Damage(lambda scene: scene.writer.patch(scene.victim.at[1], "B", 0xC2)),
    "name is unknown": Damage(lambda scene: scene.writer.patch(scene.victim.at[2], "B", 0xC2)),
    "first entry is gone": Damage(_file(0, "B", 0x05)),
    "a name with a slash": Damage(_named("a/b".encode("utf-16-le")), ("a",)),
    "a name with a zero": Damage(_named("a\0b".encode("utf-16-le")), ("a",)),
    "a name of half a pair": Damage(_named(b"a\0\x3d\xd8"), ("a",)),
    "a name of a dot": Damage(_named(b".\0"), (".",)),
    "no name": Damage(_named(b""), ("no name",)),
    "directory without clusters": Damage(_stream(20, "I", 0, entry="victims"), ("victims",)),
    "directory without a size": Damage(_stream(24, "Q", 0, entry="victims"), ("victims",)),
    "directory of an odd size": Damage(_stream(24, "Q", 100, entry="victims"), ("victims",)),
    "directory larger than its chain": Damage(_stream(24, "Q", 1 << 20, entry="victims"), ("victims",)),
    "directory of 64 bits": Damage(_stream(24, "Q", (1 << 64) - 1, entry="victims"), ("victims",)),
    "directory out of the volume": Damage(_stream(20, "I", 999, entry="victims"), ("victims",), error=True),
    "directory is contiguous and large": Damage(
        lambda scene: (_stream(1, "B", 3, entry="victims")(scene), _stream(24, "Q", 1 << 20, entry="victims")(scene)),
        ("victims",),
    ),
    "directory is a loop": Damage(
        lambda scene: scene.writer.link(scene.victims.clusters[0], scene.victims.clusters[0]), ("victims",)
    ),
    "directory of noise": Damage(_noise, ("victims",)),
    "directory in itself": Damage(_child(lambda scene: scene.victims.clusters[0]), ("victims",)),
    "root in a directory": Damage(_child(lambda scene: scene.writer.root.clusters[0]), ("victims",)),
    "a set at the end of a directory": Damage(_at_the_end, ("victims/cut",)),
    "root is a loop": Damage(lambda scene: scene.writer.link(*scene.writer.root.clusters[:1] * 2), ALL),
    "no up-case table": Damage(_table(0, "B", 0x02), ALL),
    "up-case table with a wrong checksum": Damage(_table(4, "I", 1), ALL),
    "up-case table of no size": Damage(_table(24, "Q", 0), ALL),
    "up-case table of an odd size": Damage(_table(24, "Q", 777), ALL),
    "up-case table of 64 bits": Damage(_table(24, "Q", (1 << 64) - 2), ALL),
    "up-case table of 1 GiB": Damage(_table(24, "Q", 1 << 30), ALL),
    "up-case table out of the volume": Damage(_table(20, "I", 999), ALL),
    "up-case table of noise": Damage(
        lambda scene: scene.writer.fill(scene.writer.upcase, random.Random(3).randbytes(scene.writer.cluster)), ALL
    ),
    "up-case table of runs": Damage(
        lambda scene: scene.writer.fill(scene.writer.upcase, struct.pack("<HH", 0xFFFF, 0xFFFF) * 1024), ALL
    ),
    "no bitmap": Damage(_bitmap(0, "B", 0x01), ALL),
    "bitmap out of the volume": Damage(_bitmap(20, "I", 999), ALL),
    "bitmap of no size": Damage(_bitmap(24, "Q", 0), ALL),
    "bitmap of 64 bits": Damage(_bitmap(24, "Q", (1 << 64) - 1), ALL),
}
#: Places and values of the boot sector of an exFAT that nothing depends on; its checksum is made right.
EXFAT_HARMLESS: dict[str, tuple[int, bytes]] = {
    "percent in use": (112, b"\x77"),
    "dirty": (106, b"\x02"),
    "failed": (106, b"\x04"),
    "drive": (111, b"\0"),
    "serial number": (100, b"\xff\xff\xff\xff"),
    "partition": (64, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    "boot code": (120, b"\xff" * 390),
}
