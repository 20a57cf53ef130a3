"""A directory that is watched: a file system that shows it as it is, and tells groups what programs do in it.

It lies over the directory, and reaches what is below by a descriptor. So the descriptors of events, which are opened
below, make no events themselves. Reads and writes bypass the page cache: each is seen.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

from viewfs.errors import os_error
from viewfs.linux.fanotify import Event
from viewfs.linux.files import Resolve, device_of, openat2
from viewfs.linux.process import thread_group_of
from viewfs.modules.api import ROOT_INODE, Answer, Attributes, DirectoryEntry, InodeNumber
from viewfs.modules.api.lasting import LastingFile
from viewfs.modules.calls.fanotify.asking import ask
from viewfs.modules.calls.fanotify.groups import Group, Groups, Happening, Thing
from viewfs.mounts.fuse import protocol
from viewfs.mounts.fuse.answers import Body
from viewfs.mounts.fuse.operations import Operations
from viewfs.mounts.fuse.protocol import InitFlags, Opcode, OpenFlags, Request, SetAttr
from viewfs.mounts.mirror import MirrorFile, MirrorFileSystem, Node

__all__ = ["WatchedDirectory", "WatchedOperations", "mount_of"]

#: __FMODE_EXEC of linux/fs.h, in the flags of FUSE_OPEN: the file is opened to be executed.
_EXEC = 0x20
#: So many files are kept open.
_KEPT_OPEN = 1024


def mount_of(fd: int) -> int:
    """The number of the mount that a file is on (proc_pid_fdinfo(5)). Nobody is asked for it."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))


class _WatchedFile(MirrorFile):
    direct_io = True

    def __init__(self, fd: int, node: Node, flags: int, writers: Counter[InodeNumber]) -> None:
        super().__init__(fd, node, flags)
        self.node = node
        self._writers = writers
        self.is_written = flags & os.O_ACCMODE != os.O_RDONLY
        writers[node.number] += self.is_written
        #: Process and thread that have closed a descriptor of it last.
        self.closer = 0, 0

    def flush(self) -> None:
        """That is wanted for its pid."""

    def release(self) -> None:
        self._writers[self.node.number] -= self.is_written
        super().release()


class WatchedDirectory(MirrorFileSystem):
    """The open directory `top`, as it is."""

    kept_open = _KEPT_OPEN

    def __init__(self, top: int, below: Callable[[int], int | None]) -> None:
        """`below`: of a file system that is another watched directory's (st_dev), a descriptor of what that lies
        over."""
        super().__init__(top, {})
        self._below = below
        self.top = top
        #: A file that was made by opening it, and its descriptor.
        self._just_made = InodeNumber(0), -1
        #: How often files are open for writing.
        self.writers: Counter[InodeNumber] = Counter()
        self.mount = mount_of(top)

    def close(self) -> None:
        for node in self._nodes.values():
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1

    def _handle(self, fd: int, node: Node, flags: int) -> MirrorFile:
        return _WatchedFile(fd, node, flags, self.writers)

    def _open_name(self, directory: InodeNumber, name: bytes) -> int:
        """What is mounted there is shown too. If it is watched itself, what lies below that: to ask for it would be to
        ask this process."""
        place = self._host(directory)
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return openat2(place, name, flags, Resolve.NO_XDEV)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        fd = os.open(name, flags, dir_fd=place)
        below = self._below(device_of(fd))
        if below is None:
            return fd
        os.close(fd)
        return os.dup(below)

    def create(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        made = super().create(directory, name, mode, uid, gid, rdev)
        return self._given(made, uid, gid)

    def create_open(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        """Make a regular file that is opened next, which its mode may forbid."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, stat.S_IMODE(mode), dir_fd=self._host(directory))
        made = self._made(directory, name)
        self._just_made = made.ino, fd
        return self._given(made, uid, gid)

    def _open_node(self, node: Node, flags: int) -> LastingFile:
        (made, fd), self._just_made = self._just_made, (InodeNumber(0), -1)
        if made == node.number:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & os.O_APPEND)
            return self._handle(fd, node, flags)
        return super()._open_node(node, flags)

    def readdir(self, directory: InodeNumber, start: int) -> Iterator[DirectoryEntry]:
        node = self._node(directory)
        above = directory if node.place is None else node.place[0]
        for cookie, name, inode in ((1, b".", directory), (2, b"..", above)):
            if cookie > start:
                yield DirectoryEntry(name, cookie, self.getattr(inode))
        yield from super().readdir(directory, start)

    def mkdir(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        return self._given(super().mkdir(directory, name, mode, uid, gid), uid, gid)

    def symlink(self, directory: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        return self._given(super().symlink(directory, name, target, uid, gid), uid, gid)

    def _given(self, made: Attributes, uid: int, gid: int) -> Attributes:
        """Files that another user of the view makes are theirs."""
        if (uid, gid) == (made.uid, made.gid) or uid == os.geteuid():
            return made
        try:
            os.chown(self._place(made.ino), uid, gid, follow_symlinks=True)
        except OSError:
            return made
        return self.getattr(made.ino)

    def thing(self, inode: InodeNumber) -> Thing:
        """As groups know it. Raises OSError."""
        node = self._node(inode)
        key = cast(tuple[int, int], node.key)
        parent = None
        if node.place is not None:
            directory = self._nodes.get(node.place[0])
            parent = None if directory is None else cast(tuple[int, int], directory.key)
        fd = self._host(inode)
        mount = self.mount if key[0] == self._device else mount_of(fd)
        return Thing(key, parent, mount, stat.S_ISDIR(os.fstat(fd).st_mode))

    @property
    def _device(self) -> int:
        return cast(tuple[int, int], self._nodes[ROOT_INODE].key)[0]

    def shown_as(self, number: int) -> Thing | None:
        """What stat(2) shows with this inode number."""
        nodes = [node for node in self._nodes.values() if node.key[1] == number]
        return self.thing(nodes[-1].number) if nodes else None

    def is_written_to(self, key: tuple[int, int]) -> bool:
        """Does somebody have the file open for writing?"""
        node = self._known.get(key)
        return node is not None and self.writers[node.number] > 0

    def hold(self, inode: InodeNumber) -> int:
        """A descriptor (O_PATH) that keeps it. Raises OSError."""
        return os.dup(self._host(inode))


class WatchedOperations(Operations):
    """What happens in one watched directory."""

    more_flags = InitFlags.INIT_EXT | InitFlags.DIRECT_IO_ALLOW_MMAP

    def __init__(self, directory: WatchedDirectory, groups: Groups) -> None:
        super().__init__(directory)
        self._directory = directory
        self._groups = groups
        #: Handle of an open directory → its inode, and the process and thread that have opened it.
        self._directories: dict[int, tuple[InodeNumber, int, int]] = {}
        self._watched: dict[int, Callable[[Request], Answer[Body]]] = {
            Opcode.OPEN: self._open_watched,
            Opcode.CREATE: self._create_watched,
            Opcode.TMPFILE: self._create_watched,
            Opcode.READ: self._read_watched,
            Opcode.WRITE: self._write_watched,
            Opcode.FALLOCATE: self._write_watched,
            Opcode.SETATTR: self._setattr_watched,
            Opcode.FLUSH: self._flush_watched,
            Opcode.RELEASE: self._release_watched,
            Opcode.OPENDIR: self._opendir_watched,
            Opcode.READDIR: self._readdir_watched,
            Opcode.READDIRPLUS: self._readdir_watched,
            Opcode.RELEASEDIR: self._releasedir_watched,
            Opcode.IOCTL: self._ioctl_watched,
        }

    @property
    def has_files(self) -> bool:
        """Are any of its files open?"""
        return bool(self._handles)

    def dispatch(self, request: Request) -> Answer[Body]:
        handler = self._watched.get(request.opcode)
        return super().dispatch(request) if handler is None else handler(request)

    # -- telling and asking

    def _tell(self, inode: InodeNumber, mask: Event, tid: int, pid: int = 0) -> None:
        """`pid`: of a thread that may have ended."""
        if not self._groups:
            return
        try:
            happening = Happening(self._directory.thing(inode), mask, pid or thread_group_of(tid), tid)
            self._groups.tell(happening, lambda: self._directory.hold(inode))
        except OSError:
            return  # it is gone, and nobody can be given a descriptor of it

    def _asked(
        self, request: Request, inode: InodeNumber, events: tuple[Event, ...], then: Callable[[], Body]
    ) -> Answer[Body]:
        """Do it at once if nobody wants to be asked; else when all have allowed it."""
        if self._groups:
            thing = self._directory.thing(inode)
            questions = [(group, event) for event in events for group in self._groups.who_is_asked(thing, event)]
            if questions:
                return self._ask_all(request, inode, thing, questions, then)
        return then()

    async def _ask_all(
        self,
        request: Request,
        inode: InodeNumber,
        thing: Thing,
        questions: list[tuple[Group, Event]],
        then: Callable[[], Body],
    ) -> Body:
        happening = Happening(thing, Event(0), thread_group_of(request.pid), request.pid)
        await ask(questions, happening, lambda: self._directory.hold(inode))
        return then()

    # -- files

    def _file(self, handle: int) -> _WatchedFile:
        return cast(_WatchedFile, self._open_file(handle))

    def _open_watched(self, request: Request) -> Answer[Body]:
        inode, flags = self._inode(request.node), request.fields[0]
        executed = bool(flags & _EXEC)

        def open_it() -> Body:
            body = cast(Body, Operations._open(self, request))
            self._tell(inode, Event.OPEN | (Event.OPEN_EXEC if executed else Event(0)), request.pid)
            return body

        events = ((Event.OPEN_EXEC_PERM,) if executed else ()) + (Event.OPEN_PERM,)
        return self._asked(request, inode, events, open_it)

    def _create_watched(self, request: Request) -> Answer[Body]:
        """It is made, and then whoever wants to be asked says whether it may be opened (as in the kernel)."""
        if request.opcode == Opcode.CREATE:
            flags, mode = request.fields[:2]
            name, directory = self._name(request.names()[0]), self._inode(request.node)
            made = self._directory.create_open(directory, name, mode, request.uid, request.gid)
            body = cast(bytes, self._open_made(made, flags))
        else:
            body = cast(bytes, self._tmpfile(request))
        file = self._file(next(reversed(self._handles)))
        inode = file.node.number

        def opened() -> Body:
            self._tell(inode, Event.OPEN, request.pid)
            return body

        answer = self._asked(request, inode, (Event.OPEN_PERM,), opened)
        if not isinstance(answer, Awaitable):
            return answer
        return self._keep_or_close(answer, next(reversed(self._handles)))

    async def _keep_or_close(self, promise: Awaitable[Body], handle: int) -> Body:
        try:
            return await promise
        except BaseException:
            file = self._handles.pop(handle, None)
            if file is not None:
                file.release()
            raise

    def _read_watched(self, request: Request) -> Answer[Body]:
        inode = self._inode(request.node)

        def read() -> Body:
            body = cast(bytes, Operations._read(self, request))
            if body:
                self._tell(inode, Event.ACCESS, request.pid)
            return body

        return self._asked(request, inode, (Event.ACCESS_PERM,), read)

    def _write_watched(self, request: Request) -> Answer[Body]:
        body = super().dispatch(request)
        if request.opcode != Opcode.WRITE or not request.fields[3] & protocol.WRITE_CACHE:
            self._tell(self._inode(request.node), Event.MODIFY, request.pid)
        return body

    def _setattr_watched(self, request: Request) -> Answer[Body]:
        body = super().dispatch(request)
        if SetAttr.SIZE in SetAttr(request.fields[0] & 0x1FF):
            self._groups.modified(self._directory.thing(self._inode(request.node)))
        return body

    def _flush_watched(self, request: Request) -> Answer[Body]:
        self._file(request.fields[0]).closer = thread_group_of(request.pid), request.pid
        return super().dispatch(request)

    def _release_watched(self, request: Request) -> Answer[Body]:
        file = self._file(request.fields[0])
        pid, tid = file.closer
        self._tell(file.node.number, Event.CLOSE_WRITE if file.is_written else Event.CLOSE_NOWRITE, tid, pid)
        return super().dispatch(request)

    # -- directories

    def _opendir_watched(self, request: Request) -> Answer[Body]:
        inode = self._inode(request.node)

        def open_it() -> Body:
            handle = next(self._next_handle)
            self._directories[handle] = inode, thread_group_of(request.pid), request.pid
            self._tell(inode, Event.OPEN | Event.ONDIR, request.pid)
            return protocol.encode_open(handle, OpenFlags.NONE)

        return self._asked(request, inode, (Event.OPEN_PERM,), open_it)

    def _readdir_watched(self, request: Request) -> Answer[Body]:
        inode = self._inode(request.node)

        def read() -> Body:
            body = cast(Body, Operations._readdir(self, request))
            self._tell(inode, Event.ACCESS | Event.ONDIR, request.pid)
            return body

        return self._asked(request, inode, (Event.ACCESS_PERM,), read)

    def _ioctl_watched(self, request: Request) -> Answer[Body]:
        if request.fields[0] in self._directories:
            raise os_error(errno.ENOTTY)
        return super().dispatch(request)

    def _releasedir_watched(self, request: Request) -> Answer[Body]:
        inode, pid, tid = self._directories.pop(request.fields[0], (None, 0, 0))
        if inode is not None:
            self._tell(inode, Event.CLOSE_NOWRITE | Event.ONDIR, tid, pid)
        return super().dispatch(request)
