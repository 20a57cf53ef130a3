"""Copy-on-write as a file system of our own, where the kernel makes no overlay: the same layers, the same rules.

The upper directory is one that overlayfs would understand (Documentation/filesystems/overlayfs.rst): whiteouts are
character devices 0/0, a directory that hides the lower one has `user.overlay.opaque`, a file that was copied up
`user.overlay.origin`. So all that looks at layers needs to know of one format only. As in the kernel's, a directory
that is in the lower tree can't be renamed (EXDEV), and a lower file with several names is copied up by one of them.

What it does better: files whose owners are not mapped in the user namespace are shown as the user's, and so can be
written. What it does worse: every call is a round trip to a Python process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from viewfs.cow.compare.trees import Entry, Tree
from viewfs.cow.copying import copy_content, copy_node
from viewfs.cow.layer.workdir import WorkDirectory
from viewfs.cow.serve.merged import KEPT_SECONDS, MergedTree, OwnerOf
from viewfs.cow.serve.naming import CowNames, parent_of
from viewfs.cow.serve.nodes import Handle, HandleRecord, Node
from viewfs.errors import os_error
from viewfs.modules.api import (
    Attributes,
    DirectoryEntry,
    FileSystemStatistics,
    Identities,
    InodeNumber,
)
from viewfs.modules.api.lasting import LastingFile, LostFile
from viewfs.mounts.overlay import ORIGIN, PRIVATE

__all__ = ["CowFileSystem"]

#: The cookie of “..”.
_DOTS = 2
#: What a file is opened with as it was in the view. (Where the end is to which somebody appends may be news here.)
_KEPT_FLAGS = os.O_TRUNC | os.O_APPEND
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class CowFileSystem(CowNames):
    """Shows `lower` with the changes that are in `upper`, and makes new changes there."""

    cache_seconds = KEPT_SECONDS
    is_changed_here_only = True

    def __init__(
        self,
        lower: int,
        upper: int,
        work: int | None,
        identities: Identities,
        *,
        durable: bool = False,
        stand_ins: Collection[bytes] | None = None,
        owner_of: OwnerOf | None = None,
    ) -> None:
        """`lower`, `upper` and `work` are descriptors of the directories, and become this object's. `work` is None
        where nothing can be written.

        `durable`: what is copied up survives a crash of the machine, as the original did. `stand_ins`: if it is given,
        the user appears as root: these files are shown as empty if they may not be read, and any other unreadable file
        becomes empty when it is written to. `owner_of` tells the owner of a lower file whose owner is not mapped here.
        """
        unreadable = frozenset(path for path in stand_ins or () if _is_unreadable(Tree(lower), path))
        self._tree = MergedTree(Tree(lower), Tree(upper), identities, unreadable, owner_of)
        self._is_root = stand_ins is not None
        self._lower, self._upper = self._tree.lower, self._tree.upper
        self._work_directory = None if work is None else WorkDirectory(work)
        self._durable = durable
        self._identities = identities
        self._unopened = {}
        os.umask(0)

    @property
    def _work(self) -> WorkDirectory:
        if self._work_directory is None:
            raise os_error(errno.EROFS)
        return self._work_directory

    # -- reading

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        return self._tree.look_up(self._tree.node(directory), name)

    def getattr(self, inode: InodeNumber) -> Attributes:
        node = self._tree.node(inode)
        if node.is_gone:
            return self._gone_attributes(node)
        status, is_upper = self._tree.found(node)
        return self._tree.attributes(node, status, is_upper=is_upper)

    def _gone_attributes(self, node: Node) -> Attributes:
        """The attributes of a node without a name: as they are if it is open, or as they were last. Raises ESTALE."""
        if node.handles:
            handle = node.handles[0]
            return self._tree.attributes(node, os.fstat(handle.fd), is_upper=handle.is_upper)
        if node.last is None:
            raise os_error(errno.ESTALE)
        return self._tree.attributes(node, node.last, is_upper=True)

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
        with parent_of(tree, node.path) as (fd, name):
            return os.readlink(name, dir_fd=fd)

    def statfs(self) -> FileSystemStatistics:
        found = os.fstatvfs(self._upper.root)
        return FileSystemStatistics(
            found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_namemax
        )

    # -- copying up

    def _copy_up(self, node: Node, *, content: bool = True) -> bytes:
        """Copy a file or directory up, unless that is done; its path. Without `content` the copy of a file is empty."""
        work, path = self._work, node.path
        if self._tree.in_upper.status(path) is not None:
            return path
        missing: list[Node] = []
        above = node.parent
        while above is not None and self._tree.in_upper.status(above.path) is None:
            missing.append(above)
            above = above.parent
        for directory in reversed(missing):
            self._copy_up_one(work, directory, directory.path, content=True)
        self._copy_up_one(work, node, path, content=content)
        return path

    def _copy_up_one(self, work: WorkDirectory, node: Node, path: bytes, *, content: bool) -> None:
        """Copy up one node, whose directory is in the upper directory already."""
        entry = self._lower.entry(path)
        if entry is None:
            raise os_error(errno.ESTALE)
        # A list with an id that is not mapped here could not be set; a commit leaves the lists outside as they are.
        uid, gid = self._tree.shown_owner(self._tree.lower_status(node.parent, path), entry)
        entry = entry._replace(xattrs=tuple(entry.without_acls()), has_acls=False, uid=uid, gid=gid)
        if entry.is_file and (not content or (self._is_root and _is_unreadable(self._lower, path))):
            entry = entry._replace(size=0)
        with parent_of(self._upper, path) as (fd, name):
            before = os.fstat(fd)
            work.put(fd, name, lambda place, new: self._copy(path, entry, place, new))
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))  # the view shows no change of it
        # But the change times have changed, which nobody can set.
        self.attributes_changed(node.number)
        if node.parent is not None:
            self.attributes_changed(node.parent.number)
        if entry.is_directory:
            self._tree.in_upper.forget(path)
        node.opened = None
        for handle in [handle for handle in node.handles if not handle.is_upper]:
            handle.follow(self._upper.open(path, os.O_RDONLY))

    def _copy(self, path: bytes, entry: Entry, place: int, name: bytes) -> None:
        copy_node(self._lower, path, entry, place, name, sync=self._durable)
        if entry.is_directory:
            if (entry.uid, entry.gid) != (self._identities.uid, self._identities.gid):
                with contextlib.suppress(OSError):
                    os.chown(name, entry.uid, entry.gid, dir_fd=place)
            os.chmod(name, stat.S_IMODE(entry.mode), dir_fd=place)
            os.utime(name, ns=(entry.atime_ns, entry.mtime_ns), dir_fd=place)
        if entry.is_directory or entry.is_file:
            with contextlib.suppress(OSError):
                os.setxattr(b"/proc/self/fd/%d/%s" % (place, name), ORIGIN, b"")

    def _own_of_gone(self, node: Node) -> int:
        """A descriptor of a file without a name that may be changed, for a lower file is copied before. Raises ESTALE
        if nobody has the file open."""
        if not node.handles:
            raise os_error(errno.ESTALE)
        if not node.handles[0].is_upper:
            fd, lower = self._work.make_held(node.number), node.handles[0].fd
            self._is_held(node, held=True)
            try:
                status = os.fstat(lower)
                copy_content(lower, fd, status.st_size)
                known = self._identities
                shown = (
                    status.st_uid if status.st_uid in known.uids else known.uid,
                    status.st_gid if status.st_gid in known.gids else known.gid,
                )
                if shown != (known.uid, known.gid):
                    with contextlib.suppress(OSError):
                        os.fchown(fd, *shown)
                os.fchmod(fd, stat.S_IMODE(status.st_mode))
                os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
                for handle in node.handles:
                    handle.follow(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
            finally:
                os.close(fd)
        return node.handles[0].fd

    def open(self, inode: InodeNumber, flags: int) -> Handle:
        node = self._tree.node(inode)
        if node.is_gone:
            return self._open_gone(node, flags)
        if flags & _WRITING:
            # For reading too: the kernel reads what it changes only a part of.
            path = self._copy_up(node, content=not flags & os.O_TRUNC)
            fd = self._tree.in_upper.open(path, os.O_RDWR | flags & _KEPT_FLAGS)
            return Handle(node, fd, is_upper=True, flags=os.O_RDWR | flags & os.O_APPEND)
        is_upper = self._tree.found(node)[1]
        if not is_upper and node.path in self._tree.stand_ins:
            return Handle(node, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), is_upper=False)
        tree = self._tree.in_upper if is_upper else self._tree.in_lower
        return Handle(node, tree.open(node.path, os.O_RDONLY), is_upper=is_upper)

    def _open_gone(self, node: Node, flags: int) -> Handle:
        """Open a file without a name that somebody has open already, as through /proc/PID/fd."""
        if flags & _WRITING:
            here, mode = self._own_of_gone(node), os.O_RDWR | flags & _KEPT_FLAGS
        elif node.handles:
            here, mode = node.handles[0].fd, os.O_RDONLY
        else:
            raise os_error(errno.ESTALE)
        fd = os.open(f"/proc/self/fd/{here}", mode | os.O_CLOEXEC)
        opened = Handle(node, fd, is_upper=node.handles[0].is_upper, flags=mode & ~os.O_TRUNC)
        if (unopened := self._unopened.pop(node.number, None)) is not None:
            unopened.release()
        return opened

    def setattr(self, inode: InodeNumber, changes: Mapping[str, int]) -> Attributes:
        node = self._tree.node(inode)
        if node.is_gone:
            self._change(f"/proc/self/fd/{self._own_of_gone(node)}", None, changes)
            return self.getattr(inode)
        with parent_of(self._upper, self._copy_up(node)) as (fd, name):
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

    # -- extended attributes

    def _place_of(self, inode: InodeNumber, *, changes: bool = False) -> int | bytes:
        """Where a node is now, as a path or a descriptor that Python's functions for attributes take."""
        node = self._tree.node(inode)
        if node.is_gone:
            if not node.handles:
                raise os_error(errno.ESTALE)
            return self._own_of_gone(node) if changes else node.handles[0].fd
        if changes:
            return self._tree.in_upper.place(self._copy_up(node))
        tree = self._tree.in_upper if self._tree.found(node)[1] else self._tree.in_lower
        return tree.place(node.path)

    def listxattr(self, inode: InodeNumber) -> Iterable[bytes]:
        place = self._place_of(inode)
        names = [os.fsencode(name) for name in os.listxattr(place, follow_symlinks=isinstance(place, int))]
        return [name for name in names if _is_own(name)]

    def getxattr(self, inode: InodeNumber, name: bytes) -> bytes | None:
        if not _is_own(name):
            return None
        place = self._place_of(inode)
        try:
            return os.getxattr(place, name, follow_symlinks=isinstance(place, int))
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
                return None
            raise

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes) -> None:
        if not _is_own(name):
            raise os_error(errno.ENOTSUP)
        place = self._place_of(inode, changes=True)
        os.setxattr(place, name, value, follow_symlinks=isinstance(place, int))

    def removexattr(self, inode: InodeNumber, name: bytes) -> None:
        if not _is_own(name):
            raise os_error(errno.ENODATA)
        place = self._place_of(inode, changes=True)
        os.removexattr(place, name, follow_symlinks=isinstance(place, int))

    # -- letting go

    def forget(self, inode: InodeNumber) -> None:
        if (kept := self._unopened.pop(inode, None)) is not None:
            kept.release()
        for node in self._tree.forget(inode):
            if node.held:
                self._work.let_go(node.number)

    # -- taking over

    def restore(
        self, known: Mapping[InodeNumber, bytes], remember: Callable[[InodeNumber, bytes | None], None]
    ) -> None:
        self._tree.restore(known)
        self._tree.remember = remember

    def reopen(self, record: bytes) -> LastingFile:
        opened = HandleRecord.from_bytes(record)
        try:
            node = self._tree.node(InodeNumber(opened.node))
            fd, is_upper = self._find_opened(node, opened.flags)
        except OSError:
            return LostFile(record)
        status = os.fstat(fd)
        # A file in the upper directory is not compared, for it can have been copied up since.
        if not is_upper and (status.st_dev, status.st_ino) != (opened.device, opened.inode):
            os.close(fd)
            return LostFile(record)
        return Handle(node, fd, is_upper=is_upper, flags=opened.flags)

    def _find_opened(self, node: Node, flags: int) -> tuple[int, bool]:
        """Open a file again that was open; its descriptor, and whether it is in the upper directory. Raises OSError."""
        if node.held:
            return self._work.open_held(node.number, flags), True
        if node.places:
            path, is_upper = node.path, self._tree.found(node)[1]
        elif node.lower_path is not None:
            path, is_upper = node.lower_path, False
        else:
            raise os_error(errno.ESTALE)
        if not is_upper and path in self._tree.stand_ins:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), False
        return (self._tree.in_upper if is_upper else self._tree.in_lower).open(path, flags), is_upper

    def close(self) -> None:
        for kept in self._unopened.values():
            kept.release()
        self._tree.close()
        if self._work_directory is not None:
            self._work_directory.close()


def _is_unreadable(lower: Tree, path: bytes) -> bool:
    try:
        os.close(lower.open(path))
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _is_own(name: bytes) -> bool:
    """Is it an attribute of users, and not a private one of overlays?"""
    return name.startswith(b"user.") and not name.startswith(PRIVATE)
