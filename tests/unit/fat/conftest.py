"""What all tests of the FAT and exFAT reader share: images are looked at as the host of a file system does it."""

from __future__ import annotations

import errno
import gc
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.unit.images import ImageFile, MemoryImage
from tests.unit.limits import not_hanging
from viewfs.modules.api import Attributes, DirectoryEntry, FileSystem, Identities, InodeNumber, Mounting, Source
from viewfs.modules.framework.sources import joined

#: What damage may be told with.
DAMAGE = frozenset((errno.EIO, errno.EUCLEAN))
#: Bytes that are asked for at once, and the most that is read of one file.
PIECE, MOST = 1 << 17, 64 << 20
#: Names that are looked at in one image, and directories within each other: damage can make each that of every other.
NAMES, DEPTH = 20_000, 24
#: Bytes of memory that a hostile image may take.
ROOM = 512 << 20


def file_system(source: Source, **options: str | int) -> FileSystem:
    """The reader under test. This is the one place that knows how it is made.

    Options are given as text, as a user gives them, but for `offset`.
    """
    from viewfs.modules.formats.fat.module import Exfat, Vfat

    offset = int(options.get("offset", 0))
    module = (Exfat if source.pread(11, offset)[3:] == b"EXFAT   " else Vfat)()
    values = {option.name: option.default for option in module.options}
    for option in module.options:
        if option.name in options:
            given = options[option.name]
            values[option.name] = option.parse(given) if isinstance(given, str) else given
    identities = Identities(1, 1, frozenset((1,)), frozenset((1,)))
    return module.open(Mounting(source, "image", "/mnt", identities, values))


class Opened:
    """A file system that has been opened. Paths are relative to its root, which is ""."""

    def __init__(self, system: FileSystem) -> None:
        self.system: Any = system
        self._errors: dict[str, int] = {}
        self._tree: dict[str, bytes | None] | None = None

    def find(self, path: str) -> Attributes | None:
        """Each part of `path` looked up; None where there is no such name. Raises OSError."""
        attributes: Attributes | None = self.system.getattr(self.system.root)
        for part in filter(None, path.split("/")):
            assert attributes is not None
            attributes = self.system.lookup(attributes.ino, os.fsencode(part))
            if attributes is None:
                return None
        return attributes

    def stat(self, path: str) -> Attributes:
        attributes = self.find(path)
        assert attributes is not None, f"{path} is not found"
        return attributes

    def entries(self, inode: InodeNumber, start: int = 0) -> tuple[list[DirectoryEntry], OSError | None]:
        """What readdir gives behind cookie `start`, but for `.` and `..`, and what is wrong with the rest."""
        found: list[DirectoryEntry] = []
        last = start
        try:
            for entry in self.system.readdir(inode, start):
                assert entry.cookie > last, entry
                assert entry.name and b"/" not in entry.name and b"\0" not in entry.name, entry
                last = entry.cookie
                found.append(entry)
                assert len(found) <= NAMES
        except OSError as error:
            return [entry for entry in found if entry.name not in (b".", b"..")], error
        return [entry for entry in found if entry.name not in (b".", b"..")], None

    def names(self, path: str = "", start: int = 0) -> list[str]:
        """Raises OSError where not all can be listed."""
        found, error = self.entries(self.stat(path).ino, start)
        if error is not None:
            raise error
        return [os.fsdecode(entry.name) for entry in found]

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self._read(self.stat(path).ino, offset, size)

    def _read(self, inode: InodeNumber, offset: int, size: int) -> bytes:
        """Up to `size` bytes. A reader may stop in front of damage, and raise where it is asked for the rest."""
        end, pieces = min(offset + size, self.system.getattr(inode).size), list[bytes]()
        while offset < end or not pieces:
            content = self.system.read(inode, offset, size)
            pieces.append(joined(content if isinstance(content, list) else [content]))
            assert len(pieces[-1]) <= size and (pieces[-1] or offset >= end)
            offset, size = offset + len(pieces[-1]), size - len(pieces[-1])
        return b"".join(pieces)

    def content(self, attributes: Attributes) -> bytes:
        pieces: list[bytes] = []
        for offset in range(0, min(attributes.size, MOST), PIECE):
            pieces.append(self._read(attributes.ino, offset, PIECE))
            assert len(pieces[-1]) == min(PIECE, attributes.size - offset)
        assert self._read(attributes.ino, attributes.size, PIECE) == b""
        return b"".join(pieces)

    def tree(self) -> dict[str, bytes | None]:
        """Content by path, None for directories. What raised OSError is not among it (`errors`), or not all of it."""
        if self._tree is None:
            self._tree = {}
            self._walk(self.system.root, "", {self.system.root}, 0)
        return self._tree

    def errors(self) -> dict[str, int]:
        """errno by path of what could not be looked up, listed or read."""
        self.tree()
        return self._errors

    def _walk(self, directory: InodeNumber, above: str, seen: set[InodeNumber], depth: int) -> None:
        tree = self._tree
        assert tree is not None
        entries, damage = self.entries(directory)
        if damage is not None:
            assert damage.errno is not None
            self._errors[above] = damage.errno
        for entry in entries:
            path = f"{above}/{os.fsdecode(entry.name)}".lstrip("/")
            if len(tree) >= NAMES:
                return
            try:
                attributes = self.system.lookup(directory, entry.name)
                assert attributes is not None, f"{path} is listed and not found"
                assert self.system.getattr(attributes.ino) == attributes
                if stat.S_ISDIR(attributes.mode):
                    tree[path] = None
                    if attributes.ino not in seen and depth < DEPTH:
                        seen.add(attributes.ino)
                        self._walk(attributes.ino, path, seen, depth + 1)
                else:
                    assert stat.S_ISREG(attributes.mode)
                    tree[path] = self.content(attributes)
            except OSError as error:
                self._errors[path] = error.errno


Opener = Callable[..., Opened]


@pytest.fixture
def open_image() -> Iterator[Opener]:
    """Opens images, paths or bytes, and closes them after the test."""
    with ExitStack() as stack:

        def opened(image: Path | bytes | bytearray | Source, **options: Any) -> Opened:
            source: Any = image
            if isinstance(image, Path):
                source = stack.enter_context(ImageFile(image))
            elif isinstance(image, bytes | bytearray):
                source = MemoryImage(bytes(image))
            return Opened(file_system(source, **options))

        yield opened


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """A MemoryError ends what takes far more memory than there is use for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def bounded(bounded_memory: None) -> Iterator[None]:
    """A test ends too."""
    with not_hanging():
        yield


@pytest.fixture(scope="package", autouse=True)
def quick_collection() -> Iterator[None]:
    """Each test ends with a garbage collection, which need not look at all that was imported: there are many tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
