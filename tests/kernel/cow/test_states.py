"""`viewfs checkpoint` and `viewfs rollback`: states of a view that can be looked at, compared and gone back to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.kernel.conftest import View, Viewfs
from tests.kernel.cow.conftest import Cow


def test_keep_change_look_go_back(open_view: Callable[..., View], tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"echo 1 > {tree}/text")
    kept = view("checkpoint", "--json", "first").json
    assert (kept["epoch"], kept["current"], kept["name"]) == (1, 2, "first")
    view.sh(f"echo 2 > {tree}/text; rm {tree}/script; echo n > {tree}/new")
    assert [row["operation"] for row in view.json("epochs")["epochs"]] == ["start", "cow", "checkpoint"]
    for state in ("1", "first"):
        assert view("at", state, "--", "cat", tree / "text").out == "1\n"
        assert view("at", state, "--", "ls", tree / "script").out == f"{tree}/script\n"
        assert view("diff", "--name-only", f"{state}..").out.split() == [
            f"{tree}/{n}" for n in ("new", "script", "text")
        ]
    assert "-1\n+2\n" in view("diff", "first..", tree / "text").out
    assert "-one\n-two\n-three\n+1\n" in view("diff", "..first").out
    assert view("rollback", "first").out.startswith("epoch 2 is kept; this is epoch 3, as first was")
    assert view.sh(f"cat {tree}/text; ls {tree}/script; test ! -e {tree}/new").out == f"1\n{tree}/script\n"
    assert view("at", "2", "--", "cat", tree / "text").out == "2\n"
    assert "nothing has changed" in view("diff", "--stat", "first..").out
    view("rollback", "2", tree / "new")
    assert view.sh(f"cat {tree}/text {tree}/new").out == "1\nn\n"
    assert (tree / "text").read_text() == "one\ntwo\nthree\n"


def test_a_state_can_not_be_written(open_view: Callable[..., View], tree: Path) -> None:
    view = open_view("--cow", tree)
    view("checkpoint", "kept")
    result = view("at", "kept", "--", "touch", tree / "new", check=False)
    assert result.code == 1 and "Read-only file system" in result.err


def test_programs_go_on_across_it(open_view: Callable[..., View], tree: Path) -> None:
    """With their working directory and an open file, and what they write later is not in the state."""
    view = open_view("--cow", tree)
    out = view.sh(f"""
        cd {tree}; exec 3>>new; echo before >&3
        viewfs checkpoint kept > /dev/null
        echo after >&3; echo x > there
        cat new; ls there {tree}/there
        viewfs at kept -- sh -c 'cat new; ls'
        viewfs rollback kept > /dev/null
        cat new; ls
    """).out
    files = "binary\ndirectory\nempty\nlink\nnew\nscript\ntext\n"
    assert out == f"before\nafter\n{tree}/there\nthere\nbefore\n{files}before\n{files}"


def test_the_next_view_of_that_name_has_them(cow: Cow, tree: Path) -> None:
    cow.sh("echo 1 > text; viewfs checkpoint one; echo 2 > text; viewfs checkpoint two; echo 3 > text")
    out = cow.sh("viewfs at one -- cat text; viewfs at two -- cat text; cat text; viewfs rollback one; cat text").out
    assert out.startswith("1\n2\n3\n") and out.endswith("\n1\n")
    assert cow.sh("viewfs diff --name-only one..two; viewfs epochs").out.startswith(f"{tree}/text\n")


def test_a_state_costs_what_has_changed(cow: Cow) -> None:
    cow.sh(
        "head -c 8M /dev/urandom > big; viewfs checkpoint one; echo x > text;"
        " viewfs checkpoint two; viewfs checkpoint three"
    )
    states = [path for path in (cow.layer / "checkpoints").iterdir() if path.is_dir()]
    assert len(states) == 3
    assert len({(state / "big").stat().st_ino for state in states}) == 1
    assert len({(state / "text").stat().st_ino for state in states if (state / "text").exists()}) == 1


def test_mounts_below_are_kept_and_shown_too(
    viewfs: Viewfs, tree: Path, image: Callable[..., Path], open_view: Callable[..., View]
) -> None:
    view = open_view("--mount", f"{image(inside='old')}:{tree}/empty", "--load", "hello:/hello", "--cow", tree)
    view.sh(f"echo 1 > {tree}/empty/inside; echo 1 > {tree}/text")
    view("checkpoint", "kept")
    view.sh(f"echo 2 > {tree}/empty/inside; echo 2 > {tree}/text")
    assert view("at", "kept", "--", "sh", "-c", f"cat {tree}/empty/inside {tree}/text /hello").out.startswith("1\n1\n")
    view("rollback", "kept")
    assert view.sh(f"cat {tree}/empty/inside {tree}/text").out == "1\n1\n"


def test_what_is_not_kept(open_view: Callable[..., View], tree: Path) -> None:
    view = open_view("--cow", tree)
    for command in (("rollback", "none"), ("diff", "none.."), ("at", "none", "--", "true")):
        result = view(*command, check=False)
        assert result.code == 4 and "no state is kept of epoch none" in result.err
    view("checkpoint", "twice")
    again = view("checkpoint", "twice", check=False)
    assert again.code == 2 and "kept already" in again.err
    assert view("checkpoint").out.startswith("epoch 2 is kept as epoch-2; this is epoch 3")


def test_where_the_layers_are_in_the_tree(viewfs: Viewfs, tree: Path) -> None:
    """As at home, where the state directory is: the kernel makes no overlay of a tree and of a part of it."""
    assert viewfs.state.parent == tree.parent
    script = f"""
        cd {tree}; echo x > text; viewfs checkpoint one; echo y > text; viewfs at one -- cat text
        viewfs diff --name-only one..; viewfs rollback one; cat text
    """
    out = viewfs.sh("--name", "n", "--cow", tree.parent, script=script).out.splitlines()
    assert out[1:3] == ["x", f"{tree}/text"] and out[-1] == "x"
    assert viewfs("diff", "--session", "n", "--name-only").out == f"{tree}/text\n"


def test_gone_back_to_what_is_older_than_an_edit_outside(cow: Cow, tree: Path) -> None:
    """A discard and a commit have made the edit none of theirs; the state that comes back is of before."""
    result = cow.sh("""
        echo inside > text; viewfs checkpoint one; viewfs discard text
    """)
    assert result.code == 0
    (tree / "text").write_text("precious\n")
    cow.sh("echo new > script; viewfs commit; viewfs rollback one")
    refused = cow("commit", check=False)
    assert refused.code == 1 and f"{tree}/text: it was changed outside too" in refused.err
    assert "script" not in refused.err, "the commit itself changed that"
    assert (tree / "text").read_text() == "precious\n"
