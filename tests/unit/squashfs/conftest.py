"""What all tests of the squashfs reader share."""

from __future__ import annotations

import errno
import gc
import os
import random
import resource
import stat
import tarfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.unit.images import ImageFile
from tests.unit.limits import not_hanging
from tests.unit.squashfs.squashfs_images import STORED, Member, available, member, mksquashfs_from_tar, tar
from tests.unit.squashfs.squashfs_parts import Parts
from viewfs.modules.formats.squashfs.volume import Volume

Opener = Callable[..., Volume]
#: Bytes that a hostile image may make the reader take, with all that it keeps.
ROOM = 512 << 20


@pytest.fixture(scope="package", autouse=True)
def quick_collection() -> Iterator[None]:
    """Each test ends with a garbage collection, which need not look at all that was imported: there are many tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens images, and closes them after the test."""
    with ExitStack() as stack:

        def open_volume(path: Path, **options: int) -> Volume:
            source = stack.enter_context(ImageFile(path))
            return Volume.open(source, name=path.name, **options)

        yield open_volume


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bounded_memory: a MemoryError ends what takes far more than there is use for")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """The limit is gone again when pytest reports what went wrong."""
    if item.get_closest_marker("bounded_memory") is None:
        return (yield)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def bounded_time() -> Iterator[None]:
    with not_hanging():
        yield


def text(size: int, seed: int) -> bytes:
    """What can be compressed, and is not the same anywhere."""
    lines = (b"%d: line %d of a text that goes on\n" % (seed, number) for number in range(size // 30 + 1))
    return b"".join(lines)[:size]


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> None:
    """A file of `size` bytes that is holes but for `pieces`, which are at these places."""
    with open(path, "wb") as file:
        for position, data in pieces:
            file.seek(position)
            file.write(data)
        file.truncate(size)


def make_tree(root: Path, block: int) -> None:
    """Files of every kind that an ordinary user can make, with the sizes that matter for blocks of `block` bytes."""
    noise = random.Random(1)
    for name, size in {
        "empty": 0,
        "tiny": 1,
        "small": 1000,
        "under": block - 1,
        "exact": block,
        "over": block + 1,
        "two": 2 * block,
        "many": 2 * block + block // 3 if block > 1 << 19 else 7 * block + block // 3,
    }.items():
        (root / name).write_bytes(text(size, size))
    (root / "twin").write_bytes((root / "over").read_bytes())  # mksquashfs stores its blocks only once.
    (root / "noise").write_bytes(noise.randbytes(block + 777))
    (root / "zeros").write_bytes(bytes(100))
    part = noise.randbytes(block)
    sparse(root / "hole first", 3 * block, (2 * block, part))
    sparse(root / "hole inside", 4 * block + 99, (0, part[::-1]), (3 * block + 5, part[:999]))
    sparse(root / "hole last", 3 * block + 7, (0, part[:100]))
    sparse(root / "hole", 5 * block + 5)
    sparse(root / "hole of blocks", 2 * block)
    for name, target in {"link": "small", "long link": "c/" * 2047 + "d", "odd link": "é\n"}.items():
        (root / name).symlink_to(target)
    os.symlink(b"\xff\xfe", os.fsencode(root / "bytes link"))
    deep = root
    for level in range(40):
        deep /= f"level {level}"
        deep.mkdir()
    (deep / "file").write_bytes(b"at the bottom")
    names = root / "names"
    names.mkdir()
    for name in (
        b"n" * 255,
        b"\xff\xfe not utf-8",
        "utf-8 \u00e9\u20ac".encode(),
        b"new\nline",
        b"\t ",
        b"-",
        b"*?[a]\\",
    ):
        (names / os.fsdecode(name)).write_bytes(name)
        (names / os.fsdecode(b"d" + name[:254])).mkdir()
    (root / "void").mkdir()
    few = root / "few"
    few.mkdir()
    (few / "one").write_bytes(b"1")
    os.link(root / "small", root / "hard link")
    os.link(root / "small", few / "hard link")
    os.link(root / "many", few / "many")
    os.mkfifo(root / "fifo")
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    os.link(root / "fifo", few / "fifo")
    for name, mode in {"tiny": 0o4751, "under": 0o2710, "exact": 0o400, "void": 0o1777, "few": 0o2755}.items():
        (root / name).chmod(mode)
    times = (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, -1)
    for name, seconds in zip(("empty", "tiny", "small", "two", "many", "void"), times, strict=True):
        os.utime(root / name, (seconds, seconds))
    os.utime(root / "over", ns=(999_999_999, 1_999_999_999))


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The tree for a block size."""

    @cache
    def tree(block: int) -> Path:
        root = tmp_path_factory.mktemp("tree") / f"of {block}"
        root.mkdir(0o755)
        make_tree(root, block)
        return root

    return tree


@pytest.fixture(scope="session")
def tree(trees: Callable[[int], Path]) -> Path:
    return trees(4096)


def give_xattrs(path: Path, values: dict[str, bytes]) -> None:
    """The test is skipped where files have none."""
    try:
        for name, value in values.items():
            os.setxattr(path, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.ENOSPC, errno.E2BIG):
            pytest.skip(f"extended attributes of {path}: {error.strerror}")
        raise


def plain_members() -> list[Member]:
    """Every kind of inode, few enough for each table to be one metadata block."""
    noise = random.Random(7)
    value = noise.randbytes(300)
    sizes = {"empty": 0, "small": 100, "exact": 4096, "large": 30_000, "tail": 9000}
    return [
        member("few", kind=tarfile.DIRTYPE, mode=0o755),
        member("few/one", b"1"),
        member("few/two", b"22"),
        member("void", kind=tarfile.DIRTYPE, mode=0o755),
        member("alone", kind=tarfile.DIRTYPE, mode=0o755),
        member("alone/file", b"alone"),
        member("apart", kind=tarfile.DIRTYPE, mode=0o755),
        member("apart/directory", kind=tarfile.DIRTYPE, mode=0o755, xattrs={"user.d": b"4"}),
        *(member(name, noise.randbytes(size)) for name, size in sizes.items()),
        member("sparse", bytes(4096) + noise.randbytes(4096) + bytes(4 * 4096)),
        member("few/hard link", kind=tarfile.LNKTYPE, linkname="large"),
        member("link", kind=tarfile.SYMTYPE, linkname="target of the link"),
        member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("disk", kind=tarfile.BLKTYPE, devmajor=8, devminor=1, uid=1, gid=6),
        member("fifo", kind=tarfile.FIFOTYPE, uid=70_000),
        member("many", kind=tarfile.DIRTYPE, mode=0o755),
        *(member(f"many/name {index:03d}", b"%d" % index) for index in range(100)),
        member("marked", b"x", xattrs={"user.a": b"1", "user.shared": value, "security.b": b"2"}),
        member("marked too", b"y", xattrs={"user.shared": value, "trusted.c": b"3"}),
        member("marked directory", kind=tarfile.DIRTYPE, mode=0o755, xattrs={"user.d": b"4"}),
        member("marked link", kind=tarfile.SYMTYPE, linkname="x", xattrs={"trusted.c": b"3"}),
        member("marked null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, xattrs={"trusted.c": b"3"}),
        member("marked fifo", kind=tarfile.FIFOTYPE, xattrs={"trusted.c": b"3"}),
    ]


@pytest.fixture(scope="session")
def plains(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """A small image in which nothing is compressed, but could be by the compressor."""

    @cache
    def plain(compressor: str) -> bytes:
        path = tmp_path_factory.mktemp("plain") / "image"
        options = (*STORED, "-exports", "-b", "4096", "-comp", available(compressor))
        return mksquashfs_from_tar(path, tar(*plain_members()), *options).read_bytes()

    return plain


@pytest.fixture(scope="session")
def plain(plains: Callable[[str], bytes]) -> bytes:
    return plains("gzip")


@pytest.fixture
def parts(plain: bytes) -> Parts:
    """`plain`, to be changed."""
    return Parts.of(plain)
