"""mount(2), umount2(2), pivot_root(2) and the file-descriptor based mount calls of fsopen(2), open_tree(2) and others.

Constants: linux/mount.h, linux/fcntl.h; plain numbers, so that opening a view need not wait for `enum`.
"""

from __future__ import annotations

import os
import struct

from viewfs.linux.libc import c_char_p, c_int, c_size_t, c_uint, c_ulong, check, function, path_bytes, syscall

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


class MountFlags:
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


class UmountFlags:
    """MNT_* and UMOUNT_NOFOLLOW of umount2(2)."""

    NONE = 0
    FORCE = 1
    DETACH = 2
    EXPIRE = 4
    NOFOLLOW = 8


class OpenTree:
    """OPEN_TREE_* of linux/mount.h."""

    CLONE = 1
    CLOEXEC = os.O_CLOEXEC


class MoveMount:
    """MOVE_MOUNT_* of linux/mount.h."""

    F_SYMLINKS = 0x1
    F_EMPTY_PATH = 0x4
    T_SYMLINKS = 0x10
    T_EMPTY_PATH = 0x40


class MountAttr:
    """MOUNT_ATTR_* of linux/mount.h."""

    NONE = 0
    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8


class FsConfig:
    """FSCONFIG_* of linux/mount.h."""

    SET_FLAG = 0
    SET_STRING = 1
    CMD_CREATE = 6


#: struct mount_attr: set, clear, propagation, user namespace.
_MOUNT_ATTR = struct.Struct("4Q")
_mount = function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = function("umount2", c_char_p, c_int)
_pivot_root = syscall("pivot_root", c_char_p, c_char_p)
_fsopen = syscall("fsopen", c_char_p, c_uint)
_fsconfig = syscall("fsconfig", c_int, c_uint, c_char_p, c_char_p, c_int)
_fsmount = syscall("fsmount", c_int, c_uint, c_uint)
_open_tree = syscall("open_tree", c_int, c_char_p, c_uint)
_move_mount = syscall("move_mount", c_int, c_char_p, c_int, c_char_p, c_uint)
_mount_setattr = syscall("mount_setattr", c_int, c_char_p, c_uint, c_char_p, c_size_t)

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1


def mount(source: str | None, target: str, fs_type: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    text = None if data is None else data.encode()
    kind = None if fs_type is None else fs_type.encode()
    check(_mount(path_bytes(source), path_bytes(target), kind, flags, text), "mount", target)


def umount2(target: str | bytes, flags: int = UmountFlags.NONE) -> None:
    """umount2(2)."""
    check(_umount2(path_bytes(target), flags), "umount2", target)


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


def fsmount(context: int, attributes: int) -> int:
    """fsmount(2): a close-on-exec descriptor of a mount that is attached nowhere yet."""
    return check(_fsmount(context, _FSMOUNT_CLOEXEC, attributes), "fsmount")


def open_tree(directory: int, path: str | bytes, flags: int) -> int:
    """open_tree(2). With `OpenTree.CLONE` the descriptor is of a detached copy; AT_RECURSIVE takes all below it too."""
    return check(_open_tree(directory, path_bytes(path), flags | OpenTree.CLOEXEC), "open_tree", path)


def move_mount(
    from_directory: int, from_path: str | bytes, to_directory: int, to_path: str | bytes, flags: int
) -> None:
    """move_mount(2)."""
    arguments = (from_directory, path_bytes(from_path), to_directory, path_bytes(to_path), flags)
    check(_move_mount(*arguments), "move_mount", to_path or None)


def mount_setattr(
    directory: int,
    path: str | bytes,
    flags: int,
    *,
    set_attributes: int = MountAttr.NONE,
    clear: int = MountAttr.NONE,
    propagation: int = 0,
) -> None:
    """mount_setattr(2)."""
    attributes = _MOUNT_ATTR.pack(set_attributes, clear, propagation, 0)
    result = _mount_setattr(directory, path_bytes(path), flags, attributes, _MOUNT_ATTR.size)
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


def detached_tmpfs(source: str, options: dict[str, str], attributes: int = MountAttr.NONE) -> int:
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
