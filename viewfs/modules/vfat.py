"""The module `vfat`: a FAT12, FAT16 or FAT32 file system, with long names, as a read-only one of a view.

The Sleuth Kit (pytsk3) reads it, once the server has been shut in. What is left out here is what it shows beside the
files: deleted ones, the volume's label, and the tables as files of their own. Names are found whichever way their
letters are written, as vfat's are (Documentation/filesystems/vfat.rst).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import pytsk3

from viewfs.errors import DamagedSourceError
from viewfs.modules.api import Attributes, FileSystem, FileSystemStatistics, InodeNumber, Module, Mounting, Source
from viewfs.modules.cache import SingleFlightCache
from viewfs.modules.damage import damaged, missing
from viewfs.modules.image import ImageFileSystem
from viewfs.modules.options import size
from viewfs.modules.sleuthkit import SourceImage, reason
from viewfs.modules.sources import Section

__all__ = ["Vfat", "VfatVolume", "is_fat"]

_SECTOR = 512
_BITS = {pytsk3.TSK_FS_TYPE_FAT12: 12, pytsk3.TSK_FS_TYPE_FAT16: 16, pytsk3.TSK_FS_TYPE_FAT32: 32}
_TYPES = {pytsk3.TSK_FS_META_TYPE_REG: stat.S_IFREG, pytsk3.TSK_FS_META_TYPE_DIR: stat.S_IFDIR}
#: How the library marks the entry of the label; no short name is that long, so no file is called so without a long one.
_LABEL_MARK = b" (Volume Label Entry)"
#: The file system has no permission bits but for one that says that nobody may write.
_PERMISSIONS = 0o755
#: How the library shows that bit's absence.
_NOT_READ_ONLY = 0o444
#: Names of directories that are kept in memory, and open files with the runs of their clusters.
_KEPT_NAMES = 65536
_KEPT_FILES = 256
_SECOND = 1_000_000_000


def is_fat(head: bytes) -> bool:
    """Does a volume that begins with `head` (512 bytes) have a FAT's boot sector?

    Fields and their bounds: Microsoft, FAT: General Overview of On-Disk Format, section "Boot Sector and BPB".
    """
    if len(head) < _SECTOR or head[510:512] != b"\x55\xaa" or head[0] not in (0xEB, 0xE9):
        return False
    sector, cluster, reserved, tables = struct.unpack_from("<HBHB", head, 11)
    media = head[21]
    return (
        sector in (512, 1024, 2048, 4096)
        and cluster in (1, 2, 4, 8, 16, 32, 64, 128)
        and reserved > 0
        and tables in (1, 2)
        and (media == 0xF0 or media >= 0xF8)
    )


class Directory(NamedTuple):
    """The names of a directory."""

    #: In the order in which they are stored; `.` and `..` are not among them.
    entries: list[tuple[bytes, Attributes]]
    #: By names as they are stored, and folded.
    exact: dict[bytes, int]
    folded: dict[str, int]


class VfatVolume:
    """An image that has been opened (`image.Volume`). One thread at a time may call it."""

    no_xattrs = True

    def __init__(self, source: Section, name: str, uid: int, gid: int) -> None:
        """Raises `DamagedSourceError`, or OSError where the root can't be read."""
        try:
            self._fs = pytsk3.FS_Info(SourceImage(source), type=pytsk3.TSK_FS_TYPE_FAT_DETECT)
        except OSError as error:
            raise DamagedSourceError(
                f"{name} has no FAT that can be read: {reason(error)}", remedy="fsck.vfat on a copy of it may help"
            ) from error
        info = self._fs.info
        if info.ftype not in _BITS:
            raise DamagedSourceError(f"{name} is exFAT, not FAT", remedy="viewfs has no reader of exFAT")
        self._uid, self._gid = uid, gid
        self._directories = SingleFlightCache(_KEPT_NAMES, self._read_directory, lambda found: len(found.entries) + 1)
        self._files = SingleFlightCache(_KEPT_FILES, self._open, lambda _file: 1)
        self.root = int(info.root_inum)
        self.bits = _BITS[info.ftype]
        self.block_size, self.blocks = int(info.block_size), int(info.block_count)
        self.label = ""
        self.directory(self.root)

    def attributes(self, inode: int) -> Attributes:
        return self._attributes(self._files.get(inode).info.meta)

    def lookup(self, directory: int, name: bytes) -> int | None:
        found = self.directory(directory)
        inode = found.exact.get(name)
        return inode if inode is not None else found.folded.get(_fold(name))

    def entries(self, directory: int, start: int) -> Iterator[tuple[bytes, int, int, int]]:
        for cookie, (name, attributes) in enumerate(self.directory(directory).entries[start:], start + 1):
            yield name, cookie, attributes.ino, stat.S_IFMT(attributes.mode) >> 12

    def read_pieces(self, inode: int, offset: int, size: int) -> bytes:
        file = self._files.get(inode)
        size = min(size, int(file.info.meta.size) - offset)  # the rest of the last cluster is not the file's
        if size <= 0:
            return b""
        with _damage():
            data: bytes = file.read_random(offset, size)
        if len(data) != size:
            raise missing(f"file {inode} ends at byte {offset + len(data)}")
        return data

    def readlink(self, inode: int) -> bytes:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        return {}

    def statistics(self) -> FileSystemStatistics:
        return FileSystemStatistics(self.block_size, self.blocks)

    def directory(self, inode: int) -> Directory:
        """Raises OSError, ENOTDIR among others."""
        return self._directories.get(inode)

    def _open(self, inode: int) -> pytsk3.File:
        with _damage():
            file = self._fs.open_meta(inode)
        if file.info.meta is None or file.info.meta.type not in _TYPES:
            raise damaged(f"inode {inode} is neither a file nor a directory")
        return file

    def _read_directory(self, inode: int) -> Directory:
        if not stat.S_ISDIR(self.attributes(inode).mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        found = Directory([], {}, {})
        with _damage():
            for entry in self._fs.open_dir(inode=inode):
                name, meta = entry.info.name, entry.info.meta
                if name.flags & pytsk3.TSK_FS_NAME_FLAG_UNALLOC or meta is None or meta.type not in _TYPES:
                    continue
                if name.name.endswith(_LABEL_MARK) and not name.shrt_name:
                    self.label = name.name.removesuffix(_LABEL_MARK).decode(errors="replace").strip()
                elif name.name not in (b".", b"..") and b"/" not in name.name:
                    attributes = self._attributes(meta)
                    found.entries.append((name.name, attributes))
                    found.exact.setdefault(name.name, attributes.ino)
                    for alias in (name.name, name.shrt_name or name.name):
                        found.folded.setdefault(_fold(alias), attributes.ino)
        return found

    def _attributes(self, meta: pytsk3.TSK_FS_META) -> Attributes:
        size, mtime = int(meta.size), int(meta.mtime) * _SECOND
        mode = _TYPES[meta.type] | _PERMISSIONS
        if meta.type == pytsk3.TSK_FS_META_TYPE_REG and not int(meta.mode) & _NOT_READ_ONLY:
            mode &= ~0o222
        return Attributes(
            ino=InodeNumber(int(meta.addr)),
            mode=mode,
            size=size,
            uid=self._uid,
            gid=self._gid,
            atime_ns=int(meta.atime) * _SECOND,
            mtime_ns=mtime,
            ctime_ns=mtime,
            blocks=-(-size // _SECTOR),
        )


def _fold(name: bytes) -> str:
    return name.decode(errors="surrogateescape").casefold()


@contextmanager
def _damage() -> Iterator[None]:
    """What the library finds wrong, as EUCLEAN; what it could not read keeps its errno."""
    try:
        yield
    except OSError as error:
        raise damaged(reason(error)) from error


class VfatFileSystem(ImageFileSystem):
    """A `VfatVolume`."""

    concurrent = False


class Vfat(Module):
    """FAT12, FAT16 and FAT32 with long names, read-only: memory cards, EFI system partitions, floppy disks."""

    name = "vfat"
    takes_source = True
    options = (size("offset", 0, "where in the source the file system begins"),)

    @classmethod
    def probe(cls, source: Source) -> bool:
        try:
            return is_fat(source.pread(_SECTOR, 0))
        except OSError:
            return False

    def describe(self, mounting: Mounting) -> Mapping[str, str]:
        volume = _volume(mounting)
        return {
            "label": volume.label,
            "FAT entries": f"{volume.bits} bits",
            "sectors": f"{volume.blocks} of {volume.block_size} bytes",
        }

    def open(self, mounting: Mounting) -> FileSystem:
        return VfatFileSystem(_volume(mounting))


def _volume(mounting: Mounting) -> VfatVolume:
    assert mounting.source is not None
    identities = mounting.identities
    source = Section(mounting.source, mounting.options["offset"])
    return VfatVolume(source, mounting.source_name, identities.uid, identities.gid)
