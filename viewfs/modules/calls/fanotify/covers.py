"""The watched directories of a view: each lies over a directory while there are marks on what is in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from viewfs.errors import os_error
from viewfs.linux.mountinfo import mount_table
from viewfs.linux.process import is_killed
from viewfs.modules.api.calls import InView
from viewfs.modules.calls.fanotify.groups import Groups, Key, Scope
from viewfs.modules.calls.fanotify.resolver import Found
from viewfs.modules.calls.fanotify.watching import WatchedDirectory, WatchedOperations
from viewfs.mounts.covering import KERNELS_OWN
from viewfs.mounts.fuse.answers import Body
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.protocol import Request
from viewfs.mounts.fuse.server import Dispatcher, Server
from viewfs.paths import is_at_or_below

__all__ = ["SOURCE", "CoveredMeanwhileError", "Covers", "Served", "unmount_all"]

#: So often one looks whether somebody who waits was killed.
_LOOK_SECONDS = 0.05
#: What the mount table shows as the source.
SOURCE = "viewfs-fanotify"


class CoveredMeanwhileError(Exception):
    """Something else lies over what is to be watched, or did when it was found."""


class _Patient(Server):
    """A server whose callers can be killed while they wait, but have other signals wait too: so it is where the kernel
    asks a group. (It tells of the first signal only.)"""

    nursery: trio.Nursery

    def __init__(self, dispatcher: Dispatcher, fd: int, counters: Counters) -> None:
        super().__init__(dispatcher, fd, counters.rows[0])
        self._callers: dict[int, int] = {}

    def start_waiting(self, nursery: trio.Nursery, request: Request, promise: Awaitable[Body]) -> None:
        self.nursery = nursery
        self._callers = {unique: tid for unique, tid in self._callers.items() if unique in self.waiting}
        self._callers[request.unique] = request.pid
        super().start_waiting(nursery, request, promise)

    def _interrupt(self, request: Request) -> None:
        unique = request.fields[0]
        if unique in self.waiting:
            self.nursery.start_soon(self._cancel_when_killed, unique, self.waiting[unique])

    async def _cancel_when_killed(self, unique: int, scope: trio.CancelScope) -> None:
        while self.waiting.get(unique) is scope:
            if is_killed(self._callers[unique]):
                scope.cancel()
                return
            await trio.sleep(_LOOK_SECONDS)


class Served:
    """A FUSE file system that this process serves beside others."""

    def __init__(self, dispatcher: Dispatcher, fd: int, counters: Counters) -> None:
        self.fd = fd
        self._server = _Patient(dispatcher, fd, counters)
        self.is_over = False

    def pump(self, nursery: trio.Nursery) -> None:
        """Answer all requests that are there."""
        while not self.is_over:
            try:
                request = self._server.receive()
            except BlockingIOError:
                return
            if request is None:
                self.is_over = True
                return
            self._server.handle(request, nursery)

    async def run(self) -> None:
        """Until it is unmounted everywhere."""
        async with trio.open_nursery() as nursery:
            while True:
                self.pump(nursery)
                if self.is_over:
                    break
                await trio.lowlevel.wait_readable(self.fd)
            nursery.cancel_scope.cancel()
        self._server.close()
        os.close(self.fd)


@dataclass(eq=False)
class Cover:
    """One that lies over `path`."""

    path: str
    directory: WatchedDirectory
    operations: WatchedOperations
    served: Served
    #: Number of its mount; and of its file system, which may have been bound to other places.
    mount: int
    device: int
    #: Marks on what is in it.
    keys: set[Key] = field(default_factory=set)
    #: It lies there still, as far as is known.
    is_mounted: bool = True


class Covers:
    """They come and go as marks do."""

    #: Where they are served.
    nursery: trio.Nursery

    def __init__(self, groups: Groups, in_view: InView) -> None:
        self._in_view = in_view
        self._groups = groups
        self._covers: list[Cover] = []
        self._changing = trio.Lock()

    def at(self, mount: int, path: str) -> Cover | None:
        """The one that lies over a directory of this mount with this path in it."""
        found = [one for one in self._covers if one.directory.mount == mount and is_at_or_below(path, one.path)]
        return max((one for one in found if one.is_mounted), key=lambda one: len(one.path), default=None)

    def __bool__(self) -> bool:
        return bool(self._covers)

    @property
    def are_in_use(self) -> bool:
        """Does anybody have a file open in any?"""
        return any(one.operations.has_files for one in self._covers)

    def pump(self) -> None:
        """See to all that has happened until now."""
        for cover in list(self._covers):
            cover.served.pump(self.nursery)

    async def keys_of(self, found: Found, scope: Scope, *, is_new: bool) -> tuple[Key, Cover | None]:
        """The key of a mark on `found`, which is watched from now on if the mark `is_new`. Raises OSError."""
        async with self._changing:
            self._look()
            inode, mount = found.inode, found.mount
            cover = next((one for one in self._covers if one.device == found.inode[0]), None)
            if cover is None:
                cover = self.at(found.mount, found.top_path)  # what was found lies below it
                if cover is None and is_new:
                    cover = await self._watch(found)
            else:
                thing = cover.directory.shown_as(found.inode[1])
                inode, mount = (found.inode, found.mount) if thing is None else (thing.inode, thing.mount)
            key: Key = (scope, *inode)
            if scope == "mount":
                key = (scope, mount, 0)
            elif scope == "filesystem":
                key = (scope, inode[0], 0)
            if cover is not None and is_new:
                cover.keys.add(key)
            return key, cover

    async def _watch(self, found: Found) -> Cover:
        if found.top_path == "/" or found.fs_type in KERNELS_OWN:
            raise os_error(errno.EOPNOTSUPP)
        if found.top < 0:
            raise CoveredMeanwhileError
        directory = WatchedDirectory(os.dup(found.top), self._below)
        operations = WatchedOperations(directory, self._groups)
        try:
            device = await trio.to_thread.run_sync(self._in_view.mount_fuse, found.top_path, stat.S_IFDIR, SOURCE)
        except BaseException:
            directory.close()
            raise
        served = Served(operations, device, Counters.create())
        # (The table has the newest last.)
        mounts = [one for one in mount_table() if one.mount_point == found.top_path and one.source == SOURCE]
        mount, device_number = (mounts[-1].mount_id, number_of(mounts[-1].device)) if mounts else (-1, -1)
        cover = Cover(found.top_path, directory, operations, served, mount, device_number)
        self._covers.append(cover)
        self.nursery.start_soon(self._serve, cover)
        return cover

    async def _serve(self, cover: Cover) -> None:
        try:
            await cover.served.run()
        finally:
            if cover in self._covers:
                self._covers.remove(cover)
            cover.directory.close()

    def _below(self, device: int) -> int | None:
        cover = next((one for one in self._covers if one.device == device), None)
        return None if cover is None else cover.directory.top

    async def tidy(self) -> bool:
        """Unmount what nobody has a mark in any more. False if something of that is in use."""
        done = True
        async with self._changing:
            self.pump()
            self._look()
            for cover in list(self._covers):
                cover.keys = {key for key in cover.keys if self._groups.has_mark(key)}
                if not cover.keys and cover.is_mounted:
                    done &= await self._unmount(cover)
        return done

    async def _unmount(self, cover: Cover) -> bool:
        """False if it is in use, or something else lies over it."""
        table = mount_table()
        place = next((one.mount_point for one in table if one.mount_id == cover.mount), None)
        if place is None or any(one.parent_id == cover.mount for one in table):
            return place is None
        try:
            await trio.to_thread.run_sync(self._in_view.unmount, place)
        except OSError:
            return False
        cover.is_mounted = False
        return True

    def _look(self) -> None:
        """See which still lie there."""
        if self._covers:
            there = {one.mount_id for one in mount_table()}
            for cover in self._covers:
                cover.is_mounted &= cover.mount in there


def number_of(device: str) -> int:
    """The number of a device that the table of mounts calls “major:minor”."""
    major, _colon, minor = device.partition(":")
    return os.makedev(int(major), int(minor))


def unmount_all(in_view: InView) -> None:
    """Unmount all that lies over watched directories, for whoever has served it is gone, or is about to go. Waits for
    others."""
    for entry in reversed(mount_table()):
        if entry.source == SOURCE and entry.fs_type.startswith("fuse"):
            with suppress(OSError):
                in_view.unmount(entry.mount_point, lazy=True)
