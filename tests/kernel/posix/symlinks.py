"""symlink(2) and readlink(2)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.kernel.posix.calls import opened
from tests.kernel.posix.table import CONTENT, LONG_AGO, behaviour, fails, on_files


@on_files
def read_links(top: Path) -> None:
    """A link's target is what it was made with, and as long as lstat(2) says."""
    assert os.readlink(top / "link") == "file" and os.readlink(top / "dangling") == "nowhere"
    status = os.lstat(top / "dangling")
    assert status.st_size == 7 and stat.S_ISLNK(status.st_mode) and status.st_mtime_ns == LONG_AGO
    assert (top / "link").read_bytes() == CONTENT
    with fails(errno.EINVAL):
        os.readlink(top / "file")
    with fails(errno.EINVAL):
        os.readlink(top / "full")


@behaviour
def long_targets(top: Path) -> None:
    """A target can have 4095 bytes, and no more."""
    for length in (1, 59, 60, 1000, 4094, 4095):
        target = ("x/" * 2048)[:length]
        os.symlink(target, top / f"link{length}")
        assert os.readlink(top / f"link{length}") == target and os.lstat(top / f"link{length}").st_size == length
    with fails(errno.ENAMETOOLONG):
        os.symlink("x" * 4096, top / "too-long")
    with fails(errno.ENOENT):
        os.symlink("", top / "empty")
    assert not os.path.lexists(top / "too-long")


@behaviour
def targets_of_any_bytes(top: Path) -> None:
    """A target is bytes, whatever they are."""
    target = bytes(range(1, 256))
    os.symlink(target, os.fsencode(top / "link"))
    assert os.readlink(os.fsencode(top / "link")) == target


@on_files
def no_name_is_taken_by_a_link(top: Path) -> None:
    """symlink(2) replaces nothing."""
    for name in ("file", "empty", "link", "dangling"):
        with fails(errno.EEXIST):
            os.symlink("x", top / name)
    with fails(errno.ENOENT):
        os.symlink("x", top / "none/new")
    with fails(errno.ENOTDIR):
        os.symlink("x", top / "file/new")


@behaviour
def loops(top: Path) -> None:
    """Links that lead in a circle are ELOOP; thirty in a row are followed."""
    os.symlink("b", top / "a")
    os.symlink("a", top / "b")
    os.symlink("self", top / "self")
    for path in ("a", "self", "self/x"):
        with fails(errno.ELOOP):
            os.stat(top / path)
        with fails(errno.ELOOP):
            os.open(top / path, os.O_RDONLY | os.O_CREAT)
    (top / "0").write_bytes(b"found")
    for number in range(30):
        os.symlink(str(number), top / str(number + 1))
    assert (top / "30").read_bytes() == b"found"


@on_files
def links_to_directories(top: Path) -> None:
    """A link to a directory leads into it, and with a slash behind it is the directory."""
    (top / "way").symlink_to("full/deeper")
    assert (top / "way/bottom").read_bytes() == b"bottom\n"
    assert (top / "way/../inside").read_bytes() == b"inside\n"
    assert stat.S_ISDIR(os.lstat(f"{top}/way/").st_mode)
    (top / "way/new").write_bytes(b"new")
    assert (top / "full/deeper/new").read_bytes() == b"new"


@on_files
def written_through_a_link(top: Path) -> None:
    """What is written, cut and set through a link happens to what it points to."""
    with open(top / "link", "r+b") as file:
        file.write(b"written")
    os.chmod(top / "link", 0o600)
    os.truncate(top / "link", 9)
    assert (top / "file").read_bytes() == b"written\n0" and os.readlink(top / "link") == "file"
    assert stat.S_IMODE(os.stat(top / "file").st_mode) == 0o600


@on_files
def times_of_links(top: Path) -> None:
    """Times and owner of a link itself can be set."""
    os.utime(top / "link", ns=(1_000_000_001, 2_000_000_002), follow_symlinks=False)
    os.chown(top / "link", os.getuid(), os.getgid(), follow_symlinks=False)
    assert os.lstat(top / "link").st_mtime_ns == 2_000_000_002
    assert os.stat(top / "link").st_mtime_ns == LONG_AGO
    assert os.readlink(top / "link") == "file"


@on_files
def links_are_replaced(top: Path) -> None:
    """A link is pointed elsewhere by a new one that takes its place."""
    os.symlink("other", top / "new")
    os.rename(top / "new", top / "link")
    assert os.readlink(top / "link") == "other" and (top / "link").read_bytes() == b"other\n"
    os.unlink(top / "link")
    os.symlink("full/inside", top / "link")
    assert (top / "link").read_bytes() == b"inside\n"


@behaviour
def modes_of_links(top: Path) -> None:
    """A link's mode is 0777, whatever the umask, and it is not in the way."""
    os.umask(0o077)
    os.symlink("target", top / "link")
    assert stat.S_IMODE(os.lstat(top / "link").st_mode) == 0o777
    (top / "target").write_bytes(b"x")
    with opened(top / "link", os.O_RDONLY) as fd:
        assert os.read(fd, 2) == b"x"
