"""Standard streams that are closed, as cron and daemons leave them, or that nothing more can be written to."""

from __future__ import annotations

import subprocess
from itertools import combinations

import pytest

from tests.kernel.conftest import SECONDS, Viewfs

CLOSED = [numbers for count in (1, 2, 3) for numbers in combinations(("0<&-", "1>&-", "2>&-"), count)]
#: Writes down which of its streams are open, in a file of the directory that it is in.
LOOK = "for n in 0 1 2; do test -e /proc/self/fd/$n && echo $n; done > streams; exit 7"


def shell(viewfs: Viewfs, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        env=viewfs.environment,
        cwd=viewfs.directory,
        check=False,
    )


@pytest.mark.parametrize("closed", CLOSED, ids=" ".join)
def test_a_command_finds_them_as_they_were(viewfs: Viewfs, closed: tuple[str, ...]) -> None:
    done = shell(viewfs, f"viewfs run -- bash -c '{LOOK}' {' '.join(closed)}")
    assert done.returncode == 7, done
    left = {"0", "1", "2"} - {one[0] for one in closed}
    assert (viewfs.directory / "streams").read_text().split() == sorted(left | {"1"}), "1 is the file that was written"
    assert done.stderr == ""


def test_nothing_can_be_said(viewfs: Viewfs) -> None:
    assert shell(viewfs, "viewfs ps >&-").returncode == 0
    assert shell(viewfs, "viewfs run --mount /missing:/mnt -- true 2>&-").returncode == 2


@pytest.mark.parametrize("command", ["ps --json", "lsmod --available", "--help", "doctor --help"])
def test_a_full_disk(viewfs: Viewfs, command: str) -> None:
    done = shell(viewfs, f"viewfs {command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("viewfs: ") and "no space left" in done.stderr and done.stderr.count("\n") == 1


def test_a_reader_that_goes(viewfs: Viewfs) -> None:
    done = shell(viewfs, "viewfs --help | true; viewfs lsmod --available | head -1")
    assert done.stderr == "" and done.stdout.startswith("MODULE")
