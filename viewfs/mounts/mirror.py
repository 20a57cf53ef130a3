"""A directory of the host as a file system of the view with additional names: mount points that nobody else sees.

Every operation is carried out on the directory itself, so that both sides see at once which names are added, removed
and replaced, and data are written to the host's files. The server has a descriptor (O_PATH) of each file and
distinguishes files by device and inode number, so that a file that replaced another is a different one.

The directories in it are not served: they are bind-mounted over their names, and have native speed. A mount point can't
be removed (EBUSY). But the kernel unmounts it when a look-up returns another inode for its name (d_invalidate in the
kernel's fs/dcache.c). So an empty directory is given another number, is served from then on, and can be removed.

A server that takes over reopens files by directory and name. It does not find files that have been removed or replaced
meanwhile: programs that have them open get ESTALE.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from viewfs.errors import os_error
from viewfs.linux.files import Rename, fallocate, pwrite_at, renameat2
from viewfs.linux.ids import known_ids
from viewfs.modules.api import (
    ROOT_INODE,
    Attributes,
    DirectoryEntry,
    FileSystemStatistics,
    InodeNumber,
)
from viewfs.modules.api.lasting import LastingFile, LastingFileSystem, LostFile

__all__ = ["MIRROR_SOURCE", "MirrorFile", "MirrorFileSystem", "Node"]

#: What the mount table shows as the source.
MIRROR_SOURCE = "viewfs-mirror"
#: Flags of open(2) that are passed on. (With O_APPEND, appending goes to the actual end of the file; the size that
#: FUSE knows may be old.)
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
_CLOSED = -2
#: What is recorded for a successor. For a file of the host: device and inode, directory, and then its name; for one of
#: the view's own names: zeros, and then the name; for an open file: its node and the flags of its open.
_NODE = struct.Struct("<QQQ")
_OPENED = struct.Struct("<QI")
#: The record with this number has the names over which something is bound.
_NAMES = InodeNumber((1 << 62) - 1)


@dataclass
class Node:
    """An inode that the kernel knows: a file of the host, or one of the view's own names (`fd` is -1)."""

    number: InodeNumber
    #: The descriptor. It is closed when the file has not been used for long, and reopened by the file's place.
    fd: int
    key: tuple[int, int] | bytes
    #: Directory and name.
    place: tuple[InodeNumber, bytes] | None = None
    #: How many times programs have it open.
    opened: int = 0


class MirrorFile(LastingFile):
    """An open file of the host."""

    def __init__(self, fd: int, node: Node, flags: int) -> None:
        self._fd, self._node, self._flags = fd, node, flags & ~os.O_TRUNC
        node.opened += 1

    def record(self) -> bytes:
        return _OPENED.pack(self._node.number, self._flags)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def write(self, offset: int, data: bytes) -> int:
        return os.pwrite(self._fd, data, offset)

    def write_at(self, offset: int, data: bytes) -> int:
        return pwrite_at(self._fd, data, offset) if self._flags & os.O_APPEND else self.write(offset, data)

    def lseek(self, offset: int, whence: int) -> int:
        return os.lseek(self._fd, offset, whence)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        fallocate(self._fd, mode, offset, length)

    def fsync(self, *, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self._fd)

    def release(self) -> None:
        os.close(self._fd)
        self._node.opened -= 1


class MirrorFileSystem(LastingFileSystem):
    """The open directory `top`, with the additional names in `own`: directories if the value is true, else files."""

    #: Descriptors of files that are kept open, at most, besides those of files that programs have open.
    kept_open = 1000

    def __init__(self, top: int, own: Mapping[bytes, bool], bound: Collection[bytes] = ()) -> None:
        """`own` may change. `bound`: names over which the host's directory of that name is bind-mounted."""
        self._own = own
        self._bound = set(bound)
        self._made_ns = time.time_ns()
        self._uids, self._gids = known_ids("uid"), known_ids("gid")
        self._next = int(ROOT_INODE) + 1
        status = os.fstat(top)
        root = Node(ROOT_INODE, top, (status.st_dev, status.st_ino))
        self._nodes: dict[InodeNumber, Node] = {ROOT_INODE: root}
        self._known: dict[tuple[int, int] | bytes, Node] = {root.key: root}
        #: The nodes with an open descriptor, except the root, least recently used first.
        self._open: OrderedDict[InodeNumber, Node] = OrderedDict()
        self._tell: Callable[[InodeNumber, bytes | None], None] = lambda inode, what: None
        os.umask(0)

    # -- taking over

    def restore(
        self, known: Mapping[InodeNumber, bytes], remember: Callable[[InodeNumber, bytes | None], None]
    ) -> None:
        for number, data in known.items():
            if number == _NAMES:
                self._bound = set(filter(None, data.split(b"\0")))
                continue
            device, inode, directory = _NODE.unpack_from(data)
            name = data[_NODE.size :]
            key: tuple[int, int] | bytes = (device, inode) if inode else name
            node = Node(number, _CLOSED if inode else -1, key, (InodeNumber(directory), name) if inode else None)
            self._nodes[number] = self._known[key] = node
        self._next = max((n for n in known if n != _NAMES), default=int(ROOT_INODE)) + 1
        self._tell = remember

    def _note(self, node: Node) -> None:
        if isinstance(node.key, bytes):
            self._tell(node.number, _NODE.pack(0, 0, 0) + node.key)
        elif node.place is not None:
            self._tell(node.number, _NODE.pack(*node.key, node.place[0]) + node.place[1])

    def reopen(self, record: bytes) -> LastingFile:
        number, flags = _OPENED.unpack(record)
        try:
            return self._open_node(self._node(InodeNumber(number)), flags)
        except OSError:
            return LostFile(record)

    # -- nodes

    def _node(self, inode: InodeNumber) -> Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise os_error(errno.ESTALE) from None

    def _host(self, inode: InodeNumber) -> int:
        """The descriptor of a file of the host. Raises EROFS for the view's own names, which are empty."""
        node = self._node(inode)
        if node.fd == -1:
            raise os_error(errno.EROFS)
        if node.fd == _CLOSED:
            self._reopen(node)
        elif inode != ROOT_INODE:
            self._open.move_to_end(inode)
        return node.fd

    def _reopen(self, node: Node) -> None:
        """Raises ESTALE if another file has its place now, or none: the kernel then looks the name up again."""
        assert node.place is not None
        directory, name = node.place
        try:
            fd = self._open_name(directory, name)
        except FileNotFoundError:
            raise os_error(errno.ESTALE) from None
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != node.key:
            os.close(fd)
            raise os_error(errno.ESTALE)
        self._keep_open(node, fd)

    def _open_name(self, directory: InodeNumber, name: bytes) -> int:
        """A descriptor (O_PATH) of what the host has by that name. Raises OSError."""
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._host(directory))

    def _keep_open(self, node: Node, fd: int) -> None:
        node.fd = fd
        self._open[node.number] = node
        if len(self._open) > self.kept_open:
            oldest = next((one for one in self._open.values() if not one.opened and one is not node), None)
            if oldest is not None:
                del self._open[oldest.number]
                os.close(oldest.fd)
                oldest.fd = _CLOSED

    def _place(self, inode: InodeNumber) -> str:
        return f"/proc/self/fd/{self._host(inode)}"

    def _is_own(self, directory: InodeNumber, name: bytes) -> bool:
        return directory == ROOT_INODE and name in self._own

    def _check_not_own(self, directory: InodeNumber, name: bytes, number: int = errno.EBUSY) -> None:
        if self._is_own(directory, name):
            raise os_error(number)

    def _remember(self, key: tuple[int, int] | bytes, fd: int, place: tuple[InodeNumber, bytes] | None) -> Node:
        node = self._known.get(key)
        if node is None:
            node = Node(InodeNumber(self._next), fd if fd == -1 else _CLOSED, key)
            self._next += 1
            self._nodes[node.number] = self._known[key] = node
        if node.number != ROOT_INODE and (node.place != place or place is None):
            node.place = place
            self._note(node)
        if node.fd == _CLOSED:
            self._keep_open(node, fd)
        elif fd != -1:
            os.close(fd)
        return node

    def _find(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        if self._is_own(directory, name):
            return self._own_attributes(self._remember(name, -1, None))
        if self._node(directory).fd == -1:
            return None
        try:
            fd = self._open_name(directory, name)
        except FileNotFoundError:
            return None
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino
        if directory == ROOT_INODE and name in self._bound and _is_empty(fd):
            self._bound.discard(name)
            self._tell(_NAMES, b"\0".join(self._bound))
            self._known.pop(key, None)
        return self._attributes(self._remember(key, fd, (directory, name)), status)

    def _own_attributes(self, node: Node) -> Attributes:
        assert isinstance(node.key, bytes)
        mode = stat.S_IFDIR | 0o755 if self._own.get(node.key, True) else stat.S_IFREG | 0o444
        times = (self._made_ns,) * 3
        return Attributes(node.number, mode, 0, 1, os.getuid(), os.getgid(), 0, *times)

    def _attributes(self, node: Node, status: os.stat_result) -> Attributes:
        """Ids that have no mapping here are shown as the user's, because the kernel lets nobody write to files with
        unmapped ids. The host decides who may."""
        return Attributes(
            node.number,
            status.st_mode,
            status.st_size,
            status.st_nlink,
            status.st_uid if status.st_uid in self._uids else os.getuid(),
            status.st_gid if status.st_gid in self._gids else os.getgid(),
            status.st_rdev,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_blocks,
            status.st_blksize,
            status.st_ino,
        )

    # -- reading

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        return self._find(directory, name)

    def getattr(self, inode: InodeNumber) -> Attributes:
        node = self._node(inode)
        return self._own_attributes(node) if node.fd == -1 else self._attributes(node, os.fstat(self._host(inode)))

    def readdir(self, directory: InodeNumber, start: int) -> Iterator[DirectoryEntry]:
        node = self._node(directory)
        names = {os.fsencode(name) for name in os.listdir(self._place(directory))} if node.fd != -1 else set()
        if directory == ROOT_INODE:
            names |= set(self._own)
        # The cookie of a name depends on the name alone, so it stays the same when other names are added or removed.
        for cookie, name in sorted((1 + (hash(name) & 0x3FFFFFFFFFFFFFFF), name) for name in names):
            if cookie > start:
                try:
                    found = self._find(directory, name)
                except OSError:
                    unknown = Attributes(InodeNumber(cookie), stat.S_IFREG)
                    yield DirectoryEntry(name, cookie, unknown, is_known=False)
                    continue
                if found is not None:
                    yield DirectoryEntry(name, cookie, found)

    def readlink(self, inode: InodeNumber) -> bytes:
        return os.readlink(b"", dir_fd=self._host(inode))

    def statfs(self) -> FileSystemStatistics:
        found = os.fstatvfs(self._host(ROOT_INODE))
        return FileSystemStatistics(
            found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_namemax
        )

    def open(self, inode: InodeNumber, flags: int) -> LastingFile:
        return self._open_node(self._node(inode), flags & _KEPT_FLAGS)

    def _open_node(self, node: Node, flags: int) -> LastingFile:
        if node.fd == -1:
            return self._handle(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), node, flags)
        accessed = flags
        if accessed & os.O_ACCMODE == os.O_WRONLY:
            accessed = accessed & ~os.O_ACCMODE | os.O_RDWR  # the kernel reads a page before it changes a part of it
        place = self._place(node.number)
        try:
            return self._handle(os.open(place, accessed | os.O_NONBLOCK | os.O_CLOEXEC), node, flags)
        except PermissionError:
            return self._handle(os.open(place, flags | os.O_NONBLOCK | os.O_CLOEXEC), node, flags)

    def _handle(self, fd: int, node: Node, flags: int) -> MirrorFile:
        return MirrorFile(fd, node, flags)

    # -- changing

    def setattr(self, inode: InodeNumber, changes: Mapping[str, int]) -> Attributes:
        fd, place = self._host(inode), self._place(inode)
        status = os.fstat(fd)
        if "uid" in changes or "gid" in changes:
            os.chown(place, changes.get("uid", -1), changes.get("gid", -1))
        if "mode" in changes and not stat.S_ISLNK(status.st_mode):
            os.chmod(place, stat.S_IMODE(changes["mode"]))
        if "size" in changes:
            os.truncate(place, changes["size"])
        if "atime_ns" in changes or "mtime_ns" in changes:
            times = changes.get("atime_ns", status.st_atime_ns), changes.get("mtime_ns", status.st_mtime_ns)
            os.utime(place, ns=times)
        return self.getattr(inode)

    def _made(self, directory: InodeNumber, name: bytes) -> Attributes:
        found = self._find(directory, name)
        if found is None:
            raise os_error(errno.EIO)
        return found

    def create(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        self._check_not_own(directory, name, errno.EEXIST)
        os.mknod(name, mode, rdev, dir_fd=self._host(directory))
        return self._made(directory, name)

    def tmpfile(self, directory: InodeNumber, mode: int, uid: int, gid: int) -> Attributes:
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        fd = os.open(".", flags, stat.S_IMODE(mode), dir_fd=self._host(directory))
        status = os.fstat(fd)
        return self._attributes(self._remember((status.st_dev, status.st_ino), fd, None), status)

    def mkdir(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        self._check_not_own(directory, name, errno.EEXIST)
        os.mkdir(name, stat.S_IMODE(mode), dir_fd=self._host(directory))
        return self._made(directory, name)

    def symlink(self, directory: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        self._check_not_own(directory, name, errno.EEXIST)
        os.symlink(target, name, dir_fd=self._host(directory))
        return self._made(directory, name)

    def link(self, inode: InodeNumber, directory: InodeNumber, name: bytes) -> Attributes:
        self._check_not_own(directory, name, errno.EEXIST)
        os.link(self._place(inode), name, dst_dir_fd=self._host(directory), follow_symlinks=True)
        return self._made(directory, name)

    def unlink(self, directory: InodeNumber, name: bytes) -> None:
        self._check_not_own(directory, name)
        os.unlink(name, dir_fd=self._host(directory))

    def rmdir(self, directory: InodeNumber, name: bytes) -> None:
        self._check_not_own(directory, name)
        os.rmdir(name, dir_fd=self._host(directory))

    def rename(
        self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        self._check_not_own(directory, name)
        self._check_not_own(new_directory, new_name)
        renameat2(self._host(directory), name, self._host(new_directory), new_name, Rename(flags))
        self._moved(new_directory, new_name)
        if flags & Rename.EXCHANGE:
            self._moved(directory, name)

    def _moved(self, directory: InodeNumber, name: bytes) -> None:
        """Record the new place of the file that was renamed to `name`."""
        try:
            status = os.stat(name, dir_fd=self._host(directory), follow_symlinks=False)
        except OSError:
            return
        node = self._known.get((status.st_dev, status.st_ino))
        if node is not None:
            node.place = directory, name
            self._note(node)

    def fsyncdir(self, directory: InodeNumber) -> None:
        fd = os.open(self._place(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # -- extended attributes

    def listxattr(self, inode: InodeNumber) -> Iterable[bytes]:
        if self._node(inode).fd == -1 or stat.S_ISLNK(os.fstat(self._host(inode)).st_mode):
            return []
        names = (os.fsencode(name) for name in os.listxattr(self._place(inode)))
        return [name for name in names if name.startswith(b"user.")]

    def getxattr(self, inode: InodeNumber, name: bytes) -> bytes | None:
        if not name.startswith(b"user.") or self._node(inode).fd == -1:
            return None
        try:
            return os.getxattr(self._place(inode), name)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.ELOOP):
                return None
            raise

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes) -> None:
        if not name.startswith(b"user."):
            raise os_error(errno.ENOTSUP)
        os.setxattr(self._place(inode), name, value)

    def removexattr(self, inode: InodeNumber, name: bytes) -> None:
        os.removexattr(self._place(inode), name)

    def forget(self, inode: InodeNumber) -> None:
        node = self._nodes.get(inode)
        if node is not None and node.number != ROOT_INODE:
            del self._nodes[inode]
            if self._known.get(node.key) is node:
                del self._known[node.key]
            if node.fd >= 0:
                del self._open[inode]
                os.close(node.fd)
            self._tell(inode, None)


def _is_empty(directory: int) -> bool:
    try:
        with os.scandir(f"/proc/self/fd/{directory}") as entries:
            return next(entries, None) is None
    except OSError:
        return False
