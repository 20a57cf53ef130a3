"""The epoch stack: which mount serves a path in which epoch, what it shadows, and what has to live on. Pure.

An epoch is a number; every change of a view makes the next one. A mount made in epoch *n* is in the view from *n* on
until the epoch that removes it; its module sees epoch *n*−1. Of several mounts whose paths lead to a file the newest
serves it: a later mount on the same path lies on top, one further up covers everything below, and one further down was
made in what was visible.

Paths are absolute and canonical (no symbolic links, no `..`, no trailing slash).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NewType

from viewfs.paths import is_at_or_below

__all__ = ["Change", "Epoch", "EpochStack", "Mount", "Resolution", "covers"]

Epoch = NewType("Epoch", int)


@dataclass(frozen=True)
class Mount:
    """One mount of a view. `made_in` identifies it, for no epoch makes two."""

    made_in: Epoch
    #: Empty for a module that answers system calls, which lies over nothing; its `source` is what it owns of the tree.
    path: str
    type: str
    source: str = ""
    #: The mount that its source lies in; that mount must live as long as this one.
    made_from: Epoch | None = None
    #: Its module goes on reading the whole view as it was in its epoch.
    uses_view: bool = False
    removed_in: Epoch | None = None
    #: Where more of it is mounted, each a file beside `path`.
    also: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every place where it is mounted."""
        return (self.path, *self.also) if self.path else ()

    @property
    def shown_as(self) -> str:
        """What people know it by."""
        return self.path or f"module {self.type}"

    def leads_to(self, path: str) -> bool:
        """Is `path` one of these places, or below one?"""
        return any(covers(place, path) for place in self.paths)

    def in_epoch(self, epoch: Epoch) -> bool:
        return self.made_in <= epoch and (self.removed_in is None or epoch < self.removed_in)


@dataclass(frozen=True)
class Change:
    """One line of the log: what made `epoch`."""

    epoch: Epoch
    time_ns: int
    operation: str
    path: str = ""
    type: str = ""
    source: str = ""
    #: The mount that was made or removed.
    mount: Epoch | None = None


@dataclass(frozen=True)
class Resolution:
    """Which mount serves a path; `shadowed` holds the mounts underneath, the newest first."""

    serving: Mount | None
    shadowed: tuple[Mount, ...]


def covers(directory: str, path: str) -> bool:
    """Does a mount on `directory` lead to `path`?"""
    return is_at_or_below(path, directory)


@dataclass
class EpochStack:
    """All epochs of one view, from 0, which is the view as it began."""

    mounts: dict[Epoch, Mount] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    #: Mounts that nothing uses any more; they are kept because the log names them.
    past: dict[Epoch, Mount] = field(default_factory=dict)

    @classmethod
    def begin(cls, time_ns: int) -> EpochStack:
        return cls({}, [Change(Epoch(0), time_ns, "start")])

    @property
    def current(self) -> Epoch:
        return self.changes[-1].epoch

    def __contains__(self, epoch: Epoch) -> bool:
        return 0 <= epoch <= self.current

    def _advance(self, time_ns: int, operation: str, mount: Mount) -> Epoch:
        epoch = Epoch(self.current + 1)
        made_in = mount.made_in if mount.made_in <= self.current else epoch
        self.changes.append(Change(epoch, time_ns, operation, mount.path, mount.type, mount.source, made_in))
        return epoch

    def mount(
        self,
        path: str,
        type: str,
        source: str = "",
        *,
        made_from: Epoch | None = None,
        uses_view: bool = False,
        also: tuple[str, ...] = (),
        time_ns: int = 0,
        operation: str = "mount",
    ) -> Mount:
        """A new mount on `path`, and with it a new epoch. `made_from` may name a mount that is in no view any more."""
        mount = Mount(Epoch(self.current + 1), path, type, source, made_from, uses_view, also=also)
        self._advance(time_ns, operation, mount)
        self.mounts[mount.made_in] = mount
        return mount

    def remove(self, mount: Mount, *, time_ns: int = 0, operation: str = "umount") -> Epoch:
        """Take a mount out of the view, and with it make a new epoch."""
        epoch = self._advance(time_ns, operation, mount)
        self.mounts[mount.made_in] = replace(self.mounts[mount.made_in], removed_in=epoch)
        return epoch

    def note(self, operation: str, *, source: str = "", time_ns: int = 0) -> Epoch:
        """Make a new epoch in which the same is mounted; the epoch before it is kept as it was."""
        epoch = Epoch(self.current + 1)
        self.changes.append(Change(epoch, time_ns, operation, source=source))
        return epoch

    def mount_of(self, made_in: Epoch) -> Mount | None:
        """The mount that was made in that epoch, whatever has become of it."""
        return self.mounts.get(made_in) or self.past.get(made_in)

    def retire(self, mount: Mount) -> None:
        """Move `mount` to the `past`: it is in no epoch that anybody asks for any more."""
        self.past[mount.made_in] = self.mounts.pop(mount.made_in)

    def forget(self, most: int) -> set[Epoch]:
        """Keep no more than the `most` latest mounts of the `past`, and drop from the log the epochs that made or ended
        the others. Returns the epochs that were dropped."""
        gone = set(sorted(self.past)[: max(len(self.past) - most, 0)])
        for made_in in gone:
            del self.past[made_in]
        forgotten = {change.epoch for change in self.changes[:-1] if change.mount in gone}
        self.changes = [change for change in self.changes if change.epoch not in forgotten]
        return forgotten

    def in_epoch(self, epoch: Epoch) -> list[Mount]:
        """What is mounted in `epoch`, oldest first."""
        return [mount for mount in self.mounts.values() if mount.in_epoch(epoch)]

    def live(self) -> list[Mount]:
        return self.in_epoch(self.current)

    def resolve(self, path: str, epoch: Epoch | None = None) -> Resolution:
        """Which mount serves `path` in `epoch` (default: now); none if the host does."""
        epoch = self.current if epoch is None else epoch
        candidates = [mount for mount in self.in_epoch(epoch) if mount.leads_to(path)]
        candidates.reverse()
        return Resolution(candidates[0] if candidates else None, tuple(candidates[1:]))

    def visible_on(self, path: str) -> Mount | None:
        """The mount whose root is what `path` shows now; None if `path` is no such root."""
        serving = self.resolve(path).serving
        return serving if serving is not None and path in serving.paths else None

    def below(self, mount: Mount) -> list[Mount]:
        """The live mounts that were made inside `mount` or on top of it, and so keep it busy, newest first."""
        later = [
            other
            for other in self.live()
            if other.made_in > mount.made_in and any(mount.leads_to(path) for path in other.paths)
        ]
        return later[::-1]

    def is_shadowed(self, mount: Mount, epoch: Epoch | None = None) -> bool:
        """Is one of the places of `mount` hidden by a newer mount on it or above it?"""
        this = self.mounts[mount.made_in]
        return any(self.resolve(path, epoch).serving != this for path in mount.paths)

    def pins(self, mount: Mount) -> list[Mount]:
        """The mounts, in the view or not, that need `mount`: made from it, or reading a view that had it."""
        return [
            other
            for other in self._alive()
            if other.made_in > mount.made_in
            and (
                other.made_from == mount.made_in
                or (other.uses_view and self.mounts[mount.made_in].in_epoch(Epoch(other.made_in - 1)))
            )
        ]

    def _alive(self) -> Iterator[Mount]:
        """Mounts in the view, and those that one of these needs, directly or not; newest first."""
        needed: set[Epoch] = set()
        for mount in reversed(self.mounts.values()):
            if mount.removed_in is not None and mount.made_in not in needed:
                continue
            if mount.made_from is not None:
                needed.add(mount.made_from)
            if mount.uses_view:
                needed.update(other.made_in for other in self.in_epoch(Epoch(mount.made_in - 1)))
            yield mount

    def alive(self) -> set[Epoch]:
        """The mounts, by epoch, that have to go on working."""
        return {mount.made_in for mount in self._alive()}

    def enterable(self) -> list[Epoch]:
        """The epochs in which everything that is mounted still works, so that a command can be run in them."""
        alive = self.alive()
        return [
            change.epoch
            for change in self.changes
            if all(mount.made_in in alive for mount in self.in_epoch(change.epoch))
        ]

    def change(self, epoch: Epoch) -> Change:
        """The change that made `epoch`. Raises KeyError for one that never was."""
        index = bisect.bisect_left(self.changes, epoch, key=lambda change: change.epoch)
        if index == len(self.changes) or self.changes[index].epoch != epoch:
            raise KeyError(epoch)
        return self.changes[index]
