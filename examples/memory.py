"""A file system in memory that can be written: what a module implements so that ordinary programs can work in it."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterable, Mapping

from viewfs.modules.api import (
    ROOT_INODE,
    Attributes,
    DirectoryEntry,
    FileSystem,
    FileSystemStatistics,
    InodeNumber,
    Module,
    Mounting,
    WritableFileSystem,
)
from viewfs.modules.api.options import size


class Memory(Module):
    """Files in the memory of one process, gone with it."""

    name = "memory"
    options = (size("limit", 64 << 20, "how many bytes of content it takes before it is full"),)

    def open(self, mounting: Mounting) -> FileSystem:
        return MemoryFileSystem(mounting.identities.uid, mounting.identities.gid, mounting.options["limit"])


class Inode:
    """One file of any type. What it holds depends on that: names, bytes, or a link's target."""

    def __init__(self, number: InodeNumber, mode: int, uid: int, gid: int) -> None:
        now = time.time_ns()
        self.attributes = Attributes(number, mode, 0, 1, uid, gid, 0, now, now, now)
        self.names: dict[bytes, InodeNumber] = {}
        self.content = bytearray()
        self.parent = number
        self.xattrs: dict[bytes, bytes] = {}


class MemoryFileSystem(WritableFileSystem):
    def __init__(self, uid: int, gid: int, limit: int) -> None:
        self._numbers = itertools.count(ROOT_INODE)
        self._inodes: dict[int, Inode] = {}
        self._limit = limit
        self._used = 0
        self._change(self._new(stat.S_IFDIR | 0o755, uid, gid), nlink=2)

    def _new(self, mode: int, uid: int, gid: int) -> Inode:
        inode = Inode(InodeNumber(next(self._numbers)), mode, uid, gid)
        self._inodes[inode.attributes.ino] = inode
        return inode

    def _get(self, number: int) -> Inode:
        try:
            return self._inodes[number]
        except KeyError:
            raise OSError(errno.ESTALE, "the file is gone") from None

    def _change(self, inode: Inode, **fields: int) -> Attributes:
        now = time.time_ns()
        inode.attributes = inode.attributes._replace(**{"ctime_ns": now, **fields})
        return inode.attributes

    def _add(self, directory: InodeNumber, name: bytes, inode: Inode) -> Attributes:
        names = self._get(directory).names
        if name in names:
            raise FileExistsError(errno.EEXIST, "the name is taken")
        names[name] = inode.attributes.ino
        self._touch(directory)
        return inode.attributes

    def _touch(self, directory: InodeNumber, links: int = 0) -> None:
        inode = self._get(directory)
        self._change(inode, mtime_ns=time.time_ns(), nlink=inode.attributes.nlink + links)

    # Reading

    def getattr(self, inode: InodeNumber) -> Attributes:
        return self._get(inode).attributes

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        number = self._get(directory).names.get(name)
        return None if number is None else self.getattr(number)

    def readdir(self, directory: InodeNumber, start: int) -> Iterable[DirectoryEntry]:
        inode = self._get(directory)
        names = {b".": directory, b"..": inode.parent} | inode.names
        # A cookie is the inode number of the entry it stands behind, so that it stays true while others come and go.
        for name, number in sorted(names.items(), key=lambda item: (item[1], item[0])):
            if number >= start:
                yield DirectoryEntry(name, number + 1, self.getattr(number))

    def read(self, inode: InodeNumber, offset: int, size: int) -> bytes:
        return bytes(self._get(inode).content[offset : offset + size])

    def readlink(self, inode: InodeNumber) -> bytes:
        return bytes(self._get(inode).content)

    def listxattr(self, inode: InodeNumber) -> Iterable[bytes]:
        return list(self._get(inode).xattrs)

    def getxattr(self, inode: InodeNumber, name: bytes) -> bytes | None:
        return self._get(inode).xattrs.get(name)

    def statfs(self) -> FileSystemStatistics:
        free = (self._limit - self._used) // 4096
        return FileSystemStatistics(4096, self._limit // 4096, free, free, len(self._inodes))

    # Writing

    def setattr(self, inode: InodeNumber, changes: Mapping[str, int]) -> Attributes:
        node = self._get(inode)
        if "size" in changes:
            self._resize(node, changes["size"])
        return self._change(node, **changes)

    def _resize(self, node: Inode, length: int) -> None:
        grown = length - len(node.content)
        if self._used + grown > self._limit:
            raise OSError(errno.ENOSPC, "the limit is reached")
        if grown > 0:
            node.content.extend(bytes(grown))
        else:
            del node.content[length:]
        self._used += grown
        self._change(node, size=length, blocks=-(-length // 512), mtime_ns=time.time_ns())

    def write(self, inode: InodeNumber, offset: int, data: bytes) -> int:
        node = self._get(inode)
        if offset + len(data) > len(node.content):
            self._resize(node, offset + len(data))
        node.content[offset : offset + len(data)] = data
        self._change(node, mtime_ns=time.time_ns())
        return len(data)

    def create(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        above = self._get(directory).attributes
        inode = self._new(mode, uid, above.gid if above.mode & stat.S_ISGID else gid)
        self._change(inode, rdev=rdev)
        return self._add(directory, name, inode)

    def mkdir(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        above = self._get(directory).attributes
        if above.mode & stat.S_ISGID:  # inode(7): what is made in it is its group's, and directories are like it
            mode, gid = mode | stat.S_ISGID, above.gid
        inode = self._new(stat.S_IFDIR | mode, uid, gid)
        inode.parent = directory
        self._change(inode, nlink=2)
        self._touch(directory, links=1)
        return self._add(directory, name, inode)

    def symlink(self, directory: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        inode = self._new(stat.S_IFLNK | 0o777, uid, gid)
        inode.content[:] = target
        self._change(inode, size=len(target))
        return self._add(directory, name, inode)

    def link(self, inode: InodeNumber, directory: InodeNumber, name: bytes) -> Attributes:
        node = self._get(inode)
        self._add(directory, name, node)
        return self._change(node, nlink=node.attributes.nlink + 1)

    def unlink(self, directory: InodeNumber, name: bytes) -> None:
        node = self._get(self._get(directory).names.pop(name))
        self._change(node, nlink=node.attributes.nlink - 1)
        self._touch(directory)

    def rmdir(self, directory: InodeNumber, name: bytes) -> None:
        node = self._get(self._get(directory).names[name])
        if node.names:
            raise OSError(errno.ENOTEMPTY, "it is not empty")
        del self._get(directory).names[name]
        self._change(node, nlink=0)
        self._touch(directory, links=-1)

    def rename(
        self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        if flags & ~1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        source, target = self._get(directory).names, self._get(new_directory).names
        node = self._get(source[name])
        if new_name in target:
            if flags & 1:  # RENAME_NOREPLACE
                raise FileExistsError(errno.EEXIST, "the name is taken")
            if target[new_name] == source[name]:
                return  # two names of one file: rename(2) leaves both
            old = self._get(target[new_name])
            (self.rmdir if stat.S_ISDIR(old.attributes.mode) else self.unlink)(new_directory, new_name)
        target[new_name] = source.pop(name)
        moved = 1 if stat.S_ISDIR(node.attributes.mode) else 0
        if moved:
            node.parent = new_directory
        self._touch(directory, links=-moved)
        self._touch(new_directory, links=moved)

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes) -> None:
        if not name.startswith(b"user."):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        node = self._get(inode)
        node.xattrs[name] = value
        self._change(node)

    def removexattr(self, inode: InodeNumber, name: bytes) -> None:
        node = self._get(inode)
        if node.xattrs.pop(name, None) is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        self._change(node)

    def forget(self, inode: InodeNumber) -> None:
        """The kernel has let go: what has no name any more can go now."""
        node = self._inodes.get(inode)
        if node is not None and node.attributes.nlink == 0:
            self._used -= len(node.content) if stat.S_ISREG(node.attributes.mode) else 0
            del self._inodes[inode]
