"""The root of a view follows the host's: names that come and go in `/` after the view was made.

The view does not see what is new there, for its root is a skeleton that does not lie over the host's. So the
supervisor, which runs outside of the view, watches the host's root, and hands a worker what is new. The worker has it
served (`mounts.mirror`) at the same place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from viewfs.errors import ViewfsError
from viewfs.linux.inotify import changed_names

if TYPE_CHECKING:
    from viewfs.session.supervisor.host_root import RootNames
    from viewfs.session.supervisor.view import View

__all__ = ["follow_root"]

log = logging.getLogger("viewfs.view")


async def follow_root(view: View, names: RootNames, tell: Callable[[str], None]) -> None:
    """Follow for ever; `tell` what can't be followed."""
    if (changes := names.changes) is None:
        tell("what comes and goes in / is not seen in this view: the kernel does not tell (inotify(7), its limits)")
        return
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for missed in names.missed:
            await _try_to_follow(view, root, missed, tell)
        while True:
            await trio.lowlevel.wait_readable(changes)
            for name in changed_names(changes):
                if name is None:
                    tell("names in / have changed faster than this view could follow")
                else:
                    await _try_to_follow(view, root, os.fsdecode(name), tell)
    finally:
        os.close(root)


async def _try_to_follow(view: View, root: int, name: str, tell: Callable[[str], None]) -> None:
    try:
        await _follow(view, root, name)
    except (OSError, ViewfsError) as error:
        tell(f"/{name} has changed, and this view can't follow: {error}")


async def _follow(view: View, root: int, name: str) -> None:
    request: dict[str, Any] = {"name": name, "mode": None, "link": None}
    fds: list[int] = []
    try:
        with contextlib.suppress(FileNotFoundError):
            fds.append(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root))
            request["mode"] = os.fstat(fds[0]).st_mode
            if stat.S_ISLNK(request["mode"]):
                request["link"] = os.readlink(b"", dir_fd=fds[0]).decode(errors="surrogateescape")
        await view.follow_root_name(request, fds)
    finally:
        for fd in fds:
            os.close(fd)
