"""Making an overlay (Documentation/filesystems/overlayfs.rst) that is attached nowhere yet, without privilege.

Layers are given as descriptors and passed to the kernel as /proc/self/fd paths, which need no escaping, and stay valid
if a layer is moved. In a user namespace overlayfs stores its state in attributes `user.overlay.*` (option `userxattr`),
and so follows no redirects: renaming a directory of a lower layer fails with EXDEV, and mv(1) copies it.
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

#: The prefix of the attributes that overlayfs hides, with `userxattr`.
PRIVATE = b"user.overlay."
#: Is “y” on a directory that hides those of the same path in lower layers.
OPAQUE = PRIVATE + b"opaque"
#: Marks an empty file as a whiteout (its name was deleted), where no device node can be made. The directory with the
#: file has `HAS_WHITEOUTS` as the value of `OPAQUE`.
WHITEOUT = "user.overlay.whiteout"
HAS_WHITEOUTS = b"x"
#: A file that has it was copied up from a lower layer.
ORIGIN = "user.overlay.origin"


class OverlayRefusedError(MachineError):
    """The kernel refuses to make an overlay of these directories."""


def create_overlay(
    lowers: Sequence[int],
    upper: int | None = None,
    work: int | None = None,
    *,
    source: str = "viewfs-cow",
    volatile: bool = False,
) -> int:
    """The descriptor of a detached overlay of directories that are open in this mount namespace, the topmost first.

    Writes go to `upper`, and `work` is an empty directory next to it; without them the overlay is read-only. `source`
    is what the mount table shows. `volatile`: nothing is synced, neither when programs ask for it nor for each file
    that is copied up, which would take a hundred times as long as copying a small one. Raises `OverlayRefusedError`.
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
        # Whatever the kernel's defaults are: writing to a lower file with two names copies up only the name that is
        # written to, and always with its data.
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
