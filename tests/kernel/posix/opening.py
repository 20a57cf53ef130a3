"""open(2) and its flags."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from functools import partial
from pathlib import Path

from tests.kernel.posix.calls import (
    AT_SYMLINK_FOLLOW,
    linkat,
    opened,
    start_child,
    wait_for,
    write_all,
)
from tests.kernel.posix.table import CONTENT, behaviour, fails, on_files


@on_files
def exclusive_creation(top: Path) -> None:
    """O_EXCL makes what is not there, and nothing else, not even through a dangling link."""
    for name in ("file", "empty", "link", "dangling", "fifo"):
        with fails(errno.EEXIST):
            os.open(top / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(top / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert not (top / "nowhere").exists()


@on_files
def nofollow(top: Path) -> None:
    """O_NOFOLLOW refuses a link in the last place only."""
    with fails(errno.ELOOP):
        os.open(top / "link", os.O_RDONLY | os.O_NOFOLLOW)
    (top / "way").symlink_to("full")
    with opened(top / "way/inside", os.O_RDONLY | os.O_NOFOLLOW) as fd:
        assert os.read(fd, 100) == b"inside\n"


@on_files
def directory_flag(top: Path) -> None:
    """O_DIRECTORY takes directories only."""
    with fails(errno.ENOTDIR):
        os.open(top / "file", os.O_RDONLY | os.O_DIRECTORY)
    with opened(top / "full", os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert sorted(os.listdir(fd)) == ["deeper", "inside"]


@on_files
def truncating_open(top: Path) -> None:
    """O_TRUNC empties a file, which stays the same file, for everybody."""
    before = os.stat(top / "file").st_ino
    with opened(top / "file", os.O_RDONLY) as reader, opened(top / "file", os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == os.fstat(reader).st_size == 0
        assert os.fstat(fd).st_ino == before
        assert os.read(reader, 10) == b""
        os.write(fd, b"anew")
        assert os.pread(reader, 10, 0) == b"anew"


@on_files
def truncating_open_for_reading(top: Path) -> None:
    """O_CREAT with O_TRUNC and a mode leaves the mode of what is there."""
    with opened(top / "file", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600):
        pass
    status = os.stat(top / "file")
    assert stat.S_IMODE(status.st_mode) == 0o644 and status.st_size == 0


@on_files
def appending(top: Path) -> None:
    """O_APPEND writes at the end, wherever the position is."""
    with opened(top / "file", os.O_RDWR | os.O_APPEND) as fd:
        os.lseek(fd, 3, os.SEEK_SET)
        os.write(fd, b"more")
        assert os.lseek(fd, 0, os.SEEK_CUR) == len(CONTENT) + 4
    assert (top / "file").read_bytes() == CONTENT + b"more"


@on_files
def appending_writers(top: Path) -> None:
    """What several processes append at once is all there, none of it torn."""

    def append(number: int) -> None:
        with opened(top / "file", os.O_WRONLY | os.O_APPEND) as fd:
            for count in range(100):
                os.write(fd, b"%d-%03d\n" % (number, count))

    children = [start_child(partial(append, number)) for number in range(4)]
    assert [wait_for(child) for child in children] == [0] * 4
    content = (top / "file").read_bytes()
    assert content.startswith(CONTENT)
    lines = content[len(CONTENT) :].splitlines()
    assert sorted(lines) == sorted(b"%d-%03d" % (number, count) for number in range(4) for count in range(100))


@behaviour
def unnamed_file(top: Path) -> None:
    """O_TMPFILE makes a file that has no name."""
    with opened(top, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"nameless")
        assert os.pread(fd, 20, 0) == b"nameless"
        assert os.fstat(fd).st_nlink == 0 and os.listdir(top) == []


@behaviour
def unnamed_file_gets_a_name(top: Path) -> None:
    """A file of O_TMPFILE can be linked by way of /proc."""
    with opened(top, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"nameless")
        linkat(f"/proc/self/fd/{fd}", top / "name", AT_SYMLINK_FOLLOW)
        assert os.fstat(fd).st_nlink == 1
    assert (top / "name").read_bytes() == b"nameless"


@behaviour
def unnamed_file_that_gets_no_name(top: Path) -> None:
    """A file of O_TMPFILE and O_EXCL can't be linked."""
    with (
        opened(top, os.O_TMPFILE | os.O_EXCL | os.O_RDWR, 0o600) as fd,
        fails(errno.ENOENT),
    ):
        linkat(f"/proc/self/fd/{fd}", top / "name", AT_SYMLINK_FOLLOW)


@on_files
def path_descriptor(top: Path) -> None:
    """O_PATH gives no access to the content, but it can be opened again."""
    with opened(top / "file", os.O_PATH) as fd:
        with fails(errno.EBADF):
            os.read(fd, 1)
        assert os.fstat(fd).st_size == len(CONTENT)
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            assert os.read(again, 7) == CONTENT[:7]
            os.pwrite(again, b"changed", 0)
        assert (top / "file").read_bytes()[:8] == b"changed\n"


@on_files
def path_descriptor_of_a_link(top: Path) -> None:
    """O_PATH with O_NOFOLLOW opens a link itself."""
    with opened(top / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode) and os.readlink("", dir_fd=fd) == "file"


@on_files
def directories_are_not_written(top: Path) -> None:
    """A directory can be opened for reading only."""
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT):
        with fails(errno.EISDIR):
            os.open(top / "full", flags)
    with opened(top / "full", os.O_RDONLY) as fd, fails(errno.EISDIR):
        os.read(fd, 1)


@on_files
def paths_that_lead_nowhere(top: Path) -> None:
    """ENOENT and ENOTDIR are told apart."""
    for path in ("none", "none/none", "dangling", "empty/none"):
        with fails(errno.ENOENT):
            os.open(top / path, os.O_RDONLY)
    for path in ("file/none", "link/none", "file/", "fifo/none", "full/inside/"):
        with fails(errno.ENOTDIR):
            os.open(f"{top}/{path}", os.O_RDONLY)
    with fails(errno.ENOENT):
        os.open("", os.O_RDONLY)
    with fails(errno.EISDIR):
        os.open(f"{top}/new/", os.O_RDWR | os.O_CREAT)


@on_files
def creation_through_a_link(top: Path) -> None:
    """Creating a dangling link's name makes what it points to."""
    (top / "dangling").write_bytes(b"made")
    assert (top / "nowhere").read_bytes() == b"made" and (top / "dangling").is_symlink()


@behaviour
def creation_without_right_to_write(top: Path) -> None:
    """Who makes a file may write to it, whatever mode it gets; later the mode counts."""
    with opened(top / "new", os.O_CREAT | os.O_RDWR, 0o400) as fd:
        os.write(fd, b"first")
        with fails(errno.EACCES):
            os.open(top / "new", os.O_WRONLY)
        os.write(fd, b" and more")
    assert (top / "new").read_bytes() == b"first and more"


@on_files
def descriptors_keep_to_their_mode(top: Path) -> None:
    """What is open for reading can't be written, and the other way round."""
    with opened(top / "file", os.O_RDONLY) as fd:
        with fails(errno.EBADF):
            os.write(fd, b"x")
        with fails(errno.EINVAL, errno.EBADF):
            os.ftruncate(fd, 0)
    with opened(top / "file", os.O_WRONLY) as fd, fails(errno.EBADF):
        os.read(fd, 1)
    assert (top / "file").read_bytes() == CONTENT


@on_files
def reopened_for_writing(top: Path) -> None:
    """What is open for reading can be opened once more for writing, and both see the same."""
    with opened(top / "file", os.O_RDONLY) as reader:
        assert os.read(reader, 4) == CONTENT[:4]
        with opened(f"/proc/self/fd/{reader}", os.O_WRONLY) as writer:
            os.write(writer, b"written")
        assert os.pread(reader, 8, 0) == b"written\n"
        assert os.read(reader, 4) == b"ten\n"


@on_files
def positions(top: Path) -> None:
    """Each open has a position of its own; a duplicate shares it."""
    with opened(top / "file", os.O_RDONLY) as one, opened(top / "file", os.O_RDONLY) as two:
        twin = os.dup(one)
        assert os.read(one, 8) == CONTENT[:8] and os.read(twin, 8) == CONTENT[8:16]
        assert os.read(two, 8) == CONTENT[:8]
        os.close(twin)


@behaviour
def direct_and_appending(top: Path) -> None:
    """O_APPEND with O_DIRECT is refused, or it appends."""
    block = bytes(range(256)) * 16
    (top / "file").write_bytes(block)
    try:
        fd = os.open(top / "file", os.O_RDWR | os.O_APPEND | os.O_DIRECT)
    except OSError as error:
        assert error.errno == errno.EINVAL
        return
    import mmap

    with mmap.mmap(-1, 4096) as memory:
        memory[:] = block[::-1]
        assert os.writev(fd, [memory]) == 4096
    os.close(fd)
    assert (top / "file").read_bytes() == block + block[::-1]


@on_files
def opened_from_a_directory(top: Path) -> None:
    """openat(2) starts from the open directory, and `..` leads out of it."""
    with opened(top / "full", os.O_PATH | os.O_DIRECTORY) as directory:
        with opened("deeper/bottom", os.O_RDONLY, directory=directory) as fd:
            assert os.read(fd, 100) == b"bottom\n"
        with opened("deeper/new", os.O_WRONLY | os.O_CREAT, directory=directory) as fd:
            os.write(fd, b"x")
        with opened("../other", os.O_RDONLY, directory=directory) as fd:
            assert os.read(fd, 100) == b"other\n"
    assert (top / "full/deeper/new").read_bytes() == b"x"


@on_files
def synchronous_writing(top: Path) -> None:
    """O_SYNC and O_DSYNC write."""
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(top / "file", os.O_WRONLY | flag) as fd:
            os.write(fd, b"synced")
    assert (top / "file").read_bytes() == b"synced" + CONTENT[6:]


@on_files
def scripts_run(top: Path) -> None:
    """What has the execute bit can be run, what has lost it can't."""
    assert subprocess.run([top / "script"], capture_output=True, check=True).stdout == b"ran\n"
    with open(top / "script", "ab") as script:
        script.write(b"echo twice\n")
    assert subprocess.run([top / "script"], capture_output=True, check=True).stdout == b"ran\ntwice\n"
    os.chmod(top / "script", 0o644)
    with fails(errno.EACCES):
        os.execv(top / "script", ["script"])


@behaviour
def busy_programs(top: Path) -> None:
    """A program that is open for writing is not run, and one that runs is not written to."""
    shutil.copy("/bin/cat", top / "program")
    with opened(top / "program", os.O_WRONLY), fails(errno.ETXTBSY):
        subprocess.run([top / "program"], stdin=subprocess.DEVNULL)
    with subprocess.Popen([top / "program"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None and running.stdout is not None
        write_all(running.stdin.fileno(), b"here\n")
        assert running.stdout.readline() == b"here\n"
        with fails(errno.ETXTBSY):
            os.open(top / "program", os.O_WRONLY)
