"""A commit that is killed before any of its system calls: the next command finishes or undoes it; nothing is lost."""

from __future__ import annotations

import errno
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.cow.conftest import Cow, Snapshot, snapshot

WORK = """
    echo changed > text
    rm directory/gone
    mkdir -p new/deep; echo n > new/file; ln new/file new/other; ln -s nowhere new/deep/link
    chmod 700 script
    ln script hard
    rm -r empty; echo file > empty
    rm binary; mkdir binary; echo x > binary/inside
    setfattr -n user.colour -v blue text
"""

#: What changes something, in any of the file systems concerned.
CHANGING = (
    "open", "mkdir", "symlink", "mknod", "link", "rename", "unlink", "rmdir", "chmod", "utime", "setxattr",
    "removexattr", "write", "pwrite", "copy_file_range", "ftruncate", "fsync", "chown",
)  # fmt: skip
#: Those of them that a full disk refuses.
TAKING_ROOM = (
    "open", "mkdir", "symlink", "mknod", "link", "rename", "setxattr", "write", "pwrite", "copy_file_range", "fsync",
)  # fmt: skip
#: Those that Python has no functions for, by the module that calls them.
CHANGING_BESIDES = (("viewfs.cow.commit.applying", "renameat2"), ("viewfs.cow.commit.commit", "syncfs"))


def killed_at(number: int) -> Callable[[], None]:
    """Count calls that change something, and end with SIGKILL before that one."""
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def failing_at(number: int) -> Callable[[], None]:
    """Count calls that take room on a disk; there is none for that one."""
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return count


def watch(count: Callable[[], None], names: Collection[str] = CHANGING) -> None:
    """Have `count` called before every change by these calls. Only ever in a process of its own."""
    places = [(os, name) for name in names]
    places += [(importlib.import_module(module), name) for module, name in CHANGING_BESIDES]
    for module, name in places:
        original = getattr(module, name)

        def wrapper(*arguments: Any, _original: Any = original, **keywords: Any) -> Any:
            count()
            return _original(*arguments, **keywords)

        setattr(module, name, wrapper)


def in_a_child(work: Callable[[], None]) -> int:
    """What `work` ended with, in a forked process: an exit code, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def commit(
    cow: Cow, count: Callable[[], None] | None = None, names: Collection[str] = CHANGING, *, keep_theirs: bool = False
) -> None:
    from viewfs.cow.commit.commit import Commit
    from viewfs.session.layer_access import Request, opened_layers

    os.environ.update(cow.viewfs.environment)
    with opened_layers(Request(cow.name)) as opened:
        (layer,) = opened.layers
        with layer.layer.locked():
            if count is not None:
                watch(count, names)
            one = Commit(layer.layer, layer.lower, layer.view, layer.upper, layer.selection, keep_theirs=keep_theirs)
            one.carry_out()


@pytest.mark.parametrize("keep_theirs", [False, True])
def test_killed_at_every_step(cow: Cow, tree: Path, tmp_path: Path, keep_theirs: bool) -> None:
    cow.sh(WORK)
    (tree / "text").write_text("changed outside\n") if keep_theirs else None
    before = snapshot(tree)
    state = cow.layer
    subprocess.run(["cp", "-a", tree, tmp_path / "tree0"], check=True)
    subprocess.run(["chmod", "-R", "u+rwx", state / "work"], check=True)  # the kernel's overlay leaves one without
    subprocess.run(["cp", "-a", state, tmp_path / "layer0"], check=True)
    reset(tree, state, tmp_path)
    assert in_a_child(lambda: commit(cow, keep_theirs=keep_theirs)) == 0
    after = snapshot(tree)
    assert after != before
    outcomes: dict[str, int] = {}
    number = 0
    while True:
        reset(tree, state, tmp_path)
        code = in_a_child(lambda: commit(cow, killed_at(number), keep_theirs=keep_theirs))  # noqa: B023
        if code == 0:
            break
        assert code == -signal.SIGKILL, f"step {number}"
        outcome = recovered(cow, tree, before, after, number, keep_theirs=keep_theirs)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        number += 1
    assert snapshot(tree) == after
    # Each way out was taken: before the journal, while staging, while applying, and afterwards.
    assert set(outcomes) == {"nothing", "undone", "finished", "complete"}, outcomes
    assert outcomes["undone"] >= 20 and outcomes["finished"] >= 20, outcomes


STRIDE = int(os.environ.get("VIEWFS_KILL_STRIDE", "3"))
#: What somebody does outside after the commit was killed, whatever it has done by then, to files that it replaces.
OUTSIDE = {
    "edited in place": "echo important > text",
    "replaced by rename": "echo important > other; mv other text",
    "made in a directory that goes": "echo important > empty/fresh 2>/dev/null || echo important > empty",
    "changed into another kind": "rm -r script; mkdir script; echo important > script/inside",
    "removed and made again": "rm -rf directory/gone; echo important > directory/gone",
}


@pytest.mark.parametrize("outside", OUTSIDE)
def test_killed_and_then_changed_outside(cow: Cow, tree: Path, tmp_path: Path, outside: str) -> None:
    """At every third step, others each time: what was written outside is there afterwards, under its own name or as
    NAME.viewfs-theirs. (At every step: `make soak`.)"""
    cow.sh(WORK)
    state = cow.layer
    subprocess.run(["cp", "-a", tree, tmp_path / "tree0"], check=True)
    subprocess.run(["chmod", "-R", "u+rwx", state / "work"], check=True)
    subprocess.run(["cp", "-a", state, tmp_path / "layer0"], check=True)
    number, kept, told = random.randrange(STRIDE), 0, 0
    while True:
        reset(tree, state, tmp_path)
        code = in_a_child(lambda: commit(cow, killed_at(number)))  # noqa: B023
        subprocess.run(["sh", "-c", OUTSIDE[outside]], cwd=tree, check=True)
        messages, _paths = looked_at(cow)
        files = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
        important = [path for path, content in files.items() if content == b"important\n"]
        assert important, f"lost at step {number}: {sorted(map(str, files))}"
        assert not [path for path in files if ".viewfs-" in path.name and "theirs" not in path.name], number
        if any(".viewfs-theirs" in str(path) for path in important):
            kept += 1
            told += any("is kept as" in message for message in messages)
        if code == 0:
            break
        number += STRIDE
    assert number > 60 and told == kept, "what is kept beside is told of"
    # Of what was already what it is to be, the mode alone, nothing is swapped out.
    assert kept > 0 or outside in ("removed and made again", "changed into another kind")


def reset(tree: Path, state: Path, tmp_path: Path) -> None:
    """The tree and the layer as they were before any commit; the directories themselves stay."""
    for source, target in ((tmp_path / "tree0", tree), (tmp_path / "layer0", state)):
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["chmod", "-R", "u+rwx", target], check=True)
        for name in os.listdir(target):
            path = target / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        subprocess.run(["cp", "-a", f"{source}/.", target], check=True)


def looked_at(cow: Cow) -> tuple[list[str], list[str]]:
    """What a command finds that looks at the changes: what it has to say first, and the paths that differ."""
    from viewfs.session.layer_access import Request, opened_layers

    read_end, write_end = os.pipe()

    def look() -> None:
        os.environ.update(cow.viewfs.environment)
        with opened_layers(Request("cow")) as opened:
            (layer,) = opened.layers
            paths = [layer.shown(change.path) for change in layer.changes() if not change.only_times]
            os.write(write_end, json.dumps([opened.messages, paths]).encode())

    assert in_a_child(look) == 0
    os.close(write_end)
    with open(read_end, "rb") as answer:
        messages, paths = json.load(answer)
    return messages, paths


def recovered(cow: Cow, tree: Path, before: Snapshot, after: Snapshot, number: int, *, keep_theirs: bool) -> str:
    """What the next command makes of it: "nothing", "undone", "finished", or "complete"; and that nothing is lost."""
    messages, paths = looked_at(cow)
    told = messages[0].rpartition(" was ")[2] if messages else "nothing"
    there = snapshot(tree)
    assert not [path for path in there if ".viewfs-" in path and "theirs" not in path], (number, told)
    if told == "nothing" and there == after:
        told = "complete"
    if told in ("finished", "complete"):
        assert there == after, number
        assert paths == [], number
    else:
        # Files that lay beside them for a while have changed the times of directories.
        assert without_times(there) == without_times(before), (number, told)
        assert len(paths) >= 10, number
        if number % 10 == 0:
            assert in_a_child(lambda: commit(cow, keep_theirs=keep_theirs)) == 0
            assert snapshot(tree) == after, number
    return told


def without_times(tree: Snapshot) -> Snapshot:
    return {path: row[:-1] for path, row in tree.items()}


def test_killed_in_a_running_view(cow: Cow, tree: Path) -> None:
    """The command itself, killed from outside while it waits for the disk, and the next one in the same view."""
    script = """
        for n in $(seq 30); do echo $n > file$n; done
        strace -f -qq -o /dev/null -e trace=renameat2 -e inject=renameat2:signal=KILL:when=12 \\
            viewfs commit || echo "killed: $?"
        viewfs diff --name-only
        viewfs commit
        viewfs diff
    """
    result = cow.sh(script)
    assert result.out.startswith("killed: 137\n") and "was finished" in result.err
    assert [(tree / f"file{n}").read_text() for n in range(1, 31)] == [f"{n}\n" for n in range(1, 31)]
    assert not list(tree.glob(".viewfs-*"))


def test_a_journal_that_is_damaged(cow: Cow) -> None:
    cow.sh("echo x > text")
    head = {"schema": 4, "planned_ns": 1, "untouched": {}, "linked": [], "paths": [""], "steps": 3}
    (cow.layer / "commit.journal").write_text(f"{json.dumps(head)}\nnot json\n")
    result = cow("commit", check=False)
    assert result.code == 1 and "the journal of an interrupted commit can't be read" in result.err
    assert result.err.count("\n") == 1


def test_discarded_is_not_finished(cow: Cow, tree: Path, tmp_path: Path) -> None:
    """A commit was killed when all was staged, and what it was of is away: it can be discarded, and then it is."""
    cow.sh("echo new > text")
    number = 0
    while (
        "staged" not in (cow.layer / "commit.journal").read_text() if (cow.layer / "commit.journal").exists() else True
    ):
        in_a_child(lambda: commit(cow, killed_at(number)))  # noqa: B023
        number += 1
    tree.rename(tmp_path / "away")
    assert cow("discard").code == 0
    (tmp_path / "away").rename(tree)
    cow.sh("true")
    assert (tree / "text").read_text() == "one\ntwo\nthree\n"


def test_undone_where_a_directory_is_a_file_now(cow: Cow, tree: Path) -> None:
    """What was staged in it went with it."""
    cow.sh("echo new > directory/deeper/file; echo new > text")
    for number in range(1000):
        in_a_child(lambda: commit(cow, killed_at(number)))  # noqa: B023
        if list((tree / "directory/deeper").glob(".viewfs-*")):
            break
    shutil.rmtree(tree / "directory")
    (tree / "directory").write_text("a file\n")
    told = cow("diff", "--name-only")
    assert "was undone" in told.err and f"{tree}/text\n" in told.out
    cow("commit", tree / "text")
    assert (tree / "text").read_text() == "new\n" and (tree / "directory").read_text() == "a file\n"


@pytest.mark.parametrize(
    "meanwhile", ["echo outside > text", "ln -f script text", "rm -f text", "touch new", "chmod 600 text"]
)
def test_what_is_changed_outside_while_it_is_staged(cow: Cow, tree: Path, meanwhile: str) -> None:
    """Staging can take minutes: nothing is replaced that is not what it was when conflicts were looked for."""
    cow.sh("echo inside > text; echo n > new")

    def work() -> None:
        from viewfs.cow.commit.commit import Commit
        from viewfs.errors import ViewfsError
        from viewfs.session.layer_access import Request, opened_layers

        os.environ.update(cow.viewfs.environment)

        def change(_staged: int) -> None:
            subprocess.run(["sh", "-c", meanwhile], cwd=tree, check=True)

        with opened_layers(Request("cow")) as opened:
            (layer,) = opened.layers
            with layer.layer.locked():
                one = Commit(layer.layer, layer.lower, layer.view, layer.upper, layer.selection, keep_theirs=False)
                with pytest.raises(ViewfsError, match="changed outside just now"):
                    one.carry_out(change)

    kept = {path.name for path in tree.iterdir()}
    assert in_a_child(work) == 0
    names = {path.name for path in tree.iterdir()}
    assert names ^ kept <= {"new", "text", "script"} and not list((tree / ".").glob(".viewfs-*"))
    if "outside" in meanwhile:
        assert (tree / "text").read_text() == "outside\n"
    assert cow.changes().keys() >= {"text"} and "new" in cow.changes()


def commit_and(cow: Cow, meanwhile: Callable[[], object], *, killed: bool = False) -> None:
    """A commit, and what somebody does outside when it has put all in its place and has not ended yet; `killed`: it
    does not."""

    def work() -> None:
        import viewfs.cow.commit.commit as module

        applying = module.apply

        def apply(*arguments: Any) -> Any:
            done = applying(*arguments)
            meanwhile()
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        module.apply = apply
        commit(cow)

    assert in_a_child(work) == (-signal.SIGKILL if killed else 0)


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_changed_outside_while_it_is_put_in_its_place(cow: Cow, tree: Path, killed: bool) -> None:
    """What the commit itself has written is no news; what comes between that and its end is, whenever the end is."""
    cow.sh("echo new > text; mkdir made; echo 1 > made/file; chmod 700 script; echo x >> directory/deeper/file")

    def meanwhile() -> None:
        (tree / "text").write_text("precious\n")
        (tree / "made/outside").write_text("precious\n")
        (tree / "made/file").write_text("precious\n")
        (tree / "script").chmod(0o600)

    commit_and(cow, meanwhile, killed=killed)
    refused = cow("commit", check=False)
    assert refused.code == 1, refused
    for path in ("text", "made/outside", "made/file"):
        assert (tree / path).read_text() == "precious\n" and f"{tree}/{path}: " in refused.err, path
    assert (tree / "script").stat().st_mode & 0o777 == 0o600
    assert "deeper" not in refused.err, "of that nobody has changed anything"


def test_what_both_write_while_it_is_staged(cow: Cow, tree: Path) -> None:
    """It is none of this commit, and a conflict for the next."""
    cow.sh("echo new > text")
    upper = cow.layer / "upper"

    def meanwhile() -> None:
        (upper / "script").write_text("inside\n")  # as a view that runs leaves it
        (tree / "script").write_text("precious\n")

    commit_and(cow, meanwhile)
    refused = cow("commit", check=False)
    assert refused.code == 1 and f"{tree}/script: it was changed outside too" in refused.err
    assert (tree / "script").read_text() == "precious\n" and (tree / "text").read_text() == "new\n"


def killed_when_staged(cow: Cow) -> None:
    def work() -> None:
        import viewfs.cow.commit.commit as module

        module.apply = lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        commit(cow)

    assert in_a_child(work) == -signal.SIGKILL


def test_attributes_that_were_changed_outside_since_it_was_killed(cow: Cow, tree: Path) -> None:
    for name in ("text", "script"):
        (tree / name).chmod(0o644)
    cow.sh("chmod 755 text; touch -d 2001-01-01 script; chmod 750 directory; chmod 711 empty")
    killed_when_staged(cow)
    (tree / "text").chmod(0o600)
    (tree / "script").write_text("precious\n")
    (tree / "directory").chmod(0o700)
    os.setxattr(tree / "directory", "user.x", b"1")
    told = cow("diff", "--name-only")
    assert "was finished" in told.err and "it was changed outside meanwhile" in told.err
    assert oct((tree / "text").stat().st_mode & 0o777) == "0o600"
    assert (tree / "script").stat().st_mtime_ns > 1_700_000_000 * 10**9
    assert oct((tree / "directory").stat().st_mode & 0o777) == "0o700" and os.listxattr(tree / "directory")
    assert oct((tree / "empty").stat().st_mode & 0o777) == "0o711", "the others are done"


def test_a_directory_that_was_moved_since_it_was_killed(cow: Cow, tree: Path) -> None:
    cow.sh("echo new > directory/gone; echo new > directory/deeper/file; echo new > text")
    killed_when_staged(cow)
    (tree / "directory").rename(tree / "moved")
    (tree / "directory/deeper").mkdir(parents=True)
    (tree / "directory/gone").write_text("precious\n")
    told = cow("diff", "--name-only")
    assert "was finished" in told.err and "not committed" in told.err
    assert (tree / "text").read_text() == "new\n" and (tree / "directory/gone").read_text() == "precious\n"
    refused = cow("commit", check=False)
    assert refused.code == 1 and f"{tree}/directory/gone: it was changed outside too" in refused.err
    assert (tree / "directory/gone").read_text() == "precious\n"
