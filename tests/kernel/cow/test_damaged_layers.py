"""Layers and journals that are damaged or foreign, and clients that ask for what no command asks for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View
from tests.kernel.cow.conftest import Cow, snapshot

RECORDS: dict[str, Callable[[dict[str, object]], object]] = {
    "empty": lambda _record: "",
    "cut": lambda record: json.dumps(record)[:40],
    "no object": lambda _record: [],
    "a number": lambda _record: 3,
    "no fields": lambda _record: {},
    "no path": lambda record: {name: value for name, value in record.items() if name != "path"},
    "no lower": lambda record: {name: value for name, value in record.items() if name != "lower"},
    "lower is a list": lambda record: record | {"lower": []},
    "lower is a word": lambda record: record | {"lower": "host"},
    "path is a number": lambda record: record | {"path": 3},
    "path is null": lambda record: record | {"path": None},
    "checkpoints without fields": lambda record: record | {"checkpoints": [{}]},
    "checkpoints are a number": lambda record: record | {"checkpoints": 3},
    "a checkpoint is elsewhere": lambda record: record | {
        "checkpoints": [{"epoch": 1, "name": "one", "directory": "../upper", "time_ns": 1}]
    },
    "linked is a list": lambda record: record | {"linked": [[1, 2]]},
    "linked is one number": lambda record: record | {"linked": {"1": 2}},
    "not UTF-8": lambda _record: b"\xff\xfe{}",
    "nested": lambda _record: "[" * 100_000,
    "of a later version": lambda record: record | {"schema": 999},
}  # fmt: skip


def put_record(path: Path, damage: str, record: dict[str, object]) -> None:
    written = RECORDS[damage](record)
    data = written if isinstance(written, bytes | str) else json.dumps(written)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


#: What is told of one that nobody can use.
ONE_LINE = re.compile(r"viewfs: [^\n]{1,1900}\n")


def test_what_a_layer_says_of_itself(cow: Cow, tree: Path) -> None:
    """One line says that its changes can't be had, and nothing is done; other sessions are not concerned."""
    cow.viewfs.sh("--name", "other", "--cow", tree, script=f"echo other > {tree}/text")
    cow.sh("echo x > text; viewfs checkpoint kept")
    before = snapshot(tree)
    path = cow.layer / "layer.json"
    whole = path.read_text()
    wrong: list[tuple[str, object]] = []
    for damage in RECORDS:
        put_record(path, damage, json.loads(whole))
        for result in (
            cow("diff", check=False),
            cow("commit", "--dry-run", check=False),
            cow.sh("echo text", check=False),
        ):
            fine = result.code == 0 and "text" in result.out and "checkpoint" in damage
            if not fine and (result.code not in (1, 2, 4) or not ONE_LINE.fullmatch(result.err)):
                wrong.append((damage, result))
        listed = cow.viewfs("ps", check=False)
        if "other" not in listed.out or listed.code or "Traceback" in listed.err:
            wrong.append((damage, listed))
        path.write_text(whole)
    assert not wrong, "\n".join(f"{damage}: {str(result)[:300]}" for damage, result in wrong)
    assert snapshot(tree) == before and cow.changes().keys() == {"text"}
    assert cow.viewfs("diff", "--session", "other", "--name-only").out == f"{tree}/text\n"


@pytest.mark.parametrize("damage", ["empty", "path is null", "nested"])
def test_it_can_be_got_rid_of(cow: Cow, tree: Path, damage: str) -> None:
    cow.sh("echo x > text; viewfs checkpoint kept; mkdir -m 0 closed")
    path = cow.layer / "layer.json"
    put_record(path, damage, json.loads(path.read_text()))
    assert cow.viewfs("forget", "cow").out.startswith("forgot cow")
    assert not (cow.viewfs.state / "viewfs/cow").exists() and cow.sh("cat text").out == "one\ntwo\nthree\n"


HEAD: dict[str, object] = {"schema": 4, "planned_ns": 1, "untouched": {}, "linked": [], "paths": [""]}


def journal(**changed: object) -> list[object]:
    step: dict[str, object] = {
        "operation": "install", "path": "text", "temporary": ".viewfs-0", "planned": None, "theirs": "",
        "attributes": {}, "before": {},
    }  # fmt: skip
    return [{**HEAD, "steps": 1}, step | changed, {"staged": {".viewfs-0": [1, 33188, 0, 0, 0, 0]}, "time_ns": 1}]


JOURNALS: dict[str, list[object] | bytes] = {
    "empty": b"",
    "not ASCII": b"\xff\xfe\n",
    "nested": b"[" * 100_000,
    "a list": [[]],
    "null": [None],
    "no fields": [{}],
    "of an earlier version": [{"schema": 1, "paths": [""], "steps": 0}],
    "cut in the steps": [{**HEAD, "steps": 3}, journal()[1]],
    "steps is a word": [{**HEAD, "steps": "many"}],
    "steps is negative": [{**HEAD, "steps": -1}, {}],
    "paths is a number": [{**HEAD, "paths": 3, "steps": 0}],
    "paths of numbers": [{**HEAD, "paths": [3], "steps": 0}],
    "a path that is a number": journal(path=3),
    "an operation that is none": journal(operation="format"),
    "planned without fields": journal(planned={}),
    "planned is a list": journal(planned=[1]),
    "a NUL in a path": journal(path="a\0b"),
    "a lone surrogate": journal(path="\ud800"),
    "staged is a list": [*journal()[:2], {"staged": []}],
    "staged is a number": [*journal()[:2], 3],
    "staged has too few": [*journal()[:2], {"staged": {".viewfs-0": [1, 2]}, "time_ns": 1}],
    "staged at no time": [*journal()[:2], {"staged": {}, "time_ns": "x"}],
    "planned at no time": [{**HEAD, "planned_ns": None, "steps": 0}],
    "untouched is a list": [{**HEAD, "untouched": [], "steps": 0}],
    "untouched has too few": [{**HEAD, "untouched": {"": [1]}, "steps": 0}],
    "linked is a number": [{**HEAD, "linked": 3, "steps": 0}],
    "linked has too few": [{**HEAD, "linked": [[1, 2]], "steps": 0}],
    "inodes are words": [*journal()[:2], {"staged": {".viewfs-0": "x"}}],
}


def put_journal(cow: Cow, lines: list[object] | bytes) -> None:
    data = lines if isinstance(lines, bytes) else "".join(json.dumps(line) + "\n" for line in lines).encode()
    (cow.layer / "commit.journal").write_bytes(data)


def test_a_journal_that_is_damaged(cow: Cow, tree: Path) -> None:
    """Nothing is done by guess, one line says so, and the changes can still be thrown away."""
    cow.sh("echo x > text")
    wrong: list[tuple[str, object]] = []
    refused = 0
    for damage, lines in JOURNALS.items():
        put_journal(cow, lines)
        result = cow("diff", check=False)
        refused += result.code == 1
        if result.code and not ("journal" in result.err and ONE_LINE.fullmatch(result.err)):
            wrong.append((damage, result))
        if not result.code and f"{tree}/text" not in result.out:
            wrong.append((damage, result))
        assert (tree / "text").read_text() == "one\ntwo\nthree\n", damage
    assert not wrong, "\n".join(f"{damage}: {str(result)[-300:]}" for damage, result in wrong)
    assert refused > 12
    put_journal(cow, b"no journal")
    assert cow("commit", check=False).code == 1
    cow.viewfs("forget", "cow")
    assert not (cow.viewfs.state / "viewfs/cow").exists()


def test_a_journal_that_leads_out_of_the_tree(cow: Cow, tree: Path) -> None:
    """State directories are copied and shared; nothing but the tree is changed by what is in one."""
    victim = tree.parent / "victim"
    victim.write_text("precious\n")
    before = victim.stat()
    cow.sh("echo x > text")
    (tree.parent / "staged").write_text("staged\n")
    expected = {
        "inode": before.st_ino, "kind": 0o100000, "size": before.st_size, "mtime_ns": before.st_mtime_ns,
        "ctime_ns": before.st_ctime_ns, "fingerprint": "",
    }  # fmt: skip
    attributes = {
        "mode": 0o100000,
        "uid": before.st_uid,
        "gid": before.st_gid,
        "xattrs": {},
        "atime_ns": 0,
        "mtime_ns": 0,
    }
    staged = (tree.parent / "staged").stat().st_ino
    for path in ("../victim", "directory/../../victim", f"{tree.parent}/victim"):
        for operation in ("remove", "install", "attributes"):
            temporary = path.replace("victim", "staged")
            lines = journal(
                operation=operation, path=path, temporary=temporary, planned=expected, attributes=attributes
            )
            lines[2] = {"staged": {temporary: staged}}
            put_journal(cow, lines)
            told = cow("diff", check=False)
            assert "Traceback" not in told.err, told
            after = victim.stat()
            assert victim.read_text() == "precious\n" and after.st_mode == before.st_mode, (path, operation, told)
            assert after.st_mtime_ns == before.st_mtime_ns and (tree.parent / "staged").exists()


ASK = """
import json, sys
from viewfs.errors import ViewfsError
from viewfs.session.client import find_session
session = find_session("test")
for arguments in json.loads(sys.argv[1]):
    try:
        op = arguments.pop("op")
        print("answered", session.request(op, **arguments))
    except ViewfsError as error:
        print("refused", type(error).__name__, error)
session.close()
"""


def ask(view: View, *requests: dict[str, object]) -> list[str]:
    """What the session answers to each request of a client that is not a command of viewfs."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(requests)],
        capture_output=True,
        text=True,
        env=view.viewfs.environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("directory", ["..", "../upper", "", "no-such", 3])
def test_a_state_that_is_no_state(open_view: Callable[..., View], tree: Path, directory: object) -> None:
    """`checkpoints/..` is the layer itself, and no state: who asks for it is refused, and the session goes on."""
    view = open_view("--cow", tree)
    view.sh(f"echo x > {tree}/text")
    before = view.json("epochs")["current"]
    (answer,) = ask(view, {"op": "keep", "name": "forged", "directory": directory, "operation": "checkpoint"})
    assert answer.startswith("refused"), answer
    assert view.json("epochs")["current"] == before
    gone = view("at", "forged", "--", "true", check=False)
    assert gone.code == 4 and gone.err.count("\n") == 1
    assert view("checkpoint", "real").code == 0 and view("at", "real", "--", "cat", tree / "text").out == "x\n"


def test_requests_that_no_command_makes(open_view: Callable[..., View], tree: Path) -> None:
    view = open_view("--cow", tree)
    view.sh(f"echo x > {tree}/text")
    requests: list[dict[str, object]] = [
        {"op": "layer"}, {"op": "layer", "path": 3, "states": []}, {"op": "layer", "path": "/", "states": ["x"]},
        {"op": "layer", "path": str(tree), "states": 3}, {"op": "state", "state": []}, {"op": "state"},
        {"op": "keep"}, {"op": "cow"}, {"op": "cow", "path": "relative", "cwd": "/", "backend": None},
        {"op": "cow", "path": str(tree), "cwd": 3, "backend": "none"}, {"op": "none"},
    ]  # fmt: skip
    answers = ask(view, *requests)
    assert len(answers) == len(requests) and all(answer.startswith("refused") for answer in answers), answers
    assert view.sh(f"cat {tree}/text").out == "x\n" and view("diff", "--name-only").out == f"{tree}/text\n"


def test_a_layer_that_was_being_made(cow: Cow) -> None:
    """When the machine went down: nothing has been in it, and nobody is told. One with changes is no such thing."""
    cow.sh("echo x > text")
    unfinished = cow.layer.parent / "tree-0123456789ab"
    (unfinished / "upper").mkdir(parents=True)
    assert cow("diff", "--name-only").err == ""
    (unfinished / "upper/file").touch()
    assert "layer.json can't be read" in cow("diff", "--name-only").err
    shutil.rmtree(unfinished)
