"""Whatever is done, changed outside, committed, killed, discarded and gone back to, with and without room on the disk:
the view shows what a plain directory does, and nothing that anybody wrote is lost.

Every operation is done in a view and, by the same script, in a directory of the host. `VIEWFS_MACHINE_EXAMPLES` says
how many such stories there are, and makes each time others of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.kernel.conftest import SECONDS, Viewfs
from tests.kernel.cow.conftest import Cow, snapshot
from tests.kernel.cow.test_interrupted_commit import CHANGING, TAKING_ROOM, commit, failing_at, in_a_child, killed_at

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
    elif what == "rename over a removed one" and not os.path.isdir(one) and not os.path.isdir(other) and one != other:
        os.lstat(one)
        os.unlink(other)
        os.rename(one, other)
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
        if getattr(error, "errno", 0) == 28:
            print("ENOSPC")
            break
"""

NAMES = ("a", "b", "c")
PATHS = st.sampled_from([*NAMES, *(f"{one}/{two}" for one in NAMES for two in NAMES), "a/b/c", "b/a/c"])
FILES = (
    "write", "write", "append", "truncate", "replace", "unlink", "link", "rename", "symlink",
    "rename over a removed one",
)  # fmt: skip
WORK = st.tuples(
    st.sampled_from([*FILES, "mkdir", "mkdir", "rmdir", "rmtree", "chmod", "setxattr", "mv", "mv"]),
    PATHS,
    PATHS,
    st.integers(0, 5000),
)
#: One call of the system each, or what leaves a part of its text.
SIMPLE = WORK.filter(lambda step: step[0] not in ("rmtree", "mv", "replace", "rename over a removed one"))


#: Of each path its mode, what is in it, and its attributes.
Plain = dict[str, tuple[Any, ...]]


def plain(tree: Path) -> Plain:
    """Without times, and which names are one file: an overlay gives that up where a file was there before."""
    return {path: (row[0], row[1], row[3]) for path, row in snapshot(tree, times=False).items()}


def related(one: str, other: str) -> bool:
    """One is the other, or in it."""
    return (one + "/").startswith(other + "/") or (other + "/").startswith(one + "/") or "." in (one, other)


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
        #: What somebody may have changed in the view since the last commit.
        self.touched: set[str] = set()

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
            [*self.viewfs.command, "run", "--name", "story", "--cow", str(self.tree), "--cow-backend", self.backend,
             "--", "sh", "-c", "echo ready; exec cat"],
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
        self.touched.update(path for step in steps for path in step[1:3])

    @property
    def has_layer(self) -> bool:
        return (self.viewfs.state / "viewfs/story").exists()

    @rule(after=st.booleans())
    def commit(self, after: bool) -> None:
        """In the view, or when it has ended."""
        if after:
            self.close()
            if self.has_layer:
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

    def outside(self) -> Plain:
        return plain(self.tree)

    @rule(after=st.booleans())
    def discard(self, after: bool) -> None:
        before = snapshot(self.tree)
        if after:
            self.close()
            if self.has_layer:
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

    @rule()
    def kill(self) -> None:
        """Its processes at once; what was done in the view is in its layer."""
        assert self.process is not None
        (session,) = self.viewfs("ps", "--json").json["sessions"]
        os.kill(session["pid"], signal.SIGKILL)
        self.process.communicate(timeout=SECONDS)
        self.open()

    @rule(number=st.integers(0, 150), how=st.sampled_from([killed_at, failing_at]))
    def interrupt_a_commit(self, number: int, how: Callable[[int], Callable[[], None]]) -> None:
        """It is killed before one of the calls that change something, or that call finds no room."""
        self.close()
        before, model = self.outside(), plain(self.model)
        if self.has_layer:
            self.interrupted_commit(how(number), CHANGING if how is killed_at else TAKING_ROOM)
            self.viewfs("diff", "--session", "story", check=False)  # recovers; there may be nothing left of it
            between = self.outside()
            if how is killed_at:
                assert between in (before, model), "all of it or nothing"
            for path in {*before, *model, *between}:
                assert between.get(path) in (before.get(path), model.get(path)), f"{path} is neither old nor new"
            if self.has_layer:
                self.viewfs("commit", "--session", "story")
            assert self.outside() == model
            self.epochs.clear()
        self.open()

    def interrupted_commit(self, count: Callable[[], None], names: Collection[str]) -> None:
        from viewfs.errors import ViewfsError

        def work() -> None:
            with contextlib.suppress(ViewfsError):
                commit(Cow(self.viewfs, self.tree, "story"), count, names)

        assert in_a_child(work) in (0, -signal.SIGKILL)

    @rule(steps=st.lists(WORK, min_size=1, max_size=4))
    def change_outside(self, steps: list[tuple[str, str, str, int]]) -> None:
        """What nobody has touched in the view is merged; where somebody has, both are kept."""
        self.close()
        base, model = plain(self.tree), plain(self.model)
        before = snapshot(self.tree)
        command = [sys.executable, str(self.script), json.dumps(steps)]
        subprocess.run(command, cwd=self.tree, check=True, capture_output=True)
        theirs, now = plain(self.tree), snapshot(self.tree)
        if self.has_layer:
            result = self.viewfs("commit", "--session", "story", check=False)
            after = plain(self.tree)
            if result.code and "nothing is committed" not in result.err:
                assert result.code == 1 and "were changed outside too, and stay so" in result.err, result
                self.nothing_is_lost(base, theirs)
                self.nothing_is_lost(base, model)
                self.directories_are_as_outside(base, theirs)
                self.viewfs("forget", "story")
            elif result.code:
                assert result.code == 1 and f"{self.tree}/" in result.err, result
                assert snapshot(self.tree) == now, "who is refused has changed nothing"
                changed = {
                    path for path in {*before, *now}
                    if before.get(path) != now.get(path) and not (Path(self.tree / path).is_dir() and path in base)
                } | {path for path in {*base, *theirs} if base.get(path) != theirs.get(path)}  # fmt: skip
                assert any(related(one, other) for one in changed for other in self.touched), "there is a reason"
                kept = self.viewfs("commit", "--session", "story", "--keep-theirs", check=False)
                assert kept.code == 0 or (kept.code == 1 and "were changed outside too, and stay so" in kept.err), kept
                self.nothing_is_lost(base, theirs)
                self.directories_are_as_outside(base, theirs)
                if self.has_layer:
                    self.viewfs("forget", "story")
                self.nothing_is_lost(base, model)
            else:
                for path in {*base, *theirs, *model}:
                    expected = model if base.get(path) == theirs.get(path) else theirs
                    assert after.get(path) in (expected.get(path), model.get(path)), f"{path}, changed by one of them"
                    if base.get(path) == model.get(path):
                        assert after.get(path) == expected.get(path), f"{path}, changed outside"
            self.epochs.clear()
        self.copy_model(self.tree, self.model)
        self.touched.clear()
        self.open()

    def directories_are_as_outside(self, base: Plain, theirs: Plain) -> None:
        """Each has the mode and the attributes that it was given there."""
        after = plain(self.tree)
        for path, row in theirs.items():
            old, new = base.get(path), after.get(path)
            if old and new and row != old and old[0][0] == row[0][0] == new[0][0] == "d":
                assert new == row, f"{path} has what it was given outside"

    def nothing_is_lost(self, base: Plain, written: Plain) -> None:
        """Each text of `written` that is not of `base` is somewhere in the tree."""
        old = {row[1] for row in base.values()}
        there = {row[1] for row in plain(self.tree).values()}
        for path, row in written.items():
            assert not row[1] or row[1] in old or row[1] in there, f"what was written to {path} is lost"

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


class StoryOnASmallDisk(Story):
    """The layers are on a disk that is full now and then. (It is a tmpfs, which a mount namespace of its own has.)"""

    def __init__(self) -> None:
        super().__init__()
        state = self.viewfs.state
        state.mkdir()
        mount = 'mount -t tmpfs -o size=4M,nr_inodes=2000 none "$0" && echo ready; exec cat'
        self.disk = subprocess.Popen(
            ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount", "sh", "-c", mount, state],
            stdin=-1, stdout=-1, text=True,
        )  # fmt: skip
        assert self.disk.stdout is not None and self.disk.stdout.readline() == "ready\n"
        enter = ["nsenter", "--target", str(self.disk.pid), "--user", "--mount", "--preserve-credentials"]
        self.viewfs.command = [*enter, "viewfs"]
        self.filled = Path(f"/proc/{self.disk.pid}/root{state}")

    @property
    def has_layer(self) -> bool:
        return (self.filled / "viewfs/story").exists()

    def fill(self, *, files: bool) -> None:
        """No room is left for a byte, nor, with `files`, for a name that is not there."""
        with contextlib.suppress(OSError), open(self.filled / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        with contextlib.suppress(OSError):
            for number in range(10_000 if files else 0):
                (self.filled / f"filler{number}").touch()

    def make_room(self) -> None:
        for path in self.filled.glob("filler*"):
            path.unlink()

    @rule(steps=st.lists(SIMPLE, min_size=1, max_size=6), files=st.booleans())
    def work_without_room(self, steps: list[tuple[str, str, str, int]], files: bool) -> None:
        """Until a step has no room: it is not done, or a part of its text is there."""
        self.touched.update(path for step in steps for path in step[1:3])
        for step in steps:
            self.fill(files=files)
            command = [sys.executable, str(self.script), json.dumps([step])]
            told = self.inside("env", "-C", str(self.tree), *command)
            self.make_room()
            if "ENOSPC" not in told:
                direct = subprocess.run(command, cwd=self.model, check=True, capture_output=True, text=True)
                assert told == direct.stdout, step
                continue
            what, path = step[:2]
            if what in ("write", "append"):
                self.text_in_part(path, step)

    def text_in_part(self, path: str, step: tuple[str, str, str, int]) -> None:
        file = self.model / path
        old = file.read_bytes() if file.exists() else None
        subprocess.run([sys.executable, str(self.script), json.dumps([step])], cwd=self.model, check=True)
        new = file.read_bytes()
        shown = self.inside("sh", "-c", 'cat "$0" 2>/dev/null || echo none', str(self.tree / path)).encode()
        if shown == b"none\n":
            assert old is None
            file.unlink()
        else:
            assert shown == old or new.startswith(shown), f"{path} has what nobody wrote"
            file.write_bytes(shown)

    def interrupted_commit(self, count: Callable[[], None], names: Collection[str]) -> None:
        self.fill(files=True)
        self.viewfs("commit", "--session", "story", check=False)
        self.make_room()

    def teardown(self) -> None:
        super().teardown()
        self.disk.communicate()


class ServedStoryOnASmallDisk(StoryOnASmallDisk):
    backend = "fuse"


@pytest.mark.parametrize("story", [Story, ServedStory, StoryOnASmallDisk, ServedStoryOnASmallDisk])
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
