"""The module `ext`: an ext2, ext3 or ext4 image as a read-only file system of a view."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from viewfs.modules.api import (
    Attributes,
    Content,
    DirectoryEntry,
    FileSystem,
    FileSystemStatistics,
    InodeNumber,
    Module,
    Mounting,
    Source,
)
from viewfs.modules.ext.volume import ROOT, Volume
from viewfs.modules.options import size
from viewfs.modules.owners import OWNER, Owners

__all__ = ["Ext", "ExtFileSystem"]

log = logging.getLogger("viewfs.ext")


class ExtFileSystem(FileSystem):
    """A `Volume` with the ids of its files translated for the view. Nothing in it changes, nothing waits, and any
    thread may ask."""

    immutable = True
    concurrent = True
    root = InodeNumber(ROOT)

    def __init__(self, volume: Volume, translate: Callable[[Attributes], Attributes]) -> None:
        self._volume = volume
        self.no_xattrs = volume.no_xattrs
        self._translate = translate

    def _attributes(self, inode: int) -> Attributes:
        return self._translate(self._volume.attributes(inode))

    def getattr(self, inode: InodeNumber) -> Attributes:
        return self._attributes(inode)

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        number = self._volume.lookup(directory, name)
        return None if number is None else self._attributes(number)

    def readdir(self, directory: InodeNumber, start: int) -> Iterator[DirectoryEntry]:
        attributes = self._attributes
        for name, cookie, inode, file_type in self._volume.entries(directory, start):
            try:
                yield DirectoryEntry(name, cookie, attributes(inode))
            except OSError:
                # A name whose inode is damaged is shown; stat on it says what is wrong.
                yield DirectoryEntry(name, cookie, Attributes(InodeNumber(inode), _TYPE_BITS.get(file_type, 0)))

    def read(self, inode: InodeNumber, offset: int, size: int) -> Content:
        return self._volume.read_pieces(inode, offset, size)

    def readlink(self, inode: InodeNumber) -> bytes:
        return self._volume.readlink(inode)

    def listxattr(self, inode: InodeNumber) -> Iterable[bytes]:
        return list(self._volume.xattrs(inode))

    def getxattr(self, inode: InodeNumber, name: bytes) -> bytes | None:
        return self._volume.xattrs(inode).get(name)

    def statfs(self) -> FileSystemStatistics:
        return self._volume.statistics()


#: Directory entry file types (directory.rst, "ftype") as the type bits of a mode.
_TYPE_BITS = {1: 0o100000, 2: 0o040000, 3: 0o020000, 4: 0o060000, 5: 0o010000, 6: 0o140000, 7: 0o120000}


class Ext(Module):
    """ext2, ext3 and ext4 images, read-only; an unclean journal is replayed in memory."""

    name = "ext"
    takes_source = True
    options = (
        OWNER,
        size("offset", 0, "where in the source the file system begins"),
    )

    @classmethod
    def probe(cls, source: Source) -> bool:
        return Volume.probe(source)

    def describe(self, mounting: Mounting) -> Mapping[str, str]:
        volume = _volume(mounting)
        statistics = volume.statistics()
        return {
            "label": volume.label,
            "uuid": str(volume.uuid),
            "features": " ".join(volume.features),
            "blocks": f"{statistics.blocks} of {statistics.block_size} bytes, {statistics.free_blocks} free",
            "inodes": f"{statistics.files}, {statistics.free_files} free",
            "journal": f"{volume.replayed} transactions to replay" if volume.replayed else "clean or none",
            "warnings": "; ".join(volume.warnings),
        }

    def open(self, mounting: Mounting) -> FileSystem:
        volume = _volume(mounting)
        for warning in volume.warnings:
            log.warning("%s: %s", mounting.source_name, warning)
        if volume.replayed:
            log.warning("%s: %d transactions of its journal replayed in memory", mounting.source_name, volume.replayed)
        return ExtFileSystem(volume, Owners.of(mounting.options["owner"], mounting.identities).translate)


def _volume(mounting: Mounting) -> Volume:
    assert mounting.source is not None
    return Volume.open(mounting.source, offset=mounting.options["offset"], name=mounting.source_name)
