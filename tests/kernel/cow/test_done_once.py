"""A server of a copy-on-write tree dies over a request, and another one finishes that: it is done once.

The kernel's part is played here, so that a server can be killed before each of its system calls and each store into its
ledger.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.kernel.cow.test_interrupted_commit import CHANGING, in_a_child, killed_at
from tests.unit.fuse_wire import Entry, reading, request
from viewfs.cow.serve.filesystem import CowFileSystem
from viewfs.modules.api import Identities
from viewfs.mounts.fuse.ledger import Ledger
from viewfs.mounts.fuse.once import LastingOperations
from viewfs.mounts.fuse.protocol import Opcode, decode

RESENT = 1 << 63


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """That of this process is changed by a file system that is served in it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


class Kernel:
    """The kernel's side of one mount, whose server can be changed."""

    def __init__(self, top: Path, ledger: int) -> None:
        self._top, self._ledger = top, ledger
        self._unique = 0
        self.operations: LastingOperations | None = None
        self.change_server()

    def change_server(self) -> None:
        """As when the one before has died: nothing is left of it but its ledger, and the disk."""
        self.close()
        lower, upper, work = (
            os.open(self._top / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("lower", "upper", "work")
        )
        uids, gids = {os.getuid()}, {os.getgid()}
        file_system = CowFileSystem(lower, upper, work, Identities(os.getuid(), os.getgid(), uids, gids))
        self.operations = LastingOperations(file_system, Ledger(self._ledger))

    def close(self) -> None:
        if self.operations is not None:
            for opened in self.operations._handles.values():
                opened.release()
            cast(CowFileSystem, self.operations._fs).close()

    def ask(self, opcode: int, body: bytes = b"", node: int = 1, *, again: bool = False) -> bytes:
        """The answer to a request, which may have been sent before. Raises OSError."""
        if not again:
            self._unique += 2
        unique = self._unique | RESENT if again else self._unique
        assert self.operations is not None
        answer: Any = self.operations.dispatch(decode(request(opcode, body, node=node, unique=unique, uid=os.getuid())))
        return answer if isinstance(answer, bytes) else b"".join(map(bytes, answer or ()))

    def node(self, path: str) -> int:
        """Look a path up, and return the node that it leads to."""
        node = 1
        for name in path.split("/"):
            node = Entry.parse(self.ask(Opcode.LOOKUP, name.encode() + b"\0", node)).node
            if node == 0:
                raise FileNotFoundError(path)
        return node

    def open(self, path: str, flags: int) -> tuple[int, int]:
        """Node and handle."""
        node = self.node(path)
        return node, struct.unpack_from("=Q", self.ask(Opcode.OPEN, struct.pack("=II", flags, 0), node))[0]

    def read(self, node: int, handle: int) -> bytes:
        return self.ask(Opcode.READ, reading(handle=handle), node)


def names(*given: str) -> bytes:
    return b"".join(name.encode() + b"\0" for name in given)


def writing(handle: int, offset: int, data: bytes, flags: int = os.O_RDWR) -> bytes:
    """fuse_write_in."""
    return struct.pack("=QQIIQII", handle, offset, len(data), 0, 0, flags, 0) + data


Request = tuple[int, bytes, int]


def make_tree(top: Path) -> None:
    for name in ("lower/directory/deeper", "upper", "work"):
        (top / name).mkdir(parents=True)
    for name in ("text", "other", "directory/file", "directory/deeper/bottom"):
        (top / "lower" / name).write_text(f"{name}\n")
    (top / "lower/hard").hardlink_to(top / "lower/text")
    for path in (top / "lower").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def some_work(kernel: Kernel) -> None:
    """What there is of changes before: a directory and files of the view's own, whiteouts."""
    kernel.ask(Opcode.MKDIR, struct.pack("=II", 0o755, 0) + names("own"))
    own = kernel.node("own")
    for name in ("one", "two"):
        made = kernel.ask(Opcode.CREATE, struct.pack("=IIII", os.O_RDWR, 0o100644, 0, 0) + names(name), own)
        (handle,) = struct.unpack_from("=Q", made, 128)
        kernel.ask(Opcode.WRITE, writing(handle, 0, name.encode()), Entry.parse(made[:128]).node)
        kernel.ask(Opcode.RELEASE, struct.pack("=QIIQ", handle, 0, 0, 0), own)
    kernel.ask(Opcode.UNLINK, names("other"))
    kernel.ask(Opcode.SETXATTR, struct.pack("=II", 1, 0) + names("user.there") + b"x", kernel.node("own/one"))


def append(kernel: Kernel, path: str) -> Request:
    node, handle = kernel.open(path, os.O_WRONLY | os.O_APPEND)
    return Opcode.WRITE, writing(handle, 0, b"appended", os.O_WRONLY | os.O_APPEND), node


def write(kernel: Kernel, path: str) -> Request:
    node, handle = kernel.open(path, os.O_RDWR)
    return Opcode.WRITE, writing(handle, 1, b"written"), node


def rename(kernel: Kernel, old: str, new: str, flags: int | None = None) -> Request:
    (here, name), (there, new_name) = (
        (kernel.node(os.path.dirname(path)) if "/" in path else 1, os.path.basename(path)) for path in (old, new)
    )
    kernel.node(old)
    if flags is None:
        return Opcode.RENAME, struct.pack("=Q", there) + names(name, new_name), here
    return Opcode.RENAME2, struct.pack("=QII", there, flags, 0) + names(name, new_name), here


def unlink_open(kernel: Kernel, path: str) -> Request:
    kernel.open(path, os.O_RDWR)
    return Opcode.UNLINK, names(os.path.basename(path)), kernel.node(os.path.dirname(path))


def create(path: str, flags: int = os.O_RDWR | os.O_EXCL) -> Callable[[Kernel], Request]:
    body = struct.pack("=IIII", flags | os.O_CREAT, 0o100640, 0, 0)
    return lambda kernel: (Opcode.CREATE, body + names(os.path.basename(path)), kernel.node(os.path.dirname(path)))


#: A request of each kind, and of each way that it can go.
REQUESTS: dict[str, Callable[[Kernel], Request]] = {
    "mkdir": lambda kernel: (Opcode.MKDIR, struct.pack("=II", 0o750, 0) + names("made"), kernel.node("directory")),
    "mkdir over a whiteout": lambda kernel: (Opcode.MKDIR, struct.pack("=II", 0o750, 0) + names("other"), 1),
    "mkdir where one is": lambda kernel: (Opcode.MKDIR, struct.pack("=II", 0o750, 0) + names("directory"), 1),
    "create": create("directory/made"),
    "create in a directory of the view's": create("own/made"),
    "mknod": lambda kernel: (Opcode.MKNOD, struct.pack("=IIII", 0o010644, 0, 0, 0) + names("fifo"), 1),
    "symlink": lambda kernel: (Opcode.SYMLINK, names("made", "target"), kernel.node("directory/deeper")),
    "link": lambda kernel: (Opcode.LINK, struct.pack("=Q", kernel.node("text")) + names("linked"), kernel.node("own")),
    "link of the view's": lambda kernel: (Opcode.LINK, struct.pack("=Q", kernel.node("own/one")) + names("linked"), 1),
    "tmpfile": lambda kernel: (
        Opcode.TMPFILE, struct.pack("=IIII", os.O_RDWR | os.O_TMPFILE, 0o100600, 0, 0) + names("x"), kernel.node("own"),
    ),
    "unlink": lambda kernel: (Opcode.UNLINK, names("file"), kernel.node("directory")),
    "unlink of the view's": lambda kernel: (Opcode.UNLINK, names("one"), kernel.node("own")),
    "unlink of what is open": lambda kernel: unlink_open(kernel, "own/one"),
    "unlink of what is not there": lambda kernel: (Opcode.UNLINK, names("nothing"), 1),
    "rmdir of what is not empty": lambda kernel: (Opcode.RMDIR, names("directory"), 1),
    "rename": lambda kernel: rename(kernel, "text", "directory/renamed"),
    "rename over another": lambda kernel: rename(kernel, "text", "directory/file"),
    "rename in the view's": lambda kernel: rename(kernel, "own/one", "own/two"),
    "rename of a directory": lambda kernel: rename(kernel, "own", "directory/own"),
    "exchange": lambda kernel: rename(kernel, "own/one", "own/two", 2),
    "rename that replaces nothing": lambda kernel: rename(kernel, "own/one", "own/three", 1),
    "write": lambda kernel: write(kernel, "text"),
    "append": lambda kernel: append(kernel, "directory/deeper/bottom"),
    "append to the view's": lambda kernel: append(kernel, "own/two"),
    "open to write": lambda kernel: (Opcode.OPEN, struct.pack("=II", os.O_RDWR, 0), kernel.node("directory/file")),
    "open anew": lambda kernel: (Opcode.OPEN, struct.pack("=II", os.O_RDWR | os.O_TRUNC, 0), kernel.node("own/one")),
    "chmod": lambda kernel: (Opcode.SETATTR, struct.pack("=IIQQQQQQIIIIIIII", 1, 0, *[0] * 6, *[0] * 3, 0o100600,
                                                         0, 0, 0, 0), kernel.node("directory/deeper/bottom")),
    "setxattr": lambda kernel: (
        Opcode.SETXATTR, struct.pack("=II", 2, 0) + names("user.a") + b"xy", kernel.node("text"),
    ),
    "setxattr of a new one": lambda kernel: (
        Opcode.SETXATTR, struct.pack("=II", 2, os.XATTR_CREATE) + names("user.a") + b"xy", kernel.node("own/one"),
    ),
    "removexattr": lambda kernel: (Opcode.REMOVEXATTR, names("user.there"), kernel.node("own/one")),
}  # fmt: skip
#: What the kernel doesn't send, for it knows that there is something, or nothing: these answers will do as well.
AS_GOOD = {"mkdir where one is": errno.EIO, "unlink of what is not there": 0}
#: Where it can't be told whether it was done: EIO.
UNKNOWN = ("exchange", "setxattr of a new one", "removexattr")


def outcome(kernel: Kernel, asked: Request, *, again: bool = False) -> tuple[int, int]:
    """The errno of a request, and how long its answer is."""
    opcode, body, node = asked
    try:
        return 0, len(kernel.ask(opcode, body, node, again=again))
    except OSError as error:
        return error.errno or 0, 0


def watch_ledger(count: Callable[[], None]) -> None:
    """Have `count` called before every store, and every call that changes something. In a process of its own."""
    from viewfs.cow.layer import workdir
    from viewfs.cow.serve import naming

    def counted(original: Any) -> Any:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            count()
            return original(*arguments, **keywords)

        return wrapper

    for name in CHANGING:
        setattr(os, name, counted(getattr(os, name)))
    for module in (naming, workdir):
        module.renameat2 = counted(module.renameat2)  # type: ignore[attr-defined]
    for name in ("put", "drop", "begin", "finish"):
        setattr(Ledger, name, counted(getattr(Ledger, name)))


def shown(kernel: Kernel, top: str = "") -> dict[str, tuple[Any, ...]]:
    """All that the mount shows: kinds, modes, links, sizes and content."""
    found: dict[str, tuple[Any, ...]] = {}
    file_system: Any = cast(LastingOperations, kernel.operations)._fs
    todo = [("", file_system.root)]
    while todo:
        path, inode = todo.pop()
        for entry in file_system.readdir(inode, 0):
            if entry.name in (b".", b".."):
                continue
            here, status = f"{path}/{os.fsdecode(entry.name)}", entry.attributes
            content = b""
            if stat.S_ISREG(status.mode):
                opened = file_system.open(status.ino, os.O_RDONLY)
                content = opened.read(0, 10_000)
                opened.release()
            elif stat.S_ISDIR(status.mode):
                todo.append((here, status.ino))
            found[here] = status.mode, 0 if stat.S_ISDIR(status.mode) else status.nlink, content
    return found


@pytest.mark.parametrize("name", REQUESTS)
def test_killed_at_every_step_of_a_request(name: str, tmp_path: Path) -> None:
    """The kernel sends it again, and gets the answer that it would have got; what there is is the same."""

    ledgers: list[int] = []

    def begin(top: Path) -> tuple[Kernel, Request]:
        make_tree(top)
        ledger = Ledger.create()
        ledgers.append(ledger)
        kernel = Kernel(top, ledger)
        some_work(kernel)
        return kernel, REQUESTS[name](kernel)

    kernel, asked = begin(tmp_path / "whole")
    tree_before, expected, expected_tree = shown(kernel), outcome(kernel, asked), shown(kernel)
    kernel.close()
    number = 0
    while True:
        top = tmp_path / str(number)
        kernel, asked = begin(top)

        def dying(kernel: Kernel = kernel, asked: Request = asked, number: int = number) -> None:
            watch_ledger(killed_at(number))
            outcome(kernel, asked)

        ended = in_a_child(dying)
        # (The kernel has sent it: the number is used up, though it is the child that asked.)
        kernel._unique += 2
        kernel.change_server()
        got = outcome(kernel, asked, again=True)
        tree = shown(kernel)
        if got[0] == errno.EIO and name in UNKNOWN:
            assert tree in (tree_before, expected_tree), number
        else:
            assert got == expected or got[0] == AS_GOOD.get(name), (number, ended)
            assert tree == expected_tree, (number, ended)
        kernel.close()
        shutil.rmtree(top)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        number += 1
    for ledger in ledgers:
        os.close(ledger)
    assert number > 1
