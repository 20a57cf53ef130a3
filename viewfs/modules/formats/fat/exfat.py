"""exFAT."""

from __future__ import annotations

import errno
import struct
import sys
from array import array
from collections.abc import Iterator

from viewfs.errors import os_error
from viewfs.modules.formats.fat.boot import (
    BOOT_SIZE,
    EXFAT_BOOT_SECTORS,
    ExfatGeometry,
    parse_exfat_boot,
    verify_exfat_boot,
)
from viewfs.modules.formats.fat.chains import Chains, Runs, contiguous, open_table
from viewfs.modules.formats.fat.exfat_entries import (
    ENTRY_SIZE,
    EntryType,
    ExfatFile,
    RawSet,
    parse_file,
    parse_sets,
    set_name,
)
from viewfs.modules.formats.fat.names import decode_utf16, mended_name
from viewfs.modules.formats.fat.times import Zone
from viewfs.modules.formats.fat.volume import ROOT, ClusterVolume, File, Name
from viewfs.modules.framework.damage import damaged
from viewfs.modules.framework.sources import Section

__all__ = ["ExfatVolume"]

#: A node is twice the number of the entry's place in the volume, with this added, and 1 more if the directory with the
#: entry is contiguous (which tells where an entry at the end of a cluster continues).
_NODE_OF_PLACE = 2
#: The greatest length of a directory (section 7.4 of the specification).
_DIRECTORY_MAX = 256 << 20
_READ_ONLY = 0x01
_UNITS = 65536
_BITMAP_COUNTED = 16 << 20
_RUNS = 0xFFFF


class ExfatVolume(ClusterVolume):
    """One file system."""

    kind = "exFAT"

    def __init__(self, section: Section, geometry: ExfatGeometry, zone: Zone) -> None:
        """Raises OSError if the root directory can't be read."""
        chains = Chains(open_table(section, geometry.table, geometry.clusters, 32), geometry.clusters)
        super().__init__(section, geometry.heap, geometry.cluster_size, geometry.clusters, chains)
        self._geometry = geometry
        self._zone = zone
        self.serial = geometry.serial
        self._bitmap: Runs | None = None
        self._upper = ""
        root = self._places(ROOT, self._root_file())
        if not root.pieces:
            raise root.error or damaged("there is no root directory")
        section.pread(ENTRY_SIZE, root.pieces[0][0])
        if geometry.is_dirty:
            self.warnings += ("it was not unmounted",)
        self._read_tables()

    @classmethod
    def open(cls, section: Section, zone: Zone) -> ExfatVolume:
        """Raises OSError if it is not an exFAT, or if the root directory can't be read at all."""
        error: OSError | None = None
        unchecked: ExfatGeometry | None = None
        for size, copy in ((0, False), (512, True), (1024, True), (2048, True), (4096, True)):
            start = EXFAT_BOOT_SECTORS * size if copy else 0
            try:
                geometry = parse_exfat_boot(section.pread_up_to(BOOT_SIZE, start))
            except OSError as reason:
                error = error or reason
                continue
            if copy and geometry.sector_size != size:
                continue
            region = section.pread_up_to(EXFAT_BOOT_SECTORS * geometry.sector_size, start)
            if verify_exfat_boot(region, geometry.sector_size):
                volume = cls(section, geometry, zone)
                if copy:
                    volume.warnings = ("the boot region is damaged; its copy is used", *volume.warnings)
                return volume
            unchecked = unchecked or geometry
            error = error or damaged("the checksum of the boot region is wrong")
        if unchecked is None:
            raise error or damaged("there is no boot region")
        volume = cls(section, unchecked, zone)
        volume.warnings = ("the checksum of the boot region is wrong, and of its copy", *volume.warnings)
        return volume

    def _root_file(self) -> File:
        return File(True, False, self._geometry.root_cluster, 0, 0, False, 0, 0, 0)

    def _read_tables(self) -> None:
        """Find the label, the allocation bitmap, and the up-case table."""
        # The first entry of each kind counts, and the first bitmap of each number: a root can be full of them.
        bitmap: dict[int, tuple[int, int]] = {}
        upper: tuple[int, int, int] | None = None
        for found in self._sets(ROOT, self._root_file(), 0):
            data = found.data
            if found.kind == EntryType.LABEL:
                self.label = decode_utf16(data[2 : 2 + 2 * min(data[1], 11)]).decode(errors="replace")
            elif found.kind == EntryType.BITMAP:
                bitmap.setdefault(data[1] & 1, struct.unpack_from("<IQ", data, 20))
            elif found.kind == EntryType.UP_CASE:
                upper = upper or struct.unpack_from("<I12xIQ", data, 4)
        if upper is not None:
            checksum, first, length = upper
            self._upper = self._read_upper(first, length, checksum)
        if not self._upper:
            self.warnings += ("the up-case table is damaged or missing; the usual one is used",)
            self._upper = _usual_upper()
        if self._geometry.active in bitmap:
            first, length = bitmap[self._geometry.active]
            if length * 8 >= self._geometry.clusters and length <= _BITMAP_COUNTED:
                self._bitmap = self._chains.runs(first, -(-length // self._cluster_size), exact=True)

    def _read_upper(self, first: int, length: int, checksum: int) -> str:
        """The up-case table as a string that str.translate takes; "" if it is damaged. (Section 7.2.)"""
        if not 0 < length <= _UNITS * 2 or length % 2:
            return ""
        runs = self._chains.runs(first, -(-length // self._cluster_size), exact=True)
        try:
            data = b"".join(
                self._section.pread(self._cluster_size, self._position(found[0]))
                for number in range(runs.total)
                if (found := runs.find(number)) is not None
            )[:length]
        except OSError:
            return ""
        if len(data) < length or _table_checksum(data) != checksum:
            return ""
        units = array("H", data)
        if sys.byteorder == "big":
            units.byteswap()
        table: list[int] = []
        index = 0
        while index < len(units) and len(table) < _UNITS:
            if units[index] == _RUNS and index + 1 < len(units):  # so many characters that are their own
                table += range(len(table), min(len(table) + units[index + 1], _UNITS))
                index += 2
            else:
                table.append(units[index])
                index += 1
        table += range(len(table), _UNITS)
        return "".join(map(chr, table))

    # -- files

    def _read_file(self, node: int) -> File:
        place, contiguous_parent = divmod(node - _NODE_OF_PLACE, 2)
        position = place * ENTRY_SIZE
        if position < self._heap:
            raise os_error(errno.ESTALE)
        head = self._section.pread(2, position)
        if head[0] != EntryType.FILE:
            raise damaged(f"there is no entry of a directory at byte {position}")
        return self._as_file(parse_file(self._read_set(position, 1 + head[1], bool(contiguous_parent)), self._zone))

    def _read_set(self, position: int, count: int, is_contiguous: bool) -> bytes:
        """`count` entries of a directory from `position` on, which may lie in several clusters."""
        number, inside = divmod(position - self._heap, self._cluster_size)
        size, cluster = count * ENTRY_SIZE, number + 2
        clusters = -(-(inside + size) // self._cluster_size)
        if is_contiguous:
            runs = contiguous(cluster, clusters, self._clusters)
        else:
            runs = self._chains.runs(cluster, clusters, exact=True)
        data = b""
        for index in range(clusters):
            found = runs.find(index)
            if found is None:
                raise damaged("a directory ends in the middle of an entry")
            start = inside if index == 0 else 0
            length = min(self._cluster_size - start, size - len(data))
            data += self._section.pread(length, self._position(found[0]) + start)
        return data

    def _as_file(self, file: ExfatFile) -> File:
        return File(
            file.is_directory,
            bool(file.attributes & _READ_ONLY),
            file.first_cluster,
            file.length,
            file.valid_length,
            file.is_contiguous,
            file.mtime_ns,
            file.atime_ns,
            file.ctime_ns,
        )

    def _runs(self, file: File) -> Runs:
        if file.is_contiguous:
            return contiguous(file.first_cluster, -(-file.length // self._cluster_size), self._clusters)
        return super()._runs(file)

    # -- directories

    def _directory_runs(self, node: int, file: File) -> Runs:
        if node == ROOT:
            return self._chains.runs(file.first_cluster, _DIRECTORY_MAX // self._cluster_size, exact=False)
        if not file.length:
            return Runs([], [], 0, None)
        if file.first_cluster == self._geometry.root_cluster:
            return Runs([], [], 0, damaged("a directory begins with the root's cluster"))
        if file.length > _DIRECTORY_MAX:
            return Runs([], [], 0, damaged(f"a directory has an impossible size, {file.length}"))
        return self._runs(file)

    def _sets(self, node: int, file: File, start: int) -> Iterator[RawSet]:
        """The entries of a directory, as far as they can be read."""
        try:
            yield from parse_sets(self._pieces(node, file, start), start)
        except OSError:
            return

    def _names(self, node: int, file: File, start: int) -> Iterator[Name]:
        is_contiguous = file.is_contiguous and node != ROOT
        for found in parse_sets(self._pieces(node, file, start), start):
            if found.kind != EntryType.FILE:
                continue
            number = (found.position // ENTRY_SIZE) * 2 + is_contiguous + _NODE_OF_PLACE
            is_directory = bool(found.data[4] & 0x10)
            is_damaged = False
            try:
                parsed = parse_file(found.data, self._zone)
                name = parsed.name
                self._files.put(number, self._as_file(parsed))
            except OSError:
                is_damaged = True
                name = set_name(found.data)  # as far as it is there; stat(2) then fails with the error
            yield Name(mended_name(name), found.end, number, is_directory, is_damaged=is_damaged)

    def _fold(self, name: bytes) -> str:
        """Fold with the volume's up-case table, which is for UTF-16 units: half of a surrogate pair is one."""
        try:
            text = name.decode("utf-8", "surrogatepass").rstrip(".")
        except UnicodeDecodeError:
            return ""
        upper = self._upper
        return "".join(upper[ord(character)] if ord(character) < _UNITS else character for character in text)

    def _free_clusters(self) -> int:
        runs = self._bitmap
        if runs is None:
            return 0
        used, left = 0, self._clusters
        for number in range(runs.total):
            found = runs.find(number)
            if found is None:
                break
            bits = min(left, self._cluster_size * 8)
            data = self._section.pread(-(-bits // 8), self._position(found[0]))
            value = int.from_bytes(data, "little")
            used += (value & (1 << bits) - 1).bit_count()
            left -= bits
        return self._clusters - used


def _table_checksum(data: bytes) -> int:
    """The checksum of an up-case table (section 7.2.2)."""
    value = 0
    for byte in data:
        value = (value << 31 & 0x80000000 | value >> 1) + byte & 0xFFFFFFFF
    return value


def _usual_upper() -> str:
    """An up-case table by Unicode, without characters whose upper case is more than one."""
    upper = (chr(unit).upper() for unit in range(_UNITS))
    return "".join(big if len(big) == 1 and ord(big) < _UNITS else chr(unit) for unit, big in enumerate(upper))
