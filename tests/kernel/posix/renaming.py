"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.kernel.posix.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, opened, rename_with, start_child, wait_for
from tests.kernel.posix.table import CONTENT, LONG_AGO, behaviour, fails, on_files


@on_files
def renamed(top: Path) -> None:
    """A renamed file is the same under the new name, and gone under the old one."""
    before = os.stat(top / "file")
    os.rename(top / "file", top / "new")
    after = os.stat(top / "new")
    assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)
    assert after.st_mtime_ns == LONG_AGO
    assert (top / "new").read_bytes() == CONTENT and os.getxattr(top / "new", "user.laid") == b"value"
    assert not (top / "file").exists() and "file" not in os.listdir(top) and "new" in os.listdir(top)


@on_files
def renamed_onto_a_file(top: Path) -> None:
    """What is renamed takes the place of a file."""
    number = os.stat(top / "other").st_ino
    os.rename(top / "other", top / "file")
    assert (top / "file").read_bytes() == b"other\n" and os.stat(top / "file").st_ino == number
    assert os.listdir(top).count("file") == 1 and not (top / "other").exists()


@on_files
def new_file_renamed_onto_a_file(top: Path) -> None:
    """The way in which editors save: a new file takes the place of the old one."""
    (top / "file.new").write_bytes(b"saved")
    with opened(top / "file", os.O_RDONLY) as old:
        os.rename(top / "file.new", top / "file")
        assert (top / "file").read_bytes() == b"saved"
        assert os.read(old, 20000) == CONTENT


@on_files
def renamed_onto_an_open_file(top: Path) -> None:
    """Who has the replaced file open keeps it, without a name."""
    with opened(top / "file", os.O_RDWR) as fd:
        os.rename(top / "other", top / "file")
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"written", 0)
        assert os.pread(fd, 20000, 0) == b"written" + CONTENT[7:]
    assert (top / "file").read_bytes() == b"other\n"


@on_files
def renamed_while_open(top: Path) -> None:
    """What is open is the same file after it was renamed."""
    with opened(top / "file", os.O_RDWR) as fd:
        os.rename(top / "file", top / "new")
        os.write(fd, b"written")
        assert (top / "new").read_bytes() == b"written" + CONTENT[7:]
        assert os.fstat(fd).st_nlink == 1
        assert os.readlink(f"/proc/self/fd/{fd}") == str(top / "new")


@behaviour
def directory_onto_an_empty_one(top: Path) -> None:
    """A directory takes the place of an empty one."""
    (top / "one/in").mkdir(parents=True)
    (top / "two").mkdir()
    os.rename(top / "one", top / "two")
    assert os.listdir(top) == ["two"] and os.listdir(top / "two") == ["in"]


@on_files
def new_directory_onto_an_empty_one(top: Path) -> None:
    """A new directory takes the place of an empty one, and of one that was emptied."""
    (top / "one/in").mkdir(parents=True)
    os.rename(top / "one", top / "empty")
    assert os.listdir(top / "empty") == ["in"]
    for path in ("full/inside", "full/deeper/bottom"):
        os.unlink(top / path)
    os.rmdir(top / "full/deeper")
    (top / "two").mkdir()
    os.rename(top / "two", top / "full")
    assert os.listdir(top / "full") == [] and not {"one", "two"} & set(os.listdir(top))


@on_files
def directory_onto_a_full_one(top: Path) -> None:
    """A directory does not take the place of one that has something in it."""
    os.mkdir(top / "new")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(top / "new", top / "full")
    assert sorted(os.listdir(top / "full")) == ["deeper", "inside"]


@on_files
def directories_and_files_do_not_mix(top: Path) -> None:
    """A directory does not take the place of a file, nor a file that of a directory."""
    os.mkdir(top / "new")
    with fails(errno.ENOTDIR):
        os.rename(top / "new", top / "file")
    with fails(errno.EISDIR):
        os.rename(top / "file", top / "empty")
    with fails(errno.ENOTDIR):
        os.rename(top / "new", top / "link")
    with fails(errno.ENOTDIR):
        os.rename(f"{top}/file/", top / "x")
    assert (top / "file").read_bytes() == CONTENT and os.listdir(top / "empty") == []


@on_files
def into_itself(top: Path) -> None:
    """A directory can't be moved below itself, nor onto one that it is in."""
    os.makedirs(top / "new/in/deep")
    for directory in ("new", "full"):
        below = next(path.name for path in (top / directory).iterdir() if path.is_dir())
        with fails(errno.EINVAL):
            os.rename(top / directory, top / directory / "x")
        with fails(errno.EINVAL):
            os.rename(top / directory, top / directory / below / "x")
        with fails(errno.ENOTEMPTY, errno.EEXIST):
            os.rename(top / directory / below, top / directory)


@behaviour
def two_names_of_one_file(top: Path) -> None:
    """Renaming one name of a file to another of its names does nothing."""
    (top / "one").write_bytes(b"x")
    os.link(top / "one", top / "two")
    os.rename(top / "one", top / "two")
    assert sorted(os.listdir(top)) == ["one", "two"] and os.stat(top / "one").st_nlink == 2


@on_files
def onto_itself(top: Path) -> None:
    """Renaming a name to itself does nothing."""
    for name in ("file", "full", "link", "dangling", "fifo"):
        os.rename(top / name, top / name)
    assert (top / "file").read_bytes() == CONTENT and sorted(os.listdir(top / "full")) == ["deeper", "inside"]


@on_files
def noreplace(top: Path) -> None:
    """RENAME_NOREPLACE leaves what is there, also a dangling link."""
    for name in ("file", "empty", "dangling"):
        with fails(errno.EEXIST):
            rename_with(top / "other", top / name, RENAME_NOREPLACE)
    rename_with(top / "other", top / "new", RENAME_NOREPLACE)
    assert (top / "new").read_bytes() == b"other\n" and not (top / "other").exists()
    os.unlink(top / "file")
    rename_with(top / "new", top / "file", RENAME_NOREPLACE)
    assert (top / "file").read_bytes() == b"other\n"


@on_files
def exchanged_files(top: Path) -> None:
    """RENAME_EXCHANGE swaps two files."""
    rename_with(top / "file", top / "other", RENAME_EXCHANGE)
    assert (top / "file").read_bytes() == b"other\n" and (top / "other").read_bytes() == CONTENT


@behaviour
def exchanged_file_and_directory(top: Path) -> None:
    """RENAME_EXCHANGE swaps a file and a directory, of different directories."""
    (top / "a/directory/in").mkdir(parents=True)
    (top / "b").mkdir()
    (top / "b/file").write_bytes(b"file")
    rename_with(top / "a/directory", top / "b/file", RENAME_EXCHANGE)
    assert (top / "a/directory").read_bytes() == b"file" and os.listdir(top / "b/file") == ["in"]
    assert os.path.samefile(top / "b/file/..", top / "b")


@on_files
def exchange_takes_two(top: Path) -> None:
    """RENAME_EXCHANGE of what is not there is ENOENT, with RENAME_NOREPLACE it is EINVAL."""
    with fails(errno.ENOENT):
        rename_with(top / "file", top / "none", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        rename_with(top / "file", top / "other", RENAME_EXCHANGE | RENAME_NOREPLACE)
    assert (top / "file").read_bytes() == CONTENT


@on_files
def to_another_directory(top: Path) -> None:
    """A file can be moved into other directories and back."""
    os.mkdir(top / "new")
    for path in ("new/file", "empty/file", "full/deeper/file", "file"):
        here = next(path for path in top.rglob("file") if path.is_file())
        os.rename(here, top / path)
        assert (top / path).read_bytes() == CONTENT and [*top.rglob("file")] == [top / path]


@on_files
def directory_is_renamed(top: Path) -> None:
    """A directory is renamed with all that is in it."""
    os.rename(top / "full", top / "moved")
    assert (top / "moved/deeper/bottom").read_bytes() == b"bottom\n" and not (top / "full").exists()


@behaviour
def parent_of_a_moved_directory(top: Path) -> None:
    """`..` of a directory that was moved is where it is now."""
    for path in ("one/moved/deep", "two"):
        (top / path).mkdir(parents=True)
    with opened(top / "one/moved", os.O_RDONLY) as fd:
        assert os.stat("..", dir_fd=fd).st_ino == os.stat(top / "one").st_ino
        os.rename(top / "one/moved", top / "two/moved")
        assert os.stat("..", dir_fd=fd).st_ino == os.stat(top / "two").st_ino
        assert os.stat("deep/../..", dir_fd=fd).st_ino == os.stat(top / "two").st_ino


@behaviour
def what_is_below_a_renamed_directory(top: Path) -> None:
    """Files that are open, and working directories, go along with a directory above them."""
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/b/c/file").write_bytes(b"old")
    os.chdir(top / "a/b/c")
    with opened("file", os.O_RDWR) as fd:
        os.rename(top / "a", top / "z")
        os.rename(top / "z/b", top / "y")
        os.write(fd, b"new")
        assert os.getcwd() == str(top / "y/c")
        assert Path("file").read_bytes() == (top / "y/c/file").read_bytes() == b"new"
        Path("second").write_bytes(b"second")
        assert (top / "y/c/second").read_bytes() == b"second"
        with fails(errno.ENOENT):
            os.stat(top / "a/b/c/file")
        os.unlink("file")
        os.write(fd, b"!")
        assert os.pread(fd, 10, 0) == b"new!"


@on_files
def links_are_renamed_themselves(top: Path) -> None:
    """Renaming a link moves the link, and renaming onto one replaces it."""
    os.rename(top / "link", top / "moved")
    assert os.readlink(top / "moved") == "file" and (top / "file").read_bytes() == CONTENT
    os.rename(top / "other", top / "dangling")
    assert not (top / "dangling").is_symlink() and (top / "dangling").read_bytes() == b"other\n"
    os.rename(top / "fifo", top / "pipe")
    assert (top / "pipe").is_fifo()


@on_files
def what_is_not_renamed(top: Path) -> None:
    """Dots are not renamed, nor what is not there."""
    with fails(errno.ENOENT):
        os.rename(top / "none", top / "x")
    with fails(errno.ENOENT):
        os.rename(top / "file", top / "none/x")
    with fails(errno.ENOTDIR):
        os.rename(top / "file", top / "other/x")
    for path in ("full/.", "full/deeper/.."):
        with fails(errno.EBUSY, errno.EINVAL):
            os.rename(f"{top}/{path}", top / "x")
        with fails(errno.EBUSY, errno.EINVAL):
            os.rename(top / "empty", f"{top}/{path}")


@behaviour
def onto_one_of_several_names(top: Path) -> None:
    """A file whose name is taken by another has its other names still."""
    (top / "one").write_bytes(b"old")
    os.link(top / "one", top / "two")
    (top / "new").write_bytes(b"new")
    os.rename(top / "new", top / "one")
    assert (top / "one").read_bytes() == b"new" and (top / "two").read_bytes() == b"old"
    assert os.stat(top / "one").st_nlink == os.stat(top / "two").st_nlink == 1


@on_files
def replaced_under_readers(top: Path) -> None:
    """While a file is replaced again and again, who opens it finds one or the other, whole."""
    (top / "file").write_bytes(b"0" * 5000)

    def replace() -> None:
        for number in range(150):
            (top / "next").write_bytes(b"%d" % (number % 10) * 5000)
            os.rename(top / "next", top / "file")

    child = start_child(replace)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        content = (top / "file").read_bytes()
        assert len(content) == 5000 and len(set(content)) == 1
    assert wait_for(child) == 0


@on_files
def names_that_change_places(top: Path) -> None:
    """Names that are moved on and made anew are each what was done last."""
    os.rename(top / "file", top / "b")
    (top / "file").write_bytes(b"second")
    os.rename(top / "b", top / "c")
    os.rename(top / "file", top / "b")
    (top / "file").write_bytes(b"third")
    os.rename(top / "other", top / "temporary")
    os.rename(top / "file", top / "other")
    os.rename(top / "temporary", top / "file")
    found = {name: (top / name).read_bytes() for name in ("file", "other", "b", "c")}
    assert found == {"file": b"other\n", "other": b"third", "b": b"second", "c": CONTENT}


@behaviour
def looked_for_in_vain_before(top: Path) -> None:
    """A name that was not there a moment ago is found once something was moved to it."""
    (top / "directory").mkdir()
    (top / "one").write_bytes(b"x")
    for target in ("two", "directory/three", "four"):
        assert not (top / target).exists()
        os.rename(top / "one", top / target)
        assert (top / target).exists() and not (top / "one").exists()
        os.rename(top / target, top / "one")
        assert not (top / target).exists()
    os.rename(top / "directory", top / "moved")
    assert not (top / "directory/three").exists() and not (top / "moved/three").exists()


@behaviour
def moving_a_directory_needs_writing_to_it(top: Path) -> None:
    """A directory that can't be written is renamed beside where it is, and not moved elsewhere."""
    (top / "closed/in").mkdir(parents=True)
    (top / "target").mkdir()
    os.chmod(top / "closed", 0o555)
    with fails(errno.EACCES):
        os.rename(top / "closed", top / "target/closed")
    os.rename(top / "closed", top / "renamed")
    os.chmod(top / "renamed", 0o755)
