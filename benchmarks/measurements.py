"""What is measured: each measurement has a name, a title for people, and a function that does it and says how long.

Measurements of one group share a mount. Within a group no measurement touches what another one reads, so that each of
them finds its own part of the mount untouched the first time (cold), and as it left it the second time (warm).
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.dataset import BIG_FILES, Tree

__all__ = ["GROUPS", "MEASUREMENTS", "MEMORY", "MOUNTING", "Measurement", "measure_function", "title_of"]

_BUFFER = 1 << 20
_PAGE = 4096
_READERS = 4


@dataclass(frozen=True)
class Mounted:
    """A tree, and where it is mounted."""

    place: Path
    tree: Tree

    def path(self, relative: str) -> str:
        return f"{self.place}/{relative}"


@dataclass(frozen=True)
class Measurement:
    """One row of the report."""

    name: str
    title: str
    group: str
    function: Callable[[Mounted], float]


def _command(*argv: str) -> float:
    started = time.perf_counter()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    _expect_success(argv[0], done.returncode)
    return seconds


def _find(mounted: Mounted) -> float:
    return _command("find", str(mounted.place), "-ls")


def _find_small(mounted: Mounted) -> float:
    return _command("find", mounted.path("small"), "-ls")


def _read_small(mounted: Mounted) -> float:
    """Through a pipe: GNU tar reads no file when it sees that its output is /dev/null."""
    started = time.perf_counter()
    with subprocess.Popen(["tar", "cf", "-", "-C", str(mounted.place), "small"], stdout=subprocess.PIPE) as tar:
        subprocess.run(["cat"], stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - started
    _expect_success("tar", tar.returncode)
    return seconds


def _list_huge(mounted: Mounted) -> float:
    started = time.perf_counter()
    names = os.listdir(mounted.path("huge"))
    seconds = time.perf_counter() - started
    _expect(len(names), mounted.tree.recipe.names)
    return seconds


def _stat_all(mounted: Mounted, relative: Iterable[str]) -> float:
    paths = [mounted.path(path) for path in relative]
    started = time.perf_counter()
    for path in paths:
        os.stat(path)
    return time.perf_counter() - started


def _stat_small(mounted: Mounted) -> float:
    return _stat_all(mounted, mounted.tree.sampled_small)


def _stat_huge(mounted: Mounted) -> float:
    return _stat_all(mounted, mounted.tree.sampled_huge)


def _stat_missing(mounted: Mounted) -> float:
    path = mounted.path(mounted.tree.missing)
    found = 0
    started = time.perf_counter()
    for _ in range(mounted.tree.recipe.sampled_names):
        try:
            os.stat(path)
            found += 1
        except FileNotFoundError:
            pass
    seconds = time.perf_counter() - started
    _expect(found, 0)
    return seconds


def _read_range(path: str, start: int, length: int) -> int:
    """Read that much with a buffer of 1 MiB; the number of bytes that came."""
    buffer = bytearray(_BUFFER)
    done = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while done < length and (count := file.readinto(memoryview(buffer)[: length - done])):
            done += count
    return done


def _read_big(name: str, mounted: Mounted) -> float:
    size = mounted.tree.recipe.big_size
    started = time.perf_counter()
    count = _read_range(mounted.path(f"big/{name}"), 0, size)
    seconds = time.perf_counter() - started
    _expect(count, size)
    return seconds


def _read_pages(mounted: Mounted) -> float:
    """4 KiB at random offsets of all big files, which are open already."""
    files = {f"big/{name}": os.open(mounted.path(f"big/{name}"), os.O_RDONLY) for name in BIG_FILES}
    reads = [(files[name], offset) for name, offset in mounted.tree.reads]
    random.Random("order").shuffle(reads)
    count = 0
    started = time.perf_counter()
    for file, offset in reads:
        count += len(os.pread(file, _PAGE, offset))
    seconds = time.perf_counter() - started
    _expect(count, _PAGE * len(reads))
    return seconds


def _read_in_parallel(mounted: Mounted) -> float:
    """Four processes, each of which reads another quarter of the compressible file."""
    quarter = mounted.tree.recipe.big_size // _READERS
    path = mounted.path("big/text")
    started = time.perf_counter()
    readers = []
    for number in range(_READERS):
        pid = os.fork()
        if pid == 0:
            count = 0
            try:
                count = _read_range(path, number * quarter, quarter)
            finally:
                os._exit(0 if count == quarter else 1)
        readers.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in readers]
    seconds = time.perf_counter() - started
    _expect(sum(statuses), 0)
    return seconds


def _expect_success(program: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{program} ended with status {status}")


def _expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"found {found} where {wanted} should be")


#: In the order of the report.
MEASUREMENTS = {
    measurement.name: measurement
    for measurement in (
        Measurement("find", "`find -ls` of the whole tree", "walk", _find),
        Measurement("find-small", "`find -ls` of the small files", "big", _find_small),
        Measurement("small", "`tar` of the small files", "small", _read_small),
        Measurement("stat-small", "stat of random small files", "names", _stat_small),
        Measurement("stat-huge", "stat of random names in the huge directory", "names", _stat_huge),
        Measurement("missing", "one missing name, again and again", "big", _stat_missing),
        Measurement("list-huge", "listing the huge directory", "small", _list_huge),
        *(
            Measurement(f"read-{name}", f"reading the {name} file in order", "big", partial(_read_big, name))
            for name in BIG_FILES
        ),
        Measurement("pages", "random 4 KiB reads of the big files", "names", _read_pages),
        Measurement("parallel", "four readers of one file", "small", _read_in_parallel),
    )
}
#: Measured by the workload itself: the mount command and the first byte; the same with all that is before and after it.
MOUNTING = {
    "mount": "mounting, until the first byte",
    "started": "of that: starting the command (`viewfs --version`)",
    "asked": "of that: the session’s part, asked by a program that runs already",
    "session": "mounting, reading a byte, and unmounting",
}
#: Fields of a memory reading.
MEMORY = {
    "idle_private": "private memory of the idle server",
    "private": "private memory of the server after work",
    "peak": "peak resident memory of the server",
    "idle_total": "all memory of an idle mount (Pss of every process)",
    "total": "all memory after work (Pss of every process)",
}
#: Groups in the order in which they are measured: mounts that share nothing.
GROUPS = ("session", "mount", *dict.fromkeys(measurement.group for measurement in MEASUREMENTS.values()))


def measure_function(name: str, place: Path, tree: Tree) -> Callable[[], float]:
    """The measurement of that name, ready to be done on a tree mounted at `place`."""
    return partial(MEASUREMENTS[name].function, Mounted(place, tree))


def title_of(name: str) -> str:
    return MEASUREMENTS[name].title if name in MEASUREMENTS else (MOUNTING | MEMORY)[name]
