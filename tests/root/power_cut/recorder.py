"""Disks that write down what is done to them: files of a FUSE file system, below loop devices.

The log has everything in the order in which it was asked for: writes, barriers (a flush of the disk's cache), and
marks, which whoever runs the scenario puts in. The FUSE server is a process of its own, which ends with its mount.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from viewfs.linux.mount import MountFlags, UmountFlags, mount, umount2
from viewfs.modules.api import (
    ROOT_INODE,
    Attributes,
    DirectoryEntry,
    InodeNumber,
    OpenFile,
    WritableFileSystem,
)
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.host import serve

__all__ = ["Kind", "Record", "Recorder", "read_log"]

_HEADER = struct.Struct("<BBQI")
_MARKS = b"marks"
_PR_SET_PDEATHSIG, _PR_SET_IO_FLUSHER = 1, 57


class Kind(IntEnum):
    """What was done."""

    WRITE = 1
    #: All that was written to this disk before is on it.
    BARRIER = 2
    MARK = 3


@dataclass(frozen=True)
class Record:
    """One line of the log."""

    kind: Kind
    disk: int
    offset: int
    data: bytes


def read_log(path: Path) -> Iterator[Record]:
    """What was recorded, in order."""
    with open(path, "rb") as file:
        while header := file.read(_HEADER.size):
            kind, disk, offset, size = _HEADER.unpack(header)
            yield Record(Kind(kind), disk, offset, file.read(size))


class _Log:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, kind: Kind, disk: int, offset: int = 0, data: bytes = b"") -> None:
        os.writev(self._fd, [_HEADER.pack(kind, disk, offset, len(data)), data])


class _Disk(OpenFile):
    """An open disk. Nothing of it is cached above: each read and write comes here."""

    direct_io = True

    def __init__(self, log: _Log, number: int, fd: int) -> None:
        self._log, self._number, self._fd = log, number, fd

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def write(self, offset: int, data: bytes) -> int:
        self._log.add(Kind.WRITE, self._number, offset, bytes(data))
        return os.pwrite(self._fd, data, offset)

    def fsync(self, *, data_only: bool) -> None:
        self._log.add(Kind.BARRIER, self._number)


class _Marks(OpenFile):
    direct_io = True

    def __init__(self, log: _Log) -> None:
        self._log = log

    def write(self, offset: int, data: bytes) -> int:
        self._log.add(Kind.MARK, 0, 0, bytes(data))
        return len(data)


class _Disks(WritableFileSystem):
    """The directory that they are in."""

    no_xattrs = True

    def __init__(self, log: _Log, images: Sequence[Path]) -> None:
        self._log = log
        self._images = [os.open(image, os.O_RDWR | os.O_CLOEXEC) for image in images]
        self._names = [*(b"disk%d" % number for number in range(len(images))), _MARKS]

    def getattr(self, inode: InodeNumber) -> Attributes:
        if inode == ROOT_INODE:
            return Attributes(ROOT_INODE, stat.S_IFDIR | 0o700, nlink=2)
        number = inode - ROOT_INODE - 1
        size = os.fstat(self._images[number]).st_size if number < len(self._images) else 0
        return Attributes(inode, stat.S_IFREG | 0o600, size)

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        if name not in self._names:
            return None
        return self.getattr(InodeNumber(ROOT_INODE + 1 + self._names.index(name)))

    def readdir(self, directory: InodeNumber, start: int) -> Iterator[DirectoryEntry]:
        for number, name in enumerate(self._names[start:], start):
            yield DirectoryEntry(name, number + 1, self.getattr(InodeNumber(ROOT_INODE + 1 + number)))

    def open(self, inode: InodeNumber, flags: int) -> OpenFile:
        number = inode - ROOT_INODE - 1
        if number == len(self._images):
            return _Marks(self._log)
        return _Disk(self._log, number, self._images[number])

    def setattr(self, inode: InodeNumber, changes: object) -> Attributes:
        return self.getattr(inode)


class Recorder:
    """Images as disks below `directory`, which is a mount point of this process's mount namespace."""

    def __init__(self, directory: Path, images: Sequence[Path], log: Path) -> None:
        self._directory = directory
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,max_read={1 << 20}"
        mount("viewfs-test", str(directory), "fuse", MountFlags.NOSUID | MountFlags.NODEV, options)
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                _stay_able()
                serve(_Disks(_Log(log), images), fd, Counters.create())
                code = 0
            finally:
                os._exit(code)
        os.close(fd)
        self._marks = os.open(directory / "marks", os.O_WRONLY | os.O_CLOEXEC)

    def disk(self, number: int) -> Path:
        """The file that a loop device can be made of."""
        return self._directory / f"disk{number}"

    def mark(self, text: str) -> None:
        """Write `text` down between what was done until now and what comes."""
        os.write(self._marks, text.encode())

    def close(self) -> None:
        """Nothing may be mounted from the disks any more."""
        os.close(self._marks)
        umount2(str(self._directory), UmountFlags.NONE)
        assert os.waitpid(self._pid, 0)[1] == 0, "the recorder failed"


def _stay_able() -> None:
    """End with the scenario, and never wait for what has to be written through here in order to have memory."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
