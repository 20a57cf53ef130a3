"""A disk image's partitions as devices: /dev/disk is all of it, /dev/disk1 the first partition, and so on.

Numbers are those of Linux: the slot in the table for MBR and GPT, and from 5 on for logical partitions of an MBR. The
Sleuth Kit (pytsk3) reads the tables, after the server has been sealed off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytsk3

from viewfs.errors import DamagedSourceError
from viewfs.modules.api import Mounting, Source
from viewfs.modules.api.device import CharDevice, DeviceModule
from viewfs.modules.api.options import flag, text
from viewfs.modules.devices.disk import Disk, FileSectors
from viewfs.modules.framework.sources import FileSource

__all__ = ["Partition", "Partitions", "read_partitions"]


class Partition(NamedTuple):
    """One partition; offset and size in bytes."""

    number: int
    offset: int
    size: int


class _SourceImage(pytsk3.Img_Info):  # type: ignore[misc]  # the library has no types
    """A source as an image of the library's."""

    def __init__(self, source: Source) -> None:
        self._source = source
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def close(self) -> None:
        pass

    def read(self, offset: int, size: int) -> bytes:
        return self._source.pread(size, offset)

    def get_size(self) -> int:
        return self._source.size


def read_partitions(source: Source) -> list[Partition]:
    """The partitions of a disk, by number. Raises `ValueError` if it has no table of any known kind."""
    try:
        volume = pytsk3.Volume_Info(_SourceImage(source))
        found = list(_numbered(volume, source.size))
    except OSError as error:
        raise ValueError(str(error)) from error
    return sorted(found)


def _numbered(volume: pytsk3.Volume_Info, size: int) -> Iterator[Partition]:
    block = volume.info.block_size
    is_mbr = volume.info.vstype == pytsk3.TSK_VS_TYPE_DOS
    logical = 5
    for part in volume:
        if part.flags != pytsk3.TSK_VS_PART_FLAG_ALLOC:
            continue  # the table itself, and space that no partition uses
        if is_mbr and part.table_num > 0:
            number, logical = logical, logical + 1
        else:
            number = part.slot_num + 1
        offset = part.start * block
        length = min(part.len * block, size - offset)
        if offset >= 0 and length > 0:
            yield Partition(number, offset, length)


class Partitions(DeviceModule):
    """A disk image's partitions: PLACE is all of it, PLACE1 the first partition, and so on."""

    name = "partitions"
    mount_point = "/dev/disk"
    takes_source = True
    source_option = "file"
    writes_source = True
    options = (text("file", "", "the image"), flag("ro", "nothing can be written"))

    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int:
        return 0

    def open_devices(self, mounting: Mounting) -> dict[str, CharDevice]:
        source = mounting.source
        assert isinstance(source, FileSource)
        try:
            partitions = read_partitions(source)
        except ValueError:
            raise DamagedSourceError(
                f"{mounting.source_name} has no partition table of a known kind",
                remedy="`-t ramdisk -o file=…` makes a device of all of it",
            ) from None
        writable = not mounting.options["ro"]
        parts = {"": (0, source.size)} | {str(part.number): (part.offset, part.size) for part in partitions}
        return {
            name: Disk(FileSectors(source, offset, size, writable=writable)) for name, (offset, size) in parts.items()
        }
