"""The module: fanotify_init, fanotify_mark, and reading from a group.

What the kernel lets an ordinary user have is left to it: groups that report handles (FAN_REPORT_FID). All others are
made here. The session's user has what an administrator has elsewhere; other ids of the view get the kernel's answer.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import stat
from contextlib import suppress
from functools import partial

import trio

from viewfs.errors import os_error
from viewfs.linux.fanotify import METADATA_SIZE, NO_FD, NO_PIDFD, Event, Init, Mark, pack_metadata, pack_pidfd
from viewfs.modules.api import Mounting
from viewfs.modules.api.calls import (
    GO_ON,
    Caller,
    CallModule,
    Handed,
    HandedDescriptor,
    Opened,
    Output,
    Result,
    SpecialDescriptor,
    call,
    special_call,
)
from viewfs.modules.calls.fanotify.covers import SOURCE, CoveredMeanwhileError, Covers, Served, unmount_all
from viewfs.modules.calls.fanotify.group_files import GroupFiles
from viewfs.modules.calls.fanotify.groups import Group, Groups, Queued, Scope, described
from viewfs.modules.calls.fanotify.resolver import Found, Resolver
from viewfs.modules.calls.fanotify.rules import (
    EVENT_FLAGS,
    check_init,
    check_mark,
    check_target,
    is_kernels_own,
    scope_of,
)
from viewfs.modules.calls.fanotify.trapped import Trapped
from viewfs.mounts.fuse.counters import Counters

__all__ = ["Fanotify"]

#: Where the files of groups are.
_PLACE = "/dev/fanotify"
#: What describes a descriptor (proc_pid_fdinfo(5)).
_INFORMATION = re.compile(r"/proc/(self|thread-self|\d+)(?:/task/\d+)?/fdinfo/(\d+)")
_PIDFD_SIZE = len(pack_pidfd(NO_PIDFD))
#: One answer has so many descriptors at most.
_MOST_FDS = 200
#: So often a path is looked at if what lies over it changes meanwhile.
_TIMES = 10
#: After so long one tries again to stop watching something that is in use; and after so long at last.
_TIDY_SECONDS, _TIDY_MOST_SECONDS = 0.01, 2.0


class Fanotify(CallModule):
    """fanotify(7) for programs of an ordinary user: notification and permission groups."""

    name = "fanotify"
    lives_in_view = True

    def begin(self, mounting: Mounting) -> None:
        self._resolver = Resolver()
        self._groups = Groups()
        # (Whoever has a descriptor of a server that was killed is not to have another group by it.)
        self._numbers = itertools.count(int.from_bytes(os.urandom(6), "little"))
        self._files: Served | None = None
        self._runs, self._starting = trio.Event(), trio.Lock()
        self._untidy = trio.Event()
        self._covers = Covers(self._groups, self.in_view)
        self._trapped = Trapped(self._groups, self._covers)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = self._covers.nursery = nursery
            self._runs.set()
            await trio.to_thread.run_sync(unmount_all, self.in_view)
            nursery.start_soon(self._trapped.run)
            nursery.start_soon(self._keep_tidy)
            nursery.start_soon(self._end_last)
            await self._resolver.run()

    async def _end_last(self) -> None:
        """When the session ends, go on until programs have closed what they have open here."""
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _signal in signals:
                while self._covers.are_in_use:
                    await trio.sleep(_TIDY_SECONDS)
                os._exit(0)

    def end(self) -> None:
        unmount_all(self.in_view)

    # -- fanotify_init

    @call("fanotify_init")
    async def init(self, caller: Caller, flags: int, file_flags: int) -> Result:
        flags &= 0xFFFFFFFF
        if is_kernels_own(flags) or _user_of(caller.tid) != os.geteuid():
            return GO_ON
        check_init(flags, file_flags & 0xFFFFFFFF)
        if flags & (Init.REPORT_FID | Init.REPORT_DIR_FID | Init.REPORT_MNT):
            return GO_ON
        await self._runs.wait()
        async with self._starting:
            if self._files is None:
                await self._mount_files()
        group = Group(next(self._numbers), Init(flags), file_flags, self._release)
        self._groups.add(group)
        how = os.O_RDWR | (os.O_CLOEXEC if flags & Init.CLOEXEC else 0) | (
            os.O_NONBLOCK if flags & Init.NONBLOCK else 0
        )  # fmt: skip
        return Opened(f"{_PLACE}/{group.number}", how, is_special=True)

    async def _mount_files(self) -> None:
        fd = await trio.to_thread.run_sync(self.in_view.mount_fuse, _PLACE, stat.S_IFDIR, SOURCE)
        files = GroupFiles(self._groups, self.hear_more, partial(os.write, fd), self._closed)
        self._files = Served(files, fd, Counters.create())
        self._nursery.start_soon(self._files.run)

    def _closed(self) -> None:
        self._untidy.set()

    @staticmethod
    def _release(event: Queued) -> None:
        if event.hold >= 0:
            os.close(event.hold)
            event.hold = -1

    # -- fanotify_mark

    @call("fanotify_mark")
    async def mark(self, caller: Caller, fd: int, flags: int, mask: int, path: str | None) -> Result:
        return await self._mark(caller, fd, flags & 0xFFFFFFFF, mask & (1 << 64) - 1, caller.words[3], path)

    @call("fanotify_mark32")
    async def mark_of_32_bits(
        self, caller: Caller, fd: int, flags: int, low: int, high: int, path: str | None
    ) -> Result:
        mask = low & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32
        return await self._mark(caller, fd, flags & 0xFFFFFFFF, mask, caller.words[4], path)

    async def _mark(self, caller: Caller, fd: int, flags: int, mask: int, directory: int, path: str | None) -> Result:
        group = self._group_of(caller.pid, fd)
        if group is None:
            await self._tidy()  # the kernel can't report handles of files that are watched here
            return GO_ON
        wanted = check_mark(group, flags, mask)
        scope = scope_of(flags)
        if flags & Mark.FLUSH:
            group.flush(scope)
            self._untidy.set()
            return 0
        start, path = _start_of(caller, directory, path)
        follow = not flags & Mark.DONT_FOLLOW
        for time in range(_TIMES):
            finding = self._resolver.found(caller.pid, start, path, follow=follow, whole_mount=scope != "inode")
            try:
                async with finding as found:
                    await self._mark_found(group, found, flags, wanted, scope)
                break
            except CoveredMeanwhileError:
                if time == _TIMES - 1:
                    raise os_error(errno.EOPNOTSUPP) from None
        return 0

    async def _mark_found(self, group: Group, found: Found, flags: int, wanted: Event, scope: Scope) -> None:
        check_target(flags, wanted, is_directory=found.is_directory, is_kernels=found.is_kernels)
        if found.is_kernels:
            return  # nothing happens to a pipe that anybody could be told of
        key, cover = await self._covers.keys_of(found, scope, is_new=bool(flags & Mark.ADD))
        unseen = EVENT_FLAGS if flags & Mark.IGNORED_MASK else Event(0)
        if scope != "inode" or not found.is_directory:
            wanted &= ~Event.EVENT_ON_CHILD
            unseen |= Event.EVENT_ON_CHILD
        if flags & Mark.ADD:
            written = cover is not None and scope == "inode" and cover.directory.is_written_to((key[1], key[2]))
            group.add_mark(key, wanted, Mark(flags), on_directory=found.is_directory, written_to=written)
        else:
            group.remove_mark(key, wanted, Mark(flags), unseen)
            self._untidy.set()

    async def _tidy(self) -> bool:
        """Watch nothing any more in which there are no marks. False if something of that is in use."""
        if self._files is None:
            return True
        self._files.pump(self._nursery)  # groups may have been closed
        return await self._covers.tidy()

    async def _keep_tidy(self) -> None:
        """Do so whenever marks have gone, and later if that can't be done yet."""
        while True:
            await self._untidy.wait()
            self._untidy, seconds = trio.Event(), _TIDY_SECONDS
            while not await self._tidy():
                seconds = min(2 * seconds, _TIDY_MOST_SECONDS)
                with trio.move_on_after(seconds):
                    await self._untidy.wait()
                    self._untidy, seconds = trio.Event(), _TIDY_SECONDS

    def _group_of(self, pid: int, fd: int) -> Group | None:
        try:
            place = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            return None
        return self._group_at(place)

    def _group_at(self, place: str) -> Group | None:
        directory, _slash, name = place.rpartition("/")
        return self._groups.get(int(name)) if directory == _PLACE and name.isdigit() else None

    # -- mounting

    @call("mount")
    @call("umount")
    @call("umount2")
    async def mount_or_unmount(self, caller: Caller, *_arguments: object) -> Result:
        """What nobody has marks in any more is not to be bound, or in the way."""
        await self._tidy()
        return GO_ON

    # -- calls by what is not watched

    @call("open", is_dispensable=True)
    async def open_file(self, caller: Caller, path: str | None, flags: int, mode: int) -> Result:
        if path is not None and (found := _INFORMATION.fullmatch(path)):
            pid = caller.pid if found[1] in ("self", "thread-self") else int(found[1])
            group = self._group_of(pid, int(found[2]))
            if group is not None:
                return described(group, _plain_information(pid, int(found[2]))).encode()
        await self._trapped.opens(caller, path, flags)
        return GO_ON

    @call("exec", is_dispensable=True)
    async def execute(self, caller: Caller, path: str | None, *_arguments: object) -> Result:
        await self._trapped.opens(caller, path, os.O_RDONLY, executes=True)
        return GO_ON

    @call("read", is_dispensable=True)
    async def read_file(self, caller: Caller, fd: int, room: int) -> Result:
        await self._trapped.reads(caller, fd, None)
        return GO_ON

    @call("pread", is_dispensable=True)
    async def read_at(self, caller: Caller, fd: int, room: int, offset: int) -> Result:
        await self._trapped.reads(caller, fd, offset)
        return GO_ON

    @call("getdents64", is_dispensable=True)
    async def list_names(self, caller: Caller, fd: int, room: int) -> Result:
        await self._trapped.reads(caller, fd, None)
        return GO_ON

    @call("write", is_dispensable=True)
    def write_file(self, caller: Caller, fd: int, data: bytes) -> Result:
        self._trapped.writes(caller, fd)
        return GO_ON

    @call("pwrite", is_dispensable=True)
    def write_at(self, caller: Caller, fd: int, data: bytes, offset: int) -> Result:
        self._trapped.writes(caller, fd)
        return GO_ON

    @call("close", is_dispensable=True)
    def close_file(self, caller: Caller, fd: int) -> Result:
        self._trapped.closes(caller, fd)
        return GO_ON

    # -- reading

    @special_call("read")
    async def read(self, caller: Caller, descriptor: SpecialDescriptor, buffer: Output, size: int) -> Result:
        group = self._group_at(descriptor.path)
        if group is None:
            return GO_ON
        if buffer is None or buffer.size < METADATA_SIZE:
            raise os_error(errno.EINVAL)
        self._see()
        while not group.queue:
            if group.is_closed:
                raise os_error(errno.EBADF)
            if descriptor.flags & os.O_NONBLOCK:
                raise os_error(errno.EAGAIN)
            await group.wait()
        more = _PIDFD_SIZE if group.flags & Init.REPORT_PIDFD else 0
        room = min(buffer.size, _MOST_FDS // (2 if more else 1) * (METADATA_SIZE + more))
        return self._handing(caller.pid, group, group.take(room, lambda event: METADATA_SIZE + more), more)

    @special_call("ioctl")
    async def ioctl(self, caller: Caller, descriptor: SpecialDescriptor, command: int, buffer: Output) -> Result:
        group = self._group_at(descriptor.path)
        if group is None:
            return GO_ON
        if command & 0xFFFFFFFF != _FIONREAD:
            raise os_error(errno.ENOTTY)
        self._see()
        size = METADATA_SIZE + (_PIDFD_SIZE if group.flags & Init.REPORT_PIDFD else 0)
        buffer += (len(group.queue) * size).to_bytes(4, "little")
        return 0

    def _see(self) -> None:
        """Have events of all that has happened until now."""
        self._covers.pump()
        self._trapped.see()

    def _handing(self, pid: int, group: Group, events: list[Queued], more: int) -> Handed:
        """What a reader gets. Raises OSError if not even the first event can be told."""
        data, told = bytearray(), []
        fds: list[HandedDescriptor] = []
        failed = 0
        try:
            for event in events:
                start, fd, number = len(data), None, NO_FD
                if event.hold >= 0:
                    try:
                        fd = os.open(f"/proc/self/fd/{event.hold}", group.file_flags)
                    except OSError as error:
                        number = error.errno or errno.EIO
                        if not group.flags & Init.REPORT_FD_ERROR:
                            failed = number
                            group.let_go(event, errno.EPERM)
                            break
                        number = -number
                data += pack_metadata(event.mask, number, event.pid, more)
                if fd is not None:
                    fds.append(HandedDescriptor(start + 16, fd, start, bool(group.file_flags & os.O_CLOEXEC)))
                if more:
                    data += pack_pidfd(NO_PIDFD)
                    with suppress(OSError):
                        pidfd = os.pidfd_open(event.pid)
                        fds.append(HandedDescriptor(start + METADATA_SIZE + 4, pidfd, start, close_on_exec=True))
                told.append((event, fd is not None))
        except BaseException:
            for one in fds:
                os.close(one.fd)
            raise
        group.put_back(events[len(told) + (1 if failed else 0) :])
        if failed and not told:
            raise os_error(failed)
        return Handed(
            bytes(data),
            tuple(fds),
            given=partial(self._given, pid, group, told, {one.offset: index for index, one in enumerate(fds)}),
        )

    def _given(
        self,
        pid: int,
        group: Group,
        told: list[tuple[Queued, bool]],
        places: dict[int, int],
        numbers: list[int],
        failed: bool,
    ) -> None:
        """The reader has these numbers for the descriptors. What comes behind them it has not got: if it `failed` to,
        the first of that is lost; else the reader is gone."""
        size = METADATA_SIZE + (_PIDFD_SIZE if group.flags & Init.REPORT_PIDFD else 0)
        self._trapped.silent.update((pid, number) for number in numbers)
        for at, (event, has_fd) in enumerate(told):
            index = places.get(at * size + 16)
            if has_fd and (index is None or index >= len(numbers)):
                if failed:
                    group.let_go(event, errno.EPERM)
                group.put_back([one for one, _has in told[at + failed :]])
                return
            if event.is_question and index is not None and not group.is_closed:
                group.arrived([event])
                group.asked.append((numbers[index], event))
            else:
                group.let_go(event, errno.EPERM if event.is_question and not group.is_closed else 0)


def _plain_information(pid: int, fd: int) -> str:
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}") as lines:
            return lines.read()
    except OSError:
        return ""


def _start_of(caller: Caller, directory: int, path: str | None) -> tuple[str, str | None]:
    """The link of /proc/PID from where the path leads on, and the path relative to that."""
    start = "cwd" if directory & 0xFFFFFFFF == _AT_FDCWD else f"fd/{directory & 0xFFFFFFFF}"
    if path is None or not caller.relative:
        return start if path is None else "root", path
    place = caller.cwd if start == "cwd" else os.readlink(f"/proc/{caller.pid}/{start}")
    return start, os.path.relpath(path, place)


def _user_of(tid: int) -> int | None:
    """The effective user of a thread, as this user namespace has them (proc_pid_status(5)); None if it is gone."""
    try:
        with open(f"/proc/{tid}/status") as lines:
            return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return None


#: As the unsigned word that it is in.
_AT_FDCWD = (1 << 32) - 100
#: asm-generic/ioctls.h
_FIONREAD = 0x541B
