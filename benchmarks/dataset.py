"""The tree that all images are made from: seeded, so that everybody measures the same bytes.

The text has the statistics of text (frequent and rare words, lines), because compressors and their readers care.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

__all__ = ["BIG_FILES", "FULL", "QUICK", "Recipe", "Tree", "make_tree"]

MEBIBYTE = 1 << 20
BIG_FILES = ("random", "text", "sparse")
_SMALLEST, _LARGEST = 100, 16 << 10
_ISLAND = 64 << 10


@dataclass(frozen=True)
class Recipe:
    """How much of everything. A change of it, or of the code below, needs another version."""

    version: str
    directories: int
    files_per_directory: int
    #: Bytes of each big file.
    big_size: int
    #: Islands of data in the sparse file.
    islands: int
    #: Entries of the huge directory.
    names: int
    #: Names that stat(2) is asked for, in each place.
    sampled_names: int
    #: Random reads, over all big files.
    sampled_reads: int


FULL = Recipe("1", 500, 40, 256 * MEBIBYTE, 64, 50_000, 5_000, 4_000)
QUICK = Recipe("1-quick", 25, 40, 8 * MEBIBYTE, 8, 2_000, 400, 200)


@dataclass(frozen=True)
class Tree:
    """What is in the tree, as the workload needs it. All paths are relative to the top of the tree."""

    recipe: Recipe
    #: A file that nothing is measured with but the first byte after mounting.
    first: str
    sampled_small: list[str]
    sampled_huge: list[str]
    missing: str
    #: Big file and offset of each 4 KiB read.
    reads: list[tuple[str, int]]
    #: Path, offset, length and CRC-32 of some pieces: what a reader has to get right before it may take part.
    checks: list[tuple[str, int, int, int]]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Tree:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fields["recipe"] = Recipe(**fields["recipe"])
        fields["reads"] = [(name, offset) for name, offset in fields["reads"]]
        fields["checks"] = [(name, offset, length, crc) for name, offset, length, crc in fields["checks"]]
        return cls(**fields)


class _Writer:
    """Seeded text of any length, from a vocabulary in which few words are frequent."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        words = ["".join(source.choices("etaoinshrdlcumwfgypbvk", k=source.randint(2, 10))) for _ in range(4096)]
        weights = list(accumulate(1 / (rank + 2) for rank in range(len(words))))
        self._lines = [
            " ".join(source.choices(words, cum_weights=weights, k=source.randint(6, 14))) + "\n" for _ in range(20_000)
        ]

    def text(self, size: int) -> bytes:
        """`size` bytes."""
        parts: list[bytes] = []
        length = 0
        while length < size:
            parts.append("".join(self._random.choices(self._lines, k=size // 60 + 2)).encode())
            length += len(parts[-1])
        return b"".join(parts)[:size]


def make_tree(recipe: Recipe, top: Path) -> Tree:
    """Write the tree below `top`, which must be a new and empty directory."""
    source = random.Random("viewfs benchmark " + recipe.version)
    writer = _Writer(source)
    (top / "first").write_bytes(writer.text(1000))
    small = _small_files(recipe, top, writer, source)
    huge = _huge_directory(recipe, top, writer, source)
    _big_files(recipe, top, writer, source)
    reads = [
        (f"big/{source.choice(BIG_FILES)}", source.randrange(recipe.big_size // 4096) * 4096)
        for _ in range(recipe.sampled_reads)
    ]
    pieces = [(path, 0, _LARGEST) for path in source.sample(small, 20)]
    pieces += [
        (f"big/{name}", offset, 65536)
        for name in BIG_FILES
        for offset in (0, source.randrange(recipe.big_size), recipe.big_size - 4096)
    ]
    return Tree(
        recipe=recipe,
        first="first",
        sampled_small=source.sample(small, recipe.sampled_names),
        sampled_huge=source.sample(huge, recipe.sampled_names),
        missing="huge/there-is-no-such-name",
        reads=reads,
        checks=[(path, offset, length, _crc(top / path, offset, length)) for path, offset, length in pieces],
    )


def _crc(path: Path, offset: int, length: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return zlib.crc32(file.read(length))


def _small_files(recipe: Recipe, top: Path, writer: _Writer, source: random.Random) -> list[str]:
    """Sizes are spread evenly over their logarithm, as sizes of files are, more or less."""
    pool = writer.text(8 * MEBIBYTE)
    paths = []
    for number in range(recipe.directories):
        directory = f"small/{number:03d}"
        (top / directory).mkdir(parents=True)
        for file in range(recipe.files_per_directory):
            size = round(_SMALLEST * (_LARGEST / _SMALLEST) ** source.random())
            start = source.randrange(len(pool) - size)
            paths.append(f"{directory}/{number * recipe.files_per_directory + file:05d}.txt")
            (top / paths[-1]).write_bytes(pool[start : start + size])
    return paths


def _huge_directory(recipe: Recipe, top: Path, writer: _Writer, source: random.Random) -> list[str]:
    """Every second file is empty, the others are tiny."""
    (top / "huge").mkdir()
    pool = writer.text(4096)
    paths = []
    for number in range(recipe.names):
        paths.append(f"huge/{source.getrandbits(32):08x}-{number:05d}")
        (top / paths[-1]).write_bytes(pool[: source.randint(10, 60)] if number % 2 else b"")
    return paths


def _big_files(recipe: Recipe, top: Path, writer: _Writer, source: random.Random) -> None:
    (top / "big").mkdir()
    with (top / "big/random").open("wb") as random_file, (top / "big/text").open("wb") as text_file:
        for _ in range(recipe.big_size // MEBIBYTE):
            random_file.write(source.randbytes(MEBIBYTE))
            text_file.write(writer.text(MEBIBYTE))
    with (top / "big/sparse").open("wb") as file:
        os.truncate(file.fileno(), recipe.big_size)
        for island in sorted(source.sample(range(recipe.big_size // _ISLAND), recipe.islands)):
            file.seek(island * _ISLAND)
            file.write(source.randbytes(_ISLAND))
