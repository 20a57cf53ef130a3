"""Damage, one kind at a time: it is told where it is, and the rest stays readable."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Opener
from ext_images import big_directory, content, debugfs, e2fsck, find, mke2fs, names

from tests.unit.images import MemoryImage
from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.ext.volume import Volume

BLOCK = 1024


@pytest.fixture
def image(tree: Path, tmp_path: Path) -> Path:
    return mke2fs(tmp_path / "image", "-t", "ext4", "-b", str(BLOCK), "-d", tree, size="24M")


@pytest.fixture
def unchecked(tree: Path, tmp_path: Path) -> Path:
    """No checksum stands between damage and the parsers."""
    return mke2fs(tmp_path / "image", "-t", "ext4", "-b", str(BLOCK), "-O", "^metadata_csum", "-d", tree, size="24M")


def patch(image: Path, position: int, data: bytes) -> None:
    with open(image, "r+b") as file:
        file.seek(position)
        file.write(data)


def flip(image: Path, position: int) -> None:
    with open(image, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def place_of_inode(image: Path, path: str) -> int:
    match = re.search(r"located at block (\d+), offset 0x([0-9a-f]+)", debugfs(image, f"imap {path}"))
    assert match
    return int(match[1]) * BLOCK + int(match[2], 16)


def blocks_of(image: Path, path: str) -> list[int]:
    return [int(word) for word in debugfs(image, f"blocks {path}").splitlines()[-1].split()]


def fails(call: Callable[[], object], number: int = errno.EUCLEAN, match: str | None = None) -> None:
    with pytest.raises(OSError, match=match) as caught:
        call()
    assert caught.value.errno == number, caught.value


def readable(volume: Volume, tree: Path, path: str = "large") -> bool:
    return content(volume, find(volume, path)) == (tree / path).read_bytes()


# The superblock and the groups


@pytest.mark.parametrize("position", [0x38, 0x18, 0x20, 0x100])
def test_backup_superblock(position: int, image: Path, tree: Path, opened: Opener) -> None:
    """Of the magic number, sizes, and what only the checksum protects."""
    flip(image, BLOCK + position)
    volume = opened(image)
    (warning,) = volume.warnings
    assert "superblock" in warning and "group 1" in warning
    assert readable(volume, tree)


@pytest.mark.parametrize(
    "options",
    [("-b", "4096"), ("-b", "1024", "-g", "7992"), ("-b", "1024", "-O", "bigalloc", "-C", "16384")],
    ids=" ".join,
)
def test_backup_superblock_of_other_sizes(options: tuple[str, ...], tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext4", *options, "-d", tree, size="260M")
    patch(image, BLOCK, bytes(BLOCK))
    assert readable(opened(image), tree)


def test_journal_of_a_backup_superblock_is_replayed(image: Path, opened: Opener) -> None:
    """The copies don't say that it has to be."""
    block = blocks_of(image, "/large")[0]
    data = image.with_suffix(".data")
    data.write_bytes(b"Z" * BLOCK)
    debugfs(image, "jo -c -v 3", f"jw -b {block} {data}", "jc")
    flip(image, BLOCK + 0x38)
    volume = opened(image)
    assert volume.replayed == 1
    assert volume.read(find(volume, "large"), 0, 2) == b"ZZ"


def test_no_superblock_at_all(tmp_path: Path, image: Path, opened: Opener) -> None:
    for name, data in {
        "empty": b"",
        "short": b"x" * 1500,
        "zeros": bytes(1 << 20),
        "noise": b"\x53\xef" * 99999,
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DamagedSourceError, match=f"{name} is not a readable ext2, ext3 or ext4 file system"):
            opened(tmp_path / name)
        assert not Volume.probe(MemoryImage(data))
    assert Volume.probe(MemoryImage(image.read_bytes()))
    assert Volume.probe(MemoryImage(bytes(77) + image.read_bytes()), 77)
    assert not Volume.probe(MemoryImage(image.read_bytes()), 1 << 70)


@pytest.mark.parametrize(
    ("bit", "name"), [(0, "compression"), (12, "dirdata"), (18, "FEATURE_I18"), (31, "FEATURE_I31")]
)
def test_feature_that_can_not_be_read(bit: int, name: str, unchecked: Path, opened: Opener) -> None:
    data = unchecked.read_bytes()[BLOCK + 0x60 : BLOCK + 0x64]
    patch(unchecked, BLOCK + 0x60, (int.from_bytes(data, "little") | 1 << bit).to_bytes(4, "little"))
    with pytest.raises(DamagedSourceError, match=f"image uses what can't be read: feature {name}"):
        opened(unchecked)


def test_group_descriptor_has_a_copy(image: Path, tree: Path, opened: Opener) -> None:
    flip(image, 2 * BLOCK + 8)
    assert readable(opened(image), tree)


def test_root_directory_that_is_damaged(image: Path, opened: Opener) -> None:
    flip(image, place_of_inode(image, "/") + 4)
    with pytest.raises(DamagedSourceError, match="root directory of image"):
        opened(image)


# Checksums


def test_inode_checksum(image: Path, tree: Path, opened: Opener) -> None:
    flip(image, place_of_inode(image, "/small") + 0x10)
    volume = opened(image)
    inode = find(volume, "small")
    for call in (volume.attributes, volume.xattrs, lambda number: volume.read(number, 0, 1)):
        fails(lambda call=call: call(inode), match=f"checksum of inode {inode}")
    assert readable(volume, tree)


def test_directory_block_checksum(image: Path, tree: Path, opened: Opener) -> None:
    flip(image, blocks_of(image, "/directory/few")[0] * BLOCK + 100)
    volume = opened(image)
    inode = find(volume, "directory/few")
    assert volume.attributes(inode)
    fails(lambda: list(volume.entries(inode, 0)), match=f"block 0 of directory {inode}")
    fails(lambda: volume.lookup(inode, b"absent"))
    assert readable(volume, tree)


def test_a_damaged_block_hides_the_names_in_it_and_no_others(tmp_path: Path, opened: Opener) -> None:
    wanted = names(500)
    image = big_directory(tmp_path / "image", wanted, BLOCK, "-t", "ext2", "-O", "^dir_index")
    patch(image, blocks_of(image, "/big")[3] * BLOCK, bytes(8))  # rec_len 0
    volume = opened(image)
    inode = find(volume, "big")
    found: list[bytes] = []

    def listed(start: int) -> None:
        for name, cookie, *_ in volume.entries(inode, start):
            found.append(name)
            cookies.append(cookie)

    cookies: list[int] = []
    fails(lambda: listed(0), match="impossible length")
    first = next(number for number, name in enumerate(wanted) if name != found[2 + number])
    hidden = len(wanted) + 2 - len(found)
    assert 10 < hidden < 60 and found[2:] == wanted[:first] + wanted[first + hidden :]
    # Who goes on behind the damage is told of it too, at the end.
    del found[:]
    fails(lambda: listed(cookies[-3]), match="impossible length")
    assert found == wanted[-2:]
    assert all(
        volume.lookup(inode, name) for name in (wanted[0], wanted[first - 1], wanted[first + hidden], wanted[-1])
    )
    for name in (*wanted[first : first + hidden], b"absent"):
        fails(lambda name=name: volume.lookup(inode, name))  # type: ignore[misc]


def test_index_checksum(tmp_path: Path, opened: Opener) -> None:
    image = big_directory(tmp_path / "image", names(3000), BLOCK, "-t", "ext4")
    e2fsck(image, "-D")
    flip(image, blocks_of(image, "/big")[0] * BLOCK + 44)
    volume = opened(image)
    fails(lambda: volume.lookup(find(volume, "big"), b"name"), match="index")


def test_extent_block_checksum(image: Path, tree: Path, opened: Opener) -> None:
    match = re.search(r"ETB0\):(\d+)", debugfs(image, "stat /fragments"))
    assert match
    flip(image, int(match[1]) * BLOCK + 20)
    volume = opened(image)
    fails(lambda: content(volume, find(volume, "fragments")), match="checksum")
    assert readable(volume, tree)


def test_xattr_block_checksum(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-b", str(BLOCK), "-d", tree, size="24M")
    debugfs(image, f"ea_set /small user.name {'v' * 300}")
    match = re.search(r"File ACL: (\d+)", debugfs(image, "stat /small"))
    assert match and int(match[1])
    flip(image, int(match[1]) * BLOCK + BLOCK - 3)
    volume = opened(image)
    fails(lambda: volume.xattrs(find(volume, "small")), match="checksum")
    assert readable(volume, tree, "small")


# The end of the image


def test_image_that_is_cut_off(image: Path, tree: Path, opened: Opener) -> None:
    last = max(blocks_of(image, "/large"))
    with open(image, "r+b") as file:
        file.truncate(last * BLOCK)
    volume = opened(image)
    inode = find(volume, "large")
    size = volume.attributes(inode).size
    fails(lambda: volume.read(inode, size - 10, 10), errno.EIO)
    assert volume.read(inode, 0, 100_000) == (tree / "large").read_bytes()[:100_000]
    assert readable(volume, tree, "small")


def test_source_that_gives_less_than_it_says(image: Path) -> None:
    source = MemoryImage(image.read_bytes()[: min(blocks_of(image, "/large")[20:]) * BLOCK])
    source.size += 1 << 40
    volume = Volume.open(source)
    fails(lambda: content(volume, find(volume, "large")), errno.EIO)


# What no checksum finds


def test_encrypted_inodes(unchecked: Path, tree: Path, opened: Opener) -> None:
    """Only they can't be read, for want of a key."""
    debugfs(unchecked, *(f"sif /{path} flags 0x80800" for path in ("small", "directory/few", "link")))
    volume = opened(unchecked)
    assert volume.attributes(find(volume, "small")).size == 10
    for call in (
        lambda: volume.read(find(volume, "small"), 0, 1),
        lambda: list(volume.entries(find(volume, "directory/few"), 0)),
        lambda: volume.lookup(find(volume, "directory/few"), b"one"),
        lambda: volume.readlink(find(volume, "link")),
    ):
        fails(call, errno.ENOKEY, "encrypted")
    assert readable(volume, tree)


@pytest.mark.parametrize("size", [0, 1000, 1 << 31, (1 << 63) - 1024, 1 << 63])
def test_directory_of_impossible_size(size: int, tree: Path, tmp_path: Path, opened: Opener) -> None:
    options = ("-t", "ext4", "-b", str(BLOCK), "-O", "^metadata_csum,large_dir")
    image = mke2fs(tmp_path / "image", *options, "-d", tree, size="24M")
    debugfs(image, f"sif /directory/few size {size}")
    volume = opened(image)
    inode = find(volume, "directory/few")
    fails(lambda: list(volume.entries(inode, 0)))
    fails(lambda: volume.lookup(inode, b"absent"))


def test_file_of_impossible_size(unchecked: Path, opened: Opener) -> None:
    debugfs(unchecked, "sif /small size 0x7fffffffffffffff", "sif /more size 0x8000000000000000")
    volume = opened(unchecked)
    inode = find(volume, "small")
    assert volume.read(inode, (1 << 42) - 10, 10) == bytes(10)  # 2^32 blocks are all that a file can have.
    fails(lambda: volume.read(inode, (1 << 42) - 10, 11))
    fails(lambda: volume.read(inode, 1 << 50, 1000))
    fails(lambda: volume.attributes(find(volume, "more")))


@pytest.mark.parametrize("size", [0, 61, 5000, 0xFFFFFFFF])
def test_link_of_impossible_length(size: int, unchecked: Path, opened: Opener) -> None:
    debugfs(unchecked, f"sif /link size {size}")
    volume = opened(unchecked)
    fails(lambda: volume.readlink(find(volume, "link")))


def test_extent_tree_that_leads_to_itself(unchecked: Path, opened: Opener) -> None:
    match = re.search(r"ETB0\):(\d+)", debugfs(unchecked, "stat /fragments"))
    assert match
    block = int(match[1])
    for depth in (1, 2, 5, 6, 0xFFFF):
        node = struct.pack("<HHHHI", 0xF30A, 1, 84, depth, 0) + struct.pack("<IIHH", 0, block, 0, 0)
        patch(unchecked, block * BLOCK, node)
        volume = opened(unchecked)
        fails(lambda volume=volume: content(volume, find(volume, "fragments")))


def test_indirect_block_that_leads_to_itself(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext2", "-b", str(BLOCK), "-d", tree, size="24M")
    match = re.search(r"\(DIND\):(\d+)", debugfs(image, "stat /large"))
    assert match
    block = int(match[1])
    patch(image, block * BLOCK, struct.pack("<256I", *[block] * 256))
    debugfs(image, "sif /large size 0x7fffffffff", f"sif /large block[TIND] {block}")
    volume = opened(image)
    inode = find(volume, "large")
    for offset in (1 << 20, 100 << 20, 10 << 30):
        assert len(volume.read(inode, offset, 1 << 20)) == 1 << 20
    patch(image, block * BLOCK, struct.pack("<256I", *[0x7FFFFFFF] * 256))
    fails(lambda: content(opened(image), inode))


def test_index_that_leads_to_itself(tmp_path: Path, opened: Opener) -> None:
    image = big_directory(tmp_path / "image", names(9000), BLOCK, "-t", "ext4", "-O", "^metadata_csum")
    e2fsck(image, "-D")
    blocks = blocks_of(image, "/big")
    assert "Indirect levels: 1" in debugfs(image, "htree /big")
    fresh = image.read_bytes()
    for target in (0, 1, 100_000):  # The root itself, a leaf, and what is not there.
        data = bytearray(fresh)
        root = blocks[0] * BLOCK
        _, count = struct.unpack_from("<HH", data, root + 32)
        for index in range(count):
            struct.pack_into("<I", data, root + 36 + index * 8, target)
        image.write_bytes(data)
        volume = opened(image)
        inode = find(volume, "big")
        try:
            volume.lookup(inode, b"absent")
        except OSError as error:
            assert error.errno == errno.EUCLEAN
        assert len(list(volume.entries(inode, 0))) == 9002


def test_directory_that_is_all_one_block(unchecked: Path, opened: Opener) -> None:
    """Many extents, one place on disk: it ends."""
    (block,) = blocks_of(unchecked, "/void")
    extents = b"".join(struct.pack("<IHHI", index * 30000, 30000, 0, 1) for index in range(4))
    place = place_of_inode(unchecked, "/void") + 0x28
    patch(unchecked, place, struct.pack("<HHHHI", 0xF30A, 4, 4, 0, 0) + extents)
    debugfs(unchecked, "sif /void size 0x1400000")
    volume = opened(unchecked)
    fails(lambda: list(volume.entries(find(volume, "void"), 0)))
    assert block


def test_unknown_types_and_unused_inodes(unchecked: Path, opened: Opener) -> None:
    debugfs(unchecked, "sif /small mode 0", "sif /more mode 0170644", "sif /large links_count 0")
    volume = opened(unchecked)
    for path in ("small", "more", "large"):
        fails(lambda path=path: volume.attributes(find(volume, path)))


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0x18, 63), (0x20, 0), (0x20, 1 << 30), (0x28, 0), (0x28, 1 << 20), (0x14, 5), (0x4, 0), (0x0, 0), (0x0, 1 << 31)],
)
def test_superblock_that_contradicts_itself(offset: int, value: int, tree: Path, tmp_path: Path) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext2", "-b", str(BLOCK), "-d", tree, size="7M")  # One group, no copies.
    patch(image, BLOCK + offset, value.to_bytes(4, "little"))
    with pytest.raises(DamagedSourceError):
        Volume.open(MemoryImage(image.read_bytes()))


@pytest.mark.parametrize(("offset", "value"), [(0x58, 0), (0x58, 100), (0x58, 4096), (0xFE, 63), (0xFE, 96)])
def test_sizes_of_structures_that_can_not_be(offset: int, value: int, tree: Path, tmp_path: Path) -> None:
    options = ("-t", "ext4", "-b", str(BLOCK), "-O", "^metadata_csum,^has_journal,64bit")
    image = mke2fs(tmp_path / "image", *options, "-d", tree, size="8M")
    patch(image, BLOCK + offset, value.to_bytes(2, "little"))
    with pytest.raises(DamagedSourceError):
        Volume.open(MemoryImage(image.read_bytes()))
