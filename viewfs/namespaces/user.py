"""The user namespace of a session, and the id map that says who its user is.

A user namespace made without privilege may map one uid and one gid: its maker's (user_namespaces(7)). By default both
are mapped to themselves, so that the user stays who they are; `as_root` maps them to 0. Supplementary groups go on
being effective, but have no number inside and show as the overflow group.

Root, of a machine or of a container, may map all ids that it has: then nobody is without a number. A process of the
parent namespace has to write that map, for the one in the new namespace has no power over the old one any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

from viewfs.errors import MachineError
from viewfs.linux.ids import IdRange, id_ranges
from viewfs.linux.namespaces import CloneFlags, unshare
from viewfs.linux.process import has_capabilities

__all__ = ["IdentityMap", "unshare_user_namespace"]

_CAP_SETGID, _CAP_SETUID = 6, 7


@dataclass(frozen=True)
class IdentityMap:
    """Ranges of ids of the parent namespace, and what they are called inside."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @classmethod
    def of_caller(cls, *, as_root: bool = False) -> IdentityMap:
        """Of root that may, all ids; of everybody else, their own, which are called 0 inside if `as_root`."""
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0 and has_capabilities({_CAP_SETUID, _CAP_SETGID}):
            with contextlib.suppress(OSError):  # there may be no /proc, which the next step finds out
                everybody = cls(_as_they_are("uid"), _as_they_are("gid"))
                if not everybody.is_single:
                    return everybody
        return cls((IdRange(0 if as_root else uid, uid, 1),), (IdRange(0 if as_root else gid, gid, 1),))

    @property
    def is_single(self) -> bool:
        """One uid and one gid, which needs no privilege."""
        return all(len(ranges) == 1 and ranges[0].length == 1 for ranges in (self.uids, self.gids))

    @property
    def uid(self) -> int:
        """What the user is called inside."""
        return self.uids[0].inside

    @property
    def gid(self) -> int:
        return self.gids[0].inside


def _as_they_are(kind: str) -> tuple[IdRange, ...]:
    return tuple(IdRange(one.inside, one.inside, one.length) for one in id_ranges(kind))


def unshare_user_namespace(identity: IdentityMap, others: CloneFlags) -> None:
    """Put this single-threaded process into a new user namespace (and new ones of the kinds `others` that it owns).

    Raises `MachineError` that names the step that failed.
    """
    if not identity.is_single:
        _unshare_mapped_by_another(identity, others)
        return
    _unshare(others)
    # setgroups must be denied before an unprivileged process may write gid_map (user_namespaces(7)); a process
    # that already lives in such a namespace finds it denied.
    _write_map("self", "setgroups", "deny")
    _write_map("self", "uid_map", _lines(identity.uids))
    _write_map("self", "gid_map", _lines(identity.gids))


def _unshare(others: CloneFlags) -> None:
    try:
        unshare(CloneFlags.NEWUSER | others)
    except OSError as error:
        raise MachineError(f"cannot create a user namespace: {_reason(error)}") from error


def _unshare_mapped_by_another(identity: IdentityMap, others: CloneFlags) -> None:
    waiting, go = os.pipe2(os.O_CLOEXEC)
    pid = os.getpid()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(go)
            if os.read(waiting, 1):
                _write_map(str(pid), "uid_map", _lines(identity.uids))
                _write_map(str(pid), "gid_map", _lines(identity.gids))
                status = 0
        finally:
            os._exit(status)
    os.close(waiting)
    try:
        _unshare(others)
        os.write(go, b"!")
    finally:
        os.close(go)
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if status:
        raise MachineError("cannot write the id map of the user namespace", remedy="run it as an ordinary user")


def _lines(ranges: tuple[IdRange, ...]) -> str:
    return "".join(f"{one.inside} {one.outside} {one.length}\n" for one in ranges)


def _write_map(pid: str, name: str, text: str) -> None:
    path = f"/proc/{pid}/{name}"
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
