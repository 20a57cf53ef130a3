"""Covering a tree of mounts with another: finding the mounts at and below a path, and putting others in their places.

A cover covers one mount, so a tree with mounts below it needs a cover for each. Some mounts are not covered but kept as
they are: the kernel's own file systems, and mounts on single files.

The kernel's overlay can't do two things in a user namespace. It can't change files of users who have no id in the
namespace (capable_wrt_inode_uidgid of the kernel). And its layer can't be a directory with a mount below it that was
made outside of the view: the kernel shows such a directory only together with the mount (mount_namespaces(7)). Such a
part takes another kind of cover. Directories in it that can be layers of an overlay are parts of their own, so that
work in them is fast.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from viewfs.errors import UsageError
from viewfs.linux.ids import has_number, known_ids
from viewfs.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MountAttr,
    MoveMount,
    OpenTree,
    mount_setattr,
    move_mount,
    open_tree,
)
from viewfs.linux.mountinfo import MountEntry
from viewfs.mounts.attach import attach_aside
from viewfs.paths import is_below

__all__ = [
    "KERNELS_OWN",
    "Division",
    "Opened",
    "Part",
    "Treatment",
    "assemble",
    "can_be_covered",
    "in_root",
    "mount_id_at",
    "open_parts",
    "visible_below",
]

#: File systems that show state of the kernel rather than store files (Documentation/filesystems).
KERNELS_OWN = frozenset(
    "autofs binder binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue"
    " nsfs proc pstore rpc_pipefs securityfs selinuxfs sysfs tracefs".split()
)
#: A directory with more subdirectories than this is not divided.
_MANY = 100
#: How many files are checked to tell whether a whole tree can be changed in an overlay, which takes some milliseconds.
_LOOKED_AT = 2000
#: Directories of the running machine.
_MACHINES_OWN = frozenset({"/dev", "/proc", "/sys"})
#: The directory with the sockets of a machine's services; and that with the sockets of its users, which is not covered.
_SOCKETS, _USERS_SOCKETS = "/run", "/run/user"


class Treatment(Enum):
    """What becomes of one mount, or of one directory."""

    #: It gets a cover.
    COVER = "cover"
    #: It is shown as it is.
    SHOW = "show"
    #: It is shown read-only: a mount on a single file.
    GUARD = "guard"


@dataclass(frozen=True)
class Part:
    """One piece of a tree: the mount at `path`, with a descriptor that it owns."""

    path: str
    treatment: Treatment
    #: A descriptor of a detached copy of the mount; or, if `is_attached`, of the directory with the mounts below it.
    tree: int
    is_attached: bool = False
    #: An overlay can't change it or files in it, because their owner has no id in this user namespace.
    is_of_others: bool = False


@dataclass(frozen=True)
class Division:
    """Which directories are to be parts of their own, although nothing is mounted on them."""

    #: These, whatever part they are in.
    always: Sequence[str] = ()
    #: In a part that an overlay can't change: on the path to each of these, the topmost directory that it can change.
    within: Sequence[str] = ()
    #: May the directory (second argument) be a part of its own, in the part at the path in the first argument?
    allowed: Callable[[str, str], bool] = lambda _part, _path: True


def in_root() -> list[str]:
    """The directories in the root, except those of the running machine (/dev, /proc, /sys)."""
    with os.scandir("/") as entries:
        return sorted(e.path for e in entries if e.is_dir(follow_symlinks=False) and e.path not in _MACHINES_OWN)


def mount_id_at(path: str) -> int | None:
    """The id of the mount that is visible at `path`; None if that can't be opened."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{fd}") as information:
            return next((int(line.split()[1]) for line in information if line.startswith("mnt_id:")), None)
    finally:
        os.close(fd)


class Opened(NamedTuple):
    """The parts of a tree."""

    #: The root of the tree comes first, and each directory before what lies in it.
    parts: list[Part]
    #: Mounts that can't be opened, with the reason: they stay as they are.
    left_alone: list[tuple[str, str]]


def open_parts(
    root: str, table: Sequence[MountEntry], cover: str, shown: Sequence[str] = (), division: Division | None = None
) -> Opened:
    """What is visible at and below `root`, in parts.

    `cover` is the source of mounts that are covers. (Covers of another view are file systems like others.) The
    directories in `shown` stay as they are. Raises OSError, and `UsageError` if `root` is in a file system that can't
    be covered, or is covered already.
    """
    holding = next((entry for entry in table if entry.mount_id == mount_id_at(root)), None)
    if holding is None or holding.fs_type in KERNELS_OWN:
        kind = f" ({holding.fs_type})" if holding is not None else ""
        raise UsageError(f"{root} can't be made copy-on-write: it is in a file system of the kernel's own{kind}")
    if holding.source == cover:
        raise UsageError(f"{root} is copy-on-write already", remedy=f"that of {holding.mount_point} covers it")
    parts: list[Part] = []
    left_alone = _unreachable_below(root, table)
    try:
        _open_directories(root, table, cover, division or Division(), parts, left_alone)
        there = {part.path for part in parts}
        for path in [*shown, _USERS_SOCKETS, *(_sockets_in(_SOCKETS) if is_below(_SOCKETS, root) else ())]:
            if is_below(path, root) and os.path.lexists(path) and path not in there:
                parts.append(Part(path, Treatment.SHOW, open_tree(AT_FDCWD, path, OpenTree.CLONE | AT_RECURSIVE)))
    except BaseException:
        for part in parts:
            os.close(part.tree)
        raise
    return Opened(sorted(parts, key=lambda part: part.path.split("/")), left_alone)


def _open_directories(
    root: str,
    table: Sequence[MountEntry],
    cover: str,
    division: Division,
    parts: list[Part],
    left_alone: list[tuple[str, str]],
) -> None:
    waiting, known = [root], {root}
    while waiting:
        path = waiting.pop()
        below = visible_below(path, table)
        try:
            part = _open_directory(path)
        except OSError as error:
            if path == root:
                raise
            left_alone.append((path, _reason(error)))
            continue
        parts.append(part)
        inside = [each for each in division.always if is_below(each, path)]
        if part.is_of_others:
            inside += filter(None, (_first_own(path, each) for each in division.within if is_below(each, path)))
        elif part.is_attached:
            with os.scandir(path) as entries:
                directories = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
            inside += directories if len(directories) <= _MANY else []
        points = [entry.mount_point for entry in below]
        for each in inside:
            in_mount = any(each == point or is_below(each, point) for point in points)
            if not in_mount and each not in known and _is_directory(each) and division.allowed(path, each):
                known.add(each)
                waiting.append(each)
        for number, entry in enumerate(below):
            point = entry.mount_point
            if point in known or any(is_below(point, other) for other in points[:number]):
                continue  # it is part of the mount above it
            known.add(point)
            try:
                if root == "/" and point in _MACHINES_OWN:
                    parts.append(Part(point, Treatment.SHOW, _with_all(point, left_alone)))
                elif can_be_covered(entry, cover):
                    waiting.append(point)
                else:
                    parts.append(_as_it_is(entry))
            except OSError as error:
                left_alone.append((point, _reason(error)))


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO).lower()


def _with_all(path: str, left_alone: list[tuple[str, str]]) -> int:
    """The mount at `path` with all mounts below it; or without them if they can't be cloned."""
    try:
        return open_tree(AT_FDCWD, path, OpenTree.CLONE | AT_RECURSIVE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            raise
        tree = open_tree(AT_FDCWD, path, OpenTree.CLONE)
        left_alone.append((path, f"what is mounted below is not to be had: {_reason(error)}"))
        return tree


def _open_directory(path: str) -> Part:
    """Raises OSError."""
    status = os.stat(path)
    of_others = not _is_own(status) or (not _is_everybodys(status) and _has_foreign(path))
    try:
        return Part(path, Treatment.COVER, open_tree(AT_FDCWD, path, OpenTree.CLONE), is_of_others=of_others)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return Part(path, Treatment.COVER, fd, is_attached=True, is_of_others=of_others)


def _sockets_in(directory: str) -> list[str]:
    """Sockets and FIFOs, which do not work through a cover. Only the first files are checked (`_LOOKED_AT`)."""
    found, looked_at, waiting = [], 0, [directory]
    while waiting and looked_at < _LOOKED_AT:
        here = waiting.pop(0)
        if here == _USERS_SOCKETS:
            continue
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    looked_at += 1
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode):
                        waiting.append(entry.path)
                    elif stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                        found.append(entry.path)
        except OSError:
            continue
    return found


def _is_everybodys(status: os.stat_result) -> bool:
    """Is it a directory for everybody, such as /tmp, in which each user has their own files?"""
    everybodys = stat.S_ISVTX | stat.S_IWOTH
    return status.st_mode & everybodys == everybodys


def _is_own(status: os.stat_result) -> bool:
    """Can an overlay of a directory be changed? Copying it up needs an id here for its owner, and for its group."""
    known = has_number("uid", status.st_uid) and has_number("gid", status.st_gid)
    return known or _is_everybodys(status)


def _has_foreign(directory: str) -> bool:
    """Does it contain files of users or groups without an id here? Only the first files are checked (`_LOOKED_AT`)."""
    looked_at = 0
    waiting = [directory]
    device = os.stat(directory).st_dev
    uids, gids = known_ids("uid"), known_ids("gid")
    while waiting and looked_at < _LOOKED_AT:
        here = waiting.pop(0)
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    looked_at += 1
                    if looked_at > _LOOKED_AT:
                        return False
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != device:
                        continue
                    if status.st_uid not in uids or status.st_gid not in gids:
                        return True
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(entry.path)
        except OSError:
            continue
    return False


def _first_own(directory: str, path: str) -> str | None:
    """The first directory on the path from `directory` down to `path` that can be changed in an overlay."""
    here = directory
    for name in path[len(directory.rstrip("/")) + 1 :].split("/"):
        here = os.path.join(here, name)
        try:
            status = os.stat(here, follow_symlinks=False)
        except OSError:
            return None
        if not stat.S_ISDIR(status.st_mode):
            return None
        if _is_own(status):
            return here
    return None


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode)
    except OSError:
        return False


def can_be_covered(entry: MountEntry, cover: str) -> bool:
    """Is the mount on a directory, of a file system that stores files, and not a cover itself?"""
    is_kernels = entry.fs_type in KERNELS_OWN or entry.source == cover
    return not is_kernels and stat.S_ISDIR(os.stat(entry.mount_point, follow_symlinks=False).st_mode)


def _as_it_is(entry: MountEntry) -> Part:
    """A mount that is not covered: on a device or of the kernel's own, unchanged; on another file, read-only."""
    path = entry.mount_point
    is_directory = stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode)
    tree = open_tree(AT_FDCWD, path, OpenTree.CLONE | AT_RECURSIVE)
    if is_directory or entry.fs_type in KERNELS_OWN or entry.fs_type.startswith("fuse.viewfs."):
        return Part(path, Treatment.SHOW, tree)
    mount_setattr(tree, "", AT_EMPTY_PATH, set_attributes=MountAttr.RDONLY)
    return Part(path, Treatment.GUARD, tree)


def _unreachable_below(root: str, table: Sequence[MountEntry]) -> list[tuple[str, str]]:
    """Mounts below `root` that can't be opened: in a directory of another user, or of a server that is gone."""
    found = []
    for point in sorted({entry.mount_point for entry in table if is_below(entry.mount_point, root)}):
        try:
            os.close(os.open(point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # these mean that another mount hides it
                found.append((point, _reason(error)))
    return found


def visible_below(
    root: str, table: Sequence[MountEntry], seen: Callable[[str], int | None] = mount_id_at
) -> list[MountEntry]:
    """The mounts below `root` that no other mount hides; parents come before what lies in them."""
    by_id = {entry.mount_id: entry for entry in table}
    points = {entry.mount_point for entry in table if is_below(entry.mount_point, root)}
    found = [by_id.get(seen(point) or -1) for point in sorted(points, key=lambda point: point.split("/"))]
    return [entry for entry in found if entry is not None and entry.mount_point in points]


def assemble(parts: Sequence[tuple[str, int]]) -> int:
    """Make one detached tree of detached mounts: the first, with each other one at its path in it. Raises OSError.

    A mount whose path does not exist (any more) is left out.
    """
    (root, top), *others = parts
    attach_aside(top)
    for point, tree in others:
        try:
            move_mount(tree, "", top, point[len(root.rstrip("/")) + 1 :], MoveMount.F_EMPTY_PATH)
        except FileNotFoundError:
            continue
    return open_tree(top, "", OpenTree.CLONE | AT_EMPTY_PATH | AT_RECURSIVE)
