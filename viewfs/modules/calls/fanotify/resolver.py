"""Finding what a mark is put on, in a process apart.

To follow a path may mean to ask whoever serves what is mounted on the way: this module itself, or somebody who hangs.
So a small process forks another for each path. They have no descriptor of /dev/fuse: if the module is killed meanwhile,
its mounts end, and so does their waiting.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import trio

from viewfs.errors import os_error
from viewfs.linux.files import Resolve, openat2
from viewfs.linux.mountinfo import mount_table
from viewfs.linux.plain import signal
from viewfs.linux.process import die_with_parent, keep_only, set_name
from viewfs.linux.scm import descriptors_in, rights, room_for
from viewfs.modules.calls.fanotify.watching import mount_of

__all__ = ["Found", "Resolver"]

_MOST = 16384


@dataclass(frozen=True)
class Found:
    """What is at a path."""

    inode: tuple[int, int]
    mode: int
    #: Number of its mount.
    mount: int
    #: It belongs to the kernel: a pipe, a socket.
    is_kernels: bool
    fs_type: str = ""
    #: The directory that has to be watched to see what happens to it: the narrowest, or that of the whole mount.
    top_path: str = ""
    #: Of that a descriptor (O_PATH), if its path leads there.
    top: int = -1

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Resolver:
    """Asks the process apart. Made before there is any thread, and before a FUSE file is opened."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        if os.fork() == 0:
            try:
                die_with_parent(parent)
                set_name("viewfs-resolver")
                keep_only(theirs.fileno())
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._socket.setblocking(False)
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[trio.Event, list[tuple[dict[str, Any], list[int]]]]] = {}

    @asynccontextmanager
    async def found(
        self, pid: int, start: str, path: str | None, *, follow: bool, whole_mount: bool
    ) -> AsyncIterator[Found]:
        """What process `pid` has at `path`, which is relative to what its link `start` leads to (root, cwd, fd/7), or
        what that leads to. Raises OSError."""
        number, came = next(self._numbers), trio.Event()
        answers: list[tuple[dict[str, Any], list[int]]] = []
        self._waiting[number] = came, answers
        request = {
            "number": number, "pid": pid, "start": start, "path": path, "follow": follow, "whole_mount": whole_mount,
        }  # fmt: skip
        try:
            self._socket.send(json.dumps(request).encode())
            await came.wait()
        finally:
            del self._waiting[number]
        ((answer, fds),) = answers
        try:
            if "errno" in answer:
                raise os_error(answer["errno"])
            found = Found(**answer["found"])
            yield replace(found, inode=(found.inode[0], found.inode[1]), top=fds[0] if fds else -1)
        finally:
            for one in fds:
                os.close(one)

    async def run(self) -> None:
        """Take what it says, for as long as this is waited for."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            packet, ancillary, _flags, _address = self._socket.recvmsg(_MOST, room_for(1), socket.MSG_CMSG_CLOEXEC)
            fds = descriptors_in(ancillary)
            if not packet:
                raise RuntimeError("the resolver has ended")
            answer = json.loads(packet)
            came, answers = self._waiting.get(answer["number"], (None, None))
            if came is None or answers is None:
                for fd in fds:
                    os.close(fd)
                continue
            answers.append((answer, fds))
            came.set()


def _serve(sock: socket.socket) -> None:
    while packet := sock.recv(_MOST):
        request = json.loads(packet)
        parent = os.getpid()
        if os.fork():
            continue
        die_with_parent(parent)
        answer: dict[str, object] = {"number": request["number"]}
        fds: list[int] = []
        try:
            found = _find(request)
            answer["found"], fds = asdict(found), [found.top] if found.top >= 0 else []
        except OSError as error:
            answer["errno"] = error.errno or errno.EIO
        except Exception:
            answer["errno"] = errno.EIO
        sock.sendmsg([json.dumps(answer).encode()], rights(fds))
        os._exit(0)


def _find(request: dict[str, Any]) -> Found:
    start, path = f"/proc/{request['pid']}/{request['start']}", request["path"]
    flags = os.O_PATH | os.O_CLOEXEC
    try:
        fd = os.open(start, flags)
    except FileNotFoundError:
        raise os_error(errno.EBADF) from None
    except PermissionError:
        if request["start"] != "root":
            raise
        fd = os.open("/", flags)
    if path is not None:
        path = _of_process(path, request["pid"])
        is_link = path.startswith("/proc/")  # which may lead anywhere
        how = Resolve.IN_ROOT if request["start"] == "root" and not is_link else Resolve(0)
        fd = openat2(fd, path, flags | (0 if request["follow"] else os.O_NOFOLLOW), how)
    status, real = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}")
    if not real.startswith("/"):
        return Found((status.st_dev, status.st_ino), status.st_mode, mount_of(fd), is_kernels=True)
    if not stat.S_ISLNK(status.st_mode) and not os.access(f"/proc/self/fd/{fd}", os.R_OK):
        raise os_error(errno.EACCES)
    mount = mount_of(fd)
    entry = next((entry for entry in mount_table() if entry.mount_id == mount), None)
    if entry is None:
        raise os_error(errno.EIO)
    top_path = real if stat.S_ISDIR(status.st_mode) else os.path.dirname(real)
    if request["whole_mount"] and entry.mount_point != "/":
        top_path = entry.mount_point
    top = os.open(top_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if mount_of(top) != mount:  # something else lies over it
        top = -1
    return Found((status.st_dev, status.st_ino), status.st_mode, mount, False, entry.fs_type, top_path, top)


def _of_process(path: str, pid: int) -> str:
    """A path of /proc that leads somewhere for the caller alone, as others have it (proc_pid_fd(5))."""
    for prefix, other in (
        ("/proc/self/", f"/proc/{pid}/"), ("/proc/thread-self/", f"/proc/{pid}/"), ("/dev/fd/", f"/proc/{pid}/fd/"),
    ):  # fmt: skip
        if path.startswith(prefix):
            return other + path[len(prefix) :]
    return path
