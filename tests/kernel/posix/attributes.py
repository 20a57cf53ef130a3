"""chmod(2), permission bits, umask, and what stat(2) and statvfs(2) tell."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.kernel.posix.calls import opened
from tests.kernel.posix.table import CONTENT, LONG_AGO, behaviour, fails, on_files

FS_IOC_GETFLAGS = 0x80086601


MAKERS: dict[str, Callable[[Path], None]] = {
    "file": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)),
    "directory": lambda path: os.mkdir(path, 0o777),
    "fifo": lambda path: os.mkfifo(path, 0o666),
    "node": lambda path: os.mknod(path, stat.S_IFREG | 0o666),
}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@on_files
def all_modes(top: Path) -> None:
    """Each bit of a mode is kept, of files, directories and pipes."""
    for name in ("file", "empty", "fifo", "full"):
        for mode in (0o400, 0o777, 0o1755, 0o2755, 0o4755, 0o6711, 0o7777, 0o001, 0o000, 0o644, 0o755):
            os.chmod(top / name, mode)
            assert mode_of(top / name) == mode, f"{name}: {mode:o}"
    assert (top / "file").read_bytes() == CONTENT and sorted(os.listdir(top / "full")) == ["deeper", "inside"]


@on_files
def mode_is_all_that_changes(top: Path) -> None:
    """chmod(2) leaves times, size, attributes and number of a file as they are."""
    before = os.stat(top / "file")
    os.chmod(top / "file", 0o600)
    after = os.stat(top / "file")
    assert after.st_mtime_ns == before.st_mtime_ns == LONG_AGO and after.st_ino == before.st_ino
    assert after.st_size == len(CONTENT) and os.getxattr(top / "file", "user.laid") == b"value"
    assert after.st_ctime_ns > LONG_AGO


@on_files
def mode_of_what_is_open(top: Path) -> None:
    """fchmod(2) works on any descriptor, and what is open stays usable."""
    for flags in (os.O_RDONLY, os.O_RDWR):
        with opened(top / "file", flags) as fd:
            os.fchmod(fd, 0)
            assert stat.S_IMODE(os.fstat(fd).st_mode) == mode_of(top / "file") == 0
            assert os.read(fd, 4) == CONTENT[:4]
            if flags == os.O_RDWR:
                os.write(fd, b"still")
            os.fchmod(fd, 0o644)
    with opened(top / "full", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o700)
        assert mode_of(top / "full") == 0o700 and sorted(os.listdir(fd)) == ["deeper", "inside"]


@on_files
def bits_are_obeyed(top: Path) -> None:
    """open(2) grants what the mode of a file grants."""
    for mode, flags, granted in (
        (0o400, os.O_RDONLY, True), (0o400, os.O_WRONLY, False), (0o200, os.O_WRONLY, True),
        (0o200, os.O_RDONLY, False), (0o600, os.O_RDWR, True), (0o044, os.O_RDONLY, False), (0o000, os.O_RDONLY, False),
        (0o400, os.O_RDONLY | os.O_TRUNC, False),
    ):  # fmt: skip
        os.chmod(top / "file", mode)
        if granted:
            os.close(os.open(top / "file", flags))
        else:
            with fails(errno.EACCES):
                os.open(top / "file", flags)
    with fails(errno.EACCES):
        os.truncate(top / "file", 0)
    os.chmod(top / "file", 0o644)
    assert (top / "file").read_bytes() == CONTENT


@on_files
def access_is_told(top: Path) -> None:
    """access(2) tells what the mode grants."""
    for mode in range(8):
        os.chmod(top / "file", mode << 6)
        told = [os.access(top / "file", asked) for asked in (os.R_OK, os.W_OK, os.X_OK, os.F_OK)]
        assert told == [bool(mode & 4), bool(mode & 2), bool(mode & 1), True], f"{mode << 6:o}"
    assert os.access(top / "full", os.X_OK) and os.access(top / "script", os.X_OK)
    assert not os.access(top / "none", os.F_OK) and not os.access(top / "read-only", os.W_OK)


@on_files
def directory_bits_are_obeyed(top: Path) -> None:
    """To search a directory is one right, to list it another, to write to it a third."""
    os.chmod(top / "full", 0o400)
    assert sorted(os.listdir(top / "full")) == ["deeper", "inside"]
    with fails(errno.EACCES):
        os.stat(top / "full/inside")
    os.chmod(top / "full", 0o100)
    assert (top / "full/inside").read_bytes() == b"inside\n"
    with fails(errno.EACCES):
        os.listdir(top / "full")
    os.chmod(top / "full", 0o500)
    with fails(errno.EACCES):
        os.open(top / "full/new", os.O_CREAT | os.O_WRONLY)
    with fails(errno.EACCES):
        os.unlink(top / "full/inside")
    os.chmod(top / "full", 0o700)
    os.unlink(top / "full/inside")


@on_files
def read_only_file_made_writable(top: Path) -> None:
    """A file that can't be written can be once its owner has allowed it."""
    with fails(errno.EACCES):
        os.open(top / "read-only", os.O_WRONLY)
    os.chmod(top / "read-only", 0o644)
    with open(top / "read-only", "ab") as file:
        file.write(b"more")
    assert (top / "read-only").read_bytes() == b"fixed\nmore"


@on_files
def set_user_id_is_lost(top: Path) -> None:
    """Writing to a file takes its set-user-id bit, and its set-group-id bit where the group may run it."""
    for mode, left in ((0o4755, 0o755), (0o6755, 0o755), (0o2755, 0o755), (0o4644, 0o644), (0o755, 0o755)):
        os.chmod(top / "file", mode)
        with open(top / "file", "r+b", buffering=0) as file:
            file.write(b"x")
        assert mode_of(top / "file") == left, f"{mode:o} became {mode_of(top / 'file'):o}"


@on_files
def set_user_id_is_lost_by_truncating(top: Path) -> None:
    """So does truncating it, by name, by descriptor, and at open(2)."""
    os.chmod(top / "file", 0o4755)
    os.truncate(top / "file", 100)
    assert mode_of(top / "file") == 0o755
    os.chmod(top / "file", 0o6755)
    with opened(top / "file", os.O_RDWR) as fd:
        os.ftruncate(fd, 50)
    assert mode_of(top / "file") == 0o755
    os.chmod(top / "file", 0o4755)
    os.close(os.open(top / "file", os.O_WRONLY | os.O_TRUNC))
    assert mode_of(top / "file") == 0o755


@on_files
def set_user_id_is_kept(top: Path) -> None:
    """Reading, linking, renaming and setting times leave a set-user-id bit, and the sticky bit."""
    os.chmod(top / "file", 0o5755)
    os.utime(top / "file", ns=(1, 1))
    os.link(top / "file", top / "new")
    os.rename(top / "new", top / "full/new")
    assert (top / "full/new").read_bytes() == CONTENT and mode_of(top / "file") == 0o5755
    os.chmod(top / "empty", 0o1777)
    (top / "empty/file").write_bytes(b"")
    assert mode_of(top / "empty") == 0o1777


@behaviour
def umask_is_applied(top: Path) -> None:
    """The umask takes bits from what is made, whatever it is, and from nothing else."""
    for umask in (0, 0o022, 0o077, 0o027):
        os.umask(umask)
        for kind, make in MAKERS.items():
            make(top / f"{kind}{umask}")
            wanted = (0o777 if kind == "directory" else 0o666) & ~umask
            assert mode_of(top / f"{kind}{umask}") == wanted, kind
    os.chmod(top / "file0", 0o777)
    assert mode_of(top / "file0") == 0o777


@behaviour
def modes_of_what_is_made(top: Path) -> None:
    """A file is made with the mode that is asked for, with the set-id and sticky bits too."""
    os.umask(0)
    for mode in (0o000, 0o444, 0o4711, 0o1600, 0o777):
        os.close(os.open(top / f"file{mode}", os.O_CREAT | os.O_WRONLY, mode))
        assert mode_of(top / f"file{mode}") == mode, f"{mode:o}"
    os.mkdir(top / "sticky", 0o1777)
    assert mode_of(top / "sticky") == 0o1777


@on_files
def all_there_is_has_one_device(top: Path) -> None:
    """Everything is on one device, and each file has a number of its own."""
    paths = [top, *top.rglob("*")]
    assert len({os.lstat(path).st_dev for path in paths}) == 1
    numbers = [os.lstat(path).st_ino for path in paths if path.name != "second"]
    assert len(set(numbers)) == len(numbers)


@on_files
def numbers_are_kept(top: Path) -> None:
    """A file keeps its number, whatever is done to it."""
    paths = ["file", "full", "full/inside", "link", "fifo", "other"]
    before = {path: (os.lstat(top / path).st_dev, os.lstat(top / path).st_ino) for path in paths}
    for path in ("file", "full", "full/inside", "fifo"):
        os.chmod(top / path, 0o700)
    os.utime(top / "link", ns=(1, 1), follow_symlinks=False)
    (top / "other").write_bytes(b"x")
    (top / "full/new").write_bytes(b"x")
    after = {path: (os.lstat(top / path).st_dev, os.lstat(top / path).st_ino) for path in paths}
    assert before == after


@on_files
def room_is_told(top: Path) -> None:
    """What stat(2) says of a file's room is in units of 512 bytes, enough for what is in it, and no nonsense."""
    (top / "new").write_bytes(bytes(range(256)) * 400)
    with opened(top / "new", os.O_RDONLY) as fd:
        os.fsync(fd)
    for name in ("new", "file"):
        status = os.stat(top / name)
        assert status.st_size <= status.st_blocks * 512 <= status.st_size + (1 << 20), name
        assert status.st_blksize >= 512


@behaviour
def statistics_make_sense(top: Path) -> None:
    """statvfs(2) tells of room that is there, and how long a name can be."""
    os.chdir(top)
    for found in (os.statvfs(top), os.statvfs("/proc/self/cwd")):
        assert found.f_namemax == 255 and found.f_bsize and found.f_frsize
        assert 0 < found.f_bavail <= found.f_bfree <= found.f_blocks
        assert not found.f_flag & os.ST_RDONLY and 0 <= found.f_ffree <= (found.f_files or found.f_ffree)


@on_files
def inode_flags(top: Path) -> None:
    """FS_IOC_GETFLAGS answers, or says that there is no such thing."""
    for name in ("file", "full"):
        with opened(top / name, os.O_RDONLY) as fd:
            try:
                fcntl.ioctl(fd, FS_IOC_GETFLAGS, array.array("l", [0]))
            except OSError as error:
                assert error.errno in (errno.ENOTTY, errno.EOPNOTSUPP), errno.errorcode[error.errno or 0]
