"""Sources that tests read from, and images that are damaged one after the other."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

#: How long the tests of this sort go on together; 0: for a moment, with the same seeds each time.
FUZZ_SECONDS = float(os.environ.get("VIEWFS_FUZZ_SECONDS", 0))


class ImageFile:
    """A Source. It is a context manager too, and closes its descriptor."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


class MemoryImage:
    """A Source made of bytes, which counts how often it is read; `delay` is the seconds that a read takes."""

    def __init__(self, data: bytes, size: int | None = None, delay: float = 0) -> None:
        self._data = data
        self._delay = delay
        self.size = len(data) if size is None else size
        #: Every read fails.
        self.broken = False
        #: Size and offset of each.
        self.reads: list[tuple[int, int]] = []

    def pread(self, size: int, offset: int) -> bytes:
        self.reads.append((size, offset))
        if self._delay:
            time.sleep(self._delay)
        if self.broken:
            raise OSError(errno.EIO, "not now")
        return self._data[offset : offset + size]

    def times_read(self, start: int, end: int) -> int:
        """How many reads touched these bytes."""
        return sum(offset < end and start < offset + size for size, offset in self.reads)

    @property
    def asked(self) -> int:
        """The bytes that were asked for, all in all."""
        return sum(size for size, _offset in self.reads)


def damaged_one_after_the_other(
    kind: str,
    share: float,
    directory: Path,
    damage: Callable[[random.Random, int], bytes],
    read: Callable[[bytes], None],
    *,
    moment: float = 0.8,
) -> None:
    """Have `read` read images that `damage` gives, by a generator and its seed.

    It goes on for `share` of the seconds that were asked for, or a `moment`. What fails is kept in `directory`.
    """
    end = time.monotonic() + (FUZZ_SECONDS * share or moment)
    seed = random.SystemRandom().randrange(1 << 30) if FUZZ_SECONDS else 0
    rounds = 0
    while time.monotonic() < end and (FUZZ_SECONDS or rounds < 150):
        image = damage(random.Random(seed), seed)
        try:
            read(image)
        except BaseException as error:
            (directory / "failed").write_bytes(image)
            error.add_note(f"seed {seed} of {kind}; the image is {directory / 'failed'}")
            raise
        seed, rounds = seed + 1, rounds + 1
    assert rounds
