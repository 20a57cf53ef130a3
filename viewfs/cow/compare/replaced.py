"""Directories that were replaced outside: what is in the new one has change times that tell nothing.

A layer knows which directories its own ones were over, by their inode numbers, from the end of the session that made
them on. (While that runs the kernel's overlay has them open.)
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
    """Do files keep their numbers? Those of file systems without a device need not (network, FUSE, overlays)."""
    return os.major(os.fstat(lower.root).st_dev) != 0


def remember_directories(layer: Layer, lower: Tree) -> None:
    """Write down which directories of `lower` those of the layer are over, as far as that is new. Raises OSError.

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
    """Those that are others now. (One that is gone is told of otherwise.)"""
    if not record.directories or not _is_lasting(lower):
        return []

    def is_another(entry: Entry | None, number: int) -> bool:
        return entry is not None and entry.is_directory and entry.identity[1] != number

    paths = ((os.fsencode(path), number) for path, number in record.directories.items())
    return [path for path, number in paths if is_another(lower.entry(path), number)]
