"""Writable file systems whose data are on disk, so that another server can continue where one has died."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable, Mapping

from viewfs.errors import os_error
from viewfs.modules.api import Answer, Attributes, InodeNumber, OpenFile, WritableFileSystem

__all__ = ["LastingFile", "LastingFileSystem", "LostFile"]


class LastingFile(OpenFile):
    """An open file that a successor can reopen."""

    @abstractmethod
    def record(self) -> bytes:
        """What `LastingFileSystem.reopen` needs."""


class LostFile(LastingFile):
    """An open file that a successor could not reopen: each call fails."""

    def __init__(self, what: bytes) -> None:
        self._what = what

    def record(self) -> bytes:
        return self._what

    def read(self, offset: int, size: int) -> bytes:
        raise os_error(errno.ESTALE)

    def write(self, offset: int, data: bytes) -> int:
        raise os_error(errno.ESTALE)

    def lseek(self, offset: int, whence: int) -> int:
        raise os_error(errno.ESTALE)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        raise os_error(errno.ESTALE)

    def fsync(self, *, data_only: bool) -> None:
        raise os_error(errno.ESTALE)


class LastingFileSystem(WritableFileSystem):
    """A file system whose server can be replaced: what it tells `remember` is given to its successor's `restore`.

    Its methods are plain: none returns a promise.

    A successor carries out again the request that had begun when the server died. If that fails because it may have
    been done already, `made_already` or `moved_already` is asked whether it was.
    """

    #: Nobody else changes its files: so data that were being appended when the server died can be written again at the
    #: old end of the file.
    is_changed_here_only: bool = False

    @abstractmethod
    def restore(
        self, known: Mapping[InodeNumber, bytes], remember: Callable[[InodeNumber, bytes | None], None]
    ) -> None:
        """Restore what the previous server gave to `remember`, by inode number; called once, before all else.

        Call `remember` with what a successor has to know about an inode, each time that it changes; None deletes it.
        """

    @abstractmethod
    def reopen(self, record: bytes) -> LastingFile:
        """The file that the previous server had open, reopened from its `record`; a `LostFile` if that fails."""

    def made_already(
        self, directory: InodeNumber, name: bytes, source: InodeNumber | None = None
    ) -> Answer[Attributes | None]:
        """The inode that `name` stands for, if it was made through this mount; None if that is not known.

        `source`: the inode that `name` was made a link to.
        """
        return None

    def moved_already(self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes) -> bool:
        """`name` does not exist any more: was it renamed through this mount? (False: that is not known.)"""
        return False
