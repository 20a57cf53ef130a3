"""What differs between two states of a tree, found through the layers that hold what was changed.

A layer is the upper directory of an overlay. It says *where* to look: whatever it has no entry for is the same in both
states, so that the work is in proportion to what was changed. *What* differs is read from the two states as the kernel
shows them, so that whiteouts, opaque directories and whatever else an upper directory may hold need no rules here.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from viewfs.cow.compare.trees import Entry, Tree, data_extents, join
from viewfs.linux.ids import overflow_id
from viewfs.mounts.overlay import OPAQUE

__all__ = ["Change", "Kind", "differences", "is_opaque", "same_content", "same_owner", "same_time", "with_renames"]

_BLOCK = 1 << 20


class Kind(StrEnum):
    """What has become of a path."""

    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"
    RENAMED = "renamed"


@dataclass(frozen=True)
class Change:
    """What differs at one path. If a directory was added or deleted, all that is in it is reported as well."""

    path: bytes
    kind: Kind
    old: Entry | None
    new: Entry | None
    #: Of a path that is in both states: type, content, target, device, mode, owner, xattrs, times; and links, if one of
    #: several names of a file was written to, and the others still have the old file.
    aspects: frozenset[str] = frozenset()
    #: Where it was, if it was renamed.
    source: bytes | None = None

    @property
    def only_times(self) -> bool:
        """Nothing but its times differs."""
        return self.kind is Kind.CHANGED and self.aspects == {"times"}

    @property
    def is_directory(self) -> bool:
        entry = self.new or self.old
        return entry is not None and entry.is_directory


def differences(
    old: Tree,
    new: Tree,
    layers: Sequence[Tree] | None,
    below: bytes = b"",
    *,
    unchanged: dict[tuple[int, int], bytes] | None = None,
) -> Iterator[Change]:
    """What differs from `old` to `new` at `below` and under it, a directory before what it holds.

    `layers` hold every path that may differ; None: look everywhere. `unchanged` collects the files with several names
    that do not differ, by their identity in `new`. Raises OSError where something can't be read.
    """
    waiting: list[tuple[bytes, Sequence[Tree] | None]] = [(below, _layers_at(layers, below))]
    while waiting:
        path, found = waiting.pop()
        before, after = old.entry(path), new.entry(path)
        if before is None and after is None:
            continue
        if before is None or after is None:
            yield Change(path, Kind.ADDED if before is None else Kind.DELETED, before, after)
            found = None
        elif aspects := _all_aspects(path, before, after, old, new):
            yield Change(path, Kind.CHANGED, before, after, aspects)
            if "type" in aspects:
                found = None
        elif unchanged is not None and after.is_file and after.nlink > 1:
            unchanged[after.identity] = path
        if not any(entry is not None and entry.is_directory for entry in (before, after)):
            continue
        if found is None:
            names = {*old.names(path), *new.names(path)}
        else:
            names = {name for layer in found for name in layer.names(path)}
        waiting += [(join(path, name), _next_layers(found, join(path, name))) for name in sorted(names, reverse=True)]


def _layers_at(layers: Sequence[Tree] | None, path: bytes) -> Sequence[Tree] | None:
    """Those of `layers` that say what may differ at `path`: None if all of it may."""
    found = layers
    here = b""
    for name in path.split(b"/") if path else []:
        here = join(here, name)
        found = _next_layers(found, here)
    return found


def _next_layers(layers: Sequence[Tree] | None, path: bytes) -> Sequence[Tree] | None:
    if layers is None:
        return None
    found = []
    for layer in layers:
        entry = layer.entry(path)
        if entry is None:
            continue
        if not entry.is_directory or is_opaque(layer, path):
            return None
        found.append(layer)
    return found


def is_opaque(layer: Tree, path: bytes) -> bool:
    """Is the directory at `path` of a layer opaque: does it hide the lower one?"""
    with layer.directory(path) as fd:
        try:
            return os.getxattr(fd, OPAQUE) == b"y"
        except OSError:
            return False


def _all_aspects(path: bytes, old: Entry, new: Entry, old_tree: Tree, new_tree: Tree) -> frozenset[str]:
    aspects = frozenset(_aspects(path, old, new, old_tree, new_tree))
    # Copying up has made one of several names a file of its own; the other names have the old one.
    parted = old.is_file and new.is_file and old.nlink > 1 == new.nlink
    return aspects | {"links"} if parted and aspects - {"times"} else aspects


def _aspects(path: bytes, old: Entry, new: Entry, old_tree: Tree, new_tree: Tree) -> Iterator[str]:
    if old.kind != new.kind:
        yield "type"
        return
    if old.is_file and (old.size != new.size or not same_content(path, old_tree, new_tree, old.size)):
        yield "content"
    if old.target != new.target:
        yield "target"
    if old.rdev != new.rdev:
        yield "device"
    if stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode):
        yield "mode"
    if path and not same_owner(old, new):  # the root of a layer is its user's, whatever it is over
        yield "owner"
    if not old.same_xattrs(new):
        yield "xattrs"
    if not same_time(old.mtime_ns, new.mtime_ns):
        yield "times"


def same_owner(old: Entry, new: Entry) -> bool:
    """Is the owner the same?

    An old owner who is not mapped in this user namespace counts as the same: the user could not have taken the file
    from them, and a copy of it is shown as the user's.
    """
    return old.uid in (new.uid, overflow_id("uid")) and old.gid in (new.gid, overflow_id("gid"))


def same_time(old: int, new: int) -> bool:
    """Are two modification times the same, if the old one may come from where only seconds are kept?"""
    return old == new or (old % 10**9 == 0 and old // 10**9 == new // 10**9)


def same_content(path: bytes, old: Tree, new: Tree, size: int, new_path: bytes | None = None) -> bool:
    """Do the files at `path` (in `new`, at `new_path`) have the same `size` bytes? Holes on both sides aren't read.

    A file that may not be read counts as different.
    """
    if not size:
        return True
    try:
        left = old.open(path)
    except PermissionError:
        return False
    try:
        try:
            right = new.open(path if new_path is None else new_path)
        except PermissionError:
            return False
        try:
            for begin, end in _either(data_extents(left, size), data_extents(right, size)):
                for offset in range(begin, end, _BLOCK):
                    length = min(_BLOCK, end - offset)
                    if os.pread(left, length, offset) != os.pread(right, length, offset):
                        return False
            return True
        finally:
            os.close(right)
    finally:
        os.close(left)


def _either(one: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ranges that are covered by either of two lists, joined where they meet."""
    begin = end = -1
    for here, there in sorted([*one, *other]):
        if here > end:
            if end > begin:
                yield begin, end
            begin, end = here, there
        else:
            end = max(end, there)
    if end > begin:
        yield begin, end


def with_renames(changes: Iterable[Change], old: Tree, new: Tree) -> list[Change]:
    """`changes`, in which a deleted file and an added one with the same content become one that was renamed.

    Only files of equal length are read for it, and each once.
    """
    listed = list(changes)
    deleted = _files_by_size(listed, Kind.DELETED)
    added = _files_by_size(listed, Kind.ADDED)
    sources: dict[bytes, Change] = {}
    for size in deleted.keys() & added.keys() - {0}:
        by_digest: dict[bytes | None, list[Change]] = {}
        for change in reversed(deleted[size]):
            by_digest.setdefault(_digest(old, change.path), []).append(change)
        by_digest.pop(None, None)
        for change in added[size]:
            if candidates := by_digest.get(_digest(new, change.path)):
                sources[change.path] = candidates.pop()
    gone = {change.path for change in sources.values()}
    return [
        _as_renamed(change, sources[change.path]) if change.path in sources else change
        for change in listed
        if change.path not in gone or change.kind is not Kind.DELETED
    ]


def _files_by_size(changes: list[Change], kind: Kind) -> dict[int, list[Change]]:
    found: dict[int, list[Change]] = {}
    for change in changes:
        entry = change.new or change.old
        if change.kind is kind and entry is not None and entry.is_file:
            found.setdefault(entry.size, []).append(change)
    return found


def _digest(tree: Tree, path: bytes) -> bytes | None:
    """A digest of the content of a file; None if it may not be read."""
    try:
        fd = tree.open(path)
    except PermissionError:
        return None
    try:
        digest = hashlib.blake2b(digest_size=20)
        for begin, end in data_extents(fd, os.fstat(fd).st_size):
            digest.update(b"%d" % begin)
            for offset in range(begin, end, _BLOCK):
                digest.update(os.pread(fd, min(_BLOCK, end - offset), offset))
        return digest.digest()
    finally:
        os.close(fd)


def _as_renamed(added: Change, deleted: Change) -> Change:
    assert added.new is not None and deleted.old is not None
    same_mode = added.new.mode == deleted.old.mode
    aspects: frozenset[str] = frozenset() if same_mode else frozenset({"mode"})
    return replace(added, kind=Kind.RENAMED, old=deleted.old, source=deleted.path, aspects=aspects)
