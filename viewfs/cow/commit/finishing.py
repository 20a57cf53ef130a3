"""What follows the steps of a commit, in the same process, or in the next command if the commit was interrupted.

A commit that had not staged everything is undone, one that had is finished (see `commit`).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Sequence
from dataclasses import replace

from viewfs.cow.commit.applying import Applied, apply
from viewfs.cow.commit.journal import Journal, Moments, Operation, Step, Written
from viewfs.cow.compare.trees import Tree, split
from viewfs.cow.copying import decode_attributes, remove_tree
from viewfs.cow.layer.layers import Layer, clock_ns
from viewfs.mounts.overlay import OPAQUE

__all__ = ["done_paths", "finish", "is_at_or_below_one", "paths_done_whole", "recover", "undo"]


def is_at_or_below_one(path: bytes, places: Collection[bytes]) -> bool:
    while path and path not in places:
        path = split(path)[0]
    return path in places


def recover(layer: Layer, lower: Tree) -> str | None:
    """Finish or undo an interrupted commit; returns what was done, for a person to read, or None if there was none.

    The caller holds the layer's lock. Raises `ViewfsError` and OSError.
    """
    journal = Journal(layer.fd)
    found = journal.read()
    if found is None:
        return None
    where = layer.record.path
    if found.staged is None:
        undo(layer, lower, found.steps, found.moments)
        journal.end()
        return f"an interrupted commit to {where} was undone"
    # What was refused while staging was never there to be installed.
    steps = [step for step in found.steps if step.operation is not Operation.INSTALL or step.temporary in found.staged]
    refused = [(step.path, "") for step in found.steps if step not in steps]
    applied = apply(lower, steps, found.staged)
    finish(layer, lower, journal, found, applied, [*refused, *applied.failed])
    return f"an interrupted commit to {where} was finished{_told(where, applied)}"


def _told(where: str, applied: Applied) -> str:
    """What else a person has to know of the commit."""
    told = ""
    if applied.kept:
        path, kept = (name.decode(errors="replace") for name in applied.kept[0])
        others = f", and {len(applied.kept) - 1} more like it" if len(applied.kept) > 1 else ""
        shown = os.path.join(where, path)
        told += f"; {shown} was changed outside meanwhile, and that is kept as {os.path.basename(kept)}{others}"
    if applied.failed:
        failed, why = applied.failed[0]
        told += f"; not committed: {os.path.join(where, failed.decode(errors='replace'))}: {why}"
        told += f", and {len(applied.failed) - 1} more" if len(applied.failed) > 1 else ""
    return told


def finish(
    layer: Layer,
    lower: Tree,
    journal: Journal,
    written: Written,
    applied: Applied,
    failed: Sequence[tuple[bytes, str]],
) -> None:
    """Write down since when changes outside are somebody else's: since planning for all paths, and since staging for
    what was installed, except for what the commit itself has changed."""
    steps, moments = written.steps, written.moments
    undone = {path for path, _why in failed}
    record = layer.record.rebased(done_paths(steps, written.paths, undone), moments.planned_ns)
    installed = [step.path for step in steps if step.operation is Operation.INSTALL and step.path not in undone]
    bases = record.bases | {os.fsdecode(path): moments.staged_ns for path in installed}
    touched = record.touched | {os.fsdecode(path): time_ns for path, time_ns in applied.touched.items()}
    # From now on the layer is over what was installed: forget the directories that this has replaced.
    gone = {step.path for step in steps if step.temporary and step.path not in undone}
    known = {path: one for path, one in record.directories.items() if not is_at_or_below_one(os.fsencode(path), gone)}
    touched |= _directory_times(lower, moments, undone)
    linked = record.linked | _linked_until(moments, clock_ns(layer.fd, lower))
    record = replace(record, bases=bases, touched=touched, linked=linked, directories=known)
    _hide_lower(layer, installed)
    layer.write(record)
    journal.end()


def _linked_until(moments: Moments, now_ns: int) -> dict[str, tuple[int, ...]]:
    return {str(one.inode): (now_ns, *one[1:]) for one in moments.linked}


def _directory_times(lower: Tree, moments: Moments, undone: Collection[bytes] = ()) -> dict[str, int]:
    """Change times of directories in which this commit alone did something."""
    found: dict[str, int] = {}
    for directory, attributes in moments.untouched.items():
        entry = lower.entry(directory) if directory not in undone else None
        if entry is not None and (entry.mode, entry.uid, entry.gid) == attributes:
            found[os.fsdecode(directory)] = entry.ctime_ns
    return found


def done_paths(steps: Sequence[Step], paths: Sequence[bytes], undone: Collection[bytes]) -> list[bytes]:
    """The paths that are now the same: all of `paths`, or if some are `undone`, those that a step has made so."""
    return [path for path in paths_done_whole(steps) if path not in undone] if undone else list(paths)


def paths_done_whole(steps: Sequence[Step]) -> list[bytes]:
    """The paths that these steps make the same outside and in the view, with all below them.

    A directory of which only the attributes were set is left out, for what is in it may differ.
    """
    return [
        step.path
        for step in steps
        if step.temporary or (step.attributes and not decode_attributes(step.attributes).is_directory)
    ]


def _hide_lower(layer: Layer, installed: Sequence[bytes]) -> None:
    """Mark those directories of the layer opaque that this commit has made in the lower tree.

    A mounted overlay does not know that they have lower ones now, and leaves no whiteout for what is deleted in them.
    """
    with layer.open_upper() as upper:
        for path in installed:
            for here, entry in upper.walk(path):
                if entry.is_directory:
                    with upper.directory(here) as fd:
                        os.setxattr(fd, OPAQUE, b"y")


def undo(layer: Layer, lower: Tree, steps: Sequence[Step], moments: Moments) -> None:
    for step in steps:
        if step.temporary:
            directory, name = split(step.temporary)
            try:
                with lower.directory(directory) as parent:
                    remove_tree(parent, name)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
    # That something was staged in directories for a while is no news either.
    with contextlib.suppress(OSError):  # a full disk
        record = layer.record
        touched = record.touched | _directory_times(lower, moments)
        linked = record.linked | _linked_until(moments, clock_ns(layer.fd, lower))
        layer.write(replace(record, touched=touched, linked=linked))
