"""What is sent ahead (FUSE_NOTIFY_STORE), as the kernel's end of a descriptor sees it.

Unmounting is the fence of these tests: what was begun is sent before it ends, so what has come by then is all there is.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import socket
import stat
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.fuse_wire import read_directory, reading
from tests.unit.memory_fs import failed
from tests.unit.test_fuse_host import GETATTR, SECONDS, Mount
from viewfs.modules.api import Attributes, DirectoryEntry, FileRange, FileSystem, InodeNumber
from viewfs.mounts.fuse.protocol import Opcode

#: As the module has them: what may be sent for each file that is read, and at most; what is a small file.
CREDIT, CREDIT_MAX, SMALL = 2 << 20, 8 << 20, 64 << 10
STORE = 4


@pytest.fixture(autouse=True)
def interpreter_as_it_was() -> Iterator[None]:
    """A server sets up its process for serving; this one goes on to other tests."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.unfreeze()


class Shelf(FileSystem):
    """Immutable, for any thread: directories of files, by number. Reading one of `broken` fails."""

    immutable = True
    concurrent = True

    def __init__(self, *directories: Iterable[bytes]) -> None:
        self.files: dict[int, bytes] = {}
        self.directories: dict[int, list[tuple[bytes, int]]] = {1: []}
        self.broken: dict[int, int] = {}
        #: From where on a file can't be read.
        self.broken_from: dict[int, int] = {}
        self.failed = threading.Event()
        #: What was read of large files by a thread that answers nobody: (offset, size).
        self.prepared: list[tuple[int, int]] = []
        for number, contents in enumerate(directories):
            directory = 100_000 * (number + 1)
            self.directories[1].append((b"directory %d" % number, directory))
            self.directories[directory] = []
            for place, content in enumerate(contents, directory + 1):
                self.files[place] = content
                self.directories[directory].append((b"file %d" % place, place))

    def getattr(self, inode: InodeNumber) -> Attributes:
        if inode in self.directories:
            return Attributes(inode, stat.S_IFDIR | 0o755)
        return Attributes(inode, stat.S_IFREG | 0o644, len(self.files[inode]))

    def lookup(self, directory: InodeNumber, name: bytes) -> Attributes | None:
        number = dict(self.directories[directory]).get(name)
        return None if number is None else self.getattr(InodeNumber(number))

    def readdir(self, directory: InodeNumber, start: int) -> list[DirectoryEntry]:
        names = [(b".", directory), (b"..", 1), *self.directories[directory]]
        return [
            DirectoryEntry(name, cookie, self.getattr(InodeNumber(number)))
            for cookie, (name, number) in enumerate(names, 1)
        ][start:]

    def read(self, inode: InodeNumber, offset: int, size: int) -> bytes:
        if inode in self.broken:
            self.failed.set()
            raise failed(self.broken[inode])
        if offset >= self.broken_from.get(inode, 1 << 62):
            self.failed.set()
            raise failed(errno.EIO)
        if threading.current_thread().name == "viewfs-ahead" and len(self.files[inode]) > SMALL:
            self.prepared.append((offset, size))
        return self.files[inode][offset : offset + size]


class Store(NamedTuple):
    node: int
    offset: int
    content: bytes


class Kernel(Mount):
    """Keeps what comes unasked apart from the answers."""

    def __init__(self, file_system: FileSystem) -> None:
        super().__init__(file_system)
        self.stores: list[Store] = []

    def _keep(self, message: bytes) -> bool:
        """False if it is an answer."""
        length, code, unique = struct.unpack_from("=IiQ", message)
        assert length == len(message)
        if unique:
            return False
        assert code == STORE, "the only thing that is sent unasked"
        node, offset, size, padding = struct.unpack_from("=QQII", message, 16)
        assert (size, padding) == (len(message) - 40, 0) and size
        self.stores.append(Store(node, offset, message[40:]))
        return True

    def receive(self) -> tuple[int, int, bytes]:
        while self._keep(message := self.ours.recv(1 << 21)):
            pass
        _length, error, unique = struct.unpack_from("=IiQ", message)
        return unique, -error, message[16:]

    def wait_for_more(self) -> None:
        """Something that comes unasked."""
        assert self._keep(self.ours.recv(1 << 21))

    def unmount(self) -> None:
        """All that is still sent is kept."""
        self.ours.shutdown(socket.SHUT_WR)
        while message := self.ours.recv(1 << 21):
            assert self._keep(message)
        super().unmount()

    def list(self, directory: int) -> list[int]:
        """The nodes of a directory, all of it."""
        found: list[int] = []
        cookie = 0
        while True:
            error, body = self.ask(Opcode.READDIRPLUS, reading(cookie, 1 << 16), directory)
            assert error == 0
            if not body:
                return found
            entries = read_directory(body, plus=True)
            found += [one.ino for one in entries if one.name not in (b".", b"..")]
            cookie = entries[-1].cookie

    def read(self, node: int, offset: int = 0, size: int = 131_072) -> bytes:
        error, body = self.ask(Opcode.READ, reading(offset, size), node)
        assert error == 0
        return body

    @property
    def sent(self) -> list[int]:
        """Nodes, in the order in which something of them came unasked."""
        return [store.node for store in self.stores]


@contextmanager
def mounted(file_system: Shelf) -> Iterator[Kernel]:
    kernel = Kernel(file_system)
    kernel.start()
    try:
        yield kernel
    finally:
        kernel.unmount()
    assert kernel.problem is None
    for store in kernel.stores:
        whole = file_system.files[store.node]
        assert store.content == whole[store.offset :][: len(store.content)], f"wrong bytes of {store.node}"
        assert store.offset + len(store.content) <= len(whole), "never beyond the end"
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("viewfs")]
    assert not left, "no thread of the server outlives it"


def texts(count: int, size: int = 500) -> list[bytes]:
    return [b"%d " % number * (size // 4) for number in range(count)]


# -- small files


def test_who_only_lists_gets_nothing() -> None:
    shelf = Shelf(texts(60), texts(60), texts(60))
    with mounted(shelf) as kernel:
        for directory in kernel.list(1):
            assert len(kernel.list(directory)) == 60
    assert kernel.stores == []


def test_reading_one_file_brings_those_behind_it() -> None:
    shelf = Shelf(texts(15), texts(15))
    with mounted(shelf) as kernel:
        nodes = kernel.list(100_000)
        kernel.list(200_000)
        assert kernel.read(nodes[4]) == shelf.files[nodes[4]]
    # Not the next one: its reader is most likely asking for it already.
    assert kernel.sent in (nodes[5:], nodes[6:]), "in the order of the directory, each once, none before and no other"
    assert all(store.offset == 0 and store.content == shelf.files[store.node] for store in kernel.stores), "whole"


def test_a_reader_of_every_file_gets_each_at_most_once_unasked() -> None:
    shelf = Shelf(texts(300))
    with mounted(shelf) as kernel:
        nodes = kernel.list(100_000)
        asked = 0
        for place, node in enumerate(nodes):
            if node not in kernel.sent:
                before = len(kernel.sent)
                assert kernel.read(node) == shelf.files[node]
                asked += 1
                # (The other thread may be late on a machine that is busy.)
                if len(kernel.sent) == before and {*nodes[place + 2 :]} - {*kernel.sent}:
                    kernel.wait_for_more()
    assert len(kernel.sent) == len(set(kernel.sent))
    assert set(kernel.sent) <= set(nodes) and asked < len(nodes) / 2


def test_a_file_that_was_not_listed_brings_nothing() -> None:
    shelf = Shelf(texts(15))
    with mounted(shelf) as kernel:
        assert kernel.read(100_003) == shelf.files[100_003]
    assert kernel.stores == []


def test_neither_large_files_nor_empty_ones_nor_directories_are_sent() -> None:
    sizes = [100, 100, 0, SMALL, SMALL + 1, 100, 1 << 20, 300]
    shelf = Shelf([bytes([place + 1]) * size for place, size in enumerate(sizes)])
    with mounted(shelf) as kernel:
        nodes = kernel.list(100_000)
        kernel.read(nodes[0])
    assert set(kernel.sent) <= {nodes[at] for at in (1, 3, 5, 7)} and {nodes[5], nodes[7]} <= set(kernel.sent)


@pytest.mark.parametrize("size", [SMALL, 60_000, 1000, 1])
def test_credit_bounds_what_is_sent_unasked(size: int) -> None:
    """Each read is worth so many pages and no more: the rest of a large directory waits for the next one."""
    count = 3 * CREDIT // size + 10 if size > 1000 else 2500
    shelf = Shelf([bytes([place & 0xFF]) * size for place in range(count)])
    with mounted(shelf) as kernel:
        nodes = kernel.list(100_000)
        kernel.read(nodes[0])
    sent = sum(-(-len(store.content) // 4096) * 4096 for store in kernel.stores)
    assert 0 < sent < CREDIT + SMALL, "the last one may go beyond it, but it is the last one"
    if size > 1000:
        assert sent > CREDIT // 4, "and it is made use of"


def test_credit_does_not_pile_up() -> None:
    """Reading the same file again and again is not worth more than the most that is ever sent at once."""
    small = [b"x" * 100] * 10
    shelf = Shelf(small, *[[bytes([place]) * SMALL for place in range(20)]] * 20)
    with mounted(shelf) as kernel:
        nodes = kernel.list(100_000)
        for _again in range(50):
            kernel.read(nodes[-1])
        for directory in range(200_000, 2_100_000, 100_000):
            kernel.list(directory)
    assert SMALL < sum(len(store.content) for store in kernel.stores) < CREDIT_MAX + SMALL


# -- files that are read from one end to the other


def test_what_follows_in_a_file_that_is_read_on_is_decompressed() -> None:
    """And not sent: the kernel reads ahead of such a reader itself."""
    shelf = Shelf([random.Random(1).randbytes(5 << 20)])
    shelf.read_ahead = 1 << 20
    with mounted(shelf) as kernel:
        for offset in range(0, 4 * 131_072, 131_072):
            assert kernel.read(100_001, offset) == shelf.files[100_001][offset:][:131_072]
    assert kernel.stores == []
    assert shelf.prepared, "three reads that follow one another are a habit"
    place = 3 * 131_072
    for start, size in shelf.prepared:
        assert start >= place, "in order, nothing twice, and not what has been asked for"
        place = start + size
    assert 4 * 131_072 + (1 << 19) < place <= 5 * 131_072 + shelf.read_ahead, "as far as was said"


@pytest.mark.parametrize("read_ahead", [0, 1 << 20])
def test_random_reads_prepare_nothing(read_ahead: int) -> None:
    shelf = Shelf([random.Random(3).randbytes(4 << 20)])
    shelf.read_ahead = read_ahead
    chance = random.Random(4)
    with mounted(shelf) as kernel:
        before = -1
        for _time in range(100):
            offset = chance.randrange(0, (4 << 20) // 4096) * 4096
            if offset == before + 4096:
                continue
            assert kernel.read(100_001, offset, 4096) == shelf.files[100_001][offset:][:4096]
            before = offset
        for _time in range(5):
            kernel.read(100_001, 0, 4096)  # the same again is not going on either
        for start in (0, 1 << 20, 2 << 20):  # and twice is no habit
            kernel.read(100_001, start)
            kernel.read(100_001, start + 131_072)
    assert (kernel.stores, shelf.prepared) == ([], [])


def test_nothing_is_read_ahead_where_the_file_system_does_not_want_it() -> None:
    shelf = Shelf([random.Random(5).randbytes(4 << 20)])
    with mounted(shelf) as kernel:
        for offset in range(0, 1 << 20, 131_072):
            kernel.read(100_001, offset)
    assert (kernel.stores, shelf.prepared) == ([], [])


def test_a_file_that_is_not_compressed_is_left_to_the_kernel(tmp_path: Path) -> None:
    """It is looked at once, and then for a long time not again."""
    path = tmp_path / "image"
    path.write_bytes(bytes(4 << 20))
    image = os.open(path, os.O_RDONLY)
    asked: list[int] = []

    class Stored(Shelf):
        def read(self, inode: InodeNumber, offset: int, size: int) -> list[FileRange]:  # type: ignore[override]
            if threading.current_thread().name == "viewfs-ahead":
                asked.append(offset)
            return [FileRange(image, offset, min(size, (4 << 20) - offset))]

    shelf = Stored([bytes(4 << 20)])
    shelf.read_ahead = 1 << 20
    try:
        with mounted(shelf) as kernel:
            for offset in range(0, 60 * 16_384, 16_384):
                assert kernel.ask(Opcode.READ, reading(offset, 16_384), 100_001) == (0, bytes(16_384))
    finally:
        os.close(image)
    assert len(asked) == 1


def test_what_can_not_be_decompressed_ahead_is_an_error_for_who_asks(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf([bytes(4 << 20)], texts(30))
    shelf.read_ahead = 1 << 20
    with mounted(shelf) as kernel:
        for offset in range(0, 3 * 131_072, 131_072):
            if offset == 2 * 131_072:
                shelf.broken_from[100_001] = 3 * 131_072
            kernel.read(100_001, offset)
        assert shelf.failed.wait(SECONDS), "it was to be decompressed"
        assert kernel.ask(Opcode.READ, reading(3 * 131_072, 131_072), 100_001) == (errno.EIO, b"")
        kernel.read(kernel.list(200_000)[0])
    assert 200_030 in kernel.sent, "other things go on"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# -- when something goes wrong


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.ENOENT, errno.ENODEV, errno.EBADF])
def test_what_cannot_be_read_ahead_is_an_error_for_who_asks(number: int, caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(texts(30), texts(30))
    shelf.broken[100_010] = number
    with mounted(shelf) as kernel:
        nodes = kernel.list(100_000)
        kernel.read(nodes[0])
        assert shelf.failed.wait(SECONDS), "it was to be sent"
        assert kernel.ask(Opcode.READ, reading(), 100_010) == (number, b"")
        assert kernel.ask(Opcode.GETATTR, GETATTR)[0] == 0
        for node in nodes[12:14]:
            assert kernel.read(node) == shelf.files[node]
        kernel.read(kernel.list(200_000)[0])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "nobody need know"
    assert 100_010 not in kernel.sent
    assert 200_030 in kernel.sent, "sending goes on with other files"


def test_a_fault_of_the_module_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Shelf):
        def read(self, inode: InodeNumber, offset: int, size: int) -> bytes:
            if inode == 100_010:
                raise RuntimeError("a fault of the module")
            return super().read(inode, offset, size)

    shelf = Faulty(texts(30), texts(30))
    with mounted(shelf) as kernel:
        kernel.read(kernel.list(100_000)[0])
        kernel.read(kernel.list(200_000)[0])
    assert "a fault of the module" in caplog.text
    assert 200_030 in kernel.sent


def test_unmounting_while_it_sends() -> None:
    """`mounted` looks for threads that are left."""
    for _again in range(5):
        shelf = Shelf([bytes([place]) * SMALL for place in range(100)], [bytes(8 << 20)])
        shelf.read_ahead = 1 << 20
        with mounted(shelf) as kernel:
            nodes = kernel.list(100_000)
            for node in nodes[:3]:
                kernel.send(Opcode.READ, reading(0, SMALL), node)
            for offset in range(0, 1 << 20, 131_072):
                kernel.send(Opcode.READ, reading(offset, 131_072), 200_001)
            for _reply in range(11):
                kernel.receive()


def test_what_is_sent_is_counted() -> None:
    with mounted(Shelf(texts(30))) as kernel:
        kernel.read(kernel.list(100_000)[0])
        while kernel.sent[-1:] != [100_030]:
            assert kernel._keep(kernel.ours.recv(1 << 21))
        counted = kernel.counted
    # The last one is counted when it has been sent.
    assert counted.pushes in (len(kernel.stores), len(kernel.stores) - 1)
    assert counted.bytes_pushed == sum(len(store.content) for store in kernel.stores[: counted.pushes])
