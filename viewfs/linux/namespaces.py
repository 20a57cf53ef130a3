"""unshare(2), setns(2), and what ioctl_ns(2) tells of a namespace. Constants: linux/sched.h, linux/nsfs.h."""

from __future__ import annotations

import fcntl
import os

from viewfs.linux.libc import c_int, check, function

__all__ = ["CloneFlags", "namespace_id", "parent_user_namespace", "setns", "unshare"]


class CloneFlags:
    """CLONE_NEW* of linux/sched.h, and CLONE_FS."""

    FS = 0x00000200
    NEWTIME = 0x00000080
    NEWNS = 0x00020000
    NEWCGROUP = 0x02000000
    NEWUTS = 0x04000000
    NEWIPC = 0x08000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000


_unshare = function("unshare", c_int)
_setns = function("setns", c_int, c_int)

#: _IO(NSIO, 2) of linux/nsfs.h, with NSIO 0xb7.
_NS_GET_PARENT = 0xB702


def unshare(flags: int) -> None:
    """unshare(2). A process with more than one thread gets EINVAL for NEWUSER."""
    check(_unshare(flags), "unshare")


def setns(fd: int, kinds: int) -> None:
    """setns(2), `fd` being a namespace or a pidfd."""
    check(_setns(fd, kinds), "setns")


def parent_user_namespace(fd: int) -> int:
    """A descriptor of the parent of the user namespace `fd` (ioctl_ns(2), NS_GET_PARENT).

    Raises OSError(EPERM) where the parent is outside the caller's own user namespace.
    """
    return fcntl.ioctl(fd, _NS_GET_PARENT)


def namespace_id(fd: int) -> tuple[int, int]:
    """What tells one namespace from another: device and inode of its file (namespaces(7))."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
