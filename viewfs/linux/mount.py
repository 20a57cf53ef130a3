"""mount(2), umount2(2), pivot_root(2) and the file-descriptor based mount calls of fsopen(2), open_tree(2) and others.

Constants: linux/mount.h, linux/fcntl.h.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntEnum, IntFlag

from viewfs.linux.libc import check, function, path_bytes, syscall

__all__ = [
    "AT_EMPTY_PATH",
    "AT_FDCWD",
    "AT_RECURSIVE",
    "FsConfig",
    "MountAttr",
    "MountFlags",
    "MoveMount",
    "OpenTree",
    "UmountFlags",
    "detached_tmpfs",
    "fsconfig_create",
    "fsconfig_flag",
    "fsconfig_string",
    "fsmount",
    "fsopen",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "read_messages",
    "umount2",
]

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000


class MountFlags(IntFlag):
    """MS_* of linux/mount.h."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 4096
    REC = 16384
    PRIVATE = 1 << 18
    SLAVE = 1 << 19


class UmountFlags(IntFlag):
    """MNT_* and UMOUNT_NOFOLLOW of umount2(2)."""

    NONE = 0
    FORCE = 1
    DETACH = 2
    EXPIRE = 4
    NOFOLLOW = 8


class OpenTree(IntFlag):
    """OPEN_TREE_* of linux/mount.h."""

    CLONE = 1
    CLOEXEC = os.O_CLOEXEC


class MoveMount(IntFlag):
    """MOVE_MOUNT_* of linux/mount.h."""

    F_SYMLINKS = 0x1
    F_EMPTY_PATH = 0x4
    T_SYMLINKS = 0x10
    T_EMPTY_PATH = 0x40


class MountAttr(IntFlag):
    """MOUNT_ATTR_* of linux/mount.h."""

    NONE = 0
    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8


class FsConfig(IntEnum):
    """FSCONFIG_* of linux/mount.h."""

    SET_FLAG = 0
    SET_STRING = 1
    CMD_CREATE = 6


class _MountAttrStruct(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


_c = ctypes
_mount = function("mount", _c.c_char_p, _c.c_char_p, _c.c_char_p, _c.c_ulong, _c.c_char_p)
_umount2 = function("umount2", _c.c_char_p, _c.c_int)
_pivot_root = syscall("pivot_root", _c.c_char_p, _c.c_char_p)
_fsopen = syscall("fsopen", _c.c_char_p, _c.c_uint)
_fsconfig = syscall("fsconfig", _c.c_int, _c.c_uint, _c.c_char_p, _c.c_char_p, _c.c_int)
_fsmount = syscall("fsmount", _c.c_int, _c.c_uint, _c.c_uint)
_open_tree = syscall("open_tree", _c.c_int, _c.c_char_p, _c.c_uint)
_move_mount = syscall("move_mount", _c.c_int, _c.c_char_p, _c.c_int, _c.c_char_p, _c.c_uint)
_mount_setattr = syscall("mount_setattr", _c.c_int, _c.c_char_p, _c.c_uint, _c.c_void_p, _c.c_size_t)

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1


def mount(source: str | None, target: str, fs_type: str | None, flags: MountFlags, data: str | None = None) -> None:
    """mount(2)."""
    text = None if data is None else data.encode()
    kind = None if fs_type is None else fs_type.encode()
    check(_mount(path_bytes(source), path_bytes(target), kind, int(flags), text), "mount", target)


def umount2(target: str | bytes, flags: UmountFlags = UmountFlags.NONE) -> None:
    """umount2(2)."""
    check(_umount2(path_bytes(target), int(flags)), "umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    check(_pivot_root(path_bytes(new_root), path_bytes(put_old)), "pivot_root", new_root)


def fsopen(fs_type: str) -> int:
    """fsopen(2): a close-on-exec descriptor of a file system context."""
    return check(_fsopen(fs_type.encode(), _FSOPEN_CLOEXEC), f"fsopen {fs_type}")


def fsconfig_string(context: int, key: str, value: str | bytes) -> None:
    """fsconfig(2) with FSCONFIG_SET_STRING."""
    check(_fsconfig(context, FsConfig.SET_STRING, key.encode(), os.fsencode(value), 0), f"fsconfig {key}")


def fsconfig_flag(context: int, key: str) -> None:
    """fsconfig(2) with FSCONFIG_SET_FLAG."""
    check(_fsconfig(context, FsConfig.SET_FLAG, key.encode(), None, 0), f"fsconfig {key}")


def fsconfig_create(context: int) -> None:
    """fsconfig(2) with FSCONFIG_CMD_CREATE: makes the superblock."""
    check(_fsconfig(context, FsConfig.CMD_CREATE, None, None, 0), "fsconfig create")


def fsmount(context: int, attributes: MountAttr) -> int:
    """fsmount(2): a close-on-exec descriptor of a mount that is attached nowhere yet."""
    return check(_fsmount(context, _FSMOUNT_CLOEXEC, int(attributes)), "fsmount")


def open_tree(directory: int, path: str | bytes, flags: int) -> int:
    """open_tree(2). With `OpenTree.CLONE` the descriptor is of a detached copy; AT_RECURSIVE takes all below it too."""
    return check(_open_tree(directory, path_bytes(path), flags | OpenTree.CLOEXEC), "open_tree", path)


def move_mount(
    from_directory: int, from_path: str | bytes, to_directory: int, to_path: str | bytes, flags: MoveMount
) -> None:
    """move_mount(2)."""
    arguments = (from_directory, path_bytes(from_path), to_directory, path_bytes(to_path), int(flags))
    check(_move_mount(*arguments), "move_mount", to_path or None)


def mount_setattr(
    directory: int,
    path: str | bytes,
    flags: int,
    *,
    set_attributes: MountAttr = MountAttr.NONE,
    clear: MountAttr = MountAttr.NONE,
    propagation: MountFlags | int = 0,
) -> None:
    """mount_setattr(2)."""
    attributes = _MountAttrStruct(int(set_attributes), int(clear), int(propagation), 0)
    result = _mount_setattr(directory, path_bytes(path), flags, ctypes.addressof(attributes), ctypes.sizeof(attributes))
    check(result, "mount_setattr", path or None)


def read_messages(context: int) -> list[str]:
    """What the kernel has to say about a failed step on the descriptor of fsopen(2), without the level letter."""
    messages: list[str] = []
    while True:
        try:
            line = os.read(context, 4096)
        except OSError:
            return messages
        messages.append(line.decode(errors="replace").partition(" ")[2].strip())


def detached_tmpfs(source: str, options: dict[str, str], attributes: MountAttr = MountAttr.NONE) -> int:
    """A detached tmpfs. Raises OSError."""
    context = fsopen("tmpfs")
    try:
        fsconfig_string(context, "source", source)
        for key, value in options.items():
            fsconfig_string(context, key, value)
        fsconfig_create(context)
        return fsmount(context, attributes)
    finally:
        os.close(context)
