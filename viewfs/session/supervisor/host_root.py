"""Names that come and go in the host's root while a view is open; `root_names` makes the view follow.

Ending an inotify(7) watch takes the kernel several milliseconds, for it waits for all who may be looking. So only a
view that lasts has one, and what changed before is found by comparing.
"""

from __future__ import annotations

import os

__all__ = ["RootNames"]


class RootNames:
    """Changes of names in `/` since this object was made."""

    def __init__(self) -> None:
        self._before = _names()
        self.is_watched = False
        #: Descriptor from which changes can be read; None before `watch`, and if the kernel doesn't tell.
        self.changes: int | None = None
        #: Names that changed before there was a watch, and have not been dealt with.
        self.missed: list[str] = []

    def watch(self) -> None:
        """Begin to watch, unless that has been done."""
        if self.is_watched:
            return
        self.is_watched = True
        from viewfs.linux.inotify import watch

        try:
            root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.changes = watch(root)
            finally:
                os.close(root)
        except OSError:
            return
        now = _names()
        self.missed = [name for name in {*self._before, *now} if self._before.get(name) != now.get(name)]


def _names() -> dict[str, int]:
    """The names and their inode numbers, which tell whether a name has gone to another file."""
    with os.scandir("/") as entries:
        return {entry.name: entry.inode() for entry in entries}
