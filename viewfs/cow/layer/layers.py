"""Where layers are kept: `$XDG_STATE_HOME/viewfs/NAME/…`, one directory for each copy-on-write mount of a session.

NAME/                    the session's, locked while it lives
  project-3b1c…/         one layer: what was changed below one mount point
    layer.json           what it is a layer of
    upper/, work/        the overlay's
    checkpoints/         older states of upper/
    commit.journal       while a commit is under way
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

from viewfs.cow.compare.trees import Entry, Tree, split
from viewfs.cow.copying import remove_tree, set_attributes
from viewfs.cow.layer.records import LayerRecord, Lower, typed
from viewfs.cow.layer.session_lock import LOCK_FILE
from viewfs.errors import UsageError, ViewfsError, explain_os_error

__all__ = ["Layer", "LayerSet", "clock_ns", "has_changes", "read_text", "write_whole"]

_RECORD = "layer.json"
_LOCK = ".lock"
#: The file that holds the temporary name which files have in the view while it is restored.
_RESTORING = "restoring"
#: See `viewfs.cow.commit.journal`.
JOURNAL = "commit.journal"
_SCHEMA = 5


def clock_ns(directory: int, lower: Tree) -> int:
    """The time now by the clock that sets change times in the lower tree: a file server may have a clock of its own.

    It is read off a new file in the open `directory`, if that is in the same file system.
    """
    if os.fstat(lower.root).st_dev == os.fstat(directory).st_dev:
        name = f".clock.{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
            os.unlink(name, dir_fd=directory)
            try:
                return os.fstat(fd).st_ctime_ns
            finally:
                os.close(fd)
    return time.time_ns()


def has_changes(layer: int) -> bool:
    """Is there anything in the upper directory of the layer in the open directory `layer`?"""
    try:
        upper = os.open("upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=layer)
    except OSError:
        return False
    try:
        return bool(os.listdir(upper))
    except OSError:
        return True
    finally:
        os.close(upper)


class Layer:
    """One layer, by the descriptor of its directory, which it owns."""

    def __init__(self, fd: int, record: LayerRecord) -> None:
        self.fd = fd
        self.record = record
        #: It was begun just now: there is nothing of an earlier session in it.
        self.is_new = False

    @classmethod
    def open(cls, fd: int) -> Layer:
        """The layer in an open directory. Raises `ViewfsError` for what is none."""
        try:
            text = read_text(fd, _RECORD)
            value = typed(json.loads(text), dict)
            if value.get("schema") != _SCHEMA:
                raise ViewfsError(f"a layer of another version of viewfs (schema {value.get('schema')})")
            return cls(fd, LayerRecord.from_json(value))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ViewfsError(f"a layer's {_RECORD} can't be read: {error}") from error

    @property
    def has_journal(self) -> bool:
        """Was a commit begun that has not ended?"""
        return JOURNAL in os.listdir(self.fd)

    @property
    def was_restoring(self) -> bool:
        """Was a discard or a rollback begun that has not ended?"""
        return _RESTORING in os.listdir(self.fd)

    @contextlib.contextmanager
    def restoring(self, token: bytes) -> Iterator[None]:
        """Inside the block names of files in the view may begin with `token`, which is written down, to find them after
        a crash."""
        # A full disk may have no room for that; the discard is to make room then.
        with contextlib.suppress(OSError):
            write_whole(self.fd, _RESTORING, token.decode(), durably=not self.record.volatile)
        yield
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_RESTORING, dir_fd=self.fd)

    def forget_interrupted(self) -> None:
        """Forget an interrupted commit or discard: all changes are gone, so nothing of it is left to finish."""
        for name in (JOURNAL, _RESTORING):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.fd)

    def clear_restoring(self, view: Tree | None) -> None:
        """Remove what an interrupted restore has left, through the `view` if there is one. Raises OSError."""
        try:
            token = read_text(self.fd, _RESTORING).encode()
        except FileNotFoundError:
            return
        with self.open_upper() as upper:
            for path in [path for path, _entry in upper.walk(b"") if split(path)[1].startswith(token)]:
                directory, name = split(path)
                with (view or upper).directory(directory) as parent:
                    remove_tree(parent, name)
        os.unlink(_RESTORING, dir_fd=self.fd)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the layer's lock: one process at a time commits, discards or keeps a state."""
        fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ViewfsError(
                    f"the layer of {self.record.path} is being worked on by another command",
                    remedy="try again when it has ended",
                ) from None
            self.record = Layer.open(self.fd).record
            yield
        finally:
            os.close(fd)

    def write(self, record: LayerRecord) -> None:
        """Replace layer.json. The caller holds the lock, or nobody else knows of the layer yet. Raises OSError."""
        text = json.dumps({"schema": _SCHEMA} | asdict(record), indent=1)
        write_whole(self.fd, _RECORD, text, durably=not record.volatile)
        self.record = record

    def directory(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a directory in the layer's; the caller closes it."""
        return os.open(name, flags | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)

    @contextlib.contextmanager
    def open_upper(self) -> Iterator[Tree]:
        """The upper directory."""
        fd = self.directory("upper")
        try:
            yield Tree(fd, has_acls=self.has_acls)
        finally:
            os.close(fd)

    @property
    def has_acls(self) -> bool:
        """Does what shows the layer know access control lists? Our own file system does not."""
        return self.record.backend != "fuse"

    def make_directories(self, root: Entry) -> None:
        """An upper directory like `root`, if there is none, and its work directory. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir("work", 0o700, dir_fd=self.fd)
        with contextlib.suppress(FileExistsError):
            os.mkdir("upper", 0o700, dir_fd=self.fd)
            set_attributes(self.fd, b"upper", root)

    def empty(self) -> None:
        """Throw away the changes in the upper directory, but no states. No view may have the layer. Raises OSError."""
        with self.open_upper() as upper:
            root = upper.entry(b"")
        assert root is not None
        remove_tree(self.fd, b"upper")
        self.make_directories(root)

    def close(self) -> None:
        os.close(self.fd)


class LayerSet:
    """The layers of one session, in an open directory of its own."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def of_session(cls, name: str, directory: str, *, create: bool = False) -> LayerSet | None:
        """The layers of session `name` in `directory`; None if there are none and `create` is false.

        A symbolic link of that name is not followed: what is behind it could be thrown away. Raises `ViewfsError`.
        """
        path = os.path.join(directory, name)
        try:
            if create:
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
            return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not create:
                return None
            if isinstance(error, FileExistsError):
                error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename)
            raise explain_os_error("cannot keep layers in", error) from error

    def layers(self, unreadable: list[str] | None = None) -> Iterator[Layer]:
        """All layers, sorted by path; the caller closes them. `unreadable` gets a message on each of the others."""
        found = []
        for name in os.listdir(self.fd):
            try:
                found.append(self._open(name))
            except ViewfsError as error:
                if unreadable is not None and not self._is_unfinished(name):
                    unreadable.append(f"{os.path.join(self.path, name)}: {error.message}")
            except OSError:
                continue  # no directory
        yield from sorted(found, key=lambda layer: layer.record.path)

    def _is_unfinished(self, name: str) -> bool:
        """Was the layer still being made when the machine went down? Then it has never had any changes."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            return _RECORD not in os.listdir(fd) and not has_changes(fd)
        finally:
            os.close(fd)

    def _open(self, name: str) -> Layer:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            return Layer.open(fd)
        except BaseException:
            os.close(fd)
            raise

    def layer(
        self,
        path: str,
        lower: Lower,
        root: Entry,
        *,
        now_ns: int,
        durably: bool = True,
        subordinate: bool = False,
    ) -> Layer:
        """The layer of mount point `path`, as it was left, or a new one; `root` is what is there now.

        `durably`: it has to survive the machine. `subordinate`: see `LayerRecord`.

        Raises `UsageError` if it was made over something else, and OSError.
        """
        name = _directory_name(path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            if _RECORD in os.listdir(fd):
                layer = Layer.open(fd)
                if layer.record.lower != lower:
                    before, here = layer.record.lower, lower
                    raise UsageError(
                        f"the changes of {path} were made over {before.source or before.type}, and now there is"
                        f" {here.source or here.type}",
                        remedy="`viewfs discard` them, or use another --name",
                    )
                layer.make_directories(root)
                ids = subordinate or layer.record.subordinate
                if (layer.record.lower.identity, layer.record.subordinate) != (lower.identity, ids):
                    with layer.locked():
                        layer.write(replace(layer.record, lower=lower, subordinate=ids))
                return layer
            layer = Layer(fd, LayerRecord(path, lower, now_ns, volatile=not durably, subordinate=subordinate))
            layer.is_new = True
            layer.make_directories(root)
            layer.write(layer.record)
            return layer
        except BaseException:
            os.close(fd)
            raise

    def tidy(self) -> None:
        """Remove the empty layers, and the directory if none is left. No session may have it."""
        for name in os.listdir(self.fd):
            with contextlib.suppress(OSError, ViewfsError):
                layer = self._open(name)
                try:
                    used = has_changes(layer.fd) or layer.record.checkpoints or layer.has_journal
                finally:
                    layer.close()
                if not used:
                    remove_tree(self.fd, os.fsencode(name))
        left = set(os.listdir(self.fd))
        if left <= {LOCK_FILE}:
            with contextlib.suppress(OSError):
                for name in left:
                    os.unlink(name, dir_fd=self.fd)
                os.rmdir(self.path)
                os.rmdir(os.path.dirname(self.path))

    def remove(self) -> None:
        """Throw all of them away. Raises OSError.

        The lock file goes last: as long as anything is left, another process that wants to remove it finds it locked.
        """
        for name in os.listdir(self.fd):
            if name != LOCK_FILE:
                remove_tree(self.fd, os.fsencode(name))
        remove_tree(_AT_FDCWD, os.fsencode(self.path))
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(self.path))  # if that was the last session's

    def close(self) -> None:
        os.close(self.fd)


_AT_FDCWD = -100


def _directory_name(path: str) -> str:
    """A name that tells a person which layer it is, and that no other path has."""
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(path)).strip(".-")[:40]
    return f"{last or 'root'}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


def read_text(directory: int, name: str) -> str:
    """What is in a file of a layer. Raises OSError, and ValueError for what is no text."""
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), encoding="utf-8") as file:
        return file.read()


def write_whole(directory: int, name: str, text: str, *, durably: bool = True) -> None:
    """Make or replace a file, so that nobody sees half of it, even (`durably`) after a crash. Raises OSError."""
    aside = f"{name}.{secrets.token_hex(4)}.new"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durably:
                os.fsync(file.fileno())
        os.rename(aside, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(aside, dir_fd=directory)
        raise
    if durably:
        os.fsync(directory)
