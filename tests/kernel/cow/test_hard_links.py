"""Files with several names: what a view does to one of them is told and done alike, and the others stay one file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs
from tests.kernel.cow.conftest import Cow
from tests.kernel.cow.test_interrupted_commit import commit, in_a_child

BACKENDS = ["overlay", "fuse"]


@pytest.fixture
def group(tree: Path, tmp_path: Path) -> Path:
    """Three names of one file in the tree, and one outside of it."""
    (tree / "a").write_text("shared\n")
    for name in ("b", "directory/c"):
        os.link(tree / "a", tree / name)
    os.link(tree / "a", tmp_path / "outer")
    return tree


def names_of(tree: Path, inode: int) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if path.lstat().st_ino == inode}


def told(rows: list[dict[str, object]], tree: Path) -> set[tuple[object, ...]]:
    def short(path: object) -> str | None:
        return None if path is None else os.path.relpath(str(path), tree)

    return {(row["kind"], short(row["from"]), short(row["path"])) for row in rows}


#: What is done; which names the file has afterwards outside; what is told of it.
WORK: dict[str, tuple[str, set[str], set[tuple[object, ...]]]] = {
    "one is renamed": ("mv b moved", {"a", "moved", "directory/c"}, {("renamed", "b", "moved")}),
    "one goes into another directory": (
        "mv directory/c empty/c", {"a", "b", "empty/c"}, {("renamed", "directory/c", "empty/c")},
    ),
    "two are renamed": (
        "mv a x; mv b y", {"x", "y", "directory/c"}, {("renamed", "a", "x"), ("renamed", "b", "y")},
    ),
    "all are renamed": (
        "mv a x; mv b y; mv directory/c z", {"x", "y", "z"},
        {("renamed", "a", "x"), ("renamed", "b", "y"), ("renamed", "directory/c", "z")},
    ),
    "one is removed": ("rm b", {"a", "directory/c"}, {("deleted", None, "b")}),
    "one is renamed, another removed": (
        "mv b moved; rm a", {"moved", "directory/c"}, {("renamed", "a or b", "moved"), ("deleted", None, "b or a")},
    ),
    "one is written to": ("echo more >> b", {"a", "directory/c"}, {("changed", None, "b")}),
    "one takes the place of another file": (
        "mv b script", {"a", "script", "directory/c"}, {("deleted", None, "b"), ("changed", None, "script")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", WORK)
def test_diff_and_commit_tell_the_same(cow: Cow, group: Path, tmp_path: Path, what: str, backend: str) -> None:
    script, names, expected = WORK[what]
    inode = (group / "a").stat().st_ino
    cow.sh(script, "--cow-backend", backend)
    rows = told(list(cow.changes().values()), group)
    if what == "one takes the place of another file":  # one or the other is the same to who reads it
        assert rows in (expected, {("renamed", "b", "script")}), rows
    elif what == "one is renamed, another removed":  # which of the two can't be told
        assert len(rows) == 2 and {("deleted", None, "a"), ("renamed", "b", "moved")} in (
            rows, {(kind, *({"a": "b", "b": "a"}.get(str(name), name) for name in names)) for kind, *names in rows}
        )  # fmt: skip
    else:
        assert {row for row in rows if row[2] != "directory"} == expected
    would = cow("commit", "--dry-run").out
    assert all(f"{group}/{row[2]}" in would for row in rows)
    answer = cow("commit", "--json").json
    assert told(answer["changes"], group) == rows and answer["failed"] == []
    assert names_of(group, inode) == names, "the names that were not touched, and those moved, are one file"
    assert (tmp_path / "outer").stat().st_nlink == len(names) + 1
    assert (tmp_path / "outer").read_text() == "shared\n"
    assert cow.viewfs("ps", "--json").json["ended"] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_writing_to_one_name_is_said(cow: Cow, group: Path, backend: str) -> None:
    """What the others have is not what an untouched tree would give them: people are told before they commit."""
    cow.sh("echo more >> b", "--cow-backend", backend)
    (line,) = (line for line in cow("diff", "--stat").out.splitlines() if line.startswith("changed"))
    assert f"{group}/b " in line and "other names keep" in line
    assert "links" in cow.changes()["b"]["aspects"]
    assert cow("commit").code == 0
    assert [(group / name).read_text() for name in ("a", "b", "directory/c")] == [
        "shared\n", "shared\nmore\n", "shared\n"
    ]  # fmt: skip


SHOW = (
    "for f in a b directory/c new moved; do test -e $f || continue; stat -c '%n %a' $f; cat $f;"
    " getfattr -d $f 2>/dev/null || true; done"
)
AS_SHOWN = {
    "a mode": "chmod 600 b",
    "an attribute": "setfattr -n user.colour -v blue b",
    "a time": "touch -d @1500000000 b",
    "a new name of an old file": "ln a new",
    "a new name, and written to": "ln a new; echo more >> new",
    "written to and renamed": "echo more >> b; mv b moved",
    "renamed and written to": "mv b moved; echo more >> moved",
    "renamed, and the other written to": "mv b moved; echo more >> a",
    "replaced as editors do": "echo other > tmp; mv tmp b",
    "removed and made again": "rm b; echo again > b",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", AS_SHOWN)
def test_afterwards_it_is_as_the_view_showed(viewfs: Viewfs, group: Path, what: str, backend: str) -> None:
    cow = Cow(viewfs, group)
    shown = cow.sh(f"{AS_SHOWN[what]}; {SHOW}", "--cow-backend", backend).out
    before = cow.sh(SHOW, "--cow-backend", backend).out
    assert before == shown and "a 644\n" in shown
    cow("commit")
    found = viewfs("run", "--", "bash", "-euc", f"cd {group}; {SHOW}").out
    assert found == shown
    assert cow.viewfs("ps", "--json").json["ended"] == []


def test_a_name_that_was_moved_into_a_directory_made_anew(cow: Cow, tree: Path) -> None:
    """It is a name of the same file outside, and in the layer no change any more."""
    (tree / "other").hardlink_to(tree / "text")
    cow.sh("rm -r directory; mkdir directory; mv text directory/moved")
    cow("commit")
    assert (tree / "directory/moved").samefile(tree / "other")
    assert not (cow.viewfs.state / "viewfs").exists(), "nothing differs any more"


@pytest.mark.parametrize(
    "work", ["ln a new", "ln script new", "mv b moved", "rm b", "chmod 600 b", "touch -d 2020-01-01 b"]
)
def test_a_commit_of_one_name_is_no_news_for_the_others(cow: Cow, group: Path, work: str) -> None:
    """All names of a file have one change time, which linking and removing change."""
    cow.sh(f"{work}; echo kept > kept")
    (name,) = {"new", "moved", "b"} & set(cow.changes())
    cow("commit", group / name, *([group / "b"] if name == "moved" else []))
    cow.sh("echo x > a; echo x > directory/c; echo x > script")
    cow("commit")
    assert (group / "a").read_text() == (group / "directory/c").read_text() == (group / "script").read_text() == "x\n"


def test_somebody_elses_change_of_a_file_is_still_news_then(cow: Cow, group: Path) -> None:
    cow.sh("ln a new; echo kept > kept")
    cow("commit", group / "new")
    (group / "b").write_text("outside\n")
    cow.sh("echo x > a")
    assert "a: it was changed outside too" in cow("commit", check=False).err
    assert (group / "a").read_text() == "outside\n"


def test_a_change_outside_before_is_still_news(cow: Cow, group: Path) -> None:
    cow.sh("rm b; echo x > a")
    (group / "directory/c").chmod(0o600)  # of the same file
    assert "b: it was changed outside too" in cow("commit", group / "b", check=False).err
    cow("commit", "--force", group / "b")
    assert "a: it was changed outside too" in cow("commit", check=False).err


def test_a_commit_that_was_undone_is_no_news(cow: Cow, group: Path) -> None:
    """It had links made while it staged."""
    cow.sh("ln a new; echo x > directory/c; echo y > script")
    before = (group / "a").stat().st_ctime_ns

    def work() -> None:
        from viewfs.cow.commit.commit import Commit

        def full(_commit: Commit) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        Commit._check_unchanged = full  # type: ignore[method-assign]
        commit(cow)

    assert in_a_child(work) == 1 and not list(group.rglob(".viewfs-*"))
    assert (group / "a").stat().st_ctime_ns > before and not (group / "new").exists()
    cow("commit")
    assert (group / "directory/c").read_text() == "x\n" and (group / "new").samefile(group / "a")
