"""Opening a file of a view for a caller, as a module says: its FUSE server sees an open file like any other."""

from __future__ import annotations

import errno
import os

from viewfs.errors import os_error
from viewfs.linux.files import Resolve, is_on_fuse, openat2
from viewfs.linux.process import drop_capabilities, thread_group_of
from viewfs.linux.unotify import WINDOW
from viewfs.session.calls.caller import join_user_namespace

#: So many processes are remembered.
_PROCESSES = 4096

__all__ = ["Numbers", "open_for"]


class Numbers:
    """Numbers for special descriptors, none of which is given to a process twice before all have been: whoever gets one
    may not have it yet."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}

    def free(self, tid: int) -> int:
        """One that the process of thread `tid` does not have. Raises OSError: EMFILE."""
        process = thread_group_of(tid)
        if len(self._next) > _PROCESSES and process not in self._next:
            self._next.clear()
        first = self._next.get(process, 0)
        for count in range(len(WINDOW)):
            index = (first + count) % len(WINDOW)
            if not os.path.lexists(f"/proc/{tid}/fd/{WINDOW[index]}"):
                self._next[process] = index + 1
                return WINDOW[index]
        raise os_error(errno.EMFILE)


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
