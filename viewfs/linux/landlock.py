"""Landlock: a process gives up for ever what it will not need (landlock(7), linux/landlock.h)."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

from viewfs.linux.libc import check, syscall

__all__ = ["Scope", "landlock_version", "restrict_self"]


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class Scope:
    """LANDLOCK_SCOPE_*: what is to stay among the processes that are restricted together."""

    ABSTRACT_SOCKETS = 1
    SIGNALS = 2


_VERSION_FLAG = 1
#: How many kinds of access to files each version knows: LANDLOCK_ACCESS_FS_*, from the lowest bit.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_FILE_RIGHTS = 16
#: LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP.
_NETWORK = 3
_SIZE_WITH_NETWORK, _SIZE_WITH_SCOPES = 4, 6

_create_ruleset = syscall("landlock_create_ruleset", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32)
_restrict_self = syscall("landlock_restrict_self", ctypes.c_int, ctypes.c_uint32)


@cache
def landlock_version() -> int:
    """The version of the kernel's Landlock interface; 0 if it has none, or it is switched off."""
    try:
        return check(_create_ruleset(None, 0, _VERSION_FLAG), "landlock_create_ruleset")
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def restrict_self(*, files: bool, network: bool, scoped: int) -> None:
    """From now on this process can't open files or change mounts (`files`), nor bind or connect to TCP ports
    (`network`), and is restricted as `scoped` says, as far as the kernel supports that. What is open stays open.

    no_new_privs must be set. Raises OSError.
    """
    version = landlock_version()
    if not version:
        return
    rights = (1 << _FILE_RIGHTS.get(version, _MOST_FILE_RIGHTS)) - 1
    ruleset = _Ruleset(rights if files else 0, _NETWORK if network else 0, scoped)
    size = ctypes.sizeof(_Ruleset)
    if version < _SIZE_WITH_SCOPES:
        size, ruleset.scoped = 16, 0
    if version < _SIZE_WITH_NETWORK:
        size, ruleset.network = 8, 0
    if not (ruleset.files or ruleset.network or ruleset.scoped):
        return
    fd = check(_create_ruleset(ctypes.addressof(ruleset), size, 0), "landlock_create_ruleset")
    try:
        check(_restrict_self(fd, 0), "landlock_restrict_self")
    finally:
        os.close(fd)
