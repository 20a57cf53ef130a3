"""Directories of the view's own, so that any path can become a mount point and the host never gains an entry.

A skeleton is a tmpfs that shows what a directory showed: each child by a recursive bind mount, symbolic links copied.
Changes below the children are seen on both sides; only the directory itself, the list of its names, belongs to the
view. The root is a skeleton from the start, and another is put over the parent of a mount point that does not exist.

A skeleton is sealed (mounted read-only) once it is built: a new file in it would be lost with the view, so the error
"read-only file system" is better. The children can be written to as before.

A directory with very many children is covered with a kernel overlay instead, one mount for all of them; what is
below it is then read-only.

A skeleton is assembled in a mount namespace of its own, cloned from there as a detached tree, and moved into the view
in one step, so that no process of the view sees it half built.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from viewfs.errors import UsageError, explain_os_error
from viewfs.linux.inotify import changed_names, watch
from viewfs.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MountAttr,
    MoveMount,
    OpenTree,
    UmountFlags,
    detached_tmpfs,
    fsconfig_create,
    fsconfig_string,
    fsmount,
    fsopen,
    mount_setattr,
    move_mount,
    open_tree,
    umount2,
)
from viewfs.linux.mountinfo import MountEntry, mount_points, mount_table
from viewfs.linux.namespaces import CloneFlags, setns, unshare
from viewfs.mounts.root import SKELETON_SOURCE, make_entry, show_children, whole_of
from viewfs.paths import is_at_or_below, is_below

__all__ = [
    "MountPointPlan",
    "Skeleton",
    "make_mount_point",
    "mount_names",
    "plan_mount_point",
    "remove_entry",
    "remove_mount_point",
    "scratch_namespace",
    "writable_skeleton",
]

#: A directory with more children than this is covered with an overlay: every later epoch copies the mount table.
_CROWD = 1000


@contextmanager
def _opened_directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(frozen=True)
class MountPointPlan:
    """How to make `path` a mount point: what exists, and what has to be made."""

    path: str
    #: The directory that must gain an entry, and the names to make in it; empty where `path` exists.
    parent: str = ""
    missing: tuple[str, ...] = ()
    #: `parent` has to be covered, by a skeleton or a mirror; otherwise it is in one already, or `is_changeable`.
    needs_skeleton: bool = False
    #: The user may write to `parent`, so it is served by a `mirror` rather than sealed.
    is_mirror: bool = False
    #: `parent` is the root, and copy-on-write: an entry that is made in it is a change like any other.
    is_changeable: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> MountPointPlan:
        """The inverse of `dataclasses.asdict`, for a value that was sent as JSON."""
        return cls(**value | {"missing": tuple(value["missing"])})

    def __str__(self) -> str:
        if not self.missing:
            return f"use {self.path}"
        made = "/".join(self.missing)
        kind = "mirror" if self.is_mirror else "skeleton"
        return (f"put a {kind} on {self.parent}, " if self.needs_skeleton else "") + f"make {made} in {self.parent}"


def plan_mount_point(path: str, table: list[MountEntry], mirrors: Collection[str] = ()) -> MountPointPlan:
    """What it takes to mount on `path` (absolute), given the mount table of this namespace.

    `mirrors` are directories that are served already.

    Symbolic links are followed, so the plan's `path` may differ from the one given. Raises `UsageError` if a component
    is not a directory, and for the root, because processes would not see a mount there.
    """
    if os.path.exists(path):
        path = os.path.realpath(path)
        if path == "/":
            raise UsageError("cannot mount on /", remedy="mount on a directory below it")
        return MountPointPlan(path)
    if os.path.islink(path):
        raise UsageError(f"cannot mount on {path}: it is a symbolic link to nothing")
    parent = path
    missing: list[str] = []
    while not os.path.lexists(parent):
        parent, name = os.path.split(parent.rstrip("/"))
        missing.insert(0, name)
    parent = os.path.realpath(parent)
    if not os.path.isdir(parent):
        raise UsageError(f"cannot mount on {path}: {parent} is not a directory")
    path = os.path.join(parent, *missing)
    source = _source_of(parent, table)
    changeable = parent == "/" and source != SKELETON_SOURCE
    if changeable or source == SKELETON_SOURCE:
        return MountPointPlan(path, parent, tuple(missing), is_changeable=changeable)
    if parent in mirrors:
        return MountPointPlan(path, parent, tuple(missing), is_mirror=True)
    # access(2) checks the real user's permission, not this process's privilege.
    writable = os.access(parent, os.W_OK | os.X_OK)
    return MountPointPlan(path, parent, tuple(missing), needs_skeleton=True, is_mirror=writable)


def _source_of(directory: str, table: list[MountEntry]) -> str | None:
    """The source of the mount that `directory` (a canonical path) is in."""
    covering = [entry for entry in table if is_at_or_below(directory, entry.mount_point)]
    deepest = max((len(entry.mount_point) for entry in covering), default=0)
    topmost = [entry for entry in covering if len(entry.mount_point) == deepest][-1:]
    return topmost[0].source if topmost else None


@contextmanager
def scratch_namespace(live_namespace: int) -> Iterator[None]:
    """In the block, this process is in a copy of the view to build in; afterwards it is back in `live_namespace`."""
    unshare(CloneFlags.NEWNS)
    try:
        yield
    finally:
        working_directory = os.getcwd()
        setns(live_namespace, CloneFlags.NEWNS)
        os.chdir(working_directory)


def make_mount_point(plan: MountPointPlan, *, is_directory: bool, live_namespace: int) -> Skeleton | None:
    """Carry `plan` out in the live view; `remove_mount_point` undoes it. Needs CAP_SYS_ADMIN.

    The mount point becomes a directory or an empty regular file. A new skeleton is returned, and has to be kept up to
    date. Raises `ViewfsError`, having changed nothing.
    """
    if not plan.missing:
        return None
    try:
        if plan.needs_skeleton:
            return _cover(plan, live_namespace, is_directory=is_directory)
        if plan.is_changeable:
            with _opened_directory(plan.parent) as directory:
                _make_missing(plan.missing, directory, is_directory=is_directory)
        else:
            with _writable(plan.parent) as skeleton:
                _make_missing(plan.missing, skeleton, is_directory=is_directory)
    except OSError as error:
        raise explain_os_error(f"cannot make the mount point {plan.path}", error) from error
    return None


def remove_mount_point(plan: MountPointPlan) -> None:
    """Remove what `make_mount_point` made, when nothing is mounted there any more.

    Only the view's own directories are ever changed, whatever has become of the path in the meantime.
    """
    if not plan.missing:
        return
    if plan.is_changeable:
        with _opened_directory(plan.parent) as directory, contextlib.suppress(OSError):
            _remove_empty(plan.missing, directory)
        return
    if _source_of(plan.parent, mount_table()) != SKELETON_SOURCE:
        return
    if plan.needs_skeleton:
        umount2(plan.parent, UmountFlags.DETACH | UmountFlags.NOFOLLOW)
        return
    with _writable(plan.parent) as skeleton, contextlib.suppress(FileNotFoundError):
        _remove(plan.missing[0], skeleton)


class Skeleton:
    """A skeleton that follows its directory: names that are added and removed there. It owns its descriptors."""

    def __init__(self, below: int, top: int, writable: int, shown: Iterable[str]) -> None:
        """Descriptors of the directory `below`, of the skeleton on `top` of it, and of a `writable` mount of the
        skeleton; `shown` are the names of the directory that it shows."""
        self._below, self._top, self._writable = below, top, writable
        self._shown = set(map(os.fsencode, shown))
        #: Readable when names have changed.
        self.changes = watch(below)

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that it needs."""
        return self._below, self._top, self._writable, self.changes

    def update(self) -> None:
        """Wait until names have changed in the directory below, and show the changes. Raises OSError."""
        for name in changed_names(self.changes):
            for each in [*map(os.fsencode, os.listdir(self._below)), *self._shown] if name is None else [name]:
                with contextlib.suppress(OSError):  # if the name changes again at this moment, another event follows
                    self._follow(each)

    def _follow(self, name: bytes) -> None:
        if name in self._shown:
            with contextlib.suppress(OSError):
                umount2(f"/proc/self/fd/{self._top}/{os.fsdecode(name)}", UmountFlags.DETACH | UmountFlags.NOFOLLOW)
            with contextlib.suppress(FileNotFoundError):
                _remove(os.fsdecode(name), self._writable)
            self._shown.discard(name)
        elif _exists(name, self._writable):
            return  # a mount point of the view, which stays
        try:
            status = os.stat(name, dir_fd=self._below, follow_symlinks=False)
        except FileNotFoundError:
            return
        self._shown.add(name)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=self._below), name, dir_fd=self._writable)
            return
        tree = open_tree(self._below, os.fsdecode(name), OpenTree.CLONE | AT_RECURSIVE)
        try:
            make_entry(os.fsdecode(name), is_directory=stat.S_ISDIR(status.st_mode), directory_fd=self._writable)
            move_mount(tree, "", self._top, os.fsdecode(name), MoveMount.F_EMPTY_PATH)
        finally:
            os.close(tree)


def _exists(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _cover(plan: MountPointPlan, live_namespace: int, *, is_directory: bool) -> Skeleton | None:
    """Cover `plan.parent` with a directory of the view's own that shows the same names and the missing ones."""
    directory = plan.parent
    status = os.stat(directory)
    below = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with scratch_namespace(live_namespace), _opened_directory(directory) as old:
        shown = os.listdir(old)
        crowded = len(shown) > _CROWD
        opened = {} if crowded else whole_of(old)
        skeleton = detached_tmpfs(SKELETON_SOURCE, {"mode": f"{stat.S_IMODE(status.st_mode):o}"})
        move_mount(skeleton, "", AT_FDCWD, directory, MoveMount.F_EMPTY_PATH)
        _make_missing(plan.missing, skeleton, is_directory=is_directory)
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))
        if crowded:
            _lay_over(directory, old)
        else:
            show_children(old, directory, opened)
        for fd in (skeleton, *opened.values()):
            os.close(fd)
        tree = open_tree(AT_FDCWD, directory, OpenTree.CLONE | AT_RECURSIVE)
    try:
        mount_setattr(tree, "", AT_EMPTY_PATH, set_attributes=MountAttr.RDONLY)
        move_mount(tree, "", AT_FDCWD, directory, MoveMount.F_EMPTY_PATH)
    finally:
        os.close(tree)
    if crowded:
        os.close(below)
        return None
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    writable = open_tree(top, "", OpenTree.CLONE | AT_EMPTY_PATH)
    mount_setattr(writable, "", AT_EMPTY_PATH, clear=MountAttr.RDONLY)
    return Skeleton(below, top, writable, shown)


def _lay_over(directory: str, old: int) -> None:
    """Instead of a bind mount for each child, make a read-only overlay of the mount on `directory` over `old`.

    Mounts on children of `old` are not part of an overlay, so they are bound over it.
    """
    mounted = {point[len(directory) + 1 :] for point in mount_points() if is_below(point, directory)}
    # Only the first component of each path: a mount further down is part of the tree of the child.
    trees = {name: open_tree(old, name, OpenTree.CLONE | AT_RECURSIVE) for name in {m.split("/")[0] for m in mounted}}
    context = fsopen("overlay")
    try:
        fsconfig_string(context, "source", SKELETON_SOURCE + "-overlay")
        fsconfig_string(context, "lowerdir", f"{_overlay_path(directory)}:/proc/self/fd/{old}")
        fsconfig_create(context)
        overlay = fsmount(context, MountAttr.NONE)
    finally:
        os.close(context)
    move_mount(overlay, "", AT_FDCWD, directory, MoveMount.F_EMPTY_PATH)
    os.close(overlay)
    for name, tree in trees.items():
        move_mount(tree, "", AT_FDCWD, os.path.join(directory, name), MoveMount.F_EMPTY_PATH)
        os.close(tree)


def _overlay_path(path: str) -> str:
    """A path as overlayfs's lowerdir takes it, colons and backslashes escaped (filesystems/overlayfs.rst)."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def mount_names(names: tuple[str, ...], *, is_directory: bool) -> int:
    """A detached directory of the view's own with `names` in it, each inside the one before it, sealed."""
    tree = detached_tmpfs(SKELETON_SOURCE, {"mode": "755"})
    _make_missing(names, tree, is_directory=is_directory)
    mount_setattr(tree, "", AT_EMPTY_PATH, set_attributes=MountAttr.RDONLY)
    return tree


def _make_missing(names: tuple[str, ...], skeleton: int, *, is_directory: bool) -> None:
    """Make `names`, each inside the one before it, in the writable directory `skeleton`."""
    place = ""
    for depth, name in enumerate(names):
        place = os.path.join(place, name)
        last = depth == len(names) - 1
        make_entry(place, is_directory=is_directory or not last, directory_fd=skeleton)


def remove_entry(name: str, skeleton: int) -> None:
    """Remove a name of a skeleton, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        _remove(name, skeleton)


@contextmanager
def writable_skeleton(path: str) -> Iterator[int | None]:
    """As `_writable` for the skeleton at `path`; None if there is none (any more)."""
    is_one = _source_of(path, mount_table()) == SKELETON_SOURCE
    if not is_one:
        yield None
        return
    with _writable(path) as skeleton:
        yield skeleton


@contextmanager
def _writable(skeleton: str) -> Iterator[int]:
    """A descriptor of a writable detached mount of a sealed skeleton's tmpfs."""
    clone = open_tree(AT_FDCWD, skeleton, OpenTree.CLONE)
    try:
        mount_setattr(clone, "", AT_EMPTY_PATH, clear=MountAttr.RDONLY)
        yield clone
    finally:
        os.close(clone)


def _remove_empty(names: tuple[str, ...], directory: int) -> None:
    """Remove what `_make_missing` made, unless somebody has written to it. Raises OSError."""
    status = os.stat("/".join(names), dir_fd=directory, follow_symlinks=False)
    if stat.S_ISREG(status.st_mode) and not status.st_size:
        os.unlink("/".join(names), dir_fd=directory)
        names = names[:-1]
    for depth in range(len(names), 0, -1):
        os.rmdir("/".join(names[:depth]), dir_fd=directory)


def _remove(name: str, directory: int) -> None:
    """Remove an entry that was made for a mount point, with all that was made in it."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            for child in os.listdir(fd):
                _remove(child, fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=directory)
