"""The modules `vfat` and `exfat`: FAT12, FAT16, FAT32 and exFAT images as read-only file systems of a view."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from viewfs.errors import DamagedSourceError
from viewfs.modules.api import FileSystem, Module, Mounting, Source
from viewfs.modules.api.options import size
from viewfs.modules.formats.fat.boot import BOOT_SIZE, is_exfat, is_fat, names_fat
from viewfs.modules.formats.fat.exfat import ExfatVolume
from viewfs.modules.formats.fat.fat import FatVolume
from viewfs.modules.formats.fat.names import CODEPAGE
from viewfs.modules.formats.fat.times import TIME_ZONE
from viewfs.modules.formats.fat.volume import ClusterVolume
from viewfs.modules.framework.image import ImageFileSystem
from viewfs.modules.framework.sources import Section, checked_offset

__all__ = ["Exfat", "Vfat"]

log = logging.getLogger("viewfs.fat")

_OFFSET = size("offset", 0, "where in the source the file system begins")


class FatFileSystem(ImageFileSystem):
    """A `ClusterVolume`. A name of 255 UTF-16 units has up to 765 bytes of UTF-8."""

    name_max = 255 * 3


class _FatModule(Module):
    """What both modules have in common."""

    takes_source = True
    never_waits = True

    def describe(self, mounting: Mounting) -> Mapping[str, str]:
        volume = self._volume(mounting)
        statistics = volume.statistics()
        return {
            "label": volume.label,
            "kind": volume.kind,
            "serial number": f"{volume.serial:08X}",
            "clusters": f"{statistics.blocks} of {statistics.block_size} bytes, {statistics.free_blocks} free",
            "warnings": "; ".join(volume.warnings),
        }

    def open(self, mounting: Mounting) -> FileSystem:
        volume = self._volume(mounting)
        for warning in volume.warnings:
            log.warning("%s: %s", mounting.source_name, warning)
        volume.uid, volume.gid = mounting.identities.uid, mounting.identities.gid
        return FatFileSystem(volume)

    def _volume(self, mounting: Mounting) -> ClusterVolume:
        assert mounting.source is not None
        offset = checked_offset(mounting.source, mounting.options["offset"], mounting.source_name)
        section = Section(mounting.source, offset)
        try:
            return self._open_volume(section, mounting.options)
        except OSError as error:
            raise DamagedSourceError(
                f"{mounting.source_name} is not a readable {self.name}: {error.strerror or error}"
            ) from None

    def _open_volume(self, section: Section, options: Mapping[str, object]) -> ClusterVolume:
        raise NotImplementedError


class Vfat(_FatModule):
    """FAT12, FAT16 and FAT32 with long names, read-only: memory cards, EFI system partitions, floppy disks."""

    name = "vfat"
    options = (CODEPAGE, TIME_ZONE, _OFFSET)

    @classmethod
    def probe(cls, source: Source) -> bool:
        try:
            boot = source.pread(BOOT_SIZE, 0)
            sector = int.from_bytes(boot[11:13], "little") * int.from_bytes(boot[14:16], "little")
            return not is_exfat(boot) and is_fat(boot, source.pread(4, sector))
        except OSError:
            return False

    @classmethod
    def probe_damaged(cls, source: Source) -> bool:
        """Does the boot sector name a FAT, whatever the table begins with?"""
        try:
            return names_fat(source.pread(BOOT_SIZE, 0))
        except OSError:
            return False

    def _open_volume(self, section: Section, options: Mapping[str, object]) -> ClusterVolume:
        boot = section.pread_up_to(BOOT_SIZE, 0)
        if is_exfat(boot):
            raise DamagedSourceError("this is exFAT", remedy="-t exfat")
        return FatVolume.open(section, options["codepage"], options["tz"])  # type: ignore[arg-type]  # of the options


class Exfat(_FatModule):
    """exFAT, read-only: memory cards of 64 GB and more, cameras, disks for every system."""

    name = "exfat"
    options = (TIME_ZONE, _OFFSET)

    @classmethod
    def probe(cls, source: Source) -> bool:
        try:
            return is_exfat(source.pread(BOOT_SIZE, 0))
        except OSError:
            return False

    @classmethod
    def probe_damaged(cls, source: Source) -> bool:
        """Is there a copy of the boot region?"""
        try:
            return any(is_exfat(source.pread(BOOT_SIZE, 12 * size)) for size in (512, 1024, 2048, 4096))
        except OSError:
            return False

    def _open_volume(self, section: Section, options: Mapping[str, object]) -> ClusterVolume:
        return ExfatVolume.open(section, options["tz"])  # type: ignore[arg-type]  # of the options
