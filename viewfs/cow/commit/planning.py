"""Which steps make the lower tree what the view shows: from the differences between the two to the plan of a commit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from viewfs.cow.commit.applying import fingerprint, planned
from viewfs.cow.commit.journal import Operation, Planned, Step
from viewfs.cow.compare.changes import Change, Kind
from viewfs.cow.compare.filters import EVERYTHING, Filter
from viewfs.cow.compare.trees import Entry, Tree, join, split
from viewfs.cow.copying import encode_attributes
from viewfs.errors import UsageError
from viewfs.paths import is_at_or_below, is_below

__all__ = ["Plan", "Selection", "plan_commit"]

#: Aspects that can be changed in place; whatever else differs is replaced by a new file.
_IN_PLACE = frozenset({"mode", "owner", "xattrs", "times"})
_MARK = b".viewfs-"


class Selection:
    """The paths that were named, and what is below them, as far as the filter `only` passes it; b"" is everything."""

    def __init__(self, paths: Sequence[bytes], only: Filter = EVERYTHING) -> None:
        self.paths = tuple(paths)
        self.only = only

    @property
    def is_everything(self) -> bool:
        """Is nothing left out?"""
        return self.paths == (b"",) and self.only == EVERYTHING

    def has(self, path: bytes) -> bool:
        """Is `path` one of the paths, or below one, and does `only` pass it?"""
        return self._names(path) and self.only.passes(path)

    def _names(self, path: bytes) -> bool:
        return any(is_at_or_below(path, one) for one in self.paths)


@dataclass
class Plan:
    """What a commit does."""

    selection: Selection
    #: The changes that are made, for a person to read.
    changes: list[Change] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    #: Files of which at most the attributes have changed, by identity in the view: other names of the same file in the
    #: view become links to these.
    unchanged: dict[tuple[int, int], bytes] = field(default_factory=dict)
    #: Directories that lead to what is selected.
    on_the_way: set[bytes] = field(default_factory=set)

    def has(self, path: bytes) -> bool:
        """Is what the view has at `path` to be outside too?"""
        return self.selection.has(path) or path in self.on_the_way

    def close(self, inside: list[tuple[bytes, Entry]]) -> None:
        """Give the last step the fingerprint of what was `inside` the directory that it replaces or removes, if any."""
        step = self.steps[-1]
        if step.planned is not None:
            self.steps[-1] = replace(step, planned=replace(step.planned, fingerprint=fingerprint(inside)))

    def installs(self) -> list[Step]:
        return [step for step in self.steps if step.operation is Operation.INSTALL]


def plan_commit(
    changes: Iterable[Change],
    selection: Selection,
    lower: Tree,
    view: Tree,
    token: bytes,
    unchanged: dict[tuple[int, int], bytes],
    theirs: Callable[[bytes], bytes] | None = None,
    left: Collection[bytes] = (),
    changed_outside: Callable[[bytes, Entry], bool] = lambda _path, _entry: False,
) -> Plan:
    """The plan that makes `changes` in the lower tree, as far as they are in `selection`.

    `token` makes temporary names unlike those of another commit. `theirs` gives the name under which to keep what is at
    a path, or b"" if it is not to be kept; the directories `left` keep their attributes, whatever is done in them.
    `changed_outside` says whether somebody has done something in a directory: it then keeps its modification time, if
    that is later. Raises `UsageError` where only a part of something indivisible was selected.
    """
    changes = list(changes)
    plan = Plan(selection, unchanged=dict(unchanged))
    for change in changes:
        directory = split(change.path)[0]
        while change.path and selection.has(change.path) and directory not in plan.on_the_way:
            plan.on_the_way.add(directory)
            directory = split(directory)[0]
    covered: bytes | None = None  # all that is below this is done by one step
    inside: list[tuple[bytes, Entry]] = []  # what was there that this step replaces or removes
    touched: set[bytes] = set()
    attributes: dict[bytes, Entry] = {}
    there: dict[bytes, Planned] = {}
    before: dict[bytes, Entry] = {}
    for change in changes:
        path = change.path
        if covered is not None and is_below(path, covered):
            if selection.has(path):
                plan.changes.append(change)
            elif change.kind is Kind.DELETED:
                gone, excluded = covered.decode(errors="replace"), path.decode(errors="replace")
                raise UsageError(
                    f"/{gone} is gone in the view, and /{excluded} in it is excluded",
                    remedy="exclude all of it, or nothing in it",
                )
            if change.old is not None:
                inside.append((path[len(covered) + 1 :], change.old))
            continue
        if covered is not None:
            plan.close(inside)
        covered, inside = None, []
        chosen = selection.has(path)
        on_the_way = not chosen and path in plan.on_the_way
        if not chosen and not on_the_way:
            continue
        kept = theirs(path) if theirs is not None and change.old is not None else b""
        in_place = change.kind is Kind.CHANGED and change.aspects <= _IN_PLACE and (change.is_directory or not kept)
        if on_the_way:
            if "type" in change.aspects:
                raise UsageError(f"/{path.decode(errors='replace')} has become another kind of file", remedy="name it")
            if change.kind is not Kind.ADDED:
                continue
        else:
            plan.changes.append(change)
        if in_place and change.is_directory and path in left:
            plan.steps.append(Step(Operation.LEAVE, path))
        elif in_place:
            assert change.new is not None
            attributes[path] = change.new
            assert change.old is not None
            there[path] = planned(change.old)
            before[path] = change.old
            if change.new.is_file:
                plan.unchanged.setdefault(change.new.identity, path)
        if in_place:
            continue
        directory = split(path)[0]
        touched.add(directory)
        temporary = join(directory, b"%s%s-%d" % (_MARK, token, len(plan.steps)))
        expected = None if change.old is None else planned(change.old)
        operation = Operation.REMOVE if change.kind is Kind.DELETED else Operation.INSTALL
        plan.steps.append(Step(operation, path, temporary, expected, kept))
        if change.is_directory or (change.old is not None and change.old.is_directory):
            covered = path
    if covered is not None:
        plan.close(inside)

    def is_later(path: bytes, old: Entry | None, entry: Entry) -> bool:
        if old is None or not entry.is_directory or old.mtime_ns <= entry.mtime_ns:
            return False
        return changed_outside(path, old)

    # What is inside a directory comes before the directory's own times.
    steps = {
        path: Step(
            Operation.ATTRIBUTES,
            path,
            planned=there[path],
            attributes=encode_attributes(
                entry._replace(mtime_ns=before[path].mtime_ns) if is_later(path, before[path], entry) else entry
            ),
            before=encode_attributes(before[path]),
        )
        for path, entry in attributes.items()
    }
    for directory in filter(selection.has, touched):  # of others the kernel updates the times
        entry, old = view.entry(directory), lower.entry(directory)
        if entry is not None and directory not in steps and not is_later(directory, old, entry):
            steps[directory] = Step(Operation.TIMES, directory, attributes=encode_attributes(entry))
    plan.steps += [steps[path] for path in sorted(steps, reverse=True)]
    return plan
