"""Names in our own copy-on-write file system: making, linking, renaming and removing files."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterator

from viewfs.cow.compare.trees import Tree, join
from viewfs.cow.layer.workdir import WorkDirectory, hide_lower, status_of
from viewfs.cow.serve.merged import MergedTree
from viewfs.cow.serve.nodes import Handle, Node
from viewfs.errors import os_error
from viewfs.linux.files import Rename, renameat2
from viewfs.modules.api import Attributes, Identities, InodeNumber
from viewfs.modules.api.lasting import LastingFileSystem

__all__ = ["CowNames", "parent_of"]


class CowNames(LastingFileSystem):
    """The part of `filesystem.CowFileSystem` that handles names."""

    _tree: MergedTree
    _upper: Tree
    _identities: Identities
    _durable: bool
    #: Files without a name that the kernel knows, and has not opened yet.
    _unopened: dict[InodeNumber, Handle]

    @property
    @abstractmethod
    def _work(self) -> WorkDirectory: ...

    @abstractmethod
    def _copy_up(self, node: Node) -> bytes: ...

    @abstractmethod
    def _own_of_gone(self, node: Node) -> int: ...

    @abstractmethod
    def _gone_attributes(self, node: Node) -> Attributes: ...

    def _make(
        self,
        directory: InodeNumber,
        name: bytes,
        make: Callable[[int, bytes], None],
        owner: tuple[int, int] | None = None,
        *,
        in_one_step: bool = True,
    ) -> Attributes:
        """Let `make` make what is called `name` (given a directory and a name), for `owner`; its attributes.

        `in_one_step`: does `make` take a single step?
        """
        parent = self._tree.node(directory)
        if parent.is_gone:
            raise os_error(errno.ENOENT)
        path = join(self._copy_up(parent), name)
        upper, lower = self._tree.in_upper.status(path), self._tree.lower_status(parent, path)
        if (upper is not None and not self._tree.is_whiteout(path, upper)) or (upper is None and lower is not None):
            raise os_error(errno.EEXIST)
        with parent_of(self._upper, path) as (fd, _name):
            above = os.fstat(fd)

            def make_own(place: int, new: bytes) -> None:
                make(place, new)
                self._give(place, new, above, owner)
                if lower is not None and (made := status_of(place, new)) is not None and stat.S_ISDIR(made.st_mode):
                    hide_lower(place, new)

            is_given = owner not in (None, (self._identities.uid, self._identities.gid)) or above.st_mode & stat.S_ISGID
            if upper is None and in_one_step and not is_given:
                make_own(fd, name)
            else:
                self._work.put(fd, name, make_own)
        self._tree.in_upper.forget(path)
        found = self._tree.look_up(parent, name)
        if found is None:
            raise os_error(errno.EIO)
        return found

    def _give(self, place: int, name: bytes, above: os.stat_result, owner: tuple[int, int] | None) -> None:
        """Give what was just made in the directory `above` to `owner`, or to the group of the directory (inode(7))."""
        if owner is None:
            return
        uid, gid = owner
        made = os.stat(name, dir_fd=place, follow_symlinks=False)
        inherits = bool(above.st_mode & stat.S_ISGID)
        gid = above.st_gid if inherits else gid
        wanted = uid, gid
        if wanted != (made.st_uid, made.st_gid):
            try:
                os.chown(name, *wanted, dir_fd=place, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EPERM):  # an id that is not mapped here
                    raise
        if inherits and stat.S_ISDIR(made.st_mode):
            os.chmod(name, stat.S_IMODE(made.st_mode) | stat.S_ISGID, dir_fd=place)
        elif wanted != (made.st_uid, made.st_gid) and not stat.S_ISLNK(made.st_mode):
            os.chmod(name, stat.S_IMODE(made.st_mode), dir_fd=place)  # chown(2) takes set-ID bits away

    def create(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise os_error(errno.EPERM)
        return self._make(directory, name, lambda place, new: os.mknod(new, mode, dir_fd=place), (uid, gid))

    def mkdir(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        def make(place: int, new: bytes) -> None:
            os.mkdir(new, 0o700, dir_fd=place)
            os.chmod(new, stat.S_IMODE(mode), dir_fd=place)

        return self._make(directory, name, make, (uid, gid), in_one_step=False)

    def symlink(self, directory: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        return self._make(directory, name, lambda place, new: os.symlink(target, new, dir_fd=place), (uid, gid))

    def tmpfile(self, directory: InodeNumber, mode: int, uid: int, gid: int) -> Attributes:
        self._copy_up(self._tree.node(directory))
        node = self._tree.unnamed()
        fd = self._work.make_held(node.number)
        os.fchmod(fd, stat.S_IMODE(mode))
        self._is_held(node, held=True)
        # The file lives as long as it is open, and the kernel opens it at once.
        handle = Handle(node, fd, is_upper=True)
        node.last = os.fstat(fd)
        self._unopened[node.number] = handle
        return self._gone_attributes(node)

    def link(self, inode: InodeNumber, directory: InodeNumber, name: bytes) -> Attributes:
        node = self._tree.node(inode)
        if node.is_gone:
            return self._link_unnamed(node, directory, name)
        source = self._copy_up(node)
        with parent_of(self._upper, source) as (there, old):

            def make(place: int, new: bytes) -> None:
                os.link(old, new, src_dir_fd=there, dst_dir_fd=place, follow_symlinks=False)
                self._tree.is_linked(node, os.stat(new, dir_fd=place, follow_symlinks=False).st_ino)

            return self._make(directory, name, make)

    def _link_unnamed(self, node: Node, directory: InodeNumber, name: bytes) -> Attributes:
        """Give a file without a name one (open(2), O_TMPFILE)."""
        here = f"/proc/self/fd/{self._own_of_gone(node)}"
        parent = self._tree.node(directory)

        def make(place: int, new: bytes) -> None:
            os.link(here, new, dst_dir_fd=place, follow_symlinks=True)
            self._work.let_go(node.number)
            node.held = False
            self._tree.give_name(node, parent, name)  # from here on the name is this node's

        try:
            return self._make(directory, name, make)
        except OSError:
            self._tree.unname(parent, name)
            raise

    def _is_held(self, node: Node, *, held: bool) -> None:
        node.held = held
        self._tree.note(node)

    def _hold(self, node: Node, directory: int, name: bytes) -> None:
        """`node` is about to lose the name: if somebody has it open, keep it in the work directory for a successor."""
        if node.handles and node.handles[0].is_upper and len(node.places) == 1 and not node.held:
            with contextlib.suppress(OSError):  # then a successor can't open it again
                self._work.hold(node.number, directory, name)
                self._is_held(node, held=True)

    def _remove(self, parent: Node, name: bytes, *, directory: bool) -> None:
        node = self._tree.child(parent, name)
        try:
            status, is_upper = self._tree.found(node)
        except FileNotFoundError:
            self._tree.unname(parent, name)
            raise
        if stat.S_ISDIR(status.st_mode) != directory:
            raise os_error(errno.ENOTDIR if directory else errno.EISDIR)
        if directory:
            self._tree.look_up(parent, name)
            if self._tree.names(node):
                raise os_error(errno.ENOTEMPTY)
        path = join(parent.path, name)
        self._copy_up(parent)
        hidden = self._tree.lower_status(parent, path) is not None
        with parent_of(self._upper, path) as (fd, _name):
            self._hold(node, fd, name)
            if hidden:
                self._work.put_whiteout(fd, name)
            elif is_upper:
                self._work.take_away(fd, name)
        if directory:
            self._tree.in_upper.forget(path)
        self._tree.unname(parent, name, status)

    def unlink(self, directory: InodeNumber, name: bytes) -> None:
        self._remove(self._tree.node(directory), name, directory=False)

    def rmdir(self, directory: InodeNumber, name: bytes) -> None:
        self._remove(self._tree.node(directory), name, directory=True)

    def _movable(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """What is to be renamed. Raises ENOENT; EXDEV for a directory of which the lower tree has something."""
        if self._tree.look_up(parent, name) is None:
            raise os_error(errno.ENOENT)
        node = self._tree.child(parent, name)
        status, is_upper = self._tree.found(node)
        if stat.S_ISDIR(status.st_mode) and (not is_upper or node.merged):
            raise os_error(errno.EXDEV)
        return node, status

    def rename(
        self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        parent, target_parent = self._tree.node(directory), self._tree.node(new_directory)
        if flags == Rename.EXCHANGE:
            self._exchange(parent, name, target_parent, new_name)
            return
        if flags & ~Rename.NOREPLACE:
            raise os_error(errno.EINVAL)
        node, status = self._movable(parent, name)
        is_directory = stat.S_ISDIR(status.st_mode)
        existing = self._tree.look_up(target_parent, new_name)
        replaced: os.stat_result | None = None
        other: Node | None = None
        if existing is not None:
            if flags & Rename.NOREPLACE:
                raise os_error(errno.EEXIST)
            other = self._tree.child(target_parent, new_name)
            if stat.S_ISDIR(existing.mode) != is_directory:
                raise os_error(errno.EISDIR if not is_directory else errno.ENOTDIR)
            if is_directory and self._tree.names(other):
                raise os_error(errno.ENOTEMPTY)
            replaced = self._tree.found(other)[0]
        self._copy_up(node)
        path = join(parent.path, name)
        target = join(self._copy_up(target_parent), new_name)
        hidden = self._tree.lower_status(target_parent, target) is not None
        hides = self._tree.lower_status(parent, path) is not None
        with parent_of(self._upper, path) as (fd, _old), parent_of(self._upper, target) as (new_fd, _new):
            if is_directory and hidden:
                hide_lower(fd, name)
            if other is not None:
                self._hold(other, new_fd, new_name)
                if replaced is not None and stat.S_ISREG(replaced.st_mode) and not other.handles:
                    self._keep(other)
            self._work.move(fd, name, new_fd, new_name, hides=hides)
        self._forget_moved(path, target, is_directory=is_directory)
        if existing is not None:
            self._tree.unname(target_parent, new_name, replaced)
        self._tree.rename(parent, name, target_parent, new_name)

    # -- what the server before may have done already

    def made_already(self, directory: InodeNumber, name: bytes, source: InodeNumber | None = None) -> Attributes | None:
        """Whatever is in the upper directory was made by a request to this file system."""
        parent = self._tree.node(directory)
        status = self._tree.in_upper.status(path := join(parent.path, name))
        if status is None or self._tree.is_whiteout(path, status):
            return None
        if source is not None:
            node = self._tree.node(source)
            linked = None if node.is_gone else self._tree.in_upper.status(node.path)
            if linked is not None and linked.st_ino == status.st_ino:
                self._tree.is_linked(node, status.st_ino)
        return self._tree.look_up(parent, name)

    def moved_already(self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes) -> bool:
        parent, target_parent = self._tree.node(directory), self._tree.node(new_directory)
        node, target = self._tree.named(parent, name), join(target_parent.path, new_name)
        status = self._tree.in_upper.status(target)
        if status is None or self._tree.is_whiteout(target, status):
            return False
        if node is not None:
            self._forget_moved(join(parent.path, name), target, is_directory=stat.S_ISDIR(status.st_mode))
            self._tree.unname(target_parent, new_name)
            self._tree.rename(parent, name, target_parent, new_name)
        return True

    def _keep(self, node: Node) -> None:
        """Keep the file open until the kernel forgets it: who has just looked its name up may still open it."""
        with contextlib.suppress(OSError):
            is_upper = self._tree.found(node)[1]
            tree = self._tree.in_upper if is_upper else self._tree.in_lower
            self._unopened[node.number] = Handle(node, tree.open(node.path, os.O_RDONLY), is_upper=is_upper)

    def _exchange(self, parent: Node, name: bytes, other_parent: Node, other_name: bytes) -> None:
        one, status = self._movable(parent, name)
        other, other_status = self._movable(other_parent, other_name)
        path, other_path = self._copy_up(one), self._copy_up(other)
        with parent_of(self._upper, path) as (fd, _one), parent_of(self._upper, other_path) as (other_fd, _other):
            # Each moves to a place where the lower tree may have a directory.
            for place, here, moved in ((fd, name, status), (other_fd, other_name, other_status)):
                if stat.S_ISDIR(moved.st_mode):
                    hide_lower(place, here)
            renameat2(fd, name, other_fd, other_name, Rename.EXCHANGE)
        self._forget_moved(path, other_path, is_directory=True)
        self._tree.exchange(parent, name, other_parent, other_name)

    def _forget_moved(self, path: bytes, target: bytes, *, is_directory: bool) -> None:
        for moved in (path, target) if is_directory else ():
            self._tree.in_upper.forget(moved)

    def fsyncdir(self, directory: InodeNumber) -> None:
        node = self._tree.node(directory)
        # And the directories above it: they may have been copied up only now.
        while self._durable and not node.is_gone and self._tree.in_upper.status(node.path) is not None:
            with self._upper.directory(node.path) as fd:
                os.fsync(fd)
            if node.parent is None:
                break
            node = node.parent


@contextlib.contextmanager
def parent_of(tree: Tree, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The open directory that `path` is in, and its name there: “.” for the root itself."""
    directory, _slash, name = path.rpartition(b"/")
    with tree.directory(directory) as fd:
        yield fd, name or b"."
