"""What root has of a view: nobody is without a number in it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may map all ids")


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="viewfs-test-") as name:
        yield Path(name)


def viewfs(place: Path, *arguments: str | Path) -> str:
    (place / "run").mkdir(mode=0o700, exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XDG_STATE_HOME": str(place / "state"),
        "XDG_RUNTIME_DIR": str(place / "run"),
    }
    command = [sys.executable, "-B", "-m", "viewfs", *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def owners(tree: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_uid, path.stat().st_gid) for path in tree.iterdir()}


def test_files_of_all_users_are_changed_and_stay_theirs(place: Path) -> None:
    tree = place / "tree"
    tree.mkdir()
    given = {"mine": (0, 0), "theirs": (1001, 1002), "high": (70_000, 3_000_000_000), "given": (0, 0)}
    for name, (uid, gid) in given.items():
        (tree / name).write_text("before\n")
        os.chown(tree / name, uid, gid)
    script = f"""
        cd {tree}; stat -f -c %T .; for f in mine theirs high; do echo after >> $f; done; chown 5:6 given
        setpriv --reuid=1001 --regid=1002 --clear-groups sh -c 'echo more >> theirs; id -u'
    """
    options = ("--as-root", "--name", "n", "--cow", tree)
    assert viewfs(place, "run", *options, "--", "sh", "-euc", script) == "overlayfs\n1001\n"
    assert owners(tree) == given and (tree / "theirs").read_text() == "before\n"
    assert f"changed  {tree}/given  owner 0:0 → 5:6" in viewfs(place, "diff", "--session", "n")
    viewfs(place, "commit", "--session", "n")
    assert owners(tree) == given | {"given": (5, 6)}
    assert (tree / "theirs").read_text() == "before\nafter\nmore\n"


def test_without_being_asked_a_command_has_no_capability(place: Path) -> None:
    shown = viewfs(place, "run", "--", "sh", "-c", "id -u; cat /proc/self/uid_map; grep CapEff /proc/self/status")
    lines = shown.split()
    assert lines[0] == "0" and lines[1:3] == ["0", "0"] and int(lines[3]) > 1
    assert lines[4:] == ["CapEff:", "0" * 16]
