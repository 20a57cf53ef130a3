"""-t tmp: the kernel's tmpfs, empty."""

from __future__ import annotations

from viewfs.linux.mount import MountAttr, detached_tmpfs
from viewfs.modules.api import Mounting
from viewfs.modules.api.options import permissions, size, text
from viewfs.modules.framework.kernel import KernelModule

__all__ = ["Temporary"]


class Temporary(KernelModule):
    """An empty file system in memory that ends with the view (the kernel's tmpfs)."""

    name = "tmp"
    options = (
        size("size", 0, "how much it may hold; 0: half of the machine's memory"),
        permissions("mode", 0o755, "permission bits of its root"),
        text("source", "viewfs-tmp", "what the mount table calls its source"),
    )

    def mount(self, mounting: Mounting) -> int:
        settings = {"mode": f"{mounting.options['mode']:o}"}
        if mounting.options["size"]:
            settings["size"] = str(mounting.options["size"])
        return detached_tmpfs(mounting.options["source"], settings, MountAttr.NOSUID | MountAttr.NODEV)
