"""What fanotify_init(2) and fanotify_mark(2) refuse, and in which order (the kernel's fs/notify/fanotify)."""

from __future__ import annotations

import errno
import os

from viewfs.errors import os_error
from viewfs.linux.fanotify import (
    ADMIN_FLAGS,
    EVENT_FILE_FLAGS,
    FD_EVENTS,
    FID_FLAGS,
    INIT_FLAGS,
    MARK_FLAGS,
    PERMISSION_EVENTS,
    Event,
    Init,
    Mark,
)
from viewfs.modules.calls.fanotify.groups import Group, Scope

__all__ = ["EVENT_FLAGS", "check_init", "check_mark", "check_target", "is_kernels_own", "scope_of"]

EVENT_FLAGS = Event.ONDIR | Event.EVENT_ON_CHILD
_EVENTS = int(
    FD_EVENTS | EVENT_FLAGS | Event.ATTRIB | Event.MOVED_FROM | Event.MOVED_TO | Event.CREATE | Event.DELETE
    | Event.DELETE_SELF | Event.MOVE_SELF | Event.RENAME | Event.FS_ERROR | Event.MNT_ATTACH | Event.MNT_DETACH
)  # fmt: skip
#: What makes sense for a directory only.
_ONLY_OF_DIRECTORIES = (
    EVENT_FLAGS | Event.MOVED_FROM | Event.MOVED_TO | Event.CREATE | Event.DELETE | Event.RENAME
)  # fmt: skip
_TYPES = Mark.MOUNT | Mark.FILESYSTEM
_SCOPES: dict[int, Scope] = {0: "inode", Mark.MOUNT: "mount", Mark.FILESYSTEM: "filesystem"}
_IGNORING = Mark.IGNORED_MASK | Mark.IGNORE


def is_kernels_own(flags: int) -> bool:
    """Does the kernel let everybody have such a group? It knows best then, also what is wrong with it."""
    return bool(flags & (FID_FLAGS | Init.REPORT_MNT)) and not flags & ADMIN_FLAGS


def check_init(flags: int, file_flags: int) -> None:
    """Raises OSError: EINVAL, EPERM."""
    if flags & ~INIT_FLAGS:
        raise os_error(errno.EINVAL)
    if flags & Init.REPORT_PIDFD and flags & Init.REPORT_TID:
        raise os_error(errno.EINVAL)
    if file_flags & ~EVENT_FILE_FLAGS or file_flags & os.O_ACCMODE == os.O_ACCMODE:
        raise os_error(errno.EINVAL)
    classes = flags & (Init.CLASS_CONTENT | Init.CLASS_PRE_CONTENT)
    if classes == Init.CLASS_CONTENT | Init.CLASS_PRE_CONTENT:
        raise os_error(errno.EINVAL)
    named = flags & FID_FLAGS
    if named and classes:
        raise os_error(errno.EINVAL)
    if named & Init.REPORT_NAME and not named & Init.REPORT_DIR_FID:
        raise os_error(errno.EINVAL)
    if named & Init.REPORT_TARGET_FID and not (named & Init.REPORT_NAME and named & Init.REPORT_FID):
        raise os_error(errno.EINVAL)


def scope_of(flags: int) -> Scope:
    """Raises OSError: EINVAL."""
    try:
        return _SCOPES[flags & _TYPES]
    except KeyError:
        raise os_error(errno.EINVAL) from None


def check_mark(group: Group, flags: int, mask: int) -> Event:
    """The mask that counts. Raises OSError: EINVAL."""
    command = flags & (Mark.ADD | Mark.REMOVE | Mark.FLUSH)
    if mask >> 32 or flags & ~MARK_FLAGS:
        raise os_error(errno.EINVAL)
    scope = scope_of(flags)
    if command not in (Mark.ADD, Mark.REMOVE, Mark.FLUSH):
        raise os_error(errno.EINVAL)
    if command == Mark.FLUSH:
        if flags & ~int(_TYPES | Mark.FLUSH):
            raise os_error(errno.EINVAL)
    elif not mask:
        raise os_error(errno.EINVAL)
    if mask & ~_EVENTS or flags & _IGNORING == _IGNORING:
        raise os_error(errno.EINVAL)
    if flags & Mark.IGNORED_MASK:
        mask &= ~int(EVENT_FLAGS)
    if mask & (PERMISSION_EVENTS | Event.PRE_ACCESS) and group.priority == 0:
        raise os_error(errno.EINVAL)
    if mask & Event.PRE_ACCESS and (group.priority == 1 or mask & Event.ONDIR):
        raise os_error(errno.EINVAL)
    if flags & Mark.EVICTABLE and scope != "inode":
        raise os_error(errno.EINVAL)
    if mask & ~int(FD_EVENTS | EVENT_FLAGS):  # these would take a group that reports handles
        raise os_error(errno.EINVAL)
    if command == Mark.ADD and _drops_ignored(flags) and scope != "inode":
        raise os_error(errno.EINVAL)
    return Event(mask)


def check_target(flags: int, mask: Event, *, is_directory: bool, is_kernels: bool) -> None:
    """Raises OSError, as the object of a mark is no directory, say."""
    if flags & Mark.ONLYDIR and not is_directory:
        raise os_error(errno.ENOTDIR)
    if not flags & Mark.ADD:
        return
    inode = scope_of(flags) == "inode"
    if is_kernels and not inode:
        raise os_error(errno.EINVAL)
    if mask & Event.PRE_ACCESS:
        raise os_error(errno.EOPNOTSUPP)
    if inode and not is_directory and flags & Mark.IGNORE and mask & _ONLY_OF_DIRECTORIES:
        raise os_error(errno.ENOTDIR)
    if inode and is_directory and _drops_ignored(flags):
        raise os_error(errno.EISDIR)


def _drops_ignored(flags: int) -> bool:
    return bool(flags & Mark.IGNORE) and not flags & Mark.IGNORED_SURV_MODIFY
