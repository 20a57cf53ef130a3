"""fanotify_mark(2) on a group of the kernel's, which an ordinary user may have: marks on a mount or a file system.

The kernel lets whoever is an administrator of the file system's user namespace put them there (Linux 6.16). The session
is, and the programs of a view are not.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from viewfs.linux.fanotify import Mark, fanotify_mark
from viewfs.linux.mountinfo import parse_mountinfo
from viewfs.paths import is_at_or_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from viewfs.session.calls.caller import Caller
    from viewfs.session.client import Session

__all__ = ["WATCHING", "mark_for", "watched_below"]

#: The source, in the table of mounts, of what lies over a watched directory.
WATCHING = "viewfs-fanotify"

_GROUP = "anon_inode:[fanotify]"


def mark_for(caller: Caller, arguments: list[int], _session: Session, *, bits: int) -> int | None:
    """Put it there: 0. None if the group is no such one. Raises OSError."""
    group, flags, mask, at, path_at, _none = arguments
    if bits == 32:
        mask, at, path_at = mask & 0xFFFFFFFF | (at & 0xFFFFFFFF) << 32, path_at, _none
    with caller.descriptor(group & 0xFFFFFFFF) as fd:
        if os.readlink(f"/proc/self/fd/{fd}") != _GROUP:
            return None
        flags &= 0xFFFFFFFF
        with _target(caller, at & 0xFFFFFFFF, caller.text(path_at), follow=not flags & Mark.DONT_FOLLOW) as target:
            fanotify_mark(fd, flags & ~Mark.DONT_FOLLOW, mask, f"/proc/self/fd/{target}")
    return 0


def watched_below(tid: int, path: str) -> list[str]:
    """The watched directories at `path` and in it, as thread `tid` sees them: what is in one comes first."""
    with open(f"/proc/{tid}/mountinfo", "rb") as table:
        entries = parse_mountinfo(table.read())
    found = [entry.mount_point for entry in entries if entry.source == WATCHING and entry.fs_type.startswith("fuse")]
    return sorted((one for one in found if is_at_or_below(one, path)), key=len, reverse=True)


@contextmanager
def _target(caller: Caller, directory: int, path: bytes | None, *, follow: bool) -> Iterator[int]:
    if path is None:
        with caller.descriptor(directory) as fd:
            yield fd
        return
    fd = caller.opened_at(directory, path, follow=follow)
    try:
        yield fd
    finally:
        os.close(fd)
