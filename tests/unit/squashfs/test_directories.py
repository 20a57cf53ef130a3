"""Names, of few files and of thousands: found, listed, and gone on with."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.unit.images import MemoryImage
from tests.unit.squashfs.conftest import Opener
from tests.unit.squashfs.squashfs_images import (
    COMPRESSORS,
    available,
    content,
    find,
    listing,
    mksquashfs,
    unsquashfs_listing,
    walk,
)
from tests.unit.squashfs.squashfs_parts import SUPERBLOCK, Parts, peek
from viewfs.modules.formats.squashfs.volume import Volume


def long_names(count: int) -> list[bytes]:
    """Some short, some that differ only at their end, some not ASCII: in the order in which squashfs has them."""
    made = set()
    for index in range(count):
        end = b"%05d" % (index * 7919 % 100_000)
        made.add(
            (b"a" + end, b"common prefix of a great length, " * 3 + end, end * 12, b"\xc3\xa9\xff" + end)[index % 4]
        )
    return sorted(made)


@pytest.fixture(scope="session")
def large_directory(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    root = tmp_path_factory.mktemp("large")
    wanted = long_names(3000)
    (root / "big").mkdir()
    for index, name in enumerate(wanted):
        path = root / "big" / os.fsdecode(name)
        if index % 100 == 0:
            path.mkdir()
        elif index % 100 == 1:
            path.symlink_to(f"{index}")
        else:
            path.write_bytes(b"%d" % index)
    return root, wanted


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_directory_with_an_index(
    compressor: str, large_directory: tuple[Path, list[bytes]], tmp_path: Path, opened: Opener
) -> None:
    root, wanted = large_directory
    image = mksquashfs(tmp_path / "image", root, "-comp", available(compressor), "-b", "64K")
    volume = opened(image)
    big = find(volume, "big")
    assert volume.lookup(volume.root, b"big") == big
    entries = {name: (node, kind) for name, _, node, kind in volume.entries(big, 0)}
    assert list(entries)[:2] == [b".", b".."] and list(entries)[2:] == wanted
    assert entries[b"."][0] == big and entries[b".."][0] == volume.root
    for name in wanted[:5] + wanted[1490:1510] + wanted[-5:] + wanted[::37]:
        node = volume.lookup(big, name)
        assert node is not None and node == entries[name][0]
        assert entries[name][1] == stat.S_IFMT(volume.attributes(node).mode) >> 12
        if entries[name][1] == stat.S_IFREG >> 12:
            assert content(volume, node) == b"%d" % wanted.index(name)
    for name in absent(wanted):
        assert volume.lookup(big, name) is None, name
    assert listing(volume) == unsquashfs_listing(image)


def absent(wanted: list[bytes]) -> list[bytes]:
    """Names before the first, after the last, and between any two."""
    known = set(wanted)
    made = [b"\0", b"\1", b"!", b"\xff" * 255, b"z", b"", b"a", b"common prefix", b"x" * 256, b"x" * 5000]
    for name in wanted[::29]:
        made += [name[:-1], name + b"\0", name + b"!", name[:-1] + bytes([name[-1] - 1]), name[:-1] + b"\xff"]
    return [name for name in made if name not in known]


def test_index_is_there(large_directory: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    """The test above is of what it says, and a lookup reads less than the directory."""
    root, wanted = large_directory
    data = mksquashfs(tmp_path / "image", root, "-noI", "-noX").read_bytes()
    parts = Parts.of(data)
    assert parts.get("big", "type") == 8 and parts.get("big", "index_count") > 5
    source = MemoryImage(data)
    volume = Volume.open(source)
    big = find(volume, "big")
    source.reads.clear()
    assert volume.lookup(big, wanted[-1]) is not None
    start, end = (peek(parts.superblock, SUPERBLOCK, name) for name in ("directory_table", "fragment_table"))
    assert sum(size for size, offset in source.reads if start <= offset < end) < (end - start) // 2


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 700])
def test_going_on_from_any_cookie(count: int, tmp_path: Path, opened: Opener) -> None:
    """Around 256 names, which is all that one header is for."""
    tree = tmp_path / "tree"
    (tree / "d" / "e").mkdir(parents=True)
    for index in range(count):
        (tree / "d" / "e" / f"{index:04d}{'x' * (index % 30)}").touch()
    volume = opened(mksquashfs(tmp_path / "image", tree))
    inner = find(volume, "d/e")
    every = list(volume.entries(inner, 0))
    assert len(every) == count + 2
    assert [(name, node, kind) for name, _, node, kind in every[:2]] == [
        (b".", inner, 4),
        (b"..", find(volume, "d"), 4),
    ]
    cookies = [cookie for _, cookie, _, _ in every]
    assert len(set(cookies)) == len(cookies) and all(0 < cookie < 1 << 63 for cookie in cookies)
    for index in {*range(0, len(every), 13), *range(min(5, len(every))), len(every) - 1}:
        assert list(volume.entries(inner, cookies[index])) == every[index + 1 :]


def test_cookies_that_were_never_given(tmp_path: Path, opened: Opener) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    volume = opened(mksquashfs(tmp_path / "image", tmp_path / "tree"))
    every = list(volume.entries(volume.root, 0))
    for cookie in (-5, 5, 1000, 1 << 40, (1 << 63) - 1):
        try:
            assert all(entry in every for entry in volume.entries(volume.root, cookie))
        except OSError:
            pass


def test_deep_directories(tmp_path: Path, opened: Opener) -> None:
    deep = tmp_path / "tree"
    deep.mkdir()
    for _ in range(300):
        deep /= "d"
        deep.mkdir()
    (deep / "file").write_bytes(b"bottom")
    volume = opened(mksquashfs(tmp_path / "image", tmp_path / "tree"))
    node = find(volume, "d/" * 300 + "file")
    assert content(volume, node) == b"bottom"
    # And up again by `..`.
    node = find(volume, "d/" * 300)
    for _ in range(300):
        node = next(entry for entry in volume.entries(node, 0) if entry[0] == b"..")[2]
    assert node == volume.root


@pytest.mark.parametrize("options", [(), ("-no-exports",)], ids=" ".join)
def test_parents(options: tuple[str, ...], tree: Path, tmp_path: Path, opened: Opener) -> None:
    """`..` is the directory that has the name; or the directory itself, where no table of exports leads there."""
    volume = opened(mksquashfs(tmp_path / "image", tree, "-b", "4K", *options))
    parents = {b"": volume.root} | dict(walk(volume))
    for path, node in parents.items():
        if stat.S_ISDIR(volume.attributes(node).mode):
            dots = [(name, inode) for name, _, inode, _ in volume.entries(node, 0)][:2]
            parent = parents[path.rpartition(b"/")[0]]
            assert dots == [(b".", node), (b"..", parent)] or (options and dots == [(b".", node), (b"..", node)]), path
