"""`viewfs commit` and `viewfs discard`: what was done in the view is done outside, or is not there any more."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View
from tests.kernel.cow.conftest import Cow, snapshot

WORK = """
    printf 'one\\n2\\nthree\\n' > text
    rm directory/gone
    mv directory/deeper/file directory/moved
    mkdir new; echo n > new/file; ln new/file new/other; mkfifo new/fifo; ln -s nowhere new/link
    mkdir -m 2750 new/mode; chmod 4711 script
    ln -sf binary link
    setfattr -n user.colour -v blue text
    test -n "${VIEWFS_COW_BACKEND:-}" || setfacl -m u:$(id -u):r new/file  # FUSE has no access control lists
    truncate -s 1M new/sparse; printf end | dd of=new/sparse bs=1 seek=500K conv=notrunc status=none
    rm -r empty; echo file > empty
    ln script hardlink
    chmod 500 directory
    find . -exec touch -h -d '2020-01-02 03:04:05.123456789' {} +
"""


def direct(tree: Path, script: str) -> Path:
    """A copy of the tree in which the same was done without a view."""
    copy = tree.parent / "direct"
    subprocess.run(["cp", "-a", tree, copy], check=True)
    subprocess.run(["bash", "-euc", script], cwd=copy, check=True)
    return copy


def test_a_commit_is_the_same_as_having_done_it_directly(cow: Cow, tree: Path) -> None:
    expected = snapshot(direct(tree, WORK))
    before = snapshot(tree)
    cow.sh(WORK)
    assert snapshot(tree) == before
    planned = cow("commit", "--dry-run").out
    assert snapshot(tree) == before and "would be" not in planned and "would commit: " in planned
    committed = cow("commit").out
    assert committed == planned.splitlines()[-1].replace("would commit", "committed") + "\n"
    assert snapshot(tree) == expected
    assert (tree / "new/sparse").stat().st_blocks * 512 < 100_000
    assert not (cow.viewfs.state / "viewfs").exists(), "nothing is left of the layer"


def test_in_a_running_view(open_view: Callable[..., View], tree: Path) -> None:
    """Programs that have the tree open go on; what they do afterwards is the next change."""
    expected = snapshot(direct(tree, WORK))
    view = open_view("--cow", tree)
    view.sh(f"cd {tree}; {WORK}")
    inside = f"cd {tree}; exec 3>>new/file; viewfs commit; echo more >&3; cat new/file; viewfs diff --name-only"
    out = view.sh(inside).out
    assert out.startswith("committed: ") and out.endswith(f"\nn\nmore\n{tree}/new/file\n{tree}/new/other\n")
    assert snapshot(tree) == expected
    assert view("commit").out == "committed: 2 changed\n"
    assert (tree / "new/file").read_text() == (tree / "new/other").read_text() == "n\nmore\n"
    assert (tree / "new/file").stat().st_ino == (tree / "new/other").stat().st_ino
    view.sh(f"rm {tree}/new/file")
    assert view("commit").out == "committed: 1 deleted\n" and not (tree / "new/file").exists()


def test_only_the_paths_named(cow: Cow, tree: Path) -> None:
    cow.sh("echo x > text; echo x > directory/new; rm directory/gone; mkdir -p a/b; echo x > a/b/c; echo y > a/d")
    assert cow("commit", tree / "directory").out == "committed: 1 added, 1 deleted\n"
    assert (tree / "directory/new").exists() and not (tree / "a").exists()
    assert cow("commit", tree / "a/b/c").out == "committed: 1 added\n"
    assert (tree / "a/b/c").read_text() == "x\n" and not (tree / "a/d").exists()
    assert (tree / "text").read_text() == "one\ntwo\nthree\n"
    assert set(cow.changes()) == {"text", "a/d"}
    cow("commit")
    assert (tree / "text").read_text() == "x\n" and (tree / "a/d").read_text() == "y\n"


def test_one_name_of_a_deleted_directory(cow: Cow, tree: Path) -> None:
    cow.sh("rm -r directory")
    cow("commit", tree / "directory/gone")
    assert not (tree / "directory/gone").exists() and (tree / "directory/deeper/file").exists()
    cow("commit")
    assert not (tree / "directory").exists()


def change_outside(tree: Path) -> None:
    (tree / "text").write_text("changed outside\n")
    (tree / "directory/gone").write_text("this too\n")
    (tree / "binary").unlink()


def test_what_was_changed_outside_too_is_refused(cow: Cow, tree: Path) -> None:
    cow.sh("echo inside > text; rm directory/gone; echo inside >> binary; echo x > script; cat binary > /dev/null")
    change_outside(tree)
    before = snapshot(tree)
    refused = cow("commit", check=False)
    assert refused.code == 1 and snapshot(tree) == before
    assert f"{tree}/binary: it was removed outside" in refused.err and "--force" in refused.err
    assert f"{tree}/text: it was changed outside too" in refused.err
    assert f"{tree}/directory/gone: it was changed outside too" in refused.err
    assert cow("commit", tree / "script").out == "committed: 1 changed\n"
    assert (tree / "script").read_text() == "x\n"


def test_force(cow: Cow, tree: Path) -> None:
    cow.sh("echo inside > text; rm directory/gone; echo inside > binary")
    change_outside(tree)
    cow("commit", "--force")
    assert (tree / "text").read_text() == "inside\n" and (tree / "binary").read_text() == "inside\n"
    assert not (tree / "directory/gone").exists()
    assert not (cow.viewfs.state / "viewfs").exists()


def test_theirs_are_kept(cow: Cow, tree: Path) -> None:
    cow.sh("echo inside > text; rm directory/gone; echo inside > binary; rm -r empty; echo x > empty")
    change_outside(tree)
    (tree / "empty/new").write_text("theirs")
    cow("commit", "--keep-theirs")
    assert (tree / "text").read_text() == "inside\n"
    assert (tree / "text.viewfs-theirs").read_text() == "changed outside\n"
    assert (tree / "directory/gone.viewfs-theirs").read_text() == "this too\n"
    assert (tree / "empty").read_text() == "x\n" and (tree / "empty.viewfs-theirs/new").read_text() == "theirs"
    cow.sh("echo again > text")
    (tree / "text").write_text("outside again\n")
    cow("commit", "--keep-theirs")
    assert (tree / "text.viewfs-theirs.2").read_text() == "outside again\n"


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o7777)


@pytest.mark.parametrize("inside", ["true", "chmod 755 directory; chmod 711 directory"])
def test_a_directory_that_was_closed_outside(cow: Cow, tree: Path, inside: str) -> None:
    """The layer has the directory, with the mode that it had, as soon as anything in it is changed."""
    (tree / "directory").chmod(0o755)
    cow.sh(f"echo new > directory/new; rm directory/gone; {inside}")
    (tree / "directory").chmod(0o700)
    kept = cow("commit", check=False)
    assert kept.code == 1 and f"{tree}/directory: its mode, owner or attributes were changed outside too" in kept.err
    assert kept.out == "committed: 1 added, 1 deleted\n"
    assert mode(tree / "directory") == "0o700"
    assert (tree / "directory/new").exists() and not (tree / "directory/gone").exists()
    assert cow.changes()["directory"]["aspects"] == ["mode"], "that is left"
    assert cow("commit", check=False).code == 1 and mode(tree / "directory") == "0o700"
    cow("commit", "--force")
    assert mode(tree / "directory") == ("0o755" if inside == "true" else "0o711")
    assert not (cow.viewfs.state / "viewfs").exists()


def test_what_was_written_in_a_directory_that_was_closed_outside(cow: Cow, tree: Path) -> None:
    """Both are at odds, and both are named and kept."""
    cow.sh("echo inside > directory/gone")
    (tree / "directory").chmod(0o700)
    (tree / "directory/gone").write_text("precious\n")
    refused = cow("commit", check=False)
    assert refused.code == 1 and f"{tree}/directory/gone: it was changed outside too" in refused.err
    assert (tree / "directory/gone").read_text() == "precious\n"
    cow("commit", "--keep-theirs", check=False)
    assert (tree / "directory/gone").read_text() == "inside\n"
    assert (tree / "directory/gone.viewfs-theirs").read_text() == "precious\n"


def test_a_part_is_committed_of_what_was_changed_outside(cow: Cow, tree: Path) -> None:
    """The rest is at odds as before."""
    (tree / "directory").chmod(0o755)
    cow.sh("echo 2 > directory/gone; echo 2 > directory/deeper/file; echo 2 > text")
    (tree / "directory").chmod(0o700)
    (tree / "directory/deeper/file").unlink()
    cow("commit", tree / "directory/gone")
    for options in ((), ("--exclude", "text")):
        refused = cow("commit", *options, check=False)
        assert refused.code == 1 and f"{tree}/directory/deeper/file: it was removed outside" in refused.err
    cow("commit", tree / "text")
    assert mode(tree / "directory") == "0o700" and not (tree / "directory/deeper/file").exists()


def test_the_time_of_a_directory_in_which_something_was_done_later(cow: Cow, tree: Path) -> None:
    cow.sh("touch -d 2020-01-01 empty; touch directory/new; mkdir made; touch -d 2021-01-01 made")
    (tree / "directory/outside").touch()
    later = (tree / "directory").stat().st_mtime_ns
    cow("commit")
    assert (tree / "directory").stat().st_mtime_ns >= later
    assert [(tree / name).stat().st_mtime_ns // 10**9 for name in ("empty", "made")] == [1577836800, 1609459200]


@pytest.mark.parametrize("what", ["a directory", "two that are swapped", "the whole tree"])
@pytest.mark.parametrize("inside", ["echo inside > directory/gone", "rm directory/gone"])
def test_a_directory_that_was_replaced_outside_by_one_with_older_files(
    cow: Cow, tree: Path, tmp_path: Path, what: str, inside: str
) -> None:
    """Nothing in it was changed since, and yet it is none of what the view has changed."""
    if not os.major(tree.stat().st_dev):
        pytest.skip("files have no lasting numbers here")
    other = tmp_path / "other"
    for place in (other / "directory", tree / "second"):
        place.mkdir(parents=True)
        (place / "gone").write_text("precious\n")
    cow.sh(inside)
    if what == "the whole tree":
        tree.rename(tmp_path / "old")
        other.rename(tree)
    elif what == "a directory":
        (tree / "directory").rename(tmp_path / "old")
        (other / "directory").rename(tree / "directory")
    else:
        (tree / "directory").rename(tmp_path / "old")
        (tree / "second").rename(tree / "directory")
        (tmp_path / "old").rename(tree / "second")
    refused = cow("commit", check=False)
    assert refused.code == 1 and f"{tree}/directory/gone: its directory is another one outside" in refused.err
    assert (tree / "directory/gone").read_text() == "precious\n"
    cow("commit", "--keep-theirs")
    assert (tree / "directory/gone.viewfs-theirs").read_text() == "precious\n"


@pytest.mark.parametrize("outside", ["rm -r directory", "mv directory moved"])
def test_a_directory_that_was_removed_outside(cow: Cow, tree: Path, outside: str) -> None:
    """It does not come back as what is left of it."""
    cow.sh("echo new > directory/new; rm directory/gone; mkdir fresh; echo new > fresh/file")
    subprocess.run(["sh", "-ec", outside], cwd=tree, check=True)
    before = snapshot(tree)
    refused = cow("commit", check=False)
    assert refused.code == 1 and f"{tree}/directory: it was removed outside" in refused.err
    assert "fresh" not in refused.err and snapshot(tree) == before
    cow("commit", "--force")
    assert (tree / "directory/new").exists() and (tree / "fresh/file").exists()


def test_a_directory_in_which_something_came_outside(cow: Cow, tree: Path) -> None:
    """Its change time has changed, and nothing else of its own."""
    cow.sh("echo new > directory/new; touch directory/deeper/other")
    (tree / "directory/theirs").write_text("theirs\n")
    (tree / "directory/deeper/file").unlink()
    cow("commit")
    assert {path.name for path in (tree / "directory").rglob("*")} == {"new", "theirs", "gone", "deeper", "other"}


def test_a_mode_that_was_changed_outside_too(cow: Cow, tree: Path) -> None:
    """Of a file that is the same otherwise: the other one is kept."""
    (tree / "text").chmod(0o644)
    cow.sh("chmod 755 text")
    (tree / "text").chmod(0o600)
    assert cow("commit", check=False).code == 1 and mode(tree / "text") == "0o600"
    cow("commit", "--keep-theirs")
    assert mode(tree / "text") == "0o755" and mode(tree / "text.viewfs-theirs") == "0o600"


def test_a_file_that_came_outside_in_a_deleted_directory(cow: Cow, tree: Path) -> None:
    cow.sh("rm -r directory")
    (tree / "directory/deeper/new").write_text("theirs")
    refused = cow("commit", check=False)
    assert refused.code == 1 and "directory/deeper" in refused.err
    assert (tree / "directory/deeper/new").read_text() == "theirs"


def test_what_changed_outside_and_not_inside_is_no_conflict(cow: Cow, tree: Path) -> None:
    cow.sh("echo inside > script; echo n > directory/new")
    change_outside(tree)
    cow("commit")
    assert (tree / "script").read_text() == "inside\n" and (tree / "text").read_text() == "changed outside\n"


def test_the_same_change_on_both_sides_is_none(cow: Cow, tree: Path) -> None:
    cow.sh("echo same > text; touch -d 2020-01-01 text")
    (tree / "text").write_text("same\n")
    subprocess.run(["touch", "-d", "2020-01-01", tree / "text"], check=True)
    assert cow.changes() == {} and cow("commit").code == 0


def test_a_second_commit_finds_no_conflict_with_the_first(open_view: Callable[..., View], tree: Path) -> None:
    view = open_view("--cow", tree)
    for number in range(3):
        view.sh(f"echo {number} > {tree}/text; echo {number} > {tree}/new{number}")
        assert view("commit", *([tree / "text"] if number == 1 else [])).code == 0
        assert (tree / "text").read_text() == f"{number}\n"
    (tree / "text").write_text("outside\n")
    view.sh(f"echo inside > {tree}/text")
    assert view("commit", check=False).code == 1


def test_hard_links(cow: Cow, tree: Path) -> None:
    """New names of a file that was there, of one that was changed, and of one that only got another mode."""
    cow.sh("ln text a; ln binary b; echo x >> binary; ln script c; chmod 700 script; ln script directory/d")
    assert cow.changes()["b"]["links"] == [f"{tree}/binary"]
    cow("commit")
    inode = {name: (tree / name).stat().st_ino for name in ("text", "a", "binary", "b", "script", "c", "directory/d")}
    assert inode["text"] == inode["a"] and inode["binary"] == inode["b"]
    assert inode["script"] == inode["c"] == inode["directory/d"] != inode["text"]
    assert (tree / "script").stat().st_mode & 0o777 == 0o700


def test_ten_gibibytes_of_hole(cow: Cow, tree: Path) -> None:
    cow.sh("truncate -s 10G sparse; printf end | dd of=sparse bs=1 seek=9G conv=notrunc status=none")
    cow("commit")
    status = (tree / "sparse").stat()
    assert status.st_size == 10 << 30 and status.st_blocks * 512 < 1 << 20
    with open(tree / "sparse", "rb") as file:
        file.seek(9 << 30)
        assert file.read(4) == b"end\0"


@pytest.mark.parametrize("force", [False, True])
def test_no_symbolic_link_is_followed(cow: Cow, tree: Path, tmp_path: Path, force: bool) -> None:
    """Neither one that somebody has put in a directory's place outside, nor one that the view has made."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "text").write_text("mine\n")
    cow.sh(f"echo inside > directory/text; ln -s {elsewhere} link-out; echo inside > text")
    shutil.rmtree(tree / "directory")
    (tree / "directory").symlink_to(elsewhere)
    cow("commit", *(["--force"] if force else []), check=False)
    assert [path.name for path in elsewhere.iterdir()] == ["text"]
    assert (elsewhere / "text").read_text() == "mine\n"


def test_what_can_not_be_written_outside(cow: Cow, tree: Path) -> None:
    """The disk outside is too small: nothing is done, nothing is left, and nothing of the view is lost."""
    # The view inside another in which /mnt/small is a tmpfs of 1 MiB: for the inner one that is outside.
    inner = (
        "set -e; viewfs shell --cow /mnt/small --name inner -- sh -c '"
        "head -c 3000000 /dev/urandom > /mnt/small/big; echo x > /mnt/small/x; viewfs commit; echo code $?;"
        " viewfs diff --name-only'; ls -A /mnt/small"
    )
    result = cow.viewfs.sh("--mount", "none:/mnt/small:tmp,size=1M", script=inner)
    assert result.out == "code 1\n/mnt/small/big\n/mnt/small/x\n"
    assert "no space left on device" in result.err and result.err.count("\n") == 1


def test_a_file_being_written_is_not_committed_half(open_view: Callable[..., View], tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(
        f"cd {tree}; (while :; do echo line >> busy; done) > /dev/null 2>&1 & echo $! > {tree.parent}/pid;"
        f" until test -s {tree}/busy; do :; done"
    )
    try:
        for _ in range(20):
            result = view("commit", check=False)
            if result.code:
                break
        assert result.code == 1 and "busy is being written" in result.err
        assert not list(tree.glob(".viewfs-*"))
    finally:
        view.sh(f"kill $(cat {tree.parent}/pid)")


def test_read_only_directories(cow: Cow, tree: Path) -> None:
    """Of one's own, whatever the mode says."""
    (tree / "directory").chmod(0o500)
    (tree / "directory/deeper").chmod(0o000)
    cow.sh(
        "chmod 700 directory directory/deeper; echo x > directory/deeper/new;"
        " chmod 0 directory/deeper; chmod 500 directory"
    )
    cow("commit")
    (tree / "directory/deeper").chmod(0o700)
    assert (tree / "directory/deeper/new").read_text() == "x\n"
    assert (tree / "directory").stat().st_mode & 0o777 == 0o500
    (tree / "directory").chmod(0o700)


def test_discard_everything(cow: Cow, tree: Path) -> None:
    before = snapshot(tree)
    cow.sh(WORK)
    (left,) = cow.viewfs("ps", "--json").json["ended"]
    assert left == {"name": "cow", "paths": [str(tree)]} and "ended; changed" in cow.viewfs("ps").out
    assert cow("discard").out.startswith("discarded: ")
    assert snapshot(tree) == before and not (cow.viewfs.state / "viewfs").exists()
    assert cow.sh("cat text").out == "one\ntwo\nthree\n"


def test_discard_in_a_running_view(open_view: Callable[..., View], tree: Path) -> None:
    """A shell in the tree sees it at once, without changing its directory."""
    view = open_view("--cow", tree)
    before = snapshot(tree)
    shown = view.sh(
        f"cd {tree}; {WORK} viewfs discard new text > /dev/null; ls; cat text; test -e new || viewfs discard"
    ).out
    assert shown.endswith("one\ntwo\nthree\n" + shown.splitlines()[-1] + "\n") and "discarded: " in shown
    out = view.sh(f"cp -a {tree} {tree.parent}/copy; viewfs diff").out
    assert out == "" and snapshot(tree.parent / "copy", times=True) == before
    assert snapshot(tree) == before


def test_discard_only_some(cow: Cow, tree: Path) -> None:
    cow.sh("echo x > text; rm -r directory; mkdir new; echo n > new/a; echo n > new/b; chmod 600 script; ln -sf x link")
    cow("discard", tree / "directory/deeper", tree / "new/a", tree / "script", tree / "link")
    assert set(cow.changes()) == {"text", "directory/gone", "new", "new/b"}
    assert cow.sh("find directory new -type f | sort; readlink link").out == "directory/deeper/file\nnew/b\ntext\n"


def test_a_million_is_only_more(cow: Cow, tree: Path) -> None:
    """Four thousand files here; `make soak` takes a million."""
    count = int(os.environ.get("VIEWFS_SOAK_FILES", "4000"))
    make = (
        f"import os\nfor d in range({count} // 1000):\n os.mkdir(f'd{{d}}')\n"
        " for n in range(1000): open(f'd{d}/{n}', 'w').close()"
    )
    cow.sh(f'python3 -c "{make}"')
    assert cow("diff", "--stat").out.endswith(f"{count + count // 1000} added\n")
    assert cow("commit").out == f"committed: {count + count // 1000} added\n"
    assert len(list((tree / "d3").iterdir())) == 1000
    cow.sh("rm -r d*[0-9]")
    cow("commit")
    assert not (tree / "d3").exists()
    shutil.rmtree(tree)


def test_locked(cow: Cow) -> None:
    import fcntl

    cow.sh("echo x > text")
    with open(cow.layer / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = cow("commit", check=False)
    assert result.code == 1 and "being worked on by another command" in result.err


def test_json(cow: Cow, tree: Path) -> None:
    cow.sh("echo x > text; rm script")
    answer = cow("commit", "--json").json
    assert {row["path"]: row["kind"] for row in answer["changes"]} == {
        f"{tree}/text": "changed", f"{tree}/script": "deleted"
    }  # fmt: skip
    assert answer["failed"] == [] and answer["schema"] == 1
