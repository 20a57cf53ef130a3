"""Reading and writing, and the ways in which content gets from one file to another."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import select
import signal
from functools import partial
from pathlib import Path

from tests.kernel.posix.calls import child_does, opened, start_child, sync_file_range, wait_for, write_all
from tests.kernel.posix.table import CONTENT, behaviour, fails, on_files


@on_files
def read_and_written(top: Path) -> None:
    """What is written anywhere in a file is read from there, and the rest stays."""
    wanted = bytearray(CONTENT)
    with opened(top / "file", os.O_RDWR) as fd:
        for offset, data in ((0, b"a"), (4095, b"bc"), (8000, b"d" * 500), (len(CONTENT) - 2, b"efgh"), (1, b"i")):
            assert os.pwrite(fd, data, offset) == len(data)
            wanted[offset : offset + len(data)] = data
            assert os.pread(fd, 20000, 0) == wanted
        assert os.pread(fd, 10, len(wanted)) == b"" and os.pread(fd, 10, 1 << 40) == b""
    assert (top / "file").read_bytes() == wanted


@on_files
def seen_by_others(top: Path) -> None:
    """What one process writes, another that has the file open reads at once."""
    with opened(top / "file", os.O_RDONLY) as reader:
        assert os.read(reader, 3) == CONTENT[:3]
        for number in range(5):
            text = b"process %d" % number
            assert child_does(partial((top / "file").write_bytes, text)) == 0
            assert os.pread(reader, 100, 0) == text and os.fstat(reader).st_size == len(text)


@behaviour
def large_writes(top: Path) -> None:
    """A write of several megabytes is taken whole, from an odd offset."""
    data = os.urandom(1 << 16) * 50
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        assert os.pwrite(fd, data, 777) == len(data)
        assert os.fstat(fd).st_size == len(data) + 777
        assert os.pread(fd, len(data), 777) == data and os.pread(fd, 777, 0) == bytes(777)


@on_files
def vectors(top: Path) -> None:
    """preadv(2) and pwritev(2) go on where the piece before ended."""
    with opened(top / "file", os.O_RDWR) as fd:
        assert os.pwritev(fd, [b"one", b"", b"two" * 2000, b"three"], 10) == 6008
        pieces = [bytearray(13), bytearray(6000), bytearray(5)]
        assert os.preadv(fd, pieces, 0) == 6018
        assert pieces[0] == CONTENT[:10] + b"one" and pieces[1] == b"two" * 2000 and pieces[2] == b"three"


@on_files
def positions_in_a_file(top: Path) -> None:
    """lseek(2) goes to the end and beyond, and not before the beginning."""
    with opened(top / "file", os.O_RDWR) as fd:
        assert os.lseek(fd, 0, os.SEEK_END) == len(CONTENT)
        (top / "file").write_bytes(b"short")
        assert os.lseek(fd, -2, os.SEEK_END) == 3 and os.read(fd, 5) == b"rt"
        with fails(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        assert os.lseek(fd, 100, os.SEEK_SET) == 100 and os.read(fd, 5) == b"" and os.fstat(fd).st_size == 5
        os.write(fd, b"x")
        assert os.pread(fd, 200, 0) == b"short" + bytes(95) + b"x"


@on_files
def copied_ranges(top: Path) -> None:
    """copy_file_range(2) copies between files, and within one where the ranges are apart."""
    with opened(top / "file", os.O_RDWR) as source, opened(top / "other", os.O_RDWR) as target:
        assert os.copy_file_range(source, target, 5000, 1000, 3) == 5000
        assert os.pread(target, 20000, 0) == b"oth" + CONTENT[1000:6000]
        assert os.copy_file_range(source, source, 100, 0, 11000) == 100
        assert os.pread(source, 100, 11000) == CONTENT[:100]
        with fails(errno.EINVAL):
            os.copy_file_range(source, source, 1000, 0, 500)
        assert os.copy_file_range(source, target, 100, 1 << 20, 0) == 0


@on_files
def sent_files(top: Path) -> None:
    """sendfile(2) copies from a file to a file and to a pipe."""
    with opened(top / "file", os.O_RDONLY) as source, opened(top / "other", os.O_WRONLY) as target:
        assert os.sendfile(target, source, 8, 5000) == 5000
        reader, writer = os.pipe()
        assert os.sendfile(writer, source, 0, 100) == 100 and os.read(reader, 200) == CONTENT[:100]
        os.close(reader)
        os.close(writer)
    assert (top / "other").read_bytes() == CONTENT[8:5008]


@on_files
def spliced(top: Path) -> None:
    """splice(2) moves content from a file into a pipe, and out of one into a file."""
    reader, writer = os.pipe()
    with opened(top / "file", os.O_RDWR) as source, opened(top / "other", os.O_RDWR) as target:
        assert os.splice(source, writer, 4096, offset_src=8) == 4096
        assert os.splice(reader, target, 4096, offset_dst=2) == 4096
        assert os.pread(target, 20000, 0) == b"ot" + CONTENT[8:4104]
        os.write(writer, b"from the pipe")
        assert os.splice(reader, source, 100, offset_dst=0) == 13
        assert os.pread(source, 16, 0) == b"from the pipe" + CONTENT[13:16]
    os.close(reader)
    os.close(writer)


@on_files
def synced(top: Path) -> None:
    """Files and directories can be synced, whichever way they are open."""
    for name, flags in (("file", os.O_RDWR), ("file", os.O_RDONLY), ("full", os.O_RDONLY), ("file", os.O_WRONLY)):
        with opened(top / name, flags) as fd:
            if flags != os.O_RDONLY:
                os.write(fd, b"x")
            os.fsync(fd)
            os.fdatasync(fd)
    with opened(top / "file", os.O_RDWR) as fd:
        os.write(fd, b"yy")
        sync_file_range(fd, 0, 4096, 7)
        sync_file_range(fd, 0, 0, 2)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        assert os.pread(fd, 3, 0) == b"yy" + CONTENT[2:3]


@on_files
def direct_reading_and_writing(top: Path) -> None:
    """O_DIRECT is refused, or it reads and writes the same content as everybody else."""
    try:
        fd = os.open(top / "file", os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        assert error.errno == errno.EINVAL
        return
    with mmap.mmap(-1, 4096) as memory, opened(top / "file", os.O_RDWR) as ordinary:
        assert os.pread(ordinary, 5, 4096) == CONTENT[4096:4101]
        os.pwrite(ordinary, b"ordinary", 0)
        assert os.preadv(fd, [memory], 0) == 4096
        assert memory[:] == b"ordinary" + CONTENT[8:4096]
        memory[:] = b"direct" + bytes(4090)
        assert os.pwritev(fd, [memory], 4096) == 4096
        assert os.pread(ordinary, 8192, 0) == b"ordinary" + CONTENT[8:4096] + b"direct" + bytes(4090)
        assert os.preadv(fd, [memory], 8192) == len(CONTENT) - 8192
    os.close(fd)


@on_files
def limit_of_sizes(top: Path) -> None:
    """RLIMIT_FSIZE ends writing with EFBIG, and what fits is written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = len(CONTENT) + 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with opened(top / "file", os.O_WRONLY | os.O_APPEND) as fd:
        assert os.write(fd, b"x" * 20) == 10
        with fails(errno.EFBIG):
            os.write(fd, b"x")
        with fails(errno.EFBIG):
            os.ftruncate(fd, limit + 1)
    assert os.stat(top / "file").st_size == limit


@on_files
def written_by_several(top: Path) -> None:
    """What several processes write to places of their own is all there."""

    def write(number: int) -> None:
        with opened(top / "file", os.O_RDWR) as fd:
            for offset in range(number * 100, 12000, 400):
                os.pwrite(fd, b"%d" % number * 100, offset)

    children = [start_child(partial(write, number)) for number in range(4)]
    assert [wait_for(child) for child in children] == [0] * 4
    assert (top / "file").read_bytes() == b"".join(b"%d" % number * 100 for number in range(4)) * 30 + CONTENT[12000:]


@on_files
def always_ready(top: Path) -> None:
    """poll(2) has a regular file ready to be read and written at all times."""
    with opened(top / "file", os.O_RDWR) as fd:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]


@on_files
def read_by_one_before_written_by_another(top: Path) -> None:
    """Who opened a file before it was written to for the first time sees what is written, and its size."""
    with opened(top / "file", os.O_RDONLY) as one, opened(top / "file", os.O_RDONLY) as two:
        assert os.read(one, 8) == CONTENT[:8]
        with opened(top / "file", os.O_WRONLY) as writer:
            os.write(writer, b"written")
            assert os.pread(one, 8, 0) == os.read(two, 8) == b"written\n"
            os.pwrite(writer, b"end", len(CONTENT))
            assert os.fstat(one).st_size == len(CONTENT) + 3 and os.pread(two, 10, len(CONTENT)) == b"end"
            os.ftruncate(writer, 2)
            assert os.read(one, 10) == b"" and os.fstat(two).st_size == 2


@behaviour
def many_small_files(top: Path) -> None:
    """Hundreds of small files have each what was written to it."""
    for number in range(300):
        with opened(top / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
            write_all(fd, b"%d" % number * 10)
    for number in range(300):
        assert (top / str(number)).read_bytes() == b"%d" % number * 10
