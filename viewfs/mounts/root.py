"""The root of a view, and the basis of all directories of the view's own: making a directory show another's entries.

Each child is shown by a recursive bind mount; symbolic links are copied. `skeleton` describes the whole design. This is
the part that every view needs, so it imports little.
"""

from __future__ import annotations

import os
import stat

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
from viewfs.mounts.attach import attach_aside

__all__ = ["SKELETON_SOURCE", "WHOLE", "build_root", "make_entry", "replace_root", "show_children", "whole_of"]

#: What the mount table shows as the source of a skeleton.
SKELETON_SOURCE = "viewfs-skeleton"
#: The name in a skeleton under which it has the whole directory that it covers, if an entry there needs its neighbours.
WHOLE = ".viewfs"
#: Major and minor number of /dev/ptmx (Documentation/admin-guide/devices.txt).
_PTMX = os.makedev(5, 2)


def build_root(*, fresh_proc: bool) -> None:
    """Make this process's mount namespace a view: private, its root a skeleton of the old one.

    `fresh_proc`: mount a proc of this process's own pid namespace instead of the host's. The caller has its own user
    and mount namespace, with CAP_SYS_ADMIN in it. Raises OSError.
    """
    mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
    working_directory = os.getcwd()
    # The new root is built on a directory of the old one, which has to be opened before it is covered.
    with os.scandir("/") as entries:
        name = next(entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != "proc")
    aside = f"/{name}"
    old = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        covered = {name: open_tree(AT_FDCWD, aside, OpenTree.CLONE | AT_RECURSIVE)}
        skeleton = detached_tmpfs(SKELETON_SOURCE, {"mode": "755"})
        move_mount(skeleton, "", AT_FDCWD, aside, MoveMount.F_EMPTY_PATH)
        os.close(skeleton)
        show_children(old, aside, covered, leave_out=frozenset({"proc"}) if fresh_proc else frozenset())
    finally:
        os.close(old)
    if fresh_proc:
        os.mkdir(f"{aside}/proc")
        flags = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC
        mount("proc", f"{aside}/proc", "proc", flags)
    os.chdir(aside)
    # With the same directory twice, the old root is stacked on the new one, and then unmounted (pivot_root(2), NOTES).
    pivot_root(".", ".")
    umount2(".", UmountFlags.DETACH)
    mount_setattr(AT_FDCWD, "/", 0, set_attributes=MountAttr.RDONLY)
    try:
        os.chdir(working_directory)
    except OSError:
        os.chdir("/")


def replace_root(tree: int) -> None:
    """Make a detached tree the root of this mount namespace, in which nothing else runs yet. Raises OSError.

    (A process with its working directory in the old root could not tell the path of that any more.)
    """
    working_directory = os.getcwd()
    os.chdir(attach_aside(tree))
    pivot_root(".", ".")
    umount2(".", UmountFlags.DETACH)
    try:
        os.chdir(working_directory)
    except OSError:
        os.chdir("/")


def show_children(old: int, new: str, opened: dict[str, int], *, leave_out: frozenset[str] = frozenset()) -> None:
    """Make directory `new` show what directory `old` (a descriptor) shows; `opened` has trees already open, by name."""
    if (whole := opened.get(WHOLE)) is not None:
        os.mkdir(os.path.join(new, WHOLE), 0o755)
        move_mount(whole, "", AT_FDCWD, os.path.join(new, WHOLE), MoveMount.F_EMPTY_PATH)
    with os.scandir(old) as entries:
        for entry in entries:
            place = os.path.join(new, entry.name)
            if entry.name in leave_out:
                continue
            try:
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.name, dir_fd=old), place)
                    continue
                if WHOLE in opened and _makes_terminals(entry):
                    os.symlink(f"{WHOLE}/{entry.name}", place)
                    continue
                tree = opened.pop(entry.name, None) or open_tree(old, entry.name, OpenTree.CLONE | AT_RECURSIVE)
            except FileNotFoundError:
                continue  # removed since it was listed
            try:
                make_entry(place, is_directory=entry.is_dir(follow_symlinks=False))
                move_mount(tree, "", AT_FDCWD, place, MoveMount.F_EMPTY_PATH)
            finally:
                os.close(tree)


def _makes_terminals(entry: os.DirEntry[str]) -> bool:
    """Is it ptmx, which looks for a devpts next to itself, in the mount through which it was opened (pts(4))?"""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _PTMX


def whole_of(directory: int) -> dict[str, int]:
    """The whole directory as a tree, if an entry needs its neighbours; call this before something covers it."""
    with os.scandir(directory) as entries:
        if not any(map(_makes_terminals, entries)):
            return {}
    return {WHOLE: open_tree(directory, "", OpenTree.CLONE | AT_RECURSIVE | AT_EMPTY_PATH)}


def make_entry(place: str, *, is_directory: bool, directory_fd: int | None = None) -> None:
    """Make something to mount on: an empty directory or file. Raises OSError."""
    if is_directory:
        os.mkdir(place, 0o755, dir_fd=directory_fd)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=directory_fd))
