"""What sessions leave can always be got rid of, whatever has become of what it was made over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs
from tests.kernel.cow.conftest import Cow, snapshot


def nothing_is_left(viewfs: Viewfs, name: str) -> bool:
    gone = viewfs("diff", "--session", name, check=False)
    assert gone.code == 4 and f"no session is called {name}" in gone.err
    return viewfs("ps", "--json").json["ended"] == [] and not (viewfs.state / "viewfs" / name).exists()


def nothing_was_left(viewfs: Viewfs, name: str) -> bool:
    return name not in [row["name"] for row in viewfs("ps", "--json").json["ended"]]


@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_forget(cow: Cow, tree: Path, backend: str) -> None:
    """All of it goes, states that were kept as well, and directories that nobody may look into."""
    before = snapshot(tree)
    script = """
        echo x > text; viewfs checkpoint one; mkdir -p new/closed; echo y > new/closed/file; chmod 0 new/closed
        viewfs checkpoint two; rm -r directory
    """
    cow.sh(script, "--cow-backend", backend)
    forgot = cow.viewfs("forget", "cow")
    assert forgot.out == f"forgot cow: what was changed in {tree}\n" and forgot.err == ""
    assert nothing_is_left(cow.viewfs, "cow") and snapshot(tree) == before
    again = cow.viewfs("forget", "cow", check=False)
    assert again.code == 4 and again.err.count("\n") == 1 and "cow" in again.err
    assert cow.sh("cat text").out == "one\ntwo\nthree\n"


def test_forget_only_what_is_named(cow: Cow, viewfs: Viewfs, tree: Path) -> None:
    for name in ("one", "two", "three"):
        viewfs.sh("--name", name, "--cow", tree, script=f"echo {name} > {tree}/text")
    assert viewfs("forget", "one", "three").out.count("forgot ") == 2
    assert [row["name"] for row in viewfs("ps", "--json").json["ended"]] == ["two"]
    assert viewfs.sh("--name", "two", "--cow", tree, script=f"cat {tree}/text").out == "two\n"


def test_forget_no_other_directory(cow: Cow) -> None:
    cow.sh("echo x > text")
    kept = snapshot(cow.layer / "upper")
    for name in ("..", ".", "../viewfs", "cow/../cow", "", "/"):
        refused = cow.viewfs("forget", name, check=False)
        assert refused.code in (2, 4) and refused.err.count("\n") == 1, (name, refused)
        assert snapshot(cow.layer / "upper") == kept != {}


def test_forget_none_that_lives(open_view: Callable[..., View], tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"echo x > {tree}/text")
    refused = view.viewfs("forget", "test", check=False)
    assert refused.code == 1 and refused.err.count("\n") == 1
    assert view.sh(f"cat {tree}/text; echo y > {tree}/new; cat {tree}/new").out == "x\ny\n"


@pytest.mark.parametrize("how", ["discard", "discard PATH", "forget"])
def test_over_an_image_that_is_gone(viewfs: Viewfs, image: Callable[..., Path], how: str) -> None:
    disk = image(inside="old")
    viewfs.sh("--name", "n", "--mount", f"{disk}:/mnt/x", "--cow", "/mnt/x", script="echo new > /mnt/x/inside")
    disk.unlink()
    for command in ("diff", "commit"):
        refused = viewfs(command, "--session", "n", check=False)
        assert refused.code == 1 and refused.err.count("\n") == 1 and "/mnt/x" in refused.err
        assert "discard" in refused.err or "forget" in refused.err, "how to get rid of it"
    commands = {
        "discard": ("discard", "--session", "n"), "discard PATH": ("discard", "--session", "n", "/mnt/x"),
        "forget": ("forget", "n"),
    }  # fmt: skip
    done = viewfs(*commands[how])
    assert "/mnt/x" in done.out + done.err, "what was done is said"
    assert nothing_is_left(viewfs, "n")


GONE = {
    "removed": "rm -r {other}",
    "a file now": "rm -r {other}; touch {other}",
    "closed": "chmod 0 {other}",
}


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("how", ["commit", "discard", "forget"])
def test_one_of_two_trees_is_gone(viewfs: Viewfs, tree: Path, tmp_path: Path, gone: str, how: str) -> None:
    """What can be looked at is shown, committed and discarded; what can't is named; all of it can be got rid of."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("old\n")
    options = ("--name", "n", "--cow", tree, "--cow", other)
    viewfs.sh(*options, script=f"echo new > {tree}/text; echo new > {other}/file")
    os.system(GONE[gone].format(other=other))
    try:
        shown = viewfs("diff", "--session", "n", "--name-only", check=False)
        if gone != "closed":
            assert shown.out == f"{tree}/text\n" and str(other) in shown.err and shown.err.count("\n") == 1, shown
        if how == "commit":
            done = viewfs("commit", "--session", "n", check=False)
            assert (tree / "text").read_text() == "new\n" and "committed: " in done.out, done
            if gone == "closed":  # to its owner it need not be
                assert done.code == 0 or str(other) in done.err
                if nothing_was_left(viewfs, "n"):
                    return
            else:
                assert str(other) in done.err
                assert [row["paths"] for row in viewfs("ps", "--json").json["ended"]] == [[str(other)]]
                assert not os.path.exists(other / "file")
        if how == "forget":
            assert viewfs("forget", "n").out.startswith("forgot n")
        else:
            rest = viewfs("discard", "--session", "n")
            assert gone == "closed" or str(other) in rest.out + rest.err
        assert nothing_is_left(viewfs, "n")
        assert how == "commit" or (tree / "text").read_text() == "one\ntwo\nthree\n"
    finally:
        if gone == "closed":
            other.chmod(0o700)


def test_a_tree_that_was_made_anew(cow: Cow, tree: Path) -> None:
    """Another directory of that name has none of the files that were changed."""
    cow.sh("echo new > text; rm script; mkdir made")
    shutil.rmtree(tree)
    tree.mkdir()
    (tree / "script").write_text("another\n")
    refused = cow("commit", check=False)
    assert refused.code == 1 and f"{tree}/" in refused.err
    assert {path.name: path.read_text() for path in tree.iterdir()} == {"script": "another\n"}
    assert cow("discard").code == 0 and nothing_is_left(cow.viewfs, "cow")


@pytest.mark.parametrize("backend", ["overlay", "fuse"])
@pytest.mark.parametrize("lives", [False, True])
def test_discard_when_the_disk_is_full(viewfs: Viewfs, tree: Path, tmp_path: Path, backend: str, lives: bool) -> None:
    """It makes room, and so must not need any."""
    # What is left of the last page as well, by bytes.
    fill = "for size in 64K 4K 1; do dd if=/dev/zero bs=$size of=/mnt/small/rest.$size 2>/dev/null || true; done"
    discard = f"viewfs discard --session inner; echo discarded $?; viewfs diff --session inner --stat; ls {tree}"
    inner = tmp_path / "inner"
    inner.write_text(f"""
        echo n > new; rm script; cat /dev/zero > big 2>/dev/null || echo full
        {f"{fill}; {discard}" if lives else ""}
    """)
    script = f"""
        export XDG_STATE_HOME=/mnt/small VIEWFS_COW_BACKEND={backend}; unset VIEWFS_SESSION; cd {tree}
        viewfs run --name inner --cow {tree} -- bash {inner}
        {fill}; df --output=avail /mnt/small | tail -1
        {discard if not lives else ""}; ls /mnt/small/viewfs 2>/dev/null || true
    """.replace("\n        ;", "\n")
    result = viewfs.sh("--mount", "none:/mnt/small:tmp,size=2M", script=script, check=False)
    assert result.out.startswith("full\n") and "\ndiscarded 0\n" in result.out, result
    assert "discarded: 2 added, 1 deleted\n" in result.out, "what it did is said"
    if lives:
        assert "binary\ndirectory\nempty\nlink\nscript\ntext\n" in result.out
    else:
        assert "\n    0\n" in result.out and not result.out.endswith("inner\n"), result
    assert "Traceback" not in result.err, result
