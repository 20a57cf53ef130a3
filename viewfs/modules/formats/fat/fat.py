"""FAT12, FAT16 and FAT32, with long names."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from viewfs.errors import os_error
from viewfs.modules.formats.fat.boot import BOOT_SIZE, FatGeometry, parse_fat_boot
from viewfs.modules.formats.fat.chains import FIRST_CLUSTER, Chains, Runs, open_table
from viewfs.modules.formats.fat.entries import (
    ENTRY_SIZE,
    Attribute,
    begins_directory,
    find_label,
    is_file,
    parse_entries,
    parse_fields,
)
from viewfs.modules.formats.fat.names import fold, short_names
from viewfs.modules.formats.fat.times import Zone
from viewfs.modules.formats.fat.volume import ROOT, ClusterVolume, File, Name, Places
from viewfs.modules.framework.damage import damaged
from viewfs.modules.framework.sources import Section

__all__ = ["FatVolume"]

#: A node is the number of the entry's place in the volume, with this added. An entry lies at a multiple of its size.
_NODE_OF_PLACE = 2
#: No directory has more entries (fs/fat/fat.h, FAT_MAX_DIR_SIZE).
_DIRECTORY_MAX = 65536 * ENTRY_SIZE
_SECOND = 1_000_000_000
#: The usual sector of FAT32's copy of the boot sector, tried besides that in BPB_BkBootSec.
_USUAL_COPY = 6
#: Free clusters are counted only in a table that is no larger than this.
_COUNTED = 16 << 20
_UNKNOWN = 0xFFFFFFFF


class FatVolume(ClusterVolume):
    """One file system."""

    def __init__(self, section: Section, geometry: FatGeometry, codepage: str, zone: Zone) -> None:
        table = open_table(section, geometry.table, geometry.clusters, 28 if geometry.bits == 32 else geometry.bits)
        chains = Chains(table, geometry.clusters)
        super().__init__(section, geometry.heap, geometry.cluster_size, geometry.clusters, chains)
        self._geometry = geometry
        self._text = short_names(codepage)
        self._zone = zone
        self._wide = geometry.bits == 32
        self.kind = f"FAT{geometry.bits}"
        self.serial = geometry.serial
        root = self._root_file()
        try:
            self.label = find_label(self._pieces(ROOT, root, 0), self._text) or geometry.label
        except OSError:
            self.label = geometry.label
        if geometry.is_dirty:
            self.warnings += ("it was not unmounted",)

    @classmethod
    def open(cls, section: Section, codepage: str, zone: Zone) -> FatVolume:
        """Raises OSError if it is not a FAT, or if the root directory can't be read at all."""
        boot = section.pread_up_to(BOOT_SIZE, 0)
        copied = False
        try:
            geometry = parse_fat_boot(boot)
        except OSError:
            copy = _find_copy(section, boot)
            if copy is None:
                raise
            geometry, copied = copy, True
        volume = cls(section, geometry, codepage, zone)
        if copied:
            volume.warnings = ("the boot sector is damaged; its copy is used", *volume.warnings)
        root = volume._places(ROOT, volume._root_file())
        if not root.pieces:
            raise root.error or damaged("there is no root directory")
        section.pread(ENTRY_SIZE, root.pieces[0][0])
        return volume

    def _root_file(self) -> File:
        return File(True, False, self._geometry.root_cluster, 0, 0, False, 0, 0, 0)

    def _read_file(self, node: int) -> File:
        position = (node - _NODE_OF_PLACE) * ENTRY_SIZE
        if position < self._geometry.root:
            raise os_error(errno.ESTALE)
        raw = self._section.pread(ENTRY_SIZE, position)
        if not is_file(raw):
            raise damaged(f"there is no entry of a directory at byte {position}")
        return self._parse(raw)

    def _parse(self, raw: bytes) -> File:
        fields = parse_fields(raw, wide=self._wide)
        times = (self._utc(time) for time in (fields.mtime_ns, fields.atime_ns, fields.ctime_ns))
        read_only = bool(fields.attributes & Attribute.READ_ONLY)
        return File(fields.is_directory, read_only, fields.first_cluster, fields.size, fields.size, False, *times)

    def _utc(self, time: int) -> int:
        return self._zone.to_utc(time // _SECOND) * _SECOND + time % _SECOND

    def _directory_runs(self, node: int, file: File) -> Runs:
        first = file.first_cluster
        if node != ROOT and (first < FIRST_CLUSTER or first == self._geometry.root_cluster):
            return Runs([], [], 0, damaged(f"a directory begins with cluster {first}, which can't be"))
        runs = self._chains.runs(first, _DIRECTORY_MAX // self._cluster_size + 1, exact=False)
        if runs.error is None and runs.total * self._cluster_size > max(_DIRECTORY_MAX, self._cluster_size):
            return runs._replace(error=damaged("a directory is larger than it can be"))
        return runs

    def _places(self, node: int, file: File) -> Places:
        if node == ROOT and not self._wide:
            return Places([(self._geometry.root, self._geometry.root_size)], None)
        return super()._places(node, file)

    def _names(self, node: int, file: File, start: int) -> Iterator[Name]:
        if node != ROOT:
            places = self._places(node, file).pieces
            # Other data would be read as a directory full of strange names.
            if places and not begins_directory(self._section.pread(2 * ENTRY_SIZE, places[0][0])):
                raise damaged("what should be a directory is none")
        # `start` is the end of an entry, so the parts of a long name, which precede their entry, come after it.
        for entry in parse_entries(self._pieces(node, file, start), self._text, start):
            number = entry.position // ENTRY_SIZE + _NODE_OF_PLACE
            self._files.put(number, self._parse(entry.raw))
            yield Name(entry.name, entry.end, number, bool(entry.raw[11] & Attribute.DIRECTORY), entry.alias)

    def _fold(self, name: bytes) -> str:
        return fold(name)

    def _free_clusters(self) -> int:
        geometry = self._geometry
        if geometry.information:
            data = self._section.pread(512, geometry.information)
            (free,) = struct.unpack_from("<I", data, 488)
            if data[:4] == b"RRaA" and data[484:488] == b"rrAa" and free <= geometry.clusters:
                return int(free)
        return self._chains.count_free() if geometry.table_size <= _COUNTED else 0


def _find_copy(section: Section, boot: bytes) -> FatGeometry | None:
    """The geometry from FAT32's copy of a damaged boot sector."""
    sectors = {_USUAL_COPY, int.from_bytes(boot[50:52], "little")}
    for size in (512, 1024, 2048, 4096):
        for sector in sorted(sectors):
            try:
                geometry = parse_fat_boot(section.pread(BOOT_SIZE, sector * size))
            except OSError:
                continue
            if geometry.bits == 32 and geometry.sector_size == size:
                return geometry
    return None
