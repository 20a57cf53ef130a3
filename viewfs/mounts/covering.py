"""Covering a tree of mounts with another: which mounts lie at and below a path, and putting others in their places.

A cover is of one mount, so that a tree with mounts below it takes a cover of each. What is not covered comes along as
it is: the kernel's own file systems, and what is mounted on a single file.

Two things the kernel's overlay can't do in a user namespace. It changes nothing that belongs to users whom the
namespace has no number for (capable_wrt_inode_uidgid of the kernel). And it can't have a directory below which
something is mounted outside of the view, which the kernel shows to nobody without what is mounted there
(mount_namespaces(7)). Such a part takes another cover; the directories in it that an overlay can have are parts of
their own, so that work in them is fast.
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

#: File systems that show the kernel rather than keep files (Documentation/filesystems).
_KERNELS_OWN = frozenset(
    "autofs binder binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue"
    " nsfs proc pstore rpc_pipefs securityfs selinuxfs sysfs tracefs".split()
)
#: A directory with more directories in it is not divided.
_MANY = 100
#: So many files are looked at to tell whether all of a tree can be changed in an overlay: some milliseconds.
_LOOKED_AT = 2000
#: What belongs to the machine as it runs.
_MACHINES_OWN = frozenset({"/dev", "/proc", "/sys"})
#: Where the sockets of a machine's services are; and where those of its users are, which is shown as it is.
_SOCKETS, _USERS_SOCKETS = "/run", "/run/user"


class Treatment(Enum):
    """What becomes of one mount, or of one directory."""

    #: It gets a cover.
    COVER = "cover"
    #: It is shown as it is.
    SHOW = "show"
    #: It is shown, and can't be written: a single file that is mounted.
    GUARD = "guard"


@dataclass(frozen=True)
class Part:
    """One piece of a tree: what is mounted at `path`, by a descriptor that belongs to it."""

    path: str
    treatment: Treatment
    #: A detached copy of the mount, or where `is_attached` the directory, with what is mounted below it.
    tree: int
    is_attached: bool = False
    #: It is the directory of somebody whom this user namespace has no number for.
    is_of_others: bool = False


@dataclass(frozen=True)
class Division:
    """Which directories are to be parts of their own, although nothing is mounted on them."""

    #: These, whatever they are in.
    always: Sequence[str] = ()
    #: Of what an overlay can't have: the topmost on the way to one of these that it can.
    within: Sequence[str] = ()
    #: May a directory be one, in the part at the path that comes first?
    allowed: Callable[[str, str], bool] = lambda _part, _path: True


def in_root() -> list[str]:
    """The directories in the root, but for what belongs to the machine as it runs."""
    with os.scandir("/") as entries:
        return sorted(e.path for e in entries if e.is_dir(follow_symlinks=False) and e.path not in _MACHINES_OWN)


def mount_id_at(path: str) -> int | None:
    """The number of the mount that is to be seen at `path`; None where it can't be looked at."""
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
    """What there is of a tree."""

    #: Itself first; a directory comes before what lies in it.
    parts: list[Part]
    #: Mounts that can't be looked at, with the reason: they stay as they are.
    left_alone: list[tuple[str, str]]


def open_parts(
    root: str, table: Sequence[MountEntry], cover: str, shown: Sequence[str] = (), division: Division | None = None
) -> Opened:
    """What is seen at and below `root`, in parts.

    `cover` is the source of mounts that are covers. (Another view's are file systems like others.) The directories
    `shown` stay as they are. Raises `UsageError` where `root` is in a file system that can't be covered, or is covered
    already, and OSError.
    """
    holding = next((entry for entry in table if entry.mount_id == mount_id_at(root)), None)
    if holding is None or holding.fs_type in _KERNELS_OWN:
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
                continue  # it comes with that one
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
    """What is mounted at `path` with all that is mounted below, or alone where something there can't be had."""
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
    """Sockets and FIFOs, which are none any more when they are seen through a cover, as far as a short look goes."""
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
    """In a directory for everybody (/tmp) each has what they made."""
    everybodys = stat.S_ISVTX | stat.S_IWOTH
    return status.st_mode & everybodys == everybodys


def _is_own(status: os.stat_result) -> bool:
    """Can an overlay of a directory be changed? Copying up takes a number for its owner, and one for its group."""
    known = has_number("uid", status.st_uid) and has_number("gid", status.st_gid)
    return known or _is_everybodys(status)


def _has_foreign(directory: str) -> bool:
    """Is something of users or groups without a number in it, as far as a short look goes?"""
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
    """The first directory on the way from `directory` to `path`, which lies in it, that is this user's own."""
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
    """Is it a directory's mount, of a file system that keeps files, and not covered yet?"""
    is_kernels = entry.fs_type in _KERNELS_OWN or entry.source == cover
    return not is_kernels and stat.S_ISDIR(os.stat(entry.mount_point, follow_symlinks=False).st_mode)


def _as_it_is(entry: MountEntry) -> Part:
    """A mount that is not covered: of a device or of the kernel's own, as it is; of another file, to be read only."""
    path = entry.mount_point
    is_directory = stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode)
    tree = open_tree(AT_FDCWD, path, OpenTree.CLONE | AT_RECURSIVE)
    if is_directory or entry.fs_type in _KERNELS_OWN or entry.fs_type.startswith("fuse.viewfs."):
        return Part(path, Treatment.SHOW, tree)
    mount_setattr(tree, "", AT_EMPTY_PATH, set_attributes=MountAttr.RDONLY)
    return Part(path, Treatment.GUARD, tree)


def _unreachable_below(root: str, table: Sequence[MountEntry]) -> list[tuple[str, str]]:
    """What is mounted below `root` and can't be looked at: in a directory of others, or of a server that is gone."""
    found = []
    for point in sorted({entry.mount_point for entry in table if is_below(entry.mount_point, root)}):
        try:
            os.close(os.open(point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # else something hides it
                found.append((point, _reason(error)))
    return found


def visible_below(
    root: str, table: Sequence[MountEntry], seen: Callable[[str], int | None] = mount_id_at
) -> list[MountEntry]:
    """What is mounted below `root` and not hidden by something else; parents come before what lies in them."""
    by_id = {entry.mount_id: entry for entry in table}
    points = {entry.mount_point for entry in table if is_below(entry.mount_point, root)}
    found = [by_id.get(seen(point) or -1) for point in sorted(points, key=lambda point: point.split("/"))]
    return [entry for entry in found if entry is not None and entry.mount_point in points]


def assemble(parts: Sequence[tuple[str, int]]) -> int:
    """One detached tree of detached mounts, each to be at its place in the first. Raises OSError.

    A place that is not there (any more) is left out.
    """
    (root, top), *others = parts
    attach_aside(top)
    for point, tree in others:
        try:
            move_mount(tree, "", top, point[len(root.rstrip("/")) + 1 :], MoveMount.F_EMPTY_PATH)
        except FileNotFoundError:
            continue
    return open_tree(top, "", OpenTree.CLONE | AT_EMPTY_PATH | AT_RECURSIVE)
