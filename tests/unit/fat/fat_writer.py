"""Writes FAT12, FAT16 and FAT32 from what Microsoft has published of them, right or wrong in every detail.

Of Microsoft's "FAT: General Overview of On-Disk Format": sections on the boot sector, the FAT, directory entries, and
long names. It shares nothing with the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

#: Attributes of an entry.
READ_ONLY, HIDDEN, SYSTEM, LABEL, DIRECTORY, ARCHIVE, LONG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x0F
#: Values of a table: the mark of a bad cluster, and the end of a chain, by bits.
BAD = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFFFFF7}
END = {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFFFFFF}
SLOT = 32
#: 2024-06-30 and 12:34:56, as an entry has them.
DATE, TIME = (44 << 9) | (6 << 5) | 30, (12 << 11) | (34 << 5) | 28
_CLUSTERS = {12: 300, 16: 4100, 32: 300}


def dos(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> tuple[int, int]:
    """Date and time as an entry has them."""
    return (year - 1980) << 9 | month << 5 | day, hour << 11 | minute << 5 | second // 2


def checksum(short: bytes) -> int:
    """That of a short name, which its long name repeats."""
    total = 0
    for byte in short:
        total = ((total >> 1) + ((total & 1) << 7) + byte) & 0xFF
    return total


def short_slot(
    short: bytes,
    first: int = 0,
    size: int = 0,
    attributes: int = ARCHIVE,
    lower: int = 0,
    modified: tuple[int, int] = (DATE, TIME),
    created: tuple[int, int] = (DATE, TIME),
    hundredths: int = 0,
    read: int = DATE,
) -> bytes:
    assert len(short) == 11, short
    date, clock = modified
    return struct.pack(
        "<11sBBBHHHHHHHI", short, attributes, lower, hundredths, created[1], created[0], read,
        first >> 16, clock, date, first & 0xFFFF, size,
    )  # fmt: skip


def long_slots(name: str | bytes, short: bytes, sum_: int | None = None) -> list[bytes]:
    """The slots in front of the one of `short`, as they are stored. `name` may be UTF-16 that is not right."""
    units = name if isinstance(name, bytes) else name.encode("utf-16-le", "surrogatepass")
    if len(units) % 26:
        units += b"\0\0"
        units += b"\xff" * (-len(units) % 26)
    count = len(units) // 26
    slots = []
    for number in range(count, 0, -1):
        part = units[(number - 1) * 26 : number * 26]
        order = number | (0x40 if number == count else 0)
        total = checksum(short) if sum_ is None else sum_
        slots.append(
            bytes((order,)) + part[:10] + bytes((LONG, 0, total)) + part[10:22] + b"\0\0" + part[22:],
        )
    return slots


class Entry(NamedTuple):
    """Something that was written: where its short slot is in the image, and its clusters."""

    at: int
    clusters: list[int]


class FatWriter:
    """An image that grows. `data` may be changed at any time."""

    def __init__(
        self,
        bits: int = 16,
        *,
        sector: int = 512,
        per_cluster: int = 1,
        clusters: int = 0,
        tables: int = 2,
        root_slots: int = 64,
        label: bytes = b"",
        data: bytes | None = None,
    ) -> None:
        """A new image, or `data` taken over, which is a FAT32 that has no files yet."""
        if data is not None:
            self._take_over(bytearray(data))
            return
        self.bits, self.sector, self.cluster = bits, sector, sector * per_cluster
        self.count = clusters or _CLUSTERS[bits]
        self.reserved = 32 if bits == 32 else 1
        self.tables = tables
        self.table_sectors = -(-(self.count + 2) * bits // 8 // sector) + 1
        slots = 0 if bits == 32 else max(root_slots, sector // SLOT)
        self.root_at = (self.reserved + tables * self.table_sectors) * sector
        self.heap = self.root_at + slots * SLOT
        sectors = self.heap // sector + self.count * per_cluster
        self.data = bytearray(sectors * sector)
        self._next = 2
        boot = struct.pack(
            "<3s8sHBHBHHBHHHII", b"\xeb\x58\x90", b"MSDOS5.0", sector, per_cluster, self.reserved, tables, slots,
            sectors if sectors < 0x10000 and bits != 32 else 0, 0xF8, 0 if bits == 32 else self.table_sectors, 32, 2, 0,
            sectors if sectors >= 0x10000 or bits == 32 else 0,
        )  # fmt: skip
        if bits == 32:
            boot += struct.pack("<IHHIHH12x", self.table_sectors, 0, 0, 2, 1, 6)
        boot += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0x12345678, label or b"NO NAME    ", b"FAT%d   " % bits)
        for at in (0, 6 * sector) if bits == 32 else (0,):
            self.data[at : at + len(boot)] = boot
            self.data[at + 510 : at + 512] = b"\x55\xaa"
        if bits == 32:
            info = b"RRaA" + bytes(480) + b"rrAa" + b"\xff" * 8 + bytes(12) + b"\0\0\x55\xaa"
            self.data[sector : sector + 512] = info
        self.link(0, END[bits] & ~0xFF | 0xF8)
        self.link(1, END[bits])
        self.root = Folder(self, self.allocate(1) if bits == 32 else None)
        if label:
            self.root.put(short_slot(label, attributes=LABEL))

    def _take_over(self, data: bytearray) -> None:
        self.data, self.bits = data, 32
        self.sector, per_cluster, self.reserved, self.tables = struct.unpack_from("<HBHB", data, 11)
        few, many, self.table_sectors = struct.unpack_from("<H11xII", data, 19)
        self.cluster = self.sector * per_cluster
        self.root_at = self.heap = (self.reserved + self.tables * self.table_sectors) * self.sector
        self.count = ((few or many) - self.heap // self.sector) // per_cluster
        struct.pack_into("<II", data, self.sector + 488, 0xFFFFFFFF, 0xFFFFFFFF)  # free clusters are not counted
        self._next = 3
        self.root = Folder(self, [2])
        while data[self.root.place(self.root.used)]:
            self.root.used += 1

    def table_place(self, cluster: int, table: int = 0) -> int:
        """Where in the image the entry of `cluster` is."""
        return (self.reserved + table * self.table_sectors) * self.sector + cluster * self.bits // 8

    def link(self, cluster: int, value: int, tables: Sequence[int] | None = None) -> None:
        """Set the entry of `cluster` in all tables, or in `tables`."""
        for table in range(self.tables) if tables is None else tables:
            at = self.table_place(cluster, table)
            if self.bits == 12:
                old = int.from_bytes(self.data[at : at + 2], "little")
                new = old & 0x000F | value << 4 if cluster & 1 else old & 0xF000 | value
                self.data[at : at + 2] = new.to_bytes(2, "little")
            else:
                self.data[at : at + self.bits // 8] = value.to_bytes(self.bits // 8, "little")

    def chain(self, clusters: Sequence[int]) -> None:
        for cluster, following in zip(clusters, [*clusters[1:], END[self.bits]], strict=False):
            self.link(cluster, following)

    def allocate(self, count: int, *, fragmented: bool = False) -> list[int]:
        """A chain of so many clusters that follow each other, or are scattered."""
        assert self._next + count <= self.count + 2, "the image is full"
        clusters = list(range(self._next, self._next + count))
        self._next += count
        if fragmented:
            clusters = [*clusters[1::2], *clusters[::-2]] if count % 2 else [*clusters[1::2], *clusters[-2::-2]]
        self.chain(clusters)
        return clusters

    def place(self, cluster: int) -> int:
        """Where in the image `cluster` is."""
        return self.heap + (cluster - 2) * self.cluster

    def fill(self, clusters: Sequence[int], content: bytes) -> None:
        for index, cluster in enumerate(clusters):
            part = content[index * self.cluster : (index + 1) * self.cluster]
            self.data[self.place(cluster) : self.place(cluster) + len(part)] = part

    def patch(self, at: int, format: str, *values: int | bytes) -> None:
        struct.pack_into("<" + format, self.data, at, *values)


class Folder:
    """A directory that grows. `entry` is where it is named; the root has none."""

    def __init__(self, writer: FatWriter, clusters: list[int] | None, entry: Entry | None = None) -> None:
        self.writer, self.clusters, self.entry = writer, clusters, entry
        self.used = 0
        self._numbers = 0

    def place(self, slot: int) -> int:
        """Where in the image that slot is; a cluster is added where it is in none."""
        at = slot * SLOT
        if self.clusters is None:
            assert self.writer.root_at + at < self.writer.heap, "the root directory is full"
            return self.writer.root_at + at
        while at >= len(self.clusters) * self.writer.cluster:
            added = self.writer.allocate(1)
            self.writer.chain([*self.clusters, *added])
            self.clusters += added
        return self.writer.place(self.clusters[at // self.writer.cluster]) + at % self.writer.cluster

    def put(self, *slots: bytes) -> int:
        """Append slots; where the last one is."""
        at = 0
        for slot in slots:
            at = self.place(self.used)
            self.writer.data[at : at + SLOT] = slot
            self.used += 1
        return at

    def _short(self, name: str) -> bytes:
        self._numbers += 1
        return b"S%07dX  " % self._numbers

    def file(
        self,
        name: str | bytes | None,
        content: bytes = b"",
        *,
        short: bytes | None = None,
        clusters: list[int] | None = None,
        fragmented: bool = False,
        size: int | None = None,
        first: int | None = None,
        sum_: int | None = None,
        **fields: int | tuple[int, int],
    ) -> Entry:
        """A file with the long name `name`, or with a short one only. What is given is taken as it is."""
        short = short or self._short(str(name))
        if clusters is None:
            clusters = self.writer.allocate(-(-len(content) // self.writer.cluster), fragmented=fragmented)
        self.writer.fill(clusters, content)
        slots = [] if name is None else long_slots(name, short, sum_)
        start = (clusters[0] if clusters else 0) if first is None else first
        length = len(content) if size is None else size
        at = self.put(*slots, short_slot(short, start, length, **fields))  # type: ignore[arg-type]
        return Entry(at, clusters)

    def folder(self, name: str | None, *, short: bytes | None = None, **fields: int) -> Folder:
        short = short or self._short(str(name))
        clusters = self.writer.allocate(1)
        attributes = fields.pop("attributes", 0) | DIRECTORY
        slots = [] if name is None else long_slots(name, short)
        at = self.put(*slots, short_slot(short, clusters[0], attributes=attributes, **fields))
        made = Folder(self.writer, clusters, Entry(at, clusters))
        above = self.clusters[0] if self.clusters and self.entry else 0
        made.put(short_slot(b".          ", clusters[0], attributes=DIRECTORY))
        made.put(short_slot(b"..         ", above, attributes=DIRECTORY))
        return made

    def delete(self, entry: Entry, slots: int = 0) -> None:
        """Mark the entry and the `slots` before it as deleted, and free its clusters, as DOS does."""
        for index in range(slots + 1):
            self.writer.data[entry.at - index * SLOT] = 0xE5
        for cluster in entry.clusters:
            self.writer.link(cluster, 0)
