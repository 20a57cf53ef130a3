"""Our own copy-on-write file system for root, who has all ids: files are given away, and each makes what is theirs."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.test_as_root import owners, viewfs

pytestmark = [
    pytest.mark.needs("setpriv"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may map all ids"),
]
OPTIONS = ("--as-root", "--name", "n", "--cow-backend", "fuse", "--cow")
AS_1001 = "setpriv --reuid=1001 --regid=1002 --clear-groups"


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="viewfs-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def tree(place: Path) -> Path:
    top = place / "tree"
    top.mkdir()
    (top / "open").mkdir()
    (top / "open").chmod(0o1777)
    (top / "shared").mkdir()
    os.chown(top / "shared", 7, 8)
    (top / "shared").chmod(0o2775)
    for name, (uid, gid) in GIVEN.items():
        (top / name).write_text("before\n")
        os.chown(top / name, uid, gid)
    return top


GIVEN = {"mine": (0, 0), "theirs": (1001, 1002), "high": (70_000, 3_000_000_000), "given": (0, 0)}


def in_view(place: Path, tree: Path, script: str) -> str:
    return viewfs(place, "run", *OPTIONS, tree, "--", "bash", "-euc", f"cd {tree}; {script}")


def test_files_are_given_away(place: Path, tree: Path) -> None:
    before = owners(tree)
    script = """
        chown 5:6 given; chown 70001:70002 mine; chown -h 1001 high; chgrp 3 theirs; mkdir made; chown 9:10 made
        ln -s nowhere link; chown -h 11:12 link; mkfifo fifo; chown 13:14 fifo
        stat -c '%n %u:%g' given mine high theirs made link fifo
    """
    shown = in_view(place, tree, script).splitlines()[-7:]
    expected = {
        "given": (5, 6), "mine": (70001, 70002), "high": (1001, 3_000_000_000), "theirs": (1001, 3), "made": (9, 10),
        "link": (11, 12), "fifo": (13, 14),
    }  # fmt: skip
    assert shown == [f"{name} {uid}:{gid}" for name, (uid, gid) in expected.items()]
    assert owners(tree) == before
    told = viewfs(place, "diff", "--session", "n")
    assert f"changed  {tree}/given  owner 0:0 → 5:6\n" in told and "owner 1001:1002 → 1001:3\n" in told
    viewfs(place, "commit", "--session", "n")
    found = {name: ((tree / name).lstat().st_uid, (tree / name).lstat().st_gid) for name in expected}
    assert found == expected


def test_another_user_makes_files_of_their_own(place: Path, tree: Path) -> None:
    """And is refused what the modes refuse."""
    script = f"""
        {AS_1001} bash -euc 'echo n > open/new; mkdir open/dir; ln -s x open/link; mkfifo open/fifo; echo more >> theirs
            echo no >> mine || echo refused; echo no > no || echo refused; rm -f shared/x; chmod 600 theirs
            chown 0 theirs || echo refused; cat theirs' 2>/dev/null
        {AS_1001} rm -f mine 2>/dev/null || echo refused
        stat -c '%n %u:%g %a' open/* theirs
    """
    shown = in_view(place, tree, script).splitlines()
    assert shown[-12:] == [
        "refused", "refused", "refused", "before", "more", "refused",
        *(f"open/{name} 1001:1002 {mode}" for name, mode in (("dir", 755), ("fifo", 644), ("link", 777), ("new", 644))),
        "theirs 1001:1002 600",
    ][-12:]  # fmt: skip
    viewfs(place, "commit", "--session", "n")
    for name in ("new", "dir", "link", "fifo"):
        status = (tree / "open" / name).lstat()
        assert (status.st_uid, status.st_gid) == (1001, 1002), name
    assert (tree / "theirs").read_text() == "before\nmore\n" and owners(tree)["theirs"] == (1001, 1002)
    assert stat.S_IMODE((tree / "theirs").stat().st_mode) == 0o600 and (tree / "mine").read_text() == "before\n"


def test_set_group_id_directories(place: Path, tree: Path) -> None:
    """What is made in one is its group's, and directories go on so; what is run keeps its bits until it is changed."""
    script = """
        setpriv --reuid=1001 --regid=1002 --groups=8 bash -euc 'echo n > shared/new; mkdir shared/dir
            echo m > shared/dir/m'
        mkdir shared/roots; mkdir own; chgrp 15 own; chmod 2755 own; touch own/file
        chmod 4755 theirs; stat -c %a theirs; setpriv --reuid=1001 --regid=1002 --clear-groups sh -c 'echo x >> theirs'
        stat -c %a theirs; chmod 6755 high; chown 1:1 high; stat -c %a high
    """
    assert in_view(place, tree, script).splitlines()[-3:] == ["4755", "755", "755"]
    viewfs(place, "commit", "--session", "n")
    expected = {
        "new": (1001, 8, 0o644), "dir": (1001, 8, 0o2755), "dir/m": (1001, 8, 0o644), "roots": (0, 8, 0o2755),
        "../own": (0, 15, 0o2755), "../own/file": (0, 15, 0o644), "": (7, 8, 0o2775),
    }  # fmt: skip
    found = {}
    for name in expected:
        status = (tree / "shared" / name).stat()
        found[name] = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    assert found == expected


def test_what_is_changed_stays_whose_it_is(place: Path, tree: Path) -> None:
    """As with the kernel's overlay: copying up gives nothing to root."""
    before = owners(tree)
    script = "for f in mine theirs high given; do echo after >> $f; done; touch shared; chmod 2770 shared"
    in_view(place, tree, script + "; stat -c '%u:%g' theirs high")
    viewfs(place, "commit", "--session", "n")
    assert owners(tree) == before and (tree / "high").read_text() == "before\nafter\n"
    assert stat.S_IMODE((tree / "shared").stat().st_mode) == 0o2770
