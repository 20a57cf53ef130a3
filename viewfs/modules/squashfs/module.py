"""The module `squashfs`: a squashfs image as a read-only file system of a view."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

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
from viewfs.modules.options import Option, size
from viewfs.modules.owners import OWNER, Owners
from viewfs.modules.squashfs.volume import Volume

__all__ = ["Squashfs", "SquashfsFileSystem"]

#: Bytes that are decompressed ahead, at least.
_READ_AHEAD = 256 << 10


class SquashfsFileSystem(FileSystem):
    """A `Volume`. Nothing in it changes, nothing waits, and several threads may ask at once."""

    immutable = True
    concurrent = True

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        volume.call_before_work(lambda: self.about_to_work())
        self.root = InodeNumber(volume.root)
        self.no_xattrs = volume.no_xattrs
        self.caches = volume.caches
        self.read_ahead = max(2 * volume.block_size, _READ_AHEAD)

    def getattr(self, inode: InodeNumber) -> Attributes:
        return self._volume.attributes(inode)

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        node = self._volume.lookup(directory, name)
        return None if node is None else self._volume.attributes(node)

    def readdir(self, directory: InodeNumber, start: int) -> Iterator[DirectoryEntry]:
        attributes = self._volume.attributes
        for name, cookie, node, kind in self._volume.entries(directory, start):
            try:
                yield DirectoryEntry(name, cookie, attributes(node))
            except OSError:
                # A name whose inode is damaged is shown; stat on it says what is wrong.
                yield DirectoryEntry(name, cookie, Attributes(InodeNumber(node), kind << 12))

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


class Squashfs(Module):
    """squashfs 4.0 images, read-only, whichever way they are compressed; also behind a program, as in an AppImage."""

    name = "squashfs"
    takes_source = True
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
        return SquashfsFileSystem(_volume(mounting))


def _volume(mounting: Mounting) -> Volume:
    assert mounting.source is not None
    options = mounting.options
    owners = Owners.of(options["owner"], mounting.identities)
    return Volume.open(mounting.source, offset=options["offset"], name=mounting.source_name, owners=owners)
