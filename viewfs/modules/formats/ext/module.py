"""The module `ext`: an ext2, ext3 or ext4 image as a read-only file system of a view."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from viewfs.modules.api import FileSystem, Module, Mounting, Source
from viewfs.modules.api.options import flag, size
from viewfs.modules.formats.ext.volume import Volume
from viewfs.modules.framework.image import ImageFileSystem
from viewfs.modules.framework.owners import OWNER, Owners
from viewfs.modules.framework.sources import checked_offset

__all__ = ["Ext", "ExtFileSystem"]

log = logging.getLogger("viewfs.ext")


#: Directory entry file types (directory.rst, "ftype") as the type bits of a mode.
_TYPE_BITS = {1: 0o100000, 2: 0o040000, 3: 0o020000, 4: 0o060000, 5: 0o010000, 6: 0o140000, 7: 0o120000}


class ExtFileSystem(ImageFileSystem):
    """A `Volume`, with the ids of its files translated for the view."""

    type_bits = staticmethod(lambda kind: _TYPE_BITS.get(kind, 0))


class Ext(Module):
    """ext2, ext3 and ext4 images, read-only; an unclean journal is replayed in memory."""

    name = "ext"
    takes_source = True
    never_waits = True
    options = (
        OWNER,
        size("offset", 0, "where in the source the file system begins"),
        flag("norecovery", "read it as it lies there: the journal is not looked at"),
    )

    @classmethod
    def probe(cls, source: Source) -> bool:
        return Volume.probe(source)

    @classmethod
    def probe_damaged(cls, source: Source) -> bool:
        return Volume.probe_copies(source)

    def describe(self, mounting: Mounting) -> Mapping[str, str]:
        volume = _volume(mounting)
        statistics = volume.statistics()
        return {
            "label": volume.label,
            "uuid": volume.uuid,
            "features": " ".join(volume.features),
            "blocks": f"{statistics.blocks} of {statistics.block_size} bytes, {statistics.free_blocks} free",
            "inodes": f"{statistics.files}, {statistics.free_files} free",
            "journal": f"{volume.replayed} transactions to replay" if volume.replayed else "clean or none",
            "warnings": "; ".join((*volume.warnings, *volume.damage)),
        }

    def open(self, mounting: Mounting) -> FileSystem:
        volume = _volume(mounting)
        for warning in volume.warnings:
            log.warning("%s: %s", mounting.source_name, warning)
        if volume.replayed:
            log.warning("%s: %d transactions of its journal replayed in memory", mounting.source_name, volume.replayed)
        owner = mounting.options["owner"]
        translate = Owners.of(owner, mounting.identities).translate
        return ExtFileSystem(volume, translate, tells_owners=owner == "tell")


def _volume(mounting: Mounting) -> Volume:
    assert mounting.source is not None
    return Volume.open(
        mounting.source,
        offset=checked_offset(mounting.source, mounting.options["offset"], mounting.source_name),
        name=mounting.source_name,
        replay=not mounting.options["norecovery"],
    )
