"""The user namespace of a session, and the id map that says who its user is.

A user namespace made without privilege may map one uid and one gid: its maker's (user_namespaces(7)). By default both
are mapped to themselves, so that the user stays who they are; `as_root` maps them to 0. Supplementary groups go on
being effective, but have no number inside and show as the overflow group.

Root of a machine or of a container may map all ids that it has, so that everybody has a number inside. A process of the
parent namespace has to write that map, for the one in the new namespace has no privilege in the old one any more.

Where the machine has given the user more ids (subuid(5), subgid(5)), newuidmap(1) maps these: a view that appears as
root then has users of its own. newuidmap is a set-user-ID program and has to be started before no_new_privs is set.
"""

from __future__ import annotations

import errno
import os

from viewfs.errors import MachineError
from viewfs.linux.ids import IdRange, id_ranges, mapped_ids
from viewfs.linux.namespaces import CloneFlags, unshare
from viewfs.linux.process import has_capabilities, has_no_new_privileges

__all__ = ["IdentityMap", "unshare_user_namespace"]

_CAP_SETGID, _CAP_SETUID = 6, 7


class IdentityMap:
    """Ranges of ids of the parent namespace, and what they are called inside."""

    def __init__(self, uids: tuple[IdRange, ...], gids: tuple[IdRange, ...], *, is_subordinate: bool = False) -> None:
        """`is_subordinate`: it takes newuidmap(1) and newgidmap(1) to write it."""
        self.uids = uids
        self.gids = gids
        self.is_subordinate = is_subordinate

    @classmethod
    def of_caller(cls, *, as_root: bool = False, ids: str = "one") -> IdentityMap:
        """For root, if it may, a map of all ids; for everybody else, of their own ids, as 0 inside if `as_root`.

        `ids`: "one"; or "many", for a map of the ids too that the machine has given the user; or "auto", for these if
        there are any and the user appears as root. Raises `MachineError` if "many" can't be had.
        """
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0 and has_capabilities({_CAP_SETUID, _CAP_SETGID}):
            try:
                everybody = cls(_as_they_are("uid"), _as_they_are("gid"))
                if not everybody.is_single:
                    return everybody
            except OSError:
                pass  # there may be no /proc, which the next step finds out
        if ids == "many" or (ids == "auto" and as_root):
            given = [_subordinate(kind) for kind in ("uid", "gid")]
            tools = all(map(_find, _TOOLS)) and not has_no_new_privileges()
            if tools and given[0] is not None and given[1] is not None:
                uids, gids = (
                    _with_subordinate(0 if as_root else own, own, one)
                    for own, one in ((uid, given[0]), (gid, given[1]))
                )
                return cls(uids, gids, is_subordinate=True)
            if ids == "many":
                missing = "newuidmap and newgidmap can't be used here" if not tools else "this user has none here"
                raise MachineError(
                    f"more ids can't be had: {missing}",
                    remedy="apt install uidmap, and a line for the user in /etc/subuid and /etc/subgid (usermod(8))",
                )
        return cls((IdRange(0 if as_root else uid, uid, 1),), (IdRange(0 if as_root else gid, gid, 1),))

    @property
    def is_single(self) -> bool:
        """Is it one uid and one gid, a map that needs no privilege?"""
        return all(len(ranges) == 1 and ranges[0].length == 1 for ranges in (self.uids, self.gids))

    @property
    def uid(self) -> int:
        """What the user is called inside."""
        return self.uids[0].inside

    @property
    def gid(self) -> int:
        return self.gids[0].inside


_TOOLS = ("newuidmap", "newgidmap")
_TOOL_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def _subordinate(kind: str) -> tuple[int, int] | None:
    """The largest range that /etc/subuid or /etc/subgid gives this user: its first id, and how many.

    Only ranges that this process's own user namespace has count: a view with one id has none. Of several equally large
    ranges it is the first.
    """
    import pwd  # most views are made without it

    here = mapped_ids(kind)
    try:
        names = {pwd.getpwuid(os.getuid()).pw_name, str(os.getuid())}
    except KeyError:
        names = {str(os.getuid())}
    found: list[tuple[int, int]] = []
    try:
        with open(f"/etc/sub{kind}") as lines:
            for line in lines:
                name, _, rest = line.strip().partition(":")
                start, _, count = rest.partition(":")
                if name not in names or not start.isdigit() or not count.isdigit() or not int(count):
                    continue
                if int(start) in here and int(start) + int(count) - 1 in here:
                    found.append((int(start), int(count)))
    except OSError:
        return None
    return max(found, key=lambda one: one[1], default=None)


def _with_subordinate(inside: int, own: int, given: tuple[int, int]) -> tuple[IdRange, ...]:
    """Map the user's `own` id to `inside`, and the ids that were `given` to all others, from 0 on."""
    start, count = given
    below = min(inside, count)
    ranges = [IdRange(inside, own, 1)]
    if below:
        ranges.append(IdRange(0, start, below))
    if count > below:
        ranges.append(IdRange(inside + 1, start + below, count - below))
    return tuple(ranges)


def _as_they_are(kind: str) -> tuple[IdRange, ...]:
    return tuple(IdRange(one.inside, one.inside, one.length) for one in id_ranges(kind))


def unshare_user_namespace(identity: IdentityMap, others: int) -> None:
    """Put this single-threaded process into a new user namespace (and new ones of the kinds `others` that it owns).

    Raises `MachineError` that names the step that failed.
    """
    if not identity.is_single:
        _unshare_mapped_by_another(identity, others)
        return
    _unshare(others)
    # setgroups must be denied before an unprivileged process may write gid_map (user_namespaces(7)); a process that
    # already lives in such a namespace finds it denied.
    _write_map("self", "setgroups", "deny")
    _write_map("self", "uid_map", _lines(identity.uids))
    _write_map("self", "gid_map", _lines(identity.gids))


def _unshare(others: int) -> None:
    try:
        unshare(CloneFlags.NEWUSER | others)
    except OSError as error:
        raise MachineError(f"cannot create a user namespace: {_reason(error)}") from error


def _unshare_mapped_by_another(identity: IdentityMap, others: int) -> None:
    waiting, go = os.pipe2(os.O_CLOEXEC)
    pid = os.getpid()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(go)
            if not os.read(waiting, 1):
                pass  # there is no namespace
            elif identity.is_subordinate:
                status = _write_subordinate(pid, identity)
            else:
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
        remedy = "with --ids=one it has only its user's" if identity.is_subordinate else "run it as an ordinary user"
        raise MachineError("cannot write the id map of the user namespace", remedy=remedy)


def _find(tool: str) -> str | None:
    import shutil  # only here: most views are made without it

    return shutil.which(tool, path=_TOOL_PATH)


def _write_subordinate(pid: int, identity: IdentityMap) -> int:
    for tool, ranges in zip(_TOOLS, (identity.uids, identity.gids), strict=True):
        path = _find(tool) or tool
        numbers = [str(number) for one in ranges for number in one]
        child = os.posix_spawn(path, [tool, str(pid), *numbers], {"PATH": _TOOL_PATH})
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            return 1
    return 0


def _lines(ranges: tuple[IdRange, ...]) -> str:
    return "".join(f"{one.inside} {one.outside} {one.length}\n" for one in ranges)


def _write_map(pid: str, name: str, text: str) -> None:
    path = f"/proc/{pid}/{name}"
    try:
        _write_once(path, text)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {_reason(error)}") from error


def _write_once(path: str, text: str) -> None:
    """Write the text with one write(2): these files take no more."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the limit user.max_user_namespaces is reached"
    return os.strerror(error.errno or 0).lower()
