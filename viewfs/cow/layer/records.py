"""What layer.json says: what a layer is over, and since when, and which states of it are kept. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from viewfs.cow.compare.trees import Entry
from viewfs.paths import is_at_or_below

__all__ = ["Checkpoint", "LayerRecord", "Lower", "is_state_directory", "typed"]

T = TypeVar("T")


@dataclass(frozen=True)
class Lower:
    """What a layer is over: a directory of the host, or a mount of the view, which only the view has."""

    #: "host", or the type of the mount.
    type: str
    #: What the mount was made from.
    source: str = ""
    #: Which file that was: device, inode number, size, modification time in nanoseconds.
    identity: tuple[int, ...] | None = field(default=None, compare=False)

    @property
    def is_host(self) -> bool:
        return self.type == "host"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Lower:
        identity = value["identity"]
        numbers = None if identity is None else tuple(typed(one, int) for one in typed(identity, list))
        return cls(typed(value["type"], str), typed(value["source"], str), numbers)


@dataclass(frozen=True)
class Checkpoint:
    """An older state of a layer that is kept."""

    epoch: int
    name: str
    time_ns: int
    #: The directory below `checkpoints/`.
    directory: str
    #: `LayerRecord.opened_ns` at that time: later changes of the lower tree are in conflict with this state.
    opened_ns: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Checkpoint:
        directory = typed(value["directory"], str)
        if not is_state_directory(directory):
            raise ValueError(f"{directory!r} is no state")
        epoch, name = typed(value["epoch"], int), typed(value["name"], str)
        return cls(epoch, name, typed(value["time_ns"], int), directory, typed(value["opened_ns"], int))


@dataclass(frozen=True)
class LayerRecord:
    """What layer.json says."""

    #: The mount point.
    path: str
    lower: Lower
    #: When it was begun: what was changed later in the lower tree is in conflict with what the layer changes.
    opened_ns: int
    checkpoints: tuple[Checkpoint, ...] = ()
    #: As `opened_ns`, for paths that were committed or discarded by themselves since.
    bases: dict[str, int] = field(default_factory=dict)
    #: What commits wrote in the lower tree, with its change time afterwards: as long as it has that, it is no news.
    touched: dict[str, int] = field(default_factory=dict)
    #: Files to which commits added names, or from which they removed some, by inode number: the time when that was
    #: done, and the attributes then (as in `journal.Staged`). All names of a file have one change time.
    linked: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: Inode numbers of the lower directories that its own directories are over (`cow.compare.replaced`).
    directories: dict[str, int] = field(default_factory=dict)
    #: What showed it last: the kernel's "overlay", or our own file system ("fuse").
    backend: str = "overlay"
    #: The upper directory has entries that are no changes any more, because they were committed or discarded.
    unsettled: bool = False
    #: It is removed with its session, and need not survive a crash of the machine.
    volatile: bool = False
    #: It has files of ids that were given to the user besides their own (subuid(5)).
    subordinate: bool = False
    #: When a new image of the tree was begun that has replaced the lower one: it has what the layer had by then.
    placed_ns: int = 0

    def base_ns(self, path: bytes) -> int:
        """The time from which on a change of `path` in the lower tree is a conflict."""
        here = os.fsdecode(path)
        return max([self.opened_ns, *(time for base, time in self.bases.items() if is_at_or_below(here, base))])

    def is_news(self, path: bytes, entry: Entry) -> bool:
        """Has somebody changed `entry`, which is at `path` of the lower tree, since the base time of `path`?"""
        if self.touched.get(os.fsdecode(path)) == entry.ctime_ns or entry.ctime_ns <= self.base_ns(path):
            return False
        return not self.was_linked(entry)

    def was_linked(self, entry: Entry) -> bool:
        """Does its change time come from a commit that gave it a name or took one away?"""
        until_ns, *attributes = self.linked.get(str(entry.identity[1]), (0,))
        return entry.ctime_ns <= until_ns and attributes == [*entry[:3], entry.size, entry.mtime_ns]

    def rebased(self, paths: Sequence[bytes], now_ns: int) -> LayerRecord:
        """The record after `paths` (b"": all of it) have been made the same in the lower tree and in the view."""
        if b"" in paths:
            opened_ns = max(self.opened_ns, now_ns)
            after = replace(self, opened_ns=opened_ns, bases={}, directories={}, unsettled=True)
            # A state that was kept needs both when it comes back.
            return after if self.checkpoints else replace(after, touched={}, linked={})
        return replace(self, bases=self.bases | {os.fsdecode(path): now_ns for path in paths}, unsettled=True)

    def with_an_older_state(self) -> LayerRecord:
        """The record after a state that was kept has come back: what was changed outside since then is in conflict."""
        opened_ns = min([self.opened_ns, *(one.opened_ns for one in self.checkpoints)])
        return replace(self, opened_ns=opened_ns, bases={}, unsettled=True)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LayerRecord:
        """Raises ValueError, KeyError and TypeError for what is none."""
        record = cls(
            path=typed(value["path"], str),
            lower=Lower.from_json(typed(value["lower"], dict)),
            opened_ns=typed(value["opened_ns"], int),
            checkpoints=tuple(Checkpoint.from_json(one) for one in typed(value["checkpoints"], list)),
            bases=_times(value["bases"]),
            touched=_times(value["touched"]),
            linked={
                number: tuple(typed(one, int) for one in typed(values, list))
                for number, values in typed(value["linked"], dict).items()
            },
            directories=_times(value["directories"]),
            backend=typed(value["backend"], str),
            unsettled=typed(value["unsettled"], bool),
            volatile=typed(value["volatile"], bool),
            subordinate=typed(value["subordinate"], bool),
            placed_ns=typed(value["placed_ns"], int),
        )
        if not record.path.startswith("/") or "\0" in record.path:
            raise ValueError(f"{record.path!r} is no mount point")
        return record


def typed(value: Any, kind: type[T]) -> T:
    """`value`, if it is of that kind. Raises TypeError."""
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _times(value: Any) -> dict[str, int]:
    return {path: typed(time_ns, int) for path, time_ns in typed(value, dict).items()}


def is_state_directory(name: str) -> bool:
    """May a directory below `checkpoints/` be called that? (The name comes from a client.)"""
    return re.fullmatch(r"[0-9]+-[A-Za-z0-9._-]{0,60}", name) is not None
