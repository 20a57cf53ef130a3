"""The steps of a commit on the lower tree: each can be interrupted at any moment and done again, and loses nothing.

Others may change the lower tree at any moment too: while the commit stages, and for days if it was killed after that.
So what a step replaces or removes is swapped out in one system call (RENAME_EXCHANGE), and looked at once it has no
name that anybody uses. If it is what was there when the commit was planned it is removed. If it is anything else it is
kept beside, as NAME.viewfs-theirs.

    install   rename, or exchange   temporary ⇄ name; what is under the temporary name then goes
    remove    rename                name → temporary.old; what is there then goes
    to go     rename, and unlink    → temporary.gone, once it has been looked at

How far a step was done is told by inode numbers: the journal has those of what was staged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from viewfs.cow.commit.journal import Operation, Planned, Staged, Step
from viewfs.cow.compare.trees import Entry, Tree, join, split
from viewfs.cow.copying import decode_attributes, remove_tree, set_attributes
from viewfs.errors import os_error
from viewfs.linux.files import Rename, renameat2

__all__ = ["THEIRS", "Applied", "apply", "as_planned", "fingerprint", "give_up", "planned", "theirs_name"]

#: The suffix in the name of a file of the host that a commit keeps instead of removing it.
THEIRS = b".viewfs-theirs"
_OLD, _GONE = b".old", b".gone"
_NAME_MAX = 255
_NAMES_TRIED = 10_000
#: Errors by which a file system says that it does not know the flags of renameat2(2).
_NO_FLAGS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass
class Applied:
    """What has become of the steps."""

    #: Those that could not be done, with the reason.
    failed: list[tuple[bytes, str]] = field(default_factory=list)
    #: Change times of what the steps have made, where it is as intended: a later change gives it another time.
    touched: dict[bytes, int] = field(default_factory=dict)
    #: What was kept because it was not what had been planned, and under which path.
    kept: list[tuple[bytes, bytes]] = field(default_factory=list)


class _ChangedError(Exception):
    """What is there is not what the step is about, and is left alone."""


class _LeftError(Exception):
    """The directory is to stay as it is."""


def planned(entry: Entry, fingerprint: str = "") -> Planned:
    """What a step is to expect where `entry` is."""
    alone = entry.is_directory or entry.nlink == 1
    return Planned(
        entry.identity[1], entry.kind, entry.size, entry.mtime_ns, entry.ctime_ns if alone else 0, fingerprint
    )


def fingerprint(entries: Iterable[tuple[bytes, Entry]]) -> str:
    """A digest that differs as soon as anything in a directory does; paths are relative to the directory."""
    digest = hashlib.sha256()
    for path, entry in sorted(entries, key=lambda one: one[0]):
        times = (entry.ctime_ns, 0) if entry.is_directory or entry.nlink == 1 else (entry.mtime_ns, entry.size)
        digest.update(b"%s\0%d %d %d %d\0" % (path, entry.identity[1], entry.kind, *times))
    return digest.hexdigest()


def as_planned(tree: Tree, path: bytes, expected: Planned | None, *, moved: bool = False) -> bool:
    """Is what is at `path` what was expected? `moved`: it was renamed meanwhile, which changes its change time."""
    entry = tree.entry(path)
    if entry is None or expected is None:
        return entry is None and expected is None
    if (entry.identity[1], entry.kind) != (expected.inode, expected.kind):
        return False
    if entry.is_directory:
        inside = ((here[len(path) :].lstrip(b"/"), found) for here, found in tree.walk(path) if here != path)
        return fingerprint(inside) == expected.fingerprint
    if (entry.size, entry.mtime_ns) != (expected.size, expected.mtime_ns):
        return False
    return moved or not expected.ctime_ns or entry.nlink > 1 or entry.ctime_ns == expected.ctime_ns


def theirs_name(name: bytes, number: int = 1) -> bytes:
    """The name to keep a file of the host under, at the `number`th try; no longer than a name may be."""
    suffix = THEIRS if number == 1 else b"%s.%d" % (THEIRS, number)
    kept = name[: _NAME_MAX - len(suffix)]
    if kept != name:
        kept = kept.decode(errors="ignore").encode() or kept  # without half a character at its end
    return kept + suffix


def apply(lower: Tree, steps: Sequence[Step], staged: Mapping[bytes, Staged]) -> Applied:
    """Do each step that has not been done yet; `staged` has what was staged, by temporary name. Raises OSError."""
    done = Applied()
    for step in steps:
        inode = staged[step.temporary].inode if step.temporary in staged else None
        try:
            kept = _do(lower, step, inode)
            if kept is not None:
                done.kept.append((step.path, kept))
        except _LeftError:
            done.failed.append((step.path, "its mode, owner or attributes were changed outside too, and stay so"))
        except _ChangedError:
            done.failed.append((step.path, "it was changed outside meanwhile"))
            give_up(lower, step, inode)
        except OSError as error:
            done.failed.append((step.path, os.strerror(error.errno or errno.EIO).lower()))
            give_up(lower, step, inode)
    # Only after all steps, for installing one name of a file sets the change time of its other names as well.
    for step in steps:
        if (changed_ns := _change_time(lower, step, staged.get(step.temporary))) is not None:
            done.touched[step.path] = changed_ns
    for directory in {split(step.path)[0] for step in steps}:
        try:
            with lower.directory(directory) as fd:
                os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EACCES):
                raise
    return done


def _change_time(lower: Tree, step: Step, staged: Staged | None) -> int | None:
    """The change time of what a step has made; None if that is not as intended, because somebody has changed it."""
    entry = lower.entry(step.path)
    if entry is None:
        return None
    if step.operation is Operation.INSTALL:
        size = 0 if entry.is_directory else entry.size
        there = (entry.identity[1], entry.mode, entry.uid, entry.gid, size, entry.mtime_ns)
        return entry.ctime_ns if there == staged else None
    if step.operation is Operation.ATTRIBUTES:
        wanted = decode_attributes(step.attributes)
        return entry.ctime_ns if (entry.mode, entry.mtime_ns) == (wanted.mode, wanted.mtime_ns) else None
    return None


def _do(lower: Tree, step: Step, staged: int | None) -> bytes | None:
    """Do a step; the path under which something was kept, or None."""
    if step.operation is Operation.LEAVE:
        raise _LeftError
    directory, name = split(step.path)
    with lower.directory(directory) as parent:
        if step.operation is Operation.ATTRIBUTES:
            if step.planned is not None and _inode(parent, name or b".") != step.planned.inode:
                raise _ChangedError
            if not _has_attributes(lower.entry(step.path), step):
                raise _ChangedError
            set_attributes(parent, name or b".", decode_attributes(step.attributes))
            return None
        if step.operation is Operation.TIMES:
            wanted = decode_attributes(step.attributes)
            os.utime(name or b".", ns=(wanted.atime_ns, wanted.mtime_ns), dir_fd=parent, follow_symlinks=False)
            return None
        place = _Place(lower, directory, parent, name, split(step.temporary)[1], step)
        place.clear()
        return place.install(staged) if step.operation is Operation.INSTALL else place.remove()


def _has_attributes(there: Entry | None, step: Step) -> bool:
    """Does it have the attributes that it had when the step was planned, or already those that the step sets?"""
    if there is None:
        return False
    before, wanted = decode_attributes(step.before), decode_attributes(step.attributes)
    if (there.mode, there.mtime_ns) == (wanted.mode, wanted.mtime_ns):
        return True
    # What is done in a directory changes its times.
    is_as_old = there.is_directory or there.mtime_ns == before.mtime_ns
    return is_as_old and (there.mode, there.uid, there.gid) == before[:3] and there.same_xattrs(before)


class _Place:
    """Where one step is done."""

    def __init__(self, lower: Tree, directory: bytes, parent: int, name: bytes, temporary: bytes, step: Step) -> None:
        self._lower, self._directory, self._parent, self._name = lower, directory, parent, name
        self._temporary, self._old, self._gone = temporary, temporary + _OLD, temporary + _GONE
        self._step = step

    def clear(self) -> None:
        """Remove what this step was removing when it was interrupted."""
        remove_tree(self._parent, self._gone)

    def install(self, staged: int | None) -> bytes | None:
        there = _inode(self._parent, self._temporary)
        if there is not None and there == staged:
            return self._put_in_place()
        if there is None and _inode(self._parent, self._old) is None and _inode(self._parent, self._name) != staged:
            raise _ChangedError  # it has been done, and somebody has changed that; or the directory is another one
        # It has been done: what it has replaced, if any of that is left, is under one of the two names.
        return self._dispose(self._temporary if there is not None else self._old, as_before=True)

    def _put_in_place(self) -> bytes | None:
        as_before = self._is_as_planned(self._name)
        try:
            self._rename(self._temporary, self._name, Rename.NOREPLACE)
            return self._dispose(self._old, as_before=True)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_FLAGS:
                raise
        try:
            self._rename(self._temporary, self._name, Rename.EXCHANGE)
            return self._dispose(self._temporary, as_before=as_before)
        except OSError as error:
            if error.errno not in _NO_FLAGS:
                raise
        # In two steps, where the file system can't exchange names: for a moment nothing has the name.
        with contextlib.suppress(FileNotFoundError):
            self._rename(self._name, self._old, Rename.NONE)
        self._rename(self._temporary, self._name, Rename.NONE)
        return self._dispose(self._old, as_before=as_before)

    def remove(self) -> bytes | None:
        as_before = True
        if _inode(self._parent, self._old) is None:
            there = _inode(self._parent, self._name)
            if there is None:
                return None
            if self._step.planned is None or there != self._step.planned.inode:
                raise _ChangedError  # another file, perhaps made since this was done
            as_before = self._is_as_planned(self._name)
            self._rename(self._name, self._old, Rename.NONE)
        return self._dispose(self._old, as_before=as_before)

    def _is_as_planned(self, name: bytes, *, moved: bool = False) -> bool:
        return as_planned(self._lower, join(self._directory, name), self._step.planned, moved=moved)

    def _dispose(self, aside: bytes, *, as_before: bool) -> bytes | None:
        """Remove what was swapped out, or give it a name of its own; `as_before`: it was as planned until then."""
        if _inode(self._parent, aside) is None:
            return None
        if self._step.theirs:
            self._keep(aside, split(self._step.theirs)[1])
            return None  # as it was asked for
        if as_before and self._is_as_planned(aside, moved=True):
            # The new name says that it has been checked: the rest of a directory would not be as planned any more.
            self._rename(aside, self._gone, Rename.NONE)
            remove_tree(self._parent, self._gone)
            return None
        return join(self._directory, self._keep(aside, theirs_name(self._name)))

    def _keep(self, aside: bytes, wanted: bytes) -> bytes:
        for number in range(1, _NAMES_TRIED):
            name = wanted if number == 1 else theirs_name(self._name, number)
            try:
                self._rename(aside, name, Rename.NOREPLACE)
                return name
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno not in _NO_FLAGS:
                    raise
                if _inode(self._parent, name) is None:
                    self._rename(aside, name, Rename.NONE)
                    return name
        raise os_error(errno.EEXIST)

    def _rename(self, old: bytes, new: bytes, flags: Rename) -> None:
        renameat2(self._parent, old, self._parent, new, flags)


def give_up(lower: Tree, step: Step, staged: int | None) -> None:
    """Leave nothing of a step that can't be done: put back what was moved aside, and remove what was staged."""
    if not step.temporary:
        return
    directory, name = split(step.path)
    temporary = split(step.temporary)[1]
    with contextlib.suppress(OSError), lower.directory(directory) as parent:
        there = _inode(parent, temporary)
        if staged is not None and there is not None and there != staged and _inode(parent, name) == staged:
            renameat2(parent, temporary, parent, name, Rename.EXCHANGE)
        if _inode(parent, name) is None and _inode(parent, temporary + _OLD) is not None:
            os.rename(temporary + _OLD, name, src_dir_fd=parent, dst_dir_fd=parent)
        if staged is None or _inode(parent, temporary) == staged:
            remove_tree(parent, temporary)


def _inode(parent: int, name: bytes) -> int | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None
