"""-t fuse: what a program mounts that speaks FUSE, and opens /dev/fuse and calls mount(2) itself (mount.fuse(8))."""

from __future__ import annotations

import os

from viewfs.errors import UsageError
from viewfs.linux.mount import MountAttr, fsconfig_create, fsconfig_flag, fsconfig_string, fsmount, fsopen
from viewfs.modules.api import Mounting
from viewfs.modules.api.options import Option, flag, integer, text
from viewfs.modules.framework.kernel import KernelModule

__all__ = ["Fuse"]


def _mode(given: str) -> int:
    return int(given, 8)


class Fuse(KernelModule):
    """The mount of a program that speaks FUSE and mounts itself."""

    name = "fuse"
    names_source = True
    tells_callers = True
    options = (
        text("subtype", "", "what kind of file system it is"),
        Option("rootmode", _mode, 0o40000, "the type of its root, an octal number", "MODE", show=oct),
        integer("user_id", 0, "who has mounted it"),
        integer("group_id", 0, "that user's group"),
        integer("max_read", 0, "the longest read, in bytes; 0: as the kernel likes"),
        flag("default_permissions", "the kernel checks permission bits"),
        flag("allow_other", "others may use it"),
        flag("ro", "it can't be written"),
    )

    def mount(self, mounting: Mounting) -> int:
        if not self.given:
            raise UsageError(
                "-t fuse is what a program mounts itself", remedy="viewfs insmod PROGRAM DIRECTORY -- ARGUMENTS {}"
            )
        options = mounting.options
        self._root_mode: int = options["rootmode"]
        context = fsopen("fuse")
        try:
            fsconfig_string(context, "source", mounting.source_name or "fuse")
            if options["subtype"]:
                fsconfig_string(context, "subtype", options["subtype"])
            fsconfig_string(context, "fd", str(self.given[0]))
            fsconfig_string(context, "rootmode", f"{self._root_mode:o}")
            for name in ("user_id", "group_id", *(("max_read",) if options["max_read"] else ())):
                fsconfig_string(context, name, str(options[name]))
            for name in ("default_permissions", "allow_other", "ro"):
                if options[name]:
                    fsconfig_flag(context, name)
            fsconfig_create(context)
            attributes = MountAttr.NOSUID | MountAttr.NODEV
            return fsmount(context, attributes | MountAttr.RDONLY if options["ro"] else attributes)
        finally:
            os.close(context)

    def root_mode(self, tree: int) -> int:
        return self._root_mode  # its program is still mounting, and does not answer yet
