"""Making one tree equal to another by ordinary file operations: to discard changes of a view, or to go back to a state.

The tree that is changed is a view that programs may be using. So it is changed as a program would do it, through the
mount, and never in the upper directory below it. A file is replaced by renaming, so that nobody sees half of it.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable

from viewfs.cow.commit.planning import Selection
from viewfs.cow.compare.changes import Change, Kind
from viewfs.cow.compare.trees import Entry, Tree, join, split
from viewfs.cow.copying import TreeCopier, remove_tree, set_attributes
from viewfs.cow.layer.layers import Layer, clock_ns
from viewfs.cow.layer.settling import note_same
from viewfs.errors import UsageError
from viewfs.linux.files import syncfs
from viewfs.paths import is_below

__all__ = ["discard", "restore"]

_IN_PLACE = frozenset({"mode", "owner", "xattrs", "times"})


def restore(
    layer: Layer,
    changes: Iterable[Change],
    state: Tree,
    view: Tree,
    selection: Selection,
    progress: Callable[[int], None] = lambda _size: None,
) -> tuple[list[Change], list[tuple[Change, str]]]:
    """Undo `changes`, which lead from `state` to `view`, as far as they are in `selection`.

    `progress` is told the size of each file that has been copied. The caller holds the lock of `layer`, the view's.
    Returns the changes that were undone, and those that could not be, with the reason: the old file may not be read, or
    it names somebody whose id is not mapped in the view. Raises OSError if something can't be written; calling this
    again does the rest.
    """
    token = b".viewfs-" + secrets.token_hex(4).encode()
    with layer.restoring(token):
        copier = TreeCopier(state, view, copied=lambda _path, entry: progress(entry.size))
        result = _restore(changes, state, view, selection, copier, token)
        if not layer.record.volatile:
            syncfs(layer.fd)  # before anything says that it is done
        return result


def discard(
    layer: Layer,
    changes: list[Change],
    lower: Tree,
    view: Tree,
    upper: Tree,
    selection: Selection,
    progress: Callable[[int], None],
    *,
    live: bool,
) -> tuple[list[Change], list[tuple[Change, str]], OSError | None]:
    """Undo those of `changes` that are in `selection`, and note in the layer that it was done.

    Returns what was undone, what could not be and why, and the error if that could not be noted. Raises OSError under
    the same conditions as `restore`.
    """
    refused: list[tuple[Change, str]] = []
    if not live and selection.paths == (b"",):
        layer.empty()
    else:
        changes, refused = restore(layer, changes, lower, view, selection, progress)
    try:
        layer.write(layer.record.rebased(selection.paths, clock_ns(layer.fd, lower)))
        if live:
            note_same(layer, lower, upper, selection.paths)
    except OSError as error:
        return changes, refused, error
    return changes, refused, None


def _restore(
    changes: Iterable[Change], state: Tree, view: Tree, selection: Selection, copier: TreeCopier, temporary_name: bytes
) -> tuple[list[Change], list[tuple[Change, str]]]:
    undone: list[Change] = []
    refused: list[tuple[Change, str]] = []
    covered: bytes | None = None
    lost: bytes | None = None
    directories: dict[bytes, Entry] = {}
    for change in changes:
        path = change.path
        if not selection.has(path) or (lost is not None and is_below(path, lost)):
            continue
        undone.append(change)
        if covered is not None and is_below(path, covered):
            continue
        covered = None
        parent = split(path)[0]
        if path and (entry := state.entry(parent)) is not None and entry.is_directory:
            directories[parent] = entry
        if change.kind is Kind.CHANGED and change.aspects <= _IN_PLACE:
            assert change.old is not None
            directories[path] = change.old
            continue
        if change.is_directory or (change.old is not None and change.old.is_directory):
            covered = path
        _make_parents(state, view, parent, directories)
        with view.directory(parent) as fd:
            name = split(path)[1]
            if change.old is not None:
                try:
                    copier.copy(path, join(parent, temporary_name))
                except PermissionError as error:
                    remove_tree(fd, temporary_name)
                    copier.removed(join(parent, temporary_name))
                    if covered is not None:  # with all that is in it
                        covered, lost = None, path
                    readable = error.errno != errno.EACCES and error.strerror
                    refused.append((undone.pop(), readable or "what it had been may not be read"))
                    continue
            if covered is not None or change.old is None:
                remove_tree(fd, name)  # rename(2) replaces no directory that has entries
            if change.old is not None:
                os.rename(temporary_name, name, src_dir_fd=fd, dst_dir_fd=fd)
                copier.renamed(join(parent, temporary_name), path)
    for path in sorted(directories, reverse=True):
        directory, name = split(path)
        with view.directory(directory) as fd:
            set_attributes(fd, name or b".", directories[path])
    return undone, refused


def _make_parents(state: Tree, view: Tree, path: bytes, directories: dict[bytes, Entry]) -> None:
    """Make `path` in `view` an empty directory again, and those above it, where they are directories no more."""
    missing: list[bytes] = []
    while path and ((entry := view.entry(path)) is None or not entry.is_directory):
        missing.append(path)
        path = split(path)[0]
    for here in reversed(missing):
        wanted = state.entry(here)
        if wanted is None or not wanted.is_directory:
            continue
        directory, name = split(here)
        with view.directory(directory) as fd:
            if view.entry(here) is not None:
                raise UsageError(f"/{here.decode(errors='replace')} has become another kind of file", remedy="name it")
            os.mkdir(name, 0o700, dir_fd=fd)
        directories[here] = wanted
