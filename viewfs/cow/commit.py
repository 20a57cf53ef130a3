"""Making the lower tree what the view shows, so that it can be interrupted at any moment and nothing is lost.

    plan      which steps (`planning`), and whether the lower tree was changed meanwhile
    journal   the steps are written down
    stage     everything that is new is copied beside its place, under a temporary name, and synced
    journal   “staged”
    apply     renames, removals, attributes
    journal   removed

Until “staged” an interrupted commit is undone by removing the temporary names; the lower tree has not changed. After it
the steps are simply done again: each finds out whether it has been. The layer keeps what it has until it is settled, so
a step that fails leaves a change uncommitted, and no more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from viewfs.cow.changes import Change, differences
from viewfs.cow.conflicts import find_conflicts
from viewfs.cow.copying import TreeCopier, decode_attributes, remove_tree, set_attributes
from viewfs.cow.journal import Journal, Operation, Step
from viewfs.cow.layers import Layer
from viewfs.cow.planning import THEIRS, Selection, plan_commit
from viewfs.cow.trees import Entry, Tree, split
from viewfs.errors import ViewfsError
from viewfs.linux.files import syncfs
from viewfs.mounts.overlay import OPAQUE

__all__ = ["Commit", "Outcome", "recover"]

#: With more files than that to stage, the file system is synced once instead of each file.
_SYNC_EACH = 500
#: What is for one path to be refused with; everything else ends the commit.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass
class Outcome:
    """What was done."""

    changes: list[Change]
    #: Steps that could not be done, with the reason; the layer still has these changes.
    failed: list[tuple[bytes, str]] = field(default_factory=list)


def _is_at_or_below(path: bytes, places: Collection[bytes]) -> bool:
    while path and path not in places:
        path = split(path)[0]
    return path in places


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO).lower()


def _nothing(_size: int) -> None:
    pass


class Commit:
    """One commit of a layer; the caller holds the layer's lock, and has called `recover`."""

    def __init__(
        self, layer: Layer, lower: Tree, view: Tree, upper: Tree, selection: Selection, *, keep_theirs: bool
    ) -> None:
        """Plans it, changing nothing. Raises `ViewfsError` and OSError."""
        self._layer, self._lower, self._view = layer, lower, view
        unchanged: dict[tuple[int, int], bytes] = {}
        found = list(differences(lower, view, [upper], unchanged=unchanged))
        self.conflicts = list(find_conflicts(layer.record, lower, view, upper, found, unchanged, selection))
        theirs: Callable[[bytes], bytes] | None = None
        if keep_theirs:
            at_odds = [conflict.path for conflict in self.conflicts]

            def kept_name(path: bytes) -> bytes:
                concerned = any(one == path or one.startswith(path + b"/") for one in at_odds)
                return _free_name(lower, path + THEIRS) if concerned else b""

            theirs = kept_name
        token = secrets.token_hex(4).encode()
        self.plan = plan_commit(found, selection, view, token, unchanged, theirs)

    def carry_out(self, progress: Callable[[int], None] = _nothing) -> Outcome:
        """Do it all; `progress` is told the size of each file that has been staged.

        Raises `ViewfsError`, nothing having been changed.
        """
        journal = Journal(self._layer.fd)
        if not self.plan.steps:
            return Outcome([])
        try:
            journal.begin(self.plan.selection.paths, self.plan.steps)
            try:
                refused = self._stage(progress)
                self._check_unchanged()
                journal.staged()
            except BaseException:
                _undo(self._lower, self.plan.steps)
                journal.end()
                raise
        except OSError as error:
            where = self._layer.record.path
            raise ViewfsError(
                f"cannot commit to {where}: {_reason(error)}", remedy="nothing has changed; try again when it can be"
            ) from error
        failed = refused + _apply(self._lower, [step for step in self.plan.steps if step.path not in dict(refused)])
        _finish(self._layer, self._lower, journal, self.plan.selection.paths, self.plan.steps, failed)
        undone = {path for path, _why in failed}
        done = [change for change in self.plan.changes if not _is_at_or_below(change.path, undone)]
        # Times of a directory follow from what was done in it, if anything was.
        told = {change.path for change in self.plan.changes if not (change.is_directory and change.only_times)}
        return Outcome(done, [(path, why) for path, why in failed if path in told])

    def _stage(self, progress: Callable[[int], None]) -> list[tuple[bytes, str]]:
        """Copy all that is new beside its place, and have it on the disk; what may not be there, with the reason."""

        def copied(path: bytes, entry: Entry) -> None:
            after = self._view.entry(path)
            if after is None or (after.ctime_ns, after.size) != (entry.ctime_ns, entry.size):
                raise ViewfsError(
                    f"/{path.decode(errors='replace')} is being written", remedy="commit when the program has ended"
                )
            progress(entry.size)

        selection = self.plan.selection
        sync_each = len(self.plan.changes) <= _SYNC_EACH
        copier = TreeCopier(self._view, self._lower, links=self.plan.unchanged, sync=sync_each, copied=copied)
        refused: list[tuple[bytes, str]] = []
        for step in self.plan.installs():
            try:
                copier.copy(step.path, step.temporary, lambda path: selection.has(path) or selection.leads_to(path))
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                refused.append((step.path, _reason(error)))
                _give_up(self._lower, step)
        if not sync_each:
            with self._lower.directory(b"") as fd:
                syncfs(fd)
        for directory in copier.directories if sync_each else ():
            with contextlib.suppress(FileNotFoundError, PermissionError), self._lower.directory(directory) as fd:
                os.fsync(fd)
        return refused

    def _check_unchanged(self) -> None:
        """Staging may take minutes: what is to be replaced must be what it was when conflicts were looked for."""
        seen = {change.path: change.old for change in self.plan.changes}
        for step in self.plan.steps:
            old = seen.get(step.path)
            if step.operation is Operation.ATTRIBUTES or (old is not None and old.is_directory):
                continue
            now = self._lower.entry(step.path)
            if (now and (now.identity, now.ctime_ns)) != (old and (old.identity, old.ctime_ns)):
                path = step.path.decode(errors="replace")
                raise ViewfsError(f"/{path} was changed outside just now", remedy="commit again")


def recover(layer: Layer, lower: Tree) -> str | None:
    """Finish or undo a commit that was interrupted: what was done, for a person to read; None if none was.

    The caller holds the layer's lock. Raises `ViewfsError` and OSError.
    """
    journal = Journal(layer.fd)
    found = journal.read()
    if found is None:
        return None
    paths, steps, staged = found
    if not staged:
        _undo(lower, steps)
        journal.end()
        return f"an interrupted commit to {layer.record.path} was undone"
    _finish(layer, lower, journal, paths, steps, _apply(lower, steps))
    return f"an interrupted commit to {layer.record.path} was finished"


def _finish(
    layer: Layer,
    lower: Tree,
    journal: Journal,
    paths: Sequence[bytes],
    steps: Sequence[Step],
    failed: Sequence[tuple[bytes, str]],
) -> None:
    undone = {path for path, _why in failed}
    done = [step.path for step in steps if step.path not in undone] if failed else list(paths)
    record = layer.record.rebased(done, time.time_ns())
    if b"" not in done:
        directories = {split(step.path)[0] for step in steps}
        entries = {directory: lower.entry(directory) for directory in directories}
        touched = {os.fsdecode(path): entry.ctime_ns for path, entry in entries.items() if entry is not None}
        record = replace(record, touched=record.touched | touched)
    _hide_lower(layer, [step.path for step in steps if step.operation is Operation.INSTALL])
    layer.write(record)
    journal.end()


def _hide_lower(layer: Layer, installed: Sequence[bytes]) -> None:
    """Mark directories of the layer opaque that have come to be in the lower tree by this commit.

    An overlay that is mounted takes them for its own, and leaves no whiteout for what is deleted in them from now on.
    """
    with layer.open_upper() as upper:
        for path in installed:
            for here, entry in upper.walk(path):
                if entry.is_directory:
                    with upper.directory(here) as fd:
                        os.setxattr(fd, OPAQUE, b"y")


def _undo(lower: Tree, steps: Sequence[Step]) -> None:
    for step in steps:
        if step.temporary:
            directory, name = split(step.temporary)
            try:
                with lower.directory(directory) as parent:
                    remove_tree(parent, name)
            except FileNotFoundError:
                continue


def _apply(lower: Tree, steps: Sequence[Step]) -> list[tuple[bytes, str]]:
    """Do each step that has not been done; what could not be, with the reason."""
    failed = []
    for step in steps:
        try:
            _do(lower, step)
        except OSError as error:
            failed.append((step.path, _reason(error)))
            _give_up(lower, step)
    for directory in {split(step.path)[0] for step in steps}:
        try:
            with lower.directory(directory) as fd:
                os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EACCES):
                raise
    return failed


def _do(lower: Tree, step: Step) -> None:
    directory, name = split(step.path)
    with lower.directory(directory) as parent:
        if step.operation is Operation.ATTRIBUTES:
            set_attributes(parent, name or b".", decode_attributes(step.attributes))
            return
        temporary = split(step.temporary)[1]
        old = temporary + b".old"
        installing = step.operation is Operation.INSTALL and _exists(parent, temporary)
        if installing or step.operation is Operation.REMOVE:
            there = _inode(parent, name)
            if there is not None and (installing or there == step.inode):
                _put_aside(
                    parent, name, split(step.theirs)[1] if step.theirs else old, installing=installing, step=step
                )
            if installing:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        remove_tree(parent, old)


def _put_aside(parent: int, name: bytes, aside: bytes, *, installing: bool, step: Step) -> None:
    """Make room, unless rename(2) will: a file that replaces a file does so in one step."""
    temporary = split(step.temporary)[1]
    if installing and not step.theirs and not any(_is_directory(parent, one) for one in (name, temporary)):
        return
    os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=parent)


def _give_up(lower: Tree, step: Step) -> None:
    """Of a step that can't be done leave nothing: what had to make room comes back."""
    if step.operation is Operation.ATTRIBUTES:
        return
    directory, name = split(step.path)
    temporary = split(step.temporary)[1]
    with contextlib.suppress(OSError), lower.directory(directory) as parent:
        if not _exists(parent, name) and _exists(parent, temporary + b".old"):
            os.rename(temporary + b".old", name, src_dir_fd=parent, dst_dir_fd=parent)
        remove_tree(parent, temporary)


def _exists(parent: int, name: bytes) -> bool:
    return _inode(parent, name) is not None


def _inode(parent: int, name: bytes) -> int | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _is_directory(parent: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _free_name(tree: Tree, wanted: bytes) -> bytes:
    name, number = wanted, 2
    while tree.entry(name) is not None:
        name, number = b"%s.%d" % (wanted, number), number + 1
    return name
