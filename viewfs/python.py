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

__all__ = ["add_environment", "collect_garbage", "complete", "finish", "own_places", "print_traceback"]

_incomplete = bool(sys.flags.no_site)


def collect_garbage() -> None:
    """Have Python look for garbage from now on, but not among what is there: it is not garbage, and looking at it would
    make copies of memory that this process shares with the one that it was forked from (gc.freeze)."""
    gc.freeze()
    gc.enable()


def add_environment() -> None:
    """Add the packages of the virtual environment that this Python is of, if it is of one (venv, pyvenv.cfg). This
    takes no time; what is not found so has to wait for `complete`."""
    top = os.path.dirname(os.path.dirname(sys.executable))
    place = f"{top}/lib/python3.{sys.version_info.minor}/site-packages"
    if _incomplete and place not in sys.path and os.path.exists(f"{top}/pyvenv.cfg"):
        sys.path.append(place)


def own_places() -> frozenset[str]:
    """Directories with files that this program may still have to read: its code, Python's, and the libraries of both;
    and /proc. Links are resolved."""
    version = f"python3.{sys.version_info.minor}"
    places = {os.path.dirname(__file__), os.path.dirname(os.__file__)}
    # (Not the rest of sys.path: the working directory may be in it, and so anything.)
    places.update(path for path in sys.path if path.endswith("-packages"))
    places.update(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    # What `complete` may add: packages of a virtual environment, or of the system and of the user (site(3py)).
    top = os.path.dirname(os.path.dirname(sys.executable))
    places.update((top,) if os.path.exists(f"{top}/pyvenv.cfg") else ("/usr/lib/python3", f"/usr/local/lib/{version}"))
    places.add(os.path.expanduser(f"~/.local/lib/{version}"))
    with open("/proc/self/maps") as maps:
        for line in maps:
            directory, _slash, name = line.rstrip("\n").partition("/")[2].rpartition("/")
            if directory and ".so" in name:  # (a memory file looks as if it were in /)
                places.add(f"/{directory}")
    return frozenset(os.path.realpath(place) for place in places if os.path.isabs(place)) | {"/proc"}


def complete() -> bool:
    """Add what every Python program has: installed packages, PYTHONPATH, and garbage collection. False: it is there
    already."""
    global _incomplete
    if not gc.isenabled():
        collect_garbage()
    if not _incomplete:
        return False
    _incomplete = False
    import site

    # Isolated mode (-I) leaves out the user's own packages and PYTHONPATH.
    site.ENABLE_USER_SITE = None if os.environ.get("PYTHONNOUSERSITE") else True
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    site.main()
    return True


def print_traceback() -> None:
    """Print the traceback of the exception that is being handled."""
    import traceback

    traceback.print_exc()


def finish(status: int) -> NoReturn:
    """End the process at once. At its own end Python would free objects one by one; here they go with the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
