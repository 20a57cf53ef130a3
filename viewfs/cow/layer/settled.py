"""What a layer has that is no change of the view's, because it was committed or discarded while the view was in use.

The overlay of a running view keeps its copies, which must not be touched. If somebody changes such a file outside
later, copy and original differ, and yet the view has changed nothing. So a file beside layer.json has a mark of each
entry that was settled; the mark is another one as soon as the view does anything to the entry. That file is removed
when the layer is taken up again and all that is settled is removed from it (`cow.layer.settling`).
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator

from viewfs.cow.compare.changes import Change, Kind, differences
from viewfs.cow.compare.trees import Entry, Tree, split
from viewfs.cow.layer.layers import Layer, read_text, write_whole
from viewfs.linux.files import birth_ns
from viewfs.mounts.overlay import WHITEOUT

__all__ = ["Settled", "is_whiteout", "own_changes"]

_FILE = "settled.json"
#: The mark of a name that was there, and has changed since.
_CHANGED = (0,)
#: How many numbers of a directory's mark identify it; its attributes follow.
_OF_DIRECTORY = 2
#: What the mark of a directory covers. (Its times change with what is done in it.)
_OWN = frozenset({"mode", "owner", "times"})


def is_whiteout(entry: Entry) -> bool:
    """Is this entry of an upper directory a whiteout?"""
    return (stat.S_ISCHR(entry.mode) and entry.rdev == 0) or (entry.size == 0 and WHITEOUT in dict(entry.xattrs))


def _mark(upper: Tree, path: bytes, entry: Entry) -> tuple[int, ...]:
    number = entry.identity[1]
    if is_whiteout(entry):
        return ()  # they are hard links to one file, as a rule, whose link count changes
    if entry.is_directory:
        # Inode numbers are used again, and other times than that of birth change with what is done in it.
        return number, _birth_of(upper, path), entry.mode, entry.uid, entry.gid
    return number, entry.ctime_ns


def _birth_of(upper: Tree, path: bytes) -> int:
    """When a directory was made; -1, which matches nothing, where the file system does not keep that."""
    with upper.directory(path) as fd:
        return birth_ns(fd) or -1


class Settled:
    """The marks of one layer. To change them the caller holds the layer's lock."""

    def __init__(self, layer: Layer) -> None:
        """Reads the marks that were written down; there are none if they can't be read."""
        self._layer = layer
        self._marks: dict[bytes, tuple[int, ...]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            found = json.loads(read_text(layer.fd, _FILE))
            self._marks = {os.fsencode(path): tuple(map(int, mark)) for path, mark in found.items()}

    def __bool__(self) -> bool:
        return bool(self._marks)

    def has(self, path: bytes, upper: Tree) -> bool:
        """Is what is at `path` settled, and has the view done nothing to it in its upper directory since?"""
        known = self._marks.get(path)
        entry = upper.entry(path) if known is not None else None
        if entry is None or known is None:
            return False
        return known == _mark(upper, path, entry) and -1 not in known

    def has_all(self, path: bytes, upper: Tree) -> bool:
        """Is everything at `path` and below it settled, and has the view done nothing there since?"""
        return path in self._marks and all(self.has(here, upper) for here, _entry in upper.walk(path))

    def never_had(self, path: bytes, upper: Tree) -> bool:
        """Is `path` a name that the view never had, in a directory of its own that was settled?"""
        directory = split(path)[0]
        mark = self._marks.get(directory)
        if mark is None or len(mark) < _OF_DIRECTORY or path in self._marks or upper.entry(path) is not None:
            return False
        entry = upper.entry(directory)
        if entry is None or not entry.is_directory or entry.identity[1] != mark[0]:
            return False
        return _birth_of(upper, directory) == mark[1] != -1

    def note(self, upper: Tree, paths: Collection[bytes], is_settled: Callable[[bytes, Entry], bool]) -> None:
        """Mark what is at and below `paths` of the upper directory, as far as it `is_settled`. Raises OSError."""
        for path in paths:
            below = path + b"/" if path else b""
            before = {known: mark for known, mark in self._marks.items() if known == path or known.startswith(below)}
            for known in before:
                del self._marks[known]
            for here, entry in upper.walk(path):
                mark = _mark(upper, here, entry)
                if before.get(here) != mark and not is_settled(here, entry):
                    mark = mark[:_OF_DIRECTORY] if entry.is_directory else _CHANGED
                self._marks[here] = mark
        text = json.dumps({os.fsdecode(path): mark for path, mark in self._marks.items()})
        write_whole(self._layer.fd, _FILE, text, durably=not self._layer.record.volatile)

    def forget(self) -> None:
        """Nothing is settled any more. Raises OSError."""
        self._marks.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_FILE, dir_fd=self._layer.fd)


def own_changes(
    layer: Layer,
    lower: Tree,
    view: Tree,
    upper: Tree,
    below: bytes = b"",
    unchanged: dict[tuple[int, int], bytes] | None = None,
) -> Iterator[Change]:
    """The `differences` from `lower` to `view`, without those that come from changes outside."""
    settled = Settled(layer)
    found = differences(lower, view, [upper], below, unchanged=unchanged)
    if not settled:
        yield from found
        return
    #: Below `told` every change is the view's; below `dropped` none is.
    told: bytes | None = None
    dropped: bytes | None = None
    for change in found:
        path = change.path
        if dropped is not None and path.startswith(dropped):
            continue
        if told is not None and path.startswith(told):
            yield change
            continue
        if change.kind is Kind.CHANGED and change.is_directory and "type" not in change.aspects:
            if not (change.aspects <= _OWN and settled.has(path, upper)):
                yield change
            continue
        if _is_from_outside(change, settled, upper):
            dropped = path + b"/"
            continue
        if change.kind is not Kind.CHANGED or "type" in change.aspects:
            told = path + b"/"
        yield change


def _is_from_outside(change: Change, settled: Settled, upper: Tree) -> bool:
    path = change.path
    if change.kind is Kind.DELETED and settled.never_had(path, upper):
        return True
    if change.new is not None and change.new.is_directory:
        # The directory was removed outside, or is another kind of file there; what the view has in it may be new.
        return settled.has_all(path, upper)
    return settled.has(path, upper)
