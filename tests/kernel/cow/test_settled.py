"""What was committed or discarded in a view that goes on is no change of its any more, whatever is done outside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs
from tests.kernel.cow.conftest import Cow

OpenView = Callable[..., View]


@pytest.fixture(params=["overlay", "fuse"])
def open_view(request: pytest.FixtureRequest, viewfs: Viewfs, open_view: OpenView) -> OpenView:
    viewfs.environment["VIEWFS_COW_BACKEND"] = request.param
    return open_view


def ended(view: View, tree: Path) -> Cow:
    """What the view has left, which has ended."""
    assert view.close()[0] == 0
    return Cow(view.viewfs, tree, view.name)


def replaced(path: Path, text: str) -> None:
    """As editors and git do it."""
    new = path.with_name("new.tmp")
    new.write_text(text)
    new.rename(path)


@pytest.mark.parametrize("settle", ["discard", "commit"])
@pytest.mark.parametrize("replace", [Path.write_text, replaced])
def test_a_file_that_is_edited_outside_afterwards(
    open_view: OpenView, tree: Path, settle: str, replace: Callable[[Path, str], None]
) -> None:
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; echo view > text; echo x > directory/new")
    view(settle, tree / "text", tree / "directory")
    replace(tree / "text", "outside\n")
    assert view.json("diff")["changes"] == []
    view.sh(f"echo more > {tree}/more")
    assert view("commit", "--force").out == "committed: 1 added\n"
    assert (tree / "text").read_text() == "outside\n"
    cow = ended(view, tree)
    assert cow.sh("cat text").out == "outside\n" and not (view.viewfs.state / "viewfs").exists()


@pytest.mark.parametrize("settle", ["discard", "commit"])
def test_a_file_that_the_view_changes_again(open_view: OpenView, tree: Path, settle: str) -> None:
    view = open_view("--cow", tree)
    view.sh(f"echo view > {tree}/text")
    view(settle, tree / "text")
    (tree / "text").write_text("outside\n")
    view.sh(f"echo again > {tree}/text")
    refused = view("commit", check=False)
    assert refused.code == 1 and "text: it was changed outside too" in refused.err
    cow = ended(view, tree)
    assert cow("commit", "--force").out == "committed: 1 changed\n" and (tree / "text").read_text() == "again\n"


def test_a_deleted_file_that_comes_again(open_view: OpenView, tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; rm text; rm -r directory")
    view("commit")
    (tree / "text").write_text("outside\n")
    (tree / "directory/deeper").mkdir(parents=True)
    (tree / "directory/file").write_text("outside\n")
    assert view.json("diff")["changes"] == []
    assert view("commit").out == "" and (tree / "text").exists()
    cow = ended(view, tree)
    assert cow.sh("cat text directory/file").out == "outside\n" * 2


def test_a_file_that_is_removed_outside(open_view: OpenView, tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; echo x > text; mkdir -p new/deep; echo x > new/deep/file; echo x > kept")
    view("commit")
    (tree / "text").unlink()
    (tree / "new/deep/file").unlink()
    (tree / "new/deep").rmdir()
    (tree / "new").rmdir()
    assert view.json("diff")["changes"] == []
    view("commit", "--force")
    cow = ended(view, tree)
    assert cow.sh("ls").out.split() == ["binary", "directory", "empty", "kept", "link", "script"]


def test_a_directory_that_is_removed_outside_and_has_something_new(open_view: OpenView, tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; mkdir new; echo x > new/file")
    view("commit")
    (tree / "new/file").unlink()
    (tree / "new").rmdir()
    view.sh(f"echo y > {tree}/new/more")
    assert {row["path"] for row in view.json("diff")["changes"]} == {
        f"{tree}/new{name}" for name in ("", "/file", "/more")
    }
    view("commit")
    assert (tree / "new/file").read_text() == "x\n" and (tree / "new/more").read_text() == "y\n"


def test_what_comes_into_a_directory_that_was_committed(open_view: OpenView, tree: Path) -> None:
    """The view does not show it while it runs, and has not deleted it."""
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; mkdir -p new/deep; touch new/gone new/kept new/deep/gone new/deep/kept")
    view("commit")
    (tree / "new/outside").write_text("outside\n")
    (tree / "new/deep/outside").write_text("outside\n")
    os.rename(tree / "script", tree / "new/moved")
    view.sh(f"cd {tree}/new; rm gone deep/gone; touch more")
    found = {os.path.relpath(row["path"], tree): row["kind"] for row in view.json("diff", str(tree / "new"))["changes"]}
    assert found == {"new/gone": "deleted", "new/deep/gone": "deleted", "new/more": "added"}
    cow = ended(view, tree)
    assert cow.sh("ls new new/deep").out.split() == [
        *("new:", "deep", "kept", "more", "moved", "outside"),
        *("new/deep:", "kept", "outside"),
    ]
    assert cow("commit").out == "committed: 1 added, 2 deleted\n"
    assert {path.name for path in (tree / "new").rglob("*")} == {"deep", "kept", "more", "moved", "outside"}


def test_a_directory_whose_mode_is_changed_outside_afterwards(open_view: OpenView, tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; chmod 750 directory; mkdir -m 750 new; echo x > directory/new")
    view("commit")
    (tree / "directory").chmod(0o700)
    (tree / "new").chmod(0o700)
    view.sh(f"cd {tree}; echo x > directory/more; echo x > new/more")
    assert view("commit").out == "committed: 2 added\n"
    assert {(tree / name).stat().st_mode & 0o777 for name in ("directory", "new")} == {0o700}


def test_what_was_excluded_is_still_a_change(open_view: OpenView, tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; mkdir new; echo x > new/file; echo x > new/left.o; echo x > text; rm binary")
    view("commit", "--exclude", "*.o", "--exclude", "binary")
    (tree / "text").write_text("outside\n")
    assert {os.path.relpath(row["path"], tree) for row in view.json("diff")["changes"]} == {"new/left.o", "binary"}
    view("commit")
    assert (tree / "new/left.o").exists() and not (tree / "binary").exists()
    assert (tree / "text").read_text() == "outside\n"


def test_a_rename_brings_other_files_to_a_name_that_was_settled(open_view: OpenView, tree: Path) -> None:
    """By their times they are old, and they are a change of the view all the same."""
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; mkdir one two; echo 1 > one/file; echo 2 > two/file")
    view("commit")
    view.sh(f"cd {tree}; mv one aside; mv two one; mv aside two")
    assert view.json("diff")["changes"]
    view("commit")
    assert (tree / "one/file").read_text() == "2\n" and (tree / "two/file").read_text() == "1\n"


def test_what_is_at_odds_is_left_in_the_layer(open_view: OpenView, tree: Path) -> None:
    """A damaged file of marks is as none."""
    view = open_view("--cow", tree)
    view.sh(f"echo view > {tree}/text")
    view("commit")
    (marks,) = (view.viewfs.state / "viewfs").rglob("settled.json")
    for damaged in ("", "[1]", '{"text": 5}', '{"text": [null]}', "[" * 100_000, "\0\xff"):
        marks.write_text(damaged, encoding="latin-1")
        assert view.json("diff")["changes"] == []
    (tree / "text").write_text("outside\n")
    assert [row["path"] for row in view.json("diff")["changes"]] == [str(tree / "text")]


def test_discard_brings_in_what_is_there_now(open_view: OpenView, tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; echo view > text; mkdir new; rm script")
    view("commit")
    (tree / "text").write_text("outside\n")
    (tree / "new/file").write_text("outside\n")
    (tree / "script").write_text("outside\n")
    assert view.sh(f"cd {tree}; cat text; ls new").out == "view\n"
    view("discard", tree)
    assert view.sh(f"cd {tree}; cat text new/file script").out == "outside\n" * 3
    assert view.json("diff")["changes"] == []


@pytest.mark.parametrize("settled", ["echo n > d/n", "chmod 700 d", "true"])
@pytest.mark.parametrize("command", ["commit", "discard"])
def test_a_directory_that_is_made_anew_is_another(open_view: OpenView, tree: Path, settled: str, command: str) -> None:
    """It gets the number of the old one, as a rule."""
    for number in range(4):
        (tree / f"d{number}").mkdir()
        (tree / f"d{number}/x").write_text("x")
    view = open_view("--cow", tree)
    for number in range(4):
        view.sh(f"cd {tree}; {settled.replace(' d', f' d{number}')}; touch d{number}/y")
        view(command)
        view.sh(f"cd {tree}; rm -r d{number}; mkdir d{number}")
        changes = {os.path.relpath(row["path"], tree): row["kind"] for row in view.json("diff")["changes"]}
        assert changes.pop(f"d{number}/x") == "deleted"
        view("commit")
        assert os.listdir(tree / f"d{number}") == []


def test_what_is_appended_to_what_changed_outside_a_moment_ago(open_view: OpenView, tree: Path) -> None:
    texts = ("longer than it was: three lines and more\n", "", "x\n")
    for number in range(len(texts)):
        (tree / f"text{number}").write_text("one\ntwo\n")
    view = open_view("--cow", tree)
    view.sh(f"cat {tree}/text*")
    for number, text in enumerate(texts):
        (tree / f"text{number}").write_text(text)
        view.sh(f"echo four >> {tree}/text{number}")
        assert view.sh(f"cat {tree}/text{number}").out == f"{text}four\n"


@pytest.mark.parametrize("outside", ["rm -r directory", "rm -r directory; ln -s empty directory"])
def test_what_the_view_made_in_a_directory_that_is_removed_outside(
    open_view: OpenView, tree: Path, outside: str
) -> None:
    """The kernel's overlay lists nothing of it any more, and has it all the same."""
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}/directory; ls; echo mine > new; mkdir sub; echo mine > sub/file")
    subprocess.run(["sh", "-ec", outside], cwd=tree, check=True)
    told = {os.path.relpath(row["path"], tree) for row in view.json("diff")["changes"]}
    assert told >= {"directory/new", "directory/sub/file"}
    view("commit", "--force")
    assert (tree / "directory/new").read_text() == (tree / "directory/sub/file").read_text() == "mine\n"
    assert view.json("diff")["changes"] == []
