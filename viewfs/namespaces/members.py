"""The processes that live in a user namespace or below it, and ending them all.

Without a pid namespace nothing else holds the processes of a session together: a daemon of the view has long been
adopted by init. But no process can leave its user namespace (user_namespaces(7)), and the user namespaces that it may
make are children of that. So the members of a session are found in /proc by their user namespace. They are signalled by
pidfd, which can't hit a later process of the same number.
"""

from __future__ import annotations

import os
import select
import time

from viewfs.linux.namespaces import namespace_id, parent_user_namespace
from viewfs.linux.plain import signal
from viewfs.linux.process import is_exiting, pidfd_is_dead, pidfd_open, pidfd_send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["end_members", "members_of", "wait_for_ends", "wait_for_exits"]

#: Seconds that a process that is exiting may take to end.
_EXIT_SECONDS = 1.0


def members_of(
    user_namespace: tuple[int, int], *, spare: Collection[int] = (), proc: int | None = None
) -> dict[int, int]:
    """Every process in that user namespace or a descendant of it, as pid → pidfd, which the caller closes.

    `user_namespace` is as `namespace_id` gives it; the pids `spare` and this process itself are left out. `proc` is a
    descriptor of /proc, for where that may be hidden.
    """
    members: dict[int, int] = {}
    left_out = {os.getpid(), *spare}
    elsewhere = _namespace_of(os.getpid(), proc)
    for name in os.listdir("/proc" if proc is None else proc):
        if not name.isdigit() or (pid := int(name)) in left_out:
            continue
        # Nearly all processes of a machine are somebody else's or in this process's own namespace: one stat each.
        namespace = _namespace_of(pid, proc)
        if namespace is None or (namespace == elsewhere and namespace != user_namespace):
            continue
        try:
            pidfd = pidfd_open(pid)
        except OSError:
            continue
        # The pidfd first, the look second, so that both are of the same process. One that has ended may still wait to
        # be reaped; it is no member any more.
        if not pidfd_is_dead(pidfd) and _lives_in(pid, user_namespace, proc):
            members[pid] = pidfd
        else:
            os.close(pidfd)
    return members


def end_members(
    user_namespace: tuple[int, int],
    *,
    spare: Collection[int] = (),
    grace_seconds: float = 2.0,
    limit_seconds: float = 20.0,
    proc: int | None = None,
) -> int:
    """End every process of the namespace: SIGTERM, SIGCONT, and after `grace_seconds` SIGKILL until none is left.

    Returns how many were still there at `limit_seconds` (a process in an uninterruptible wait can't be ended). Those
    that are stuck while exiting (see `wait_for_exits`) count as gone.
    """
    start = time.monotonic()
    polite = grace_seconds > 0
    while True:
        members = members_of(user_namespace, spare=spare, proc=proc)
        try:
            elapsed = time.monotonic() - start
            if not members or elapsed > limit_seconds:
                return len(members)
            polite = polite and elapsed < grace_seconds
            for pidfd in members.values():
                pidfd_send_signal(pidfd, signal.SIGTERM if polite else signal.SIGKILL)
                pidfd_send_signal(pidfd, signal.SIGCONT)
            if polite:
                wait_for_ends(members.values(), max(grace_seconds - elapsed, 0.01))
                polite = False
            elif wait_for_exits(members.values(), max(min(1.0, limit_seconds - elapsed), 0.01)):
                return 0
        finally:
            for pidfd in members.values():
                os.close(pidfd)


def _user_namespace_file(pid: int, proc: int | None) -> str:
    return f"/proc/{pid}/ns/user" if proc is None else f"{pid}/ns/user"


def _namespace_of(pid: int, proc: int | None) -> tuple[int, int] | None:
    """The identity of a process's user namespace, as `namespace_id` gives it; None if this process may not know it."""
    try:
        status = os.stat(_user_namespace_file(pid, proc), dir_fd=proc)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _lives_in(pid: int, wanted: tuple[int, int], proc: int | None) -> bool:
    try:
        fd = os.open(_user_namespace_file(pid, proc), os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return False  # gone, a zombie, or somebody else's
    try:
        while namespace_id(fd) != wanted:
            try:
                parent = parent_user_namespace(fd)
            except OSError:
                return False  # the top, or outside what this process may see
            os.close(fd)
            fd = parent
    finally:
        os.close(fd)
    return True


def wait_for_exits(pidfds: Iterable[int], seconds: float) -> bool:
    """As `wait_for_ends`. True if all have ended, or all that have not have been stuck while exiting for a while.

    Process 1 of a pid namespace can't end before all others in it are gone (zap_pid_ns_processes of the kernel). One of
    those whose parent is outside may wait for ever to be reaped: what adopts it in a container often never does that.
    Nothing can be done about such processes, and they do nothing.
    """
    pidfds = list(pidfds)
    now = time.monotonic()
    deadline, running_at = now + seconds, now
    while True:
        wait_for_ends(pidfds, max(min(deadline - now, _EXIT_SECONDS / 4), 0))
        pidfds = [pidfd for pidfd in pidfds if not pidfd_is_dead(pidfd)]
        now = time.monotonic()
        if not all(map(is_exiting, pidfds)):
            running_at = now
        if not pidfds or now - running_at > _EXIT_SECONDS:
            return True
        if now >= deadline:
            return False


def wait_for_ends(pidfds: Iterable[int], seconds: float) -> None:
    """Wait until all of these have ended, or `seconds` have passed."""
    pidfds = list(pidfds)
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    waiting = set(pidfds)
    deadline = time.monotonic() + seconds
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd, _events in poll.poll(left * 1000):
            poll.unregister(fd)
            waiting.discard(fd)
