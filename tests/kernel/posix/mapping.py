"""mmap(2) of files."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path

from tests.kernel.posix.calls import child_does, opened
from tests.kernel.posix.table import CONTENT, behaviour, on_files


@on_files
def mapped_and_read(top: Path) -> None:
    """What is written to a shared mapping is read from the file at once."""
    with opened(top / "file", os.O_RDWR) as fd, opened(top / "file", os.O_RDONLY) as reader:
        with mmap.mmap(fd, 0) as memory:
            assert memory[:] == CONTENT
            memory[5000:5007] = b"mapped!"
            assert os.pread(reader, 7, 5000) == b"mapped!" and os.pread(fd, 7, 5000) == b"mapped!"
        assert os.fstat(fd).st_size == len(CONTENT)
    assert (top / "file").read_bytes() == CONTENT[:5000] + b"mapped!" + CONTENT[5007:]


@on_files
def mapped_by_who_appends(top: Path) -> None:
    """A page of a mapping goes where it is in the file, though the file was opened to append to it."""
    with opened(top / "file", os.O_RDWR | os.O_APPEND) as fd:
        with mmap.mmap(fd, 0) as memory:
            memory[5000:5007] = b"mapped!"
            memory.flush()
        os.write(fd, b"appended")
    assert (top / "file").read_bytes() == CONTENT[:5000] + b"mapped!" + CONTENT[5007:] + b"appended"


@on_files
def written_and_mapped(top: Path) -> None:
    """What is written to the file is seen in a mapping at once."""
    with opened(top / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory:
        assert memory[:3] == CONTENT[:3]
        os.pwrite(fd, b"written", 0)
        assert memory[:8] == b"written\n"
        with open(top / "file", "r+b") as other:
            other.write(b"OTHER")
        assert memory[:8] == b"OTHERen\n"


@on_files
def mapped_for_reading_before(top: Path) -> None:
    """A mapping for reading sees what is written to the file for the first time after it was made."""
    with opened(top / "file", os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        assert memory[:3] == CONTENT[:3]
        with open(top / "file", "r+b") as other:
            other.write(b"written")
        assert memory[:8] == b"written\n"


@on_files
def mapped_privately(top: Path) -> None:
    """What is written to a private mapping is nobody else's, and can be of a file that is only read."""
    with opened(top / "file", os.O_RDONLY) as fd, mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=3) as memory:
        memory[:7] = b"private"
        assert memory[:8] == b"private\n"
        assert os.pread(fd, 7, 0) == CONTENT[:7]
    assert (top / "file").read_bytes() == CONTENT


@on_files
def mapping_outlives_the_descriptor(top: Path) -> None:
    """A mapping works when the file is closed, and when its name is gone."""
    with opened(top / "file", os.O_RDWR) as fd:
        memory = mmap.mmap(fd, 0)
    memory[:5] = b"first"
    assert (top / "file").read_bytes()[:5] == b"first"
    with opened(top / "file", os.O_RDONLY) as fd:
        os.unlink(top / "file")
        memory[:6] = b"second"
        memory.flush()
        assert os.pread(fd, 7, 0) == b"second" + CONTENT[6:7]
    assert memory[7000:7010] == CONTENT[7000:7010]
    memory.close()


@on_files
def shared_by_processes(top: Path) -> None:
    """Two processes that map a file see what the other writes."""
    with opened(top / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory:

        def change() -> None:
            with opened(top / "file", os.O_RDWR) as own, mmap.mmap(own, 0) as mine:
                assert mine[:6] == b"parent"
                mine[4096:4101] = b"child"

        memory[:6] = b"parent"
        assert child_does(change) == 0
        assert memory[4096:4101] == b"child"
    assert (top / "file").read_bytes()[4096:4101] == b"child"


@on_files
def end_of_a_mapping(top: Path) -> None:
    """Behind the end of a file its last page is zeros, and no page is there beyond it: SIGBUS."""
    pages = -(-len(CONTENT) // 4096) * 4096
    with opened(top / "file", os.O_RDWR) as fd:
        os.ftruncate(fd, pages * 2)
        with mmap.mmap(fd, pages * 2) as memory:
            os.ftruncate(fd, len(CONTENT))
            assert memory[len(CONTENT) : pages] == bytes(pages - len(CONTENT))

            def touch() -> None:
                assert memory[pages] != memory[pages + 1]

            assert child_does(touch) == -signal.SIGBUS
            os.ftruncate(fd, pages * 2)
            assert memory[pages:] == bytes(pages)


@behaviour
def filled_by_a_mapping(top: Path) -> None:
    """A file that is written by a mapping alone has all of it when it is opened again."""
    data = bytes(range(256)) * 4096
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, len(data))
        with mmap.mmap(fd, len(data)) as memory:
            memory[:] = data
            memory.flush()
    assert (top / "file").read_bytes() == data
