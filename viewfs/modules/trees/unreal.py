"""-t unreal: all of the view, below a directory of it."""

from __future__ import annotations

import os

from viewfs.errors import UsageError
from viewfs.linux.mount import AT_FDCWD, AT_RECURSIVE, OpenTree, open_tree
from viewfs.modules.api import Mounting
from viewfs.modules.framework.kernel import KernelModule

__all__ = ["Unreal"]


class Unreal(KernelModule):
    """All of the view once more: what is done under /unreal/x happens to /x."""

    name = "unreal"
    mount_point = "/unreal"
    uses_view = True
    shows_others = True

    def mount(self, mounting: Mounting) -> int:
        if os.path.lexists(mounting.mount_point) and not os.path.isdir(mounting.mount_point):
            raise UsageError(f"cannot mount on {mounting.mount_point}: it is not a directory")
        # Cloned before it is attached, so the clone does not contain itself.
        return open_tree(AT_FDCWD, "/", OpenTree.CLONE | AT_RECURSIVE)
