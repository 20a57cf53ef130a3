"""The module `squashfs`: a squashfs image as a read-only file system of a view."""

from __future__ import annotations

import time
from collections.abc import Mapping

from viewfs.modules.api import FileSystem, Module, Mounting, Source
from viewfs.modules.api.options import Option, size
from viewfs.modules.formats.squashfs.volume import Volume
from viewfs.modules.framework.image import ImageFileSystem
from viewfs.modules.framework.owners import AS_STORED, OWNER, Owners
from viewfs.modules.framework.sources import checked_offset

__all__ = ["Squashfs", "SquashfsFileSystem"]

#: How many bytes are decompressed ahead, at least.
_READ_AHEAD = 256 << 10


class SquashfsFileSystem(ImageFileSystem):
    """A `Volume`, whose blocks are decompressed ahead."""

    def __init__(self, volume: Volume, teller: Owners | None = None) -> None:
        """`teller`: the owners to show if the option `owner` is “tell”; `volume` then has the stored ids."""
        super().__init__(volume, None if teller is None else teller.translate, tells_owners=teller is not None)
        volume.call_before_work(lambda: self.about_to_work())
        self.caches = volume.caches
        self.read_ahead = max(2 * volume.block_size, _READ_AHEAD)


class Squashfs(Module):
    """squashfs 4.0 images, read-only, with any compression; also behind a program, as in an AppImage."""

    name = "squashfs"
    takes_source = True
    never_waits = True
    options = (
        OWNER,
        Option(
            "offset",
            size("offset", 0, "").parse,
            None,
            "where in the source the file system begins; auto: it is found",
            "SIZE",
            show=lambda given: "auto" if given is None else str(given),
        ),
    )

    @classmethod
    def probe(cls, source: Source) -> bool:
        return Volume.probe(source)

    def describe(self, mounting: Mounting) -> Mapping[str, str]:
        volume = _volume(mounting)
        statistics = volume.statistics()
        return {
            "offset": f"{volume.offset} bytes" if volume.offset else "",
            "made": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(volume.made_at)),
            "compression": volume.compression,
            "blocks": f"{statistics.blocks} of {statistics.block_size} bytes",
            "inodes": str(volume.inode_count),
            "flags": " ".join(
                flag.name.lower().replace("_", "-") for flag in type(volume.flags) if flag in volume.flags and flag.name
            ),
        }

    def open(self, mounting: Mounting) -> FileSystem:
        tells = mounting.options["owner"] == "tell"
        return SquashfsFileSystem(_volume(mounting), Owners.of("tell", mounting.identities) if tells else None)


def _volume(mounting: Mounting) -> Volume:
    assert mounting.source is not None
    options = mounting.options
    owners = AS_STORED if options["owner"] == "tell" else Owners.of(options["owner"], mounting.identities)
    offset = checked_offset(mounting.source, options["offset"], mounting.source_name)
    return Volume.open(mounting.source, offset=offset, name=mounting.source_name, owners=owners)
