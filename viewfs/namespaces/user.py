"""The user namespace of a session, and the id map that says who its user is.

A user namespace made without privilege may map one uid and one gid: its maker's (user_namespaces(7)). By default both
are
mapped to themselves, so that the user stays who they are; `as_root` maps them to 0. Supplementary groups go on being
effective, but have no number inside and show as the overflow group.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from viewfs.errors import MachineError
from viewfs.linux.namespaces import CloneFlags, unshare

__all__ = ["IdentityMap", "unshare_user_namespace"]


@dataclass(frozen=True)
class IdentityMap:
    """One uid and one gid of the parent namespace, and what they are called inside."""

    outside_uid: int
    outside_gid: int
    inside_uid: int
    inside_gid: int

    @classmethod
    def of_caller(cls, *, as_root: bool) -> IdentityMap:
        uid, gid = os.geteuid(), os.getegid()
        return cls(uid, gid, 0 if as_root else uid, 0 if as_root else gid)


def unshare_user_namespace(identity: IdentityMap, others: CloneFlags) -> None:
    """Put this single-threaded process into a new user namespace (and new ones of the kinds `others` that it owns).

    Raises `MachineError` that names the step that failed.
    """
    try:
        unshare(CloneFlags.NEWUSER | others)
    except OSError as error:
        raise MachineError(f"cannot create a user namespace: {_reason(error)}") from error
    # setgroups must be denied before an unprivileged process may write gid_map (user_namespaces(7)); a process
    # that already lives in such a namespace finds it denied.
    steps = (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{identity.inside_uid} {identity.outside_uid} 1"),
        ("/proc/self/gid_map", f"{identity.inside_gid} {identity.outside_gid} 1"),
    )
    for path, text in steps:
        try:
            _write_once(path, text)
        except OSError as error:
            raise MachineError(f"cannot write {path}: {_reason(error)}") from error


def _write_once(path: str, text: str) -> None:
    """These files take one write(2) only."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the limit user.max_user_namespaces is reached"
    return os.strerror(error.errno or 0).lower()
