"""Removing from a layer what is no change any more, because it was committed or discarded while the view was in use.

The upper directory of a mounted overlay must not be touched. So this is done when a layer is taken up again, or by a
command while no session has it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from viewfs.cow.compare.changes import Change, differences, is_opaque, same_content, same_owner, same_time
from viewfs.cow.compare.trees import Entry, Tree, join, split
from viewfs.cow.copying import remove_tree
from viewfs.cow.layer.layers import Layer, clock_ns
from viewfs.cow.layer.settled import Settled, is_whiteout
from viewfs.cow.layer.workdir import hide_lower
from viewfs.mounts.overlay import OPAQUE, PRIVATE

__all__ = ["note_same", "settle"]

#: The name in the layer's directory under which a directory is removed.
_ASIDE = b"settled"


def settle(layer: Layer, lower: Tree) -> None:
    """Remove from the upper directory what is the same in the lower tree. The caller holds the layer's lock.

    An empty layer begins anew: what is changed outside from now on is in conflict, and not what was before.
    """
    with layer.open_upper() as upper:
        if layer.record.unsettled:
            settled = Settled(layer)
            _settle_directory(upper, lower, b"", layer.fd, settled)
            layer.write(replace(layer.record, unsettled=False))
            settled.forget()
        if not upper.names(b"") and not layer.record.checkpoints:
            empty = replace(layer.record, bases={}, touched={}, linked={}, directories={})
            layer.write(replace(empty, opened_ns=clock_ns(layer.fd, lower)))


def note_same(layer: Layer, lower: Tree, upper: Tree, paths: Collection[bytes]) -> None:
    """Write down what is the same in the lower tree, at and below `paths`: it can't be removed from the layer now.

    The caller holds the layer's lock. Raises OSError.
    """

    def is_settled(path: bytes, entry: Entry) -> bool:
        if entry.is_directory:
            other = lower.entry(path)
            return other is not None and _same_attributes(entry, other)
        return _is_same(upper, entry, lower, path)

    Settled(layer).note(upper, paths, is_settled)


def _settle_directory(upper: Tree, lower: Tree, top: bytes, layer: int, settled: Settled) -> None:
    """Settle `top` and what is below it, each directory after its content."""
    waiting: list[tuple[bytes, bool]] = [(top, False)]
    while waiting:
        path, seen = waiting.pop()
        if seen:
            _settle_emptied(upper, lower, path)
            continue
        if path != top and is_opaque(upper, path):
            # Nothing of the lower directory is visible in it.
            changes = list(differences(lower, upper, None, path))
            if all(map(_is_private, changes)):
                _remove_at_once(upper, path, layer)
                continue
            # What was added to it outside since it was committed is to be visible from now on.
            came = any(settled.never_had(change.path, upper) for change in changes if change.new is None)
            if not came or not _make_merged(upper, lower, path, settled):
                continue
        waiting.append((path, True))
        for name in upper.names(path):
            here = join(path, name)
            entry = upper.entry(here)
            if entry is None:
                continue
            if entry.is_directory:
                there = lower.entry(here)
                if there is not None and there.is_directory:
                    waiting.append((here, False))
                elif settled.has_all(here, upper):
                    _remove_at_once(upper, here, layer)
            elif settled.has(here, upper) or _is_same(upper, entry, lower, here):
                _remove(upper, here)


def _settle_emptied(upper: Tree, lower: Tree, path: bytes) -> None:
    if not path or upper.names(path):
        return
    mine, other = upper.entry(path), lower.entry(path)
    if mine is not None and other is not None and _same_attributes(mine, other):
        _remove(upper, path)


def _is_private(change: Change) -> bool:
    """Do only times or private attributes of overlayfs differ? (In a layer a name of a file is a file of its own.)"""
    if change.old is None or change.new is None or change.aspects - {"xattrs", "times", "links"}:
        return False
    return _same_xattrs(change.old, change.new)


def _same_xattrs(one: Entry, other: Entry) -> bool:
    return _shown(one).same_xattrs(_shown(other))


def _shown(entry: Entry) -> Entry:
    """The entry without the private attributes of overlayfs."""
    kept = tuple((key, value) for key, value in entry.xattrs if not key.startswith(PRIVATE.decode()))
    return entry._replace(xattrs=kept)


def _make_merged(upper: Tree, lower: Tree, path: bytes, settled: Settled) -> bool:
    """Make an opaque directory a merged one, with whiteouts for what was deleted in it; False if that can't be done."""
    mine = set(upper.names(path))
    with upper.directory(path) as fd, _as_before(fd):
        for name in mine:
            if (entry := upper.entry(join(path, name))) is not None and entry.is_directory:
                hide_lower(fd, name)
        for name in lower.names(path):
            if name in mine or settled.never_had(join(path, name), upper):
                continue
            try:
                os.mknod(name, stat.S_IFCHR, dir_fd=fd)  # a whiteout (overlayfs.rst)
            except PermissionError:
                return False  # the layer is in an overlay, which keeps whiteouts for itself
        os.removexattr(fd, OPAQUE)
    return True


def _is_same(upper: Tree, mine: Entry, lower: Tree, path: bytes) -> bool:
    """Is the entry `mine` of the layer, which is no directory, the same at `path` of the lower tree? Raises OSError."""
    other = lower.entry(path)
    if is_whiteout(mine):
        return other is None  # a whiteout of what is gone
    if other is None or mine.kind != other.kind or not _same_attributes(mine, other):
        return False
    if not same_time(other.mtime_ns, mine.mtime_ns):
        return False
    if mine.target != other.target or mine.rdev != other.rdev or mine.size != other.size:
        return False
    return not mine.is_file or same_content(path, upper, lower, mine.size)


def _same_attributes(mine: Entry, other: Entry) -> bool:
    return mine.mode == other.mode and same_owner(other, mine) and _same_xattrs(mine, other)


def _remove_at_once(upper: Tree, path: bytes, layer: int) -> None:
    """Remove an opaque directory in one step: with half of its names it would say that the others were deleted."""
    directory, name = split(path)
    remove_tree(layer, _ASIDE)  # left by a process that was killed
    with upper.directory(directory) as parent, _as_before(parent):
        os.rename(name, _ASIDE, src_dir_fd=parent, dst_dir_fd=layer)
    remove_tree(layer, _ASIDE)


def _remove(upper: Tree, path: bytes) -> None:
    directory, name = split(path)
    with upper.directory(directory) as parent, _as_before(parent):
        remove_tree(parent, name)


@contextmanager
def _as_before(directory: int) -> Iterator[None]:
    """Set the times of an open directory back after the block, because the view shows them."""
    before = os.fstat(directory)
    yield
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
