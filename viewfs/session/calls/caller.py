"""Whoever waits for a call: its memory, its directories, its descriptors.

All of it can change while one looks, so what was read is acted on as read, and nothing here decides what somebody may
do.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager

from viewfs.errors import os_error
from viewfs.linux.files import Resolve, openat2
from viewfs.linux.memory import check_at_hand, process_vm_readv, process_vm_writev
from viewfs.linux.namespaces import CloneFlags, setns
from viewfs.linux.process import CAP_SYS_ADMIN, has_capability, pidfd_getfd, thread_group_of
from viewfs.paths import is_at_or_below
from viewfs.session.runtime import connect_in_view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["Caller", "is_of_view", "join_user_namespace"]

_PATH_MAX = 4096
#: As the unsigned word that it is in.
_AT_FDCWD = (1 << 32) - 100
#: How much is read at once, and how much of it at first: most texts are short.
_PAGE, _PART = 4096, 256


class Caller:
    """A thread, by the number that this process knows it by."""

    def __init__(self, tid: int, *, quick: bool = False) -> None:
        """`quick`: memory that may have to be waited for is `NotAtHand`."""
        self.tid = tid
        self._quick = quick

    @property
    def name(self) -> str:
        """For people to read."""
        try:
            with open(f"/proc/{self.tid}/comm") as file:
                return f"{file.read().strip()}[{self.tid}]"
        except OSError:
            return f"[{self.tid}]"

    def mount_namespace(self) -> tuple[int, int]:
        """st_dev and st_ino. Raises OSError if the thread is gone."""
        status = os.stat(f"/proc/{self.tid}/ns/mnt")
        return status.st_dev, status.st_ino

    def text(self, address: int, most: int = _PATH_MAX) -> bytes | None:
        """The bytes at `address` up to a NUL; None for a null pointer. Raises OSError: EFAULT, ENAMETOOLONG."""
        if not address:
            return None
        found = b""
        while len(found) < most:
            here = address + len(found)
            part = bytearray(
                min(_PAGE - here % _PAGE, _PART if not found else _PAGE)
            )  # what lies behind may be missing
            self._transfer(process_vm_readv, here, part, writing=False)
            text, end, _rest = part.partition(b"\0")
            found += text
            if end:
                return found
        raise OSError(errno.ENAMETOOLONG, "a text that does not end")

    def read(self, address: int, size: int) -> bytes:
        """Raises OSError: EFAULT; PermissionError if memory of others can't be read here."""
        data = bytearray(size)
        if size:
            self._transfer(process_vm_readv, address, data, writing=False)
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        """Raises as `read` does."""
        if data:
            self._transfer(process_vm_writev, address, data, writing=True)

    def _transfer(self, transfer: Callable[[int, int, Any], None], address: int, data: Any, *, writing: bool) -> None:
        if self._quick:
            check_at_hand(self.tid, address, len(data), writing=writing)
        try:
            transfer(self.tid, address, data)
        except PermissionError:
            raise
        except (OSError, OverflowError):
            raise OSError(errno.EFAULT, "its memory can't be reached") from None

    def canonical(self, path: bytes, *, follow: bool = True) -> str:
        """`path` as the view has it: absolute, without links. Raises OSError."""
        fd = self._opened(path, follow=follow)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def place(self, path: bytes) -> tuple[str, bool]:
        """As `canonical`, and whether it is a directory: so whoever serves it has answered. Raises OSError."""
        fd = self._opened(path)
        try:
            return os.readlink(f"/proc/self/fd/{fd}"), stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def _opened(self, path: bytes, *, follow: bool = True) -> int:
        return self.opened_at(None, path, follow=follow)

    def opened_at(self, directory: int | None, path: bytes, *, follow: bool = True) -> int:
        """A descriptor (O_PATH) of `path`, which may be relative to its descriptor `directory` (None or AT_FDCWD: to
        its working directory). Raises OSError."""
        if not path:
            raise os_error(errno.ENOENT)
        path = self._without_magic(path) if follow else path
        whence = "cwd" if directory is None or directory == _AT_FDCWD else f"fd/{directory}"
        root = os.open(f"/proc/{self.tid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            start, top = os.readlink(f"/proc/{self.tid}/{whence}"), os.readlink(f"/proc/{self.tid}/root")
            if top != "/" and is_at_or_below(start, top):
                start = start[len(top) :] or "/"
            flags = os.O_PATH | (0 if follow else os.O_NOFOLLOW)
            return openat2(root, os.path.join(os.fsencode(start), path), flags, Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
        finally:
            os.close(root)

    def _without_magic(self, path: bytes) -> bytes:
        """`path` with a link at its beginning resolved that leads somewhere for the caller alone (proc_pid_fd(5))."""
        for prefix, before in ((b"/proc/self/", b""), (b"/proc/thread-self/", b""), (b"/dev/fd/", b"fd/")):
            if not path.startswith(prefix):
                continue
            names = (before + path[len(prefix) :]).split(b"/")
            length = 2 if names[0] == b"fd" else 1
            if names[0] in (b"fd", b"cwd", b"root"):
                target = os.readlink(b"/proc/%d/%b" % (self.tid, b"/".join(names[:length])))
                return os.path.join(target, *names[length:])
        return path

    @contextmanager
    def descriptor(self, number: int) -> Iterator[int]:
        """A duplicate of its descriptor `number` (pidfd_getfd(2)). Raises OSError."""
        process = os.pidfd_open(thread_group_of(self.tid))
        try:
            fd = pidfd_getfd(process, number)
        finally:
            os.close(process)
        try:
            yield fd
        finally:
            os.close(fd)


def is_of_view(tid: int) -> bool:
    """Does a thread live in a view, of this session or of one inside that, and has no right to mount by itself? Who has
    it, in its user namespace, is a session that runs in a view, or a program that makes namespaces of its own."""
    try:
        if has_capability(tid, CAP_SYS_ADMIN):
            return False
    except OSError:
        pass
    try:
        connect_in_view(tid, seconds=0).close()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def join_user_namespace(tid: int) -> None:
    """Have this process, of one thread, belong to the view of a thread: FUSE serves nobody else there. Raises
    OSError."""
    theirs = os.open(f"/proc/{tid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.stat(theirs).st_ino != os.stat("/proc/self/ns/user").st_ino:
            setns(theirs, CloneFlags.NEWUSER)
    finally:
        os.close(theirs)
