"""fusermount3(1) of a view: programs that may not call mount(2) ask it, as they ask the host's, to mount for them."""

from __future__ import annotations

import os
import sys

import viewfs
from viewfs.modules.api import FileSystem, Module, Mounting
from viewfs.modules.api.nodes import computed_file

__all__ = ["Fusermount"]

_SCRIPT = """#!{python} -IS
import sys
sys.path.insert(0, {package!r})
from viewfs.cli.fusermount import main
main(sys.argv)
"""


class Fusermount(Module):
    """A fusermount3 that has the session mount, for views where mount(2) is the kernel's (--no-calls)."""

    name = "fusermount"
    mount_point = "/usr/bin/fusermount3"

    def open(self, mounting: Mounting) -> FileSystem:
        package = os.path.dirname(os.path.dirname(os.path.abspath(viewfs.__file__)))
        script = _SCRIPT.format(python=sys.executable, package=package)
        return computed_file(lambda: script, 0o555)
