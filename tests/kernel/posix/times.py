"""utimensat(2), and which times what is done to a file and a directory changes."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.kernel.posix.calls import NOW, OMIT, after_a_tick, opened, utimensat
from tests.kernel.posix.table import CONTENT, LONG_AGO, behaviour, on_files


def is_new(nanoseconds: int) -> bool:
    """Is it a time of the last minute?"""
    return -1_000_000_000 < time.time_ns() - nanoseconds < 60_000_000_000


def changed(path: Path, does: Callable[[], object]) -> tuple[bool, bool]:
    """Whether the modification and the change time of `path` are others after something was done."""
    after_a_tick(path)
    before = os.lstat(path)
    does()
    after = os.lstat(path)
    assert after.st_ctime_ns >= before.st_ctime_ns
    return after.st_mtime_ns != before.st_mtime_ns, after.st_ctime_ns != before.st_ctime_ns


@on_files
def nanoseconds(top: Path) -> None:
    """Times are kept to the nanosecond, of files, directories, pipes and the directory itself."""
    for name in ("file", "full", "fifo", "."):
        os.utime(top / name, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
        status = os.stat(top / name)
        assert (status.st_atime_ns, status.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_987_654_321), name
        assert is_new(status.st_ctime_ns)


@on_files
def omitted_times(top: Path) -> None:
    """UTIME_OMIT leaves a time as it is."""
    before = os.stat(top / "file").st_atime_ns
    utimensat(top / "file", (5, OMIT), (7, 8))
    assert os.stat(top / "file").st_mtime_ns == 7_000_000_008 and os.stat(top / "file").st_atime_ns == before
    utimensat(top / "file", (9, 1), (7, OMIT))
    status = os.stat(top / "file")
    assert (status.st_atime_ns, status.st_mtime_ns) == (9_000_000_001, 7_000_000_008)


@on_files
def present_time(top: Path) -> None:
    """UTIME_NOW sets a time to now, each for itself."""
    utimensat(top / "file", (0, NOW), (7, 8))
    status = os.stat(top / "file")
    assert is_new(status.st_atime_ns) and status.st_mtime_ns == 7_000_000_008
    utimensat(top / "other", (7, 8), (0, NOW))
    status = os.stat(top / "other")
    assert is_new(status.st_mtime_ns) and status.st_atime_ns == 7_000_000_008
    os.utime(top / "script")
    assert is_new(os.stat(top / "script").st_mtime_ns) and is_new(os.stat(top / "script").st_atime_ns)


@on_files
def times_of_what_is_not_writable(top: Path) -> None:
    """The owner sets times whatever the mode, by a descriptor for reading as well."""
    os.utime(top / "read-only", ns=(1, 2))
    assert os.stat(top / "read-only").st_mtime_ns == 2
    with opened(top / "read-only", os.O_RDONLY) as fd:
        os.utime(fd, ns=(3, 4))
        assert os.fstat(fd).st_mtime_ns == os.stat(top / "read-only").st_mtime_ns == 4


@on_files
def far_times(top: Path) -> None:
    """Times before 1970 and after 2106 are kept."""
    for seconds in (-1, -1_000_000_000, 0, 4_300_000_000, 6_000_000_000):
        utimensat(top / "file", (seconds, 1), (seconds, 999_999_999))
        assert os.stat(top / "file").st_mtime_ns == seconds * 1_000_000_000 + 999_999_999, seconds
        assert os.stat(top / "file").st_atime_ns == seconds * 1_000_000_000 + 1, seconds


@on_files
def written_files_are_new(top: Path) -> None:
    """Writing and cutting set both times of a file; reading sets neither."""
    path = top / "file"
    assert changed(path, path.read_bytes) == (False, False)
    with opened(path, os.O_RDWR) as fd:
        assert changed(path, lambda: os.write(fd, b"x")) == (True, True)
        assert is_new(os.stat(path).st_mtime_ns)
        assert changed(path, lambda: os.read(fd, 1)) == (False, False)
        os.utime(path, ns=(1, 1))
        assert changed(path, lambda: os.ftruncate(fd, 9)) == (True, True)
        assert changed(path, lambda: os.pwrite(fd, b"x", 3)) == (True, True)
    os.utime(path, ns=(1, 1))
    assert changed(path, lambda: os.truncate(path, 3)) == (True, True)
    os.utime(path, ns=(1, 1))
    assert changed(path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))) == (True, True)


@on_files
def opened_and_closed(top: Path) -> None:
    """Opening a file for writing without writing changes no times."""
    path = top / "file"
    assert changed(path, lambda: os.close(os.open(path, os.O_RDWR)))[0] is False
    assert os.stat(path).st_mtime_ns == LONG_AGO and path.read_bytes() == CONTENT


@on_files
def changed_attributes(top: Path) -> None:
    """Mode, owner, attributes, links and times of a file set its change time alone."""
    path = top / "file"
    for does in (
        lambda: os.chmod(path, 0o600), lambda: os.chown(path, os.getuid(), os.getgid()),
        lambda: os.setxattr(path, "user.new", b"x"), lambda: os.removexattr(path, "user.new"),
        lambda: os.link(path, top / "new"), lambda: os.unlink(top / "new"),
        lambda: os.utime(path, ns=(LONG_AGO, LONG_AGO)),
    ):  # fmt: skip
        assert changed(path, does) == (False, True), f"line {does.__code__.co_firstlineno} {does.__code__.co_names}"


@on_files
def renamed_files_keep_their_times(top: Path) -> None:
    """Renaming leaves the modification time of a file."""
    os.rename(top / "file", top / "full/new")
    assert os.stat(top / "full/new").st_mtime_ns == LONG_AGO


@on_files
def changed_directories_are_new(top: Path) -> None:
    """Making, linking, moving and removing names set the times of a directory."""
    directory = top / "full"
    for does in (
        lambda: (directory / "new").write_bytes(b"x"), lambda: os.unlink(directory / "new"),
        lambda: os.mkdir(directory / "new"), lambda: os.rmdir(directory / "new"),
        lambda: os.symlink("x", directory / "new"), lambda: os.link(top / "other", directory / "second"),
        lambda: os.rename(directory / "new", directory / "third"), lambda: os.rename(directory / "third", top / "out"),
        lambda: os.rename(top / "out", directory / "in"), lambda: os.rename(top / "other", directory / "in"),
        lambda: os.mkfifo(directory / "pipe"), lambda: os.unlink(directory / "inside"),
    ):  # fmt: skip
        assert changed(directory, does) == (True, True), f"line {does.__code__.co_firstlineno} {does.__code__.co_names}"
        assert is_new(os.stat(directory).st_mtime_ns)


@on_files
def other_directories_are_not(top: Path) -> None:
    """What is done to a file, and to names deeper down, does not set the times of a directory."""
    directory = top / "full"
    for does in (
        lambda: (directory / "inside").write_bytes(b"written"), lambda: os.chmod(directory / "inside", 0o600),
        lambda: (directory / "deeper/new").write_bytes(b"x"), lambda: os.unlink(directory / "deeper/bottom"),
        lambda: os.listdir(directory), lambda: (directory / "inside").read_bytes(),
    ):  # fmt: skip
        assert changed(directory, does)[0] is False, f"line {does.__code__.co_firstlineno} {does.__code__.co_names}"
    assert os.stat(directory).st_mtime_ns == LONG_AGO
    assert os.stat(top).st_mtime_ns == LONG_AGO


@behaviour
def what_is_made_is_new(top: Path) -> None:
    """What was made just now has the times of now."""
    (top / "file").write_bytes(b"x")
    os.mkdir(top / "directory")
    os.symlink("x", top / "link")
    os.mkfifo(top / "pipe")
    for path in top.iterdir():
        status = os.lstat(path)
        assert is_new(status.st_mtime_ns) and is_new(status.st_ctime_ns) and is_new(status.st_atime_ns), path.name


@on_files
def mapped_files_are_new(top: Path) -> None:
    """Writing by way of a mapping sets the times, at the latest when it is synced."""
    with opened(top / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory:
        memory[0:1] = b"x"
        memory.flush()
        assert is_new(os.fstat(fd).st_mtime_ns)
    assert is_new(os.stat(top / "file").st_mtime_ns)
