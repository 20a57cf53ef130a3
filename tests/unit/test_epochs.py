"""The epoch stack: worked examples, and a comparison with a model that keeps a whole mount tree for every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from viewfs.epochs import Epoch, EpochStack, Mount, covers

# -- examples


def test_the_view_as_it_began() -> None:
    stack = EpochStack.begin(time_ns=7)
    assert stack.current == 0
    assert stack.resolve("/etc/passwd").serving is None, "the host serves it"
    assert stack.enterable() == [0]
    assert (stack.change(Epoch(0)).operation, stack.change(Epoch(0)).time_ns) == ("start", 7)


def test_an_image_mounted_over_the_file_system_that_holds_it() -> None:
    """FS1 is on /mnt, and /mnt/image, which lies in it, is mounted over /mnt again."""
    stack = EpochStack.begin(0)
    fs1 = stack.mount("/mnt", "ext", "disk.img")
    fs2 = stack.mount("/mnt", "ext", "/mnt/image", made_from=fs1.made_in)
    assert (fs1.made_in, fs2.made_in) == (1, 2)

    now = stack.resolve("/mnt/image")
    assert now.serving == fs2 and now.shadowed == (fs1,), "a user process sees the newest"
    before = stack.resolve("/mnt/image", Epoch(fs2.made_in - 1))
    assert before.serving == fs1 and before.shadowed == (), "the module sees what was there before it"
    assert stack.is_shadowed(fs1) and not stack.is_shadowed(fs2)
    assert not stack.is_shadowed(fs1, Epoch(1))
    assert stack.pins(fs1) == [fs2] and stack.pins(fs2) == []
    assert stack.below(fs1) == [fs2], "FS1 is busy"

    stack.remove(fs2)
    assert stack.resolve("/mnt/image").serving == fs1
    assert stack.pins(fs1) == []
    assert stack.alive() == {1}
    assert stack.enterable() == [0, 1, 3], "epoch 2 had FS2 in it"


def test_what_is_unmounted_lives_on_for_who_reads_from_it() -> None:
    stack = EpochStack.begin(0)
    lower = stack.mount("/mnt", "ext", "disk.img")
    upper = stack.mount("/other", "ext", "/mnt/image", made_from=lower.made_in)
    gone_in = stack.remove(lower)

    assert gone_in == 3 and stack.mounts[lower.made_in].removed_in == 3
    assert stack.resolve("/mnt/image").serving is None, "it leaves the live view at once"
    assert stack.live() == [upper]
    assert stack.alive() == {lower.made_in, upper.made_in}
    assert [pin.made_in for pin in stack.pins(lower)] == [upper.made_in]
    assert stack.enterable() == [0, 1, 2, 3], "everything in them still works"

    stack.remove(upper)
    assert stack.alive() == set()
    assert stack.pins(lower) == []
    assert stack.enterable() == [0, 4]


def test_ten_levels_live_as_long_as_the_last() -> None:
    stack = EpochStack.begin(0)
    levels: list[Mount] = []
    for _ in range(10):
        made_from = levels[-1].made_in if levels else None
        levels.append(stack.mount("/mnt", "ext", "/mnt/image" if levels else "disk.img", made_from=made_from))

    seen = stack.resolve("/mnt/image")
    assert [seen.serving, *seen.shadowed] == levels[::-1]
    for number in range(1, 10):
        assert stack.resolve("/mnt", Epoch(number)).serving == levels[number - 1]
        assert stack.pins(levels[number - 1]) == [levels[number]]
    assert stack.below(levels[0]) == levels[:0:-1]

    # However it comes about that all but the last are gone from the view.
    for level in levels[:-1]:
        stack.remove(level)
    assert stack.alive() == {level.made_in for level in levels}
    stack.remove(levels[-1])
    assert stack.alive() == set()


def test_a_module_that_uses_the_view_pins_all_of_its_epoch() -> None:
    stack = EpochStack.begin(0)
    early = stack.mount("/a", "ext")
    stack.remove(early)
    seen = stack.mount("/b", "ext")
    reader = stack.mount("/c", "grep", uses_view=True)
    later = stack.mount("/d", "ext")
    stack.remove(seen)
    stack.remove(later)
    assert stack.alive() == {seen.made_in, reader.made_in}, "neither what was gone before nor what came after"
    assert stack.pins(seen) == [reader]
    assert stack.pins(early) == stack.pins(later) == []


def test_a_mount_above_covers_what_is_below_but_not_its_neighbours() -> None:
    stack = EpochStack.begin(0)
    below = stack.mount("/a/b", "ext")
    neighbour = stack.mount("/ab", "ext")
    above = stack.mount("/a", "tmp")
    assert stack.resolve("/a/b/file").serving == above
    assert stack.resolve("/a/b/file").shadowed == (below,)
    assert stack.is_shadowed(below)
    assert stack.resolve("/ab/file").serving == neighbour
    assert stack.visible_on("/a/b") is None, "in the newest view that is an ordinary directory"
    inside = stack.mount("/a/b", "ext")
    assert stack.visible_on("/a/b") == inside
    assert stack.below(above) == [inside]


def test_the_log_says_what_was_done() -> None:
    stack = EpochStack.begin(0)
    mounted = stack.mount("/mnt", "ext", "disk.img", time_ns=5, operation="insmod")
    stack.remove(mounted, time_ns=9, operation="rmmod")
    made, removed = stack.changes[1:]
    assert (made.epoch, made.time_ns, made.operation, made.path, made.type, made.source, made.mount) == (
        1, 5, "insmod", "/mnt", "ext", "disk.img", 1,
    )  # fmt: skip
    assert (removed.epoch, removed.operation, removed.path, removed.mount) == (2, "rmmod", "/mnt", 1)
    assert stack.change(Epoch(2)) == removed
    for never in (-1, 3):
        assert Epoch(never) not in stack
        with pytest.raises(KeyError):
            stack.change(Epoch(never))


@pytest.mark.parametrize(
    ("directory", "path", "expected"),
    [
        ("/", "/", True),
        ("/", "/a", True),
        ("/a", "/a", True),
        ("/a", "/a/b", True),
        ("/a", "/ab", False),
        ("/a", "/", False),
        ("/a/b", "/a", False),
    ],
)
def test_covers(directory: str, path: str, expected: bool) -> None:
    assert covers(directory, path) is expected


# -- the model


@dataclass(frozen=True)
class Attached:
    """A mount as the kernel has it: where it hangs, and in which other mount (0: the host's root)."""

    id: int
    parent: int
    path: str


Tree = tuple[Attached, ...]


def prefixes(path: str) -> list[str]:
    """`/`, `/a`, `/a/b` for `/a/b`: what a path walk comes by."""
    parts = [part for part in path.split("/") if part]
    return ["/", *("/" + "/".join(parts[: count + 1]) for count in range(len(parts)))]


def walk(tree: Tree, path: str) -> tuple[int, str]:
    """The mount that a path walk ends in, and where that mount begins. It crosses mount points as it meets them."""
    here, place = 0, "/"
    for prefix in prefixes(path):
        while (over := next((m for m in tree if m.parent == here and m.path == prefix), None)) is not None:
            here, place = over.id, prefix
    return here, place


@dataclass(frozen=True)
class Made:
    """What a mount was made with."""

    path: str
    made_from: int | None
    uses_view: bool


PATHS = ("/", "/a", "/a/b", "/a/b/c", "/ab", "/x")
ASKED = (*PATHS, "/a/b/c/file", "/abc", "/x/y")


class EpochsAgainstTrees(RuleBasedStateMachine):
    """Mounts and unmounts as the kernel allows them: only what is visible and has no mount in it can be unmounted."""

    @initialize()
    def begin(self) -> None:
        self.stack = EpochStack.begin(0)
        self.trees: list[Tree] = [()]
        self.made: dict[int, Made] = {}

    def mount_of(self, number: int) -> Mount:
        return self.stack.mounts[Epoch(number)]

    @rule(path=st.sampled_from(PATHS), uses_view=st.booleans(), data=st.data())
    def mount(self, path: str, uses_view: bool, data: st.DataObject) -> None:
        made_from = data.draw(st.none() | st.sampled_from(sorted(self.made)) if self.made else st.none())
        number = len(self.trees)
        parent, _place = walk(self.trees[-1], path)
        self.trees.append((*self.trees[-1], Attached(number, parent, path)))
        self.made[number] = Made(path, made_from, uses_view)
        made = self.stack.mount(
            path, "test", made_from=None if made_from is None else Epoch(made_from), uses_view=uses_view
        )
        assert made.made_in == number

    @precondition(lambda self: self.trees[-1])
    @rule(data=st.data())
    def unmount(self, data: st.DataObject) -> None:
        tree = self.trees[-1]
        parents = {attached.parent for attached in tree}
        free = [
            attached for attached in tree if attached.id not in parents and walk(tree, attached.path)[0] == attached.id
        ]
        assume(free)
        attached = data.draw(st.sampled_from(free))
        mount = self.stack.visible_on(attached.path)
        assert mount is not None and mount.made_in == attached.id
        assert self.stack.remove(mount) == len(self.trees)
        self.trees.append(tuple(other for other in tree if other != attached))

    def model_alive(self) -> set[int]:
        """What is in the view, and what that needs, again and again until nothing more is needed."""
        alive = {attached.id for attached in self.trees[-1]}
        while True:
            needed = {made_from for number in alive if (made_from := self.made[number].made_from) is not None}
            for number in alive:
                if self.made[number].uses_view:
                    needed |= {attached.id for attached in self.trees[number - 1]}
            if needed <= alive:
                return alive
            alive = alive | set(needed)

    @invariant()
    def every_path_in_every_epoch(self) -> None:
        assert self.stack.current == len(self.trees) - 1
        for epoch, tree in enumerate(self.trees):
            assert [mount.made_in for mount in self.stack.in_epoch(Epoch(epoch))] == [attached.id for attached in tree]
            for path in ASKED:
                found = self.stack.resolve(path, Epoch(epoch))
                serving, _place = walk(tree, path)
                assert (found.serving.made_in if found.serving else 0) == serving
                # A mount leads to the path if its own place is on the way there.
                leading = [attached.id for attached in tree if attached.path in prefixes(path)]
                assert [mount.made_in for mount in found.shadowed] == [one for one in leading[::-1] if one != serving]
            for attached in tree:
                shadowed = walk(tree, attached.path)[0] != attached.id
                assert self.stack.is_shadowed(self.mount_of(attached.id), Epoch(epoch)) is shadowed

    @invariant()
    def visible_mount_points_and_what_keeps_them_busy(self) -> None:
        tree = self.trees[-1]
        for path in ASKED:
            number, place = walk(tree, path)
            visible = self.stack.visible_on(path)
            assert (visible.made_in if visible else 0) == (number if place == path else 0)
            if visible is not None:
                inside: set[int] = {visible.made_in}
                while more := {attached.id for attached in tree if attached.parent in inside} - inside:
                    inside |= more
                assert [mount.made_in for mount in self.stack.below(visible)] == sorted(
                    inside - {visible.made_in}, reverse=True
                )

    @invariant()
    def who_lives_and_why(self) -> None:
        alive = self.model_alive()
        assert set(self.stack.alive()) == alive
        for number in self.made:
            pinning = [
                other
                for other in sorted(alive, reverse=True)
                if self.made[other].made_from == number
                or (self.made[other].uses_view and number in {attached.id for attached in self.trees[other - 1]})
            ]
            assert [mount.made_in for mount in self.stack.pins(self.mount_of(number))] == pinning
        assert self.stack.enterable() == [
            epoch for epoch, tree in enumerate(self.trees) if {attached.id for attached in tree} <= alive
        ]

    @invariant()
    def the_log_has_one_line_an_epoch(self) -> None:
        assert [change.epoch for change in self.stack.changes] == list(range(len(self.trees)))
        for epoch, tree in enumerate(self.trees[1:], 1):
            (changed,) = set(tree) ^ set(self.trees[epoch - 1])
            assert self.stack.change(Epoch(epoch)).mount == changed.id


EpochsAgainstTrees.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None, database=None)
TestEpochsAgainstTrees = EpochsAgainstTrees.TestCase


def test_what_is_long_gone_is_forgotten() -> None:
    stack = EpochStack.begin(0)
    kept = stack.mount("/kept", "tmp")
    for _cycle in range(20):
        mount = stack.mount("/place", "tmp")
        stack.remove(mount)
        stack.retire(stack.mounts[mount.made_in])
    stack.note("checkpoint", source="state")
    forgotten = stack.forget(5)
    assert forgotten == set(range(2, 32)) and len(stack.past) == 5
    assert [change.epoch for change in stack.changes] == [0, 1, *range(32, 43)]
    assert stack.current == 42 and stack.live() == [kept] and stack.forget(5) == set()
    assert stack.mount("/next", "tmp").made_in == 43
