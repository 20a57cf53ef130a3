"""What the supervisor holds of one mount, and how its server's end is dealt with."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from viewfs.mounts.fuse.counters import Counters, Snapshot
from viewfs.session.calls.messages import counted_names
from viewfs.session.patience import Patience
from viewfs.session.server_options import ServerOptions
from viewfs.session.supervisor.deposit import Row
from viewfs.session.wire.reports import Decided, Found

if TYPE_CHECKING:
    from viewfs.session.supervisor.agent_link import Child

__all__ = ["FOR_SUCCESSOR", "ServedMount"]

#: Names of the descriptors that a server leaves to the next: the source; and for devices the pipe by which they are
#: taken away, who has them open, and what they keep.
FOR_SUCCESSOR = ("source", "watch", "ledger", "kept")


@dataclass
class ServedMount:
    """What the supervisor holds of one mount. Kernel mounts have neither server nor counters."""

    confinement: str
    #: What its server said when it began; None for a mount that no module serves.
    decided: Decided | None = None
    found: Found | None = None
    #: major:minor of its superblock, by which sources that lie in it are known; empty for binds.
    device: str = ""
    server: Child | None = None
    #: The agent's number for the `server` of an earlier supervisor, until that process is found.
    server_number: int | None = None
    #: A duplicate of the server's /dev/fuse descriptor, so that its death does not end the connection before we say so.
    fuse_fd: int | None = None
    counters: Counters | None = None
    #: For a module that answers system calls, `fuse_fd` is its end of a socket, and this the notifier's.
    calls_fd: int | None = None
    #: Devices are there as long as this is open.
    control_fd: int | None = None
    #: What another server needs to go on where this one died: descriptors by name, and the request that it was mounted
    #: with.
    for_successor: dict[str, int] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    #: The server that goes on when this one has ended (`viewfs restart`).
    successor: Child | None = None
    #: Its server was ended, and no other is to come.
    is_aborted: bool = False
    #: Says how long to wait when a server has died.
    patience: Patience = field(default_factory=Patience)

    @property
    def source_identity(self) -> tuple[int, ...] | None:
        """Which file its source was."""
        return None if self.decided is None else self.decided.source_identity

    @property
    def total(self) -> int:
        """How many requests its server has answered."""
        counted = self.snapshot()
        return 0 if counted is None else counted.total

    @property
    def calls(self) -> list[str] | None:
        """The system calls that it answers; None if it is mounted."""
        calls = None if self.decided is None else self.decided.calls
        return None if calls is None else [name for name, _signature in calls]

    def snapshot(self) -> Snapshot | None:
        """What its server has done."""
        if self.counters is None:
            return None
        calls = None if self.decided is None else self.decided.calls
        return self.counters.snapshot(None if calls is None else counted_names(calls))

    @property
    def options(self) -> ServerOptions:
        return ServerOptions.of(self.request.get("options", {}))

    def seconds_to_resume(self, now: float) -> float | None:
        """How long to wait before another server takes over from one that has died; None: nobody can any more."""
        if self.decided is None or self.found is None or self.fuse_fd is None or self.counters is None:
            return None
        if not self.decided.is_built_in:
            return None
        is_stateful = not self.decided.has_devices and self.decided.calls is None
        if is_stateful and not (self.found.resumable and "source" in self.for_successor):
            return None
        return self.patience.seconds(now, self.total)

    def _held(self) -> dict[str, int]:
        """Its descriptors, by name."""
        counters = None if self.counters is None else self.counters.fd
        found = {
            "fuse_fd": self.fuse_fd,
            "control_fd": self.control_fd,
            "counters": counters,
        }
        return {name: fd for name, fd in found.items() if fd is not None} | self.for_successor

    @property
    def _number(self) -> int | None:
        """The agent's number for its server, which may not have been looked for yet."""
        return self.server_number if self.server is None else self.server.number

    @property
    def mark(self) -> tuple[Any, ...]:
        """Another value when the row has changed."""
        return (self._number, *self._held().items())

    def row(self) -> Row:
        """For `of_row`."""
        held = self._held()
        value = {
            "confinement": self.confinement,
            "decided": None if self.decided is None else self.decided.to_json(),
            "found": None if self.found is None else self.found.to_json(),
            "device": self.device,
            "server": self._number,
            "request": self.request,
            "descriptors": list(held),
        }
        return Row(value, tuple(held.values()))

    @classmethod
    def of_row(cls, row: Row) -> ServedMount:
        """The mount as an earlier supervisor had it. Its server still has to be found."""
        value = row.value
        held = dict(zip(value["descriptors"], row.fds, strict=True))
        counters, fuse, control = (held.pop(name, None) for name in ("counters", "fuse_fd", "control_fd"))
        served = cls(
            value["confinement"],
            decided=None if value["decided"] is None else Decided.from_json(value["decided"]),
            found=None if value["found"] is None else Found(**value["found"]),
            device=value["device"],
            counters=None if counters is None else Counters(counters),
            fuse_fd=fuse,
            control_fd=control,
            for_successor=held,
            server_number=value["server"],
            request=value["request"],
        )
        served.patience = Patience(served.options.deadline)
        return served

    def withdraw(self, *, calls: bool = True) -> None:
        """Take devices away, even from programs that have them open; and the system calls that it answers, unless these
        are to stay. Does nothing for other mounts."""
        if self.control_fd is not None:
            os.close(self.control_fd)
            self.control_fd = None
        if calls and self.calls_fd is not None:
            os.close(self.calls_fd)
            self.calls_fd = None

    def abort(self) -> None:
        """End the server for good: whoever waits for an answer gets an error (fuse.rst, aborting a connection)."""
        self.is_aborted = True
        self.release()
        if self.server is not None:
            self.server.kill()

    @property
    def is_running(self) -> bool:
        """Is there a process that serves it?"""
        return self.server is not None and self.server.status is None

    def forget(self) -> None:
        """Close everything, the counters too: nobody asks for the mount any more."""
        self.release()
        if self.counters is not None:
            self.counters.close()
            self.counters = None

    def release(self) -> None:
        self.withdraw()
        for fd in self.for_successor.values():
            os.close(fd)
        self.for_successor.clear()
        if self.fuse_fd is not None:
            os.close(self.fuse_fd)
            self.fuse_fd = None
