"""The three checksums of ext4 and jbd2 (Documentation/filesystems/ext4/checksums.rst).

ext4 uses CRC-32C without the final inversion, chained from one field to the next: crc(crc(~0, uuid), inode number)
and so on. The `crc32c` package inverts before and after, as zlib does. To need only one inversion in all, this reader
keeps every seed and every intermediate value in the package's (inverted) form and inverts what it compares:

    seed = crc32c(uuid)                       # the package starts from 0, which is ~0 uninverted
    value = stored(crc32c(data, seed))        # what the disk holds
"""

from __future__ import annotations

import zlib
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crc32c import crc32c

__all__ = ["crc16", "crc32_big_endian", "crc32c", "seed_from_disk", "stored"]

_MASK = 0xFFFFFFFF


def _load_crc32c() -> None:
    """Import the function `crc32c`, but not the package around it: that has a command-line program and imports what
    such programs need, which takes longer than all of this reader."""
    global crc32c
    package = find_spec("crc32c")
    places = None if package is None else package.submodule_search_locations
    inside = None if places is None else PathFinder.find_spec("crc32c._crc32c", places)
    if inside is None or inside.loader is None:  # versions before 2.5 are no package
        from crc32c import crc32c
    else:
        loaded = module_from_spec(inside)
        inside.loader.exec_module(loaded)
        crc32c = loaded.crc32c


_load_crc32c()


def stored(value: int) -> int:
    """A finished CRC-32C as it stands on disk."""
    return value ^ _MASK


def seed_from_disk(value: int) -> int:
    """A CRC-32C read from disk (s_checksum_seed), to be continued from."""
    return value ^ _MASK


def _crc16_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC16 = _crc16_table()


def crc16(data: bytes, value: int = 0xFFFF) -> int:
    """CRC-16 (polynomial 0x8005, reflected), of group descriptors without metadata_csum (uninit_bg)."""
    for byte in data:
        value = value >> 8 ^ _CRC16[(value ^ byte) & 0xFF]
    return value


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def crc32_big_endian(data: bytes = b"", value: int = 0xFFFFFFFF) -> int:
    """CRC-32 with the high bit first and no final inversion, of jbd2 commit blocks (JBD2_FEATURE_COMPAT_CHECKSUM).

    It is zlib's CRC-32 with the bits of every byte, and of the result, reversed.
    """
    return _reverse(zlib.crc32(data.translate(_REVERSED), _reverse(value) ^ _MASK) ^ _MASK)


def _reverse(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little").translate(_REVERSED), "big")
