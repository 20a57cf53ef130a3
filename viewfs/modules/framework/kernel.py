"""Modules whose work the kernel does: no FUSE, no server, native speed.

They run in the worker that mounts, with its privilege, so only built-in modules may be of this kind.
"""

from __future__ import annotations

import os
from typing import ClassVar

from viewfs.errors import UsageError, explain_os_error
from viewfs.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MountAttr,
    OpenTree,
    detached_tmpfs,
    mount_setattr,
    open_tree,
)
from viewfs.modules.api import Module, Mounting
from viewfs.modules.api.options import flag, permissions, size

__all__ = ["Bind", "KernelModule", "Temporary", "Unreal"]


class KernelModule(Module):
    """Makes a mount instead of a file system. Its `mount` runs in the epoch before the one it makes."""

    #: Its source is a path of the view, of any kind, rather than bytes.
    takes_path: ClassVar[bool] = False

    def mount(self, mounting: Mounting) -> int:
        """The descriptor of a detached mount. Raises `ViewfsError` or OSError."""
        raise NotImplementedError


class Temporary(KernelModule):
    """An empty file system in memory that ends with the view (the kernel's tmpfs)."""

    name = "tmp"
    options = (
        size("size", 0, "how much it may hold; 0: half of the machine's memory"),
        permissions("mode", 0o755, "permission bits of its root"),
    )

    def mount(self, mounting: Mounting) -> int:
        settings = {"mode": f"{mounting.options['mode']:o}"}
        if mounting.options["size"]:
            settings["size"] = str(mounting.options["size"])
        return detached_tmpfs("viewfs-tmp", settings, MountAttr.NOSUID | MountAttr.NODEV)


class Bind(KernelModule):
    """A directory or file of the view, with all that is mounted below it, at a second place."""

    name = "bind"
    takes_path = True
    options = (flag("ro", "it can't be written through this mount"),)

    def mount(self, mounting: Mounting) -> int:
        try:
            tree = open_tree(AT_FDCWD, mounting.source_name, OpenTree.CLONE | AT_RECURSIVE)
        except OSError as error:
            raise explain_os_error("cannot bind", error) from error
        if mounting.options["ro"]:
            mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, set_attributes=MountAttr.RDONLY)
        return tree


class Unreal(KernelModule):
    """All of the view once more: what is done under /unreal/x happens to /x."""

    name = "unreal"
    mount_point = "/unreal"
    uses_view = True

    def mount(self, mounting: Mounting) -> int:
        if os.path.lexists(mounting.mount_point) and not os.path.isdir(mounting.mount_point):
            raise UsageError(f"cannot mount on {mounting.mount_point}: it is not a directory")
        # Taken before it is attached, so there is nothing of itself in it.
        return open_tree(AT_FDCWD, "/", OpenTree.CLONE | AT_RECURSIVE)
