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
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping

from viewfs.cow.copying import copy_node, remove_tree
from viewfs.cow.nodes import Handle, Node, failed, make_whiteout
from viewfs.cow.trees import Tree, join
from viewfs.modules.api import (
    ROOT_INODE,
    Attributes,
    DirectoryEntry,
    FileSystemStatistics,
    Identities,
    InodeNumber,
    WritableFileSystem,
)
from viewfs.mounts.overlay import OPAQUE, ORIGIN, PRIVATE, WHITEOUT

__all__ = ["CowFileSystem"]

_NOREPLACE = 1
_TEMPORARY = b"copying"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class CowFileSystem(WritableFileSystem):
    """`lower` with the changes that are in `upper`, which takes those to come."""

    cache_seconds = 1.0

    def __init__(self, lower: int, upper: int, work: int | None, identities: Identities) -> None:
        """Descriptors of the directories, which become this object's. `work` is None where nothing can be written."""
        self._lower, self._upper, self._work = Tree(lower), Tree(upper), work
        self._identities = identities
        self._numbers = itertools.count(ROOT_INODE + 1)
        root = Node(ROOT_INODE, None, b"")
        self._nodes: dict[int, Node] = {ROOT_INODE: root}
        self._named: dict[tuple[int, bytes], Node] = {}
        os.umask(0)

    # -- finding

    def _node(self, inode: int) -> Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise failed(errno.ESTALE) from None

    def _child(self, parent: Node, name: bytes) -> Node:
        node = self._named.get((parent.number, name))
        if node is None:
            node = Node(InodeNumber(next(self._numbers)), parent, name)
            parent.children += 1
            self._nodes[node.number] = self._named[parent.number, name] = node
        return node

    def _in_upper(self, path: bytes) -> os.stat_result | None:
        return self._upper.status(path)

    def _in_lower(self, node: Node | None, path: bytes) -> os.stat_result | None:
        """What the lower tree has at `path`, which is in the directory `node`, if that is seen."""
        if node is not None and not node.merged:
            return None
        return self._lower.status(path)

    def _is_whiteout(self, path: bytes, status: os.stat_result) -> bool:
        """Says what is at `path` in the upper directory that nothing is?"""
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        if status.st_size or not stat.S_ISREG(status.st_mode):
            return False
        try:
            return bool(os.getxattr(b"/proc/self/fd/%d/%s" % (self._upper.root, path), WHITEOUT))
        except OSError:
            return False

    def _found(self, node: Node) -> tuple[os.stat_result, bool]:
        """What a node is, and whether it is in the upper directory. Raises ENOENT."""
        path = node.path
        upper = self._in_upper(path)
        if upper is not None:
            if self._is_whiteout(path, upper):
                raise failed(errno.ENOENT)
            return upper, True
        lower = self._in_lower(node.parent, path)
        if lower is None:
            raise failed(errno.ENOENT)
        return lower, False

    def _attributes(self, node: Node, status: os.stat_result) -> Attributes:
        known = self._identities
        return Attributes(
            node.number,
            status.st_mode,
            status.st_size,
            status.st_nlink,
            status.st_uid if status.st_uid in known.uids else known.uid,
            status.st_gid if status.st_gid in known.gids else known.gid,
            status.st_rdev,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_blocks,
            status.st_blksize,
        )

    def _looked_up(self, parent: Node, name: bytes) -> Attributes | None:
        path = join(parent.path, name)
        upper, lower = self._in_upper(path), self._in_lower(parent, path)
        status = upper or lower
        if status is None or (upper is not None and self._is_whiteout(path, upper)):
            return None
        node = self._child(parent, name)
        if stat.S_ISDIR(status.st_mode):
            seen = lower is not None and stat.S_ISDIR(lower.st_mode)
            node.merged = seen and (upper is None or not self._is_opaque(path))
        return self._attributes(node, status)

    def _is_opaque(self, path: bytes) -> bool:
        with contextlib.suppress(OSError), self._upper.directory(path) as fd:
            return os.getxattr(fd, OPAQUE) == b"y"
        return False

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        return self._looked_up(self._node(directory), name)

    def getattr(self, inode: InodeNumber) -> Attributes:
        node = self._node(inode)
        if node.gone:
            if not node.handles:
                raise failed(errno.ESTALE)
            return self._attributes(node, os.fstat(node.handles[0].fd))
        return self._attributes(node, self._found(node)[0])

    def _names(self, node: Node) -> dict[bytes, bool]:
        """What is in a directory."""
        path = node.path
        names = dict.fromkeys(self._lower.names(path) if node.merged else (), True)
        for name in self._upper.names(path):
            here = join(path, name)
            status = self._in_upper(here)
            if status is not None and self._is_whiteout(here, status):
                names.pop(name, None)
            else:
                names[name] = True
        return names

    def readdir(self, directory: InodeNumber, start: int) -> Iterator[DirectoryEntry]:
        node = self._node(directory)
        own = self.getattr(directory)
        above = own if node.parent is None else self.getattr(node.parent.number)
        for cookie, name, attributes in ((1, b".", own), (2, b"..", above)):
            if start < cookie:
                yield DirectoryEntry(name, cookie, attributes)
        # By a number that a name keeps, whatever comes and goes beside it.
        for cookie, name in sorted((_cookie(name), name) for name in self._names(node)):
            if cookie > start and (found := self._looked_up(node, name)) is not None:
                yield DirectoryEntry(name, cookie, found)

    def readlink(self, inode: InodeNumber) -> bytes:
        node = self._node(inode)
        tree = self._upper if self._found(node)[1] else self._lower
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
        if self._in_upper(path) is not None:
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
        for handle in [handle for handle in node.handles if not handle.is_upper]:
            handle.follow(self._upper.open(path, os.O_RDONLY))
        return path

    def open(self, inode: InodeNumber, flags: int) -> Handle:
        node = self._node(inode)
        if flags & _WRITING:
            path = self._copy_up(node)
            # The kernel reads what it changes a part of.
            fd = self._upper.open(path, os.O_RDWR | flags & os.O_TRUNC)
            return Handle(node, fd, is_upper=True)
        if node.gone and node.handles:
            fd = os.open(f"/proc/self/fd/{node.handles[0].fd}", os.O_RDONLY | os.O_CLOEXEC)
            return Handle(node, fd, is_upper=node.handles[0].is_upper)
        is_upper = self._found(node)[1]
        return Handle(node, (self._upper if is_upper else self._lower).open(node.path), is_upper=is_upper)

    def setattr(self, inode: InodeNumber, changes: Mapping[str, int]) -> Attributes:
        node = self._node(inode)
        if node.gone and node.handles:
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
        parent = self._node(directory)
        path = join(self._copy_up(parent), name)
        upper, lower = self._in_upper(path), self._in_lower(parent, path)
        if (upper is not None and not self._is_whiteout(path, upper)) or (upper is None and lower is not None):
            raise failed(errno.EEXIST)
        with _parent(self._upper, path) as (fd, _name):
            yield fd, path, lower is not None

    def _made(self, directory: InodeNumber, name: bytes) -> Attributes:
        found = self._looked_up(self._node(directory), name)
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
        source = self._copy_up(self._node(inode))
        with self._place(directory, name) as (fd, _path, _hides), _parent(self._upper, source) as (there, old):
            remove_tree(fd, name)
            os.link(old, name, src_dir_fd=there, dst_dir_fd=fd, follow_symlinks=False)
        return self._made(directory, name)

    def _remove(self, parent: Node, name: bytes, *, directory: bool) -> None:
        node = self._child(parent, name)
        status, _is_upper = self._found(node)
        if stat.S_ISDIR(status.st_mode) != directory:
            raise failed(errno.ENOTDIR if directory else errno.EISDIR)
        if directory:
            self._looked_up(parent, name)
            if self._names(node):
                raise failed(errno.ENOTEMPTY)
        path = node.path
        self._copy_up(parent)
        hidden = self._in_lower(parent, path) is not None
        with _parent(self._upper, path) as (fd, _name):
            remove_tree(fd, name)
            if hidden:
                make_whiteout(fd, name)
        self._forget_name(node)

    def _forget_name(self, node: Node) -> None:
        if node.parent is not None:
            self._named.pop((node.parent.number, node.name), None)
        node.gone = True

    def unlink(self, directory: InodeNumber, name: bytes) -> None:
        self._remove(self._node(directory), name, directory=False)

    def rmdir(self, directory: InodeNumber, name: bytes) -> None:
        self._remove(self._node(directory), name, directory=True)

    def rename(
        self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        if flags & ~_NOREPLACE:
            raise failed(errno.EINVAL)
        parent, target_parent = self._node(directory), self._node(new_directory)
        if self._looked_up(parent, name) is None:
            raise failed(errno.ENOENT)
        node = self._child(parent, name)
        status, is_upper = self._found(node)
        is_directory = stat.S_ISDIR(status.st_mode)
        if is_directory and (not is_upper or node.merged):
            raise failed(errno.EXDEV)
        existing = self._looked_up(target_parent, new_name)
        if existing is not None:
            if flags & _NOREPLACE:
                raise failed(errno.EEXIST)
            replaced = self._child(target_parent, new_name)
            if stat.S_ISDIR(existing.mode) != is_directory:
                raise failed(errno.EISDIR if not is_directory else errno.ENOTDIR)
            if is_directory and self._names(replaced):
                raise failed(errno.ENOTEMPTY)
            self._forget_name(replaced)
        path = self._copy_up(node)
        target = join(self._copy_up(target_parent), new_name)
        hidden = self._in_lower(target_parent, target) is not None
        with _parent(self._upper, path) as (fd, _old), _parent(self._upper, target) as (new_fd, _new):
            if is_directory:
                remove_tree(new_fd, new_name)  # a whiteout, or an empty directory with whiteouts in it
                if hidden:
                    self._hide_lower(path)
            os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=new_fd)
            if self._in_lower(parent, path) is not None:
                make_whiteout(fd, name)
        self._named.pop((parent.number, name), None)
        parent.children -= 1
        target_parent.children += 1
        node.parent, node.name = target_parent, new_name
        self._named[target_parent.number, new_name] = node

    # -- extended attributes

    def _own_path(self, path: bytes, *, is_upper: bool) -> bytes:
        root = self._upper.root if is_upper else self._lower.root
        return b"/proc/self/fd/%d/%s" % (root, path)

    def listxattr(self, inode: InodeNumber) -> Iterable[bytes]:
        node = self._node(inode)
        place = self._own_path(node.path, is_upper=self._found(node)[1])
        names = [os.fsencode(name) for name in os.listxattr(place, follow_symlinks=False)]
        return [name for name in names if name.startswith(b"user.") and not name.startswith(PRIVATE)]

    def getxattr(self, inode: InodeNumber, name: bytes) -> bytes | None:
        if not name.startswith(b"user.") or name.startswith(PRIVATE):
            return None
        node = self._node(inode)
        place = self._own_path(node.path, is_upper=self._found(node)[1])
        try:
            return os.getxattr(place, name, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
                return None
            raise

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes) -> None:
        if not name.startswith(b"user.") or name.startswith(PRIVATE):
            raise failed(errno.ENOTSUP)
        node = self._node(inode)
        os.setxattr(self._own_path(self._copy_up(node), is_upper=True), name, value, follow_symlinks=False)

    def removexattr(self, inode: InodeNumber, name: bytes) -> None:
        node = self._node(inode)
        os.removexattr(self._own_path(self._copy_up(node), is_upper=True), name, follow_symlinks=False)

    # -- letting go

    def forget(self, inode: InodeNumber) -> None:
        node = self._nodes.get(inode)
        # A directory that the kernel has forgotten can still be in the path of what it has not.
        if node is not None and node.parent is not None and not node.handles and not node.children:
            self._nodes.pop(node.number, None)
            if not node.gone:
                self._named.pop((node.parent.number, node.name), None)
            node.parent.children -= 1

    def close(self) -> None:
        for fd in (self._lower.root, self._upper.root, self._work):
            if fd is not None:
                os.close(fd)


def _cookie(name: bytes) -> int:
    return 3 + int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")


@contextlib.contextmanager
def _parent(tree: Tree, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The open directory that `path` is in, and its name there: “.” for the root itself."""
    directory, _slash, name = path.rpartition(b"/")
    with tree.directory(directory) as fd:
        yield fd, name or b"."
