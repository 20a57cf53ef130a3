"""Making a FUSE mount that is attached nowhere yet, and attaching a mount to a place that is held open.

Attaching takes no path: the process that asked for it has resolved the place. So the privileged process never walks
through a file system that a module serves, and can't be made to wait for one.
"""

from __future__ import annotations

import os
import stat

from viewfs.errors import MachineError
from viewfs.linux.mount import (
    AT_FDCWD,
    MountAttr,
    MoveMount,
    fsconfig_create,
    fsconfig_flag,
    fsconfig_string,
    fsmount,
    fsopen,
    move_mount,
    read_messages,
)

__all__ = ["attach", "attach_aside", "create_fuse_mount", "open_fuse_device"]


def open_fuse_device() -> int:
    """A /dev/fuse descriptor, close-on-exec. It must be opened in the user namespace that will mount (fuse.rst).

    Raises `MachineError`, which says what is wrong with the device.
    """
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MachineError(
            "cannot open /dev/fuse: it does not exist",
            remedy="load the module (modprobe fuse), or give the container the device (--device /dev/fuse)",
        ) from None
    except PermissionError:
        raise MachineError(
            "cannot open /dev/fuse: permission denied",
            remedy="its mode should be 0666, as udev has it: chmod 666 /dev/fuse",
        ) from None
    except OSError as error:
        raise MachineError(f"cannot open /dev/fuse: {os.strerror(error.errno or 0).lower()}") from error


def create_fuse_mount(
    fuse_fd: int, *, root_mode: int, source: str, subtype: str, writable: bool, uid: int, gid: int
) -> int:
    """The descriptor of a detached FUSE mount that `fuse_fd` serves.

    `root_mode` has the type of the root inode, which the mount point must have too. In a user namespace, `allow_other`
    means the processes of that namespace and of those below it. The kernel checks permission bits for writable file
    systems only.
    """
    context = fsopen("fuse")
    try:
        options = {
            "source": source,
            "subtype": subtype,
            "fd": str(fuse_fd),
            "rootmode": f"{stat.S_IFMT(root_mode):o}",
            "user_id": str(uid),
            "group_id": str(gid),
        }
        for key, value in options.items():
            fsconfig_string(context, key, value)
        fsconfig_flag(context, "allow_other")
        if writable:
            fsconfig_flag(context, "default_permissions")
        else:
            fsconfig_flag(context, "ro")
        fsconfig_create(context)
        attributes = MountAttr.NOSUID | MountAttr.NODEV
        return fsmount(context, attributes if writable else attributes | MountAttr.RDONLY)
    except OSError as error:
        said = "; ".join(read_messages(context))
        raise MachineError(f"cannot make a FUSE mount: {error.strerror}" + (f" ({said})" if said else "")) from error
    finally:
        os.close(context)


def attach(mount_fd: int, place_fd: int) -> None:
    """Attach a detached mount on top of the file of `place_fd`, an O_PATH descriptor in this mount namespace."""
    move_mount(mount_fd, "", place_fd, "", MoveMount.F_EMPTY_PATH | MoveMount.T_EMPTY_PATH)


def attach_aside(tree: int) -> str:
    """Attach a detached mount out of the way, so that it is in this mount namespace; returns where. Raises OSError.

    It is not attached to the root: a process that enters the namespace later would be in the topmost mount there.
    """
    place = next(directory for directory in ("/sys", "/dev", "/tmp") if os.path.isdir(directory))
    move_mount(tree, "", AT_FDCWD, place, MoveMount.F_EMPTY_PATH)
    return place
