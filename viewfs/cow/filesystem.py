"""Copy-on-write as a file system of our own, where the kernel makes no overlay: the same layers, the same rules.

The upper directory is one that overlayfs would understand (Documentation/filesystems/overlayfs.rst): whiteouts are
character devices 0/0, a directory that hides the lower one has `user.overlay.opaque`, a file that was copied up
`user.overlay.origin`. So all that looks at layers needs to know of one format only. As in the kernel's, a directory
that is in the lower tree can't be renamed (EXDEV), and a lower file with several names is copied up by one of them.

What it does better: files of owners that the user namespace has no number for are shown as the user's, and so can be
written. What it does worse: every call is a round trip to a Python process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping

from viewfs.cow.copying import copy_node, remove_tree
from viewfs.cow.merged import KEPT_SECONDS, MergedTree
from viewfs.cow.nodes import Handle, Node, failed, make_whiteout
from viewfs.cow.trees import Tree, join
from viewfs.modules.api import (
    Attributes,
    DirectoryEntry,
    FileSystemStatistics,
    Identities,
    InodeNumber,
    WritableFileSystem,
)
from viewfs.mounts.overlay import OPAQUE, ORIGIN, PRIVATE

__all__ = ["CowFileSystem"]

_NOREPLACE = 1
#: The cookie of “..”.
_DOTS = 2
_TEMPORARY = b"copying"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class CowFileSystem(WritableFileSystem):
    """`lower` with the changes that are in `upper`, which takes those to come."""

    cache_seconds = KEPT_SECONDS

    def __init__(self, lower: int, upper: int, work: int | None, identities: Identities) -> None:
        """Descriptors of the directories, which become this object's. `work` is None where nothing can be written."""
        self._tree = MergedTree(Tree(lower), Tree(upper), identities)
        self._lower, self._upper, self._work = self._tree.lower, self._tree.upper, work
        os.umask(0)

    # -- reading

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        return self._tree.look_up(self._tree.node(directory), name)

    def getattr(self, inode: InodeNumber) -> Attributes:
        node = self._tree.node(inode)
        if node.is_gone:
            if not node.handles:
                raise failed(errno.ESTALE)
            handle = node.handles[0]
            return self._tree.attributes(node, os.fstat(handle.fd), is_upper=handle.is_upper)
        status, is_upper = self._tree.found(node)
        return self._tree.attributes(node, status, is_upper=is_upper)

    def keeps(self, inode: InodeNumber) -> bool:
        return self._tree.node(inode).is_own

    def readdir(self, directory: InodeNumber, start: int) -> Iterator[DirectoryEntry]:
        node = self._tree.node(directory)
        if start < _DOTS:
            own = self.getattr(directory)
            above = own if node.parent is None else self.getattr(node.parent.number)
            for cookie, name, attributes in ((1, b".", own), (_DOTS, b"..", above)):
                if start < cookie:
                    yield DirectoryEntry(name, cookie, attributes)
        yield from self._tree.list(node, start)

    def readlink(self, inode: InodeNumber) -> bytes:
        node = self._tree.node(inode)
        tree = self._upper if self._tree.found(node)[1] else self._lower
        with _parent(tree, node.path) as (fd, name):
            return os.readlink(name, dir_fd=fd)

    def statfs(self) -> FileSystemStatistics:
        found = os.fstatvfs(self._upper.root)
        return FileSystemStatistics(
            found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_namemax
        )

    # -- copying up

    def _copy_up(self, node: Node) -> bytes:
        """Have the file or directory in the upper directory; its path."""
        if self._work is None:
            raise failed(errno.EROFS)
        path = node.path
        if self._tree.in_upper.status(path) is not None:
            return path
        if node.parent is not None:
            self._copy_up(node.parent)
        entry = self._lower.entry(path)
        if entry is None:
            raise failed(errno.ESTALE)
        remove_tree(self._work, _TEMPORARY)
        copy_node(self._lower, path, entry, self._work, _TEMPORARY)
        here = b"/proc/self/fd/%d/%s" % (self._work, _TEMPORARY)
        if entry.is_directory:
            os.chmod(_TEMPORARY, stat.S_IMODE(entry.mode), dir_fd=self._work)
            os.utime(_TEMPORARY, ns=(entry.atime_ns, entry.mtime_ns), dir_fd=self._work)
        elif entry.is_file:
            with contextlib.suppress(OSError):
                os.setxattr(here, ORIGIN, b"")
        with _parent(self._upper, path) as (fd, name):
            before = os.fstat(fd)
            os.rename(_TEMPORARY, name, src_dir_fd=self._work, dst_dir_fd=fd)
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))  # nothing has changed for who looks at it
        if entry.is_directory:
            self._tree.in_upper.forget(path)
        node.opened = None
        for handle in [handle for handle in node.handles if not handle.is_upper]:
            handle.follow(self._upper.open(path, os.O_RDONLY))
        return path

    def open(self, inode: InodeNumber, flags: int) -> Handle:
        node = self._tree.node(inode)
        if flags & _WRITING:
            # The kernel reads what it changes a part of.
            fd = self._tree.in_upper.open(self._copy_up(node), os.O_RDWR | flags & os.O_TRUNC)
            return Handle(node, fd, is_upper=True)
        if node.is_gone and node.handles:
            fd = os.open(f"/proc/self/fd/{node.handles[0].fd}", os.O_RDONLY | os.O_CLOEXEC)
            return Handle(node, fd, is_upper=node.handles[0].is_upper)
        is_upper = self._tree.found(node)[1]
        tree = self._tree.in_upper if is_upper else self._tree.in_lower
        return Handle(node, tree.open(node.path, os.O_RDONLY), is_upper=is_upper)

    def setattr(self, inode: InodeNumber, changes: Mapping[str, int]) -> Attributes:
        node = self._tree.node(inode)
        if node.is_gone and node.handles:
            place: str | bytes = f"/proc/self/fd/{node.handles[0].fd}"
            self._change(place, None, changes)
            return self.getattr(inode)
        with _parent(self._upper, self._copy_up(node)) as (fd, name):
            self._change(name, fd, changes)
        return self.getattr(inode)

    def _change(self, place: str | bytes, directory: int | None, changes: Mapping[str, int]) -> None:
        follow = directory is None
        status = os.stat(place, dir_fd=directory, follow_symlinks=follow)
        if "uid" in changes or "gid" in changes:
            uid, gid = changes.get("uid", -1), changes.get("gid", -1)
            os.chown(place, uid, gid, dir_fd=directory, follow_symlinks=follow)
        if "mode" in changes and not stat.S_ISLNK(status.st_mode):
            os.chmod(place, stat.S_IMODE(changes["mode"]), dir_fd=directory)
        if "size" in changes:
            fd = os.open(place, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.ftruncate(fd, changes["size"])
            finally:
                os.close(fd)
        if "atime_ns" in changes or "mtime_ns" in changes:
            times = changes.get("atime_ns", status.st_atime_ns), changes.get("mtime_ns", status.st_mtime_ns)
            os.utime(place, ns=times, dir_fd=directory, follow_symlinks=follow)

    # -- names

    @contextlib.contextmanager
    def _place(self, directory: InodeNumber, name: bytes) -> Iterator[tuple[int, bytes, bool]]:
        """Where a new name goes: the open upper directory, its path, and whether the lower tree has such a name."""
        parent = self._tree.node(directory)
        path = join(self._copy_up(parent), name)
        upper, lower = self._tree.in_upper.status(path), self._tree.lower_status(parent, path)
        if (upper is not None and not self._tree.is_whiteout(path, upper)) or (upper is None and lower is not None):
            raise failed(errno.EEXIST)
        with _parent(self._upper, path) as (fd, _name):
            yield fd, path, lower is not None

    def _made(self, directory: InodeNumber, name: bytes) -> Attributes:
        found = self._tree.look_up(self._tree.node(directory), name)
        if found is None:
            raise failed(errno.EIO)
        return found

    def create(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise failed(errno.EPERM)
        with self._place(directory, name) as (fd, _path, _hides):
            remove_tree(fd, name)
            os.mknod(name, mode, dir_fd=fd)
        return self._made(directory, name)

    def mkdir(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        with self._place(directory, name) as (fd, path, hides):
            remove_tree(fd, name)
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=fd)
            os.chmod(name, stat.S_IMODE(mode), dir_fd=fd)
            if hides:
                self._hide_lower(path)
            self._tree.in_upper.forget(path)
        return self._made(directory, name)

    def _hide_lower(self, path: bytes) -> None:
        with self._upper.directory(path) as fd:
            os.setxattr(fd, OPAQUE, b"y")

    def symlink(self, directory: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        with self._place(directory, name) as (fd, _path, _hides):
            remove_tree(fd, name)
            os.symlink(target, name, dir_fd=fd)
        return self._made(directory, name)

    def link(self, inode: InodeNumber, directory: InodeNumber, name: bytes) -> Attributes:
        node = self._tree.node(inode)
        source = self._copy_up(node)
        with self._place(directory, name) as (fd, _path, _hides), _parent(self._upper, source) as (there, old):
            remove_tree(fd, name)
            os.link(old, name, src_dir_fd=there, dst_dir_fd=fd, follow_symlinks=False)
            self._tree.is_linked(node, os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino)
        return self._made(directory, name)

    def _remove(self, parent: Node, name: bytes, *, directory: bool) -> None:
        node = self._tree.child(parent, name)
        status, _is_upper = self._tree.found(node)
        if stat.S_ISDIR(status.st_mode) != directory:
            raise failed(errno.ENOTDIR if directory else errno.EISDIR)
        if directory:
            self._tree.look_up(parent, name)
            if self._tree.names(node):
                raise failed(errno.ENOTEMPTY)
        path = join(parent.path, name)
        self._copy_up(parent)
        hidden = self._tree.lower_status(parent, path) is not None
        with _parent(self._upper, path) as (fd, _name):
            remove_tree(fd, name)
            if hidden:
                make_whiteout(fd, name)
        if directory:
            self._tree.in_upper.forget(path)
        self._tree.unname(parent, name)

    def unlink(self, directory: InodeNumber, name: bytes) -> None:
        self._remove(self._tree.node(directory), name, directory=False)

    def rmdir(self, directory: InodeNumber, name: bytes) -> None:
        self._remove(self._tree.node(directory), name, directory=True)

    def rename(
        self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        if flags & ~_NOREPLACE:
            raise failed(errno.EINVAL)
        parent, target_parent = self._tree.node(directory), self._tree.node(new_directory)
        if self._tree.look_up(parent, name) is None:
            raise failed(errno.ENOENT)
        node = self._tree.child(parent, name)
        status, is_upper = self._tree.found(node)
        is_directory = stat.S_ISDIR(status.st_mode)
        if is_directory and (not is_upper or node.merged):
            raise failed(errno.EXDEV)
        existing = self._tree.look_up(target_parent, new_name)
        if existing is not None:
            if flags & _NOREPLACE:
                raise failed(errno.EEXIST)
            replaced = self._tree.child(target_parent, new_name)
            if stat.S_ISDIR(existing.mode) != is_directory:
                raise failed(errno.EISDIR if not is_directory else errno.ENOTDIR)
            if is_directory and self._tree.names(replaced):
                raise failed(errno.ENOTEMPTY)
            self._tree.unname(target_parent, new_name)
        self._copy_up(node)
        path = join(parent.path, name)
        target = join(self._copy_up(target_parent), new_name)
        hidden = self._tree.lower_status(target_parent, target) is not None
        with _parent(self._upper, path) as (fd, _old), _parent(self._upper, target) as (new_fd, _new):
            if is_directory:
                remove_tree(new_fd, new_name)  # a whiteout, or an empty directory with whiteouts in it
                if hidden:
                    self._hide_lower(path)
            os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=new_fd)
            if self._tree.lower_status(parent, path) is not None:
                make_whiteout(fd, name)
            for moved in (path, target) if is_directory else ():
                self._tree.in_upper.forget(moved)
        self._tree.rename(parent, name, target_parent, new_name)

    # -- extended attributes

    def _place_of(self, inode: InodeNumber) -> bytes:
        """A path to what a node is now."""
        node = self._tree.node(inode)
        tree = self._tree.in_upper if self._tree.found(node)[1] else self._tree.in_lower
        return tree.place(node.path)

    def listxattr(self, inode: InodeNumber) -> Iterable[bytes]:
        names = [os.fsencode(name) for name in os.listxattr(self._place_of(inode), follow_symlinks=False)]
        return [name for name in names if name.startswith(b"user.") and not name.startswith(PRIVATE)]

    def getxattr(self, inode: InodeNumber, name: bytes) -> bytes | None:
        if not name.startswith(b"user.") or name.startswith(PRIVATE):
            return None
        try:
            return os.getxattr(self._place_of(inode), name, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
                return None
            raise

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes) -> None:
        if not name.startswith(b"user.") or name.startswith(PRIVATE):
            raise failed(errno.ENOTSUP)
        path = self._copy_up(self._tree.node(inode))
        os.setxattr(self._tree.in_upper.place(path), name, value, follow_symlinks=False)

    def removexattr(self, inode: InodeNumber, name: bytes) -> None:
        path = self._copy_up(self._tree.node(inode))
        os.removexattr(self._tree.in_upper.place(path), name, follow_symlinks=False)

    # -- letting go

    def forget(self, inode: InodeNumber) -> None:
        self._tree.forget(inode)

    def close(self) -> None:
        self._tree.close()
        if self._work is not None:
            os.close(self._work)


@contextlib.contextmanager
def _parent(tree: Tree, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The open directory that `path` is in, and its name there: “.” for the root itself."""
    directory, _slash, name = path.rpartition(b"/")
    with tree.directory(directory) as fd:
        yield fd, name or b"."
