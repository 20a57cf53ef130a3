"""mount(2) and umount2(2) of a program in a view, by the session: they make epochs, as `viewfs mount` does."""

from __future__ import annotations

import errno
import os
import time
from functools import partial

from viewfs.errors import ViewfsError
from viewfs.linux.process import CAP_SYS_ADMIN, CAP_SYS_PTRACE, drop_capabilities
from viewfs.modules.trees.overlay import escaped, layers_of
from viewfs.session.calls.caller import Caller, join_user_namespace
from viewfs.session.calls.marking import mark_for, watched_below
from viewfs.session.client import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from viewfs.linux.unotify import NotifiedCall

__all__ = ["answer"]

#: MS_*, MNT_* and UMOUNT_* of sys/mount.h.
_RDONLY, _NOEXEC, _REMOUNT, _BIND, _MOVE = 1, 8, 32, 4096, 8192
#: MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, which MOUNT_ATTR_* have the values of.
_ATTRIBUTES = 0xF
_UNBINDABLE, _PRIVATE, _SLAVE, _SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
_MAGIC, _MAGIC_MASK = 0xC0ED0000, 0xFFFF0000
_FORCE, _DETACH, _NOFOLLOW = 1, 2, 8
#: File systems of the kernel → what viewfs has for them. None: the content tells.
_TYPES: dict[str, str | None] = {
    "tmpfs": "tmp", "ramfs": "tmp",
    "ext2": "ext", "ext3": "ext", "ext4": "ext", "squashfs": "squashfs", "vfat": "vfat", "msdos": "vfat",
    "exfat": "exfat", "overlay": "overlay", "auto": None,
}  # fmt: skip
#: Options of tmpfs(5) that change nothing a program could count on, or are as they have to be in a view.
_TMPFS_HINTS = {"huge", "mpol", "inode32", "inode64", "noswap", "nr_inodes", "nr_blocks"}
#: Those of overlayfs that a user namespace has as they have to be, or that are the kernel's matter.
_OVERLAY_HINTS = {"userxattr", "index", "metacopy", "redirect_dir", "xino", "nfs_export", "uuid"}
#: What fuse(8) gives the kernel.
_FUSE_OPTIONS = ("rootmode", "user_id", "group_id", "max_read", "default_permissions", "allow_other")
#: How long whoever has watched a directory may keep it, once nothing watches it any more; and how often one tries.
_LET_GO_SECONDS, _AGAIN_SECONDS = 2.0, 0.01
#: Exit code of an error → errno.
_ERRNO = {2: errno.EINVAL, 3: errno.EPERM, 4: errno.EINVAL, 5: errno.EINVAL}


def _mount(caller: Caller, arguments: list[int], session: Session) -> int | None:
    source_at, place_at, type_at, flags, data_at, _none = arguments
    if flags & _MAGIC_MASK == _MAGIC:
        flags &= ~_MAGIC_MASK
    if flags & (_PRIVATE | _SLAVE):
        return 0  # nothing that is mounted in a view is seen elsewhere
    kind = os.fsdecode(caller.text(type_at) or b"")
    is_of_program = kind == "fuse" or kind.startswith("fuse.")
    if flags & (_MOVE | _SHARED | _UNBINDABLE):
        return None
    if not (flags & (_BIND | _REMOUNT) or is_of_program or kind in _TYPES):
        return None
    place = caller.text(place_at)
    if place is None:
        return errno.EFAULT
    path, on_directory = caller.place(place)
    if flags & _REMOUNT:
        return _remount(session, caller, path, flags & _ATTRIBUTES, _RDONLY | _NOEXEC)
    source, data = caller.text(source_at) or b"", _options(caller.text(data_at) or b"")
    if flags & _BIND:  # which heeds no other flags (mount(2))
        name, of_directory = caller.place(source)
        result = errno.ENOTDIR
        if of_directory == on_directory:
            result = _asked(session, caller, _request("bind", name, path, {}))
        return result
    if is_of_program:
        result = _mount_program(session, caller, kind, source, path, data, flags)
    elif _TYPES[kind] == "tmp":
        if not on_directory:
            return errno.ENOTDIR
        result = _asked(session, caller, _request("tmp", "", path, _tmpfs_options(data, source)))
    elif kind == "overlay":
        request = _request("overlay", os.fsdecode(source), path, _overlay_options(caller, data))
        result = _asked(session, caller, request, otherwise=errno.EINVAL)
    elif flags & _RDONLY or kind == "squashfs":
        result = _asked(session, caller, _request(_TYPES[kind], caller.canonical(source), path, {}))
    else:
        return errno.EROFS  # mount(8) tries it again, read-only
    # (All that is mounted in a view is nosuid and nodev; images and what programs serve are read-only by themselves.)
    attributes = flags & (_RDONLY | _NOEXEC if _TYPES.get(kind) in ("tmp", "overlay") else _NOEXEC)
    if result == 0 and attributes and (result := _remount(session, caller, path, attributes, 0)):
        _asked(session, caller, _unmounting(path, lazy=True))
    return result


def _mount_program(
    session: Session, caller: Caller, kind: str, source: bytes, path: str, data: dict[str, str | None], flags: int
) -> int:
    options = {name: value for name, value in data.items() if name in _FUSE_OPTIONS}
    if flags & _RDONLY:
        options["ro"] = None
    options["subtype"] = subtype = kind.partition(".")[2]
    number = data["fd"] or ""
    if not (number.isascii() and number.isdigit()):
        return errno.EINVAL
    with caller.descriptor(int(number)) as device:
        request = _request("fuse", os.fsdecode(source) or subtype, path, options)
        return _asked(session, caller, request, [device], otherwise=errno.EINVAL)


def _tmpfs_options(data: dict[str, str | None], source: bytes) -> dict[str, str | None]:
    """Those of our module that stand for these of tmpfs(5). Raises ValueError for what can't be had."""
    options: dict[str, str | None] = {"source": os.fsdecode(source) or "none"}
    for name, value in data.items():
        if name in ("size", "mode"):
            options[name] = value
        elif name not in _TMPFS_HINTS:
            raise ValueError(name)
    if (size := options.get("size") or "").endswith("%"):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        options["size"] = str(pages * int(size[:-1]) // 100)
    return options


def _overlay_options(caller: Caller, data: dict[str, str | None]) -> dict[str, str | None]:
    """As `_tmpfs_options`, of overlayfs: paths become absolute. Raises OSError for what is no directory, too."""
    options: dict[str, str | None] = {}
    for name, value in data.items():
        if name == "volatile":
            options[name] = None
        elif name in ("upperdir", "workdir"):
            options[name] = caller.canonical(os.fsencode(value or ""))
        elif name in ("lowerdir", "lowerdir+"):
            layers = [escaped(caller.canonical(os.fsencode(one))) for one in layers_of(value or "")]
            options["lowerdir"] = ":".join([*filter(None, [options.get("lowerdir")]), *layers])
        elif name not in _OVERLAY_HINTS:
            raise ValueError(name)
    return options


def _remount(session: Session, caller: Caller, path: str, attributes: int, clear: int) -> int:
    """Have a mount get these MS_* flags, and lose those of `clear` that are not among them."""
    request = {"operation": "remount", "path": path, "set": attributes, "clear": clear & ~attributes}
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
    lazy, force = bool(flags & _DETACH), bool(flags & _FORCE)
    watching = [one for one in watched_below(caller.tid, path) if not lazy or one == path]
    for one in watching:
        if result := _asked(session, caller, _unmounting(one, lazy=lazy, force=force)):
            return result
    deadline = time.monotonic() + (_LET_GO_SECONDS if watching else 0)
    while True:
        result = _asked(session, caller, _unmounting(path, lazy=lazy, force=force))
        if result != errno.EBUSY or time.monotonic() >= deadline:
            return result
        time.sleep(_AGAIN_SECONDS)  # what has watched it lets go of it now


def _unmounting(path: str, *, lazy: bool, force: bool = False) -> dict[str, Any]:
    """As umount2(2) does: with MNT_DETACH what is mounted inside goes too, and a part of a bind can go by itself."""
    return {"operation": "umount", "path": path, "lazy": lazy, "force": force, "inside": lazy, "part": True}


def _asked(
    session: Session,
    caller: Caller,
    request: dict[str, Any],
    fds: list[int] | None = None,
    *,
    otherwise: int = errno.EIO,
) -> int:
    """Have the session do it: 0, or an errno."""
    try:
        session.request(request["operation"], fds, caller=caller.name, **request)
    except ViewfsError as error:
        if "busy" in error.message:
            return errno.EBUSY
        return _ERRNO.get(error.exit_code, otherwise)
    return 0


#: Call (of `notified.MOUNTING` or `MARKING`) → what does it: 0, an errno, or None if the kernel is to. Raises OSError.
CALLS: dict[str, Callable[[Caller, list[int], Session], int | None]] = {
    "mount": _mount,
    "umount": lambda caller, arguments, session: _umount(caller, [arguments[0], 0], session),
    "umount2": _umount,
    "fanotify_mark": partial(mark_for, bits=64),
    "fanotify_mark32": partial(mark_for, bits=32),
}
#: What a process that answers a call keeps.
_KEPT = {name: {CAP_SYS_PTRACE} for name in CALLS}
_KEPT["fanotify_mark"] = _KEPT["fanotify_mark32"] = {CAP_SYS_PTRACE, CAP_SYS_ADMIN}


def answer(call: NotifiedCall, name: str) -> int | None:
    """What `CALLS` says; None too where the caller lives in no view, or has mounts of its own."""
    caller = Caller(call.tid)
    try:
        session = Session.of_view(call.tid)
        with session:
            if session.status["namespaces"]["mnt"] != list(caller.mount_namespace()):
                return None
            join_user_namespace(call.tid)
            drop_capabilities(_KEPT[name])  # which its descriptors and its root take
            return CALLS[name](caller, call.arguments, session)
    except ViewfsError:
        return None
    except OSError as error:
        return error.errno or errno.EIO
    except (KeyError, ValueError):
        return errno.EINVAL
