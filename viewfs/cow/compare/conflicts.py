"""Conflicts: what was changed both in a view and outside of it.

A layer does not say what the lower tree was like when a file was copied up into it. A file that was changed since then
is recognized by its change time, which nobody can set: it is later than the start of the layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from viewfs.cow.commit.planning import Selection
from viewfs.cow.compare.changes import Change, Kind, with_renames
from viewfs.cow.compare.replaced import replaced_directories
from viewfs.cow.compare.trees import Tree, split
from viewfs.cow.layer.records import LayerRecord
from viewfs.mounts.overlay import ORIGIN
from viewfs.paths import is_below

__all__ = ["Conflict", "find_conflicts"]

#: How much of a file is looked at to tell whether it resembles another.
_LOOKED_AT = 1 << 20
#: Aspects of a directory itself. (A layer has its own for a directory even if only something in it was changed.)
_OWN = frozenset({"mode", "owner", "xattrs"})


@dataclass(frozen=True)
class Conflict:
    """A path that was changed in the view and outside of it."""

    path: bytes
    why: str
    #: The conflict is about a directory's mode, owner or attributes, and not about what is in it.
    is_own: bool = False


def find_conflicts(
    record: LayerRecord,
    lower: Tree,
    view: Tree,
    upper: Tree,
    changes: Sequence[Change],
    unchanged: dict[tuple[int, int], bytes],
    selection: Selection,
) -> Iterator[Conflict]:
    """The conflicts among those `changes` that are in `selection`; another name of a file in `unchanged` is none."""
    others = replaced_directories(record, lower)
    gone: list[Conflict] = []
    inside: bytes | None = None
    for change in changes:
        if not selection.has(change.path):
            continue
        if change.old is not None:
            told = inside is not None and is_below(change.path, inside)
            if not told and _changed_outside(record, change):
                # Where it is a directory on both sides, what is in it is looked at by itself.
                inside = None if _stays_directory(change) else change.path
                yield Conflict(change.path, "it was changed outside too", _stays_directory(change))
            elif not told and others and not _stays_directory(change) and _is_in(change.path, others):
                yield Conflict(change.path, "its directory is another one outside")
        elif _was_copied_up(upper, change.path) and _something_went(record, lower, change.path):
            gone.append(Conflict(change.path, "it was removed outside"))
    if gone:
        moved = _moved(lower, view, changes, unchanged, {conflict.path for conflict in gone})
        yield from (conflict for conflict in gone if conflict.path not in moved)


def _is_in(path: bytes, directories: Sequence[bytes]) -> bool:
    return any(is_below(path, one) for one in directories)


def _stays_directory(change: Change) -> bool:
    return all(entry is not None and entry.is_directory for entry in (change.old, change.new))


def _changed_outside(record: LayerRecord, change: Change) -> bool:
    assert change.old is not None
    if _stays_directory(change) and not change.aspects & _OWN:
        return False  # what is in it is looked at by itself
    return record.is_news(change.path, change.old)


def _was_copied_up(upper: Tree, path: bytes) -> bool:
    """Does the layer say that it was copied up from a lower file? (overlayfs.rst, trusted.overlay.origin)"""
    entry = upper.entry(path)
    return entry is not None and ORIGIN in dict(entry.xattrs)


def _something_went(record: LayerRecord, lower: Tree, path: bytes) -> bool:
    """Has the directory of `path` been changed outside, so that a name may have been removed from it?"""
    directory = split(path)[0]
    while directory and lower.entry(directory) is None:
        directory = split(directory)[0]
    entry = lower.entry(directory)
    if entry is None or record.touched.get(os.fsdecode(directory)) == entry.ctime_ns:
        return False
    return entry.ctime_ns > record.base_ns(path)


def _moved(
    lower: Tree,
    view: Tree,
    changes: Sequence[Change],
    unchanged: dict[tuple[int, int], bytes],
    suspects: set[bytes],
) -> set[bytes]:
    """Those of the new files `suspects` that are renamed files, or new names of other files.

    (An overlay of a user namespace does not say from which file another was copied up. So a file counts as renamed if
    one with the same content, or much of it, was deleted in the view.)
    """
    there = {
        *unchanged,
        *(change.new.identity for change in changes if change.old is not None and change.new is not None),
    }
    told = with_renames(changes, lower, view)
    moved = {change.path for change in told if change.kind is Kind.RENAMED}
    left = [c.path for c in told if c.kind is Kind.DELETED and c.old is not None and c.old.is_file and c.old.size]
    for change in changes:
        if change.path not in suspects or change.new is None:
            continue
        if change.new.identity in there or any(_resembles(lower, path, view, change.path) for path in left):
            moved.add(change.path)
    return moved


def _resembles(one: Tree, path: bytes, other: Tree, other_path: bytes) -> bool:
    """Are at least half of the lines of the one file in the other?"""
    lines, others = _lines(one, path), _lines(other, other_path)
    return 2 * len(lines & others) >= len(lines) > 0


def _lines(tree: Tree, path: bytes) -> set[bytes]:
    """Those of a file, as far as they are looked at; none of a file that may not be read."""
    try:
        fd = tree.open(path)
    except PermissionError:
        return set()
    try:
        return set(os.pread(fd, _LOOKED_AT, 0).split(b"\n")) - {b""}
    finally:
        os.close(fd)
