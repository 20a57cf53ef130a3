"""Writable file systems that have all that matters on a disk, so that another server can go on where one has died."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable, Mapping

from viewfs.errors import os_error
from viewfs.modules.api import Answer, Attributes, InodeNumber, OpenFile, WritableFileSystem

__all__ = ["LastingFile", "LastingFileSystem", "LostFile"]


class LastingFile(OpenFile):
    """An open file that a successor opens again."""

    @abstractmethod
    def record(self) -> bytes:
        """What `LastingFileSystem.reopen` needs."""


class LostFile(LastingFile):
    """One that a successor could not open again: each call fails."""

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

    def fsync(self, *, data_only: bool) -> None:
        raise os_error(errno.ESTALE)


class LastingFileSystem(WritableFileSystem):
    """A file system whose server can be replaced: what it tells `remember` is given to its successor's `restore`.

    Its methods are plain: none is a promise.

    A successor does again what was begun when the server died. Where that can't be done twice, it is asked whether it
    was done.
    """

    #: Nobody else changes its files: what was appended when the server died is where the file had ended.
    is_changed_here_only: bool = False

    @abstractmethod
    def restore(
        self, known: Mapping[InodeNumber, bytes], remember: Callable[[InodeNumber, bytes | None], None]
    ) -> None:
        """Know again what the server before remembered; called once, before all else.

        `remember` is to be called with what a successor has to know of an inode, each time that this changes (None:
        nothing any more).
        """

    @abstractmethod
    def reopen(self, record: bytes) -> LastingFile:
        """A file that the server before had open: the same, or a `LostFile`."""

    def made_already(
        self, directory: InodeNumber, name: bytes, source: InodeNumber | None = None
    ) -> Answer[Attributes | None]:
        """The inode that `name` stands for, if it was made through this mount; None if that can't be told.

        `source`: the inode that `name` was made a link to.
        """
        return None

    def moved_already(self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes) -> bool:
        """There is no such name any more: was it renamed through this mount? (False: it can't be told.)"""
        return False
