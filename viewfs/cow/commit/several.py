"""A commit of several layers at once: all or nothing where something is in conflict, and one report of it all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from viewfs.cow.commit.commit import Commit, Outcome
from viewfs.cow.compare.changes import Change
from viewfs.cow.compare.trees import Tree
from viewfs.cow.layer.layers import Layer
from viewfs.errors import UsageError

__all__ = ["LayerCommit", "Report", "at_odds", "check_writable"]


@dataclass(frozen=True)
class LayerCommit:
    """The commit of one layer, and how its paths are shown."""

    commit: Commit
    shown: Callable[[bytes], str]


@dataclass
class Report:
    """What was done, by the paths that the user knows."""

    failed: list[str] = field(default_factory=list)
    kept: list[dict[str, str]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def carry_out(self, one: LayerCommit, progress: Callable[[int], None]) -> list[Change]:
        """Commit a layer, and note what could not be done as it was asked for; returns the changes that were made."""
        outcome: Outcome = one.commit.carry_out(progress)
        self.failed += [f"{one.shown(path)}: {why}" for path, why in outcome.failed]
        self.kept += [{"path": one.shown(path), "as": one.shown(name)} for path, name in outcome.kept]
        self.taken += map(one.shown, outcome.taken)
        return outcome.changes


def at_odds(commits: list[LayerCommit]) -> Iterator[tuple[str, str]]:
    """The paths that were changed outside too, and how."""
    for one in commits:
        for conflict in one.commit.conflicts:
            yield one.shown(conflict.path), conflict.why


def check_writable(layer: Layer, lower: Tree) -> None:
    """Raises `UsageError` where the tree that `layer` is over can't be written."""
    record = layer.record
    if os.fstatvfs(lower.root).f_flag & os.ST_RDONLY:
        raise UsageError(
            f"what {record.path} was before ({record.lower.source or record.lower.type}) can't be written",
            remedy="`viewfs commit --to FILE` makes a new image of it",
        )
