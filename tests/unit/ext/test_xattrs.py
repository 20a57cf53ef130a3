"""Extended attributes: in the inode, in a block, in inodes of their own; access control lists."""

from __future__ import annotations

import errno
import random
import struct
from pathlib import Path

import pytest
from conftest import Opener
from ext_images import content, debugfs, find, mke2fs

from viewfs.modules.formats.ext.xattr import parse_inode_tail

NOISE = random.Random(4)
VALUES = {
    b"user.small": b"value",
    b"user.empty": b"",
    b"user.binary": bytes(range(256)),
    b"user.middle": NOISE.randbytes(300),
    b"security.capability": struct.pack("<5I", 0x02000001, 0x3000, 0, 0, 0),
    b"trusted.overlay.opaque": b"y",
}


def set_attributes(image: Path, path: str, values: dict[bytes, bytes], raw: str = "") -> None:
    commands = []
    for index, (name, value) in enumerate(values.items()):
        source = image.with_suffix(f".value{index}")
        source.write_bytes(value)
        commands.append(f"ea_set {raw} -f {source} {path} {name.decode()}")
    debugfs(image, *commands)


@pytest.mark.parametrize(
    "options",
    [
        ("-t", "ext4", "-I", "256"),
        ("-t", "ext4", "-I", "1024"),
        ("-t", "ext4", "-I", "128"),
        ("-t", "ext4", "-I", "256", "-O", "^metadata_csum"),
        ("-t", "ext4", "-I", "256", "-O", "inline_data"),
        ("-t", "ext4", "-I", "1024", "-O", "inline_data"),
        ("-t", "ext4", "-I", "256", "-O", "bigalloc", "-C", "8192"),
        ("-t", "ext4", "-I", "256", "-O", "metadata_csum_seed"),
        ("-t", "ext2", "-I", "256"),
    ],
    ids=" ".join,
)
def test_attributes(options: tuple[str, ...], tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", *options, "-b", "4096", "-d", tree, size="24M")
    for path in ("/small", "/directory", "/fifo"):
        set_attributes(image, path, VALUES)
    set_attributes(image, "/link", {b"user.one": b"1" * 300})
    volume = opened(image)
    for path in ("small", "directory", "fifo"):
        assert dict(volume.xattrs(find(volume, path))) == VALUES
    assert content(volume, find(volume, "small")) == (tree / "small").read_bytes()
    assert volume.readlink(find(volume, "link")) == b"small"
    assert dict(volume.xattrs(find(volume, "large"))) == {}
    found = volume.xattrs(find(volume, "small"))
    assert b"user.small" in found and b"user.none" not in found and len(found) == len(VALUES)
    assert b"system.data" not in found


@pytest.mark.parametrize("checksums", ["metadata_csum", "^metadata_csum"])
@pytest.mark.parametrize("block_size", [4096, 65536])
def test_values_in_inodes(block_size: int, checksums: str, tree: Path, tmp_path: Path, opened: Opener) -> None:
    """debugfs takes values of up to a block; what doesn't fit beside the others goes into an inode."""
    options = ("-t", "ext4", "-I", "512", "-b", str(block_size), "-O", f"ea_inode,{checksums}")
    image = mke2fs(tmp_path / "image", *options, "-d", tree, size="64M")
    values = VALUES | {b"user.large": NOISE.randbytes(3000), b"user.largest": NOISE.randbytes(block_size)}
    set_attributes(image, "/small", values)
    volume = opened(image)
    found = volume.xattrs(find(volume, "small"))
    assert dict(found) == values
    assert sorted(found) == sorted(values)


def test_damaged_value_in_an_inode_is_told(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-I", "512", "-b", "4096", "-O", "ea_inode", "-d", tree)
    value = NOISE.randbytes(4096)
    set_attributes(image, "/small", {b"user.large": value, b"user.small": b"fine"})
    data = bytearray(image.read_bytes())
    data[data.index(value) + 7] ^= 1
    image.write_bytes(data)
    volume = opened(image)
    found = volume.xattrs(find(volume, "small"))
    assert found[b"user.small"] == b"fine"
    with pytest.raises(OSError, match="hash") as caught:
        found[b"user.large"]
    assert caught.value.errno == errno.EUCLEAN


def test_access_control_lists_are_as_the_kernel_returns_them(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-d", tree)
    disk = struct.pack("<I", 1)
    disk += struct.pack("<HH", 0x01, 6) + struct.pack("<HHI", 0x02, 5, 1000) + struct.pack("<HH", 0x04, 4)
    disk += struct.pack("<HHI", 0x08, 7, 2000) + struct.pack("<HH", 0x10, 7) + struct.pack("<HH", 0x20, 0)
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 5, 1000), (4, 4, nobody), (8, 7, 2000), (0x10, 7, nobody), (0x20, 0, nobody)]
    wire = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    names = (b"system.posix_acl_access", b"system.posix_acl_default")
    # debugfs converts, unless it is told that the value is as on disk.
    set_attributes(image, "/directory", {names[0]: wire})
    set_attributes(image, "/directory/few", {names[1]: disk}, raw="-r")
    volume = opened(image)
    assert dict(volume.xattrs(find(volume, "directory"))) == {names[0]: wire}
    assert dict(volume.xattrs(find(volume, "directory/few"))) == {names[1]: wire}


def test_no_attributes_anywhere(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext2", "-O", "^ext_attr", "-d", tree)
    assert opened(image).no_xattrs


@pytest.mark.parametrize(("offset", "fine"), [(0, False), (16, False), (23, False), (24, True)])
def test_a_value_that_lies_in_the_list(offset: int, fine: bool) -> None:
    """It would be served as what the file has in it. (The list has 24 bytes, with its end.)"""
    entry = struct.pack("<BBHIII", 4, 7, offset, 0, 10, 0) + b"data"
    tail = (struct.pack("<I", 0xEA020000) + entry + bytes(4) + b"0123456789").ljust(96, b"\0")
    if fine:
        (attribute,) = parse_inode_tail(tail)
        assert attribute.value == b"0123456789"
    else:
        with pytest.raises(OSError, match="lies in the list"):
            parse_inode_tail(tail)
