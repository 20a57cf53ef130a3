"""Opening a file of a view for a caller, as a module says: its FUSE server sees an open file like any other."""

from __future__ import annotations

import errno
import os

from viewfs.errors import os_error
from viewfs.linux.files import Resolve, is_on_fuse, openat2
from viewfs.linux.process import drop_capabilities
from viewfs.session.calls.caller import join_user_namespace

__all__ = ["open_for"]


def open_for(tid: int, path: bytes, flags: int) -> int:
    """Open `path` of the view of thread `tid`, with the rights of this process's user in it. The process must have one
    thread, and belongs to the view from then on.

    Raises OSError: EPERM for a file that no FUSE server serves, for a module has a right to no others.
    """
    join_user_namespace(tid)
    root = os.open(f"/proc/{tid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    drop_capabilities()
    place = openat2(root, path, os.O_PATH, Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
    os.close(root)
    try:
        if not is_on_fuse(place):
            raise os_error(errno.EPERM)
        return os.open(f"/proc/self/fd/{place}", flags | os.O_CLOEXEC)
    finally:
        os.close(place)
