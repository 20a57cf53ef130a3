"""The lock that lets one session at a time use the layers of a name, even if others have other runtime directories.

(cron, su and ssh give a user several, and a home directory may be on several machines.) The lock is flock(2) on a file
in the directory of the layers. The session holds it through a descriptor, so that the lock ends with the session.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from viewfs.errors import ViewfsError

__all__ = ["LOCK_FILE", "is_in_use", "lock_session"]

LOCK_FILE = ".session"
_TEXT_MAX = 500
#: If somebody has put a symbolic link or a pipe there, it is not followed, nor waited for.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def lock_session(directory: int, name: str, *, where: str, shared: bool = False) -> int:
    """Lock the layers of session `name`, which are in the open `directory`; returns a descriptor that holds the lock.

    `where` says where this session can be found. `shared`: others may look at the layers meanwhile. Raises
    `ViewfsError` that names the holder, and OSError.
    """
    while True:
        fd = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ViewfsError(f"{LOCK_FILE} of {name} is no file", remedy="viewfs has not made it; take it away")
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, _TEXT_MAX, 0).decode(errors="replace").strip() or "another session"
                raise ViewfsError(
                    f"the changes of {name} are in use by {holder}", remedy="end that session, or use another --name"
                ) from None
            if _is_there(directory, fd):
                with contextlib.suppress(OSError):  # a full disk: whoever makes room has to take the lock first
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"process {os.getpid()} on {os.uname().nodename}, {where}\n".encode(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # a session that has just ended took the file away


def _is_there(directory: int, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(LOCK_FILE, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return False


def is_in_use(directory: int) -> bool:
    """Has a session the layers in the open `directory`? (What is no lock of viewfs is somebody's too.)"""
    with contextlib.suppress(OSError):
        fd = os.open(LOCK_FILE, os.O_RDONLY | _FLAGS, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return True
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False
