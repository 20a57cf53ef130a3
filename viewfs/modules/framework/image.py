"""The file system that all readers of images share: it passes requests on to a volume, which never changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from viewfs.modules.api import (
    OWNER_XATTR,
    Attributes,
    Content,
    DirectoryEntry,
    FileSystem,
    FileSystemStatistics,
    InodeNumber,
    Name,
)

__all__ = ["ImageFileSystem", "Volume"]


class Volume(Protocol):
    """An image that has been opened. Any thread may call it; it raises OSError where the image is damaged."""

    @property
    def root(self) -> int:
        """The inode number of the root."""

    @property
    def no_xattrs(self) -> bool:
        """There are no extended attributes in all of it."""

    def attributes(self, inode: int) -> Attributes: ...

    def lookup(self, directory: int, name: bytes) -> int | None: ...

    def entries(self, directory: int, start: int) -> Iterable[tuple[bytes, int, int, int]]:
        """Name, cookie, inode number and the format's type number of each name after cookie `start`."""

    def names(self, directory: int, start: int) -> Iterable[tuple[bytes, int, int, int]]:
        """As `entries`, with the inode number that stat(2) shows."""

    def read_pieces(self, inode: int, offset: int, size: int) -> Content: ...

    def readlink(self, inode: int) -> bytes: ...

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]: ...

    def statistics(self) -> FileSystemStatistics: ...


class ImageFileSystem(FileSystem):
    """A `Volume`. Nothing in it changes, nothing waits, and several threads may ask at once."""

    immutable = True
    concurrent = True
    #: Turns the format's type number into type bits of a mode; here, for the numbers of dirent.h (DT_*).
    type_bits: Callable[[int], int] = staticmethod(lambda kind: kind << 12)

    def __init__(
        self,
        volume: Volume,
        translate: Callable[[Attributes], Attributes] | None = None,
        *,
        tells_owners: bool = False,
    ) -> None:
        """`translate` gives inodes the owners that they shall have in the view. `tells_owners`: see `OWNER_XATTR`."""
        self._volume = volume
        self._tells_owners = tells_owners
        self.root = InodeNumber(volume.root)
        self.no_xattrs = volume.no_xattrs and not tells_owners
        self._attributes: Callable[[int], Attributes] = volume.attributes
        if translate is not None:
            self._attributes = lambda inode: translate(volume.attributes(inode))

    def getattr(self, inode: InodeNumber) -> Attributes:
        return self._attributes(inode)

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        number = self._volume.lookup(directory, name)
        return None if number is None else self._attributes(number)

    def readdir(self, directory: InodeNumber, start: int) -> Iterator[DirectoryEntry]:
        attributes = self._attributes
        for name, cookie, inode, kind in self._volume.entries(directory, start):
            try:
                entry = DirectoryEntry(name, cookie, attributes(inode))
            except OSError:
                # A name whose inode is damaged is listed all the same; stat(2) then fails with the error.
                unknown = Attributes(InodeNumber(inode), self.type_bits(kind))
                entry = DirectoryEntry(name, cookie, unknown, is_known=False)
            yield entry

    def names(self, directory: InodeNumber, start: int) -> Iterator[Name]:
        bits = self.type_bits
        for name, cookie, inode, kind in self._volume.names(directory, start):
            yield name, cookie, inode, bits(kind)

    def read(self, inode: InodeNumber, offset: int, size: int) -> Content:
        return self._volume.read_pieces(inode, offset, size)

    def readlink(self, inode: InodeNumber) -> bytes:
        return self._volume.readlink(inode)

    def listxattr(self, inode: InodeNumber) -> Iterable[bytes]:
        # trusted.* is not listed: reading it takes a privilege over the whole machine (xattr(7)), which no program of a
        # view has, so a program that copies files would fail on it.
        return [name for name in self._volume.xattrs(inode) if not name.startswith(b"trusted.")]

    def getxattr(self, inode: InodeNumber, name: bytes) -> bytes | None:
        if self._tells_owners and name == OWNER_XATTR:
            stored = self._volume.attributes(inode)
            return b"%d:%d" % (stored.uid, stored.gid)
        return self._volume.xattrs(inode).get(name)

    def statfs(self) -> FileSystemStatistics:
        return self._volume.statistics()
