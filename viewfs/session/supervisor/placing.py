"""A mount on its way to its place, and its record: what the supervisor and `first_mounts` have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from viewfs.epochs import Epoch, Mount
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.skeleton import MountPointPlan
from viewfs.paths import is_at_or_below
from viewfs.python import own_places
from viewfs.session.supervisor.history import History
from viewfs.session.supervisor.scaffold import Scaffold
from viewfs.session.supervisor.served import FOR_SUCCESSOR, ServedMount
from viewfs.session.wire.reports import Decided, Found

__all__ = [
    "COMPLETE",
    "NOTHING",
    "PLACE_SECONDS",
    "WHY_NOT_FOUND",
    "WHY_NOT_OPENED",
    "WHY_NOT_PLACED",
    "Descriptors",
    "Intent",
    "Placing",
    "hides_program",
    "record",
]

#: What a request to mount says, unless it says otherwise.
COMPLETE: dict[str, Any] = {
    "type": None,
    "source": "",
    "path": None,
    "options": {},
    "cwd": "/",
    "operation": "mount",
    "module_path": [],
    "program": None,
}
#: Seconds that walking to a mount point may take; a file system on the way that does not answer is not waited for
#: longer.
PLACE_SECONDS = 20
#: What may be the matter where a step takes too long.
WHY_NOT_OPENED = "is it damaged, or on a file system that hangs? -o deadline=SECONDS"
WHY_NOT_FOUND = "is it damaged? -o deadline=SECONDS waits longer"
WHY_NOT_PLACED = "does a file system on the way there hang?"


class Descriptors:
    """Descriptors that came with a message: closed at the end of the block, but for those handed over by `take`."""

    def __init__(self, fds: list[int], names: Sequence[str] | None = None) -> None:
        self._fds: dict[str | int, int] = dict(zip(range(len(fds)) if names is None else names, fds, strict=True))

    def __getitem__(self, key: str | int) -> int:
        return self._fds[key]

    def take(self, key: str | int) -> int:
        return self._fds.pop(key)

    def __contains__(self, key: str | int) -> bool:
        return key in self._fds

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_error: object) -> None:
        for fd in self._fds.values():
            os.close(fd)


@dataclass(frozen=True)
class Intent:
    """A change that is under way. Before it, each of `paths` had so many mounts, one on the other, as `depths` says."""

    paths: list[str] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    operation: str = ""
    #: The mounts that are to be removed, by epoch; none if the change mounts something.
    unmounted: list[Epoch] = field(default_factory=list)


NOTHING = asdict(Intent())


@dataclass
class Placing:
    """One mount on its way to its place."""

    request: dict[str, Any]
    decided: Decided
    found: Found
    opened: Descriptors
    served: ServedMount
    plans: list[MountPointPlan] = field(default_factory=list)
    #: How many of the `plans` have something attached.
    attached: int = 0

    @property
    def doing(self) -> str:
        """For messages."""
        return f"cannot mount on {self.decided.path}"

    @property
    def wanted(self) -> dict[str, Any]:
        """What the placer is asked for."""
        return {
            "path": self.decided.path,
            "type": self.decided.type,
            "source": self.decided.source,
            "directory": self.found.is_directory and self.found.names is None,
            "root_mode": None if self.decided.is_kernel else self.found.root_mode,
            "writable": self.found.writable,
            # The mount of a foreign server is looked at, like files of a mount, to see whether the server answers.
            "names": [""] if self.decided.speaks_fuse else self.found.names,
        }

    def keep_descriptors(self) -> None:
        """Keep, for the mount that is served now, the descriptors that came from its server."""
        served, opened = self.served, self.opened
        served.counters = Counters(opened.take("counters"))
        if "control" in opened:
            served.control_fd = opened.take("control")
        served.for_successor = {name: opened.take(name) for name in FOR_SUCCESSOR if name in opened}


def hides_program(paths: Iterable[str]) -> bool:
    """Can mounts on `paths` hide files that this program may still have to read?"""
    own = own_places()
    return any(is_at_or_below(place, path) or is_at_or_below(path, place) for path in paths for place in own)


def record(placing: Placing, snapshot: int, history: History, scaffold: Scaffold) -> Mount:
    """Record what is attached as a mount of the view; `snapshot` shows the view before it."""
    request, decided, served = placing.request, placing.decided, placing.served
    history.keep_snapshot(snapshot)
    mount = history.epochs.mount(
        placing.plans[0].path,
        decided.type,
        decided.source,
        made_from=history.mount_on_device(decided.device),
        uses_view=decided.uses_view,
        also=tuple(plan.path for plan in placing.plans[1:]),
        time_ns=time.time_ns(),
        operation=request["operation"],
    )
    served.request = request | {"type": decided.type, "code": request["type"] or decided.type, "path": decided.path}
    history.served[mount.made_in] = served
    for plan in placing.plans:
        scaffold.add(mount.made_in, plan)
    return mount
