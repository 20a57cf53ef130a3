"""What a layer has that is no change of the view's: it was committed or discarded while the view was in use.

The overlay of a view that runs keeps its copies, which must not be touched. If somebody changes such a file outside
from then on, the two differ, and yet the view has changed nothing. So the layer remembers what was settled, with a mark
that is another one as soon as the view does anything to it, in a file beside layer.json. It is gone when the layer is
taken up again and all that is settled is taken out of it (`cow.settling`).
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
#: Of a name that was there, and has changed since.
_CHANGED = (0,)
#: How much of the mark of a directory tells it from others, its attributes left out.
_OF_DIRECTORY = 2
#: What a mark tells of a directory. (Its times are those of what is in it.)
_OWN = frozenset({"mode", "owner", "times"})


def is_whiteout(entry: Entry) -> bool:
    """Does it say in an upper directory that nothing is there?"""
    return (stat.S_ISCHR(entry.mode) and entry.rdev == 0) or (entry.size == 0 and WHITEOUT in dict(entry.xattrs))


def _mark(upper: Tree, path: bytes, entry: Entry) -> tuple[int, ...]:
    number = entry.identity[1]
    if is_whiteout(entry):
        return ()  # they are one file, as a rule, of which the links change
    if entry.is_directory:
        # Numbers are used again; the times are those of what is done in it.
        return number, _birth_of(upper, path), entry.mode, entry.uid, entry.gid
    return number, entry.ctime_ns


def _birth_of(upper: Tree, path: bytes) -> int:
    """When a directory was made; where that is not kept, one that nothing is as old as."""
    with upper.directory(path) as fd:
        return birth_ns(fd) or -1


class Settled:
    """The marks of one layer, whose lock the caller holds to change them."""

    def __init__(self, layer: Layer) -> None:
        """As they were written down; none where nothing can be read."""
        self._layer = layer
        self._marks: dict[bytes, tuple[int, ...]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            found = json.loads(read_text(layer.fd, _FILE))
            self._marks = {os.fsencode(path): tuple(map(int, mark)) for path, mark in found.items()}

    def __bool__(self) -> bool:
        return bool(self._marks)

    def has(self, path: bytes, upper: Tree) -> bool:
        """Has the view done nothing to what is at `path` of its upper directory since it was settled?"""
        known = self._marks.get(path)
        entry = upper.entry(path) if known is not None else None
        if entry is None or known is None:
            return False
        return known == _mark(upper, path, entry) and -1 not in known

    def has_all(self, path: bytes, upper: Tree) -> bool:
        """Has the view done nothing at `path` and below it?"""
        return path in self._marks and all(self.has(here, upper) for here, _entry in upper.walk(path))

    def never_had(self, path: bytes, upper: Tree) -> bool:
        """Is that a name which the view had not, in a directory of its own that was settled?"""
        directory = split(path)[0]
        mark = self._marks.get(directory)
        if mark is None or len(mark) < _OF_DIRECTORY or path in self._marks or upper.entry(path) is not None:
            return False
        entry = upper.entry(directory)
        if entry is None or not entry.is_directory or entry.identity[1] != mark[0]:
            return False
        return _birth_of(upper, directory) == mark[1] != -1

    def note(self, upper: Tree, paths: Collection[bytes], is_settled: Callable[[bytes, Entry], bool]) -> None:
        """Write down what is at and below `paths` of the upper directory, as far as `is_settled`. Raises OSError."""
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
    """As `differences` from `lower` to `view`, without those that come from changes outside."""
    settled = Settled(layer)
    found = differences(lower, view, [upper], below, unchanged=unchanged)
    if not settled:
        yield from found
        return
    #: Below this all is told, or nothing.
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
        # It was removed outside, or is another kind of file there; what the view has in it may be new.
        return settled.has_all(path, upper)
    return settled.has(path, upper)
