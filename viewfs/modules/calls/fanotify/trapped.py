"""What programs do by working directories and descriptors that they had before a directory was watched.

These lead below what watches. Where the user asks for it (`--calls=open,read,write,close,exec`), the session is asked
about the calls themselves. So groups are told, or asked, before the kernel does what was called for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from viewfs.errors import os_error
from viewfs.linux.fanotify import Event
from viewfs.linux.files import Resolve, mount_number, openat2
from viewfs.modules.api.calls import Caller
from viewfs.modules.calls.fanotify.asking import ask
from viewfs.modules.calls.fanotify.covers import Cover, Covers
from viewfs.modules.calls.fanotify.groups import Groups, Happening, Thing

__all__ = ["Trapped"]

_AT_FDCWD = (1 << 32) - 100
#: So many files that are about to be made are remembered, for so long; and one looks for them after so long at first.
_MADE_MOST, _MADE_SECONDS, _FIRST_LOOK_SECONDS = 256, 2.0, 0.002


class _Made(NamedTuple):
    """A file that is about to be made: where, and by whom."""

    cover: Cover
    path: str
    pid: int
    tid: int
    mask: Event
    #: It is made until then, by `trio.current_time`, or not at all.
    until: float


class Trapped:
    """Tells groups of calls."""

    def __init__(self, groups: Groups, covers: Covers) -> None:
        self._groups = groups
        self._covers = covers
        #: Processes and numbers of descriptors that events came with: what is done by them makes no events.
        self.silent: set[tuple[int, int]] = set()
        #: Files that are about to be made.
        self._made: deque[_Made] = deque(maxlen=_MADE_MOST)
        self._come = trio.Event()

    async def run(self) -> None:
        """Look for files that are about to be made."""
        while True:
            await self._come.wait()
            seconds = _FIRST_LOOK_SECONDS
            while self._made:
                await trio.sleep(seconds)
                seconds = min(2 * seconds, _MADE_SECONDS / 10)
                self.see()
            self._come = trio.Event()

    def see(self) -> None:
        """Tell of files that have been made meanwhile."""
        for _each in range(len(self._made)):
            made = self._made.popleft()
            with _opened(made.cover, made.path) as fd:
                if fd is not None:
                    self._tell(_thing(made.cover, made.path, fd), fd, made.mask, made.pid, made.tid)
                elif trio.current_time() < made.until:
                    self._made.append(made)

    async def opens(self, caller: Caller, path: str | None, flags: int, *, executes: bool = False) -> None:
        """Raises OSError if somebody who was asked does not allow it."""
        if path is None or not self._groups or flags & os.O_PATH or not caller.relative:
            return
        at = caller.words[0] & 0xFFFFFFFF if caller.call in ("openat", "openat2", "execveat") else _AT_FDCWD
        whence = "cwd" if at == _AT_FDCWD else f"fd/{at}"
        cover = self._below(f"/proc/{caller.tid}/{whence}", path)
        if cover is None:
            return
        mask = Event.OPEN | (Event.OPEN_EXEC if executes else Event(0))
        with _opened(cover, path, follow=not flags & os.O_NOFOLLOW) as fd:
            if fd is None:
                if flags & os.O_CREAT:
                    until = trio.current_time() + _MADE_SECONDS
                    self._made.append(_Made(cover, path, caller.pid, caller.tid, mask, until))
                    self._come.set()
                return
            if not _would_open(fd, flags, executes=executes):
                return
            thing = _thing(cover, path, fd)
            asked = (Event.OPEN_EXEC_PERM, Event.OPEN_PERM) if executes else (Event.OPEN_PERM,)
            await self._ask(thing, fd, asked, caller)
            if flags & os.O_TRUNC:
                self._groups.modified(thing)
            self._tell(thing, fd, mask, caller.pid, caller.tid)

    async def reads(self, caller: Caller, number: int, offset: int | None) -> None:
        """`offset`: of pread(2). Raises as `opens` does."""
        with self._descriptor(caller, number) as (cover, path, fd, position, _flags):
            if cover is None:
                return
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and (position if offset is None else offset) >= status.st_size:
                return
            thing = _thing(cover, path, fd)
            await self._ask(thing, fd, (Event.ACCESS_PERM,), caller)
            self._tell(thing, fd, Event.ACCESS, caller.pid, caller.tid)

    def writes(self, caller: Caller, number: int) -> None:
        """It, or who truncates it."""
        with self._descriptor(caller, number) as (cover, path, fd, _position, flags):
            if cover is not None and flags & os.O_ACCMODE != os.O_RDONLY:
                self._tell(_thing(cover, path, fd), fd, Event.MODIFY, caller.pid, caller.tid)

    def closes(self, caller: Caller, number: int) -> None:
        with self._descriptor(caller, number) as (cover, path, fd, _position, flags):
            if cover is not None:
                mask = Event.CLOSE_NOWRITE if flags & os.O_ACCMODE == os.O_RDONLY else Event.CLOSE_WRITE
                self._tell(_thing(cover, path, fd), fd, mask, caller.pid, caller.tid)
        self.silent.discard((caller.pid, number))

    # -- what is meant

    def _below(self, link: str, path: str) -> Cover | None:
        """What watches the directory below which this link of /proc leads."""
        if not self._covers:
            return None
        try:
            return self._covers.at(mount_number(link), path)
        except OSError:
            return None

    @contextmanager
    def _descriptor(self, caller: Caller, number: int) -> Iterator[tuple[Cover | None, str, int, int, int]]:
        """What it is a descriptor of: what watches that, its path, a descriptor (O_PATH); and its position and
        flags."""
        link = f"/proc/{caller.tid}/fd/{number}"
        fd, cover, path, position, flags = -1, None, "", 0, 0
        self.see()
        if self._groups and self._covers and (caller.pid, number) not in self.silent:
            try:
                path = os.readlink(link)
                cover = self._below(link, path)
                if cover is not None:
                    fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
                    position, flags = _state(caller.tid, number)
            except OSError:
                cover = None
        try:
            yield cover if fd >= 0 and not flags & os.O_PATH else None, path, fd, position, flags
        finally:
            if fd >= 0:
                os.close(fd)

    # -- groups

    async def _ask(self, thing: Thing, fd: int, events: tuple[Event, ...], caller: Caller) -> None:
        questions = [(group, event) for event in events for group in self._groups.who_is_asked(thing, event)]
        if questions:
            await ask(questions, Happening(thing, Event(0), caller.pid, caller.tid), lambda: os.dup(fd))

    def _tell(self, thing: Thing, fd: int, mask: Event, pid: int, tid: int) -> None:
        self._groups.tell(Happening(thing, mask, pid, tid), lambda: os.dup(fd))


@contextmanager
def _opened(cover: Cover, path: str, *, follow: bool = True) -> Iterator[int | None]:
    """A descriptor (O_PATH) of what is at `path` below what watches; None if that leads elsewhere, or to nothing."""
    inside = os.path.relpath(path, cover.path)
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = openat2(
            cover.directory.top, inside, flags, Resolve.BENEATH | Resolve.NO_MAGICLINKS | Resolve.NO_XDEV
        )  # fmt: skip
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _thing(cover: Cover, path: str, fd: int) -> Thing:
    status, parent = os.fstat(fd), None
    if path != cover.path:
        with _opened(cover, os.path.dirname(path)) as directory:
            if directory is not None:
                its = os.fstat(directory)
                parent = its.st_dev, its.st_ino
    is_directory = stat.S_ISDIR(status.st_mode)
    return Thing((status.st_dev, status.st_ino), parent, cover.directory.mount, is_directory)


def _would_open(fd: int, flags: int, *, executes: bool) -> bool:
    place, mode = f"/proc/self/fd/{fd}", os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return False
    if executes:
        return stat.S_ISREG(mode) and os.access(place, os.X_OK)
    access = flags & os.O_ACCMODE
    if (flags & os.O_CREAT and flags & os.O_EXCL) or (stat.S_ISDIR(mode) and access != os.O_RDONLY):
        return False
    wanted = (os.R_OK if access != os.O_WRONLY else 0) | (os.W_OK if access != os.O_RDONLY else 0)
    return os.access(place, wanted)


def _state(tid: int, number: int) -> tuple[int, int]:
    """Position and flags of a descriptor (proc_pid_fdinfo(5)). Raises OSError."""
    with open(f"/proc/{tid}/fdinfo/{number}") as lines:
        found = dict(line.split(":", 1) for line in lines if line.startswith(("pos:", "flags:")))
    try:
        return int(found["pos"]), int(found["flags"], 8)
    except KeyError:
        raise os_error(errno.EIO) from None
