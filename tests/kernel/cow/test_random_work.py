"""Random operations in a view, committed, are the same as the operations done directly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs
from tests.kernel.cow.conftest import snapshot

#: Does so many operations that a seed says in the directories below the working directory, the same wherever it is run.
SCRIPT = """
import os, random, shutil, subprocess, sys
TIME = 1_500_000_000_000_000_000

def pick(chance, kind):
    found = []
    for directory, below, files in os.walk("."):
        found += [os.path.join(directory, name) for name in sorted(below if kind == "directory" else files)]
    right = os.path.isdir if kind == "directory" else os.path.isfile
    found = [path for path in sorted(found) if right(path) and not os.path.islink(path)]
    return chance.choice(found) if found else None

def fresh(chance):
    parent = chance.choice([".", pick(chance, "directory") or "."])
    return os.path.join(parent, chance.choice(["a", "b", "c", "d", "e", "f", "g"]))

def has_links(top):
    # mv copies a directory of an overlay's lower layer, and can't tell which names in it are one file.
    return any(os.lstat(os.path.join(directory, name)).st_nlink > 1
               for directory, _below, files in os.walk(top) for name in files)

def step(chance):
    what = chance.choice(["write", "write", "append", "truncate", "mkdir", "unlink", "rmtree", "move", "move", "link",
                          "symlink", "chmod", "xattr", "fifo", "sparse", "replace", "swap"])
    file, directory, new = pick(chance, "file"), pick(chance, "directory"), fresh(chance)
    data = chance.randbytes(chance.choice([0, 1, 100, 5000, 70000]))
    number = chance.randrange(1 << 30)
    if what in ("write", "sparse") and os.path.lexists(new) and not os.path.isfile(new):
        return  # opening a FIFO would wait
    if what == "write":
        with open(new, "wb") as out: out.write(data)
    elif what == "append" and file:
        with open(file, "ab") as out: out.write(data)
    elif what == "truncate" and file:
        os.truncate(file, number % 10000)
    elif what == "mkdir":
        os.mkdir(new)
    elif what == "unlink" and file:
        os.unlink(file)
    elif what == "rmtree" and directory:
        shutil.rmtree(directory)
    elif what == "move" and (file or directory):
        source = chance.choice([path for path in (file, directory) if path])
        if os.path.lexists(new) or new.startswith(source + "/") or has_links(source): return
        subprocess.run(["mv", "-T", source, new], check=True)
    elif what == "link" and file:
        os.link(file, new)
    elif what == "symlink":
        os.symlink(chance.choice(["nowhere", "a", "../b", "x" * 100]), new)
    elif what == "chmod" and (file or directory):
        path = chance.choice([path for path in (file, directory) if path])
        # Where mv copies a directory of the lower layer, it leaves it the set-group-ID bit of the one that it is in.
        os.chmod(path, 0o700 | number % 0o7777 & (0o1077 if path == directory else 0o3077))
    elif what == "xattr" and file:
        os.setxattr(file, "user.test", data[:50])
    elif what == "fifo":
        os.mkfifo(new)
    elif what == "sparse":
        with open(new, "wb") as out:
            out.truncate(300000); out.seek(number % 200000); out.write(data[:100])
    elif what == "replace" and file:
        with open(file + ".new", "wb") as out: out.write(data)
        os.rename(file + ".new", file)
    elif what == "swap" and directory:
        shutil.rmtree(directory)
        with open(directory, "wb") as out: out.write(data)

top = os.getcwd()
for seed in map(int, sys.argv[2:]):
    os.chdir(os.path.join(top, str(seed)))
    chance = random.Random(seed)
    for _ in range(int(sys.argv[1])):
        try:
            step(chance)
        except (FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError, shutil.Error):
            pass
    for directory, below, files in os.walk(".", topdown=False):
        for name in [*below, *files]:
            os.utime(os.path.join(directory, name), ns=(TIME, TIME + seed), follow_symlinks=False)
    os.utime(".", ns=(TIME, TIME))
"""


def begin(top: Path, seeds: range) -> None:
    """For each seed the same small tree."""
    for seed in seeds:
        here = top / str(seed)
        for directory in ("a/b/c", "d/e", "f"):
            (here / directory).mkdir(parents=True)
        for name in ("a/a", "a/b/a", "a/b/b", "a/b/c/d", "d/d", "d/e/a", "g"):
            (here / name).write_text(f"{name} at the beginning\n" * 50)
        (here / "a/link").symlink_to("a")
        os.mkfifo(here / "d/fifo")


@pytest.mark.parametrize("first", [1, 1000])
def test_committed_is_the_same_as_done_directly(viewfs: Viewfs, tmp_path: Path, first: int) -> None:
    """In two views, one after the other, each seed a tree of its own; then one commit."""
    served = viewfs.environment.get("VIEWFS_COW_BACKEND") == "fuse"  # which takes its time
    count = int(os.environ.get("VIEWFS_SOAK_TREES", "8" if served else "15"))
    seeds = range(first, first + count)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for name in ("direct", "cow"):
        (tmp_path / name).mkdir()
        begin(tmp_path / name, seeds)
    numbers = [str(seed) for seed in seeds]
    for steps in ("40", "15"):
        command = [sys.executable, str(script), steps, *numbers]
        subprocess.run(command, cwd=tmp_path / "direct", check=True)
        viewfs.sh("--name", "n", "--cow", tmp_path / "cow", script=f"cd {tmp_path}/cow; {' '.join(command)}")
    expected = {seed: snapshot(tmp_path / "direct" / str(seed)) for seed in seeds}
    viewfs("commit", "--session", "n")
    for seed in seeds:
        assert snapshot(tmp_path / "cow" / str(seed)) == expected[seed], f"seed {seed}"
    assert not (viewfs.state / "viewfs").exists(), "nothing differs any more"


def test_states_and_discards(viewfs: Viewfs, tmp_path: Path) -> None:
    """Kept, gone on from, gone back to, and thrown away: each time it is what it was."""
    seeds = range(1, 4 if viewfs.environment.get("VIEWFS_COW_BACKEND") == "fuse" else 11)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tree = tmp_path / "tree"
    tree.mkdir()
    begin(tree, seeds)
    before = snapshot(tree)
    work = f"{sys.executable} {script} 30 {' '.join(map(str, seeds))}"
    steps = f"""
        cd {tree}
        {work}; cp -a . {tmp_path}/first; viewfs checkpoint first
        {work}; cp -a . {tmp_path}/second; viewfs checkpoint second
        {work}
        viewfs at first -- cp -a . {tmp_path}/at-first
        viewfs at second -- cp -a . {tmp_path}/at-second
        viewfs rollback first; cp -a . {tmp_path}/back-to-first
        viewfs rollback second; cp -a . {tmp_path}/back-to-second
        viewfs discard; cp -a . {tmp_path}/discarded
        viewfs diff
    """
    result = viewfs.sh("--cow", tree, script=steps)
    # An overlay does not say which names are one file, so that cp -a makes a file of each.
    assert plain(tmp_path / "at-first") == plain(tmp_path / "first") == plain(tmp_path / "back-to-first")
    assert plain(tmp_path / "at-second") == plain(tmp_path / "second") == plain(tmp_path / "back-to-second")
    assert plain(tmp_path / "first") != plain(tmp_path / "second")
    assert plain(tmp_path / "discarded") == plain(tree)
    assert snapshot(tree) == before
    assert result.out.splitlines()[-1].startswith("discarded: ")


def plain(tree: Path) -> dict[str, object]:
    return {path: (row[0], row[1], row[3], row[4]) for path, row in snapshot(tree).items()}
