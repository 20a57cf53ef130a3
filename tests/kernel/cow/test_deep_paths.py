"""Paths longer than PATH_MAX, trees a thousand directories deep, names as long as names may be, and messages."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs
from tests.kernel.cow.conftest import Cow

BACKENDS = ["overlay", "fuse"]
#: A message that is longer can't be read.
SCREEN = 2000

#: Go down DEPTH directories of names of LENGTH characters from TOP, making them if MAKE, and do something there.
WALK = """
import os, sys
top, depth, length, what = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.chdir(top)
name = "d" * length
for _ in range(depth):
    if what == "make" and not os.path.lexists(name):
        os.mkdir(name)
    os.chdir(name)
if what == "make":
    open("bottom", "w").write("made in the view\\n")
elif what == "change":
    open("bottom", "a").write("changed\\n")
elif what == "outside":
    open("bottom", "a").write("outside\\n")
elif what == "remove":
    os.unlink("bottom")
print(open("bottom").read() if os.path.exists("bottom") else "gone", end="")
"""
#: Longer than PATH_MAX; and more directories than Python lets a function call itself.
SHAPES = {"long": (25, 200), "deep": (1200, 1)}


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Path]:
    script = tmp_path / "walk.py"
    script.write_text(WALK)
    yield script
    subprocess.run(["chmod", "-R", "u+rwx", tmp_path], check=False)
    subprocess.run(["rm", "-rf", tmp_path / "tree", tmp_path / "state"], check=True)


def walked(walk: Path, tree: Path, shape: str, what: str) -> str:
    depth, length = SHAPES[shape]
    command = ["python3", str(walk), str(tree), str(depth), str(length), what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def inside(walk: Path, shape: str, what: str) -> str:
    depth, length = SHAPES[shape]
    return f"python3 {walk} . {depth} {length} {what}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_made_in_the_view(cow: Cow, tree: Path, walk: Path, shape: str, backend: str) -> None:
    depth, length = SHAPES[shape]
    there = cow.sh(inside(walk, shape, "make"), "--cow-backend", backend)
    assert there.out == "made in the view\n"
    shown = cow("diff")
    bottom = f"{tree}/{'/'.join(['d' * length] * depth)}/bottom"
    assert shown.err == "" and f"added    {bottom}  17 bytes\n" in shown.out and "+made in the view\n" in shown.out
    assert cow("diff", "--stat").out.endswith(f"\n{depth + 1} added\n")
    assert cow("commit").out == f"committed: {depth + 1} added\n"
    assert walked(walk, tree, shape, "look") == "made in the view\n"
    assert cow.viewfs("ps", "--json").json["ended"] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_changed_and_removed(cow: Cow, tree: Path, walk: Path, shape: str, backend: str) -> None:
    depth, length = SHAPES[shape]
    walked(walk, tree, shape, "make")
    cow.sh(inside(walk, shape, "change"), "--cow-backend", backend)
    assert cow("discard").out == "discarded: 1 changed\n"
    assert cow.sh(inside(walk, shape, "change"), "--cow-backend", backend).out == "made in the view\nchanged\n"
    assert cow("commit").out == "committed: 1 changed\n"
    assert walked(walk, tree, shape, "look") == "made in the view\nchanged\n"
    cow.sh(f"rm -r {'d' * length}", "--cow-backend", backend)
    assert cow("diff", "--stat").out.endswith(f"\n{depth + 1} deleted\n")
    assert cow("commit").out == f"committed: {depth + 1} deleted\n"
    assert not (tree / ("d" * length)).exists() and (tree / "text").exists()
    assert cow.viewfs("ps", "--json").json["ended"] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_discard_in_a_view_that_runs(cow: Cow, tree: Path, walk: Path, shape: str, backend: str) -> None:
    """Also states: they are copies of layers as deep."""
    length = SHAPES[shape][1]
    script = f"""
        {inside(walk, shape, "make")}; viewfs checkpoint one > /dev/null; rm -r {"d" * length}
        viewfs rollback one > /dev/null; {inside(walk, shape, "look")}
        viewfs discard > /dev/null; test ! -e {"d" * length}; viewfs diff
    """
    result = cow.sh(script, "--cow-backend", backend)
    assert result.out == "made in the view\n" * 2 and result.err == ""
    assert cow.viewfs("forget", "cow").code == 0
    assert not (cow.viewfs.state / "viewfs/cow").exists()


def test_messages_about_long_paths(cow: Cow, tree: Path, walk: Path) -> None:
    """They are named so that one knows which, and no longer than a screen."""
    walked(walk, tree, "long", "make")
    cow.sh(inside(walk, "long", "change"))
    walked(walk, tree, "long", "outside")
    refused = cow("commit", check=False)
    assert refused.code == 1 and refused.out == ""
    assert refused.err.startswith("viewfs: nothing is committed: ") and "bottom" in refused.err
    assert refused.err.rstrip("\n").count("\n") == 0 and len(refused.err) <= SCREEN
    kept = cow("commit", "--keep-theirs")
    assert walked(walk, tree, "long", "look") == "made in the view\nchanged\n"
    assert all(len(line) <= SCREEN for line in kept.err.splitlines())
    depth, length = SHAPES["long"]
    missing = "/".join(["x" * length] * depth)
    looking: list[tuple[str, ...]] = [("diff", missing), ("commit", f"{tree}/{missing}"), ("discard", missing)]
    for arguments in looking:
        cow.sh("echo x > text")
        told = cow(*arguments, check=False)
        assert told.code in (0, 1, 2, 4) and len(told.err) <= SCREEN and "Traceback" not in told.err, arguments
    others: list[tuple[str, ...]] = [
        ("run", "--mount", f"none:/{missing}:tmp", "--", "true"), ("run", "--cow", missing, "--", "true"),
        ("run", "--name", "x" * 5000, "--", "true"), ("run", "--", missing), ("inspect", missing),
        ("forget", "x" * 5000), ("enter", "x" * 5000),
    ]  # fmt: skip
    for arguments in others:
        told = cow.viewfs(*arguments, check=False)
        assert told.code != 0 and 0 < len(told.err) <= SCREEN and "Traceback" not in told.err, (arguments[0], told.err)


@pytest.mark.parametrize("name", ["n" * 250, "n" * 255, "é" * 127, "日" * 85, "n" * 242], ids=range(5))
def test_what_is_kept_of_files_with_long_names(cow: Cow, tree: Path, name: str) -> None:
    """NAME.viewfs-theirs would be too long: as much of NAME as fits is in it."""
    (tree / name).write_text("before\n")
    (tree / (name[:-1] + "x")).write_text("one beside, alike to the last character\n")
    cow.sh(f"echo inside > {name}; echo inside > {name[:-1]}x")
    (tree / name).write_text("outside\n")
    (tree / (name[:-1] + "x")).write_text("outside, beside\n")
    assert cow("commit", check=False).code == 1 and (tree / name).read_text() == "outside\n"
    assert cow("commit", "--keep-theirs").out == "committed: 2 changed\n"
    assert (tree / name).read_text() == (tree / (name[:-1] + "x")).read_text() == "inside\n"
    kept = {path.read_text(): path.name for path in tree.iterdir() if ".viewfs-theirs" in path.name}
    assert kept.keys() == {"outside\n", "outside, beside\n"}
    assert all(len(os.fsencode(one)) <= 255 and one.startswith(name[:50]) for one in kept.values())


@pytest.mark.parametrize("name", ["n" * 250, "n" * 255])
def test_long_names_are_made_and_removed(cow: Cow, tree: Path, name: str) -> None:
    """What lies beside a file for a while has a name of its own, that must fit as well."""
    (tree / name).write_text("before\n")
    cow.sh(f"echo inside > {name}; mkdir {name[:-1]}d; echo n > {name[:-1]}d/{name}; rm script; ln text {name[:-1]}l")
    assert cow("commit").code == 0
    assert (tree / name).read_text() == "inside\n" and (tree / (name[:-1] + "d") / name).read_text() == "n\n"


def test_thousands_of_conflicts(viewfs: Viewfs, tmp_path: Path) -> None:
    """A few are named, and how many there are."""
    top = tmp_path / "many"
    top.mkdir()
    for number in range(3000):
        (top / f"{number:04}").write_text("before\n")
    cow = Cow(viewfs, top)
    cow.sh("for n in [0-9]*; do echo inside > $n; done")
    for path in top.iterdir():
        path.write_text("outside\n")
    refused = cow("commit", check=False)
    assert refused.code == 1 and refused.out == ""
    assert len(refused.err.splitlines()) <= 12 and all(len(line) <= SCREEN for line in refused.err.splitlines())
    assert "2990" in refused.err and {path.read_text() for path in top.iterdir()} == {"outside\n"}
    kept = cow("commit", "--keep-theirs")
    assert kept.out == "committed: 3000 changed\n" and len(kept.err.splitlines()) <= 12
    assert sum(path.read_text() == "outside\n" for path in top.glob("*.viewfs-theirs")) == 3000
