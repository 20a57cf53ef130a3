"""mount(2) and umount2(2) of a program in a view, by the session: they make epochs, as `viewfs mount` does."""

from __future__ import annotations

import errno
import os

from viewfs.errors import ViewfsError
from viewfs.session.calls.caller import Caller
from viewfs.session.client import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from viewfs.linux.unotify import NotifiedCall

__all__ = ["CALLS", "answer"]

#: MS_*, MNT_* and UMOUNT_* of sys/mount.h.
_RDONLY, _REMOUNT, _BIND, _MOVE = 1, 32, 4096, 8192
_UNBINDABLE, _PRIVATE, _SLAVE, _SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
_MAGIC, _MAGIC_MASK = 0xC0ED0000, 0xFFFF0000
#: OPEN_TREE_CLONE of linux/mount.h.
_CLONE = 1
_FORCE, _DETACH, _NOFOLLOW = 1, 2, 8
#: File systems of the kernel → what viewfs has for them. None: the content tells.
_TYPES: dict[str, str | None] = {
    "tmpfs": "tmp", "ramfs": "tmp",
    "ext2": "ext", "ext3": "ext", "ext4": "ext", "squashfs": "squashfs", "vfat": "vfat", "msdos": "vfat",
    "exfat": "exfat", "auto": None,
}  # fmt: skip
#: Options of tmpfs(5) that are not just hints.
_TMPFS_OPTIONS = ("size", "mode")
#: What fuse(8) gives the kernel.
_FUSE_OPTIONS = ("rootmode", "user_id", "group_id", "max_read", "default_permissions", "allow_other")
#: Exit code of an error → errno.
_ERRNO = {2: errno.EINVAL, 3: errno.EPERM, 4: errno.EINVAL, 5: errno.EINVAL}


def _mount(caller: Caller, arguments: list[int], session: Session) -> int | None:
    source_at, place_at, type_at, flags, data_at, _none = arguments
    if flags & _MAGIC_MASK == _MAGIC:
        flags &= ~_MAGIC_MASK
    if flags & (_PRIVATE | _SLAVE):
        return 0  # nothing that is mounted in a view is seen elsewhere
    if flags & _REMOUNT:
        return _remount(caller, place_at, flags, session)
    kind = os.fsdecode(caller.text(type_at) or b"")
    is_of_program = kind == "fuse" or kind.startswith("fuse.")
    if flags & (_MOVE | _SHARED | _UNBINDABLE) or not (flags & _BIND or is_of_program or kind in _TYPES):
        return None
    source, place = caller.text(source_at) or b"", caller.text(place_at)
    if place is None:
        return errno.EFAULT
    path = caller.canonical(place)
    given = {"ro": ""} if flags & _RDONLY else {}
    if flags & _BIND:
        return _asked(session, caller, _request("bind", caller.canonical(source), path, given))
    data = _options(caller.text(data_at) or b"")
    if is_of_program:
        options = {name: value for name, value in data.items() if name in _FUSE_OPTIONS}
        subtype = kind.partition(".")[2]
        options["subtype"] = subtype
        name = os.fsdecode(source) or subtype
        with caller.descriptor(int(data["fd"] or "")) as device:
            return _asked(session, caller, _request("fuse", name, path, given | options), [device])
    if _TYPES[kind] == "tmp":
        options = {name: value for name, value in data.items() if name in _TMPFS_OPTIONS}
        return _asked(session, caller, _request("tmp", "", path, options))
    return _asked(session, caller, _request(_TYPES[kind], caller.canonical(source), path, {}))


def _remount(caller: Caller, place_at: int, flags: int, session: Session) -> int:
    place = caller.text(place_at)
    if place is None:
        return errno.EFAULT
    request = {"operation": "remount", "path": caller.canonical(place), "read_only": bool(flags & _RDONLY)}
    return _asked(session, caller, request)


def _options(data: bytes) -> dict[str, str | None]:
    """The options of mount(2)'s last argument; None for one without a value."""
    pairs = (option.partition("=") for option in os.fsdecode(data).split(",") if option)
    return {name: value if equals else None for name, equals, value in pairs}


def _request(kind: str | None, source: str, path: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": kind,
        "source": source,
        "path": path,
        "options": options,
        "cwd": "/",
        "module_path": [],
        "operation": "mount",
    }


def _umount(caller: Caller, arguments: list[int], session: Session) -> int | None:
    place, flags = caller.text(arguments[0]), arguments[1]
    if place is None:
        return errno.EFAULT
    if flags & ~(_FORCE | _DETACH | _NOFOLLOW):
        return None
    path = caller.canonical(place, follow=not flags & _NOFOLLOW)
    request = {"path": path, "lazy": bool(flags & _DETACH), "force": bool(flags & _FORCE), "operation": "umount"}
    return _asked(session, caller, request)


def _asked(session: Session, caller: Caller, request: dict[str, Any], fds: list[int] | None = None) -> int:
    """Have the session do it: 0, or an errno."""
    try:
        session.request(request["operation"], fds, caller=caller.name, **request)
    except ViewfsError as error:
        if "busy" in error.message:
            return errno.EBUSY
        return _ERRNO.get(error.exit_code, errno.EIO)
    return 0


def _is_missing(_caller: Caller, _arguments: list[int], _session: Session) -> int:
    """Programs that find the newer calls missing use mount(2)."""
    return errno.ENOSYS


def _open_tree(_caller: Caller, arguments: list[int], _session: Session) -> int | None:
    return errno.ENOSYS if arguments[2] & _CLONE else None  # else it is as open(2)


#: Call → what does it: 0, an errno, or None if the kernel is to do it. Raises OSError: that errno.
CALLS: dict[str, Callable[[Caller, list[int], Session], int | None]] = {
    "mount": _mount,
    "umount": lambda caller, arguments, session: _umount(caller, [arguments[0], 0], session),
    "umount2": _umount,
    "fsopen": _is_missing,
    "fspick": _is_missing,
    "open_tree": _open_tree,
    "move_mount": _is_missing,
    "mount_setattr": _is_missing,
}


def answer(call: NotifiedCall, name: str) -> int | None:
    """What `CALLS` says; None too where the caller lives in no view, or has mounts of its own."""
    caller = Caller(call.tid)
    try:
        session = Session.of_view(call.tid)
        with session:
            if session.status["namespaces"]["mnt"] != list(caller.mount_namespace()):
                return None
            return CALLS[name](caller, call.arguments, session)
    except ViewfsError:
        return None
    except OSError as error:
        return error.errno or errno.EIO
    except (KeyError, ValueError):
        return errno.EINVAL
