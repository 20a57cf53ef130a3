"""Where sessions can be found: the directory of control sockets, and the session names in it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time

from viewfs.errors import UsageError, ViewfsError
from viewfs.linux.plain import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "RUNTIME_VARIABLE",
    "SESSION_VARIABLE",
    "RuntimeDirectory",
    "check_name",
    "connect_in_view",
    "listen_in_view",
]

#: Set in every command of a view. A hint: what counts is the namespace that a process lives in.
SESSION_VARIABLE = "VIEWFS_SESSION"
#: Set in commands of a view: where its session can be found, if not where this process would look.
RUNTIME_VARIABLE = "VIEWFS_RUNTIME_DIR"
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_NAME_MAX = 64
_SUFFIX = ".sock"


def check_name(name: str) -> str:
    """`name`, if a session can be called that. Raises `UsageError`."""
    if not 0 < len(name) <= _NAME_MAX or name[0] not in _LETTERS or not set(name) <= _LETTERS | set("._-"):
        raise UsageError(
            f"“{name}” can't name a session", remedy="letters, digits, dot, dash and underscore, at most 64 of them"
        )
    return name


#: Seconds that a connection may take, and between two attempts.
_CONNECT_SECONDS, _AGAIN_SECONDS = 2.0, 0.005
#: How many may wait to be accepted.
_BACKLOG = 1024


def _address_in(user_namespace: tuple[int, int]) -> bytes:
    """The abstract address (unix(7)), made of their user namespace, at which processes of a view find its session
    whatever they have covered. Other users may bind it too, but both sides check that the other end is this user."""
    return b"\0viewfs/%d.%d" % user_namespace


def listen_in_view(user_namespace: tuple[int, int]) -> socket.socket | None:
    """A listener for processes in that user namespace; None if the address can't be had."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(_address_in(user_namespace))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        return None
    return listener


def connect_in_view(process: int | None = None, seconds: float = _CONNECT_SECONDS) -> socket.socket:
    """Connect to the session of the view that `process` (None: this one) lives in, within that time.

    Raises OSError; PermissionError if another user answers.
    """
    status = os.stat(f"/proc/{process or 'self'}/ns/user")
    if status.st_ino == _INITIAL_USER_NAMESPACE:
        raise FileNotFoundError(errno.ENOENT, "that is no view")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(seconds)  # whoever has the address need not accept anything
    try:
        _connect(connection, _address_in((status.st_dev, status.st_ino)), seconds)
        _pid, uid, _gid = struct.unpack("=iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            raise PermissionError(errno.EPERM, "that is somebody else's")
    except BaseException:
        connection.close()
        raise
    return connection


#: Inode number of the user namespace that a machine begins with (PROC_USER_INIT_INO of linux/proc_ns.h).
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD


def _connect(connection: socket.socket, address: bytes | str, seconds: float | None) -> None:
    """Connect. If others wait to be accepted, and there is no more room for them, try again for so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        try:
            connection.connect(address)
            return
        except BlockingIOError:
            if deadline is not None and time.monotonic() >= deadline:
                raise
            time.sleep(_AGAIN_SECONDS)


class RuntimeDirectory:
    """`$XDG_RUNTIME_DIR/viewfs`, or a private directory below the temporary one; made when a session needs it.

    Only its owner can enter it (mode 0700, checked), so nobody else can connect, or put a socket of their own there.
    """

    def __init__(self, path: str, fd: int, parent: int) -> None:
        self.path = path
        #: O_PATH descriptors of this directory and its parent, by which names can be used from any view.
        self.fd = fd
        self.parent = parent

    @classmethod
    def candidates(cls) -> Iterator[str]:
        """Where it may be, best first."""
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime and os.path.isabs(runtime):
            yield os.path.join(runtime, "viewfs")
        yield os.path.join(os.environ.get("TMPDIR") or "/tmp", f"viewfs-{os.geteuid()}")
        # Inside a view in which the user appears as root the user id is another one.
        if outside := os.environ.get(RUNTIME_VARIABLE):
            yield outside

    @classmethod
    def existing(cls) -> Iterator[RuntimeDirectory]:
        """The candidates that exist and are private, each once; the caller closes them."""
        seen: set[tuple[int, int]] = set()
        for path in cls.candidates():
            if (directory := cls._open(path)) is not None:
                status = os.fstat(directory.fd)
                if (status.st_dev, status.st_ino) in seen:
                    directory.close()
                    continue
                seen.add((status.st_dev, status.st_ino))
                yield directory

    @classmethod
    def create(cls) -> RuntimeDirectory:
        """The first candidate that can be used, made if need be. Raises `ViewfsError`."""
        problems = []
        for path in cls.candidates():
            try:
                os.mkdir(path, 0o700)
                os.chmod(path, 0o700)  # whatever the umask is
            except FileExistsError:
                pass
            except OSError as error:
                problems.append(f"{path}: {(error.strerror or '').lower()}")
                continue
            directory = cls._open(path)
            if directory is not None:
                return directory
            problems.append(f"{path}: not a directory of yours with mode 0700")
        raise ViewfsError(
            f"no place for the control socket ({'; '.join(problems)})",
            remedy="set XDG_RUNTIME_DIR to a private directory",
        )

    @classmethod
    def claim(cls, name: str | None) -> tuple[RuntimeDirectory, socket.socket, str]:
        """`create` and `bind`, again if a session ends in between and takes the directory with it."""
        while True:
            directory = cls.create()
            try:
                return directory, *directory.bind(name)
            except FileNotFoundError:
                directory.close()
            except BaseException:
                directory.close()
                raise

    @classmethod
    def _open(cls, path: str) -> RuntimeDirectory | None:
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            os.close(fd)
            return None
        try:
            return cls(path, fd, os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            os.close(fd)
            return None

    def bind(self, name: str | None) -> tuple[socket.socket, str]:
        """A listening socket, and the name of the session it is for: `name`, or one made from this process's number.

        Raises `UsageError` if a session of that name is there, FileNotFoundError if the directory is gone.
        """
        for number in range(1 if name else 100):
            candidate = name or (f"{os.getpid()}.{number}" if number else str(os.getpid()))
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._bind_one(listener, candidate)
            except FileExistsError:
                listener.close()
                continue
            except FileNotFoundError:
                listener.close()
                raise  # the last session's end has taken the directory away
            except OSError as error:
                listener.close()
                raise ViewfsError(f"cannot make the control socket in {self.path}: {error.strerror}") from error
            return listener, candidate
        raise UsageError(
            f"a session called {candidate} exists", remedy=f"`viewfs enter {candidate}`, or another --name"
        )

    def _bind_one(self, listener: socket.socket, name: str) -> None:
        """Raises FileExistsError where a session answers to `name`."""
        # The socket gets its name once it listens: others take one that nobody answers on for a left-over.
        unnamed = f"{name}.{os.getpid()}.new"
        # Through the descriptor, so that a path of any length fits into the 108 bytes of sockaddr_un.
        listener.bind(f"/proc/self/fd/{self.fd}/{unnamed}")
        try:
            listener.listen(_BACKLOG)
            try:
                os.link(unnamed, name + _SUFFIX, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except FileExistsError:
                self._replace_left_over(name, unnamed)
                return
            os.unlink(unnamed, dir_fd=self.fd)
        except OSError:
            os.unlink(unnamed, dir_fd=self.fd)
            raise

    def _replace_left_over(self, name: str, unnamed: str) -> None:
        """Raises FileExistsError if a session answers. Of two that find a left-over, the second finds the first."""
        lock = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._answers(name):
                raise FileExistsError
            os.rename(unnamed, name + _SUFFIX, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        finally:
            os.close(lock)

    def _answers(self, name: str) -> bool:
        try:
            self.connect(name, _CONNECT_SECONDS).close()
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass  # it is busy
        return True

    def connect(self, name: str, seconds: float | None = None) -> socket.socket:
        """Connect to a session's control socket; no operation on it waits longer than `seconds`. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(seconds)
        try:
            _connect(connection, f"/proc/self/fd/{self.fd}/{name}{_SUFFIX}", seconds)
        except OSError:
            connection.close()
            raise
        return connection

    def names(self) -> list[str]:
        """The names in use. Some may be left over."""
        try:
            entries = os.listdir(f"/proc/self/fd/{self.fd}")
        except OSError:
            return []
        return sorted(entry.removesuffix(_SUFFIX) for entry in entries if entry.endswith(_SUFFIX))

    def abandoned(self) -> list[str]:
        """Sockets in it that nobody listens on, and never will again."""
        found = []
        for entry in sorted(os.listdir(f"/proc/self/fd/{self.fd}")):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(_CONNECT_SECONDS)
            try:
                connection.connect(f"/proc/self/fd/{self.fd}/{entry}")
            except ConnectionRefusedError:
                found.append(entry)
            except OSError:
                pass
            finally:
                connection.close()
        return found

    def sweep(self) -> None:
        """Remove the sockets of sessions that were killed."""
        for entry in self.abandoned():
            if entry.endswith(_SUFFIX):
                try:
                    os.unlink(entry, dir_fd=self.fd)
                except OSError:
                    pass  # somebody else has removed it

    def remove(self, name: str) -> None:
        """Remove a session's socket, and the directory if that was the last."""
        try:
            os.unlink(name + _SUFFIX, dir_fd=self.fd)
        except (FileNotFoundError, IsADirectoryError):
            pass
        try:
            os.rmdir(os.path.basename(self.path), dir_fd=self.parent)
        except OSError:
            pass  # other sessions use it

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.parent)

    def __enter__(self) -> RuntimeDirectory:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
