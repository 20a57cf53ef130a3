"""Directories that were replaced outside: the change times of what is in the new one tell nothing.

At the end of a session the layer's record gets the inode numbers of the lower directories that its own ones are over.
(While the session runs, the kernel's overlay has the lower directories open.)
"""

from __future__ import annotations

import os
from dataclasses import replace

from viewfs.cow.compare.changes import is_opaque
from viewfs.cow.compare.trees import Entry, Tree, join
from viewfs.cow.layer.layers import Layer
from viewfs.cow.layer.records import LayerRecord

__all__ = ["remember_directories", "replaced_directories"]


def _is_lasting(lower: Tree) -> bool:
    """Do files keep their inode numbers? They need not on file systems without a device (network, FUSE, overlays)."""
    return os.major(os.fstat(lower.root).st_dev) != 0


def remember_directories(layer: Layer, lower: Tree) -> None:
    """Write down which directories of `lower` those of the layer are over, unless it is known already. Raises OSError.

    The caller holds the layer's lock.
    """
    if not _is_lasting(lower):
        return
    known = dict(layer.record.directories)
    with layer.open_upper() as upper:
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            there = lower.entry(path)
            if there is None or not there.is_directory or (path and is_opaque(upper, path)):
                continue
            known.setdefault(os.fsdecode(path), there.identity[1])
            with upper.directory(path) as fd, os.scandir(fd) as entries:
                names = [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
            waiting += [join(path, name) for name in names]
    if known != layer.record.directories:
        layer.write(replace(layer.record, directories=known))


def replaced_directories(record: LayerRecord, lower: Tree) -> list[bytes]:
    """Those that were replaced by another directory. (One that is gone is found in other ways.)"""
    if not record.directories or not _is_lasting(lower):
        return []

    def is_another(entry: Entry | None, number: int) -> bool:
        return entry is not None and entry.is_directory and entry.identity[1] != number

    paths = ((os.fsencode(path), number) for path, number in record.directories.items())
    return [path for path, number in paths if is_another(lower.entry(path), number)]
