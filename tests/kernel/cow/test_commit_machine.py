"""Whatever is done, committed, discarded and gone back to: the view shows what a plain directory does.

Every operation is done in a view and, by the same script, in a directory of the host. `VIEWFS_MACHINE_EXAMPLES` says
how many such stories there are, and makes each time others of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.kernel.conftest import SECONDS, Viewfs
from tests.kernel.cow.conftest import snapshot

EXAMPLES = int(os.environ.get("VIEWFS_MACHINE_EXAMPLES", "0"))

#: Does in the working directory what its arguments say, and says how that ended.
SCRIPT = """
import json, os, shutil, subprocess, sys

def step(what, one, other, number):
    if what == "write":
        with open(one, "wb") as out: out.write(b"%d\\n" % number * (number % 50))
    elif what == "append":
        with open(one, "ab") as out: out.write(b"more %d\\n" % number)
    elif what == "truncate": os.truncate(one, number)
    elif what == "replace":
        with open(one + ".new", "wb") as out: out.write(b"replaced %d" % number)
        os.rename(one + ".new", one)
    elif what == "unlink": os.unlink(one)
    elif what == "mkdir": os.mkdir(one)
    elif what == "rmdir": os.rmdir(one)
    elif what == "rmtree": shutil.rmtree(one)
    elif what == "symlink": os.symlink(other, one)
    elif what == "link": os.link(one, other, follow_symlinks=False)
    elif what == "chmod": os.chmod(one, 0o700 | number % 0o100)
    elif what == "setxattr": os.setxattr(one, "user.test", b"%d" % number)
    elif what == "rename" and not os.path.isdir(one): os.rename(one, other)
    elif what == "mv" and not os.path.lexists(other) and not (other + "/").startswith(one + "/"):
        # Copied by mv where rename(2) is refused; names of one file are then files of their own.
        below = (os.path.join(top, name) for top, _, names in os.walk(one) for name in names)
        if not any(os.lstat(path).st_nlink > 1 for path in below):
            subprocess.run(["mv", "-T", one, other], check=True, stderr=subprocess.DEVNULL)

for one in json.loads(sys.argv[1]):
    try:
        step(*one)
        print("done")
    except (OSError, subprocess.CalledProcessError) as error:
        print(type(error).__name__)
"""

NAMES = ("a", "b", "c")
PATHS = st.sampled_from([*NAMES, *(f"{one}/{two}" for one in NAMES for two in NAMES), "a/b/c", "b/a/c"])
FILES = ("write", "write", "append", "truncate", "replace", "unlink", "link", "rename", "symlink")
WORK = st.tuples(
    st.sampled_from([*FILES, "mkdir", "mkdir", "rmdir", "rmtree", "chmod", "setxattr", "mv", "mv"]),
    PATHS,
    PATHS,
    st.integers(0, 5000),
)


def plain(tree: Path) -> dict[str, tuple[Any, ...]]:
    """Without times, and which names are one file: an overlay gives that up where a file was there before."""
    return {path: (row[0], row[1], row[3]) for path, row in snapshot(tree, times=False).items()}


class Story(RuleBasedStateMachine):
    """A view of a small tree, one after the other, all of one name; `model` is what it is to show."""

    backend = "overlay"

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="viewfs-story-"))
        self.viewfs = Viewfs(self.top)
        self.tree, self.model, self.states = self.top / "tree", self.top / "model", self.top / "states"
        self.script = self.top / "script.py"
        self.script.write_text(SCRIPT)
        self.states.mkdir()
        self.process: subprocess.Popen[str] | None = None
        self.epochs: list[str] = []

    @initialize()
    def begin(self) -> None:
        for directory in ("a/b", "b"):
            (self.tree / directory).mkdir(parents=True)
        for name in ("c", "a/a", "a/b/c", "b/b"):
            (self.tree / name).write_text(f"{name} at the beginning\n" * 10)
        (self.tree / "a/c").symlink_to("a")
        subprocess.run(["cp", "-a", self.tree, self.model], check=True)
        self.open()

    def open(self) -> None:
        self.process = subprocess.Popen(
            ["viewfs", "run", "--name", "story", "--cow", self.tree, "--cow-backend", self.backend, "--",
             "sh", "-c", "echo ready; exec cat"],
            stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True, env=self.viewfs.environment, cwd=self.top,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate(timeout=SECONDS)
            assert self.process.returncode == 0
            self.process = None

    def inside(self, *command: str | Path) -> str:
        return self.viewfs("enter", "story", "--", *command).out

    def copy_model(self, source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", source, target], check=True)

    @rule(steps=st.lists(WORK, min_size=1, max_size=6))
    def work(self, steps: list[tuple[str, str, str, int]]) -> None:
        command = [sys.executable, str(self.script), json.dumps(steps)]
        direct = subprocess.run(command, cwd=self.model, check=True, capture_output=True, text=True)
        assert self.inside("env", "-C", self.tree, *command) == direct.stdout

    @rule(after=st.booleans())
    def commit(self, after: bool) -> None:
        """In the view, or when it has ended."""
        if after:
            self.close()
            if (self.viewfs.state / "viewfs/story").exists():
                self.viewfs("commit", "--session", "story")
        else:
            self.viewfs("commit", "--session", "story")
            assert self.viewfs("diff", "--session", "story").out == ""
        assert plain(self.tree) == plain(self.model)
        if after:
            self.open()
            self.epochs.clear()

    @rule(path=PATHS)
    def commit_a_path(self, path: str) -> None:
        before = self.outside()
        result = self.viewfs("commit", "--session", "story", self.tree / path, check=False)
        if "has become another kind of file" in result.err:  # what is on the way to it is to be named
            assert result.code == 2 and self.outside() == before
            return
        assert result.code == 0, result
        after, model = self.outside(), plain(self.model)
        for one in {*before, *after, *model}:
            if one == path or one.startswith(path + "/"):
                assert after.get(one) == model.get(one), f"{one} is committed"
            elif not (path + "/").startswith(one + "/") and one != ".":
                assert after.get(one) == before.get(one), f"{one} is not"

    def outside(self) -> dict[str, tuple[Any, ...]]:
        return plain(self.tree)

    @rule(after=st.booleans())
    def discard(self, after: bool) -> None:
        before = snapshot(self.tree)
        if after:
            self.close()
            if (self.viewfs.state / "viewfs/story").exists():
                self.viewfs("discard", "--session", "story")
            self.open()
            self.epochs.clear()
        else:
            self.viewfs("discard", "--session", "story")
        assert snapshot(self.tree) == before
        self.copy_model(self.tree, self.model)

    @rule(path=PATHS)
    def discard_a_path(self, path: str) -> None:
        """Where what it is in is the same kind of thing outside and in the view."""
        before = snapshot(self.tree)
        parent = Path(path).parent
        if any((top / one).is_symlink() or not (top / one).is_dir()
               for top in (self.tree, self.model) for one in [parent, *parent.parents]):  # fmt: skip
            return
        self.viewfs("discard", "--session", "story", self.tree / path)
        assert snapshot(self.tree) == before
        place = self.model / path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        if os.path.lexists(self.tree / path):
            subprocess.run(["cp", "-a", "-T", self.tree / path, place], check=True)

    @rule()
    def checkpoint(self) -> None:
        name = f"state{len(os.listdir(self.states))}"
        self.viewfs("checkpoint", "--session", "story", name)
        self.copy_model(self.model, self.states / name)
        self.epochs.append(name)

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        if self.epochs:
            name = data.draw(st.sampled_from(self.epochs))
            self.viewfs("rollback", "--session", "story", name)
            self.copy_model(self.states / name, self.model)

    @rule()
    def begin_again(self) -> None:
        self.close()
        self.open()

    @invariant()
    def shows_what_the_model_does(self) -> None:
        if self.process is None:
            return
        copy = self.top / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        self.inside("cp", "-a", self.tree, copy)
        assert plain(copy) == plain(self.model)

    def teardown(self) -> None:
        try:
            self.close()
        finally:
            if self.process is not None:
                self.process.kill()
                self.process.communicate()
            shutil.rmtree(self.top, ignore_errors=True)


class ServedStory(Story):
    """The same, served by viewfs itself."""

    backend = "fuse"


@pytest.mark.parametrize("story", [Story, ServedStory])
def test_stories(story: type[Story]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        story,
        settings=settings(
            max_examples=EXAMPLES or 3,
            stateful_step_count=30 if EXAMPLES else 8,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
