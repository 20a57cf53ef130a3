"""The disks as a power cut leaves them: what was written before the last barrier, and of the rest anything."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.root.power_cut.recorder import Kind, Record

__all__ = ["Cut", "Rest", "Replay", "choose"]

#: A write of several blocks may be cut between them.
_BLOCK = 4096
#: How marks end that promise something. (Others that are next to each other differ in nothing that matters.)
_PROMISED = b"is durable"


class Rest(StrEnum):
    """What becomes of writes that no barrier has followed."""

    #: The disk had all of them in its cache.
    LOST = "lost"
    #: It had written them already.
    WRITTEN = "written"
    #: Each block was written or not: the seed says which.
    SOME = "some"


@dataclass(frozen=True)
class Cut:
    """A moment: before record `position`."""

    position: int
    rest: Rest = Rest.LOST
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.position}:{self.rest}" + (f":{self.seed}" if self.rest is Rest.SOME else "")


class Replay:
    """Makes the images of one moment after the other, which come in order."""

    def __init__(self, bases: Sequence[Path], records: Sequence[Record]) -> None:
        self._disks = [bytearray(base.read_bytes()) for base in bases]
        self._waiting: list[list[Record]] = [[] for _base in bases]
        self._records = records
        self._position = 0

    def write(self, cut: Cut, images: Sequence[Path]) -> None:
        """Write what is on each disk to `images`."""
        assert cut.position >= self._position
        for record in self._records[self._position : cut.position]:
            if record.kind is Kind.WRITE:
                self._waiting[record.disk].append(record)
            elif record.kind is Kind.BARRIER:
                for one in self._waiting[record.disk]:
                    _put(self._disks[record.disk], one.offset, one.data)
                self._waiting[record.disk].clear()
        self._position = cut.position
        chance = random.Random(cut.seed)
        for disk, waiting, image in zip(self._disks, self._waiting, images, strict=True):
            content = disk
            if waiting and cut.rest is not Rest.LOST:
                content = bytearray(disk)
                for one in waiting:
                    for begin in range(0, len(one.data), _BLOCK):
                        if cut.rest is Rest.WRITTEN or chance.random() < 0.5:
                            _put(content, one.offset + begin, one.data[begin : begin + _BLOCK])
            image.write_bytes(content)


def _put(disk: bytearray, offset: int, data: bytes) -> None:
    disk[offset : offset + len(data)] = data


def choose(records: Sequence[Record], count: int | None, seed: int) -> list[Cut]:
    """The moments to look at, in order: `count` of them, or (None) all.

    Half of them are marks, with all that no barrier had followed lost; then come barriers, and moments between them.
    """
    first = next(number for number, record in enumerate(records) if record.kind is Kind.MARK)
    marks, barriers, between = [], [], []
    for number, record in enumerate(records[first:], first):
        if record.kind is Kind.BARRIER:
            barriers.append(Cut(number + 1))
        elif record.kind is Kind.WRITE:
            between += [Cut(number + 1, rest, number) for rest in (Rest.WRITTEN, Rest.SOME)]
        elif number + 1 == len(records) or records[number + 1].kind is not Kind.MARK or record.data.endswith(_PROMISED):
            marks.append(Cut(number + 1))
    if count is None:
        return sorted({*marks, *barriers, *between}, key=_order)
    chance = random.Random(seed)
    chosen = set(_spread(marks, (count + 1) // 2, chance))
    left = count - len(chosen)
    chosen.update(_spread(barriers, (left + 1) // 2, chance))
    chosen.update(_spread(between, left // 2, chance))
    return sorted(chosen, key=_order)


def _spread(cuts: Sequence[Cut], count: int, chance: random.Random) -> Iterator[Cut]:
    """`count` of them, one of each stretch."""
    count = min(count, len(cuts))
    for number in range(count):
        yield chance.choice(cuts[len(cuts) * number // count : len(cuts) * (number + 1) // count])


def _order(cut: Cut) -> tuple[int, str]:
    return cut.position, cut.rest
