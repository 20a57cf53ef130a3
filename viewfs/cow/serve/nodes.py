"""What our own copy-on-write file system keeps of files that the kernel knows: where they are, who has them open.

All of it is also written down, for a server that may have to take over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from viewfs.errors import os_error
from viewfs.linux.files import fallocate, pwrite_at
from viewfs.modules.api import ROOT_INODE, InodeNumber
from viewfs.modules.api.lasting import LastingFile

__all__ = ["Handle", "HandleRecord", "Node", "NodeRecord"]


#: Flags, linked, length of the path in the lower tree (-1: none), and that path; then perhaps the last status
#: (`_pack_status`), and the places: directory, length of the name, and the name.
_NODE, _PLACE = struct.Struct("<BQi"), struct.Struct("<QH")
_STATUS = struct.Struct("<IQQQIIqqqqqqQ")
_HANDLE = struct.Struct("<QIQQ")


class NodeRecord(NamedTuple):
    """What a successor is told of a node."""

    merged: bool
    held: bool
    linked: int
    #: See `Node.lower_path`.
    lower_path: bytes | None
    #: Its status when its last name was removed.
    last: os.stat_result | None
    #: Numbers of directories, and names.
    places: Sequence[tuple[int, bytes]]

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        lower, last = self.lower_path, self.last
        flags = self.merged | self.held << 1 | (last is not None) << 2
        parts = [_NODE.pack(flags, self.linked, -1 if lower is None else len(lower)), lower or b""]
        if last is not None:
            parts.append(_pack_status(last))
        for directory, name in self.places:
            parts += [_PLACE.pack(directory, len(name)), name]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> NodeRecord:
        flags, linked, length = _NODE.unpack_from(data)
        here = _NODE.size + max(length, 0)
        lower = None if length < 0 else data[_NODE.size : here]
        last = None
        if flags & 4:
            last = _unpack_status(data, here)
            here += _STATUS.size
        places = []
        while here < len(data):
            directory, length = _PLACE.unpack_from(data, here)
            here += _PLACE.size + length
            places.append((directory, data[here - length : here]))
        return cls(bool(flags & 1), bool(flags & 2), linked, lower, last, places)


def _pack_status(status: os.stat_result) -> bytes:
    return _STATUS.pack(
        status.st_mode, status.st_ino, status.st_dev, status.st_nlink, status.st_uid, status.st_gid, status.st_size,
        status.st_blocks, status.st_blksize, status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns, status.st_rdev,
    )  # fmt: skip


def _unpack_status(data: bytes, offset: int) -> os.stat_result:
    mode, inode, device, links, uid, gid, size, blocks, block, atime, mtime, ctime, rdev = _STATUS.unpack_from(
        data, offset
    )
    times = atime // 10**9, mtime // 10**9, ctime // 10**9
    more = {
        "st_atime_ns": atime, "st_mtime_ns": mtime, "st_ctime_ns": ctime,
        "st_blocks": blocks, "st_blksize": block, "st_rdev": rdev,
    }  # fmt: skip
    return os.stat_result((mode, inode, device, links, uid, gid, size, *times), more)


class HandleRecord(NamedTuple):
    """What a successor is told of an open file: its node, how it was opened, and which file it was then."""

    node: int
    flags: int
    device: int
    inode: int

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        return _HANDLE.pack(*self)

    @classmethod
    def from_bytes(cls, data: bytes) -> HandleRecord:
        return cls(*_HANDLE.unpack(data))


@dataclass
class Node:
    """A file or directory that the kernel has been told of, identified by where it is."""

    number: InodeNumber
    #: Directory and name. Only a file with several names in the upper directory has more than one place; the root, and
    #: what has no name any more, have none.
    places: list[tuple[Node, bytes]]
    #: If it is a file with several names: its inode number in the upper directory.
    linked: int = 0
    #: If it is a directory: what the lower tree has in it is visible.
    merged: bool = True
    #: Nothing of the lower tree is visible in it, so that only users of the view change it.
    is_own: bool = False
    handles: list[Handle] = field(default_factory=list)
    #: The signature of what was opened last: while it stays the same, pages that the kernel has are valid.
    opened: tuple[int, ...] | None = None
    #: How many places of other nodes are in it.
    children: int = 0
    #: Its status when its last name was removed.
    last: os.stat_result | None = None
    #: It has no name any more, but the file has one in the work directory as long as it is open.
    held: bool = False
    #: It has no name any more, but the lower tree still has the file, at this path.
    lower_path: bytes | None = None
    #: The kernel has forgotten it, but something here still needs it.
    is_forgotten: bool = False

    def record(self) -> bytes:
        """What a successor has to know of it."""
        places = [(directory.number, name) for directory, name in self.places]
        last = self.last if not places else None
        return NodeRecord(self.merged, self.held, self.linked, self.lower_path, last, places).to_bytes()

    @property
    def parent(self) -> Node | None:
        """The directory of the first place."""
        return self.places[0][0] if self.places else None

    @property
    def is_gone(self) -> bool:
        """Has it no name any more?"""
        return not self.places and self.number != ROOT_INODE

    @property
    def path(self) -> bytes:
        """Where it is, below the root. Raises ESTALE if it has no name any more; the kernel then looks the name up."""
        names: list[bytes] = []
        here = self
        while here.places:
            here, name = here.places[0]
            names.append(name)
        if here.number != ROOT_INODE:
            raise os_error(errno.ESTALE)
        return b"/".join(reversed(names))


#: FS_IOC_GETFLAGS of linux/fs.h.
_GETFLAGS = 0x80086601


class Handle(LastingFile):
    """An open file; when the file is copied up, the handle changes over to the copy."""

    def __init__(self, node: Node, fd: int, *, is_upper: bool, flags: int = os.O_RDONLY) -> None:
        self._node, self.fd, self.is_upper = node, fd, is_upper
        self._flags = flags
        # Others may write to the lower tree; to the upper directory only the kernel writes, through this file system.
        found = () if is_upper else _signature(os.fstat(fd))
        self.keep_cache = node.opened == found
        node.opened = found
        node.handles.append(self)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def write(self, offset: int, data: bytes) -> int:
        return os.pwrite(self.fd, data, offset)

    def fsync(self, *, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self.fd)

    def write_at(self, offset: int, data: bytes) -> int:
        return pwrite_at(self.fd, data, offset) if self._flags & os.O_APPEND else self.write(offset, data)

    def record(self) -> bytes:
        status = os.fstat(self.fd)
        return HandleRecord(self._node.number, self._flags, status.st_dev, status.st_ino).to_bytes()

    def lseek(self, offset: int, whence: int) -> int:
        return os.lseek(self.fd, offset, whence)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        fallocate(self.fd, mode, offset, length)

    def get_flags(self) -> int:
        return int.from_bytes(fcntl.ioctl(self.fd, _GETFLAGS, bytes(8))[:4], "little")

    def follow(self, fd: int) -> None:
        """Change over to `fd`: the file was copied."""
        os.close(self.fd)
        self.fd, self.is_upper = fd, True

    def release(self) -> None:
        os.close(self.fd)
        self._node.handles.remove(self)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """What differs when the content may differ."""
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size
