"""Making the lower tree what the view shows, so that it can be interrupted at any moment and nothing is lost.

    plan      which steps (`planning`), and whether the lower tree was changed meanwhile
    sync      what the layer has is on the disk
    journal   the steps are written down
    stage     everything that is new is copied beside its place, under a temporary name, and synced
    journal   “staged”
    apply     renames, removals, attributes (`applying`)
    journal   removed

Until “staged” an interrupted commit is undone by removing the temporary names; the lower tree has not changed. After it
the steps are simply done again: each finds out whether it has been, and keeps what somebody has changed meanwhile. The
layer keeps what it has until it is settled, so a step that fails leaves a change uncommitted, and no more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from viewfs.cow.commit.applying import apply, as_planned, give_up, theirs_name
from viewfs.cow.commit.finishing import done_paths, finish, is_at_or_below_one, paths_done_whole, undo
from viewfs.cow.commit.journal import Journal, Moments, Operation, Staged, Step, Written
from viewfs.cow.commit.planning import Selection, plan_commit
from viewfs.cow.compare.changes import Change, Kind, same_content, same_time, with_renames
from viewfs.cow.compare.conflicts import find_conflicts
from viewfs.cow.compare.filters import EVERYTHING
from viewfs.cow.compare.outside import give_owner_of
from viewfs.cow.compare.trees import Entry, Tree, join, split
from viewfs.cow.copying import TreeCopier, decode_attributes, set_acls
from viewfs.cow.layer.layers import Layer, clock_ns
from viewfs.cow.layer.settled import Settled, is_whiteout, own_changes
from viewfs.errors import ViewfsError
from viewfs.linux.files import chmod_at, syncfs
from viewfs.linux.ids import overflow_id
from viewfs.paths import is_at_or_below

__all__ = ["Commit", "Outcome"]

#: With more files than that to stage, the file system is synced once instead of each file.
_SYNC_EACH = 500
#: Errors for which only the one path is refused; any other ends the commit.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENAMETOOLONG)


@dataclass
class Outcome:
    """What was done."""

    changes: list[Change]
    #: Steps that could not be done, with the reason; the layer still has these changes.
    failed: list[tuple[bytes, str]] = field(default_factory=list)
    #: What was changed outside at the last moment, and the name that it has now.
    kept: list[tuple[bytes, bytes]] = field(default_factory=list)
    #: What belonged to a user or group that is not mapped in the view, and belongs to this user now.
    taken: list[bytes] = field(default_factory=list)


def _has_same_attributes(old: Entry, new: Entry) -> bool:
    return (old.mode, old.uid, old.gid) == (new.mode, new.uid, new.gid) and old.same_xattrs(new)


def _is_same(old: Entry, new: Entry) -> bool:
    """Are the two the same but for their content? (The caller compares that.)"""
    return old.mtime_ns == new.mtime_ns and _has_same_attributes(old, new)


def _reason(error: OSError) -> str:
    plain = os.strerror(error.errno or errno.EIO)
    # (The message of a system call may begin with the name of the call.)
    reason = plain if not error.strerror or error.strerror.endswith(f": {plain}") else error.strerror
    return reason[0].lower() + reason[1:]


def _nothing(_size: int) -> None:
    pass


class Commit:
    """One commit of a layer; the caller holds the layer's lock, and has called `recover`."""

    def __init__(
        self,
        layer: Layer,
        lower: Tree,
        view: Tree,
        upper: Tree,
        selection: Selection,
        *,
        keep_theirs: bool,
        force: bool = False,
        live: bool = False,
    ) -> None:
        """Plans it, changing nothing. `force`: as if there were no conflicts. `live`: programs may be using the view,
        so the layer is settled later. Raises `ViewfsError` and OSError."""
        self._layer, self._lower, self._view, self._upper = layer, lower, view, upper
        planned_ns = clock_ns(layer.fd, lower)
        self._settled_ns = clock_ns(layer.fd, upper) if live else None
        unchanged: dict[tuple[int, int], bytes] = {}
        found = list(own_changes(layer, lower, view, upper, unchanged=unchanged))
        conflicts = list(find_conflicts(layer.record, lower, view, upper, found, unchanged, selection))
        #: Without those over a directory's own attributes: it keeps those outside, and what is in it is committed.
        self.conflicts = [conflict for conflict in conflicts if not conflict.is_own]
        left = [conflict.path for conflict in conflicts if conflict.is_own and not force]
        theirs: Callable[[bytes], bytes] | None = None
        if keep_theirs:
            at_odds = [conflict.path for conflict in self.conflicts]

            def kept_name(path: bytes) -> bytes:
                concerned = any(is_at_or_below(one, path) for one in at_odds)
                return _free_name(lower, path) if concerned else b""

            theirs = kept_name
        token = secrets.token_hex(4).encode()
        is_news = layer.record.is_news
        self.plan = plan_commit(found, selection, lower, view, token, unchanged, theirs, left, is_news)
        #: The changes that are made, as `diff` shows them to a person.
        self.told = with_renames(self.plan.changes, lower, view)
        self._keep_groups()
        self._moments = Moments(planned_ns, self._untouched(), linked=self._linked())
        self._taken: list[bytes] = []

    def _untouched(self) -> dict[bytes, tuple[int, int, int]]:
        """See `Moments`. If everything is committed, no directory is left out: all conflicts have been looked at."""
        found: dict[bytes, tuple[int, int, int]] = {}
        everything = self.plan.selection.is_everything
        after = {step.path: step.attributes for step in self.plan.steps if step.operation is Operation.ATTRIBUTES}
        for directory in {split(step.path)[0] for step in self.plan.steps}:
            entry = self._lower.entry(directory)
            if entry is None:
                continue
            if everything or not self._layer.record.is_news(directory, entry):
                wanted = decode_attributes(after[directory]) if directory in after else entry
                found[directory] = (wanted.mode, wanted.uid, wanted.gid)
        return found

    def _linked(self) -> tuple[Staged, ...]:
        """See `Moments`; only files that were not changed outside since the layer was begun."""
        record = self._layer.record
        concerned = [(change.path, change.old) for change in self.plan.changes]
        concerned += [(path, self._lower.entry(path)) for path in self.plan.unchanged.values()]
        after = {step.path: step.attributes for step in self.plan.steps if step.operation is Operation.ATTRIBUTES}
        found: dict[int, Staged] = {}
        for path, old in concerned:
            if old is None or old.is_directory or (old.nlink == 1 and path not in self.plan.unchanged.values()):
                continue
            if old.ctime_ns > record.opened_ns and not record.was_linked(old):
                continue
            wanted = decode_attributes(after[path]) if path in after else old
            number = old.identity[1]
            if path in after or number not in found:
                found[number] = Staged(number, wanted.mode, wanted.uid, wanted.gid, old.size, wanted.mtime_ns)
        return tuple(found.values())

    def _keep_groups(self) -> None:
        """If a hard link was renamed and its file not changed, the new name is to be a hard link to that file again."""
        for change in self.told:
            old, new = change.old, change.new
            if change.kind is not Kind.RENAMED or old is None or new is None or old.nlink < 2 or change.source is None:
                continue
            if _is_same(old, new):
                self.plan.unchanged.setdefault(new.identity, change.source)
        # The same where the new name was another file's.
        gone = {
            (change.old.size, change.old.mtime_ns): change
            for change in self.told
            if change.kind is Kind.DELETED and change.old is not None and change.old.is_file and change.old.nlink > 1
        }
        for change in self.told if gone else ():
            new = change.new
            if change.kind is not Kind.CHANGED or new is None or not new.is_file or "content" not in change.aspects:
                continue
            other = gone.get((new.size, new.mtime_ns))
            if other is None or other.old is None or not _is_same(other.old, new):
                continue
            if same_content(other.path, self._lower, self._view, new.size, change.path):
                self.plan.unchanged.setdefault(new.identity, other.path)

    def carry_out(self, progress: Callable[[int], None] = _nothing) -> Outcome:
        """Carry out the plan; `progress` is told the size of each file that has been staged.

        Raises `ViewfsError`, nothing having been changed; and OSError when something has: `recover` finishes it.
        """
        journal = Journal(self._layer.fd)
        if not self.plan.steps:
            return Outcome([])
        try:
            # What the view has written may be in memory only. Once it is outside, the layer must have it too.
            if not self._layer.record.volatile:
                syncfs(self._layer.fd)
            journal.begin(self._paths(), self.plan.steps, self._moments)
            try:
                refused = self._stage(progress)
                self._check_unchanged()
                steps = [step for step in self.plan.steps if step.path not in dict(refused)]
                staged = self._staged(steps)
                moments = replace(self._moments, staged_ns=clock_ns(self._layer.fd, self._lower))
                journal.staged(staged, moments.staged_ns)
            except BaseException:
                undo(self._layer, self._lower, self.plan.steps, self._moments)
                journal.end()
                raise
        except OSError as error:
            where = self._layer.record.path
            raise ViewfsError(
                f"cannot commit to {where}: {_reason(error)}", remedy="nothing has changed; try again when it can be"
            ) from error
        applied = apply(self._lower, steps, staged)
        failed = refused + applied.failed
        finish(
            self._layer, self._lower, journal, Written(self._paths(), self.plan.steps, staged, moments), applied, failed
        )
        undone = {path for path, _why in failed}
        self._note_settled(done_paths(self.plan.steps, self._paths(), undone))
        whole = {step.path for step in self.plan.steps if step.temporary} & undone  # each with all that is in it
        done = [c for c in self.told if c.path not in undone and not is_at_or_below_one(c.path, whole)]
        # Times of a directory follow from what was done in it, if anything was.
        told = {change.path for change in self.plan.changes if not (change.is_directory and change.only_times)}
        return Outcome(done, [(path, why) for path, why in failed if path in told], applied.kept, self._taken)

    def _note_settled(self, done: Sequence[bytes]) -> None:
        """Note as settled what the view has not changed since this was planned: that is no change of its own now."""
        if self._settled_ns is None:
            return
        planned_ns = self._settled_ns

        def is_settled(path: bytes, entry: Entry) -> bool:
            other = self._lower.entry(path)
            if is_whiteout(entry) or other is None:
                return is_whiteout(entry) and other is None
            if entry.is_directory:
                return (other.mode, other.uid, other.gid) == (entry.mode, entry.uid, entry.gid)
            is_same = (other.kind, other.size) == (entry.kind, entry.size) and same_time(other.mtime_ns, entry.mtime_ns)
            return is_same and entry.ctime_ns < planned_ns

        with contextlib.suppress(OSError):  # (a full disk)
            Settled(self._layer).note(self._upper, done, is_settled)

    def _paths(self) -> list[bytes]:
        """The paths that are the same outside and in the view afterwards."""
        selection = self.plan.selection
        if selection.only == EVERYTHING:
            return list(selection.paths)
        return [path for path in paths_done_whole(self.plan.steps) if selection.has(path)]

    def _stage(self, progress: Callable[[int], None]) -> list[tuple[bytes, str]]:
        """Copy all that is new beside its place, and sync it; returns the paths that are refused, with the reason."""

        def copied(path: bytes, entry: Entry) -> None:
            after = self._view.entry(path)
            if after is None or (after.ctime_ns, after.size) != (entry.ctime_ns, entry.size):
                raise ViewfsError(
                    f"/{path.decode(errors='replace')} is being written", remedy="commit when the program has ended"
                )
            progress(entry.size)

        sync_each = len(self.plan.changes) <= _SYNC_EACH
        copier = TreeCopier(self._view, self._lower, links=self.plan.unchanged, sync=sync_each, copied=copied)
        seen = {change.path: change for change in self.plan.changes}
        refused: list[tuple[bytes, str]] = []
        for step in self.plan.installs():
            try:
                copier.copy(step.path, step.temporary, self.plan.has)
                self._keep_owner(step, seen.get(step.path))
                self._keep_acls(step, seen.get(step.path))
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise ViewfsError(
                        f"cannot commit {self._shown(step.path)}: {_reason(error)}",
                        remedy="nothing has changed; try again when it can be",
                    ) from error
                refused.append((step.path, _reason(error)))
                give_up(self._lower, step, None)
                copier.removed(step.temporary)
        if not sync_each:
            with self._lower.directory(b"") as fd:
                syncfs(fd)
        for directory in copier.directories if sync_each else ():
            with contextlib.suppress(FileNotFoundError, PermissionError), self._lower.directory(directory) as fd:
                os.fsync(fd)
        return refused

    def _shown(self, path: bytes) -> str:
        return os.path.join(self._layer.record.path, path.decode(errors="replace"))

    def _keep_owner(self, step: Step, change: Change | None) -> None:
        """Give what replaces a file that file's owner and group, as far as allowed, where they are not mapped here."""
        if change is None or change.old is None or change.new is None or change.old.kind != change.new.kind:
            return
        old, new = change.old, change.new
        directory, name = split(step.temporary)
        if old.gid == new.gid:
            # And not the group of a directory which gives it to all that is made in it (chown(2), “S_ISGID”).
            with contextlib.suppress(OSError), self._lower.directory(directory) as parent:
                os.chown(name, -1, new.gid, dir_fd=parent, follow_symlinks=False)
                if not stat.S_ISLNK(new.mode):
                    chmod_at(parent, name, stat.S_IMODE(new.mode))
        if (old.uid == new.uid or old.uid != overflow_id("uid")) and (
            old.gid == new.gid or old.gid != overflow_id("gid")
        ):
            return
        there = self._lower.open(step.path, os.O_PATH)
        try:
            with self._lower.directory(directory) as parent:
                if not give_owner_of(parent, name, there):
                    self._taken.append(step.path)
                elif not stat.S_ISLNK(new.mode):
                    chmod_at(parent, name, stat.S_IMODE(new.mode))  # chown(2) takes set-id bits away
        finally:
            os.close(there)

    def _keep_acls(self, step: Step, change: Change | None) -> None:
        """Where the view knows no access control lists, give what replaces a file the lists of that file."""
        if change is None:
            return  # a directory that only leads to what was selected
        old, new = change.old, change.new
        if (
            old is None
            or new is None
            or new.has_acls
            or old.kind != new.kind
            or old.xattrs == tuple(old.without_acls())
        ):
            return
        directory, name = split(step.temporary)
        with self._lower.directory(directory) as parent:
            set_acls(b"/proc/self/fd/%d/%s" % (parent, name), old)
            chmod_at(parent, name, stat.S_IMODE(new.mode))

    def _staged(self, steps: Sequence[Step]) -> dict[bytes, Staged]:
        """What was staged, by temporary name."""
        found = {}
        for step in steps:
            if step.operation is Operation.INSTALL:
                directory, name = split(step.temporary)
                with contextlib.suppress(FileNotFoundError), self._lower.directory(directory) as parent:
                    found[step.temporary] = Staged.of(os.stat(name, dir_fd=parent, follow_symlinks=False))
        return found

    def _check_unchanged(self) -> None:
        """Staging may take minutes: what is to be replaced must be what it was when conflicts were looked for."""
        changed = {change.path: change.old for change in self.plan.changes}
        attributes = {
            step.path: changed[step.path] for step in self.plan.steps if step.operation is Operation.ATTRIBUTES
        }
        for step in self.plan.steps:
            if step.operation in (Operation.TIMES, Operation.LEAVE):
                continue
            old = attributes.get(step.path)
            if old is not None and old.is_directory:  # its content is not as it was: files are staged in it
                there = self._lower.entry(step.path)
                unchanged = there is not None and there.identity == old.identity and _has_same_attributes(there, old)
            else:
                unchanged = as_planned(self._lower, step.path, step.planned)
            if not unchanged:
                raise ViewfsError(f"{self._shown(step.path)} was changed outside just now", remedy="commit again")


def _free_name(tree: Tree, path: bytes) -> bytes:
    """A path beside `path` under which to keep what is there."""
    directory, name = split(path)
    number = 1
    while tree.entry(join(directory, theirs_name(name, number))) is not None:
        number += 1
    return join(directory, theirs_name(name, number))
