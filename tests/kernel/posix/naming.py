"""Which names and paths there can be."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from tests.kernel.posix.calls import opened
from tests.kernel.posix.table import behaviour, fails, on_files


@behaviour
def long_names(top: Path) -> None:
    """A name can have 255 bytes, of anything that is made."""
    os.chdir(top)
    os.close(os.open("f" * 255, os.O_CREAT | os.O_WRONLY))
    os.mkdir("d" * 255)
    os.symlink("x", "s" * 255)
    os.mkfifo("p" * 255)
    os.link("f" * 255, "l" * 255)
    os.rename("f" * 255, "r" * 255)
    os.close(os.open("é" * 127, os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir(".")) == sorted([letter * 255 for letter in "dslrp"] + ["é" * 127])
    os.rmdir("d" * 255)


@behaviour
def too_long_names(top: Path) -> None:
    """A name of 256 bytes is ENAMETOOLONG, whatever is done with it."""
    os.chdir(top)
    Path("file").write_bytes(b"")
    long = "x" * 256
    for does in (
        lambda: os.open(long, os.O_RDONLY), lambda: os.open(long, os.O_CREAT | os.O_WRONLY), lambda: os.mkdir(long),
        lambda: os.symlink("x", long), lambda: os.link("file", long), lambda: os.rename("file", long),
        lambda: os.rename(long, "y"), lambda: os.stat(long), lambda: os.unlink(long), lambda: os.rmdir(long),
        lambda: os.mkfifo(long), lambda: os.stat(f"{long}/x"), lambda: os.truncate(long, 0),
    ):  # fmt: skip
        with fails(errno.ENAMETOOLONG):
            does()
    assert os.listdir(".") == ["file"]


@behaviour
def odd_names(top: Path) -> None:
    """A name is bytes: newlines, spaces, dots, and what is no UTF-8."""
    names = [
        b"\n", b" ", b"a\nb", b"trailing.", b"trailing ", b"...", b"..a", b".a.", b"\xff\xfe", b"caf\xe9", b"\\", b"*",
        b"-rf", b"~", b"\x01\x7f", b'"', b"a:b", b"%s", "é".encode(), "e\u0301".encode(), b"name;", b"a,b=c",
    ]  # fmt: skip
    directory = os.fsencode(top)
    for name in names:
        with opened(os.path.join(directory, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
            os.write(fd, name)
    assert sorted(os.listdir(directory)) == sorted(names)
    for name in names:
        with opened(os.path.join(directory, name), os.O_RDONLY) as fd:
            assert os.read(fd, 100) == name
        os.rename(os.path.join(directory, name), os.path.join(directory, b"moved"))
        os.rename(os.path.join(directory, b"moved"), os.path.join(directory, name))
        os.unlink(os.path.join(directory, name))
    assert os.listdir(directory) == []


@behaviour
def names_that_differ_in_case(top: Path) -> None:
    """Upper and lower case are different names."""
    for name in ("name", "Name", "NAME"):
        (top / name).write_text(name)
    assert sorted(os.listdir(top)) == ["NAME", "Name", "name"] and (top / "Name").read_text() == "Name"
    assert not (top / "nAME").exists()


@behaviour
def names_that_layers_use(top: Path) -> None:
    """Names that mean something to layers, journals and temporary files elsewhere are names like others."""
    names = [
        ".wh.name",
        ".wh..wh..opq",
        "work",
        "index",
        "upper",
        "copying",
        ".viewfs-1",
        "lost+found",
        ".fuse_hidden01",
    ]
    for name in names:
        (top / name).write_text(name)
    os.mkdir(top / "directory")
    (top / "directory/.wh.name").write_bytes(b"")
    (top / "directory/name").write_bytes(b"")
    assert sorted(os.listdir(top)) == sorted([*names, "directory"])
    assert sorted(os.listdir(top / "directory")) == [".wh.name", "name"]
    for name in names:
        assert (top / name).read_text() == name
        os.unlink(top / name)


@behaviour
def long_paths(top: Path) -> None:
    """A path can have 4095 bytes, and longer ones are ENAMETOOLONG."""
    path = str(top)
    while len(path) + 201 < 4095 - 1:
        path += "/" + "d" * 200
        os.mkdir(path)
    name = "f" * (4095 - len(path) - 1)
    assert len(f"{path}/{name}") == 4095
    Path(path, name).write_bytes(b"deep")
    assert Path(path, name).read_bytes() == b"deep" and os.listdir(path) == [name]
    with fails(errno.ENAMETOOLONG):
        os.stat(f"{path}/{name}f")
    with fails(errno.ENAMETOOLONG):
        os.open(f"{path}/{name}f", os.O_CREAT | os.O_WRONLY)
    os.rename(f"{path}/{name}", top / "up")
    assert (top / "up").read_bytes() == b"deep"
    shutil.rmtree(top / ("d" * 200))


@behaviour
def paths_beyond_the_longest(top: Path) -> None:
    """Directories go deeper than a path can tell, for who goes there step by step."""
    os.chdir(top)
    name = "d" * 200
    for _ in range(30):
        os.mkdir(name)
        os.chdir(name)
    Path("bottom").write_bytes(b"deep")
    os.rename("bottom", "b")
    os.link("b", "c")
    assert Path("b").read_bytes() == b"deep" and sorted(os.listdir(".")) == ["b", "c"]
    Path("b").write_bytes(b"deeper")
    os.chmod("c", 0o600)
    os.setxattr("b", "user.key", b"value")
    assert os.stat("c").st_size == 6 and os.getxattr("c", "user.key") == b"value"
    os.unlink("b")
    os.unlink("c")
    for _ in range(30):
        os.chdir("..")
        os.rmdir(name)
    assert os.listdir(".") == []


@on_files
def spellings_of_a_path(top: Path) -> None:
    """Slashes and dots in a path change nothing."""
    for path in ("full//deeper/./bottom", "./full/deeper/../deeper/bottom", "full/../full/deeper//bottom"):
        assert Path(f"{top}/{path}").read_bytes() == b"bottom\n"
        with opened(f"{top}//{path}", os.O_RDWR) as fd:
            assert os.fstat(fd).st_ino == os.stat(top / "full/deeper/bottom").st_ino
