"""Writes exFAT from Microsoft's published specification ("exFAT file system specification"), right or wrong.

Images are made from nothing, or an image of mkfs.exfat is taken over and gets files. It shares nothing with the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

READ_ONLY, HIDDEN, SYSTEM, DIRECTORY, ARCHIVE = 0x01, 0x02, 0x04, 0x10, 0x20
END, BAD = 0xFFFFFFFF, 0xFFFFFFF7
#: General secondary flags of a stream: it may have clusters; they follow each other, without the FAT.
POSSIBLE, CONTIGUOUS = 0x01, 0x03
SLOT = 32
BITMAP, UPCASE, LABEL, FILE, GUID, STREAM, NAME, VENDOR, VENDOR_ALLOCATION = (
    0x81, 0x82, 0x83, 0x85, 0xA0, 0xC0, 0xC1, 0xE0, 0xE1,
)  # fmt: skip
#: A bit of a type: the entry is in use.
IN_USE = 0x80


class Stamp(NamedTuple):
    """A time as an entry has it: date and time in 32 bits, hundredths of a second (0 to 199), and the zone's byte."""

    packed: int
    hundredths: int = 0
    zone: int = 0x80


def stamp(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0, hundredths: int = 0,
    quarters: int | None = 0,
) -> Stamp:  # fmt: skip
    """`quarters` of an hour east of UTC; None where the zone is not told."""
    packed = (year - 1980) << 25 | month << 21 | day << 16 | hour << 11 | minute << 5 | second // 2
    return Stamp(packed, second % 2 * 100 + hundredths, 0 if quarters is None else 0x80 | quarters & 0x7F)


NOON = stamp(2024, 6, 30, 12, 34, 56)


def checksum(data: bytes, bits: int, left_out: Sequence[int] = ()) -> int:
    total = 0
    for place, byte in enumerate(data):
        if place not in left_out:
            total = ((total >> 1) | (total & 1) << (bits - 1)) + byte & ((1 << bits) - 1)
    return total


@cache
def upcase_units() -> tuple[int, ...]:
    """What each UTF-16 unit is in upper case."""
    units = list(range(0x10000))
    for unit in range(0x10000):
        upper = "" if 0xD800 <= unit < 0xE000 else chr(unit).upper()
        if len(upper) == 1 and ord(upper) < 0x10000:
            units[unit] = ord(upper)
    return tuple(units)


@cache
def upcase_table(*, compressed: bool) -> bytes:
    """The table as it is stored: compressed, 0xFFFF and a number stand for units that are what they are."""
    units = upcase_units()
    stored: list[int] = []
    unit = 0
    while unit < 0x10000:
        length = 0
        while compressed and unit + length < 0xFFFF and units[unit + length] == unit + length:
            length += 1
        if length > 2:
            stored += (0xFFFF, length)
            unit += length
        else:
            stored.append(units[unit])
            unit += 1
    return struct.pack(f"<{len(stored)}H", *stored)


@cache
def table_checksum(table: bytes) -> int:
    return checksum(table, 32)


def name_units(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-16-le", "surrogatepass")


def name_hash(units: bytes) -> int:
    upper = upcase_units()
    folded = (upper[unit] for (unit,) in struct.iter_unpack("<H", units))
    return checksum(b"".join(unit.to_bytes(2, "little") for unit in folded), 16)


def entry_set(
    name: str | bytes,
    first: int = 0,
    length: int = 0,
    *,
    valid: int | None = None,
    flags: int = POSSIBLE,
    attributes: int = ARCHIVE,
    created: Stamp = NOON,
    modified: Stamp = NOON,
    read: Stamp = NOON,
    extra: Sequence[bytes] = (),
    count: int | None = None,
    units: int | None = None,
    hash_: int | None = None,
    sum_: int | None = None,
) -> list[bytes]:
    """The entries of a file. What is given is taken as it is; `extra` are entries behind the name."""
    text = name_units(name)
    parts = [text[at : at + 30] for at in range(0, len(text), 30)]
    names = [struct.pack("<BB30s", NAME, 0, part) for part in parts]
    stream = struct.pack(
        "<BBBBHHQIIQ", STREAM, flags, 0, len(text) // 2 if units is None else units,
        name_hash(text) if hash_ is None else hash_, 0, length if valid is None else valid, 0, first, length,
    )  # fmt: skip
    others = [stream, *names, *extra]
    file = struct.pack(
        "<BBHHHIIIBBBBB7x", FILE, len(others) if count is None else count, 0, attributes, 0,
        created.packed, modified.packed, read.packed, created.hundredths, modified.hundredths,
        created.zone, modified.zone, read.zone,
    )  # fmt: skip
    total = checksum(file + b"".join(others), 16, (2, 3)) if sum_ is None else sum_
    return [file[:2] + total.to_bytes(2, "little") + file[4:], *others]


class Entry(NamedTuple):
    """Something that was written: where its slots are in the image, and its clusters."""

    at: list[int]
    clusters: list[int]


class ExfatWriter:
    """An image. `data` may be changed at any time; `finish` brings checksums and bitmap up to date."""

    def __init__(
        self,
        data: bytes | None = None,
        *,
        sector: int = 512,
        per_cluster: int = 8,
        clusters: int = 256,
        tables: int = 1,
        active: int = 0,
        compressed: bool = True,
        label: str = "",
    ) -> None:
        self.bitmaps: list[list[int]] = []
        if data is not None:
            self._take_over(bytearray(data))
            return
        self.sector, self.cluster, self.count, self.tables, self.active = (
            sector, sector * per_cluster, clusters, tables, active,
        )  # fmt: skip
        self.table_at = 24 * sector
        table_sectors = -(-(clusters + 2) * 4 // sector)
        self.table_bytes = table_sectors * sector
        self.heap = self.table_at + tables * self.table_bytes
        sectors = self.heap // sector + clusters * per_cluster
        self.data = bytearray(sectors * sector)
        self._next, self._taken = 2, set[int]()
        for number in range(tables):
            struct.pack_into("<II", self.data, self.table_at + number * self.table_bytes, 0xFFFFFFF8, END)
        self.bitmaps = [self.allocate(-(-clusters // 8 // self.cluster)) for _ in range(tables)]
        table = upcase_table(compressed=compressed)
        self.upcase = self.allocate(-(-len(table) // self.cluster))
        self.fill(self.upcase, table)
        self.root = Folder(self, self.allocate(1), grows=True)
        boot = struct.pack(
            "<3s8s53xQQIIIIIIHHBBBBB", b"\xeb\x76\x90", b"EXFAT   ", 0, sectors, 24, table_sectors,
            self.heap // sector, clusters, self.root.clusters[0], 0x12345678, 0x100, active,
            sector.bit_length() - 1, per_cluster.bit_length() - 1, tables, 0x80, 0xFF,
        )  # fmt: skip
        self.data[: len(boot)] = boot
        self.data[510:512] = b"\x55\xaa"
        for number in range(1, 9):
            self.data[(number + 1) * sector - 4 : (number + 1) * sector] = b"\0\0\x55\xaa"
        for number in range(tables):
            slot = struct.pack("<BB18xIQ", BITMAP, number, self.bitmaps[number][0], -(-clusters // 8))
            self.bitmap_slot = self.root.put(slot)[0]
        slot = struct.pack("<B3xI12xIQ", UPCASE, table_checksum(table), self.upcase[0], len(table))
        self.upcase_slot = self.root.put(slot)[0]
        if label:
            text = name_units(label)
            self.root.put(struct.pack("<BB22s8x", LABEL, len(text) // 2, text))

    def _take_over(self, data: bytearray) -> None:
        self.data = data
        table, self_length, heap, self.count, root, _, _, flags, sector, cluster, self.tables = struct.unpack_from(
            "<IIIIIIHHBBB", data, 80
        )
        self.sector, self.cluster, self.active = 1 << sector, 1 << sector + cluster, flags & 1
        self.table_at, self.table_bytes, self.heap = table << sector, self_length << sector, heap << sector
        self.root = Folder(self, [root], grows=True)
        while data[self.root.place(self.root.used)]:
            at = self.root.place(self.root.used)
            self.root.used += 1
            if data[at] == BITMAP:
                self.bitmaps = [[struct.unpack_from("<I", data, at + 20)[0]]]
        bits = self.place(self.bitmaps[0][0])
        self._taken = {2 + at for at in range(self.count) if data[bits + at // 8] >> at % 8 & 1}
        self._next = max(self._taken) + 1

    def table_place(self, cluster: int, table: int | None = None) -> int:
        return self.table_at + (self.active if table is None else table) * self.table_bytes + cluster * 4

    def link(self, cluster: int, value: int) -> None:
        """Set the entry of `cluster` in the active table; another one says nothing true."""
        struct.pack_into("<I", self.data, self.table_place(cluster), value)

    def chain(self, clusters: Sequence[int]) -> None:
        for cluster, following in zip(clusters, [*clusters[1:], END], strict=False):
            self.link(cluster, following)

    def allocate(self, count: int, *, fragmented: bool = False, chained: bool = True) -> list[int]:
        assert self._next + count <= self.count + 2, "the image is full"
        clusters = list(range(self._next, self._next + count))
        self._next += count
        self._taken |= set(clusters)
        if fragmented:
            clusters = [*clusters[1::2], *clusters[::2][::-1]]
        if chained:
            self.chain(clusters)
        return clusters

    def place(self, cluster: int) -> int:
        return self.heap + (cluster - 2) * self.cluster

    def fill(self, clusters: Sequence[int], content: bytes) -> None:
        for index, cluster in enumerate(clusters):
            part = content[index * self.cluster : (index + 1) * self.cluster]
            self.data[self.place(cluster) : self.place(cluster) + len(part)] = part

    def patch(self, at: int, format: str, *values: int | bytes) -> None:
        struct.pack_into("<" + format, self.data, at, *values)

    def rewrite(self, entry: Entry) -> None:
        """Put the right checksum into an entry set that was changed."""
        whole = b"".join(bytes(self.data[at : at + SLOT]) for at in entry.at)
        self.patch(entry.at[0] + 2, "H", checksum(whole, 16, (2, 3)))

    def finish(self, *, boot_sum: int | None = None) -> bytes:
        """The image, its boot regions with their checksum, and the bitmap of what was allocated."""
        bits = bytearray(-(-self.count // 8))
        for cluster in self._taken:
            bits[(cluster - 2) // 8] |= 1 << (cluster - 2) % 8
        if self.bitmaps:
            chosen = self.bitmaps[min(self.active, len(self.bitmaps) - 1)]
            at = self.place(chosen[0])
            self.data[at : at + len(bits)] = bits
        covered = bytes(self.data[: 11 * self.sector])
        total = checksum(covered, 32, (106, 107, 112)) if boot_sum is None else boot_sum
        region = covered + total.to_bytes(4, "little") * (self.sector // 4)
        self.data[: len(region)] = region
        self.data[len(region) : 2 * len(region)] = region
        return bytes(self.data)


class Folder:
    """A directory. Its clusters are there from the beginning, but for the root's, which `grows`."""

    def __init__(self, writer: ExfatWriter, clusters: list[int], entry: Entry | None = None, grows: bool = False):
        self.writer, self.clusters, self.entry, self._grows = writer, clusters, entry, grows
        self.used = 0

    def place(self, slot: int) -> int:
        """Where in the image that slot is."""
        at = slot * SLOT
        while at >= len(self.clusters) * self.writer.cluster:
            assert self._grows, "the directory is full"
            self.clusters += self.writer.allocate(1)
            self.writer.chain(self.clusters)
        return self.writer.place(self.clusters[at // self.writer.cluster]) + at % self.writer.cluster

    def put(self, *slots: bytes) -> list[int]:
        """Append slots; where each is."""
        places = []
        for slot in slots:
            at = self.place(self.used)
            self.writer.data[at : at + SLOT] = slot
            self.used += 1
            places.append(at)
        return places

    def file(
        self,
        name: str | bytes,
        content: bytes = b"",
        *,
        contiguous: bool = False,
        fragmented: bool = False,
        clusters: list[int] | None = None,
        first: int | None = None,
        length: int | None = None,
        **fields: object,
    ) -> Entry:
        """What is given is taken as it is."""
        if clusters is None:
            count = -(-len(content) // self.writer.cluster)
            clusters = self.writer.allocate(count, fragmented=fragmented, chained=not contiguous)
        self.writer.fill(clusters, content)
        if clusters:
            fields.setdefault("flags", CONTIGUOUS if contiguous else POSSIBLE)
        start = (clusters[0] if clusters else 0) if first is None else first
        slots = entry_set(name, start, len(content) if length is None else length, **fields)  # type: ignore[arg-type]
        return Entry(self.put(*slots), clusters)

    def folder(
        self, name: str, clusters: int = 1, *, contiguous: bool = False, fragmented: bool = False, **fields: object
    ) -> Folder:
        size = clusters * self.writer.cluster
        fields.setdefault("attributes", DIRECTORY)
        entry = self.file(name, bytes(size), contiguous=contiguous, fragmented=fragmented, **fields)  # type: ignore[arg-type]
        return Folder(self.writer, entry.clusters, entry)

    def delete(self, entry: Entry) -> None:
        """Clear the bits that say in use, as is done to delete."""
        for at in entry.at:
            self.writer.data[at] &= ~IN_USE
