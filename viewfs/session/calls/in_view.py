"""What a module that lives in the view has its session do for it: it mounts as every program does."""

from __future__ import annotations

import errno
import os
import sys

from viewfs.errors import ViewfsError, os_error
from viewfs.session.client import Session

__all__ = ["mount_fuse", "unmount"]


def mount_fuse(path: str, root_mode: int, source: str) -> int:
    """Have a FUSE file system of this process mounted: the descriptor of /dev/fuse, non-blocking. Waits for others.
    Raises OSError."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        options = {
            "rootmode": f"{root_mode:o}", "user_id": str(os.geteuid()), "group_id": str(os.getegid()),
            "default_permissions": None, "allow_other": None, "subtype": source,
        }  # fmt: skip
        _ask("mount", [device], type="fuse", source=source, path=path, options=options, cwd="/", module_path=[])
    except BaseException:
        os.close(device)
        raise
    return device


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount it, if nobody uses it or it is to be `lazy`. Waits for others. Raises OSError: EBUSY."""
    _ask("umount", None, path=path, lazy=lazy, force=False, inside=False, part=True)


def _ask(operation: str, fds: list[int] | None, /, **arguments: object) -> None:
    try:
        with Session.of_view() as session:
            session.request(operation, fds, operation=operation, caller=f"[{os.getpid()}]", **arguments)
    except ViewfsError as error:
        if "busy" in error.message:
            raise os_error(errno.EBUSY) from None
        if operation == "mount":
            print(error, file=sys.stderr)
        raise os_error(errno.EIO) from error
