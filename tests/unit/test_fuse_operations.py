"""Requests as calls of a file system and its answers as replies, without a kernel."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fuse_wire import NS, Attr, Dirent, Entry, read_directory, reading, request
from tests.unit.memory_fs import Memory, Still, failed, with_async_methods
from viewfs.modules.api import FileSystem, InodeNumber, OpenFile
from viewfs.modules.api.nodes import ComputedFile, Directory, Link, NodeFileSystem, computed_file
from viewfs.modules.framework.sources import joined
from viewfs.mounts.fuse.operations import Operations
from viewfs.mounts.fuse.protocol import FOREVER, InitFlags, Opcode, decode


def whole(body: Any) -> bytes | None:
    """A reply that comes in pieces, as what it says."""
    return joined(body) if isinstance(body, list) else body


class Kernel:
    """Asks the questions that the kernel asks, and reads the answers."""

    def __init__(self, file_system: FileSystem) -> None:
        self.file_system: Any = file_system
        self.operations = Operations(file_system)

    def __call__(self, opcode: int, body: bytes = b"", node: int = 1) -> bytes | None:
        answer = self.operations.dispatch(decode(request(opcode, body, node=node)))
        if not isinstance(answer, Awaitable):
            return whole(answer)

        async def wait() -> bytes | None:
            return whole(await answer)

        return trio.run(wait)

    def ask(self, opcode: int, body: bytes = b"", node: int = 1) -> bytes:
        reply = self(opcode, body, node)
        assert reply is not None
        return reply

    def errno(self, opcode: int, body: bytes = b"", node: int = 1) -> int | None:
        with pytest.raises(OSError) as caught:
            self(opcode, body, node)
        return caught.value.errno

    def init(self, flags: int = 0xFFFFFFFF) -> tuple[int, ...]:
        body = self.ask(Opcode.INIT, struct.pack("=IIIII44x", 7, 40, 131072, flags, 0))
        return struct.unpack("=IIIIHHIIHHI28x", body)

    def lookup(self, name: bytes, node: int = 1) -> Entry:
        return Entry.parse(self.ask(Opcode.LOOKUP, name + b"\0", node))

    def attr(self, node: int = 1) -> Attr:
        return Attr.parse(self.ask(Opcode.GETATTR, bytes(16), node)[16:])

    def readdir(self, node: int = 1, *, plus: bool = False, size: int = 4096) -> list[Dirent]:
        """All of it, as many requests as it takes."""
        found: list[Dirent] = []
        while True:
            offset = found[-1].cookie if found else 0
            body = self.ask(Opcode.READDIRPLUS if plus else Opcode.READDIR, reading(offset, size), node)
            if not body:
                return found
            found += read_directory(body, plus)

    def create(self, name: bytes, mode: int = stat.S_IFREG | 0o644, device: int = 0) -> Entry:
        return Entry.parse(self.ask(Opcode.MKNOD, struct.pack("=IIII", mode, device, 0o22, 0) + name + b"\0"))

    def forget(self, node: int, count: int) -> None:
        assert self(Opcode.FORGET, struct.pack("=Q", count), node) is None


SETATTR_FIELDS = (
    "valid", "padding", "fh", "size", "lock_owner", "atime", "mtime", "ctime",
    "atimensec", "mtimensec", "ctimensec", "mode", "unused4", "uid", "gid", "unused5",
)  # fmt: skip


def setattr_in(**values: int) -> bytes:
    """fuse_setattr_in."""
    return struct.pack("=IIQQQqqqIIIIIIII", *(values.get(name, 0) for name in SETATTR_FIELDS))


both_ways = pytest.mark.parametrize("of", [lambda kind: kind, with_async_methods], ids=["plain", "async"])
Of = Callable[[type[Any]], type[Any]]


# -- a file system that never changes


@both_ways
def test_an_immutable_file_system_is_read(of: Of) -> None:
    kernel = Kernel(of(Still)())
    assert (kernel.attr().ino, kernel.attr().mode) == (2, stat.S_IFDIR | 0o755), (
        "node 1 is the root, whatever its number"
    )
    entry = kernel.lookup(b"file")
    assert (entry.node, entry.attr.ino, entry.attr.size, entry.attr.blocks) == (11, 11, 10240, 20)
    assert kernel.ask(Opcode.READ, reading(10000), node=11) == Still.content[10000:]
    assert kernel.ask(Opcode.READ, reading(0, 100), node=11) == Still.content[:100]
    assert kernel.ask(Opcode.READLINK, node=12) == b"file"
    assert [(one.name, one.ino) for one in kernel.readdir()] == [(b".", 2), (b"..", 2), (b"file", 11), (b"link", 12)]
    assert [one.node for one in kernel.readdir(plus=True)] == [1, 1, 11, 12]
    assert struct.unpack_from("=Q", kernel.ask(Opcode.STATFS)) == (100,)
    assert kernel.errno(Opcode.GETATTR, bytes(16), node=99) == errno.ESTALE


def test_the_kernel_may_keep_all_of_it_for_ever() -> None:
    kernel = Kernel(Still())
    forever = (FOREVER, 0)
    assert kernel.lookup(b"file").entry_valid == kernel.lookup(b"file").attr_valid == forever
    assert struct.unpack_from("=QI", kernel.ask(Opcode.GETATTR, bytes(16))) == forever
    assert all(one.valid == (FOREVER, FOREVER, 0, 0) for one in kernel.readdir(plus=True))
    none = kernel.lookup(b"no such name")
    assert (none.node, none.entry_valid) == (0, forever), "nor need it ask again for what is not there"


def test_the_kernel_is_told_to_open_on_its_own() -> None:
    kernel = Kernel(Still())
    fields = kernel.init()
    flags = InitFlags(fields[3])
    assert InitFlags.NO_OPEN_SUPPORT | InitFlags.NO_OPENDIR_SUPPORT | InitFlags.CACHE_SYMLINKS in flags
    assert InitFlags.AUTO_INVAL_DATA not in flags
    assert fields[6] == 4096, "what is read-only needs no room for writes"
    assert kernel.init(flags=0)[3] == 0
    for opcode in (
        Opcode.OPEN, Opcode.OPENDIR, Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.FLUSH, Opcode.FSYNC, Opcode.FSYNCDIR,
        Opcode.ACCESS, Opcode.WRITE, Opcode.SETATTR, Opcode.CREATE, Opcode.MKDIR, Opcode.SETXATTR, Opcode.IOCTL,
        Opcode.POLL, Opcode.LSEEK, Opcode.STATX,
    ):  # fmt: skip
        assert kernel.errno(opcode, bytes(100)) == errno.ENOSYS, opcode
    assert kernel.errno(9999) == errno.ENOSYS


def test_another_protocol() -> None:
    assert Kernel(Still()).errno(Opcode.INIT, struct.pack("=IIII", 8, 0, 0, 0)) == errno.EPROTO


def test_extended_attributes() -> None:
    kernel = Kernel(Still())

    def get(name: bytes, room: int) -> bytes:
        return kernel.ask(Opcode.GETXATTR, struct.pack("=II", room, 0) + name + b"\0", 11)

    assert get(b"user.one", 0) == struct.pack("=II", 5, 0)
    assert get(b"user.one", 64) == b"value"
    with pytest.raises(OSError) as caught:
        get(b"user.none", 64)
    assert caught.value.errno == errno.ENODATA
    assert kernel.errno(Opcode.GETXATTR, struct.pack("=II", 2, 0) + b"user.one\0", 11) == errno.ERANGE
    assert kernel.ask(Opcode.LISTXATTR, struct.pack("=II", 64, 0), 11) == b"user.one\0user.two\0"
    assert kernel.ask(Opcode.LISTXATTR, struct.pack("=II", 0, 0), 11) == struct.pack("=II", 18, 0)


def test_no_extended_attributes_anywhere() -> None:
    class Without(Still):
        no_xattrs = True

    kernel = Kernel(Without())
    for opcode in (Opcode.GETXATTR, Opcode.LISTXATTR):
        assert kernel.errno(opcode, bytes(8) + b"user.one\0", 11) == errno.ENOSYS


@pytest.mark.parametrize("size", [64, 160, 200, 4096])
@pytest.mark.parametrize("plus", [False, True])
def test_a_directory_in_pieces(size: int, plus: bool) -> None:
    if plus and size < 160:
        size = 160
    assert [one.name for one in Kernel(Still()).readdir(plus=plus, size=size)] == [b".", b"..", b"file", b"link"]


def test_names_that_linux_has_no_room_for() -> None:
    kernel = Kernel(Memory())
    assert kernel.errno(Opcode.LOOKUP, b"n" * 255 + b"\0") == errno.ENOENT
    long = b"n" * 256 + b"\0"
    for opcode, body in (
        (Opcode.LOOKUP, long),
        (Opcode.MKNOD, struct.pack("=IIII", stat.S_IFREG, 0, 0, 0) + long),
        (Opcode.MKDIR, bytes(8) + long),
        (Opcode.SYMLINK, long + b"target\0"),
        (Opcode.LINK, struct.pack("=Q", 1) + long),
        (Opcode.RENAME, struct.pack("=Q", 1) + b"old\0" + long),
        (Opcode.RENAME2, struct.pack("=QII", 1, 0, 0) + b"old\0" + long),
    ):
        assert kernel.errno(opcode, body) == errno.ENAMETOOLONG


# -- how long answers are kept


@pytest.mark.parametrize(("seconds", "valid"), [(1.5, (1, NS // 2)), (60, (60, 0))])
def test_answers_that_are_kept_for_a_while(seconds: float, valid: tuple[int, int]) -> None:
    class Changing(Still):
        immutable = False
        cache_seconds = seconds

    kernel = Kernel(Changing())
    assert kernel.lookup(b"file").entry_valid == valid
    assert (kernel.lookup(b"nothing").node, kernel.lookup(b"nothing").entry_valid) == (0, valid)


def test_answers_that_are_not_kept() -> None:
    kernel = Kernel(Memory())
    kernel.create(b"file")
    assert kernel.lookup(b"file").entry_valid == kernel.lookup(b"file").attr_valid == (0, 0)
    assert kernel.errno(Opcode.LOOKUP, b"nothing\0") == errno.ENOENT


# -- nodes


def tree() -> NodeFileSystem:
    file, inner = ComputedFile(lambda: "text\n"), Directory({"deep": Link("../file")})
    return NodeFileSystem(Directory({"file": file, "dir": inner}), uid=5, gid=6)


def test_a_tree_of_nodes() -> None:
    kernel = Kernel(tree())
    assert InitFlags.NO_OPEN_SUPPORT not in InitFlags(kernel.init()[3])
    file, inner = kernel.lookup(b"file"), kernel.lookup(b"dir")
    assert (file.attr.mode, file.attr.uid, file.attr.gid) == (stat.S_IFREG | 0o444, 5, 6)
    assert [(one.name, one.type) for one in kernel.readdir()] == [(b".", 4), (b"..", 4), (b"file", 8), (b"dir", 4)]
    names = {one.name: one.ino for one in kernel.readdir(inner.node)}
    assert (names[b"."], names[b".."]) == (inner.node, 1)
    assert kernel.ask(Opcode.READLINK, node=kernel.lookup(b"deep", inner.node).node) == b"../file"
    assert kernel.lookup(b"file").node == file.node, "a node keeps its number"
    assert kernel.errno(Opcode.LOOKUP, b"none\0") == errno.ENOENT
    assert kernel.errno(Opcode.LOOKUP, b"none\0", file.node) == errno.ENOTDIR
    assert kernel.errno(Opcode.READLINK, node=file.node) == errno.EINVAL
    assert kernel.errno(Opcode.OPEN, bytes(8), inner.node) == errno.EISDIR
    for opcode in (Opcode.GETATTR, Opcode.OPEN, Opcode.READDIR):
        assert kernel.errno(opcode, reading(), 99) == errno.ESTALE


def test_content_is_computed_at_each_open() -> None:
    count = iter(range(10))
    kernel = Kernel(computed_file(lambda: f"number {next(count)}"))
    handles = []
    for _ in range(2):
        handle, flags, _padding = struct.unpack("=QII", kernel.ask(Opcode.OPEN, bytes(8)))
        assert handle and flags & 1, "its length is known to nobody, so the page cache is bypassed"
        handles.append(handle)
    assert kernel.ask(Opcode.READ, reading(0, 100, handles[1])) == b"number 1"
    assert kernel.ask(Opcode.READ, reading(7, 100, handles[0])) == b"0", "each open sees one content from end to end"
    assert kernel.ask(Opcode.FLUSH, struct.pack("=QIIQ", handles[0], 0, 0, 0)) == b""
    assert kernel.ask(Opcode.RELEASE, struct.pack("=QIIQ", handles[0], 0, 0, 0)) == b""
    assert kernel.errno(Opcode.READ, reading(0, 100, handles[0])) == errno.ESTALE
    assert kernel.errno(Opcode.WRITE, reading(0, 2, handles[1]) + b"hi") == errno.EBADF


def test_content_that_is_waited_for() -> None:
    async def slow() -> str:
        await trio.lowlevel.checkpoint()
        return "at last"

    kernel = Kernel(computed_file(slow))
    (handle,) = struct.unpack_from("=Q", kernel.ask(Opcode.OPEN, bytes(8)))
    assert kernel.ask(Opcode.READ, reading(handle=handle)) == b"at last"


# -- a file system that can be written


@both_ways
def test_making_and_opening_at_once(of: Of) -> None:
    kernel = Kernel(of(Memory)())
    asked = struct.pack("=IIII", os.O_CREAT | os.O_EXCL | os.O_RDWR, stat.S_IFREG | 0o640, 0o22, 0)
    body = kernel.ask(Opcode.CREATE, asked + b"file\0")
    made = Entry.parse(body[:128])
    assert made.attr.mode == stat.S_IFREG | 0o640 and len(body) == 128 + 16
    assert kernel.lookup(b"file").node == made.node
    assert kernel.errno(Opcode.CREATE, asked + b"file\0") == errno.EEXIST
    kernel.forget(made.node, 2)
    assert made.node in kernel.file_system.forgotten


class Keeping(Memory):
    """What is called “kept” is nobody else's."""

    cache_seconds = 1.5

    def keeps(self, inode: InodeNumber) -> bool:
        return inode == 2


@both_ways
def test_what_nobody_else_changes_is_kept_for_ever(of: Of) -> None:
    kernel = Kernel(of(Keeping)())
    kept = Entry.parse(kernel.ask(Opcode.MKDIR, struct.pack("=II", 0o700, 0) + b"kept\0"))
    other = Entry.parse(kernel.ask(Opcode.MKDIR, struct.pack("=II", 0o700, 0) + b"other\0"))
    for_ever, a_while = (FOREVER, 0), (1, 500_000_000)
    assert (kept.node, kept.entry_valid, kept.attr_valid) == (2, for_ever, for_ever)
    assert (other.entry_valid, other.attr_valid) == (a_while, a_while)
    for node, seconds in ((2, FOREVER), (other.node, 1)):
        assert kernel.ask(Opcode.GETATTR, bytes(16), node)[:8] == struct.pack("=Q", seconds)
        missing = Entry.parse(kernel.ask(Opcode.LOOKUP, b"none\0", node))
        assert (missing.node, missing.entry_valid[0]) == (0, seconds)
    entries = {one.name: one.valid[0] for one in kernel.readdir(plus=True)}
    assert (entries[b"kept"], entries[b"other"]) == (FOREVER, 1)


@both_ways
def test_a_writable_file_system(of: Of) -> None:
    kernel = Kernel(of(Memory)())
    made = kernel.create(b"file")
    assert (made.attr.mode, made.attr.uid, made.attr.gid) == (stat.S_IFREG | 0o644, 1000, 1001)
    assert kernel.ask(Opcode.WRITE, reading(2, 5) + b"hello") == struct.pack("=II", 5, 0)
    assert kernel.ask(Opcode.READ, reading()) == b"\0\0hello"
    directory = Entry.parse(kernel.ask(Opcode.MKDIR, struct.pack("=II", 0o700, 0) + b"dir\0"))
    assert directory.attr.mode == stat.S_IFDIR | 0o700
    link = Entry.parse(kernel.ask(Opcode.SYMLINK, b"link\0to here\0"))
    assert kernel.ask(Opcode.READLINK, node=link.node) == b"to here"
    assert Entry.parse(kernel.ask(Opcode.LINK, struct.pack("=Q", made.node) + b"again\0")).node == made.node
    device = kernel.create(b"null", stat.S_IFCHR | 0o666, 0x103)
    assert device.attr.rdev == 0x103

    assert kernel.ask(Opcode.RENAME, struct.pack("=Q", directory.node) + b"file\0moved\0") == b""
    assert kernel.lookup(b"moved", directory.node).node == made.node
    assert kernel.errno(Opcode.RENAME2, struct.pack("=QII", 1, 1, 0) + b"again\0link\0") == errno.EEXIST
    assert kernel.ask(Opcode.UNLINK, b"again\0") == kernel.ask(Opcode.RMDIR, b"dir\0") == b""
    assert kernel.errno(Opcode.UNLINK, b"again\0") == errno.ENOENT
    assert {one.name for one in kernel.readdir()} == {b".", b"..", b"link", b"null"}

    assert kernel.ask(Opcode.SETXATTR, struct.pack("=II", 5, 0) + b"user.x\0value", made.node) == b""
    assert kernel.ask(Opcode.GETXATTR, struct.pack("=II", 64, 0) + b"user.x\0", made.node) == b"value"
    assert kernel.ask(Opcode.REMOVEXATTR, b"user.x\0", made.node) == b""
    assert kernel.errno(Opcode.GETXATTR, struct.pack("=II", 64, 0) + b"user.x\0", made.node) == errno.ENODATA


def test_a_value_with_zeros_in_it() -> None:
    kernel = Kernel(Memory())
    kernel.ask(Opcode.SETXATTR, struct.pack("=II", 6, 0) + b"user.x\0\0a\0b\0\0")
    assert kernel.ask(Opcode.GETXATTR, struct.pack("=II", 64, 0) + b"user.x\0") == b"\0a\0b\0\0"


def test_attributes_are_changed_one_by_one() -> None:
    kernel = Kernel(Memory())
    node = kernel.create(b"file").node

    def change(**values: int) -> Attr:
        return Attr.parse(kernel.ask(Opcode.SETATTR, setattr_in(**values), node)[16:])

    assert change(valid=1 << 0, mode=stat.S_IFREG | 0o600, uid=9).mode == stat.S_IFREG | 0o600
    owned = change(valid=1 << 1 | 1 << 2, uid=7, gid=8, mode=0)
    assert (owned.uid, owned.gid, owned.mode) == (7, 8, stat.S_IFREG | 0o600)
    assert change(valid=1 << 3, size=12).size == 12
    dated = change(valid=1 << 4 | 1 << 5, atime=5, atimensec=6, mtime=-1, mtimensec=NS - 1)
    assert (dated.atime, dated.atimensec, dated.mtime, dated.mtimensec) == (5, 6, -1, NS - 1)
    now = change(valid=1 << 4 | 1 << 5 | 1 << 7 | 1 << 8, atime=5, mtime=5)
    assert now.atime > 1_600_000_000 and now.mtime > 1_600_000_000
    assert change(valid=1 << 30 | 1 << 6, mode=0, size=0, fh=3) == now, "what is not known changes nothing"


def test_forgetting_is_counted() -> None:
    memory = Memory()
    kernel = Kernel(memory)
    node = kernel.create(b"file").node  # 1
    kernel.lookup(b"file")  # 2
    kernel.ask(Opcode.LINK, struct.pack("=Q", node) + b"again\0")  # 3
    kernel.readdir(plus=True)  # 5: it is there twice
    kernel.readdir()
    kernel.attr(node)
    kernel.forget(node, 4)
    assert memory.forgotten == []
    kernel.forget(node, 1)
    assert memory.forgotten == [node]
    kernel.forget(node, 1)
    assert memory.forgotten == [node], "what the kernel was not given it can't forget"
    kernel.lookup(b"file")
    kernel.forget(node, 10)
    assert memory.forgotten == [node, node]


@both_ways
def test_forgetting_many(of: Of) -> None:
    memory = of(Memory)()
    kernel = Kernel(memory)
    nodes = [kernel.create(name).node for name in (b"a", b"b", b"c")]
    kernel.lookup(b"b")
    pairs = b"".join(struct.pack("=QQ", node, 1) for node in [*nodes, 99])
    assert kernel(Opcode.BATCH_FORGET, struct.pack("=II", 4, 0) + pairs) is None
    assert memory.forgotten == [nodes[0], nodes[2]]


def test_who_only_reads_is_told_nothing_of_forgetting() -> None:
    for file_system in (Still(), tree()):
        Kernel(file_system).forget(1, 1)


class Noted(OpenFile):
    def __init__(self) -> None:
        self.notes: list[Any] = []

    def write(self, offset: int, data: bytes) -> int:
        self.notes.append((offset, data))
        return len(data)

    def fsync(self, *, data_only: bool) -> None:
        self.notes.append(data_only)

    def flush(self) -> None:
        raise failed(errno.ENOSPC)

    def release(self) -> None:
        self.notes.append("released")


def test_an_open_file_takes_what_is_written_to_it() -> None:
    noted = Noted()

    class Notebook(Memory):
        def open(self, inode: InodeNumber, flags: int) -> OpenFile:
            assert flags == os.O_RDWR
            return noted

    kernel = Kernel(Notebook())
    handle, flags, _padding = struct.unpack("=QII", kernel.ask(Opcode.OPEN, struct.pack("=II", os.O_RDWR, 0)))
    assert flags == 0
    assert kernel.ask(Opcode.WRITE, reading(3, 2, handle) + b"hi") == struct.pack("=II", 2, 0)
    for flags in (0, 1):
        assert kernel.ask(Opcode.FSYNC, struct.pack("=QII", handle, flags, 0)) == b""
    assert kernel.errno(Opcode.FLUSH, struct.pack("=QIIQ", handle, 0, 0, 0)) == errno.ENOSPC, "close(2) says so"
    kernel.ask(Opcode.RELEASE, struct.pack("=QIIQ", handle, 0, 0, 0))
    assert noted.notes == [(3, b"hi"), False, True, "released"]
    assert kernel.ask(Opcode.RELEASE, struct.pack("=QIIQ", handle, 0, 0, 0)) == b""


# -- modules that are wrong


@pytest.mark.parametrize("wrong", [None, "text", 5, [5], object()])
@pytest.mark.parametrize(
    "opcode", [Opcode.READ, Opcode.READLINK, Opcode.GETATTR, Opcode.STATFS, Opcode.READDIR, Opcode.WRITE]
)
def test_an_answer_of_the_wrong_type_is_an_error(wrong: Any, opcode: Opcode) -> None:
    """None above all: a reply of no bytes at all is one that the reader waits for for ever."""

    if (opcode, wrong) == (Opcode.WRITE, 5):
        wrong = -5  # 5 bytes would be a right answer
    methods = ("getattr", "read", "readlink", "statfs", "readdir", "write")
    file_system: FileSystem = type("Wrong", (Memory,), dict.fromkeys(methods, lambda self, *_: wrong))()
    with pytest.raises((TypeError, ValueError, AttributeError, struct.error)):
        Kernel(file_system)(opcode, reading())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind_are_bytes(kind: Callable[[bytes], Any]) -> None:
    class Raw(Still):
        def read(self, inode: InodeNumber, offset: int, size: int) -> Any:
            return kind(b"raw")

    assert Kernel(Raw()).ask(Opcode.READ, reading()) == b"raw"


# -- whatever comes


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.sampled_from([Memory, Still, tree, lambda: computed_file(lambda: "")]),
    st.lists(
        st.tuples(
            st.sampled_from([*Opcode, 0, 77]),
            st.integers(0, 4) | st.integers(0, (1 << 64) - 1),
            st.binary(max_size=120)
            | st.builds(lambda size, rest: bytes(size) + rest, st.integers(0, 90), st.binary(max_size=40)),
        ),
        max_size=6,
    ),
)
def test_any_body_is_answered_or_refused(
    make: Callable[[], FileSystem], requests: list[tuple[int, int, bytes]]
) -> None:
    operations = Operations(make())
    for opcode, node, body in requests:
        try:
            reply = operations.dispatch(decode(request(opcode, body, node=node)))
        except (OSError, ValueError, IndexError):
            continue
        assert isinstance(reply, bytes | list) or (reply is None and opcode in (Opcode.FORGET, Opcode.BATCH_FORGET))
