"""How much of Python there is in this process: little at the start, all of it when something needs it.

The quick way into viewfs starts Python without its `site` module, and so without the packages that are installed: a
view is opened before those would have been found. Its processes call `complete` before they import any of them.
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
    """Have what every Python program has: installed packages, PYTHONPATH, and a collector of garbage."""
    global _incomplete
    gc.enable()
    if not _incomplete:
        return
    _incomplete = False
    import site

    # Isolated mode (-I) leaves both out.
    site.ENABLE_USER_SITE = None if os.environ.get("PYTHONNOUSERSITE") else True
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    site.main()


def print_traceback() -> None:
    """Of the exception that is being handled."""
    import traceback

    traceback.print_exc()


def finish(status: int) -> NoReturn:
    """End at once: what is freed one by one at Python's end goes with the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
