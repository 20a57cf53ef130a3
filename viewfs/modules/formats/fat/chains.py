"""From the first cluster of a file to all of them: the file allocation table.

A chain is followed once, from its beginning to the end of the file, and kept as *runs* of consecutive clusters. So any
damage is known before the first byte of the file is returned: a chain that reaches a cluster twice ends before that.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from typing import NamedTuple, Protocol

from viewfs.modules.framework.cache import Cache, SingleFlightCache
from viewfs.modules.framework.damage import damaged
from viewfs.modules.framework.sources import Section

__all__ = ["FIRST_CLUSTER", "Chains", "Runs", "contiguous", "open_table"]

FIRST_CLUSTER = 2
#: Entries of wide tables that are read as one piece, and pieces that are kept: 4 MiB.
_PIECE = 16384
_PIECES_CACHED = 64
#: Runs that are kept, of all chains together, and of one chain at most. (More fragmented files do not occur.)
_RUNS_CACHED = 1 << 19
_RUNS_MAX = 1 << 19
#: Entries that are compared at once while clusters are consecutive.
_COMPARED = 1024
_ROUND = "a chain comes by the same cluster twice"


class Runs(NamedTuple):
    """Where the clusters of a file are, in runs: run `i` begins with the file's cluster number `firsts[i]`, which is
    cluster `clusters[i]` of the volume."""

    firsts: list[int]
    clusters: list[int]
    #: The number of clusters.
    total: int
    #: Why there are no more clusters, if there should be.
    error: OSError | None

    def find(self, number: int) -> tuple[int, int] | None:
        """The file's cluster of that number, counted from 0, and how many clusters its run has from there on."""
        if not 0 <= number < self.total:
            return None
        index = bisect_right(self.firsts, number) - 1
        end = self.firsts[index + 1] if index + 1 < len(self.firsts) else self.total
        return self.clusters[index] + number - self.firsts[index], end - number


def contiguous(first: int, count: int, clusters: int) -> Runs:
    """The runs of a file whose clusters are consecutive and not in the table (exFAT, NoFatChain)."""
    there = min(count, FIRST_CLUSTER + clusters - first)
    if first < FIRST_CLUSTER or there <= 0:
        return Runs([], [], 0, damaged(f"a file begins with cluster {first}, which can't be"))
    error = damaged("a file goes on behind the last cluster") if there < count else None
    return Runs([0], [first], there, error)


class _Table(Protocol):
    """The entries of a table."""

    #: Values from `end` on end a chain; `bad` marks a cluster that can't be used.
    end: int
    bad: int

    def entries(self, number: int) -> tuple[array[int], int]:
        """A piece of the table with entry `number`, and the index of the entry in it. Raises OSError."""


class _NarrowTable:
    """A table with entries of 12 or 16 bits, kept in memory: 128 KiB at most."""

    def __init__(self, section: Section, position: int, clusters: int, bits: int) -> None:
        self.end, self.bad = (0xFF8, 0xFF7) if bits == 12 else (0xFFF8, 0xFFF7)
        count = clusters + FIRST_CLUSTER
        # If the image is cut short, the rest of it can still be read.
        data = section.pread_up_to(-(-count * bits // 8), position)
        if bits == 12:
            data += b"\0" * (-len(data) % 3)
            triples = zip(data[::3], data[1::3], data[2::3], strict=True)
            both = ((low | (middle & 15) << 8, middle >> 4 | high << 4) for low, middle, high in triples)
            self._entries = array("H", [entry for pair in both for entry in pair])
        else:
            self._entries = _little_endian("H", data)

    def entries(self, number: int) -> tuple[array[int], int]:
        if number >= len(self._entries):
            raise damaged(f"the table ends before cluster {number}")
        return self._entries, number


class _WideTable:
    """A table with entries of 32 bits, of which FAT32 uses 28, read in pieces."""

    def __init__(self, section: Section, position: int, clusters: int, mask: int) -> None:
        self.end, self.bad = 0xFFFFFFF8 & mask, 0xFFFFFFF7 & mask
        self._section, self._position, self._mask = section, position, mask
        self._count = clusters + FIRST_CLUSTER
        self._pieces: Cache[int, array[int]] = Cache(_PIECES_CACHED)

    def entries(self, number: int) -> tuple[array[int], int]:
        piece, index = divmod(number, _PIECE)
        found = self._pieces.get(piece)
        if found is None:
            count = min(_PIECE, self._count - piece * _PIECE)
            data = self._section.pread(count * 4, self._position + piece * _PIECE * 4)
            found = _little_endian("I", data)
            if self._mask != 0xFFFFFFFF and any(entry > self._mask for entry in found):
                found = array("I", [entry & self._mask for entry in found])
            self._pieces.put(piece, found)
        return found, index


def _little_endian(kind: str, data: bytes) -> array[int]:
    found = array(kind, data[: len(data) // array(kind).itemsize * array(kind).itemsize])
    if sys.byteorder == "big":
        found.byteswap()
    return found


def open_table(section: Section, position: int, clusters: int, bits: int) -> _Table:
    """The table that begins at byte `position`, with entries of 12, 16, 28 (FAT32) or 32 (exFAT) bits."""
    if bits <= 16:
        return _NarrowTable(section, position, clusters, bits)
    return _WideTable(section, position, clusters, (1 << bits) - 1)


class Chains:
    """The chains of one table. Any thread may call it."""

    def __init__(self, table: _Table, clusters: int) -> None:
        self._table = table
        self._clusters = clusters
        self._runs: SingleFlightCache[tuple[int, int, bool], Runs] = SingleFlightCache(
            _RUNS_CACHED, self._follow, lambda runs: 1 + len(runs.firsts)
        )

    def runs(self, first: int, count: int, *, exact: bool) -> Runs:
        """The first `count` clusters of the chain that begins with `first`; `exact`: fewer are an error."""
        return self._runs.get((first, count, exact))

    def count_free(self) -> int:
        """The number of free clusters. Raises OSError."""
        free = 0
        number, end = FIRST_CLUSTER, FIRST_CLUSTER + self._clusters
        while number < end:
            entries, index = self._table.entries(number)
            taken = min(len(entries) - index, end - number)
            free += entries[index : index + taken].count(0)
            number += taken
        return free

    def _follow(self, key: tuple[int, int, bool]) -> Runs:
        cluster, wanted, exact = key
        runs: list[tuple[int, int, int]] = []  # first cluster, number in the chain, length
        seen: set[int] = set()
        done, error = 0, None
        while done < wanted:
            if cluster in seen:
                error = damaged(_ROUND)
                break
            if not FIRST_CLUSTER <= cluster < FIRST_CLUSTER + self._clusters:
                error = damaged(f"a chain leads to cluster {cluster}, which can't be")
                break
            if len(runs) == _RUNS_MAX:
                error = damaged(f"a chain has more than {_RUNS_MAX} pieces")
                break
            seen.add(cluster)
            length, following, error = self._run(cluster, wanted - done)
            runs.append((cluster, done, length))
            done += length
            if error is not None or following >= self._table.end:
                break
            cluster = following
        while (again := _first_repeated(runs)) is not None:
            error = damaged(_ROUND)
            runs = [
                (cluster, number, min(length, again - number)) for cluster, number, length in runs if number < again
            ]
            done = again
        if exact and done < wanted and error is None:
            error = damaged(f"a chain ends after {done} of {wanted} clusters")
        return Runs([run[1] for run in runs], [run[0] for run in runs], done, error)

    def _run(self, cluster: int, most: int) -> tuple[int, int, OSError | None]:
        """How many consecutive clusters there are from `cluster` on, the next one in the chain, and an error in it."""
        length = 1
        while True:
            try:
                entries, index = self._table.entries(cluster)
            except OSError as error:
                return length, 0, error
            following = entries[index]
            if following != cluster + 1 or length >= most or following >= FIRST_CLUSTER + self._clusters:
                break
            # Many entries are compared at once as long as each leads to the next cluster.
            step = min(_COMPARED, most - length, len(entries) - index, FIRST_CLUSTER + self._clusters - 1 - cluster)
            expected = array(entries.typecode, range(cluster + 1, cluster + 1 + step)) if step > 8 else None
            if entries[index : index + step] == expected:
                cluster += step
                length += step
            else:
                cluster += 1
                length += 1
        if length < most and not following:
            return length, 0, damaged(f"a chain leads from cluster {cluster} to none")
        if length < most and following == self._table.bad:
            return length, 0, damaged(f"a chain leads from cluster {cluster} to a bad one")
        return length, following, None


def _first_repeated(runs: list[tuple[int, int, int]]) -> int | None:
    """The number in the chain of a cluster that is in the chain before, too; None if there is none.

    (It may not be the first such number. The caller cuts the chain off there and calls this again.)
    """
    found: int | None = None
    before = (0, 0, 0)
    for run in sorted(runs):
        if run[0] < before[0] + before[2]:
            # They overlap from the beginning of the second on: find where the one later in the chain reaches that.
            later, other = (run, before) if run[1] > before[1] else (before, run)
            place = later[1] + max(other[0] - later[0], 0)
            found = place if found is None else min(found, place)
        if run[0] + run[2] > before[0] + before[2]:
            before = run
    return found
