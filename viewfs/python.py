"""How much of Python there is in this process: little at the start, all of it when something needs it.

The quick way into viewfs starts Python without its `site` module, and so without the packages that are installed:
finding those would take longer than opening a view. Each process calls `complete` before it imports any of them.
"""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["complete", "finish", "print_traceback"]

_incomplete = bool(sys.flags.no_site)


def complete() -> None:
    """Add what every Python program has: installed packages, PYTHONPATH, and garbage collection."""
    global _incomplete
    gc.enable()
    if not _incomplete:
        return
    _incomplete = False
    import site

    # Isolated mode (-I) leaves out the user's own packages and PYTHONPATH.
    site.ENABLE_USER_SITE = None if os.environ.get("PYTHONNOUSERSITE") else True
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    site.main()


def print_traceback() -> None:
    """Print the traceback of the exception that is being handled."""
    import traceback

    traceback.print_exc()


def finish(status: int) -> NoReturn:
    """End the process at once. At its own end Python would free objects one by one; here they go with the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
