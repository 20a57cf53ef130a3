"""Directories of the view's own, so that any path can become a mount point and the host never gains an entry.

A skeleton is a tmpfs that shows what a directory showed: a recursive bind of each child, symbolic links copied. What is
bound keeps working in both directions; only the directory itself, the list of its names, belongs to the view. The root is a
skeleton from the start, and another is put over the parent of a mount point that does not exist.

A skeleton is sealed (mounted read-only) once it is built: a new file made in it would be lost with the view, and "read-only
file system" is better news than that. What can be written below its children can be written as before.

It is assembled in a mount namespace of its own, cloned from there as a detached tree, and moved into the view in one
step, so that no process of the view sees it half built.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from viewfs.errors import UsageError, explain_os_error
from viewfs.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MountAttr,
    MountFlags,
    MoveMount,
    OpenTree,
    UmountFlags,
    detached_tmpfs,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    pivot_root,
    umount2,
)
from viewfs.linux.mountinfo import MountEntry
from viewfs.linux.namespaces import CloneFlags, setns, unshare

__all__ = ["SKELETON_SOURCE", "MountPointPlan", "build_root", "make_mount_point", "plan_mount_point", "remove_mount_point"]

#: What the mount table shows as the source of a skeleton.
SKELETON_SOURCE = "viewfs-skeleton"


@dataclass
class _Children:
    """What a directory shows, held open: names in order, each a tree to attach or a symbolic link's target."""

    trees: dict[str, tuple[int, bool]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: str, *, leave_out: frozenset[str] = frozenset()) -> _Children:
        children = cls()
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name in leave_out:
                    continue
                if entry.is_symlink():
                    children.links[entry.name] = os.readlink(entry.path)
                    continue
                try:
                    tree = open_tree(AT_FDCWD, entry.path, OpenTree.CLONE | AT_RECURSIVE)
                except FileNotFoundError:
                    continue  # removed since it was listed
                children.trees[entry.name] = (tree, entry.is_dir(follow_symlinks=False))
        return children

    def attach_below(self, directory: str) -> None:
        for name, target in self.links.items():
            os.symlink(target, os.path.join(directory, name))
        for name, (tree, is_directory) in self.trees.items():
            place = os.path.join(directory, name)
            _make_entry(place, is_directory=is_directory)
            move_mount(tree, "", AT_FDCWD, place, MoveMount.F_EMPTY_PATH)
            os.close(tree)


def _make_entry(place: str, *, is_directory: bool, directory_fd: int | None = None) -> None:
    if is_directory:
        os.mkdir(place, 0o755, dir_fd=directory_fd)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=directory_fd))


def build_root(*, fresh_proc: bool) -> None:
    """Make this process's mount namespace a view: private, its root a skeleton of the old one.

    `fresh_proc`: mount a proc of this process's own pid namespace instead of the host's.
    The caller has its own user and mount namespace, with CAP_SYS_ADMIN in it. Raises OSError.
    """
    mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
    working_directory = os.getcwd()
    children = _Children.of("/", leave_out=frozenset({"proc"}) if fresh_proc else frozenset())
    aside = next(f"/{name}" for name, (_tree, is_directory) in children.trees.items() if is_directory)
    skeleton = detached_tmpfs(SKELETON_SOURCE, {"mode": "755"})
    move_mount(skeleton, "", AT_FDCWD, aside, MoveMount.F_EMPTY_PATH)
    os.close(skeleton)
    children.attach_below(aside)
    if fresh_proc:
        os.mkdir(f"{aside}/proc")
        flags = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC
        mount("proc", f"{aside}/proc", "proc", flags)
    os.chdir(aside)
    # Both the same: the old root comes to lie on the new one and is taken off it (pivot_root(2), NOTES).
    pivot_root(".", ".")
    umount2(".", UmountFlags.DETACH)
    mount_setattr(AT_FDCWD, "/", 0, set_attributes=MountAttr.RDONLY)
    try:
        os.chdir(working_directory)
    except OSError:
        os.chdir("/")


@dataclass(frozen=True)
class MountPointPlan:
    """How `path` comes to be a mount point: what exists, what is made."""

    path: str
    #: The directory that must gain an entry, and the names to make in it; empty where `path` exists.
    parent: str = ""
    missing: tuple[str, ...] = ()
    #: `parent` is to be covered by a new skeleton; otherwise it is on one already.
    needs_skeleton: bool = False

    def __str__(self) -> str:
        if not self.missing:
            return f"use {self.path}"
        made = "/".join(self.missing)
        return (f"put a skeleton on {self.parent}, " if self.needs_skeleton else "") + f"make {made} in {self.parent}"


def plan_mount_point(path: str, table: list[MountEntry]) -> MountPointPlan:
    """What it takes to mount on `path` (absolute), given the mount table of this namespace.

    Symbolic links are followed, so the plan's `path` may differ from the one given. Raises `UsageError` where a
    component is not a directory, and for the root, which processes would not see change.
    """
    if os.path.exists(path):
        path = os.path.realpath(path)
        if path == "/":
            raise UsageError("cannot mount on /", remedy="mount on a directory below it")
        return MountPointPlan(path)
    if os.path.islink(path):
        raise UsageError(f"cannot mount on {path}: it is a symbolic link to nothing")
    parent, missing = path, []
    while not os.path.lexists(parent):
        parent, name = os.path.split(parent.rstrip("/"))
        missing.insert(0, name)
    parent = os.path.realpath(parent)
    if not os.path.isdir(parent):
        raise UsageError(f"cannot mount on {path}: {parent} is not a directory")
    covering = [entry for entry in table if _contains(entry.mount_point, parent)]
    top = max(covering, key=lambda entry: len(entry.mount_point), default=None)
    topmost = [entry for entry in covering if top and entry.mount_point == top.mount_point][-1:]
    on_skeleton = bool(topmost) and topmost[0].source == SKELETON_SOURCE
    path = os.path.join(parent, *missing)
    return MountPointPlan(path, parent, tuple(missing), needs_skeleton=not on_skeleton)


def _contains(directory: str, path: str) -> bool:
    return directory == "/" or path == directory or path.startswith(directory + "/")


@contextmanager
def _scratch_namespace(live_namespace: int) -> Iterator[None]:
    """Inside, this process has a copy of the view to build in; afterwards it is back in `live_namespace`."""
    unshare(CloneFlags.NEWNS)
    try:
        yield
    finally:
        working_directory = os.getcwd()
        setns(live_namespace, CloneFlags.NEWNS)
        os.chdir(working_directory)


def make_mount_point(plan: MountPointPlan, *, is_directory: bool, live_namespace: int) -> None:
    """Carry `plan` out in the live view; `remove_mount_point` undoes it. Needs CAP_SYS_ADMIN.

    The mount point becomes a directory or an empty regular file. Raises `ViewfsError`, having changed nothing.
    """
    if not plan.missing:
        return
    try:
        if plan.needs_skeleton:
            _cover_with_skeleton(plan.parent, live_namespace)
        try:
            _make_missing(plan, is_directory=is_directory)
        except OSError:
            remove_mount_point(plan)
            raise
    except OSError as error:
        raise explain_os_error(f"cannot make the mount point {plan.path}", error) from error


def remove_mount_point(plan: MountPointPlan) -> None:
    """Take away what `make_mount_point` made, nothing being mounted there any more."""
    if not plan.missing:
        return
    if plan.needs_skeleton:
        umount2(plan.parent, UmountFlags.DETACH | UmountFlags.NOFOLLOW)
        return
    with _writable(plan.parent) as skeleton, contextlib.suppress(FileNotFoundError):
        _remove(plan.missing[0], skeleton)


def _cover_with_skeleton(directory: str, live_namespace: int) -> None:
    status = os.stat(directory)
    with _scratch_namespace(live_namespace):
        children = _Children.of(directory)
        skeleton = detached_tmpfs(SKELETON_SOURCE, {"mode": f"{stat.S_IMODE(status.st_mode):o}"})
        move_mount(skeleton, "", AT_FDCWD, directory, MoveMount.F_EMPTY_PATH)
        os.close(skeleton)
        children.attach_below(directory)
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))
        tree = open_tree(AT_FDCWD, directory, OpenTree.CLONE | AT_RECURSIVE)
    try:
        mount_setattr(tree, "", AT_EMPTY_PATH, set_attributes=MountAttr.RDONLY)
        move_mount(tree, "", AT_FDCWD, directory, MoveMount.F_EMPTY_PATH)
    finally:
        os.close(tree)


def _make_missing(plan: MountPointPlan, *, is_directory: bool) -> None:
    with _writable(plan.parent) as skeleton:
        place = ""
        for depth, name in enumerate(plan.missing):
            place = os.path.join(place, name)
            last = depth == len(plan.missing) - 1
            _make_entry(place, is_directory=is_directory or not last, directory_fd=skeleton)


@contextmanager
def _writable(skeleton: str) -> Iterator[int]:
    """A descriptor of the sealed skeleton's tmpfs through which it can be written: a detached mount of its own."""
    clone = open_tree(AT_FDCWD, skeleton, OpenTree.CLONE)
    try:
        mount_setattr(clone, "", AT_EMPTY_PATH, clear=MountAttr.RDONLY)
        yield clone
    finally:
        os.close(clone)


def _remove(name: str, directory: int) -> None:
    """Remove a mount point that was made, with the directories made above it."""
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
