"""Extended attributes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.kernel.posix.calls import getxattr_into, listxattr_into, opened
from tests.kernel.posix.table import CONTENT, behaviour, fails, on_files


@on_files
def set_and_got(top: Path) -> None:
    """Attributes of files and directories are set, got, listed and removed."""
    os.removexattr(top / "file", "user.laid")
    for name in ("file", "full", "empty"):
        path = top / name
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.two", bytes(range(256)))
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.one", b"other")
        assert sorted(os.listxattr(path)) == ["user.empty", "user.one", "user.two"]
        assert os.getxattr(path, "user.one") == b"other" and os.getxattr(path, "user.empty") == b""
        assert os.getxattr(path, "user.two") == bytes(range(256))
        os.removexattr(path, "user.two")
        assert sorted(os.listxattr(path)) == ["user.empty", "user.one"]
    assert (top / "file").read_bytes() == CONTENT


@on_files
def kept_attributes(top: Path) -> None:
    """Attributes go along when a file is written to, linked and renamed, and not with one that takes its place."""
    with open(top / "file", "ab") as file:
        file.write(b"more")
    os.link(top / "file", top / "new")
    os.rename(top / "new", top / "full/new")
    assert os.getxattr(top / "full/new", "user.laid") == b"value"
    os.rename(top / "other", top / "file")
    assert os.listxattr(top / "file") == []
    os.unlink(top / "full/new")
    (top / "full/new").write_bytes(b"")
    assert os.listxattr(top / "full/new") == []


@on_files
def by_descriptor(top: Path) -> None:
    """Attributes are set by a descriptor, for reading as well."""
    for name in ("file", "full"):
        with opened(top / name, os.O_RDONLY) as fd:
            os.setxattr(fd, "user.new", b"x")
            assert os.getxattr(fd, "user.new") == os.getxattr(top / name, "user.new") == b"x"
            os.removexattr(fd, "user.new")
            assert "user.new" not in os.listxattr(fd)


@on_files
def created_or_replaced(top: Path) -> None:
    """XATTR_CREATE sets what is not there, XATTR_REPLACE what is."""
    with fails(errno.EEXIST):
        os.setxattr(top / "file", "user.laid", b"x", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(top / "file", "user.none", b"x", os.XATTR_REPLACE)
    assert os.getxattr(top / "file", "user.laid") == b"value" and os.listxattr(top / "file") == ["user.laid"]
    os.setxattr(top / "file", "user.laid", b"y", os.XATTR_REPLACE)
    os.setxattr(top / "file", "user.new", b"z", os.XATTR_CREATE)
    assert os.getxattr(top / "file", "user.laid") == b"y" and os.getxattr(top / "file", "user.new") == b"z"


@on_files
def missing_attributes(top: Path) -> None:
    """What is not there is ENODATA."""
    for name in ("file", "full", "other"):
        with fails(errno.ENODATA):
            os.getxattr(top / name, "user.none")
        with fails(errno.ENODATA):
            os.removexattr(top / name, "user.none")
    assert os.listxattr(top / "other") == []


@on_files
def room_for_attributes(top: Path) -> None:
    """A buffer of none asks for the length, too small a one is ERANGE."""
    assert getxattr_into(top / "file", "user.laid", 0) == getxattr_into(top / "file", "user.laid", 100) == 5
    assert getxattr_into(top / "file", "user.laid", 5) == 5
    with fails(errno.ERANGE):
        getxattr_into(top / "file", "user.laid", 4)
    length = listxattr_into(top / "file", 0)
    assert length == len("user.laid") + 1 == listxattr_into(top / "file", length)
    with fails(errno.ERANGE):
        listxattr_into(top / "file", length - 1)


@behaviour
def large_values(top: Path) -> None:
    """A large value is kept whole, or refused as too large with nothing changed."""
    (top / "file").write_bytes(b"")
    os.setxattr(top / "file", "user.key", b"small")
    for size in (1000, 3000, 32768, 65536):
        value = os.urandom(size)
        try:
            os.setxattr(top / "file", "user.key", value)
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.E2BIG) and size > 3000, errno.errorcode[error.errno or 0]
            assert len(os.getxattr(top / "file", "user.key")) < size
        else:
            assert os.getxattr(top / "file", "user.key") == value
    with fails(errno.E2BIG):
        os.setxattr(top / "file", "user.key", bytes(65537))


@behaviour
def many_attributes(top: Path) -> None:
    """Fifty attributes are listed, each once."""
    (top / "file").write_bytes(b"")
    names = [f"user.attribute{number}" for number in range(50)]
    for name in names:
        os.setxattr(top / "file", name, name.encode())
    assert sorted(os.listxattr(top / "file")) == sorted(names)
    assert all(os.getxattr(top / "file", name) == name.encode() for name in names)


@on_files
def names_of_attributes(top: Path) -> None:
    """Names have 255 bytes at most, and begin with what is known."""
    os.setxattr(top / "file", "user." + "x" * 250, b"long")
    assert os.getxattr(top / "file", "user." + "x" * 250) == b"long"
    with fails(errno.ERANGE):
        os.setxattr(top / "file", "user." + "x" * 251, b"x")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(top / "file", "none.such", b"x")
    with fails(errno.EPERM, errno.EOPNOTSUPP):
        os.setxattr(top / "file", "trusted.key", b"x")
    with fails(errno.ENODATA, errno.EOPNOTSUPP):
        os.getxattr(top / "file", "trusted.key")


@on_files
def who_has_no_attributes(top: Path) -> None:
    """Links and pipes have no attributes of users."""
    for name in ("link", "dangling", "fifo"):
        with fails(errno.EPERM, errno.EOPNOTSUPP):
            os.setxattr(top / name, "user.key", b"x", follow_symlinks=False)
        assert os.listxattr(top / name, follow_symlinks=False) == []
    os.setxattr(top / "link", "user.key", b"x")
    assert os.getxattr(top / "file", "user.key") == b"x"


@on_files
def rights_to_attributes(top: Path) -> None:
    """Who can't write a file can't set its attributes, who can't read it can't get them."""
    with fails(errno.EACCES):
        os.setxattr(top / "read-only", "user.key", b"x")
    os.chmod(top / "file", 0)
    with fails(errno.EACCES):
        os.getxattr(top / "file", "user.laid")
    with fails(errno.EACCES):
        os.removexattr(top / "file", "user.laid")
    os.chmod(top / "file", 0o644)
    assert os.getxattr(top / "file", "user.laid") == b"value"
