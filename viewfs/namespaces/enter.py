"""The namespaces of a view as descriptors, and joining them.

The owner of a user namespace who stands in its parent has every capability in it (user_namespaces(7)), so a client
outside can join a view by itself, and a command it then executes is an ordinary child of the caller's shell: job
control, exit status and signals need no help. A process inside has no such right and asks the agent
(`viewfs.session.agent`).
"""

from __future__ import annotations

import os

from viewfs.linux.namespaces import CloneFlags, setns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NO_LIMIT", "Asking", "Namespaces", "open_namespace"]

NO_LIMIT = -1

#: The order matters: the user namespace first, for it gives the right to the others.
KINDS = {"user": CloneFlags.NEWUSER, "pid": CloneFlags.NEWPID, "uts": CloneFlags.NEWUTS, "mnt": CloneFlags.NEWNS}


def open_namespace(kind: str, *, proc: int | None = None) -> int:
    """A descriptor of this process's own namespace. `proc` is a descriptor of /proc, for where that may be hidden."""
    name = "pid_for_children" if kind == "pid" else kind
    if proc is None:
        return os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    return os.open(f"self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)


class Asking:
    """What a command of a view needs to have its session answer system calls (`viewfs.session.calls.notified`)."""

    def __init__(self, keeper: int, families: Sequence[str] = (), limit: int = NO_LIMIT) -> None:
        """`keeper`: a socket to whoever keeps the listeners. `families`: calls that are notified besides the rare ones.
        `limit`: the epoch before which a module must have been loaded for the calls to reach it, or `NO_LIMIT`."""
        self.keeper = keeper
        self.families = tuple(families)
        self.limit = limit


class Namespaces:
    """Open descriptors of a view's namespaces, by kind."""

    def __init__(self, fds: dict[str, int], calls: Asking | None = None) -> None:
        self.fds = fds
        #: How commands that enter ask the session about system calls.
        self.calls = calls

    def join(self) -> None:
        """Enter all of them. Root and working directory become the view's root.

        A pid namespace takes effect for children only. Raises OSError, as setns(2).
        """
        for kind in KINDS:
            if kind in self.fds:
                setns(self.fds[kind], KINDS[kind])

    @property
    def needs_fork(self) -> bool:
        return "pid" in self.fds

    def close(self) -> None:
        for fd in (*self.fds.values(), *(() if self.calls is None else (self.calls.keeper,))):
            os.close(fd)
