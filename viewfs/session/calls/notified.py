"""Which system calls are notified, and the step by which a command on its way into a view has them notified.

They are *rare* calls: those that change mounts. What a filter notifies is final for a process and all that it starts.
"""

from __future__ import annotations

import errno
import os

from viewfs.linux.numbers import numbers_by_table
from viewfs.linux.plain import socket
from viewfs.linux.scm import rights
from viewfs.linux.unotify import install_listener, notifying_filter

__all__ = ["NOTIFIED", "have_calls_notified"]

NOTIFIED = (
    "mount", "umount", "umount2", "fsopen", "fspick", "open_tree", "move_mount", "mount_setattr",
)  # fmt: skip


def have_calls_notified(keeper: int | None) -> None:
    """Have this process, and all that it starts, ask the session about some system calls. `keeper` is a socket to
    whoever keeps listeners (`viewfs.session.calls.keeper`); None: nobody does.

    no_new_privs must be set. Nothing happens where the kernel can't do it, and in a view inside another one, whose
    session is asked already. Raises OSError if the listener can't be handed over.
    """
    if keeper is None:
        return
    try:
        listener = install_listener(notifying_filter(numbers_by_table(NOTIFIED)))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EINVAL, errno.ENOSYS):
            return
        raise
    to_keeper = socket.socket(fileno=keeper)
    try:
        to_keeper.sendmsg([b"."], rights([listener]))
    finally:
        to_keeper.detach()
        os.close(listener)
