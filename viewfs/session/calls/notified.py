"""Which system calls are notified, and the step by which a command on its way into a view has them notified.

*Rare* calls always are, so that a module that is loaded later answers them for everything that runs. *Families* of
others are where the user asks for them (`--calls=`). What a filter notifies is final for a process and all that it
starts.
"""

from __future__ import annotations

import errno
import os
import struct

from viewfs.linux.numbers import numbers_by_table
from viewfs.linux.plain import socket
from viewfs.linux.scm import rights
from viewfs.linux.unotify import install_listener, notifying_filter
from viewfs.namespaces.enter import Asking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "LISTENER", "MARKING", "MISSING", "MOUNTING", "OF_WHOLE_MOUNTS", "RARE", "SPECIAL", "calls_of", "group_names",
    "have_calls_notified", "is_notified", "needed_family",
]  # fmt: skip

#: What comes with a listener: a number by which a module's server is known, or 0; and the epoch before which a module
#: must have been loaded for the calls to reach it, or `NO_LIMIT`.
LISTENER = struct.Struct("=Qq")

#: What the session itself answers (`mounting`), and what it says is missing: programs then use mount(2).
MOUNTING = ("mount", "umount", "umount2")
#: So is this, for a mark on a mount or a file system (FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM).
MARKING = ("fanotify_mark", "fanotify_mark32")
OF_WHOLE_MOUNTS = 0x110
MISSING = ("fsopen", "fspick", "open_tree", "move_mount", "mount_setattr")
RARE = (
    *MOUNTING, *MISSING, "pivot_root", "chroot", "uname", "sethostname", "setdomainname", "personality", "acct",
    "swapon", "swapoff",
    "settimeofday", "clock_settime", "clock_settime64", "fanotify_init", "fanotify_mark", "mknod", "mknodat",
    "chown", "chown32", "lchown", "lchown32", "fchown", "fchown32", "fchownat",
    "setuid", "setuid32", "setgid", "setgid32", "setreuid", "setreuid32", "setregid", "setregid32",
    "setresuid", "setresuid32", "setresgid", "setresgid32", "setfsuid", "setfsuid32", "setfsgid", "setfsgid32",
    "setgroups", "setgroups32",
)  # fmt: skip
#: Calls of special descriptors (`WINDOW`) are notified too. (FIONREAD and CRIOGET, say, a FUSE file can't have.)
SPECIAL = ("read", "ioctl")
#: Names for several families. (Without `close`: a signal that comes before the notifier has received a call can make
#: EINTR of it, and nobody expects that of close(2), or closes again.)
_GROUPS = {
    "paths": (
        "access", "chmod", "lchown", "link", "lstat", "mkdir", "open", "readlink", "rename", "rmdir", "statfs",
        "symlink", "truncate", "unlink", "utimensat",
    ),
    "xattr": ("getxattr", "listxattr", "removexattr", "setxattr"),
    "io": ("dup3", "getdents64", "lseek", "pread", "pwrite", "read", "write"),
    "all": ("paths", "xattr", "io", "exec", "sync", "time"),
}  # fmt: skip
#: What a ring of io_uring(7) does is never notified.
_RINGS = ("io_uring_setup",)


def group_names() -> list[str]:
    """What `--calls` takes: families of calls, and groups of families."""
    from viewfs.linux.signatures import FAMILIES

    return [*_GROUPS, *FAMILIES]


def calls_of(families: Iterable[str]) -> Iterator[str]:
    """The calls of these families and groups, without those that are rare."""
    for name in families:
        from viewfs.linux.signatures import FAMILIES  # which few views need

        if name in _GROUPS:
            yield from calls_of(_GROUPS[name])
        elif name == "time":
            from viewfs.linux.vdso import made_at_the_start

            yield from (*FAMILIES[name], *made_at_the_start())
        else:
            yield from (call for call in FAMILIES[name] if call not in RARE)


def is_notified(call: str, families: Sequence[str]) -> bool:
    """Is a call of this name or number notified, in a view with these families?"""
    from viewfs.linux.signatures import SIGNATURES_OF_32_BITS, SPECIAL_SIGNATURES

    always = {*RARE, *SPECIAL_SIGNATURES, *SIGNATURES_OF_32_BITS}
    return call.isdigit() or call in always or (bool(families) and call in calls_of(families))


def needed_family(call: str) -> str | None:
    """The family to ask for so that this call is notified; None: there is none."""
    from viewfs.linux.signatures import FAMILIES

    return next((family for family, calls in FAMILIES.items() if call in calls), None)


def _program(families: tuple[str, ...]) -> bytes:
    names = dict.fromkeys((*RARE, *calls_of(families)))
    missing = numbers_by_table(_RINGS) if families else None
    return notifying_filter(numbers_by_table(names), missing, numbers_by_table(SPECIAL))


def have_calls_notified(asking: Asking | None, token: int = 0) -> bool:
    """Have this process, and all that it starts, ask the session about some system calls. None: there is nobody to ask.
    `token`: see `LISTENER`.

    no_new_privs must be set. False where the kernel can't do it, and in a view inside another one, whose session is
    asked already. Raises OSError if the listener can't be handed over.
    """
    if asking is None:
        return False
    try:
        listener = install_listener(_program(asking.families))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EINVAL, errno.ENOSYS):
            return False
        raise
    to_keeper = socket.socket(fileno=asking.keeper)
    try:
        to_keeper.sendmsg([LISTENER.pack(token, asking.limit)], rights([listener]))
    finally:
        to_keeper.detach()
        os.close(listener)
    return True
