"""What processes do with one another by way of files: pipes, sockets, locks, leases."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from tests.kernel.posix.calls import child_does, opened, start_child, wait_for
from tests.kernel.posix.table import CONTENT, behaviour, fails, on_files


def refused_elsewhere(lock: Callable[[], object]) -> bool:
    """Is a lock refused to another process?"""

    def attempt() -> None:
        with fails(errno.EAGAIN, errno.EACCES):
            lock()

    return child_does(attempt) == 0


@on_files
def pipes(top: Path) -> None:
    """What is written to a FIFO is read from it by another process."""
    with fails(errno.ENXIO):
        os.open(top / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    child = start_child(lambda: (top / "fifo").write_bytes(b"through the pipe"))
    assert (top / "fifo").read_bytes() == b"through the pipe" and wait_for(child) == 0
    os.mkfifo(top / "new")
    child = start_child(lambda: (top / "new").write_bytes(b"new"))
    assert (top / "new").read_bytes() == b"new" and wait_for(child) == 0
    os.chmod(top / "fifo", 0o600)
    assert stat.S_ISFIFO(os.stat(top / "fifo").st_mode) and os.stat(top / "fifo").st_size == 0


@behaviour
def sockets(top: Path) -> None:
    """A socket can be bound to a name, connected to by it, and its name is taken until it is removed."""
    os.chdir(top)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        assert stat.S_ISSOCK(os.stat("socket").st_mode)
        client.connect("socket")
        accepted, _address = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(100) == b"hello"
        with socket.socket(socket.AF_UNIX) as second, fails(errno.EADDRINUSE):
            second.bind("socket")
        with fails(errno.ENXIO):
            os.open("socket", os.O_RDONLY)
        os.rename("socket", "moved")
        with socket.socket(socket.AF_UNIX) as third:
            third.connect("moved")
    with socket.socket(socket.AF_UNIX) as late, fails(errno.ECONNREFUSED):
        late.connect("moved")
    os.unlink("moved")
    with socket.socket(socket.AF_UNIX) as late, fails(errno.ENOENT):
        late.connect("moved")


@behaviour
def datagrams(top: Path) -> None:
    """Datagrams find a socket by its name, which can have a second one."""
    os.chdir(top)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as c,
    ):
        server.bind("socket")
        os.link("socket", "second")
        c.sendto(b"one", "socket")
        c.sendto(b"two", "second")
        assert server.recv(10) == b"one" and server.recv(10) == b"two"


@behaviour
def nodes(top: Path) -> None:
    """mknod(2) makes regular files, pipes and sockets, and no devices for ordinary users."""
    os.umask(0)
    for name, kind in (("file", stat.S_IFREG), ("fifo", stat.S_IFIFO), ("socket", stat.S_IFSOCK)):
        os.mknod(top / name, kind | 0o640)
        assert os.lstat(top / name).st_mode == kind | 0o640
        with fails(errno.EEXIST):
            os.mknod(top / name, stat.S_IFREG | 0o600)
    with fails(errno.EPERM):
        os.mknod(top / "device", stat.S_IFBLK | 0o600, os.makedev(1, 3))
    (top / "file").write_bytes(b"x")
    assert (top / "file").read_bytes() == b"x" and not (top / "device").exists()


@on_files
def locks_of_whole_files(top: Path) -> None:
    """flock(2): one writer or several readers, until the last descriptor is closed."""

    def take(how: int) -> None:
        with opened(top / "file", os.O_RDONLY) as own:
            fcntl.flock(own, how | fcntl.LOCK_NB)

    with opened(top / "file", os.O_RDONLY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert refused_elsewhere(lambda: take(fcntl.LOCK_SH)) and refused_elsewhere(lambda: take(fcntl.LOCK_EX))
        with fails(errno.EAGAIN):
            take(fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert child_does(lambda: take(fcntl.LOCK_SH)) == 0 and refused_elsewhere(lambda: take(fcntl.LOCK_EX))
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert child_does(lambda: take(fcntl.LOCK_EX)) == 0
        fcntl.flock(fd, fcntl.LOCK_EX)
        twin = os.dup(fd)
    assert refused_elsewhere(lambda: take(fcntl.LOCK_EX))
    os.close(twin)
    assert child_does(lambda: take(fcntl.LOCK_EX)) == 0


@on_files
def locks_while_written(top: Path) -> None:
    """A lock that was taken by a reader holds when the file is written to for the first time."""

    def take() -> None:
        with opened(top / "file", os.O_RDWR) as own:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with opened(top / "file", os.O_RDONLY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with opened(top / "file", os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, b"x")
        assert refused_elsewhere(take)
        os.rename(top / "file", top / "moved")
        os.rename(top / "moved", top / "file")
        assert refused_elsewhere(take)
    assert child_does(take) == 0


@on_files
def locks_of_records(top: Path) -> None:
    """fcntl(2) locks ranges of bytes, tells who has them, and drops them when any descriptor is closed."""

    def take(start: int, length: int) -> None:
        with opened(top / "file", os.O_RDWR) as own:
            fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)

    def holder() -> int:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 10, 1, 0)
        with opened(top / "file", os.O_RDWR) as own:
            kind, _whence, _start, _length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(own, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else int(pid)

    with opened(top / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
        assert refused_elsewhere(lambda: take(14, 1)) and refused_elsewhere(lambda: take(0, 0))
        assert child_does(lambda: take(0, 5)) == 0 and child_does(lambda: take(15, 0)) == 0
        own = os.getpid()

        def is_told() -> None:
            assert holder() == own

        assert child_does(is_told) == 0
        fcntl.lockf(fd, fcntl.LOCK_UN, 5, 5)
        assert child_does(lambda: take(5, 5)) == 0 and refused_elsewhere(lambda: take(10, 5))
        os.close(os.open(top / "file", os.O_RDONLY))
        assert child_does(lambda: take(0, 0)) == 0


@on_files
def waiting_for_a_lock(top: Path) -> None:
    """Who waits for a lock has it once it is given up."""
    reader, writer = os.pipe()

    def wait() -> None:
        with opened(top / "file", os.O_RDWR) as own:
            os.write(writer, b"waiting")
            fcntl.lockf(own, fcntl.LOCK_EX)
            assert os.pread(own, 8, 0) == b"written\n"

    with opened(top / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        child = start_child(wait)
        assert os.read(reader, 7) == b"waiting"
        os.write(fd, b"written")
        fcntl.lockf(fd, fcntl.LOCK_UN)
        assert wait_for(child) == 0
    os.close(reader)
    os.close(writer)


@on_files
def locks_of_open_files(top: Path) -> None:
    """Locks of an open file description hold against others of the same process, and go with it."""

    def lock(fd: int, kind: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 100, 0))

    with opened(top / "file", os.O_RDWR) as one, opened(top / "file", os.O_RDWR) as two:
        lock(one, fcntl.F_WRLCK)
        with fails(errno.EAGAIN, errno.EACCES):
            lock(two, fcntl.F_RDLCK)
        os.close(os.open(top / "file", os.O_RDONLY))
        with fails(errno.EAGAIN, errno.EACCES):
            lock(two, fcntl.F_WRLCK)
        lock(one, fcntl.F_RDLCK)
        lock(two, fcntl.F_RDLCK)
    with opened(top / "file", os.O_RDWR) as three:
        lock(three, fcntl.F_WRLCK)


@on_files
def leases(top: Path) -> None:
    """A lease on a file is given and told of, or refused."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with opened(top / "file", os.O_RDONLY) as fd:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            assert error.errno in (errno.EINVAL, errno.EAGAIN), errno.errorcode[error.errno or 0]
            return
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        with fails(errno.EWOULDBLOCK):
            os.open(top / "file", os.O_WRONLY | os.O_NONBLOCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    with opened(top / "file", os.O_RDWR) as fd:
        assert os.read(fd, 4) == CONTENT[:4]
