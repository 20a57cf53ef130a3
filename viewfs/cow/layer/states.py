"""Keeping the state of layers: as a copy of the upper directory, whose unchanged files later states share.

The overlay goes on with the upper directory that it has, so that programs which have files or their working directory
in the view notice nothing. (Freezing that directory and mounting a new overlay would leave them in the old one.) Files
that were not changed since the last state that was kept are hard links to it, so that a state costs what was changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence

from viewfs.cow.compare.trees import Entry, Tree, join, split
from viewfs.cow.copying import copy_node, remove_tree, set_attributes
from viewfs.cow.layer.layers import Layer, write_whole
from viewfs.errors import ViewfsError, explain_os_error
from viewfs.linux.files import syncfs

__all__ = ["keep_state"]

_STATES = "checkpoints"
#: What the newest state was copied from: path → inode number and change time in the upper directory.
_MANIFEST = "manifest.json"
#: How often a state that changes while it is copied is copied again.
_TRIES = 3


def keep_state(layers: Sequence[Layer], name: str, progress: Callable[[int], None] = lambda _size: None) -> str:
    """Copy the upper directory of each layer; the name of the copies' directory below `checkpoints/`.

    `progress` is told the size of each file that has been copied. Raises `ViewfsError`, nothing being kept then.
    """
    directory = f"{time.time_ns()}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:60]}"
    kept: list[Layer] = []
    try:
        for layer in layers:
            kept.append(layer)
            _keep_one(layer, directory, progress)
    except BaseException as error:
        for layer in kept:
            with contextlib.suppress(OSError):
                _forget(layer, directory)
        if isinstance(error, OSError):
            raise explain_os_error("cannot keep the state of", error) from error
        raise
    return directory


def _forget(layer: Layer, directory: str) -> None:
    states = layer.directory(_STATES)
    try:
        remove_tree(states, directory.encode())
    finally:
        os.close(states)


def _keep_one(layer: Layer, directory: str, progress: Callable[[int], None]) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(_STATES, 0o700, dir_fd=layer.fd)
    upper, states = layer.directory("upper"), layer.directory(_STATES)
    try:
        before = _Manifest.read(states)
        copy = _Copy(Tree(upper), Tree(states), directory.encode(), before, progress)
        for _try in range(_TRIES):
            if not copy.bring_up_to_date():
                break
        else:
            raise ViewfsError(
                f"{layer.record.path} is being written all the time", remedy="keep its state when that has ended"
            )
        if not layer.record.volatile:
            syncfs(states)  # the copies, before anything says that they are there
        copy.manifest.write(states, directory, durably=not layer.record.volatile)
    finally:
        os.close(upper)
        os.close(states)


class _Manifest:
    """The inode numbers and change times that the files of a state had in the upper directory."""

    def __init__(self, directory: bytes | None, files: dict[bytes, tuple[int, int]]) -> None:
        self.directory = directory
        self.files = files

    @classmethod
    def read(cls, states: int) -> _Manifest:
        try:
            fd = os.open(_MANIFEST, os.O_RDONLY | os.O_CLOEXEC, dir_fd=states)
        except FileNotFoundError:
            return cls(None, {})
        try:
            with open(fd, encoding="ascii") as file:
                value = json.load(file)
            files = {os.fsencode(path): (one[0], one[1]) for path, one in value["files"].items()}
            return cls(os.fsencode(value["directory"]), files)
        except (ValueError, KeyError, TypeError, IndexError):
            return cls(None, {})  # then nothing is shared with that state

    def write(self, states: int, directory: str, *, durably: bool) -> None:
        files = {os.fsdecode(path): list(one) for path, one in self.files.items()}
        write_whole(states, _MANIFEST, json.dumps({"directory": directory, "files": files}), durably=durably)


class _Copy:
    """A copy of an upper directory in the making."""

    def __init__(
        self, upper: Tree, states: Tree, place: bytes, before: _Manifest, progress: Callable[[int], None]
    ) -> None:
        self._upper, self._states, self._place, self._before = upper, states, place, before
        self._progress = progress
        self.manifest = _Manifest(place, {})

    def bring_up_to_date(self) -> int:
        """Make the copy equal to the upper directory; the number of entries that were missing, outdated or removed."""
        changed = 0
        here: set[bytes] = set()
        directories: list[tuple[bytes, Entry]] = []
        links: dict[tuple[int, int], bytes] = {}
        for path, entry in self._upper.walk(b""):
            here.add(path)
            if entry.is_directory:
                directories.append((path, entry))
            seen = (entry.identity[1], entry.ctime_ns)
            if self.manifest.files.get(path) == seen:
                if entry.nlink > 1:
                    links.setdefault(entry.identity, self._at(path))
                continue
            changed += 1
            self._copy(path, entry, seen, links)
            self.manifest.files[path] = seen
        for path in sorted(self.manifest.files.keys() - here, reverse=True):
            changed += 1
            self._remove(path)
            del self.manifest.files[path]
        for path, entry in reversed(directories):
            directory, name = split(self._at(path))
            with self._states.directory(directory) as parent:
                set_attributes(parent, name, entry)
        return changed

    def _at(self, path: bytes) -> bytes:
        return join(self._place, path) if path else self._place

    def _copy(self, path: bytes, entry: Entry, seen: tuple[int, int], links: dict[tuple[int, int], bytes]) -> None:
        place = self._at(path)
        directory, name = split(place)
        with self._states.directory(directory) as parent:
            there = self._states.entry(place)
            if there is not None and (there.kind != entry.kind or not entry.is_directory):
                remove_tree(parent, name)
                there = None
            if there is not None:
                return
            other = links.setdefault(entry.identity, place) if entry.nlink > 1 and not entry.is_directory else place
            if other == place and entry.is_file and self._before.files.get(path) == seen:
                other = join(self._before.directory or b"", path)
            if other != place and self._link(other, parent, name):
                return
            copy_node(self._upper, path, entry, parent, name)
            self._progress(entry.size)

    def _link(self, other: bytes, parent: int, name: bytes) -> bool:
        directory, old = split(other)
        try:
            with self._states.directory(directory) as there:
                os.link(old, name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
            return True
        except OSError:
            return False  # the other is gone, or has as many names as it may have

    def _remove(self, path: bytes) -> None:
        directory, name = split(self._at(path))
        with contextlib.suppress(FileNotFoundError), self._states.directory(directory) as parent:
            remove_tree(parent, name)
