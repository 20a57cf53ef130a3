"""mkdir(2), listing directories, and watching them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.kernel.posix.calls import (
    RawEntry,
    child_does,
    getdents,
    inotify_add_watch,
    inotify_events,
    inotify_init,
    opened,
)
from tests.kernel.posix.table import behaviour, fails, on_files

LAID = [
    "dangling", "empty", "fifo", "file", "first", "full", "link", "other", "read-only", "script", "second", "sparse",
]  # fmt: skip
IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_ISDIR, IN_DELETE_SELF = 0x100, 0x200, 0x40000000, 0x400


def raw(directory: int, room: int = 4096) -> list[RawEntry]:
    """All entries from where the descriptor is."""
    found = []
    while entries := getdents(directory, room):
        found += entries
    return found


@on_files
def listed(top: Path) -> None:
    """A listing has every name once, and the dots."""
    with opened(top, os.O_RDONLY) as fd:
        assert sorted(entry.name.decode() for entry in raw(fd)) == [".", "..", *LAID]
    assert sorted(os.listdir(top / "empty")) == [] and sorted(os.listdir(top / "full")) == ["deeper", "inside"]


@on_files
def types_are_listed(top: Path) -> None:
    """A listing tells of each name what it is, as lstat(2) does, or that it does not know."""
    wanted = {"file": 8, "full": 4, "link": 10, "fifo": 1, "empty": 4, "dangling": 10, ".": 4, "..": 4}
    with opened(top, os.O_RDONLY) as fd:
        for entry in raw(fd):
            assert entry.type in (0, wanted.get(entry.name.decode(), 8)), entry


@on_files
def numbers_are_listed(top: Path) -> None:
    """A listing tells of each name the inode number that lstat(2) tells."""
    os.chmod(top / "other", 0o600)
    (top / "new").write_bytes(b"x")
    with opened(top, os.O_RDONLY) as fd:
        for entry in raw(fd):
            if entry.name != b"..":
                assert entry.ino == os.lstat(os.path.join(os.fsencode(top), entry.name)).st_ino, entry


@behaviour
def large_directories(top: Path) -> None:
    """Three thousand names are listed, each once, with buffers small and large."""
    names = {f"name number {number}" for number in range(3000)}
    for name in names:
        os.close(os.open(top / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    for room in (512, 1 << 16):
        with opened(top, os.O_RDONLY) as fd:
            found = [entry.name.decode() for entry in raw(fd, room)]
        assert len(found) == 3002 and set(found) == names | {".", ".."}
    for name in names:
        os.unlink(top / name)
    assert os.listdir(top) == []


@behaviour
def listed_while_it_changes(top: Path) -> None:
    """Names that are there all the time are listed once, whatever comes and goes meanwhile."""
    for number in range(400):
        (top / f"stays {number}").write_bytes(b"")
        (top / f"goes {number}").write_bytes(b"")
    with opened(top, os.O_RDONLY) as fd:
        found: list[str] = []
        number = 0
        while entries := getdents(fd, 1024):
            found += [entry.name.decode() for entry in entries]
            for _ in range(20):
                if number < 400:
                    os.unlink(top / f"goes {number}")
                    (top / f"comes {number}").write_bytes(b"")
                    number += 1
    stays = [name for name in found if name.startswith("stays")]
    assert len(stays) == len(set(stays)) == 400, f"{len(stays)}, {len(set(stays))} different ones"
    assert len(found) == len(set(found)), "a name was listed twice"


@behaviour
def places_in_a_listing(top: Path) -> None:
    """A place in a listing (telldir) can be returned to (seekdir), and what follows is the same."""
    for number in range(200):
        (top / str(number)).write_bytes(b"")
    with opened(top, os.O_RDONLY) as fd:
        entries = raw(fd, 1024)
        assert len(entries) == 202
        for place in (0, 1, 5, 100, 150, 200):
            os.lseek(fd, entries[place].offset, os.SEEK_SET)
            assert [entry.name for entry in raw(fd, 1024)] == [entry.name for entry in entries[place + 1 :]], place
        os.lseek(fd, 0, os.SEEK_SET)
        assert raw(fd, 1024) == entries


@on_files
def listed_again(top: Path) -> None:
    """Who goes back to the beginning of a listing sees what has changed."""
    with opened(top, os.O_RDONLY) as fd:
        raw(fd)
        (top / "new").write_bytes(b"")
        os.unlink(top / "other")
        os.rename(top / "file", top / "renamed")
        os.lseek(fd, 0, os.SEEK_SET)
        found = sorted(entry.name.decode() for entry in raw(fd))
    assert found == sorted([".", "..", *(set(LAID) - {"file", "other"}), "new", "renamed"])


@on_files
def two_listings(top: Path) -> None:
    """Two listings of one directory do not disturb each other."""
    with opened(top, os.O_RDONLY) as one, opened(top, os.O_RDONLY) as two:
        first = getdents(one, 128)
        assert sorted(entry.name.decode() for entry in raw(two, 128)) == [".", "..", *LAID]
        assert sorted(entry.name.decode() for entry in first + raw(one, 128)) == [".", "..", *LAID]


@on_files
def what_is_not_made(top: Path) -> None:
    """mkdir(2) replaces nothing, and makes nothing above."""
    for name in ("file", "empty", "link", "dangling", "fifo", "."):
        with fails(errno.EEXIST):
            os.mkdir(top / name)
    with fails(errno.ENOENT):
        os.mkdir(top / "none/new")
    with fails(errno.ENOTDIR):
        os.mkdir(top / "file/new")
    with fails(errno.ENOENT):
        os.mkdir("")
    os.mkdir(f"{top}/new/")
    assert stat.S_ISDIR(os.stat(top / "new").st_mode) and os.listdir(top / "new") == []


@on_files
def made_in_a_directory(top: Path) -> None:
    """Things of every kind can be made in directories, old and new."""
    os.mkdir(top / "full/deeper/new")
    os.mkdir(top / "empty/new")
    (top / "full/deeper/new/file").write_bytes(b"x")
    os.symlink("x", top / "full/link")
    os.mkfifo(top / "empty/pipe")
    os.link(top / "file", top / "empty/second")
    assert sorted(os.listdir(top / "empty")) == ["new", "pipe", "second"]
    assert sorted(os.listdir(top / "full")) == ["deeper", "inside", "link"]
    assert sorted(os.listdir(top / "full/deeper")) == ["bottom", "new"]


@on_files
def parents(top: Path) -> None:
    """`..` is the directory above, in paths and in listings."""
    assert os.path.samefile(top / "full/deeper/..", top / "full") and os.path.samefile(top / "full/..", top)
    os.chdir(top / "full/deeper")
    assert os.getcwd() == str(top / "full/deeper")
    os.chdir("..")
    assert os.getcwd() == str(top / "full") and Path("inside").read_bytes() == b"inside\n"
    with opened(top / "full/deeper", os.O_RDONLY) as fd:
        numbers = {entry.name: entry.ino for entry in raw(fd)}
    assert numbers[b".."] == os.stat(top / "full").st_ino and numbers[b"."] == os.stat(top / "full/deeper").st_ino


@behaviour
def watched(top: Path) -> None:
    """inotify(7) tells of what is made, written, moved and removed in a directory."""
    fd = inotify_init()
    inotify_add_watch(fd, top, 0xFFF)
    (top / "file").write_bytes(b"x")
    assert {(IN_CREATE, b"file"), (IN_MODIFY, b"file"), (IN_CLOSE_WRITE, b"file")} <= set(inotify_events(fd))
    os.chmod(top / "file", 0o600)
    assert (IN_ATTRIB, b"file") in inotify_events(fd)
    os.mkdir(top / "directory")
    assert (IN_CREATE | IN_ISDIR, b"directory") in inotify_events(fd)
    os.rename(top / "file", top / "moved")
    assert inotify_events(fd) == [(IN_MOVED_FROM, b"file"), (IN_MOVED_TO, b"moved")]
    assert child_does(lambda: os.unlink(top / "moved")) == 0
    assert (IN_DELETE, b"moved") in inotify_events(fd)
    os.rmdir(top / "directory")
    assert (IN_DELETE | IN_ISDIR, b"directory") in inotify_events(fd)
    os.close(fd)


@on_files
def watched_files(top: Path) -> None:
    """inotify(7) tells of what another process does to a file that was there before."""
    fd = inotify_init()
    inotify_add_watch(fd, top / "file", 0xFFF)
    inotify_add_watch(fd, top / "full", 0xFFF)
    assert child_does(lambda: os.truncate(top / "file", 10)) == 0
    assert (IN_MODIFY, b"") in inotify_events(fd)
    with open(top / "file", "ab") as file:
        file.write(b"x")
    masks = [mask for mask, _name in inotify_events(fd)]
    assert IN_MODIFY in masks and IN_CLOSE_WRITE in masks
    (top / "full/inside").write_bytes(b"x")
    assert (IN_MODIFY, b"inside") in inotify_events(fd)
    os.unlink(top / "full/inside")
    assert (IN_DELETE, b"inside") in inotify_events(fd)
    os.unlink(top / "file")
    masks = [mask for mask, _name in inotify_events(fd)]
    assert IN_DELETE_SELF in masks, masks
    os.close(fd)
