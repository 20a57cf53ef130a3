"""Making an overlay (Documentation/filesystems/overlayfs.rst) that is attached nowhere yet, without privilege.

Layers are given as descriptors and told to the kernel as /proc/self/fd paths, which need no escaping and can't be moved
away underneath. In a user namespace overlayfs keeps what it has to remember in attributes `user.overlay.*` (option
`userxattr`), and so follows no redirects: renaming a directory that a lower layer has is EXDEV, and mv(1) copies.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from viewfs.errors import MachineError
from viewfs.linux.mount import (
    MountAttr,
    fsconfig_create,
    fsconfig_flag,
    fsconfig_string,
    fsmount,
    fsopen,
    read_messages,
)

__all__ = ["HAS_WHITEOUTS", "OPAQUE", "ORIGIN", "PRIVATE", "WHITEOUT", "OverlayRefusedError", "create_overlay"]

#: Attributes that overlayfs keeps to itself with `userxattr`.
PRIVATE = b"user.overlay."
#: Says y of a directory whose lower ones are not to be seen.
OPAQUE = PRIVATE + b"opaque"
#: What an empty file has that says of its name that it was deleted, where no device node can be made; the directory
#: that it is in has the value of `OPAQUE` that says so.
WHITEOUT = "user.overlay.whiteout"
HAS_WHITEOUTS = b"x"
#: A file that has it was copied up from a lower layer.
ORIGIN = "user.overlay.origin"


class OverlayRefusedError(MachineError):
    """The kernel makes no overlay of these directories."""


def create_overlay(
    lowers: Sequence[int],
    upper: int | None = None,
    work: int | None = None,
    *,
    source: str = "viewfs-cow",
    volatile: bool = False,
) -> int:
    """The descriptor of a detached overlay of directories that are open in this mount namespace, the topmost first.

    `upper` takes what is written, `work` is an empty directory beside it; without them nothing can be written. `source`
    is what the mount table shows. `volatile`: nothing is synced, neither by programs nor for each file that is copied
    up, which would cost a hundred times the copy of a small one. Raises `OverlayRefusedError`.
    """
    context = fsopen("overlay")
    try:
        fsconfig_string(context, "source", source)
        fsconfig_string(context, "lowerdir", ":".join(f"/proc/self/fd/{fd}" for fd in lowers))
        if upper is not None:
            fsconfig_string(context, "upperdir", f"/proc/self/fd/{upper}")
            fsconfig_string(context, "workdir", f"/proc/self/fd/{work}")
            if volatile:
                fsconfig_flag(context, "volatile")
        fsconfig_flag(context, "userxattr")
        # Whatever the kernel was built to do: a lower file with two names is copied up by the name that is written,
        # and always whole.
        for option in ("index", "metacopy"):
            with contextlib.suppress(OSError):
                fsconfig_string(context, option, "off")
        fsconfig_create(context)
        return fsmount(context, MountAttr.NOSUID | MountAttr.NODEV)
    except OSError as error:
        said = "; ".join(read_messages(context))
        reason = os.strerror(error.errno or errno.EINVAL).lower() + (f" ({said})" if said else "")
        raise OverlayRefusedError(f"the kernel makes no overlay: {reason}", remedy=None) from error
    finally:
        os.close(context)
