"""Boot sectors: the layout of a volume. Pure.

Microsoft, “FAT: General Overview of On-Disk Format” (fatgen103), sections “Boot Sector and BPB” and “FAT Type
Determination”; Microsoft, “exFAT file system specification”, section 3. This refuses what Linux refuses (fs/fat,
fs/exfat), so it checks neither the signature 55 AA nor whether a FAT32 has enough clusters to be one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from viewfs.modules.framework.damage import damaged

__all__ = [
    "BOOT_SIZE",
    "EXFAT_BOOT_SECTORS",
    "ExfatGeometry",
    "FatGeometry",
    "is_exfat",
    "is_fat",
    "names_fat",
    "parse_exfat_boot",
    "parse_fat_boot",
    "verify_exfat_boot",
]

#: Bytes of a boot sector that are used; sectors may be larger.
BOOT_SIZE = 512
#: Sectors of one of the two boot regions of exFAT.
EXFAT_BOOT_SECTORS = 12
_EXFAT_NAME = b"EXFAT   "
_ENTRY = 32
_FIRST_CLUSTER = 2
#: The largest number of clusters, by the bits of an entry of the table.
_MOST_CLUSTERS = {12: 0xFF4, 16: 0xFFF4, 32: 0x0FFFFFF6}
_SECTOR_SIZES = (512, 1024, 2048, 4096)


class FatGeometry(NamedTuple):
    """A FAT volume, in bytes from its beginning."""

    #: Bits of an entry of the table: 12, 16 or 32.
    bits: int
    sector_size: int
    cluster_size: int
    #: The number of data clusters, which are numbered from 2 on.
    clusters: int
    #: The position of the table that is in use, and its size.
    table: int
    table_size: int
    #: Where cluster 2 begins.
    heap: int
    #: The root directory of FAT12 and FAT16, which lies outside of the clusters.
    root: int
    root_size: int
    #: The root's first cluster, of FAT32.
    root_cluster: int
    #: The position of FAT32's FSInfo sector, with the number of free clusters; 0 for the others.
    information: int
    label: str
    serial: int
    #: It was not unmounted.
    is_dirty: bool


class ExfatGeometry(NamedTuple):
    """An exFAT volume, in bytes from its beginning."""

    sector_size: int
    cluster_size: int
    clusters: int
    table: int
    table_size: int
    heap: int
    root_cluster: int
    #: Which of the allocation bitmaps is in use: 0 or 1.
    active: int
    serial: int
    is_dirty: bool


def is_exfat(boot: bytes) -> bool:
    """Does `boot`, the first 512 bytes of a volume, have the name of exFAT?"""
    return boot[3:11] == _EXFAT_NAME


def is_fat(boot: bytes, first_entry: bytes) -> bool:
    """Does a volume look like a FAT, if it begins with `boot` and its table with `first_entry`?

    This requires more than reading does: the table's first byte must be the media byte, as every mkfs writes it.
    """
    if len(boot) < BOOT_SIZE or (boot[0] not in (0xEB, 0xE9) and boot[510:512] != b"\x55\xaa"):
        return False
    try:
        geometry = parse_fat_boot(boot)
    except OSError:
        return False
    return geometry.clusters > 0 and first_entry[:1] == boot[21:22]


def names_fat(boot: bytes) -> bool:
    """Does `boot` (512 bytes) look like the boot sector of a FAT, and name it in the informational BS_FilSysType?"""
    return is_fat(boot, boot[21:22]) and b"FAT" in (boot[54:57], boot[82:85])


def parse_fat_boot(boot: bytes) -> FatGeometry:
    """`boot` has 512 bytes. Raises OSError(EUCLEAN) if it can't be that of a FAT."""
    if len(boot) < BOOT_SIZE:
        raise damaged("the boot sector is cut off")
    sector, per_cluster, reserved, tables, root_entries, sectors, media, table_sectors = struct.unpack_from(
        "<HBHBHHBH", boot, 11
    )
    sectors = sectors or struct.unpack_from("<I", boot, 32)[0]
    table_sectors_32, flags, _version, root_cluster, information = struct.unpack_from("<IHHIH", boot, 36)
    if sector not in _SECTOR_SIZES:
        raise damaged(f"the boot sector gives an impossible sector size, {sector}")
    if not per_cluster or per_cluster & (per_cluster - 1):
        raise damaged(f"the boot sector gives an impossible number of sectors per cluster, {per_cluster}")
    if not reserved or not tables:
        raise damaged("the boot sector leaves no room for itself, or has no table")
    if media != 0xF0 and media < 0xF8:
        raise damaged(f"the boot sector gives an impossible kind of medium, {media:#x}")
    wide = not table_sectors
    table_sectors = table_sectors or table_sectors_32
    root_sectors, rest = divmod(root_entries * _ENTRY, sector)
    if not table_sectors or rest:
        raise damaged("the boot sector gives an impossible size of the table or of the root directory")
    heap = reserved + tables * table_sectors + root_sectors
    if sectors <= heap:
        raise damaged(f"the boot sector gives an impossible number of sectors, {sectors}")
    clusters = (sectors - heap) // per_cluster
    bits = 32 if wide else 16 if clusters > _MOST_CLUSTERS[12] else 12
    clusters = min(clusters, table_sectors * sector * 8 // bits - _FIRST_CLUSTER)
    if not 0 < clusters <= _MOST_CLUSTERS[bits]:
        raise damaged(f"the boot sector gives an impossible number of clusters, {clusters}")
    # Without mirroring (bit 7), one table is in use and the others are out of date.
    active = flags & 0x0F if wide and flags & 0x80 else 0
    if active >= tables:
        raise damaged(f"the boot sector names table {active} as the one in use, and there are {tables}")
    extended = 64 if wide else 36
    has_label = boot[extended + 2] == 0x29
    return FatGeometry(
        bits=bits,
        sector_size=sector,
        cluster_size=sector * per_cluster,
        clusters=clusters,
        table=(reserved + active * table_sectors) * sector,
        table_size=table_sectors * sector,
        heap=heap * sector,
        root=(reserved + tables * table_sectors) * sector,
        root_size=0 if wide else root_entries * _ENTRY,
        root_cluster=root_cluster if wide else 0,
        information=(information or 1) * sector if wide else 0,
        label=boot[extended + 7 : extended + 18].decode("ascii", "replace").strip() if has_label else "",
        serial=struct.unpack_from("<I", boot, extended + 3)[0] if has_label else 0,
        is_dirty=bool(boot[extended + 1] & 1),
    )


def parse_exfat_boot(boot: bytes) -> ExfatGeometry:
    """`boot` has 512 bytes. Raises OSError(EUCLEAN) if it can't be that of an exFAT."""
    if len(boot) < BOOT_SIZE or not is_exfat(boot):
        raise damaged("the boot sector is not one of exFAT")
    if any(boot[11:64]):
        raise damaged("the boot sector has bytes where there must be none")
    (
        _length, table, table_length, heap, clusters, root_cluster, serial, revision, flags,
        sector_shift, cluster_shift, tables,
    ) = struct.unpack_from("<QIIIIIIHHBBB", boot, 72)  # fmt: skip
    if not 9 <= sector_shift <= 12 or sector_shift + cluster_shift > 25:
        raise damaged(f"the boot sector gives impossible sizes, 2^{sector_shift} and 2^{cluster_shift}")
    if tables not in (1, 2):
        raise damaged(f"the boot sector gives an impossible number of tables, {tables}")
    if revision >> 8 != 1:
        raise damaged(f"the boot sector is of an unknown revision, {revision >> 8}.{revision & 0xFF}")
    if not 0 < clusters <= 0xFFFFFFF5 or table_length << sector_shift < (clusters + _FIRST_CLUSTER) * 4:
        raise damaged(f"the boot sector gives an impossible number of clusters, {clusters}")
    if table < 2 * EXFAT_BOOT_SECTORS or heap < table + tables * table_length:
        raise damaged("the boot sector gives places that overlap")
    active = flags & 1 if tables == 2 else 0
    return ExfatGeometry(
        sector_size=1 << sector_shift,
        cluster_size=1 << sector_shift + cluster_shift,
        clusters=clusters,
        table=table + active * table_length << sector_shift,
        table_size=table_length << sector_shift,
        heap=heap << sector_shift,
        root_cluster=root_cluster,
        active=active,
        serial=serial,
        is_dirty=bool(flags & 2),
    )


def verify_exfat_boot(region: bytes, sector_size: int) -> bool:
    """Is the checksum of a boot region of 12 sectors right? (Section 3.4: it fills the last sector.)"""
    size = 11 * sector_size
    if len(region) < size + 4:
        return False
    # Three bytes that change while the volume is mounted are left out.
    checked = region[:106] + region[108:112] + region[113:size]
    checksum = 0
    for byte in checked:
        checksum = ((checksum >> 1) + ((checksum & 1) << 31) + byte) & 0xFFFFFFFF
    return int.from_bytes(region[size : size + 4], "little") == checksum
