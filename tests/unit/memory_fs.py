"""File systems for the tests of the FUSE host: one that never changes, and one in memory that can be written."""

from __future__ import annotations

import errno
import inspect
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from viewfs.modules.api import (
    Answer,
    Attributes,
    DirectoryEntry,
    FileSystem,
    FileSystemStatistics,
    InodeNumber,
    OpenFile,
    WritableFileSystem,
)


def failed(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Still(FileSystem):
    """Immutable: a root with the number 2, as ext has it, and /file, /link in it."""

    root = InodeNumber(2)
    immutable = True
    content = bytes(range(256)) * 40

    def __init__(self) -> None:
        self.closed = False
        self.attributes = {
            2: Attributes(InodeNumber(2), stat.S_IFDIR | 0o755, 4096, 2, mtime_ns=-1),
            11: Attributes(InodeNumber(11), stat.S_IFREG | 0o644, len(self.content), blocks=20),
            12: Attributes(InodeNumber(12), stat.S_IFLNK | 0o777, 4),
        }
        self.names = {b".": 2, b"..": 2, b"file": 11, b"link": 12}

    def getattr(self, inode: InodeNumber) -> Answer[Attributes]:
        if inode not in self.attributes:
            raise failed(errno.ESTALE)
        return self.attributes[inode]

    def lookup(self, directory: InodeNumber, name: bytes) -> Answer[Attributes | None]:
        return self.attributes[self.names[name]] if name in self.names else None

    def readdir(self, directory: InodeNumber, start: int) -> Answer[Iterable[DirectoryEntry]]:
        every = [DirectoryEntry(name, at, self.attributes[ino]) for at, (name, ino) in enumerate(self.names.items(), 1)]
        return every[start:]

    def read(self, inode: InodeNumber, offset: int, size: int) -> Answer[bytes]:
        return self.content[offset : offset + size]

    def readlink(self, inode: InodeNumber) -> Answer[bytes]:
        return b"file"

    def listxattr(self, inode: InodeNumber) -> Answer[Iterable[bytes]]:
        return [b"user.one", b"user.two"]

    def getxattr(self, inode: InodeNumber, name: bytes) -> Answer[bytes | None]:
        return b"value" if name == b"user.one" else None

    def statfs(self) -> Answer[FileSystemStatistics]:
        return FileSystemStatistics(blocks=100)

    def close(self) -> None:
        self.closed = True


@dataclass
class Node:
    attributes: Attributes
    content: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Memory(WritableFileSystem):
    """Everything at once and nothing checked that the kernel checks. `forgotten` is what it was told to forget."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.forgotten: list[int] = []
        self.closed = False
        self._make(stat.S_IFDIR | 0o755, 0, 0)

    def _make(self, mode: int, uid: int, gid: int, rdev: int = 0) -> Node:
        number = InodeNumber(len(self.nodes) + 1)
        self.nodes[number] = Node(Attributes(number, mode, uid=uid, gid=gid, rdev=rdev))
        return self.nodes[number]

    def _node(self, inode: int) -> Node:
        if inode not in self.nodes:
            raise failed(errno.ESTALE)
        return self.nodes[inode]

    def _add(self, directory: int, name: bytes, node: Node) -> Attributes:
        names = self._node(directory).names
        if name in names:
            raise failed(errno.EEXIST)
        names[name] = node.attributes.ino
        return node.attributes

    def _take(self, directory: int, name: bytes) -> int:
        names = self._node(directory).names
        if name not in names:
            raise failed(errno.ENOENT)
        return names.pop(name)

    def getattr(self, inode: InodeNumber) -> Answer[Attributes]:
        return self._node(inode).attributes

    def lookup(self, directory: InodeNumber, name: bytes) -> Answer[Attributes | None]:
        number = self._node(directory).names.get(name)
        return None if number is None else self._node(number).attributes

    def readdir(self, directory: InodeNumber, start: int) -> Answer[Iterable[DirectoryEntry]]:
        numbers = {b".": directory, b"..": InodeNumber(1)} | self._node(directory).names
        every = [
            DirectoryEntry(name, at, self._node(ino).attributes) for at, (name, ino) in enumerate(numbers.items(), 1)
        ]
        return every[start:]

    def read(self, inode: InodeNumber, offset: int, size: int) -> Answer[bytes]:
        return bytes(self._node(inode).content[offset : offset + size])

    def readlink(self, inode: InodeNumber) -> Answer[bytes]:
        return bytes(self._node(inode).content)

    def listxattr(self, inode: InodeNumber) -> Answer[Iterable[bytes]]:
        return list(self._node(inode).xattrs)

    def getxattr(self, inode: InodeNumber, name: bytes) -> Answer[bytes | None]:
        return self._node(inode).xattrs.get(name)

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes) -> Answer[None]:
        self._node(inode).xattrs[name] = value
        return None

    def removexattr(self, inode: InodeNumber, name: bytes) -> Answer[None]:
        if self._node(inode).xattrs.pop(name, None) is None:
            raise failed(errno.ENODATA)
        return None

    def setattr(self, inode: InodeNumber, changes: Mapping[str, int]) -> Answer[Attributes]:
        node = self._node(inode)
        if "size" in changes:
            if changes["size"] > 1 << 20:
                raise failed(errno.EFBIG)
            node.content = node.content[: changes["size"]].ljust(changes["size"], b"\0")
        node.attributes = node.attributes._replace(**changes)  # type: ignore[arg-type]
        return node.attributes

    def create(
        self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0
    ) -> Answer[Attributes]:
        return self._add(directory, name, self._make(mode, uid, gid, rdev))

    def mkdir(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Answer[Attributes]:
        return self._add(directory, name, self._make(stat.S_IFDIR | mode, uid, gid))

    def symlink(self, directory: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Answer[Attributes]:
        node = self._make(stat.S_IFLNK | 0o777, uid, gid)
        node.content += target
        return self._add(directory, name, node)

    def link(self, inode: InodeNumber, directory: InodeNumber, name: bytes) -> Answer[Attributes]:
        return self._add(directory, name, self._node(inode))

    def unlink(self, directory: InodeNumber, name: bytes) -> Answer[None]:
        self._take(directory, name)
        return None

    def rmdir(self, directory: InodeNumber, name: bytes) -> Answer[None]:
        self._take(directory, name)
        return None

    def rename(
        self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes, flags: int
    ) -> Answer[None]:
        if flags & 1 and new_name in self._node(new_directory).names:  # RENAME_NOREPLACE
            raise failed(errno.EEXIST)
        self._node(new_directory).names[new_name] = self._take(directory, name)
        return None

    def open(self, inode: InodeNumber, flags: int) -> Answer[OpenFile | None]:
        return None

    def write(self, inode: InodeNumber, offset: int, data: bytes) -> Answer[int]:
        if offset + len(data) > 1 << 20:
            raise failed(errno.EFBIG)
        content = self._node(inode).content
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        return len(data)

    def forget(self, inode: InodeNumber) -> Answer[None]:
        self.forgotten.append(inode)
        return None

    def close(self) -> None:
        self.closed = True


def with_async_methods(kind: type[Any]) -> type[Any]:
    """The same file system with every method that may be one an `async def` that does wait."""

    def later(method: Any) -> Any:
        @wraps(method)
        async def wait_first(*arguments: Any) -> Any:
            import trio

            await trio.lowlevel.checkpoint()
            return method(*arguments)

        return wait_first

    methods = {name: later(method) for name, method in inspect.getmembers(kind, inspect.isfunction) if name[0] != "_"}
    for name in ("close", "keeps"):
        methods.pop(name, None)
    return type(f"Async{kind.__name__}", (kind,), methods)
