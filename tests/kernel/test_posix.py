"""The table of posix_behaviours.py on the host, in copy-on-write views, on a file system in Python, and in a
watched directory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.kernel import posix_behaviours
from tests.kernel.conftest import SECONDS, Result, Viewfs, host_mounts, session_processes, wait_until
from tests.kernel.cow.conftest import snapshot
from tests.kernel.posix_behaviours import BEHAVIOURS, LOWER, NEW

PROGRAM = Path(posix_behaviours.__file__)
MEMORY = PROGRAM.parents[2] / "examples/memory.py"

#: What is run where. Only a copy-on-write view has a lower tree.
TABLES = {"host": NEW, "overlay": list(BEHAVIOURS), "fuse": list(BEHAVIOURS), "memory": NEW, "watched": NEW}
#: Has a directory watched, and becomes another program (docs/fanotify.md).
WATCH = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
group = libc.fanotify_init(0, os.O_RDONLY)
assert libc.fanotify_mark(group, 1, ctypes.c_uint64(0x800003b), -100, os.fsencode(sys.argv[1])) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

_RENAMED = "a directory that was there before is not renamed (docs/cow.md)"
_NAMES = "writing to one of several names of a file that was there before gives two files (docs/cow.md)"
_NUMBERS = "names made in the view are one file, though stat(2) may give them different numbers (docs/cow.md)"
_MAPPED = "a mapping of a lower file does not follow it (Linux, filesystems/overlayfs.rst, Non-standard behavior)"
_GONE = "overlayfs without an index copies nothing up that has no name (EEXIST), and shows the links of the lower file"
_BYTES = "a file is one bytearray, of 64 MiB at most (examples/memory.py, option limit)"
_DATA = "all of a file is data where lseek is not implemented (viewfs/modules/api.py)"
#: What a backend can't do, and why that is so. When it can, the test fails until the entry is gone.
_EXAMPLE = "an example implements what it takes to be read with ease"
KNOWN: dict[str, dict[str, str]] = {
    "host": {},
    "watched": {},
    "overlay": {
        "lower_directory_is_renamed": _RENAMED,
        "lower_linked": _NUMBERS,
        "lower_linked_by_descriptor": _NUMBERS,
        "lower_links_to_links": _NUMBERS,
        "lower_mapped_for_reading_before": _MAPPED,
        "lower_names_of_one_file": _NAMES,
        "lower_one_name_is_renamed": _NUMBERS,
        "lower_replaced_attributes_of_a_reader": _GONE,
        "lower_unlinked_and_cut_by_a_reader": _GONE,
        "lower_unlinked_and_opened_again": _GONE,
        "lower_unlinked_attributes_of_a_reader": _GONE,
        "lower_unlinked_has_no_links": _GONE,
    },
    "fuse": {"lower_directory_is_renamed": _RENAMED, "lower_names_of_one_file": _NAMES},
    "memory": {
        "exchanged_file_and_directory": _EXAMPLE,
        "exchanged_files": _EXAMPLE,
        "far_offsets": _BYTES,
        "holes_are_found": _DATA,
        "holes_take_no_room": _BYTES,
        "punched_holes": _EXAMPLE,
        "reserved_beyond_the_end": _EXAMPLE,
        "reserved_room": _EXAMPLE,
        "unnamed_file": _EXAMPLE,
        "unnamed_file_gets_a_name": _EXAMPLE,
        "unnamed_file_that_gets_no_name": _EXAMPLE,
        "zeroed_ranges": _EXAMPLE,
    },
}


@dataclass
class Outcome:
    """What came of a table: an error of each behaviour, or None; and what has changed in the tree below it."""

    errors: dict[str, str | None]
    changed: list[str] = field(default_factory=list)


class Outcomes:
    """Each table is run once, by the first test that asks."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._known: dict[str, Outcome] = {}

    def of(self, backend: str) -> Outcome:
        if backend not in self._known:
            self._known[backend] = Outcome({})  # what fails as a whole is not tried again by every test
            self._known[backend] = self._run(backend, self._factory.mktemp(backend))
        return self._known[backend]

    def _run(self, backend: str, directory: Path) -> Outcome:
        program = (sys.executable, str(PROGRAM))
        if backend == "host":
            done = subprocess.run([*program, directory, "--new"], capture_output=True, text=True, timeout=SECONDS)
            return Outcome(_parse(done.stdout, done.stderr))
        if backend == "memory":
            result = _leaving_nothing(directory, "--load", f"{MEMORY}:/desk", "--", *program, "/desk", "--new")
            return Outcome(_parse(result.out, result.err))
        tree = directory / "tree"
        if backend == "watched":
            tree.mkdir()
            watch = (sys.executable, "-c", WATCH, tree)
            result = _leaving_nothing(directory, "--load", "fanotify", "--", *watch, PROGRAM, tree, "--new")
            return Outcome(_parse(result.out, result.err))
        for name in TABLES[backend]:
            if name.startswith(LOWER):
                (tree / name).mkdir(parents=True)
                posix_behaviours.lay(tree / name)
        before = snapshot(tree)
        result = _leaving_nothing(directory, "--cow", tree, "--cow-backend", backend, "--", *program, tree)
        after = snapshot(tree)
        changed = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
        return Outcome(_parse(result.out, result.err), changed)


def _leaving_nothing(directory: Path, *arguments: str | Path) -> Result:
    """A view that is open for one command, and leaves the host as it was."""
    mounts, processes = host_mounts(directory), set(session_processes(directory))
    result = Viewfs(directory)("run", *arguments, check=False)
    assert host_mounts(directory) == mounts
    wait_until(lambda: set(session_processes(directory)) <= processes, "all processes of the view have ended")
    assert not (directory / "runtime/viewfs").exists()
    return result


def _parse(lines: str, said: str) -> dict[str, str | None]:
    results = [json.loads(line) for line in lines.splitlines()]
    assert results, f"the table was not run: {said}"
    return {result["name"]: result["error"] for result in results}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return Outcomes(tmp_path_factory)


@pytest.fixture(autouse=True)
def host_left_alone() -> None:
    """What is left behind is looked for where a view was open, not at each of a thousand looks at what came of it."""


@pytest.fixture(autouse=True)
def no_leaked_descriptors() -> None:
    """The same: these tests open nothing."""


@pytest.mark.parametrize(("backend", "name"), [(backend, name) for backend, names in TABLES.items() for name in names])
def test_behaviour(backend: str, name: str, outcomes: Outcomes) -> None:
    error = outcomes.of(backend).errors.get(name, "it was not run")
    reason = KNOWN[backend].get(name)
    if reason is None:
        assert error is None, f"{BEHAVIOURS[name].check.__doc__} {error}"
    else:
        assert error is not None, f"it works now, which was known not to: {reason}"


@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_the_lower_tree_is_as_it_was(backend: str, outcomes: Outcomes) -> None:
    assert outcomes.of(backend).changed == []


def test_what_is_known_is_in_the_table() -> None:
    for backend, known in KNOWN.items():
        assert set(known) <= set(TABLES[backend])
