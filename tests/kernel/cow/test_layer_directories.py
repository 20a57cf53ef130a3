"""Layers that are kept in a directory of their own (--layer)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.conftest import Result, Viewfs
from tests.kernel.cow.conftest import OpenView, snapshot
from tests.kernel.cow.test_choosing import BACKENDS, BUILD, OBJECTS, nothing_left


def layer_run(viewfs: Viewfs, project: Path, layer: Path, script: str, *options: str | Path) -> Result:
    return viewfs.sh("--cow", project, "--layer", layer, *options, script=f"cd {project}; {script}")


@BACKENDS
def test_layers_in_a_directory(viewfs: Viewfs, project: Path, tmp_path: Path, backend: str) -> None:
    """They survive the view without a name, and the next one has them."""
    layer, before = tmp_path / "changes", snapshot(project)
    first = layer_run(viewfs, project, layer, "echo first > a.c; rm a.o", "--cow-backend", backend)
    assert "discarded" not in first.err and nothing_left(viewfs) and snapshot(project) == before
    second = layer_run(viewfs, project, layer, "cat a.c; ls *.o || true; echo > new", "--cow-backend", backend)
    assert second.out == "first\n"
    assert viewfs.sh("--cow", project, script=f"cat {project}/a.c").out == "a.c\n", "another view has nothing of it"
    told = viewfs("diff", "--layer", layer, "--name-only").out.split()
    assert told == [f"{project}/a.c", f"{project}/a.o", f"{project}/new"]
    assert viewfs("discard", "--layer", layer, project / "a.o").out == "discarded: 1 deleted\n"
    assert viewfs("commit", "--layer", layer).out == "committed: 1 added, 1 changed\n"
    assert (project / "a.c").read_text() == "first\n" and (project / "a.o").exists() and (project / "new").exists()
    assert viewfs("diff", "--layer", layer, check=False).out == ""


def test_layers_of_several_names_in_a_directory(viewfs: Viewfs, project: Path, tmp_path: Path) -> None:
    layer = tmp_path / "changes"
    for name in ("one", "two"):
        layer_run(viewfs, project, layer, f"echo {name} > a.c", "--name", name)
    layer_run(viewfs, project, layer, "echo neither > a.c")
    for options, text in ((("--name", "one"), "one\n"), (("--name", "two"), "two\n"), ((), "neither\n")):
        assert layer_run(viewfs, project, layer, "cat a.c", *options).out == text
    assert "+one\n" in viewfs("diff", "--layer", layer, "--session", "one").out
    assert "+neither\n" in viewfs("diff", "--layer", layer).out
    viewfs("forget", "--layer", layer, "one")
    assert layer_run(viewfs, project, layer, "cat a.c", "--name", "one").out == "a.c\n"
    viewfs("commit", "--layer", layer, "--session", "two")
    assert (project / "a.c").read_text() == "two\n"
    viewfs("forget", "--layer", layer)
    assert nothing_left(viewfs)
    assert viewfs("diff", "--layer", layer, check=False).out == ""


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm")
@BACKENDS
def test_layers_on_another_file_system(viewfs: Viewfs, project: Path, tmp_path: Path, backend: str) -> None:
    layer = Path("/dev/shm") / f"viewfs-test-{os.getpid()}"
    try:
        if layer.parent.stat().st_dev == project.stat().st_dev:
            pytest.skip("it is the same file system")
        for number in range(2):
            script = f"echo {number} > a.c; mkdir n{number}; ln a.c n{number}/link; rm -rf src"
            layer_run(viewfs, project, layer, script, "--cow-backend", backend)
        assert layer.is_dir() and (project / "src").exists()
        viewfs("commit", "--layer", layer)
        assert (project / "n1/link").read_text() == "1\n" and (project / "n0").is_dir()
        assert not (project / "src").exists()
    finally:
        subprocess.run(["rm", "-rf", layer], check=True)


def test_the_directory_is_given_from_where_one_is(viewfs: Viewfs, project: Path, tmp_path: Path) -> None:
    viewfs.sh("--cow", "project", "--layer", "some/place", script=f"echo in > {project}/a.c")
    assert (tmp_path / "some/place").is_dir()
    assert viewfs("diff", "--layer", "some/place", "--name-only").out == f"{project}/a.c\n"
    assert viewfs("diff", "--layer", "some/other", check=False).code == 4


def test_the_layers_are_in_the_tree_itself(viewfs: Viewfs, project: Path) -> None:
    """The view doesn't have its own layers."""
    result = layer_run(viewfs, project, project / "own", "echo in > a.c; ls own; find . -name a.c | sort")
    assert "./own" not in result.out
    told = viewfs("diff", "--layer", project / "own", "--name-only").out.split()
    assert told == [f"{project}/a.c"]
    viewfs("commit", "--layer", project / "own")
    assert (project / "a.c").read_text() == "in\n"


@pytest.mark.parametrize("place", ["file", "file/below", "/sys/kernel/viewfs-test", "/proc/viewfs-test", ""])
def test_a_directory_that_can_not_be_used(viewfs: Viewfs, project: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("kept\n")
    command = ("run", "--cow", project, "--layer", place, "--", "touch", project / "ran")
    refused = viewfs(*command, check=False)
    assert refused.code == (1 if place.startswith("/sys") else 2), refused
    assert refused.err.count("\n") == 1 and place in refused.err, refused
    assert not (project / "ran").exists() and (tmp_path / "file").read_text() == "kept\n"
    for name in ("diff", "commit", "discard", "forget"):
        result = viewfs(name, "--layer", place, check=False)
        assert result.code != 0 and result.err.count("\n") == 1 and result.out == "", result


def test_two_views_at_once(viewfs: Viewfs, open_view: OpenView, project: Path, tmp_path: Path) -> None:
    """One has the layers, whatever they are called."""
    layer = tmp_path / "changes"
    view = open_view("--cow", project, "--layer", layer, name="one")
    view.sh(f"echo one > {project}/a.c")
    assert "+one" in viewfs("diff", "--session", "one").out
    layer_run(viewfs, project, layer, "echo other > a.c")
    assert "+other" in viewfs("diff", "--layer", layer).out
    inside = f"echo second > {project}/a.c; viewfs run --cow {project} --layer {layer} -- true || echo refused"
    held = viewfs.sh("--cow", project, "--layer", layer, script=inside, check=False)
    assert "refused" in held.out and "in use by" in held.err
    assert view.sh(f"cat {project}/a.c").out == "one\n"


def test_a_running_session_is_none_of_the_directory(viewfs: Viewfs, project: Path, tmp_path: Path) -> None:
    """Whatever it is called: what is meant is what is in the directory."""
    layers = tmp_path / "layers"
    viewfs.sh("--layer", layers, "--name", "n", "--cow", project, script=f"echo L > {project}/a.c")
    inner = f"echo run > {project}/a.o; viewfs commit --layer {layers} --session n; cat {project}/a.c"
    # (It is committed to what is seen there, and that is copy-on-write itself.)
    assert viewfs.sh("--name", "n", "--cow", project, script=inner).out == "committed: 1 changed\nL\n"
    assert (project / "a.c").read_text() == "a.c\n" and (project / "a.o").read_text() == "a.o\n"
    missing = viewfs("diff", "--layer", tmp_path / "nowhere", check=False)
    assert missing.code == 4 and f"there are no layers in {tmp_path}/nowhere" in missing.err


def test_a_new_image_of_layers_in_a_directory(viewfs: Viewfs, project: Path, tmp_path: Path) -> None:
    layers = tmp_path / "layers"
    viewfs.sh("--layer", layers, "--cow", project, script=f"echo L > {project}/a.c")
    viewfs("commit", "--layer", layers, "--to", tmp_path / "made.tar", project)
    listed = subprocess.run(["tar", "-xOf", tmp_path / "made.tar", "./a.c"], capture_output=True, text=True, check=True)
    assert listed.stdout == "L\n" and (project / "a.c").read_text() == "a.c\n"


def test_try_in_a_sandbox_directory(viewfs: Viewfs, project: Path, tmp_path: Path) -> None:
    """`try -D sandbox CMD`, `try summary sandbox`, `try explore sandbox`, `try -i PATTERN commit sandbox`."""
    sandbox = tmp_path / "sandbox"
    sandbox.mkdir()
    layer_run(viewfs, project, sandbox, BUILD)
    summary = viewfs("diff", "--stat", "--layer", sandbox).out
    assert f"{project}/target/main" in summary and summary.endswith("6 added, 4 changed, 1 deleted\n")
    assert layer_run(viewfs, project, sandbox, "cat target/main; ls src").out == "new\na.c\ndeep\n"
    viewfs("commit", "--exclude", "*.o", "--exclude", "build", "--layer", sandbox)
    assert (project / "target/main").exists() and (project / "build/x").read_text() == "build/x\n"
    assert set(viewfs("diff", "--name-only", "--layer", sandbox).out.split()) == {
        f"{project}/{name}" for name in OBJECTS | {"build/x"}
    }
    viewfs("forget", "--layer", sandbox)
    assert viewfs("diff", "--layer", sandbox, check=False).out == ""
    assert sandbox.is_dir() or not sandbox.exists()
    assert (project / "a.c").read_text() == "new\n"
