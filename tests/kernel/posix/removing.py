"""unlink(2) and rmdir(2), and what lives on without a name."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from tests.kernel.posix.calls import AT_SYMLINK_FOLLOW, linkat, opened
from tests.kernel.posix.table import CONTENT, LONG_AGO, behaviour, fails, on_files


@on_files
def unlinked_while_open(top: Path) -> None:
    """An open file without a name can be read, written and cut, and has no links."""
    with opened(top / "file", os.O_RDWR) as fd:
        assert os.fstat(fd).st_nlink == 1
        os.unlink(top / "file")
        assert os.fstat(fd).st_nlink == 0 and not (top / "file").exists()
        assert os.read(fd, 20000) == CONTENT
        os.pwrite(fd, b"written", 0)
        assert os.pread(fd, 8, 0) == b"written\n"
        os.ftruncate(fd, 3)
        assert os.fstat(fd).st_size == 3 and os.pread(fd, 10, 0) == b"wri"


@on_files
def unlinked_while_being_read(top: Path) -> None:
    """A reader of a file without a name reads on, and a new file of that name is another one."""
    with opened(top / "file", os.O_RDONLY) as fd:
        number = os.fstat(fd).st_ino
        os.unlink(top / "file")
        (top / "file").write_bytes(b"another")
        assert os.stat(top / "file").st_ino != number and os.fstat(fd).st_ino == number
        assert os.fstat(fd).st_size == len(CONTENT) and os.read(fd, 20000) == CONTENT
    assert (top / "file").read_bytes() == b"another"


@on_files
def unlinked_has_no_links(top: Path) -> None:
    """A file without a name has no links, for those that have it open for reading as well."""
    with opened(top / "file", os.O_RDONLY) as fd:
        os.unlink(top / "file")
        assert os.fstat(fd).st_nlink == 0


@on_files
def unlinked_with_reader_and_writer(top: Path) -> None:
    """A reader sees what a writer does to a file without a name."""
    with opened(top / "file", os.O_RDONLY) as reader, opened(top / "file", os.O_WRONLY) as writer:
        os.unlink(top / "file")
        os.pwrite(writer, b"written", 0)
        assert os.pread(reader, 8, 0) == b"written\n"
        os.ftruncate(writer, 4)
        assert os.fstat(reader).st_size == 4


@on_files
def unlinked_attributes(top: Path) -> None:
    """Mode, owner and times of a file without a name can be set."""
    with opened(top / "file", os.O_RDWR) as fd:
        os.unlink(top / "file")
        os.fchmod(fd, 0o640)
        os.fchown(fd, os.getuid(), os.getgid())
        os.utime(fd, ns=(5, 7))
        status = os.fstat(fd)
        assert stat.S_IMODE(status.st_mode) == 0o640 and status.st_mtime_ns == 7


@on_files
def unlinked_attributes_of_a_reader(top: Path) -> None:
    """Mode and times of a file without a name can be set by who has it open for reading."""
    with opened(top / "file", os.O_RDONLY) as fd:
        os.unlink(top / "file")
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(5, 7))
        status = os.fstat(fd)
        assert stat.S_IMODE(status.st_mode) == 0o640 and status.st_mtime_ns == 7


@on_files
def unlinked_extended_attributes(top: Path) -> None:
    """Extended attributes of a file without a name can be read and set."""
    with opened(top / "file", os.O_RDWR) as fd:
        os.unlink(top / "file")
        assert os.getxattr(fd, "user.laid") == b"value"
        os.setxattr(fd, "user.new", b"x")
        assert sorted(os.listxattr(fd)) == ["user.laid", "user.new"]
        os.removexattr(fd, "user.laid")
        assert os.listxattr(fd) == ["user.new"]


@on_files
def unlinked_and_opened_again(top: Path) -> None:
    """A file without a name can be opened by way of /proc, for writing too."""
    with opened(top / "file", os.O_RDONLY) as fd:
        os.unlink(top / "file")
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            os.write(again, b"written")
        assert os.pread(fd, 8, 0) == b"written\n"
        with opened(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC):
            pass
        assert os.fstat(fd).st_size == 0


@on_files
def unlinked_and_cut_by_a_reader(top: Path) -> None:
    """Who has a file without a name open for reading can have it cut, by way of /proc."""
    with opened(top / "file", os.O_RDONLY) as fd:
        os.unlink(top / "file")
        os.truncate(f"/proc/self/fd/{fd}", 3)
        assert os.fstat(fd).st_size == 3 and os.pread(fd, 10, 0) == CONTENT[:3]


@on_files
def replaced_attributes_of_a_reader(top: Path) -> None:
    """Mode and times of a file whose name was taken by another can be set, and are not those of the other."""
    with opened(top / "file", os.O_RDONLY) as fd:
        os.rename(top / "other", top / "file")
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(5, 7))
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640 and os.fstat(fd).st_mtime_ns == 7
    status = os.stat(top / "file")
    assert stat.S_IMODE(status.st_mode) == 0o644 and status.st_mtime_ns == LONG_AGO


@on_files
def unlinked_gets_no_name_again(top: Path) -> None:
    """A file that has lost its last name can't be linked."""
    with opened(top / "file", os.O_RDWR) as fd:
        os.unlink(top / "file")
        with fails(errno.ENOENT):
            linkat(f"/proc/self/fd/{fd}", top / "name", AT_SYMLINK_FOLLOW)


@behaviour
def many_unlinked(top: Path) -> None:
    """Many files without names are each what they were."""
    fds = []
    for number in range(50):
        fds.append(os.open(top / "same", os.O_CREAT | os.O_EXCL | os.O_RDWR))
        os.write(fds[-1], b"%d" % number)
        os.unlink(top / "same")
    assert [int(os.pread(fd, 10, 0)) for fd in fds] == list(range(50))
    assert len({os.fstat(fd).st_ino for fd in fds}) == 50
    for fd in fds:
        os.close(fd)


@on_files
def directories_are_not_unlinked(top: Path) -> None:
    """unlink(2) of a directory is EISDIR, as Linux has it, or EPERM."""
    for name in ("empty", "full"):
        with fails(errno.EISDIR, errno.EPERM):
            os.unlink(top / name)
    with fails(errno.ENOTDIR):
        os.unlink(f"{top}/file/")
    with fails(errno.ENOENT):
        os.unlink(top / "none")
    with fails(errno.ENOTDIR):
        os.unlink(top / "file/none")


@on_files
def directories_that_are_not_removed(top: Path) -> None:
    """rmdir(2) takes empty directories only, and neither files, links nor dots."""
    for name, *numbers in (
        ("full", errno.ENOTEMPTY, errno.EEXIST), ("file", errno.ENOTDIR), ("none", errno.ENOENT),
        ("empty/.", errno.EINVAL), ("full/deeper/..", errno.ENOTEMPTY, errno.EEXIST), ("link", errno.ENOTDIR),
        ("file/x", errno.ENOTDIR),
    ):  # fmt: skip
        with fails(*numbers):
            os.rmdir(f"{top}/{name}")
    (top / "way").symlink_to("empty")
    with fails(errno.ENOTDIR):
        os.rmdir(top / "way")
    os.rmdir(f"{top}/empty/")
    assert not (top / "empty").exists()


@on_files
def emptied_and_removed(top: Path) -> None:
    """A directory can be removed once what was in it is gone."""
    os.unlink(top / "full/inside")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir(top / "full")
    os.unlink(top / "full/deeper/bottom")
    os.rmdir(top / "full/deeper")
    assert os.listdir(top / "full") == []
    os.rmdir(top / "full")
    assert "full" not in os.listdir(top)


@on_files
def removed_working_directory(top: Path) -> None:
    """Who works in a directory that is removed finds it empty, and can make nothing in it."""
    os.chdir(top / "empty")
    os.rmdir(top / "empty")
    with fails(errno.ENOENT):
        os.getcwd()
    with fails(errno.ENOENT):
        os.open("new", os.O_CREAT | os.O_WRONLY)
    with fails(errno.ENOENT):
        os.mkdir("new")
    assert os.listdir(".") == []
    os.stat(".")


@on_files
def removed_directory_that_is_open(top: Path) -> None:
    """An open directory that was removed still answers, and one of its name is another one."""
    with opened(top / "empty", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir(top / "empty")
        os.mkdir(top / "empty")
        (top / "empty/new").write_bytes(b"")
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        assert os.fstat(fd).st_ino != os.stat(top / "empty").st_ino
        assert os.listdir(fd) == []
        with fails(errno.ENOENT):
            os.open("other", os.O_CREAT | os.O_WRONLY, dir_fd=fd)


@behaviour
def removal_needs_the_directory_only(top: Path) -> None:
    """What can't be read can be removed; what is in a directory that can't be written, can't."""
    (top / "secret").write_bytes(b"x")
    os.chmod(top / "secret", 0)
    os.unlink(top / "secret")
    (top / "closed").mkdir()
    (top / "closed/file").write_bytes(b"x")
    os.chmod(top / "closed", 0o555)
    with fails(errno.EACCES):
        os.unlink(top / "closed/file")
    with fails(errno.EACCES):
        os.open(top / "closed/new", os.O_CREAT | os.O_WRONLY)
    with fails(errno.EACCES):
        os.mkdir(top / "closed/new")
    with fails(errno.EACCES):
        os.rename(top / "closed/file", top / "file")
    os.chmod(top / "closed", 0o755)


@on_files
def removed_and_made_again(top: Path) -> None:
    """A name that was removed can be anything else afterwards, and nothing of the old is left in it."""
    os.unlink(top / "file")
    os.mkdir(top / "file")
    assert os.listdir(top / "file") == [] and os.listxattr(top / "file") == []
    shutil.rmtree(top / "full")
    os.symlink("other", top / "full")
    assert (top / "full").read_bytes() == b"other\n"
    os.unlink(top / "full")
    os.mkdir(top / "full")
    assert os.listdir(top / "full") == [] and not (top / "full/inside").exists()
    os.mkdir(top / "full/deeper")
    assert os.listdir(top / "full/deeper") == []
    os.unlink(top / "other")
    assert "other" not in os.listdir(top)
    (top / "other").write_bytes(b"again")
    assert (top / "other").read_bytes() == b"again" and os.listdir(top).count("other") == 1


@on_files
def links_are_removed_themselves(top: Path) -> None:
    """Removing a link leaves what it points to."""
    os.unlink(top / "link")
    assert (top / "file").read_bytes() == CONTENT and not os.path.lexists(top / "link")
    os.unlink(top / "dangling")
    os.unlink(top / "fifo")
    assert not {"link", "dangling", "fifo"} & set(os.listdir(top))


@behaviour
def removed_while_listed(top: Path) -> None:
    """Everything of a large tree can be removed while it is being listed."""
    for directory in ("a", "a/b", "c"):
        os.mkdir(top / directory)
        for number in range(350):
            os.close(os.open(top / directory / f"file with a longer name {number}", os.O_CREAT | os.O_WRONLY))
    for directory in ("a/b", "a", "c"):
        with os.scandir(top / directory) as entries:
            for entry in entries:
                os.unlink(entry.path)
        os.rmdir(top / directory)
    assert os.listdir(top) == []


@on_files
def one_of_many_is_removed(top: Path) -> None:
    """Removing and adding names leaves the listing exact."""
    before = set(os.listdir(top))
    os.unlink(top / "other")
    (top / "new").write_bytes(b"")
    os.rmdir(top / "empty")
    assert sorted(os.listdir(top)) == sorted(before - {"other", "empty"} | {"new"})
