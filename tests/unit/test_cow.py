"""The parts of copy-on-write that need no overlay: trees, copies, differences, selections, journals, layers."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewfs.cli.changes import unified_hunks
from viewfs.cli.output import progress_bar
from viewfs.cli.quick.requests import parse_cow
from viewfs.cow.commit.journal import Journal, Moments, Operation, Planned, Staged, Step
from viewfs.cow.commit.planning import Selection, plan_commit
from viewfs.cow.compare.changes import Kind, differences, same_content, same_time, with_renames
from viewfs.cow.compare.trees import Tree, data_extents
from viewfs.cow.copying import TreeCopier, decode_attributes, encode_attributes, remove_tree
from viewfs.cow.export.images import FORMATS, format_of
from viewfs.cow.layer.layers import LayerSet
from viewfs.cow.layer.records import LayerRecord, Lower
from viewfs.errors import NotFoundError, UsageError, ViewfsError
from viewfs.linux.files import chmod_at
from viewfs.session.layer_access import select

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name and b"\0" not in name)
PATHS = st.lists(NAMES, max_size=4).map(b"/".join)


@contextlib.contextmanager
def tree(path: Path) -> Iterator[Tree]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Tree(fd)
    finally:
        os.close(fd)


def test_nothing_leads_out_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/link").symlink_to("../outside")
    (tmp_path / "inside/absolute").symlink_to(tmp_path / "outside")
    with tree(tmp_path / "inside") as inside:
        for path in (b"link/secret", b"absolute/secret", b"../outside/secret", b"link/../../outside/secret"):
            with pytest.raises(OSError):
                inside.open(path)
        assert inside.entry(b"link/secret") is None and inside.names(b"link") == []
        assert inside.entry(b"link").target == b"../outside"  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=6), st.integers(0, 60))
def test_holes_stay_holes(tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]], size: int) -> None:
    top = tmp_path_factory.mktemp("holes")
    (top / "a").mkdir()
    (top / "b").mkdir()
    with open(top / "a/file", "wb") as file:
        for block, length in pieces:
            file.seek(block * 4096)
            file.write(os.urandom(length * 100))
        file.truncate(size * 4096 + 7)
    with tree(top / "a") as source, tree(top / "b") as target:
        TreeCopier(source, target).copy(b"file", b"copy")
        assert (top / "b/copy").read_bytes() == (top / "a/file").read_bytes()
        assert same_content(b"file", source, target, size * 4096 + 7, b"copy")
        assert (top / "b/copy").stat().st_blocks <= (top / "a/file").stat().st_blocks
        fd = source.open(b"file")
        extents = list(data_extents(fd, size * 4096 + 7))
        os.close(fd)
        assert all(begin < end <= size * 4096 + 7 for begin, end in extents) and extents == sorted(extents)
    with tree(top) as here:
        remove_tree(here.root, b"a")
    assert not (top / "a").exists()


def test_copies_keep_what_belongs_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "a/d").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a/d/file").write_text("x")
    os.link(tmp_path / "a/d/file", tmp_path / "a/other")
    os.mkfifo(tmp_path / "a/fifo", 0o640)
    (tmp_path / "a/link").symlink_to("nowhere")
    os.chmod(tmp_path / "a/d/file", 0o4711)
    os.utime(tmp_path / "a/d", ns=(1, 2))
    with tree(tmp_path / "a") as source, tree(tmp_path / "b") as target:
        TreeCopier(source, target).copy(b"", b"copy")
        with tree(tmp_path / "b/copy") as copy:
            assert [c for c in differences(source, copy, None) if not c.only_times or not c.is_directory] == []
    assert (tmp_path / "b/copy/other").stat().st_ino == (tmp_path / "b/copy/d/file").stat().st_ino
    assert (tmp_path / "b/copy/d").stat().st_mtime_ns == 2


@given(PATHS, NAMES, st.sampled_from(Operation), st.integers(0, 1 << 62), PATHS)
def test_steps_survive_the_journal(path: bytes, name: bytes, operation: Operation, inode: int, theirs: bytes) -> None:
    planned = Planned(inode, 0o100000, 1, -5, 7, "print") if inode else None
    step = Step(operation, path, name, planned, theirs, {"mode": 1})
    assert Step.from_json(step.to_json()) == step


def test_a_journal_says_how_far_it_came(tmp_path: Path) -> None:
    with tree(tmp_path) as layer:
        journal = Journal(layer.root)
        assert journal.read() is None
        steps = [
            Step(Operation.INSTALL, b"\xff\n", b".t"),
            Step(Operation.REMOVE, b"b", b".u", Planned(7, 0o40000, 0, 1, 2)),
        ]
        moments = Moments(5, {b"\xff": (0o40700, 1, 2)})
        journal.begin([b"\xff"], steps, moments)
        assert journal.read() == ([b"\xff"], steps, None, moments)
        with open(tmp_path / "commit.journal", "ab") as file:
            file.write(b'{"stag')  # what the power's failing leaves
        assert journal.read() == ([b"\xff"], steps, None, moments)
        journal.end()
        journal.begin([b""], steps, moments)
        staged = {b".t": Staged(9, 0o100644, 1, 2, 3, 4), b"\xff": Staged(1, 0o40755, 0, 0, 0, -5)}
        journal.staged(staged, 8)
        assert journal.read() == ([b""], steps, staged, replace(moments, staged_ns=8))
        for text in (b"{}\n", b"[]\n", b"\xff\xfe", b"", b'{"schema": 4, "paths": [], "steps": 1}\n{"operation": 5}\n'):
            (tmp_path / "commit.journal").write_bytes(text)
            with pytest.raises(ViewfsError, match="can't be read"):
                journal.read()


def test_attributes_survive_the_journal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.setxattr(tmp_path / "file", "user.test", b"\0\xff")
    with tree(tmp_path) as top:
        entry = top.entry(b"file")
        assert entry is not None
        back = decode_attributes(encode_attributes(entry))
        assert (back.mode, back.mtime_ns, back.xattrs) == (entry.mode, entry.mtime_ns, entry.xattrs)


@given(st.lists(PATHS, min_size=1, max_size=3), PATHS)
def test_selections(chosen: list[bytes], path: bytes) -> None:
    selection = Selection(chosen)
    parts = path.split(b"/") if path else []
    above = [b"/".join(parts[:n]) for n in range(len(parts) + 1)]
    assert selection.has(path) == any(one in above for one in chosen)


def test_which_layers_paths_name() -> None:
    points = ["/home/u", "/home/u/mnt", "/srv"]
    assert select(points, []) == {point: [b""] for point in points}
    assert select(points, ["/home/u/mnt/a", "/home/u/b"]) == {"/home/u/mnt": [b"a"], "/home/u": [b"b"]}
    assert select(points, ["/home"]) == {"/home/u": [b""], "/home/u/mnt": [b""]}
    assert select(points, ["/"]) == {point: [b""] for point in points}
    assert select(points, ["/home/u"]) == {"/home/u": [b""], "/home/u/mnt": [b""]}
    with pytest.raises(NotFoundError, match="/usr is not copy-on-write"):
        select(points, ["/usr"])


def test_a_plan_does_what_is_selected_and_no_more(tmp_path: Path) -> None:
    for side in ("old", "new"):
        (tmp_path / side / "d").mkdir(parents=True)
        (tmp_path / side / "d/same").write_text("same")
    (tmp_path / "new/d/added").write_text("n")
    (tmp_path / "old/d/gone").write_text("g")
    (tmp_path / "new/e/f").mkdir(parents=True)
    (tmp_path / "new/e/f/deep").write_text("deep")
    os.utime(tmp_path / "new/d/same", ns=(0, 0))
    with tree(tmp_path / "old") as old, tree(tmp_path / "new") as new:
        changes = list(differences(old, new, None))

        def steps(*paths: bytes) -> list[tuple[str, bytes]]:
            plan = plan_commit(changes, Selection(paths), old, new, b"t", {})
            return [(step.operation.value, step.path) for step in plan.steps]

        assert steps(b"d/added") == [("install", b"d/added")]
        assert steps(b"d/gone") == [("remove", b"d/gone")]
        assert steps(b"e/f/deep") == [("install", b"e")]
        assert steps(b"d/same") == [("attributes", b"d/same")]
        everything = steps(b"")
        assert everything[:3] == [("install", b"d/added"), ("remove", b"d/gone"), ("install", b"e")]
        assert [path for _operation, path in everything[3:]] == [b"d/same", b"d", b""]


def test_what_was_renamed(tmp_path: Path) -> None:
    for side in ("old", "new"):
        (tmp_path / side).mkdir()
    for name, content in (("a", "1"), ("b", "22"), ("empty", "")):
        (tmp_path / "old" / name).write_text(content)
        (tmp_path / "new" / f"{name}.new").write_text(content)
    (tmp_path / "new/another").write_text("1")
    with tree(tmp_path / "old") as old, tree(tmp_path / "new") as new:
        told = {c.path: (c.kind, c.source) for c in with_renames(differences(old, new, None), old, new) if c.path}
    assert told[b"b.new"] == (Kind.RENAMED, b"b") and told[b"a.new"] == (Kind.RENAMED, b"a")
    assert told[b"another"][0] is told[b"empty.new"][0] is Kind.ADDED and told[b"empty"][0] is Kind.DELETED


def test_times_of_file_systems_that_keep_seconds() -> None:
    assert same_time(5 * 10**9, 5 * 10**9 + 7) and same_time(7, 7)
    assert not same_time(5 * 10**9 + 7, 5 * 10**9) and not same_time(5 * 10**9, 6 * 10**9)


def test_a_layer_is_that_of_its_mount_point(tmp_path: Path) -> None:
    with tree(tmp_path) as top:
        root = top.entry(b"")
        assert root is not None
        layers = LayerSet.of_session("name", str(tmp_path / "state"), create=True)
        assert layers is not None
        one = layers.layer("/home/a b", Lower("host"), root, now_ns=5)
        again = layers.layer("/home/a b", Lower("host"), root, now_ns=9)
        assert one.record == again.record == LayerRecord("/home/a b", Lower("host"), 5)
        other = layers.layer("/srv/a b", Lower("host"), root, now_ns=9)
        listed = list(layers.layers())
        assert [layer.record.path for layer in listed] == ["/home/a b", "/srv/a b"]
        with pytest.raises(UsageError, match="were made over host, and now there is image"):
            layers.layer("/home/a b", Lower("ext", "image"), root, now_ns=9)
        for layer in (one, again, other, *listed):
            layer.close()
        layers.remove()
        layers.close()
        assert not (tmp_path / "state").exists()


@given(st.lists(st.tuples(st.sampled_from([b"", b"a", b"a/b", b"c"]), st.integers(1, 100)), max_size=5))
def test_the_time_that_counts_is_that_of_the_last_commit(commits: list[tuple[bytes, int]]) -> None:
    record = LayerRecord("/x", Lower("host"), 0)
    now = 0
    last = dict.fromkeys((b"a", b"a/b", b"c", b"d"), 0)
    for path, later in commits:
        now += later
        record = record.rebased([path], now)
        last |= {one: now for one in last if not path or one == path or one.startswith(path + b"/")}
    assert {path: record.base_ns(path) for path in last} == last


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.ext4", "ext4"),
        ("a.img", "ext4"),
        ("x.sqfs", "squashfs"),
        ("x.tar.zst", "tar"),
        ("d/", "directory"),
        ("d", "directory"),
    ],
)
def test_formats_by_name(name: str, kind: str) -> None:
    assert format_of(name, None) is FORMATS[kind]


def test_paths_of_an_option() -> None:
    assert [row["path"] for row in parse_cow("/a,/b\\,c,/d")] == ["/a", "/b,c", "/d"]
    with pytest.raises(UsageError, match="not of the form"):
        parse_cow("/a,,/b")


LINES = st.lists(st.sampled_from(["one", "two", "three", ""]), max_size=30)


@given(LINES, LINES, LINES, LINES)
def test_a_unified_diff_leads_from_one_to_the_other(
    head: list[str], before: list[str], after: list[str], tail: list[str]
) -> None:
    before, after = [*head, *before, *tail], [*head, *after, *tail]
    hunks = unified_hunks(before, after)
    assert hunks is not None
    made: list[str] = []
    position = 0
    for line in hunks:
        if match := re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", line):
            begin = int(match[1]) - (match[2] != "0")
            made += before[position:begin]
            position = begin
            assert int(match[3]) - (match[4] != "0") == len(made)
        elif line[0] == "+":
            made.append(line[1:])
        else:
            assert before[position] == line[1:]
            made += [line[1:]] if line[0] == " " else []
            position += 1
    assert made + before[position:] == after
    assert bool(hunks) == (before != after)


def test_a_unified_diff_of_what_is_long() -> None:
    before = [str(number) for number in range(100_000)]
    changed = [*before[:50_000], "other", *before[50_001:]]
    hunks = unified_hunks(before, changed)
    assert hunks == ["@@ -49998,7 +49998,7 @@", " 49997", " 49998", " 49999", "-50000", "+other", " 50001", " 50002",
                     " 50003"]  # fmt: skip
    assert unified_hunks(before, before[::-1]) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown", "patience", "seen"), [
    (Terminal(), True, 0.0, True), (Terminal(), True, 60.0, False), (Terminal(), False, 0.0, False),
    (io.StringIO(), True, 0.0, False),
])  # fmt: skip
def test_a_bar_is_for_people_who_wait(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, shown: bool, patience: float, seen: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("staging", 4_000_000, shown=shown, patience=patience) as told:
        told(1_000_000)
        told(1_000_000)
    assert ("staging" in stream.getvalue() and "/4.0 MB" in stream.getvalue()) == seen


@pytest.mark.skipif(os.getuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_refused_by_each_of_its_names(tmp_path: Path) -> None:
    """And one that was taken away again after it was copied is copied anew."""
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    for name in ("secret", "plain"):
        (tmp_path / "source" / name).write_text(name)
        os.link(tmp_path / "source" / name, tmp_path / "source" / f"other-{name}")
    (tmp_path / "source/secret").chmod(0)
    with tree(tmp_path / "source") as source, tree(tmp_path / "target") as target:
        copier = TreeCopier(source, target)
        for name in (b"secret", b"other-secret"):
            with pytest.raises(PermissionError):
                copier.copy(name, name)
        copier.copy(b"plain", b"plain")
        os.unlink(tmp_path / "target/plain")
        copier.removed(b"plain")
        copier.copy(b"other-plain", b"other-plain")
        copier.copy(b"plain", b"plain")
    assert sorted(os.listdir(tmp_path / "target")) == ["other-plain", "plain"]
    assert (tmp_path / "target/plain").samefile(tmp_path / "target/other-plain")


def test_modes_of_what_is_behind_a_link_stay(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o600)
    (tmp_path / "link").symlink_to("file")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="/proc/self/fd"):
            chmod_at(fd, b"link", 0o777)
        chmod_at(fd, b"file", 0o640)
    finally:
        os.close(fd)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o640
