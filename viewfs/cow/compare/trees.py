"""Reading a directory tree through a descriptor of its root, whatever is done to it meanwhile.

Paths are bytes relative to the root, without a slash at the beginning; the root itself is b"". Nothing leads out of a
tree: no symbolic link is followed, not even one that a program puts in the place of a directory at the wrong moment
(openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS). What is mounted in it does not belong to it either.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from viewfs.cow.compare.outside import ACL_PREFIX, fetch, has_strangers
from viewfs.linux.files import Resolve, openat2

__all__ = ["GONE", "Entry", "Tree", "acl_of", "data_extents", "join", "read_entry", "split"]

_INSIDE = Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_XDEV
#: PATH_MAX of linux/limits.h, its zero included.
_PATH_MAX = 4096
#: Errors which say that a part of the path does not exist or is no directory; a symbolic link is none either.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
#: Attributes that belong to the file; those of security modules belong to the machine.
_KEPT_XATTRS = ("user.", "system.posix_acl_")


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and name."""
    directory, _slash, name = path.rpartition(b"/")
    return directory, name


class Entry(NamedTuple):
    """All that a name stands for, but for content. Times are in nanoseconds, sizes in bytes."""

    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    nlink: int
    #: Device and inode number: names with the same identity are hard links to one file.
    identity: tuple[int, int]
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    target: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    #: False if what shows the file knows no access control lists, so that `xattrs` can't have any.
    has_acls: bool = True

    def same_xattrs(self, other: Entry) -> bool:
        """Are the attributes the same? Access control lists count only if both entries can have them."""
        if self.has_acls and other.has_acls:
            return self.xattrs == other.xattrs
        return self.without_acls() == other.without_acls()

    def without_acls(self) -> list[tuple[str, bytes]]:
        """The attributes that are no access control lists."""
        return [(key, value) for key, value in self.xattrs if not key.startswith(ACL_PREFIX)]

    @property
    def kind(self) -> int:
        """The type bits of the mode."""
        return stat.S_IFMT(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class Tree:
    """A tree, by a descriptor of its root that stays the caller's."""

    def __init__(
        self, root: int, links: Tree | None = None, *, has_acls: bool = True, has_secrets: bool = False
    ) -> None:
        """`links`, the upper directory of an overlay, knows which names are one file.

        (An overlay without an index gives the names of a file different inode numbers once it has been copied up.)
        `has_acls`: see `Entry`. `has_secrets`: a directory that this user may not look into counts as empty, for nobody
        here can tell what is in it; otherwise it is an error.
        """
        self._hidden = (*GONE, errno.EACCES) if has_secrets else GONE
        self.root = root
        self._links = links
        self.has_acls = has_acls

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> int:
        """A descriptor of what `path` stands for. Raises OSError."""
        if len(path) < _PATH_MAX:
            return openat2(self.root, path or b".", flags | os.O_NOFOLLOW, _INSIDE)
        # The kernel takes no longer path at once, but trees can be deeper.
        here, way = self.root, path
        try:
            while len(way) >= _PATH_MAX:
                head, _slash, _rest = way[:_PATH_MAX].rpartition(b"/")
                way = way[len(head) + 1 :]
                there = openat2(here, head, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, _INSIDE)
                if here != self.root:
                    os.close(here)
                here = there
            return openat2(here, way, flags | os.O_NOFOLLOW, _INSIDE)
        finally:
            if here != self.root:
                os.close(here)

    def open_directory(self, path: bytes) -> int:
        return self.open(path, os.O_RDONLY | os.O_DIRECTORY)

    @contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        """A directory, open inside the block."""
        fd = self.open_directory(path)
        try:
            yield fd
        finally:
            os.close(fd)

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory, sorted; none where there is no such directory."""
        try:
            with self.directory(path) as fd:
                found = sorted(map(os.fsencode, os.listdir(fd)))
        except OSError as error:
            if error.errno in self._hidden:
                return []
            raise
        if self._links is not None:
            # An overlay whose lower directory was removed outside lists nothing, and has its own files all the same.
            unlisted = set(self._links.names(path)).difference(found)
            found += [name for name in unlisted if self.entry(join(path, name)) is not None]
            found.sort()
        return found

    def entry(self, path: bytes) -> Entry | None:
        """What is at `path`; None where nothing is. Raises OSError."""
        directory, name = split(path)
        if not path:
            return self._made(_made_of(os.stat(self.root), b"", b"/proc/self/fd/%d" % self.root))
        try:
            parent = self.open(directory, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in self._hidden:
                return None
            raise
        try:
            entry = read_entry(parent, name)
        except PermissionError as error:
            if error.errno in self._hidden:
                return None
            raise
        finally:
            os.close(parent)
        if entry is not None and entry.nlink > 1 and not entry.is_directory and self._links is not None:
            real = self._links.entry(path)
            if real is not None and real.kind == entry.kind:
                entry = entry._replace(identity=real.identity)
        return None if entry is None else self._made(entry)

    def _made(self, entry: Entry) -> Entry:
        return entry if self.has_acls else entry._replace(has_acls=False)

    def status(self, path: bytes) -> os.stat_result | None:
        """What stat(2) tells of `path`; None where nothing is. Raises OSError."""
        directory, name = split(path)
        try:
            if not path:
                return os.stat(self.root)
            parent = self.open(directory, os.O_PATH | os.O_DIRECTORY)
            try:
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(parent)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def walk(self, path: bytes) -> Iterator[tuple[bytes, Entry]]:
        """`path` and all below it, a directory before what it holds."""
        waiting = [path]
        while waiting:
            here = waiting.pop()
            entry = self.entry(here)
            if entry is None:
                continue
            yield here, entry
            if entry.is_directory:
                waiting += [join(here, name) for name in reversed(self.names(here))]


def read_entry(directory: int, name: bytes) -> Entry | None:
    """What `name` in the open `directory` stands for. Raises OSError."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else b""
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    return _made_of(status, target, b"/proc/self/fd/%d/%s" % (directory, name))


def _made_of(status: os.stat_result, target: bytes, path: bytes) -> Entry:
    return Entry(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
        rdev=status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0,
        nlink=status.st_nlink,
        identity=(status.st_dev, status.st_ino),
        atime_ns=status.st_atime_ns,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        target=target,
        xattrs=_xattrs(path, follow=path.count(b"/") == 4),
    )


def _xattrs(path: bytes, *, follow: bool) -> tuple[tuple[str, bytes], ...]:
    """The attributes that are kept. `follow`: the path is that of a descriptor itself."""
    try:
        found = [
            (key, os.getxattr(path, key, follow_symlinks=follow))
            for key in sorted(os.listxattr(path, follow_symlinks=follow))
            if key.startswith(_KEPT_XATTRS)
        ]
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA, *GONE):
            return ()
        raise
    return tuple((key, _whole(path, key, value, follow=follow)) for key, value in found)


def acl_of(path: bytes, key: str) -> bytes:
    """An access control list, with ids as they are outside if that can be had. Raises OSError."""
    return _whole(path, key, os.getxattr(path, key, follow_symlinks=False), follow=False)


def _whole(path: bytes, key: str, value: bytes, *, follow: bool) -> bytes:
    if not key.startswith(ACL_PREFIX) or not has_strangers(value):
        return value
    return fetch(path + b"/." if follow else path, key) or value


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where an open file has data, as offset and end: what lies between is holes (lseek(2), SEEK_DATA)."""
    position = 0
    while position < size:
        try:
            begin = os.lseek(fd, position, os.SEEK_DATA)
            end = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            if error.errno != errno.EINVAL:
                raise
            begin, end = position, size  # a file system that knows no holes
        if begin >= size:
            return
        yield begin, end
        position = end
