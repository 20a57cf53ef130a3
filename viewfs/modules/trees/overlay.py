"""-t overlay: directories of the view, one over the other (the kernel's overlayfs)."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack

from viewfs.errors import UsageError, explain_os_error
from viewfs.modules.api import Mounting
from viewfs.modules.api.options import flag, text
from viewfs.modules.framework.kernel import KernelModule
from viewfs.mounts.overlay import create_overlay

__all__ = ["Overlay", "escaped", "layers_of"]


def escaped(path: str) -> str:
    """A path as it is written between colons."""
    return re.sub(r"([\\:])", r"\\\1", path)


def layers_of(text: str) -> list[str]:
    """The paths between colons, each as it is."""
    return [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:[^\\:]|\\.)+", text)]


class Overlay(KernelModule):
    """Directories of the view, one over the other; what is written goes to the upper one."""

    name = "overlay"
    names_source = True
    options = (
        text("lowerdir", "", "the directories below, the topmost first, with : between them"),
        text("upperdir", "", "where changes go; without it nothing can be changed"),
        text("workdir", "", "an empty directory beside that"),
        flag("volatile", "nothing is synced"),
    )

    def mount(self, mounting: Mounting) -> int:
        options = mounting.options
        lowers = layers_of(options["lowerdir"])
        if not lowers or bool(options["upperdir"]) != bool(options["workdir"]):
            raise UsageError(
                "an overlay takes lowerdir=, or lowerdir=, upperdir= and workdir=",
                remedy="viewfs mount -t overlay overlay DIRECTORY -o lowerdir=A:B,upperdir=C,workdir=D",
            )
        with ExitStack() as opened:

            def directory(path: str) -> int:
                try:
                    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                except OSError as error:
                    raise explain_os_error(f"cannot open the layer {path}", error) from error
                opened.callback(os.close, fd)
                return fd

            upper, work = (directory(options[name]) if options[name] else None for name in ("upperdir", "workdir"))
            return create_overlay(
                [directory(path) for path in lowers],
                upper,
                work,
                source=mounting.source_name or "overlay",
                volatile=options["volatile"],
            )
