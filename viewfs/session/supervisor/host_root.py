"""What comes to the host's root and goes while a view is open; `root_names` has the view follow.

To end a watch takes the kernel several milliseconds (inotify(7); it waits for all who may be looking). So there is one
only in a view that lasts, and what came before is found by comparing.
"""

from __future__ import annotations

import os

__all__ = ["RootNames"]


class RootNames:
    """Names in `/`, from the time when this is made on."""

    def __init__(self) -> None:
        self._before = _names()
        self.is_watched = False
        #: From which changes can be read; None before `watch`, and where the kernel doesn't tell.
        self.changes: int | None = None
        #: Names that changed before there was a watch, and have not been dealt with.
        self.missed: list[str] = []

    def watch(self) -> None:
        """Begin, if that has not been done."""
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
    """With their inode numbers: another file may have the name."""
    with os.scandir("/") as entries:
        return {entry.name: entry.inode() for entry in entries}
