"""What a reader does with an image that lies: it tells of it, and goes on reading the rest."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

import pytest

from tests.unit.squashfs.squashfs_images import content, find, opened_bytes, walk
from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.squashfs.volume import Volume

DAMAGE = frozenset({errno.EUCLEAN, errno.EIO})


def fails(call: Callable[[], object], match: str | None = None) -> None:
    """It is told that the bytes are wrong, or not there."""
    with pytest.raises(OSError, match=match) as caught:
        call()
    assert caught.value.errno in DAMAGE, caught.value


def refused(data: bytes, call: Callable[[Volume], object], match: str | None = None) -> None:
    """It can't be opened; or it can, and what `call` does fails."""
    try:
        volume = opened_bytes(data)
    except DamagedSourceError as error:
        assert str(error)
        return
    fails(lambda: call(volume), match)


def all_of(volume: Volume) -> None:
    """Everything that an image has: the first error is raised."""
    for _, node in [(b"", volume.root), *walk(volume)]:
        attributes = volume.attributes(node)
        dict(volume.xattrs(node))
        if stat.S_ISREG(attributes.mode):
            if attributes.size < 1 << 24:
                content(volume, node)
            volume.read(node, attributes.size // 2, 4096)
        elif stat.S_ISLNK(attributes.mode):
            volume.readlink(node)


def all_of_one(volume: Volume, path: str) -> None:
    """What a name stands for, whatever that is."""
    node = find(volume, path)
    mode = volume.attributes(node).mode
    dict(volume.xattrs(node))
    if stat.S_ISREG(mode):
        # The end first: there may be terabytes of holes before it.
        volume.read(node, max(volume.attributes(node).size - 4096, 0), 4096)
        volume.read(node, 0, 4096)
    elif stat.S_ISDIR(mode):
        all_names(volume, path)
    elif stat.S_ISLNK(mode):
        volume.readlink(node)


def readable(volume: Volume, plain: bytes, *paths: str) -> bool:
    """These files are what they were, and so is a directory."""
    sound = opened_bytes(plain)
    many = [name for name, *_ in volume.entries(find(volume, "many"), 0)]
    return len(many) == 102 and all(
        content(volume, find(volume, path)) == content(sound, find(sound, path))
        for path in paths or ("large", "few/two")
    )


def tolerated(call: Callable[[], object]) -> object:
    """It may be told to be wrong, or be taken as it is; it ends, and raises nothing else."""
    try:
        return call()
    except OSError as error:
        assert error.errno in DAMAGE, error
        return None


def either(data: bytes, call: Callable[[Volume], object]) -> None:
    """It may be refused, fail, or work."""
    try:
        volume = opened_bytes(data)
    except DamagedSourceError as error:
        assert str(error)
    else:
        tolerated(lambda: call(volume))


def all_of_and_more(volume: Volume) -> None:
    """What no name leads to is not missed; but then all the rest must be right."""
    all_of(volume)
    raise OSError(5, "all could be read, without the table")


def all_names(volume: Volume, path: str, absent: bytes = b"absent") -> None:
    """Listed, and looked up."""
    node = find(volume, path)
    for name, *_ in list(volume.entries(node, 0))[2:]:
        volume.lookup(node, name)
    volume.lookup(node, absent)
