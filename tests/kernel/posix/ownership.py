"""chown(2) by somebody who owns the files, and what directories hand on to what is made in them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.kernel.posix.calls import opened
from tests.kernel.posix.table import CONTENT, fails, on_files


@on_files
def given_to_oneself(top: Path) -> None:
    """Who owns a file can give it to themselves, by name, descriptor and link."""
    user, group = os.getuid(), os.getgid()
    os.chown(top / "file", user, group)
    os.chown(top / "full", -1, group)
    os.lchown(top / "dangling", user, -1)
    os.chown(top / "link", -1, -1)
    with opened(top / "other", os.O_RDONLY) as fd:
        os.fchown(fd, user, group)
    for name in ("file", "full", "dangling", "other"):
        status = os.lstat(top / name)
        assert (status.st_uid, status.st_gid) == (user, group)
    assert (top / "file").read_bytes() == CONTENT


@on_files
def given_to_others(top: Path) -> None:
    """Nobody can give files away."""
    for user, group in ((os.getuid() + 1, -1), (0, 0), (-1, os.getgid() + 1)):
        with fails(errno.EPERM, errno.EINVAL):
            os.chown(top / "file", user, group)
    status = os.stat(top / "file")
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())


@on_files
def owners(top: Path) -> None:
    """What somebody makes is theirs, and so is what they made before."""
    (top / "new").write_bytes(b"")
    os.mkdir(top / "directory")
    os.symlink("x", top / "symbolic")
    os.mkfifo(top / "pipe")
    for path in [top, *top.rglob("*")]:
        status = os.lstat(path)
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid()), path.name


@on_files
def set_user_id_is_lost_by_chown(top: Path) -> None:
    """chown(2) takes the set-user-id bit, and set-group-id where the group may run the file."""
    os.chmod(top / "file", 0o6755)
    os.chown(top / "file", os.getuid(), os.getgid())
    assert stat.S_IMODE(os.stat(top / "file").st_mode) == 0o755


@on_files
def set_group_id_is_inherited(top: Path) -> None:
    """A directory made in one with the set-group-id bit has it too, and a file does not."""
    os.chmod(top / "empty", 0o2755)
    os.mkdir(top / "empty/directory", 0o755)
    (top / "empty/file").write_bytes(b"")
    assert stat.S_IMODE(os.stat(top / "empty/directory").st_mode) == 0o2755
    assert stat.S_IMODE(os.stat(top / "empty/file").st_mode) & stat.S_ISGID == 0
    os.mkdir(top / "empty/directory/deeper", 0o700)
    assert stat.S_IMODE(os.stat(top / "empty/directory/deeper").st_mode) == 0o2700
    assert os.stat(top / "empty/directory/deeper").st_gid == os.stat(top / "empty").st_gid
