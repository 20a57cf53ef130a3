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

#: So many files, or so many bytes, are copied before they are synced and put in place together.
_FILES, _BYTES = 1000, 256 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
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
        with _Replacing(layer, state, view, token, progress) as replacing:
            result = _restore(changes, state, view, selection, replacing)
        if not layer.record.volatile:
            syncfs(layer.fd)  # before anything says that it is done
        return result


class _Replacing:
    """Puts copies in the place of what is there, many at a time: what they contain is on the disk before that."""

    def __init__(self, layer: Layer, state: Tree, view: Tree, token: bytes, progress: Callable[[int], None]) -> None:
        self._layer, self._view, self._token, self._progress = layer, view, token, progress
        self._copier = TreeCopier(state, view, copied=self._count)
        self._waiting: list[tuple[bytes, bytes, bool]] = []
        self._bytes = 0

    def _count(self, _path: bytes, entry: Entry) -> None:
        self._bytes += entry.size
        self._progress(entry.size)

    def replace(self, path: bytes, *, clear: bool) -> str | None:
        """Copy `path`, and see to it that the copy is put in its place; `clear`: nothing may be there then.

        If it may not be copied, returns why. Raises OSError.
        """
        try:
            place = self._copy(path)
        except PermissionError as error:
            return (error.errno != errno.EACCES and error.strerror) or "what it had been may not be read"
        except OSError as error:
            if error.errno not in _NO_ROOM or not self._waiting:
                raise
            self.finish()  # which makes some
            place = self._copy(path)
        self._waiting.append((place, path, clear))
        if len(self._waiting) >= _FILES or self._bytes >= _BYTES:
            self.finish()
        return None

    def _copy(self, path: bytes) -> bytes:
        """The name of a copy of `path` beside it. Raises OSError; then there is none."""
        directory = split(path)[0]
        name = b"%s-%d" % (self._token, len(self._waiting))
        try:
            self._copier.copy(path, join(directory, name))
        except OSError:
            with self._view.directory(directory) as fd:
                remove_tree(fd, name)
            self._copier.removed(join(directory, name))
            raise
        return join(directory, name)

    def finish(self) -> None:
        """Put all copies in place. Raises OSError."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if waiting and not self._layer.record.volatile:
            syncfs(self._layer.fd)  # or a power cut could leave files without what is in them
        for place, path, clear in waiting:
            with self._view.directory(split(path)[0]) as fd:
                if clear:
                    remove_tree(fd, split(path)[1])  # rename(2) replaces no directory that has entries
                os.rename(split(place)[1], split(path)[1], src_dir_fd=fd, dst_dir_fd=fd)
            self._copier.renamed(place, path)

    def __enter__(self) -> _Replacing:
        return self

    def __exit__(self, *_error: object) -> None:
        self.finish()  # after an error too: what it leaves is that much nearer to the end


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
    changes: Iterable[Change], state: Tree, view: Tree, selection: Selection, replacing: _Replacing
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
        if change.old is None:
            with view.directory(parent) as fd:
                remove_tree(fd, split(path)[1])
            continue
        reason = replacing.replace(path, clear=covered is not None)
        if reason is not None:
            if covered is not None:  # with all that is in it
                covered, lost = None, path
            refused.append((undone.pop(), reason))
    replacing.finish()
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
