"""Modules that make a mount of the kernel's own: no FUSE, no server, native speed.

They run in the worker that mounts, with its privilege, so only built-in modules may be of this kind.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import ClassVar

from viewfs.modules.api import Module, Mounting

__all__ = ["KernelModule"]


class KernelModule(Module):
    """Makes a mount instead of a file system. Its `mount` runs in the epoch before the one it makes."""

    #: Its source is a path of the view, of any kind, rather than bytes.
    takes_path: ClassVar[bool] = False
    #: It shows other mounts, so the device number of a file does not tell that the file belongs to it.
    shows_others: ClassVar[bool] = False
    #: It tells somebody who calls: it has to mount where pids mean what they mean in the view.
    tells_callers: ClassVar[bool] = False

    #: It has no source, but a name for one, which is shown.
    names_source: ClassVar[bool] = False
    #: Descriptors that came with the request to mount it.
    given: Sequence[int] = ()

    def mount(self, mounting: Mounting) -> int:
        """The descriptor of a detached mount. Raises `ViewfsError` or OSError."""
        raise NotImplementedError

    def root_mode(self, tree: int) -> int:
        """The mode of its root, for the type bits."""
        return stat.S_IFDIR if stat.S_ISDIR(os.fstat(tree).st_mode) else stat.S_IFREG
