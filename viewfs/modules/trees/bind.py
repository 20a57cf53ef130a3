"""-t bind: a part of the view at a second place."""

from __future__ import annotations

from viewfs.errors import explain_os_error
from viewfs.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MountAttr,
    OpenTree,
    mount_setattr,
    open_tree,
)
from viewfs.modules.api import Mounting
from viewfs.modules.api.options import flag
from viewfs.modules.framework.kernel import KernelModule

__all__ = ["Bind"]


class Bind(KernelModule):
    """A directory or file of the view, with all that is mounted below it, at a second place."""

    name = "bind"
    takes_path = True
    shows_others = True
    options = (flag("ro", "it can't be written through this mount"),)

    def mount(self, mounting: Mounting) -> int:
        try:
            tree = open_tree(AT_FDCWD, mounting.source_name, OpenTree.CLONE | AT_RECURSIVE)
        except OSError as error:
            raise explain_os_error("cannot bind", error) from error
        if mounting.options["ro"]:
            mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, set_attributes=MountAttr.RDONLY)
        return tree
