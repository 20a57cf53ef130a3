"""What a view made so that something could be mounted, and when it can be taken away again. Pure.

Two kinds of thing are made: covers (a skeleton over a directory, which only the live view has) and entries (an empty
directory or file, in a skeleton that all epochs share). A cover can go when nothing in the view stands on it. An entry
has to stay as long as an epoch has something mounted on it: removing a mount point takes away what other namespaces
have mounted there.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from viewfs.epochs import Epoch, EpochStack, covers
from viewfs.mounts.skeleton import MountPointPlan

__all__ = ["Scaffold"]


@dataclass
class Scaffold:
    """What is there, in the order in which it was made, and the mount that each was made for."""

    _made: list[tuple[Epoch, MountPointPlan]] = field(default_factory=list)

    def add(self, mount: Epoch, plan: MountPointPlan) -> None:
        """`plan` was carried out for `mount`."""
        if plan.needs_skeleton:
            self._made.append((mount, plan))
        if plan.missing:
            self._made.append((mount, replace(plan, needs_skeleton=False)))

    def has_made(self, path: str) -> bool:
        """Is `path` the first of what was made in its directory?"""
        return any(plan.missing and os.path.join(plan.parent, plan.missing[0]) == path for _mount, plan in self._made)

    def take_due(self, epochs: EpochStack, kept: Collection[Epoch]) -> list[MountPointPlan]:
        """What can go now, the newest first; it is forgotten here. `kept` are the older epochs that can be entered."""
        needed = epochs.alive()
        live = [mount.path for mount in epochs.live()]
        due: list[MountPointPlan] = []
        for item in reversed(self._made.copy()):
            mount, plan = epochs.mount_of(item[0]), item[1]
            if mount is None or mount.removed_in is None:
                continue
            if not plan.needs_skeleton and (mount.made_in in needed or any(mount.in_epoch(epoch) for epoch in kept)):
                continue
            top = plan.parent if plan.needs_skeleton else os.path.join(plan.parent, plan.missing[0])
            if any(covers(top, path) for path in live):
                continue
            self._made.remove(item)
            due.append(plan)
        return due
