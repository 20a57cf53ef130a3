"""Copying files from one tree to another with all that belongs to them: holes, modes, times, attributes, links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from viewfs.cow.compare.outside import ACL_PREFIX, store
from viewfs.cow.compare.trees import Entry, Tree, acl_of, data_extents, join, split
from viewfs.linux.files import chmod_at
from viewfs.linux.ids import overflow_id
from viewfs.paths import is_at_or_below

__all__ = [
    "STRANGERS",
    "TreeCopier",
    "copy_content",
    "copy_node",
    "decode_attributes",
    "encode_attributes",
    "make_node",
    "remove_tree",
    "set_acls",
    "set_attributes",
]

_CHUNK = 8 << 20
#: Why a file can't be given its access control list.
STRANGERS = "its access control list names somebody who has no number in this view"
#: Errors by which copy_file_range(2) says that the kernel does not copy between the two file systems.
_BY_HAND = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EPERM, errno.EIO)


def copy_content(source: int, target: int, size: int) -> None:
    """Give the empty open file `target` the `size` bytes of `source`. Holes stay holes. Raises OSError."""
    by_hand = False
    for begin, end in data_extents(source, size):
        offset = begin
        while offset < end:
            copied = 0
            if not by_hand:
                try:
                    copied = os.copy_file_range(source, target, min(_CHUNK, end - offset), offset, offset)
                except OSError as error:
                    if error.errno not in _BY_HAND:
                        raise
                by_hand = copied == 0
            if not copied:
                data = os.pread(source, min(_CHUNK, end - offset), offset)
                if not data:
                    break  # the source is shorter by now
                copied = os.pwrite(target, data, offset)
            offset += copied
    os.ftruncate(target, size)


def make_node(directory: int, name: bytes, entry: Entry) -> None:
    """Make what `entry` describes, anything but a regular file, as `name` in the open `directory`. Raises OSError."""
    if stat.S_ISLNK(entry.mode):
        os.symlink(entry.target, name, dir_fd=directory)
    elif stat.S_ISDIR(entry.mode):
        os.mkdir(name, 0o700, dir_fd=directory)
    else:
        os.mknod(name, entry.kind | 0o600, entry.rdev, dir_fd=directory)


def set_attributes(directory: int, name: bytes, entry: Entry) -> None:
    """Give `name` in the open `directory` the mode, owner, attributes and times of `entry`. Raises OSError.

    If this user may not give the file to that owner or group, it keeps both.
    """
    there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    # A file whose owner is not mapped here is shown as the user's in the view: this is no change of owner.
    uid = -1 if there.st_uid in (entry.uid, overflow_id("uid")) else entry.uid
    gid = -1 if there.st_gid in (entry.gid, overflow_id("gid")) else entry.gid
    if (uid, gid) != (-1, -1):
        with contextlib.suppress(OSError):
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
    path = b"/proc/self/fd/%d/%s" % (directory, name)
    if not stat.S_ISLNK(entry.mode):
        # Access control lists first: if they can't be set, the mode is left as it is. They set the permission bits too.
        set_acls(path, entry)
        chmod_at(directory, name, stat.S_IMODE(entry.mode))
        _set_xattrs(path, entry)
    os.utime(name, ns=(entry.atime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)


def _listed(path: bytes) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []


def set_acls(path: bytes, entry: Entry) -> None:
    """Give what is at `path` the access control lists of `entry`, unless they are unknown (`Entry.has_acls`).

    Raises OSError: EPERM if a list names somebody whose id is not mapped here, and no process outside could set it.
    """
    if not entry.has_acls:
        return
    wanted = {key: value for key, value in entry.xattrs if key.startswith(ACL_PREFIX)}
    there = [key for key in _listed(path) if key.startswith(ACL_PREFIX)]
    for key in there:
        if key not in wanted:
            os.removexattr(path, key, follow_symlinks=False)
    for key, value in wanted.items():
        if key in there and acl_of(path, key) == value:
            continue
        try:
            os.setxattr(path, key, value, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if not store(path, key, value):
                # Without the list others could do more than they may now, or less.
                raise OSError(errno.EPERM, STRANGERS) from error


def _set_xattrs(path: bytes, entry: Entry) -> None:
    wanted = {key: value for key, value in entry.xattrs if not key.startswith(ACL_PREFIX)}
    for key in _listed(path):
        if key.startswith("user.") and key not in wanted:
            os.removexattr(path, key, follow_symlinks=False)
    for key, value in wanted.items():
        os.setxattr(path, key, value, follow_symlinks=False)


def remove_tree(directory: int, name: bytes) -> None:
    """Remove `name` in the open `directory` and all below it, if it is there. Raises OSError."""
    try:
        os.unlink(name, dir_fd=directory)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    open_directories = [(directory, name, _open_for_removal(directory, name))]
    try:
        while open_directories:
            parent, here, fd = open_directories[-1]
            inner = _remove_files(fd)
            if inner is not None:
                open_directories.append((fd, inner, _open_for_removal(fd, inner)))
                continue
            os.rmdir(here, dir_fd=parent)
            open_directories.pop()
            os.close(fd)
    finally:
        for _parent, _name, fd in open_directories:
            os.close(fd)


def _open_for_removal(directory: int, name: bytes) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if status.st_mode & 0o700 != 0o700 and stat.S_ISDIR(status.st_mode):
            chmod_at(directory, name, 0o700)
        return os.open(name, flags, dir_fd=directory)
    except PermissionError:
        return os.open(name, flags, dir_fd=directory)


def _remove_files(fd: int) -> bytes | None:
    """Remove the entries of an open directory up to the first that is a directory itself: its name, or None."""
    for name in map(os.fsencode, os.listdir(fd)):
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            return name
    return None


def encode_attributes(entry: Entry) -> dict[str, Any]:
    """What `set_attributes` needs of an entry, as JSON takes it."""
    return {
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "atime_ns": entry.atime_ns,
        "mtime_ns": entry.mtime_ns,
        "xattrs": [[key, value.hex()] for key, value in entry.xattrs],
        "has_acls": entry.has_acls,
    }


def decode_attributes(value: dict[str, Any]) -> Entry:
    """The inverse of `encode_attributes`; what it leaves out is zero."""
    return Entry(
        mode=value["mode"],
        uid=value["uid"],
        gid=value["gid"],
        size=0,
        rdev=0,
        nlink=1,
        identity=(0, 0),
        atime_ns=value["atime_ns"],
        mtime_ns=value["mtime_ns"],
        ctime_ns=0,
        xattrs=tuple((key, bytes.fromhex(data)) for key, data in value["xattrs"]),
        has_acls=value["has_acls"],
    )


class TreeCopier:
    """Copies parts of one tree into another. Hard links to one file become hard links to one file."""

    def __init__(
        self,
        source: Tree,
        target: Tree,
        *,
        links: dict[tuple[int, int], bytes] | None = None,
        sync: bool = False,
        copied: Callable[[bytes, Entry], None] = lambda _path, _entry: None,
    ) -> None:
        """`links`: the paths of files that are in `target` already, by their identity in `source`.

        `sync`: each file is on the disk before the next is begun. `copied` is told of each file.
        """
        self._source, self._target = source, target
        self._links = {} if links is None else links
        self._sync = sync
        self._copied = copied
        #: Directories of `target` that were written to.
        self.directories: set[bytes] = set()

    def copy(self, path: bytes, place: bytes, wanted: Callable[[bytes], bool] = lambda _path: True) -> None:
        """Copy `path` and what is `wanted` below it to `place`, where nothing is. Raises OSError."""
        filled: list[tuple[bytes, Entry]] = []
        for here, entry in self._source.walk(path):
            if not wanted(here):
                continue
            below = here[len(path) :].lstrip(b"/")
            there = join(place, below) if below else place
            self._copy_one(here, entry, there)
            if entry.is_directory:
                filled.append((there, entry))
        for there, entry in reversed(filled):
            directory, name = split(there)
            with self._target.directory(directory) as parent:
                set_attributes(parent, name, entry)

    def removed(self, place: bytes) -> None:
        """Note that what was copied to `place` is there no more."""
        for identity in [key for key, there in self._links.items() if is_at_or_below(there, place)]:
            del self._links[identity]

    def renamed(self, place: bytes, path: bytes) -> None:
        """Note that what was copied to `place` has been renamed to `path`."""
        for identity, there in self._links.items():
            if is_at_or_below(there, place):
                self._links[identity] = path + there[len(place) :]

    def _copy_one(self, path: bytes, entry: Entry, place: bytes) -> None:
        directory, name = split(place)
        self.directories.add(directory)
        with self._target.directory(directory) as parent:
            other = None if entry.is_directory else self._links.get(entry.identity)
            if other is not None and other != place:
                with self._target.directory(split(other)[0]) as there:
                    os.link(split(other)[1], name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
                return
            copy_node(self._source, path, entry, parent, name, sync=self._sync)
            if entry.nlink > 1 and not entry.is_directory:
                self._links[entry.identity] = place
        if entry.is_file:
            self._copied(path, entry)


def copy_node(source: Tree, path: bytes, entry: Entry, directory: int, name: bytes, *, sync: bool = False) -> None:
    """Copy what `entry` at `path` of `source` is to `name` in the open `directory`; a directory is made empty.

    It is an error if the name exists. The caller sets the attributes of a directory once it is full. Raises OSError.
    """
    if not entry.is_file:
        make_node(directory, name, entry)
        if not entry.is_directory:
            set_attributes(directory, name, entry)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # An empty file need not be opened, and perhaps may not be read: a lock file of somebody else.
    content = source.open(path) if entry.size else -1
    try:
        target = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            if entry.size:
                copy_content(content, target, os.fstat(content).st_size)
            set_attributes(directory, name, entry)
            if sync:
                os.fsync(target)
        finally:
            os.close(target)
    finally:
        if content != -1:
            os.close(content)
