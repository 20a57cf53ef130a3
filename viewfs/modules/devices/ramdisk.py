"""/dev/ramdisk: a disk in memory, or one whose sectors are those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from viewfs.errors import UsageError
from viewfs.modules.api import Mounting
from viewfs.modules.api.device import CharDevice, DeviceModule
from viewfs.modules.api.options import size, text
from viewfs.modules.devices.disk import Disk, FileSectors, MemorySectors
from viewfs.modules.framework.sources import FileSource

__all__ = ["Ramdisk"]


class Ramdisk(DeviceModule):
    """A disk in memory, or one whose sectors are a file."""

    name = "ramdisk"
    source_option = "file"
    writes_source = True
    options = (
        size("size", 64 << 20, "bytes of memory it may take, as it is written"),
        text("file", "", "its sectors are this file's, which is as large as it is"),
    )

    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int:
        size: int = options["size"]
        return 0 if options["file"] else size

    def open_devices(self, mounting: Mounting) -> CharDevice:
        if mounting.source is not None:
            assert isinstance(mounting.source, FileSource)
            return Disk(FileSectors(mounting.source, 0, mounting.source.size, writable=True))
        if not mounting.options["size"]:
            raise UsageError("option size of module ramdisk: a disk has at least one byte")
        return Disk(MemorySectors(self.kept(mounting).memory))
