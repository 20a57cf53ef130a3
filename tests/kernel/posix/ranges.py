"""truncate(2), holes, fallocate(2): which parts of a file are there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.kernel.posix.calls import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate, opened
from tests.kernel.posix.table import CONTENT, behaviour, fails, on_files


@on_files
def cut_and_grown(top: Path) -> None:
    """What was cut off is zeros when a file grows again."""
    for length in (9000, 5000, 4096, 1, 0):
        os.truncate(top / "file", length)
        assert (top / "file").read_bytes() == CONTENT[:length]
        os.truncate(top / "file", length + 10000)
        assert (top / "file").read_bytes() == CONTENT[:length] + bytes(10000)
        os.truncate(top / "file", length)


@on_files
def grown(top: Path) -> None:
    """A file that was made longer has zeros at the end."""
    with opened(top / "file", os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 20)
        assert os.fstat(fd).st_size == 1 << 20
        assert os.pread(fd, 1 << 20, 0) == CONTENT + bytes((1 << 20) - len(CONTENT))
        os.ftruncate(fd, len(CONTENT))
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    assert (top / "file").read_bytes() == CONTENT


@on_files
def what_is_not_cut(top: Path) -> None:
    """Directories, pipes and negative lengths are not for truncate(2)."""
    with fails(errno.EISDIR):
        os.truncate(top / "full", 0)
    with fails(errno.EINVAL):
        os.truncate(top / "file", -1)
    with fails(errno.EINVAL):
        os.truncate(top / "fifo", 0)
    with fails(errno.EACCES):
        os.truncate(top / "read-only", 0)
    with fails(errno.ENOENT):
        os.truncate(top / "dangling", 0)
    with opened(top / "file", os.O_RDONLY) as fd, fails(errno.EINVAL, errno.EBADF):
        os.ftruncate(fd, 0)


@on_files
def written_beyond_the_end(top: Path) -> None:
    """Between the end and what is written behind it are zeros."""
    with opened(top / "file", os.O_RDWR) as fd:
        os.pwrite(fd, b"far", 300_001)
        assert os.pread(fd, 400_000, 0) == CONTENT + bytes(300_001 - len(CONTENT)) + b"far"


@behaviour
def far_offsets(top: Path) -> None:
    """A file can have content beyond eight gigabytes."""
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"far", 1 << 33)
        assert os.fstat(fd).st_size == (1 << 33) + 3
        assert os.pread(fd, 10, (1 << 33) - 2) == b"\0\0far" and os.pread(fd, 4, 1 << 32) == bytes(4)
    os.truncate(top / "file", 1 << 34)
    assert os.stat(top / "file").st_size == 1 << 34
    os.unlink(top / "file")


@on_files
def data_and_holes(top: Path) -> None:
    """SEEK_DATA and SEEK_HOLE miss no data, and end where the file does."""
    size, begin = 4 << 20, 2 << 20
    with opened(top / "sparse", os.O_RDONLY) as fd:
        data = os.lseek(fd, 0, os.SEEK_DATA)
        assert 0 <= data <= begin
        hole = os.lseek(fd, begin, os.SEEK_HOLE)
        assert begin + len(CONTENT) <= hole <= size
        assert os.lseek(fd, begin + 5, os.SEEK_DATA) == begin + 5
        assert 0 <= os.lseek(fd, 0, os.SEEK_HOLE) <= size
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with fails(errno.ENXIO):
                os.lseek(fd, size, whence)
        assert os.pread(fd, len(CONTENT) + 2, begin - 1) == b"\0" + CONTENT + b"\0"


@on_files
def holes_are_found(top: Path) -> None:
    """SEEK_DATA and SEEK_HOLE tell of the large holes before and behind the data."""
    begin = 2 << 20
    with opened(top / "sparse", os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0 and begin - 65536 <= os.lseek(fd, 0, os.SEEK_DATA) <= begin
        assert os.lseek(fd, begin, os.SEEK_HOLE) <= begin + (1 << 20)
        with fails(errno.ENXIO):
            os.lseek(fd, 3 << 20, os.SEEK_DATA)


@on_files
def holes_take_no_room(top: Path) -> None:
    """A file that is mostly holes takes little room, also after it was written to."""
    assert os.stat(top / "sparse").st_blocks * 512 < 2 << 20
    with open(top / "sparse", "r+b") as file:
        file.write(b"beginning")
        os.fsync(file.fileno())
    assert os.stat(top / "sparse").st_blocks * 512 < 2 << 20
    with opened(top / "sparse", os.O_RDONLY) as fd:
        assert os.pread(fd, 10, 0) == b"beginning\0" and os.pread(fd, 20000, 2 << 20).startswith(CONTENT)


@on_files
def reserved_room(top: Path) -> None:
    """fallocate(2) makes a file longer, and what is in it stays."""
    with opened(top / "file", os.O_RDWR) as fd:
        fallocate(fd, 0, 4096, 100_000)
        assert os.fstat(fd).st_size == 104_096
        assert os.pread(fd, 200_000, 0) == CONTENT + bytes(104_096 - len(CONTENT))
        assert os.fstat(fd).st_blocks * 512 >= 100_000


@on_files
def reserved_by_the_library(top: Path) -> None:
    """posix_fallocate(3) works everywhere, by writing if need be."""
    with opened(top / "file", os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 50_000)
        assert os.pread(fd, 60_000, 0) == CONTENT + bytes(50_000 - len(CONTENT))
        os.posix_fallocate(fd, 0, 10)
        assert os.fstat(fd).st_size == 50_000


@on_files
def reserved_beyond_the_end(top: Path) -> None:
    """FALLOC_FL_KEEP_SIZE leaves a file as long as it is."""
    with opened(top / "file", os.O_RDWR) as fd:
        fallocate(fd, KEEP_SIZE, 0, 100_000)
        assert os.fstat(fd).st_size == len(CONTENT)
    assert (top / "file").read_bytes() == CONTENT


@on_files
def punched_holes(top: Path) -> None:
    """FALLOC_FL_PUNCH_HOLE leaves zeros, for those who have mapped or read it too."""
    with opened(top / "file", os.O_RDWR) as fd, opened(top / "file", os.O_RDONLY) as reader:
        assert os.read(reader, 20000) == CONTENT
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 100, 8000)
        assert os.pread(reader, 20000, 0) == CONTENT[:100] + bytes(8000) + CONTENT[8100:]
        assert os.fstat(fd).st_size == len(CONTENT)
        with fails(errno.EOPNOTSUPP, errno.EINVAL):
            fallocate(fd, PUNCH_HOLE, 0, 10)


@on_files
def zeroed_ranges(top: Path) -> None:
    """FALLOC_FL_ZERO_RANGE leaves zeros, and makes a file longer if it has to."""
    with opened(top / "file", os.O_RDWR) as fd:
        fallocate(fd, ZERO_RANGE, 8000, 12000)
        assert os.pread(fd, 30000, 0) == CONTENT[:8000] + bytes(12000)
        fallocate(fd, ZERO_RANGE | KEEP_SIZE, 10000, 50000)
        assert os.fstat(fd).st_size == 20000


@on_files
def what_is_not_reserved(top: Path) -> None:
    """fallocate(2) needs a length, a descriptor for writing, and a mode that there is."""
    with opened(top / "file", os.O_RDWR) as fd:
        for offset, length in ((-1, 10), (0, 0), (0, -5)):
            with fails(errno.EINVAL):
                fallocate(fd, 0, offset, length)
        with fails(errno.EOPNOTSUPP):
            fallocate(fd, 0x4000, 0, 10)
    with opened(top / "file", os.O_RDONLY) as fd, fails(errno.EBADF):
        fallocate(fd, 0, 0, 10)
    assert (top / "file").read_bytes() == CONTENT
