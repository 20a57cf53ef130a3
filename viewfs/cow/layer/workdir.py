"""Changing the upper directory of a layer in single steps: there is the old state or the new, and nothing between.

What is new is made in the work directory, beside the upper one and on the same file system, and then put in its place
by one rename: over a whiteout or a file, or exchanged with a directory. If the disk is full or the machine goes down,
something may be left in the work directory, and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from viewfs.cow.copying import remove_tree
from viewfs.linux.files import Rename, renameat2
from viewfs.mounts.overlay import HAS_WHITEOUTS, OPAQUE, WHITEOUT

__all__ = ["WorkDirectory", "hide_lower", "status_of"]

_NEW, _ASIDE = b"new", b"aside"
_NO_FLAGS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def status_of(directory: int, name: bytes) -> os.stat_result | None:
    """What `name` in the open `directory` is; None where nothing is. Raises OSError."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def hide_lower(directory: int, name: bytes) -> None:
    """Make a directory opaque, so that it hides the lower one (overlayfs.rst). Raises OSError."""
    os.setxattr(b"/proc/self/fd/%d/%s" % (directory, name), OPAQUE, b"y", follow_symlinks=False)


class WorkDirectory:
    """The work directory of a layer. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.clear()

    def clear(self) -> None:
        """Remove what an error, or a process that was killed, has left unfinished."""
        for name in (_NEW, _ASIDE):
            remove_tree(self.fd, name)

    def put(self, directory: int, name: bytes, make: Callable[[int, bytes], None]) -> None:
        """Let `make` make something (given a directory and a name), and put it in the place of what is at `name`.

        Raises OSError, nothing having changed.
        """
        remove_tree(self.fd, _NEW)
        try:
            make(self.fd, _NEW)
            self._place(directory, name)
        except BaseException:
            remove_tree(self.fd, _NEW)
            raise

    def _place(self, directory: int, name: bytes) -> None:
        old, new = status_of(directory, name), status_of(self.fd, _NEW)
        assert new is not None
        if old is None or not (stat.S_ISDIR(old.st_mode) or stat.S_ISDIR(new.st_mode)):
            os.rename(_NEW, name, src_dir_fd=self.fd, dst_dir_fd=directory)
            return
        try:
            renameat2(self.fd, _NEW, directory, name, Rename.EXCHANGE)
        except OSError as error:
            if error.errno not in _NO_FLAGS:
                raise
            remove_tree(self.fd, _ASIDE)
            os.rename(name, _ASIDE, src_dir_fd=directory, dst_dir_fd=self.fd)
            os.rename(_NEW, name, src_dir_fd=self.fd, dst_dir_fd=directory)
            remove_tree(self.fd, _ASIDE)
        remove_tree(self.fd, _NEW)

    def put_whiteout(self, directory: int, name: bytes) -> None:
        """Put a whiteout in the place of what is at `name`, if anything. Raises OSError, nothing having changed."""
        self.put(directory, name, lambda place, new: _make_whiteout(place, new, directory))

    def take_away(self, directory: int, name: bytes) -> None:
        """Remove what is at `name`, which hides nothing; a directory has nothing but whiteouts in it."""
        status = status_of(directory, name)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=directory)
            return
        remove_tree(self.fd, _ASIDE)
        os.rename(name, _ASIDE, src_dir_fd=directory, dst_dir_fd=self.fd)
        remove_tree(self.fd, _ASIDE)

    def move(self, directory: int, name: bytes, new_directory: int, new_name: bytes, *, hides: bool) -> None:
        """Rename, leaving a whiteout if the lower tree has something of the old name (`hides`). Raises OSError.

        What is at the new name is replaced: a file by a file; a whiteout, or a directory that has only whiteouts in it,
        by whatever is moved there.
        """
        moved, replaced = status_of(directory, name), status_of(new_directory, new_name)
        assert moved is not None
        if replaced is not None and (stat.S_ISDIR(replaced.st_mode) or stat.S_ISDIR(moved.st_mode)):
            if stat.S_ISDIR(replaced.st_mode):
                self.put_whiteout(new_directory, new_name)  # it shows as little as before, and leaves nothing to remove
            try:
                # This moves the whiteout to the old name, where it stays if one is needed there.
                renameat2(directory, name, new_directory, new_name, Rename.EXCHANGE)
            except OSError as error:
                if error.errno not in _NO_FLAGS:
                    raise
                os.unlink(new_name, dir_fd=new_directory)
                os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)
                if hides:
                    self.put_whiteout(directory, name)
                return
            if not hides:
                os.unlink(name, dir_fd=directory)
            elif (left := status_of(directory, name)) is not None and stat.S_ISREG(left.st_mode):
                _allow_whiteouts(directory)  # it was made for the other directory (`_make_whiteout`)
            return
        if not hides:
            os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)
            return
        try:
            renameat2(directory, name, new_directory, new_name, Rename.WHITEOUT)
        except OSError as error:
            if error.errno not in (*_NO_FLAGS, errno.EPERM):
                raise
            os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)
            self.put_whiteout(directory, name)

    # -- files that are open and have no name any more: they have one here, by which a successor can open them again

    def make_held(self, number: int) -> int:
        """Make an empty file of this kind, open for reading and writing. Raises OSError."""
        self.let_go(number)  # what a server was about to make when it died
        return os.open(_held(number), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd)

    def hold(self, number: int, directory: int, name: bytes) -> None:
        """Give the file at `name`, which is about to lose that, a name here too. Raises OSError."""
        with contextlib.suppress(FileExistsError):  # the previous server has done it
            os.link(name, _held(number), src_dir_fd=directory, dst_dir_fd=self.fd, follow_symlinks=False)

    def open_held(self, number: int, flags: int) -> int:
        """Open such a file again. Raises OSError."""
        return os.open(_held(number), flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)

    def let_go(self, number: int) -> None:
        """Remove such a file: nobody has it open any more, or it has a name again."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_held(number), dir_fd=self.fd)

    def close(self) -> None:
        os.close(self.fd)


def _held(number: int) -> bytes:
    return b"held-%d" % number


def _make_whiteout(place: int, name: bytes, directory: int) -> None:
    """Make a whiteout in one of the two ways that overlayfs knows; it will be put in `directory`."""
    try:
        os.mknod(name, stat.S_IFCHR, dir_fd=place)
        return
    except PermissionError:
        pass  # the layer is in another overlay, which keeps whiteouts for itself
    _allow_whiteouts(directory)
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=place))
    os.setxattr(b"/proc/self/fd/%d/%s" % (place, name), WHITEOUT, b"y", follow_symlinks=False)


def _allow_whiteouts(directory: int) -> None:
    """Have overlayfs look for whiteouts that are no devices in a directory; an opaque one hides all anyway."""
    with contextlib.suppress(OSError):
        if os.getxattr(directory, OPAQUE) == b"y":
            return
    os.setxattr(directory, OPAQUE, HAS_WHITEOUTS)
