"""A tree that is copy-on-write: everything can be written, nothing of it changes, and nothing is left of it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs
from tests.kernel.cow.conftest import Cow, snapshot


def test_what_is_written_stays_in_the_view(viewfs: Viewfs, tree: Path) -> None:
    before = snapshot(tree)
    script = f"cd {tree}; echo new > text; rm -r directory; mkdir directory; echo n > new; cat text new; ls directory"
    result = viewfs.sh("--cow", tree, script=script)
    assert result.out == "new\nn\n"
    assert snapshot(tree) == before
    assert "is discarded with the view" in result.err and str(tree) in result.err
    assert not list((viewfs.state / "viewfs").glob("*"))


def test_nothing_is_said_of_a_view_in_which_nothing_changed(viewfs: Viewfs, tree: Path) -> None:
    result = viewfs.sh("--cow", tree, script=f"cat {tree}/text")
    assert result.err == "" and not (viewfs.state / "viewfs").exists()
    viewfs.sh("--name", "n", "--cow", tree, script=f"cat {tree}/text; viewfs ps > /dev/null")
    assert not (viewfs.state / "viewfs").exists()


def test_a_name_keeps_the_changes_for_the_next_view(cow: Cow) -> None:
    assert cow.sh("echo new > text; rm directory/gone").err == ""
    assert cow.sh("cat text; ls directory").out == "new\ndeeper\n"
    cow.sh("echo newer > text")
    assert cow.sh("cat text").out == "newer\n"


def test_in_a_running_view(open_view: Callable[..., View], tree: Path) -> None:
    view = open_view()
    view.sh(f"cd {tree} && viewfs cow . && echo new > {tree}/text")
    assert view.sh(f"cat {tree}/text").out == "new\n"
    assert (tree / "text").read_text() == "one\ntwo\nthree\n"
    assert view.json("epochs")["epochs"][-1]["operation"] == "cow"
    assert view.sh(f"viewfs diff --name-only {tree}").out == f"{tree}/text\n"
    assert view("diff", "--name-only").out == f"{tree}/text\n"
    view("umount", tree)
    assert view.sh(f"cat {tree}/text").out == "one\ntwo\nthree\n"
    view("cow", tree)
    assert view.sh(f"cat {tree}/text").out == "new\n"


def test_several_trees(viewfs: Viewfs, tmp_path: Path) -> None:
    for name in ("one", "two, with a comma", "three"):
        (tmp_path / name).mkdir()
    options = ("--cow", f"{tmp_path}/one,{tmp_path}/two\\, with a comma", "--cow", tmp_path / "three")
    viewfs.sh("--name", "n", *options, script=f'cd {tmp_path}; for d in *o* *h*; do echo x > "$d/x"; done || true')
    rows = viewfs("diff", "--json", "--session", "n").json["changes"]
    assert {row["path"] for row in rows} == {f"{tmp_path}/{name}/x" for name in ("one", "two, with a comma", "three")}
    assert not [path for path in tmp_path.rglob("x") if "state" not in path.parts]


@pytest.mark.parametrize("kind", ["ext4", "squashfs"])
def test_an_image_becomes_writable(
    viewfs: Viewfs, tmp_path: Path, tree: Path, image: Callable[..., Path], kind: str
) -> None:
    if kind == "ext4":
        source = image(text="in the image\n", other="other\n")
    else:
        import subprocess

        source = tmp_path / "image"
        (tree / "text").write_text("in the image\n")
        subprocess.run(["mksquashfs", tree, source, "-quiet", "-no-progress"], check=True, capture_output=True)
    before = source.read_bytes()
    options = ("--name", "n", "--mount", f"{source}:/mnt/image", "--cow", "/mnt/image")
    viewfs.sh(*options, script="cd /mnt/image; echo new >> text; mkdir d; echo x > d/x; rm -f other")
    assert viewfs.sh(*options, script="cat /mnt/image/text /mnt/image/d/x").out == "in the image\nnew\nx\n"
    diff = viewfs.sh(*options, script="viewfs diff").out
    assert "+new\n" in diff and "/mnt/image/d/x" in diff
    refused = viewfs.sh(*options, script="viewfs commit", check=False)
    assert refused.code == 2 and "--to FILE" in refused.err and refused.err.count("\n") == 1
    left = viewfs("diff", "--session", "n", check=False)
    assert left.code == 1 and "which only a view has" in left.err
    other = viewfs.sh("--name", "n", "--mount", f"{source}:/mnt/image:{'ext' if kind == 'ext4' else kind}", "--cow",
                      "/mnt/image", script="cat /mnt/image/d/x")  # fmt: skip
    assert other.out == "x\n" and source.read_bytes() == before


def test_mounts_below_have_layers_of_their_own(
    viewfs: Viewfs, tree: Path, image: Callable[..., Path], tmp_path: Path
) -> None:
    """An image, a bind of another directory, and a tmpfs, below what is made copy-on-write."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("elsewhere\n")
    disk = image(inside="in the image\n")
    options = (
        *("--mount", f"{disk}:{tree}/empty"),
        *("--mount", f"{tmp_path}/elsewhere:{tree}/directory/deeper:bind"),
        *("--name", "n", "--cow", tree),
    )
    script = f"cd {tree}; for f in empty/inside directory/deeper/file text; do echo new >> $f; done; cat text; "
    out = viewfs.sh(*options, script=script + "cat empty/inside directory/deeper/file; viewfs diff --name-only").out
    assert out.startswith("one\ntwo\nthree\nnew\nin the image\nnew\nelsewhere\nnew\n")
    assert set(out.splitlines()[-3:]) == {
        f"{tree}/text", f"{tree}/empty/inside", f"{tree}/directory/deeper/file"
    }  # fmt: skip
    assert (tmp_path / "elsewhere/file").read_text() == "elsewhere\n"
    assert (tree / "directory/deeper/file").read_text() == "at the bottom\n"


def test_a_file_that_is_mounted_by_itself_is_protected(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    """But for a mount point that was missing its parent is served, and what is in it is copy-on-write as anywhere."""
    (tmp_path / "bound").write_text("bound\n")
    options = ("--mount", f"{tmp_path}/bound:{tree}/text:bind", "--cow", tree)
    script = f"cat {tree}/text; echo x > {tree}/text || echo refused; echo x > {tree}/new; cat {tree}/new"
    assert viewfs.sh(*options, script=script).out == "bound\nrefused\nx\n"
    assert (tmp_path / "bound").read_text() == "bound\n"
    options = ("--load", f"tmp:{tree}/missing", "--cow", tree)
    script = f"echo x > {tree}/text || echo refused; echo x > {tree}/directory/new; cat {tree}/directory/new"
    assert viewfs.sh(*options, script=f"{script}; cat {tree}/text").out == "x\nx\n"
    assert (tree / "text").read_text() == "one\ntwo\nthree\n" and not (tree / "directory/new").exists()


def test_the_whole_of_the_root(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    script = f"""
        cd {tree}; echo new > text; cat text
        echo x > ~/viewfs-test-file; cat ~/viewfs-test-file
        echo y > /tmp/viewfs-test-file; cat /tmp/viewfs-test-file
        viewfs diff --name-only | grep -v /state/ | sort
        test -c /dev/null && echo > /dev/null && test -r /proc/self/status && ls /sys > /dev/null
        python3 -c 'print(6 * 7)'
    """
    result = viewfs.sh("--cow", "/", script=script)
    home = os.path.expanduser("~")
    names = sorted([f"{home}/viewfs-test-file", f"{tree}/text", "/tmp/viewfs-test-file"])
    assert result.out.splitlines() == ["new", "x", "y", *names, "42"]
    assert (tree / "text").read_text() == "one\ntwo\nthree\n"
    assert not os.path.exists(f"{home}/viewfs-test-file") and not os.path.exists("/tmp/viewfs-test-file")


def test_names_in_the_root_itself(viewfs: Viewfs) -> None:
    """Somebody's installer wants its own directory there."""
    options = ("--name", "n", "--cow", "/")
    link = next(path.name for path in sorted(Path("/").iterdir(), reverse=True) if path.is_symlink())
    script = f"""
        mkdir /viewfs-new; echo x > /viewfs-new/x; echo f > /viewfs-file; rm /{link}
        viewfs diff --name-only / | grep -v ^/tmp | sort
        viewfs checkpoint one > /dev/null; rm /viewfs-file; viewfs at one -- cat /viewfs-file
        viewfs diff --name-only one..
        viewfs mount -t tmp none /viewfs-place/inner; touch /viewfs-place/inner/x; viewfs umount /viewfs-place/inner
        test ! -e /viewfs-place
        viewfs umount / || echo $?
        viewfs rollback one > /dev/null; cat /viewfs-file; cd /usr; python3 -c 'import os; print(os.getcwd())'
    """
    changed = sorted([f"/{link}", "/viewfs-file", "/viewfs-new", "/viewfs-new/x"])
    result = viewfs.sh(*options, script=script)
    assert result.out.splitlines() == [*changed, "f", "/viewfs-file", "2", "f", "/usr"]
    assert "the root stays copy-on-write as long as the view is there" in result.err
    again = viewfs.sh(*options, script=f"cat /viewfs-new/x; test ! -e /{link}; viewfs diff --name-only one.. /")
    assert again.out.splitlines()[0] == "x" and "/viewfs-new" not in again.out
    left = viewfs("diff", "--session", "n", "--name-only").out.splitlines()
    assert set(changed) <= set(left) and not any(os.path.exists(name) for name in changed if link not in name)
    assert os.path.lexists(f"/{link}")
    refused = viewfs("commit", "--session", "n", "/viewfs-new", check=False)
    assert refused.code == 1 and "not committed: /viewfs-new: permission denied" in refused.err


def test_a_view_inside_a_copy_on_write_view(cow: Cow, tree: Path) -> None:
    out = cow.sh(f"echo one > text; viewfs run --cow {tree} -- sh -c 'echo two > text; cat text'; cat text").out
    assert out == "two\none\n"


def test_as_root(viewfs: Viewfs, tree: Path) -> None:
    script = f"cd {tree}; echo x > text; chown 0:0 text; stat -c %u:%g text; viewfs diff --name-only"
    assert viewfs.sh("--as-root", "--cow", tree, script=script).out == f"0:0\n{tree}/text\n"


def test_a_program_that_runs_across_it_all(open_view: Callable[..., View], tree: Path) -> None:
    """Made copy-on-write under a program that has its working directory and a file there: those stay what they were."""
    view = open_view()
    script = f"""
        cd {tree}; exec 3>>text; echo before >&3
        viewfs cow .
        echo after >&3
        cat {tree}/text
        cd .; cd {tree}; echo inside > text; cat text
    """
    # What was open is the file outside, and is written there; by its path it is another one from then on.
    assert view.sh(script).out == "one\ntwo\nthree\nbefore\nafter\ninside\n"
    assert (tree / "text").read_text() == "one\ntwo\nthree\nbefore\nafter\n"


@pytest.mark.parametrize(
    ("path", "code", "what"),
    [
        ("/no/such", 2, "no such directory"),
        ("text", 2, "not a directory"),
        ("/proc", 2, "file system of the kernel's own"),
        ("/sys/kernel", 2, "file system of the kernel's own"),
    ],
)
def test_what_can_not_be(viewfs: Viewfs, tree: Path, path: str, code: int, what: str) -> None:
    result = viewfs("run", "--cow", tree / path, "--", "true", check=False)
    assert (result.code, result.err.count("\n")) == (code, 1) and what in result.err


def test_a_backend_that_there_is_not(viewfs: Viewfs, tree: Path) -> None:
    viewfs.environment["VIEWFS_COW_BACKEND"] = "what"
    result = viewfs("run", "--cow", tree, "--", "true", check=False)
    assert result.code == 2 and result.err.count("\n") == 1 and "VIEWFS_COW_BACKEND is one of auto" in result.err
    runtime = Path(viewfs.environment["XDG_RUNTIME_DIR"])
    assert not list(runtime.rglob("*.sock"))


def test_twice_is_refused(viewfs: Viewfs, tree: Path) -> None:
    result = viewfs("run", "--cow", f"{tree},{tree}/directory", "--", "true", check=False)
    assert result.code == 2 and "copy-on-write already" in result.err
    assert not (viewfs.state / "viewfs").exists()


def test_commands_without_layers(viewfs: Viewfs, open_view: Callable[..., View], tree: Path, cow: Cow) -> None:
    for command in ("diff", "commit", "discard", "checkpoint"):
        outside = viewfs(command, check=False)
        assert outside.code == 4 and "not inside a view" in outside.err, command
        missing = viewfs(command, "--session", "none", check=False)
        assert missing.code == 4 and "no session is called none" in missing.err, command
    view = open_view()
    nothing = view("diff", check=False)
    assert nothing.code == 4 and "viewfs cow PATH" in nothing.err
    cow.sh("echo x > text")
    elsewhere = cow("diff", "/usr", check=False)
    assert elsewhere.code == 4 and "/usr is not copy-on-write" in elsewhere.err


def test_layers_that_were_made_over_something_else(viewfs: Viewfs, tree: Path, tmp_path: Path, cow: Cow) -> None:
    cow.sh("echo x > text")
    (tmp_path / "other").mkdir()
    result = cow.sh("true", "--mount", f"{tmp_path}/other:{tree}:bind", check=False)
    assert result.code == 0  # --cow came first, so the tree is what it was, and the other lies over it
    other = ("--mount", f"{tmp_path}/other:{tree}:bind", "--name", "cow", "--cow", tree)
    refused = viewfs("run", *other, "--", "true", check=False)
    assert refused.code == 2 and "were made over" in refused.err and "discard" in refused.err


def test_a_layer_without_room(viewfs: Viewfs, tree: Path) -> None:
    """The program that writes is told so; what was there before is there, and what fitted is kept."""
    viewfs.state.mkdir()
    inner = f"""
        cd {tree}; fill="echo x > small; head -c 3M /dev/zero > big; echo code \\$?; cat text"
        viewfs run --name n --cow {tree} -- sh -c "$fill"
        viewfs commit --session n && exit 1; ls {tree}/small && exit 1
        viewfs discard --session n {tree}/big; viewfs commit --session n
    """
    result = viewfs.sh("--mount", f"none:{viewfs.state}:tmp,size=1M", script=inner)
    assert result.out.startswith("code 1\none\ntwo\nthree\n") and "No space left on device" in result.err
    assert (tree / "small").read_text() == "x\n" and not (tree / "big").exists()


def test_in_a_pid_namespace_and_in_any_order_with_mounts(
    viewfs: Viewfs, tree: Path, image: Callable[..., Path]
) -> None:
    disk = image(inside="in the image\n")
    options = ("--pid", "--cow", tree, "--mount", f"{disk}:{tree}/empty", "--cow", f"{tree}/empty", "--load", "hello")
    script = f"echo x > {tree}/text; echo y > {tree}/empty/inside; viewfs diff --name-only; viewfs epochs --json"
    out = viewfs.sh(*options, script=script).out
    assert out.startswith(f"{tree}/text\n{tree}/empty/inside\n")
    rows = json.loads(out.splitlines()[-1])["epochs"]
    assert [row["operation"] for row in rows] == ["start", "cow", "mount", "cow", "insmod"]
    assert (tree / "text").read_text() == "one\ntwo\nthree\n" and not list((viewfs.state / "viewfs").glob("*"))


def test_a_session_that_is_killed_keeps_what_has_a_name(
    viewfs: Viewfs, open_view: Callable[..., View], tree: Path
) -> None:
    view = open_view("--cow", tree)
    view.sh(f"mkdir {tree}/closed; touch {tree}/closed/x; chmod 0 {tree}/closed")
    viewfs("kill", view.name)
    view.process.wait()
    assert viewfs("diff", "--session", view.name, "--name-only").out.startswith(f"{tree}/closed\n")


def test_what_a_machine_that_went_down_has_left(viewfs: Viewfs, tree: Path) -> None:
    """Layers of views without a name are taken away by the next such view, if they are of this machine, and nobody has
    them locked."""
    layers = viewfs.state / "viewfs"
    out = viewfs.sh("--cow", tree, script=f"echo x > {tree}/text; ls {layers}").out
    unnamed, machine, boot, name, begun = out.strip().split(".")
    assert unnamed == "unnamed"
    older = layers / f"unnamed.{machine}.00000000.{name}.{begun}"
    elsewhere = layers / f"unnamed.00000000.{boot}.{name}.{begun}"
    live = layers / f"unnamed.{machine}.{boot}.1.{begun}"
    killed = layers / f"unnamed.{machine}.{boot}.2.{begun}"
    for directory in (older, elsewhere, live, killed):
        (directory / "tree/upper/closed").mkdir(parents=True)
        (directory / "tree/upper/closed").chmod(0)
    with open(live / ".session", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        viewfs.sh("--cow", tree, script="true")
    assert sorted(layers.iterdir()) == sorted([elsewhere, live])
    for directory in (elsewhere, live):
        (directory / "tree/upper/closed").chmod(0o700)


def test_what_was_committed_while_it_ran_is_not_left(viewfs: Viewfs, tree: Path) -> None:
    script = f"echo new > {tree}/text; mkdir {tree}/new; chmod 600 {tree}/script; viewfs commit"
    viewfs.sh("--name", "n", "--cow", tree, script=script)
    assert (tree / "text").read_text() == "new\n"
    assert viewfs("ps", "--json").json["sessions"] == [] and not (viewfs.state / "viewfs/n").exists()
