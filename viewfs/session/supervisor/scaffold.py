"""What a view made so that something could be mounted, and when it can be taken away again. Pure.

Two kinds of thing are made: covers (a skeleton over a directory, which only the live view has) and entries (an empty
directory or file, in a skeleton that all epochs share). A cover can go when nothing in the view stands on it. An entry
has to stay as long as an epoch has something mounted on it: removing a mount point takes away what other namespaces
have mounted there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from viewfs.epochs import Epoch, EpochStack, covers
from viewfs.mounts.skeleton import MountPointPlan
from viewfs.session.supervisor.deposit import Entry, Row

__all__ = ["Scaffold"]


@dataclass
class Scaffold:
    """What is there, in the order in which it was made, and the mount that each was made for."""

    _made: dict[int, tuple[Epoch, MountPointPlan]] = field(default_factory=dict)
    _count: int = 0

    def add(self, mount: Epoch, plan: MountPointPlan) -> None:
        """Record that `plan` was carried out for `mount`."""
        if plan.needs_skeleton:
            self._add(mount, plan)
        if plan.missing:
            self._add(mount, replace(plan, needs_skeleton=False))

    def _add(self, mount: Epoch, plan: MountPointPlan) -> None:
        self._made[self._count] = mount, plan
        self._count += 1

    def entries(self) -> Iterator[Entry]:
        """All of it, for `take_up`."""
        for number, item in self._made.items():
            yield Entry(f"made {number}", item, partial(_row, *item))

    def take_up(self, rows: Mapping[str, Row]) -> None:
        """Restore it from `rows`."""
        made = {int(name[5:]): row.value for name, row in rows.items() if name.startswith("made ")}
        self._made = {n: (Epoch(made[n][0]), MountPointPlan.from_json(made[n][1])) for n in sorted(made)}
        self._count = max(made, default=-1) + 1

    def has_made(self, path: str) -> bool:
        """Is `path` the first of what was made in its directory?"""
        return any(
            plan.missing and os.path.join(plan.parent, plan.missing[0]) == path for _mount, plan in self._made.values()
        )

    def due(self, epochs: EpochStack, kept: Collection[Epoch]) -> dict[int, MountPointPlan]:
        """What can go now, the newest first, by numbers for `forget`. `kept` are the older epochs that can be
        entered."""
        needed = epochs.alive()
        live = [path for mount in epochs.live() for path in mount.paths]
        due: dict[int, MountPointPlan] = {}
        for number in reversed(self._made.copy()):
            made_for, plan = self._made[number]
            mount = epochs.mount_of(made_for)
            if mount is None or mount.removed_in is None:
                continue
            if not plan.needs_skeleton and (mount.made_in in needed or any(mount.in_epoch(epoch) for epoch in kept)):
                continue
            top = plan.parent if plan.needs_skeleton else os.path.join(plan.parent, plan.missing[0])
            if any(covers(top, path) for path in live):
                continue
            due[number] = plan
        return due

    def forget(self, numbers: Iterable[int]) -> None:
        """Forget what has been taken away."""
        for number in numbers:
            del self._made[number]


def _row(mount: Epoch, plan: MountPointPlan) -> Row:
    return Row([mount, asdict(plan)])
