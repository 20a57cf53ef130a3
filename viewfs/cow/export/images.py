"""Writing a tree as a new image, archive or directory, with the tools that the distribution has for it.

The new one is made beside its place, compared with the tree, and only then given its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from viewfs.cow.compare.changes import Change, differences
from viewfs.cow.compare.trees import Tree
from viewfs.cow.copying import TreeCopier
from viewfs.cow.export.owners import Owner, rewrite_archive, set_ext_owners, squashfs_definitions
from viewfs.errors import MachineError, UsageError, ViewfsError
from viewfs.linux.process import FAKE_ROOT_CAPABILITIES, keep_for_programs

__all__ = ["FORMATS", "Format", "format_of", "mismatches", "place_durably", "run_tool", "write_image"]

#: Ext needs room for its own tables; so much more than the files is tried first, then twice that, and so on.
_EXT_SPARE = 8 << 20
_EXT_TRIES = 5
_EXT_BLOCK = 4096


@dataclass(frozen=True)
class Format:
    """One kind of thing that a tree can be written as."""

    name: str
    #: How the names of such files end.
    suffixes: tuple[str, ...]
    #: The module that mounts it, to look at it again; None where there is none.
    module: str | None
    #: The Debian package of the tool.
    package: str


FORMATS = {
    one.name: one
    for one in (
        Format("ext4", (".ext4", ".img"), "ext", "e2fsprogs"),
        Format("squashfs", (".squashfs", ".sqfs", ".sfs", ".snap"), "squashfs", "squashfs-tools"),
        Format("tar", (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tzst"), None, "tar"),
        Format("directory", (), None, ""),
    )
}


def format_of(path: str, name: str | None) -> Format:
    """The format called `name`, or else the one that `path` is named after. Raises `UsageError`."""
    if name is not None:
        return FORMATS[name]
    for one in FORMATS.values():
        if path.endswith(one.suffixes) and one.suffixes:
            return one
    if path.endswith("/") or "." not in os.path.basename(path):
        return FORMATS["directory"]
    known = ", ".join(suffix for one in FORMATS.values() for suffix in one.suffixes)
    raise UsageError(f"cannot tell from its name what {path} is to be", remedy=f"--format says it, or one of {known}")


def write_image(
    tree: Tree, kind: Format, path: str, size: int = 0, owners: Mapping[bytes, Owner] | None = None
) -> None:
    """Write `tree` to `path`, where nothing is; an ext4 image has at least `size` bytes.

    `owners`: the owners of files where `tree` does not show them. A copy as a directory ignores them, for the user
    can't give files away. Raises `ViewfsError` and OSError.
    """
    owners = owners or {}
    if kind.name == "directory":
        _copy(tree, path)
        return
    here = f"/proc/self/fd/{tree.root}/."  # a tool that looks at it without following links must see a directory
    if kind.name == "ext4":
        _make_ext(tree, here, path, size)
        if owners:
            set_ext_owners(path, owners)
    elif kind.name == "squashfs":
        _make_squashfs(tree, here, path, owners)
    else:
        _make_archive(tree, here, path, owners)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_squashfs(tree: Tree, here: str, path: str, owners: Mapping[bytes, Owner]) -> None:
    command = ["mksquashfs", here, path, "-noappend", "-no-progress", "-quiet", "-comp", "zstd"]
    with tempfile.NamedTemporaryFile() as definitions:
        if owners:
            definitions.write(squashfs_definitions(tree, owners))
            definitions.flush()
            command += ["-pf", definitions.name]
        if (root := owners.get(b"")) is not None:
            command += ["-root-uid", str(root.uid), "-root-gid", str(root.gid)]
        _run(FORMATS["squashfs"], tree, *command)


def _make_archive(tree: Tree, here: str, path: str, owners: Mapping[bytes, Owner]) -> None:
    # In the order of names, so that the same tree makes the same archive.
    command = ["tar", "-C", here, "--format=pax", "--sort=name", "--xattrs", "--acls", "--sparse", "--numeric-owner"]
    compressor = _compressor(path)
    if not owners:
        compression = ["-I", " ".join(compressor)] if compressor else []
        _run(FORMATS["tar"], tree, *command, *compression, "-cf", path, ".")
        return
    # The archive passes through this process, for tar can't be told the owners of single files.
    with open(path, "xb") as file, tempfile.TemporaryFile() as said:
        packing = _start(tree, [*command, "-cf", "-", "."], stdout=subprocess.PIPE, stderr=said)
        compressing = None
        target: IO[bytes] = file
        if compressor:
            compressing = _start(tree, compressor, stdin=subprocess.PIPE, stdout=file, stderr=said)
            assert compressing.stdin is not None
            target = compressing.stdin
        assert packing.stdout is not None
        try:
            with packing.stdout:
                rewrite_archive(packing.stdout, target, owners)
        except (OSError, ViewfsError):
            packing.kill()  # the messages of tar or the compressor tell more
            if compressing is not None:
                compressing.kill()
            if not said.tell():
                raise
        finally:
            with contextlib.suppress(OSError):
                target.close()
            statuses = [one.wait() for one in (packing, compressing) if one is not None]
        if any(statuses):
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise ViewfsError(f"tar failed: {lines[0] if lines else f'exit status {statuses}'}")


def _compressor(path: str) -> list[str]:
    """The command that compresses an archive with the name `path`; empty if none does."""
    for suffixes, command in (((".gz", ".tgz"), "gzip"), ((".xz",), "xz"), ((".zst", ".tzst"), "zstd -q")):
        if any(f"{suffix}." in f"{path}." for suffix in suffixes):
            return command.split()
    return []


def _copy(tree: Tree, path: str) -> None:
    directory, name = os.path.split(os.path.abspath(path))
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        TreeCopier(tree, Tree(fd), sync=False).copy(b"", os.fsencode(name))
    finally:
        os.close(fd)


def _make_ext(tree: Tree, here: str, path: str, size: int) -> None:
    files, blocks = 0, 0
    for _path, entry in tree.walk(b""):
        files += 1
        blocks += 1 + -(-entry.size // _EXT_BLOCK)
    inodes = files + files // 8 + 64
    least = blocks * _EXT_BLOCK + inodes * 256
    sizes = [max(size, least)] if size else []
    sizes += [max(size, least + _EXT_SPARE) << attempt for attempt in range(_EXT_TRIES)]
    for attempt, wanted in enumerate(sizes):
        kib = -(-wanted >> 10)
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-N", str(inodes), "-m", "0", "-d", here, path, f"{kib}K"]
        try:
            _run(FORMATS["ext4"], tree, *command)
            return
        except ViewfsError as error:
            os.unlink(path)
            if attempt == len(sizes) - 1 or not any(sign in str(error) for sign in ("allocate", "space", "populating")):
                raise


def _start(
    tree: Tree, command: Sequence[str], stdin: int = subprocess.DEVNULL, **streams: Any
) -> subprocess.Popen[bytes]:
    """Start a program that reads `tree` by its descriptor, with power over this user's files.

    Permission bits of the user's own files deny the program nothing, as they deny this process nothing.
    """
    return subprocess.Popen(
        command,
        pass_fds=(tree.root,),
        stdin=stdin,
        preexec_fn=lambda: keep_for_programs(FAKE_ROOT_CAPABILITIES),  # this process has one thread
        env=os.environ | {"LC_ALL": "C.UTF-8"},  # its messages are read here
        **streams,
    )


def run_tool(tree: Tree, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end (see `_start`); its output, all in one."""
    with _start(tree, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.communicate()[0].decode(errors="replace")
    return subprocess.CompletedProcess(command, process.returncode, output)


def _run(kind: Format, tree: Tree, *command: str) -> None:
    if shutil.which(command[0]) is None:
        raise MachineError(f"{command[0]} is not here, which makes {kind.name}", remedy=f"apt install {kind.package}")
    done = run_tool(tree, *command)
    if done.returncode:
        said = done.stdout.strip().splitlines()
        raise ViewfsError(f"{command[0]} failed: {said[0] if said else f'exit status {done.returncode}'}")


def mismatches(tree: Tree, image: Tree) -> list[Change]:
    """Where `tree` and `image` differ; times are compared to the second, which is all that most formats keep."""
    return [
        change
        for change in differences(tree, image, None)
        if not (change.aspects and change.aspects <= {"times", "owner"} and _same_second(change))
        and not (change.path == b"lost+found" and change.old is None)
    ]


def _same_second(change: Change) -> bool:
    if change.old is None or change.new is None:
        return False
    return change.old.is_directory or change.old.mtime_ns // 10**9 == change.new.mtime_ns // 10**9


def place_durably(made: str, path: str, *, replace: bool) -> None:
    """Rename `made` to `path`. Raises FileExistsError if `path` exists and `replace` is false."""
    if not replace and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    os.rename(made, path)
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
