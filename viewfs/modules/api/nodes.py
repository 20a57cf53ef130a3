"""File systems made of a few objects: directories, files whose content is computed when they are opened, links.

For modules that show information rather than store files. A module of one file needs nothing but `computed_file`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from viewfs.errors import os_error
from viewfs.modules.api import Answer, Attributes, DirectoryEntry, FileSystem, InodeNumber, OpenFile

__all__ = ["ComputedFile", "Directory", "Link", "Node", "NodeFileSystem", "computed_file"]

Content = Callable[[], "bytes | str | Awaitable[bytes | str]"]


class Node:
    """A node of the tree. It is given its permission bits; the type bits are those of its class."""

    type_bits: int = 0

    def __init__(self, permissions: int) -> None:
        self.mode = self.type_bits | permissions


class ComputedFile(Node):
    """A file whose content is what `content` returns when it is opened; each open sees one content from end to end."""

    type_bits = stat.S_IFREG

    def __init__(self, content: Content, permissions: int = 0o444) -> None:
        super().__init__(permissions)
        self.content = content


class Link(Node):
    """A symbolic link."""

    type_bits = stat.S_IFLNK

    def __init__(self, target: str | bytes) -> None:
        super().__init__(0o777)
        self.target = os.fsencode(target)


class Directory(Node):
    """A directory of named nodes. Subclass it and override `children` for one whose content changes."""

    type_bits = stat.S_IFDIR

    def __init__(self, children: Mapping[str, Node] | None = None, permissions: int = 0o555) -> None:
        super().__init__(permissions)
        self._children = dict(children or {})

    def children(self) -> Mapping[str, Node]:
        return self._children


class _Opened(OpenFile):
    """The content at the time of the open. Its length is not known to stat, so the page cache is bypassed."""

    direct_io = True

    def __init__(self, content: bytes | str) -> None:
        self._content = content.encode() if isinstance(content, str) else content

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


class NodeFileSystem(FileSystem):
    """The tree below `top`, which may also be a single file.

    The inode number of a name is computed from its directory and the name, whichever node it stands for at the time: so
    a server that takes over gives the same numbers.
    """

    no_xattrs = True

    def __init__(self, top: Node, *, uid: int | None = None, gid: int | None = None) -> None:
        self._nodes: dict[int, Node] = {self.root: top}
        self._names: dict[InodeNumber, tuple[InodeNumber, str]] = {}
        self._parents: dict[int, InodeNumber] = {self.root: self.root}
        self._uid = os.getuid() if uid is None else uid
        self._gid = os.getgid() if gid is None else gid
        self._made_at = time.time_ns()

    def _node(self, inode: InodeNumber) -> Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise os_error(errno.ESTALE) from None

    def _directory(self, inode: InodeNumber) -> Directory:
        node = self._node(inode)
        if not isinstance(node, Directory):
            raise os_error(errno.ENOTDIR)
        return node

    def _number(self, parent: InodeNumber, name: str, node: Node) -> InodeNumber:
        number = InodeNumber(_hash(b"%d/%s" % (parent, os.fsencode(name))))
        while number <= self.root or self._names.setdefault(number, (parent, name)) != (parent, name):
            number = InodeNumber(_hash(b"%d" % number))
        self._nodes[number] = node
        self._parents[number] = parent
        return number

    def getattr(self, inode: InodeNumber) -> Attributes:
        node = self._node(inode)
        links = 2 if isinstance(node, Directory) else 1
        size = len(node.target) if isinstance(node, Link) else 0
        at = self._made_at
        return Attributes(inode, node.mode, size, links, self._uid, self._gid, 0, at, at, at)

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        text = os.fsdecode(name)
        node = self._directory(directory).children().get(text)
        return None if node is None else self.getattr(self._number(directory, text, node))

    def readdir(self, directory: InodeNumber, start: int) -> Iterable[DirectoryEntry]:
        children = self._directory(directory).children()
        numbers = {".": directory, "..": self._parents[directory]}
        for name, node in children.items():
            numbers[name] = self._number(directory, name, node)
        entries = list(numbers.items())
        for cookie in range(start, len(entries)):
            name, number = entries[cookie]
            yield DirectoryEntry(os.fsencode(name), cookie + 1, self.getattr(number))

    def readlink(self, inode: InodeNumber) -> bytes:
        node = self._node(inode)
        if not isinstance(node, Link):
            raise os_error(errno.EINVAL)
        return node.target

    def open(self, inode: InodeNumber, flags: int) -> Answer[OpenFile | None]:
        node = self._node(inode)
        if not isinstance(node, ComputedFile):
            raise os_error(errno.EISDIR)
        value = node.content()
        return _open_later(value) if isinstance(value, Awaitable) else _Opened(value)


def _hash(data: bytes) -> int:
    """A number of 52 bits, which any program can read."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 12


async def _open_later(promise: Awaitable[bytes | str]) -> OpenFile:
    return _Opened(await promise)


def computed_file(content: Content, permissions: int = 0o444) -> FileSystem:
    """A file system that is a single file: what `content` returns at each open. It is mounted on a file."""
    return NodeFileSystem(ComputedFile(content, permissions))
