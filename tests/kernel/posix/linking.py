"""link(2): files with several names."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.kernel.posix.calls import AT_SYMLINK_FOLLOW, linkat, opened
from tests.kernel.posix.table import CONTENT, behaviour, fails, on_files


@on_files
def linked(top: Path) -> None:
    """A second name shows the same file, which counts its names."""
    os.link(top / "file", top / "new")
    one, two = os.stat(top / "file"), os.stat(top / "new")
    assert (one.st_ino, one.st_nlink) == (two.st_ino, two.st_nlink) and one.st_nlink == 2
    assert (top / "new").read_bytes() == CONTENT


@on_files
def written_by_one_name(top: Path) -> None:
    """What is written, cut, set by one name is seen by the other."""
    os.link(top / "file", top / "new")
    with open(top / "new", "ab") as file:
        file.write(b"more")
    assert (top / "file").read_bytes() == CONTENT + b"more"
    os.truncate(top / "file", 5)
    assert (top / "new").read_bytes() == CONTENT[:5]
    os.chmod(top / "new", 0o600)
    assert stat.S_IMODE(os.stat(top / "file").st_mode) == 0o600
    os.setxattr(top / "file", "user.key", b"x")
    assert os.getxattr(top / "new", "user.key") == b"x"
    os.utime(top / "new", ns=(1, 2))
    assert os.stat(top / "file").st_mtime_ns == 2


@on_files
def mapped_page_of_two_names(top: Path) -> None:
    """What was read by one name, and is written by the other, is read anew."""
    os.link(top / "file", top / "new")
    with opened(top / "file", os.O_RDONLY) as reader:
        assert os.read(reader, 4) == CONTENT[:4]
        for number in range(5):
            with open(top / "new", "r+b") as file:
                file.write(b"%d" % number)
            assert os.pread(reader, 1, 0) == b"%d" % number
            assert (top / "file").read_bytes()[:1] == b"%d" % number


@on_files
def one_name_is_removed(top: Path) -> None:
    """A file lives on by its other names, for those that have it open too."""
    os.link(top / "file", top / "new")
    with opened(top / "file", os.O_RDWR) as fd:
        os.unlink(top / "file")
        assert os.fstat(fd).st_nlink == os.stat(top / "new").st_nlink == 1
        os.write(fd, b"written")
        assert (top / "new").read_bytes() == b"written" + CONTENT[7:]
        os.fchmod(fd, 0o600)
        assert stat.S_IMODE(os.stat(top / "new").st_mode) == 0o600
        os.unlink(top / "new")
        assert os.fstat(fd).st_nlink == 0 and os.pread(fd, 7, 0) == b"written"


@on_files
def one_name_is_renamed(top: Path) -> None:
    """Names of one file are moved one by one."""
    os.link(top / "file", top / "full/new")
    os.rename(top / "file", top / "empty/moved")
    assert os.path.samefile(top / "full/new", top / "empty/moved")
    with open(top / "full/new", "ab") as file:
        file.write(b"more")
    assert (top / "empty/moved").read_bytes() == CONTENT + b"more" and not (top / "file").exists()


@on_files
def linked_while_open(top: Path) -> None:
    """Who has a file open for reading while it gets a second name sees what is written by that."""
    with opened(top / "file", os.O_RDONLY) as fd:
        assert os.read(fd, 4) == CONTENT[:4]
        os.link(top / "file", top / "new")
        with open(top / "new", "r+b") as file:
            file.write(b"written")
        assert os.pread(fd, 8, 0) == b"written\n" and os.fstat(fd).st_nlink == 2


@on_files
def names_of_one_file(top: Path) -> None:
    """The two names of a file that has them for long are one file when it is written to."""
    assert os.path.samefile(top / "first", top / "second") and os.stat(top / "first").st_nlink == 2
    with open(top / "first", "ab") as file:
        file.write(b"more")
    assert (top / "second").read_bytes() == b"one file\nmore"


@on_files
def names_of_one_file_are_removed(top: Path) -> None:
    """When one of the names of a file goes, the other is all that is left of it."""
    os.unlink(top / "first")
    assert (top / "second").read_bytes() == b"one file\n"
    os.link(top / "second", top / "first")
    assert os.path.samefile(top / "first", top / "second")


@on_files
def what_is_not_linked(top: Path) -> None:
    """Directories are not linked, and no name is taken."""
    with fails(errno.EPERM):
        os.link(top / "full", top / "new")
    for name in ("other", "empty", "dangling", "file"):
        with fails(errno.EEXIST):
            os.link(top / "file", top / name)
    with fails(errno.ENOENT):
        os.link(top / "none", top / "new")
    with fails(errno.ENOENT):
        os.link(top / "file", top / "none/new")
    with fails(errno.ENOTDIR):
        os.link(top / "file", top / "other/new")
    assert "new" not in os.listdir(top) and os.stat(top / "file").st_nlink == 1


@on_files
def links_to_links(top: Path) -> None:
    """link(2) links a symbolic link itself, or what it points to if it is asked to."""
    linkat(top / "link", top / "same")
    assert os.readlink(top / "same") == "file" and os.lstat(top / "link").st_nlink == 2
    linkat(top / "link", top / "target", AT_SYMLINK_FOLLOW)
    assert os.path.samefile(top / "target", top / "file") and os.stat(top / "file").st_nlink == 2
    with fails(errno.ENOENT):
        linkat(top / "dangling", top / "x", AT_SYMLINK_FOLLOW)


@on_files
def pipes_have_names(top: Path) -> None:
    """A FIFO can have a second name."""
    os.link(top / "fifo", top / "new")
    assert os.stat(top / "new").st_nlink == 2 and (top / "new").is_fifo()


@on_files
def linked_by_descriptor(top: Path) -> None:
    """What is open can get a further name by way of /proc."""
    with opened(top / "file", os.O_RDONLY) as fd:
        linkat(f"/proc/self/fd/{fd}", top / "new", AT_SYMLINK_FOLLOW)
        assert os.path.samefile(top / "new", top / "file") and os.fstat(fd).st_nlink == 2


@behaviour
def many_names(top: Path) -> None:
    """A file with sixty names in three directories loses them one by one."""
    (top / "file").write_bytes(b"content")
    names = []
    for directory in ("a", "b", "c"):
        (top / directory).mkdir()
        for number in range(20):
            names.append(top / directory / str(number))
            os.link(top / "file", names[-1])
    assert os.stat(top / "file").st_nlink == 61
    for left, name in zip(range(60, 0, -1), names, strict=True):
        os.unlink(name)
        assert os.stat(top / "file").st_nlink == left
    assert (top / "file").read_bytes() == b"content"


@behaviour
def names_in_renamed_directories(top: Path) -> None:
    """Names of one file are found when the directories that they are in are renamed."""
    for directory in ("a", "b"):
        (top / directory).mkdir()
    (top / "a/file").write_bytes(b"x")
    os.link(top / "a/file", top / "b/name")
    os.rename(top / "a", top / "c")
    with open(top / "b/name", "ab") as file:
        file.write(b"y")
    assert (top / "c/file").read_bytes() == b"xy"
    os.unlink(top / "b/name")
    with open(top / "c/file", "ab") as file:
        file.write(b"z")
    os.rename(top / "c/file", top / "b/name")
    assert (top / "b/name").read_bytes() == b"xyz" and os.stat(top / "b/name").st_nlink == 1


@behaviour
def links_of_directories(top: Path) -> None:
    """A directory counts itself and what is below it, or always one."""
    os.mkdir(top / "directory")
    few = os.stat(top / "directory").st_nlink
    for name in ("a", "b", "c"):
        os.mkdir(top / "directory" / name)
    (top / "directory/file").write_bytes(b"")
    many = os.stat(top / "directory").st_nlink
    assert (few, many) in ((2, 5), (1, 1))
    os.rename(top / "directory/a", top / "a")
    os.rmdir(top / "directory/b")
    assert os.stat(top / "directory").st_nlink == (3 if many == 5 else 1)
