"""Access control lists for those who have no number in a view: nobody has less outside after a commit than before."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs
from tests.kernel.cow.conftest import Cow

pytestmark = pytest.mark.needs("setfacl", "getfacl")
BACKENDS = ["overlay", "fuse"]
#: daemon, whom an ordinary user's view has no number for.
STRANGER = ("u:1:r", "user:1:r--")


def set_list(path: Path, *entries: str, default: bool = False) -> None:
    subprocess.run(["setfacl", *(["-d"] if default else []), "-m", ",".join(entries), path], check=True)


def access_list(path: Path) -> list[str]:
    done = subprocess.run(["getfacl", "-cnpE", path], check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.fixture
def listed(tree: Path) -> Path:
    """The tree with lists: on a file, on a directory for what is in it, on a file of several names."""
    set_list(tree / "text", STRANGER[0])
    set_list(tree / "binary", "g:1:rw")
    set_list(tree / "directory", "u:1:rx", default=True)
    set_list(tree / "directory", "u:1:rx")
    set_list(tree / "script", f"u:{os.getuid()}:rwx")
    assert STRANGER[1] in access_list(tree / "text") and "default:user:1:r-x" in access_list(tree / "directory")
    return tree


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_file_keeps_its_list(cow: Cow, listed: Path, backend: str) -> None:
    before = {name: access_list(listed / name) for name in ("text", "binary", "script", "directory")}
    cow.sh("echo four >> text; echo x >> binary; echo exit >> script; touch directory/new", "--cow-backend", backend)
    committed = cow("commit")
    assert committed.out == "committed: 1 added, 3 changed\n" and committed.err == ""
    assert (listed / "text").read_text() == "one\ntwo\nthree\nfour\n" and (listed / "directory/new").exists()
    assert (listed / "binary").stat().st_size == 2562
    assert {name: access_list(listed / name) for name in before} == before
    assert cow.viewfs("ps", "--json").json["ended"] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("who", ["somebody else", "oneself"])
def test_what_a_directory_gives_to_what_is_made_in_it(cow: Cow, tree: Path, backend: str, who: str) -> None:
    number = 1 if who == "somebody else" else os.getuid()
    set_list(tree / "directory", f"u:{number}:rwx", default=True)
    set_list(tree / "directory/deeper", f"u:{number}:rwx", default=True)
    before = [access_list(tree / "directory"), access_list(tree / "directory/deeper")]
    script = """
        echo n > directory/new; mkdir directory/made; echo n > directory/made/file; rm directory/deeper/file
        chmod 700 directory/deeper; chmod 755 directory/deeper
    """
    cow.sh(script, "--cow-backend", backend)
    assert cow("commit").out == "committed: 3 added, 1 deleted\n"
    assert [access_list(tree / "directory"), access_list(tree / "directory/deeper")] == before
    assert (tree / "directory/made/file").read_text() == "n\n"
    assert cow.viewfs("ps", "--json").json["ended"] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_chmod_of_a_file_with_a_list(cow: Cow, listed: Path, backend: str) -> None:
    """Outside it takes the right of all that are named; the list stays, and what is told is what was done."""
    done = cow.sh("chmod 600 text || echo refused; stat -c %a text", "--cow-backend", backend).out
    changes = cow.changes()
    result = cow("commit", check=False)
    mode = (listed / "text").stat().st_mode & 0o777
    assert STRANGER[1] in access_list(listed / "text"), "the list is there still"
    if done == "600\n":
        # The mask of the list is what the group of the mode is (acl(5)).
        assert changes["text"]["aspects"] in (["mode"], ["mode", "xattrs"])
    if result.code == 0:
        assert mode == int(done.split()[-1], 8) and result.out == "committed: 1 changed\n"
    else:
        assert mode == 0o644 and f"{listed}/text" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_commit_inside_of_the_view(cow: Cow, listed: Path, backend: str) -> None:
    """Where nobody can set such a list: it is kept all the same, or the file is named and left; the rest is done."""
    before = {name: access_list(listed / name) for name in ("text", "binary", "directory")}
    script = "echo four >> text; echo n > new; echo n > directory/new; viewfs commit || echo failed: $?"
    result = cow.sh(script, "--cow-backend", backend)
    assert (listed / "new").read_text() == "n\n"
    assert {name: access_list(listed / name) for name in before} == before
    left = set()
    if (listed / "text").read_text() == "one\ntwo\nthree\n":
        left.add("text")
    if not (listed / "directory/new").exists():
        left.add("directory/new")
    assert cow.changes().keys() == left, "what was not done is a change still"
    assert all(f"not committed: {listed}/{name}: " in result.err for name in left)
    assert ("failed: 1" in result.out) == bool(left)
    if left:
        cow("commit")  # from outside, where it can be done
    assert {name: access_list(listed / name) for name in before} == before
    assert (listed / "text").read_text() == "one\ntwo\nthree\nfour\n" and (listed / "directory/new").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_for_somebody_else_made_in_the_view(cow: Cow, tree: Path, backend: str) -> None:
    """It can't be made there; what can't be must not look as if it had been."""
    done = cow.sh("setfacl -m u:1:r text && echo set; echo x > new", "--cow-backend", backend, check=False)
    assert "set" not in done.out.split() and done.code == 0
    assert set(cow.changes()) == {"new"}
    assert cow("commit").out == "committed: 1 added\n"
    assert access_list(tree / "text") == ["user::rw-", "group::r--", "other::r--"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_discard_in_a_running_view(open_view: Callable[..., View], listed: Path, backend: str) -> None:
    """What is put back has the list that it had, or is named."""
    view = open_view("--cow", listed, "--cow-backend", backend)
    show = f"cd {listed}; getfacl -cnpE text directory 2>/dev/null; cat text"
    before = view.sh(show).out
    view.sh(f"cd {listed}; echo four >> text; rm -r directory; rm binary")
    result = view("discard", check=False)
    rows = {os.path.relpath(row["path"], listed) for row in view.json("diff")["changes"]}
    if result.code:
        # Such a list can't be given to anything there: what needs one is named, and is a change still.
        assert rows and result.err.count("\n") == 1 and "may not be read" not in result.err, "all of it may be read"
    else:
        assert view.sh(show).out == before and rows == set()
    view.close()
    view.viewfs("discard", "--session", view.name, check=False)
    again = open_view("--cow", listed, "--cow-backend", backend)
    assert again.sh(show).out == before and again("diff").out == ""
    again.sh(f"echo five >> {listed}/text")
    again("commit")
    assert STRANGER[1] in access_list(listed / "text") and (listed / "text").read_text().endswith("three\nfive\n")


@pytest.mark.parametrize("suffix", [".tar", ".ext4", ""])
def test_a_new_image_names_nobody_wrongly(viewfs: Viewfs, cow: Cow, listed: Path, tmp_path: Path, suffix: str) -> None:
    """Nobody, as who has no number is shown in a view, is not whom the list named: it is kept as it was, or told of."""
    cow.sh("echo x > new")
    target = tmp_path / f"made{suffix}"
    result = cow("commit", "--to", target, check=False)
    if result.code != 0:
        assert result.err.count("\n") == 1 and not target.exists()
        return
    if suffix == ".ext4":
        shown = subprocess.run(["debugfs", "-R", "ea_get -x text system.posix_acl_access", target], capture_output=True)
        found = shown.stdout.decode()
        strange = "ff ff ff ff 04 00 04 00 ff" in found
        kept = "02 00 04 00 01 00 00 00" in found
    else:
        place = target
        if suffix:
            place = tmp_path / "unpacked"
            place.mkdir()
            subprocess.run(["tar", "--acls", "--numeric-owner", "-xf", target, "-C", place], check=True)
        found = " ".join(access_list(place / "text"))
        strange = "4294967295" in found or "65534" in found
        kept = STRANGER[1] in found
    assert not strange, found
    assert kept or "text" in result.err, (found, result)
