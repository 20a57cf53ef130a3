"""Trees to change in a view, and what is in them afterwards."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import Result, View, Viewfs

#: What is known of one path: everything that a commit keeps.
Snapshot = dict[str, tuple[Any, ...]]


def snapshot(top: Path, *, times: bool = True) -> Snapshot:
    """All that is below `top`: kinds, modes, content, link targets, attributes, which names are one file, times."""
    found: Snapshot = {}
    names: dict[tuple[int, int], str] = {}
    for directory, below, files in os.walk(os.fsencode(top)):
        below.sort()
        for name in sorted([*below, *files, b""]):
            path = os.path.join(directory, name) if name else directory
            if name and name in below and not os.path.islink(path):
                continue
            shown = os.fsdecode(os.path.relpath(path, os.fsencode(top)))
            status = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(status.st_mode):
                mode = stat.S_IMODE(status.st_mode)
                if not mode & 0o400:
                    os.chmod(path, 0o600)
                content = Path(os.fsdecode(path)).read_bytes()
                if not mode & 0o400:
                    os.chmod(path, mode)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            first = (
                names.setdefault((status.st_dev, status.st_ino), shown) if not stat.S_ISDIR(status.st_mode) else shown
            )
            found[shown] = (
                stat.filemode(status.st_mode),
                content,
                first,
                sorted(xattrs.items()),
                status.st_mtime_ns if times else None,
            )
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree with something of every kind."""
    top = tmp_path / "tree"
    (top / "directory/deeper").mkdir(parents=True)
    (top / "text").write_text("one\ntwo\nthree\n")
    (top / "binary").write_bytes(bytes(range(256)) * 10)
    (top / "directory/gone").write_text("to be deleted\n")
    (top / "directory/deeper/file").write_text("at the bottom\n")
    (top / "link").symlink_to("text")
    (top / "script").write_text("#!/bin/sh\n")
    (top / "empty").mkdir()
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    return top


class Cow:
    """Views in which a tree is copy-on-write, one after the other, of the same name."""

    def __init__(self, viewfs: Viewfs, tree: Path, name: str = "cow") -> None:
        self.viewfs, self.tree, self.name = viewfs, tree, name

    def sh(self, script: str, *options: str | Path, check: bool = True) -> Result:
        """`script` in a view, in the tree."""
        inside = f"cd '{self.tree}'\n{script}"
        return self.viewfs.sh("--name", self.name, "--cow", self.tree, *options, script=inside, check=check)

    def __call__(self, command: str, *arguments: str | Path, check: bool = True) -> Result:
        """A command on what the view has left."""
        return self.viewfs(command, "--session", self.name, *arguments, check=check)

    def changes(self, *arguments: str | Path) -> dict[str, dict[str, Any]]:
        """What differs, by path in the tree."""
        rows = self("diff", "--json", *arguments).json["changes"]
        return {os.path.relpath(row["path"], self.tree): row for row in rows}

    @property
    def layer(self) -> Path:
        """The directory of the layer."""
        (found,) = (path for path in (self.viewfs.state / "viewfs" / self.name).iterdir() if path.is_dir())
        return found


@pytest.fixture
def cow(viewfs: Viewfs, tree: Path) -> Cow:
    return Cow(viewfs, tree)


OpenView = Callable[..., View]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Sources, and what a build makes of them."""
    top = tmp_path / "project"
    for directory in ("src/deep", "build/keep"):
        (top / directory).mkdir(parents=True)
    for name in ("a.c", "a.o", "src/a.c", "src/a.o", "src/deep/b.c", "src/deep/b.o", "build/x", "build/keep/y"):
        (top / name).write_text(f"{name}\n")
    return top
