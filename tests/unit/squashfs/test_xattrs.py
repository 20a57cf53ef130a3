"""Owners and extended attributes, of which there are more than fill one metadata block, and kinds of inodes."""

from __future__ import annotations

import os
import random
import stat
import tarfile
from pathlib import Path

import pytest

from tests.unit.squashfs.conftest import Opener, give_xattrs
from tests.unit.squashfs.squashfs_images import (
    COMPRESSORS,
    assert_same_tree,
    available,
    find,
    listing,
    member,
    mksquashfs,
    mksquashfs_from_tar,
    opened_bytes,
    superblock_says,
    tar,
    unsquashfs,
    unsquashfs_listing,
    walk,
    xattrs_of,
)
from tests.unit.squashfs.squashfs_parts import Parts

# Owners


def test_many_owners(tmp_path: Path, opened: Opener) -> None:
    """More than fill one metadata block."""
    (tmp_path / "tree").mkdir()
    owners = {f"file{index}": (index * 1_000_003 % 0xFFFFFFFF, index + 5) for index in range(2500)}
    pseudo = "".join(f"{name} i 644 {uid} {gid} f\n" for name, (uid, gid) in owners.items())
    image = mksquashfs(tmp_path / "image", tmp_path / "tree", pseudo=pseudo)
    volume = opened(image)
    for name, owner in owners.items():
        attributes = volume.attributes(find(volume, name))
        assert (attributes.uid, attributes.gid) == owner
    assert superblock_says(image)["ids"] > 4096
    assert listing(volume) == unsquashfs_listing(image)


# Extended attributes


def test_xattrs_of_a_tree(tmp_path: Path, opened: Opener) -> None:
    tree = tmp_path / "tree"
    (tree / "directory").mkdir(parents=True)
    for name in ("none", "one", "many", "shared", "shared too", "empty value"):
        (tree / name).write_bytes(name.encode())
    noise = random.Random(4)
    shared = {"user.shared": noise.randbytes(900), "user.other": noise.randbytes(500)}
    give_xattrs(tree / "one", {"user.one": b"1"})
    give_xattrs(tree / "many", {f"user.name {index}": noise.randbytes(index) for index in range(30)})
    give_xattrs(tree / "shared", shared)
    give_xattrs(tree / "shared too", shared | {"user.third": b"3"})
    give_xattrs(tree / "empty value", {"user.empty": b"", "user.zeros": bytes(10)})
    give_xattrs(tree / "directory", {"user.é\n": b"\xff\xfe"})
    for options in ((), ("-noX",), ("-noI", "-noX")):
        image = mksquashfs(tmp_path / "image", tree, *options)
        volume = opened(image)
        assert not volume.no_xattrs
        assert_same_tree(volume, tree)
        for path in ("", *os.listdir(tree)):
            assert dict(volume.xattrs(find(volume, path))) == xattrs_of(tree / path), path
    out = unsquashfs(image, tmp_path / "out", "-user-xattrs")
    for path, node in walk(volume):
        assert dict(volume.xattrs(node)) == xattrs_of(out / os.fsdecode(path)), path


def test_no_xattrs(tree: Path, tmp_path: Path, opened: Opener) -> None:
    marked = tmp_path / "tree"
    marked.mkdir()
    (marked / "file").touch()
    give_xattrs(marked / "file", {"user.x": b"y"})
    volume = opened(mksquashfs(tmp_path / "image", marked, "-no-xattrs"))
    assert volume.no_xattrs and not volume.xattrs(find(volume, "file"))
    # There could be some, but there are none.
    volume = opened(mksquashfs(tmp_path / "image2", tree, "-b", "4K"))
    assert volume.no_xattrs and not volume.xattrs(find(volume, "small"))


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_xattrs_that_only_root_could_give(compressor: str, tmp_path: Path, opened: Opener) -> None:
    """Of every namespace, on every kind of inode, with values that are large, and ones that are shared: those that
    mksquashfs stores once, and refers to from elsewhere."""
    noise = random.Random(5)
    shared = noise.randbytes(3000)
    sets = {
        "file": {"user.shared": shared, "security.capability": noise.randbytes(20)},
        "file too": {"user.shared": shared, "trusted.overlay.opaque": b"y"},
        "large": {"user.large": noise.randbytes(60_000), "user.shared": shared},
        "many": {f"user.{index}": b"%d" % index * 40 for index in range(200)},
        "empty": {"user.empty": b""},
    }
    kinds = {
        "directory": tarfile.DIRTYPE,
        "link": tarfile.SYMTYPE,
        "character": tarfile.CHRTYPE,
        "block": tarfile.BLKTYPE,
        "fifo": tarfile.FIFOTYPE,
    }
    sets |= {name: {"trusted.kind": name.encode(), "user.shared": shared} for name in kinds}
    members = [
        member(name, b"x" if name not in kinds else b"", kinds.get(name, tarfile.REGTYPE), xattrs, linkname="x")
        for name, xattrs in sets.items()
    ]
    members += [member(f"crowd{index}", xattrs={"user.index": b"%d" % index}) for index in range(700)]
    sets |= {f"crowd{index}": {"user.index": b"%d" % index} for index in range(700)}
    for options in ((), ("-noX",)):
        image = mksquashfs_from_tar(tmp_path / "image", tar(*members), "-comp", available(compressor), *options)
        volume = opened(image)
        assert superblock_says(image)["xattr ids"] > 512  # More than one metadata block of them.
        for name, xattrs in sets.items():
            node = find(volume, name)
            assert dict(volume.xattrs(node)) == {key.encode(): value for key, value in xattrs.items()}, name
            if name in kinds:
                assert volume.attributes(node).nlink == (2 if name == "directory" else 1)
        assert not volume.xattrs(volume.root)
        assert volume.readlink(find(volume, "link")) == b"x"


def test_shared_values_are_out_of_line(plain: bytes) -> None:
    """The images above do have what they are there for."""
    parts = Parts.of(plain)
    entries = bytes(parts.xattrs)
    assert b"shared\x08\0\0\0" in entries and b"\0\1\x06\0shared" in entries
    volume = opened_bytes(plain)
    shared = {volume.xattrs(find(volume, name))[b"user.shared"] for name in ("marked", "marked too")}
    assert [len(value) for value in shared] == [300]
    assert dict(volume.xattrs(find(volume, "marked directory"))) == {b"user.d": b"4"}


def test_every_kind_of_inode_is_tested(plain: bytes) -> None:
    parts = Parts.of(plain)
    paths = [os.fsdecode(path) for path in parts.listing(parts.find("").inode)]
    kinds = {parts.get(path, "type") for path in paths}
    assert kinds == {1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 13}
    volume = opened_bytes(plain)
    for path in paths:
        node = find(volume, path)
        attributes = volume.attributes(node)
        assert attributes.shown_ino == parts.get(path, "number")
        assert attributes.nlink == (parts.get(path, "nlink") if parts.get(path, "type") != 2 else 1)
        assert stat.S_IMODE(attributes.mode) == parts.get(path, "mode")
        assert (attributes.uid, attributes.gid) == tuple(parts.ids[parts.get(path, name)] for name in ("uid", "gid"))
    # mksquashfs makes no extended inode of these without attributes, and tar files have no sockets.
    rdev = parts.get("marked null", "rdev")
    for kind, mode in ((11, stat.S_IFBLK), (14, stat.S_IFSOCK)):
        path = "marked null" if kind == 11 else "marked fifo"
        parts.inodes[parts.find(path).inode] = kind
        node = find(volume := opened_bytes(parts.assemble()), path)
        attributes = volume.attributes(node)
        assert stat.S_IFMT(attributes.mode) == mode
        assert attributes.rdev == (rdev if kind == 11 else 0)
        assert dict(volume.xattrs(node)) == {b"trusted.c": b"3"}
