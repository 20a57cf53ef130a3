"""An unclean journal is replayed in memory, to what e2fsck makes of it, and the image stays as it is."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import struct
from pathlib import Path

import pytest
from conftest import Opener
from ext_images import UUID, content, debugfs, find, mke2fs, replay_journal, walk

from tests.unit.images import ImageFile, MemoryImage
from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.ext.checksums import crc32_big_endian, crc32c, stored
from viewfs.modules.formats.ext.image import Image
from viewfs.modules.formats.ext.journal import Logged, fast_commit_blocks, parse_journal_superblock, replay
from viewfs.modules.formats.ext.volume import Volume

BLOCK = 1024

#: Features of the file system, and how debugfs opens the journal: v1 has no checksum of its own in any other block
#: than the commit block, and the checksum of what debugfs writes with revocations is one that e2fsck rejects.
KINDS = {
    "none-32bit": ("^metadata_csum,^64bit", "jo"),
    "none-64bit": ("^metadata_csum,64bit", "jo"),
    "v1": ("^metadata_csum,^64bit", "jo -c"),
    "v2": ("metadata_csum,64bit", "jo -c -v 2"),
    "v3": ("metadata_csum,64bit", "jo -c -v 3"),
    "v3-32bit": ("metadata_csum,^64bit", "jo -c -v 3"),
}


def make(tmp_path: Path, tree: Path, features: str) -> Path:
    options = ("-t", "ext4", "-b", str(BLOCK), "-O", features, "-J", "size=1")
    return mke2fs(tmp_path / "image", *options, "-d", tree, size="24M")


@pytest.fixture
def image(tree: Path, tmp_path: Path) -> Path:
    return make(tmp_path, tree, "metadata_csum,64bit")


def blocks_of(image: Path, path: str) -> list[int]:
    return [int(word) for word in debugfs(image, f"blocks {path}").splitlines()[-1].split()]


def written(image: Path, data: bytes) -> Path:
    path = image.with_suffix(f".{hashlib.md5(data).hexdigest()}")
    path.write_bytes(data)
    return path


def write(image: Path, blocks: list[int], data: bytes, options: str = "") -> str:
    return f"jw {options} -b {','.join(map(str, blocks))} {written(image, data)}"


def replayed_by_e2fsck(image: Path) -> Path:
    copy = image.with_suffix(".replayed")
    shutil.copy(image, copy)
    replay_journal(copy)
    return copy


def everything(volume: Volume) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for path, inode in walk(volume):
        attributes = volume.attributes(inode)
        regular = stat.S_ISREG(attributes.mode)
        found[path] = (attributes, content(volume, inode) if regular else None, dict(volume.xattrs(inode)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_replays_what_e2fsck_replays(kind: str, tree: Path, tmp_path: Path, opened: Opener) -> None:
    features, journal_open = KINDS[kind]
    image = make(tmp_path, tree, features)
    before = opened(image)
    more, large = blocks_of(image, "/more"), blocks_of(image, "/large")
    table = image.read_bytes()
    old_large = content(before, find(before, "large"))
    inode_block = re.search(r"located at block (\d+)", debugfs(image, "imap /small"))
    assert inode_block
    number = int(inode_block[1])
    changed = bytearray(table[number * BLOCK : (number + 1) * BLOCK])
    commands = [
        write(image, more[:1], b"\xc0\x3b\x39\x98" + b"first".ljust(BLOCK - 4, b"!")),  # Has to be escaped.
        write(image, large[:3], b"A" * BLOCK + b"B" * BLOCK + b"C" * BLOCK),
        write(image, [*large[5:7], number], b"D" * BLOCK + b"E" * BLOCK + bytes(changed)),
        f"jw -r {large[1]}" if kind != "v1" else write(image, large[1:2], old_large[BLOCK : 2 * BLOCK]),
        write(image, large[2:3], b"F" * BLOCK),
        write(image, large[9:10], b"never committed".ljust(BLOCK, b"?"), "-c"),
    ]
    debugfs(image, journal_open, *commands, "jc")
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    volume = opened(image)
    assert "needs_recovery" in volume.features
    assert volume.replayed == 5
    assert volume.warnings == ()
    expected = opened(replayed_by_e2fsck(image))
    assert expected.replayed == 0
    assert everything(volume) == everything(expected)
    data, old = content(volume, find(volume, "large")), old_large
    assert data[:BLOCK] == b"A" * BLOCK
    assert data[BLOCK : 2 * BLOCK] == old[BLOCK : 2 * BLOCK]
    assert data[2 * BLOCK : 3 * BLOCK] == b"F" * BLOCK
    assert data[3 * BLOCK : 5 * BLOCK] == old[3 * BLOCK : 5 * BLOCK]
    assert data[5 * BLOCK : 7 * BLOCK] == b"D" * BLOCK + b"E" * BLOCK
    assert data[7 * BLOCK :] == old[7 * BLOCK :]
    assert content(volume, find(volume, "more")).startswith(b"\xc0\x3b\x39\x98first!!")
    assert volume.read(find(volume, "large"), BLOCK - 7, 14) == b"A" * 7 + old[BLOCK : BLOCK + 7]
    with ImageFile(image) as source:
        unplayed = Volume.open(source, replay=False)
        assert everything(unplayed) == everything(before) and unplayed.replayed == 0
    assert hashlib.sha256(image.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("kind", "where"),
    [("v1", "data"), ("v1", "descriptor")]
    + [(kind, where) for kind in ("v2", "v3") for where in ("data", "descriptor", "commit", "revocation")],
)
def test_stops_at_the_first_transaction_that_is_damaged(
    kind: str, where: str, tree: Path, tmp_path: Path, opened: Opener
) -> None:
    features, journal_open = KINDS[kind]
    image = make(tmp_path, tree, features)
    large = blocks_of(image, "/large")
    debugfs(
        image,
        journal_open,
        write(image, large[:1], b"G" * BLOCK),
        f"{write(image, large[1:2], b'H' * BLOCK)}" if where != "revocation" else f"jw -r {large[0]}",
        write(image, large[2:3], b"I" * BLOCK),
        "jc",
    )
    data = bytearray(image.read_bytes())
    magic = b"\xc0\x3b\x39\x98"
    log = data.index(b"G" * BLOCK) // BLOCK - 1  # The descriptor of the first transaction.
    second = log + 3
    assert data[second * BLOCK :].startswith(magic)
    place = {"descriptor": second, "revocation": second, "data": second + 1, "commit": second + 2}[where]
    data[place * BLOCK + (40 if where != "data" else 5)] ^= 1
    image.write_bytes(data)
    volume = opened(image)
    assert volume.replayed == 1
    (warning,) = volume.warnings
    assert "checksum" in warning and "journal" in warning
    assert volume.read(find(volume, "large"), 0, BLOCK) == b"G" * BLOCK
    assert volume.read(find(volume, "large"), 2 * BLOCK, 1) != b"I"


def test_superblock_is_that_of_the_journal(image: Path, opened: Opener) -> None:
    """What was renamed last is in the log only."""
    renamed = image.with_suffix(".renamed")
    shutil.copy(image, renamed)
    debugfs(renamed, "ssv volume_name renamed")
    block = renamed.read_bytes()[BLOCK : 2 * BLOCK]
    debugfs(image, "jo", write(image, [1], block), "jc")
    volume = opened(image)
    assert (volume.label, volume.replayed) == ("renamed", 1)


def test_journal_inode_that_is_damaged(image: Path, opened: Opener) -> None:
    """The superblock has a copy of where the journal is."""
    large = blocks_of(image, "/large")
    debugfs(image, "jo", write(image, large[:1], b"J" * BLOCK), "jc")
    match = re.search(r"located at block (\d+), offset 0x([0-9a-f]+)", debugfs(image, "imap <8>"))
    assert match
    data = bytearray(image.read_bytes())
    position = int(match[1]) * BLOCK + int(match[2], 16)
    data[position : position + 256] = bytes(256)
    image.write_bytes(data)
    volume = opened(image)
    assert volume.read(find(volume, "large"), 0, 3) == b"JJJ"


def test_journal_on_another_device(tree: Path, tmp_path: Path, opened: Opener) -> None:
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-b", "4096", "-O", "^has_journal", "-d", tree)
    debugfs(image, "feature has_journal", f"ssv journal_uuid {UUID}", "ssv journal_dev 0x801")
    assert opened(image).replayed == 0
    debugfs(image, "feature needs_recovery")
    with pytest.raises(DamagedSourceError, match=f"another device .*{UUID}"):
        opened(image)
    journal = mke2fs(tmp_path / "journal", "-b", "4096", "-O", "journal_dev")
    with pytest.raises(DamagedSourceError, match="external journal"):
        opened(journal)


def test_journal_that_is_damaged(image: Path, opened: Opener) -> None:
    large = blocks_of(image, "/large")
    debugfs(image, "jo", write(image, large[:1], b"K" * BLOCK), "jc")
    data = bytearray(image.read_bytes())
    journal = data.index(b"\xc0\x3b\x39\x98\0\0\0\4")
    data[journal] = 0
    image.write_bytes(data)
    with pytest.raises(DamagedSourceError, match=r"image .*journal"):
        opened(image)
    with ImageFile(image) as source:
        assert find(Volume.open(source, replay=False), "large")


# What debugfs doesn't write: journals made by hand.


class Log:
    """A journal of blocks of 1 KiB."""

    def __init__(
        self,
        *,
        length: int = 64,
        start: int = 1,
        sequence: int = 1,
        compat: int = 0,
        incompat: int = 1,
        fast: int = 0,
    ) -> None:
        self.blocks = [bytes(BLOCK)] * length
        self.at, self.sequence = start, sequence
        self.wide, self.summed = bool(incompat & 2), bool(incompat & 0x18)
        header = self.header(4, 0) + struct.pack(">5I", BLOCK, length, 1, sequence, start) + bytes(4)
        data = header + struct.pack(">3I", compat, incompat, 0) + bytes(range(16)) + struct.pack(">I", 1)
        data = data.ljust(0x54, b"\0") + struct.pack(">I", fast)
        data = data.ljust(BLOCK, b"\0")
        if self.summed:
            data = data[:0xFC] + stored(crc32c(data)).to_bytes(4, "big") + data[0x100:]
        self.blocks[0] = data
        self.checksum: int | None = None

    def header(self, kind: int, sequence: int | None = None) -> bytes:
        return struct.pack(">III", 0xC03B3998, kind, self.sequence if sequence is None else sequence)

    def put(self, data: bytes) -> None:
        self.blocks[self.at] = data.ljust(BLOCK, b"\0")
        self.at = self.at + 1 if self.at + 1 < len(self.blocks) else 1

    def write(self, blocks: dict[int, bytes], flags: int = 0) -> None:
        descriptor = self.header(1)
        for index, block in enumerate(blocks):
            tag_flags = flags | (2 if index else 0) | (8 if index + 1 == len(blocks) else 0)
            descriptor += struct.pack(">IHH", block & 0xFFFFFFFF, 0, tag_flags)
            descriptor += struct.pack(">I", block >> 32) if self.wide else b""
            descriptor += b"" if index else bytes(16)
        pieces = [descriptor.ljust(BLOCK, b"\0"), *(data.ljust(BLOCK, b"\0") for data in blocks.values())]
        value = 0xFFFFFFFF
        for piece in pieces:
            value = crc32_big_endian(piece, value)
            self.put(piece)
        self.checksum = value

    def revoke(self, *blocks: int) -> None:
        packed = b"".join(struct.pack(">Q" if self.wide else ">I", block) for block in blocks)
        self.put(self.header(5) + struct.pack(">I", 16 + len(packed)) + packed)

    def commit(self, checksum: int | None = None) -> None:
        self.put(self.header(2) + (b"" if checksum is None else struct.pack(">BBHI", 1, 4, 0, checksum)))
        self.sequence = self.sequence + 1 & 0xFFFFFFFF

    def replay(self) -> dict[int, bytes]:
        superblock = parse_journal_superblock(self.blocks[0], BLOCK, len(self.blocks))
        self.outcome = replay(superblock, self.blocks.__getitem__, 1 << 40)
        return {block: self.blocks[logged.place][:1] for block, logged in self.outcome.blocks.items()}


def test_log_that_begins_again_at_its_beginning_with_numbers_that_do() -> None:
    log = Log(length=16, start=12, sequence=0xFFFFFFFE)
    for letter in (b"a", b"b", b"c"):
        log.write({7: letter, ord(letter): letter})
        log.commit()
    assert log.replay() == {7: b"c", 97: b"a", 98: b"b", 99: b"c"}
    assert (log.outcome.transactions, log.outcome.next_sequence, log.outcome.stopped) == (3, 1, None)


def test_log_of_old_transactions_ends_where_numbers_do_not_follow() -> None:
    log = Log(sequence=5)
    log.write({1: b"a"})
    log.commit()
    log.sequence = 3
    log.write({1: b"b"})
    log.commit()
    assert log.replay() == {1: b"a"}


@pytest.mark.parametrize("incompat", [1, 3])
def test_revocations_hold_until_a_block_is_written_again(incompat: int) -> None:
    high = 5 + (1 << 34 if incompat & 2 else 0)
    log = Log(incompat=incompat)
    log.write({high: b"a", 6: b"a", 7: b"a"})
    log.commit()
    log.revoke(high, 6)
    log.write({8: b"b"})
    log.commit()
    log.write({6: b"c"})
    log.commit()
    assert log.replay() == {6: b"c", 7: b"a", 8: b"b"}


def test_checksums_of_commit_blocks() -> None:
    log = Log(compat=1)
    log.write({1: b"a", 2: b"b"})
    log.commit(log.checksum)
    log.write({3: b"c"})
    log.commit()  # None at all is valid too.
    log.write({4: b"d"})
    log.commit(12345)
    log.write({5: b"e"})
    log.commit(log.checksum)
    assert log.replay() == {1: b"a", 2: b"b", 3: b"c"}
    assert log.outcome.stopped and "checksum" in log.outcome.stopped


def test_crc_is_the_one_with_the_high_bit_first() -> None:
    assert crc32_big_endian(b"123456789") == 0x0376E6E7  # CRC-32/MPEG-2


def test_fast_commits_have_blocks_of_their_own() -> None:
    log = Log(length=1040, incompat=0x21, fast=8)
    log.write({1: b"a"})
    log.commit()
    superblock = parse_journal_superblock(log.blocks[0], BLOCK, len(log.blocks))
    assert (superblock.end, superblock.fast_commit_end) == (1032, 1040)
    assert fast_commit_blocks(superblock) == range(1033, 1040)
    assert log.replay() == {1: b"a"} and log.outcome.next_sequence == 2


def test_log_that_never_ends() -> None:
    log = Log(length=8)
    for place in range(1, 8):
        log.blocks[place] = (log.header(5) + struct.pack(">I", 16)).ljust(BLOCK, b"\0")
    assert log.replay() == {}
    assert log.outcome.transactions == 0


def test_escaped_blocks() -> None:
    log = Log()
    log.write({1: b"\0\0\0\0rest"}, flags=1)
    log.commit()
    log.replay()
    assert log.outcome.blocks == {1: Logged(2, True)}


def test_image_reads_moved_blocks_from_where_they_are() -> None:

    from viewfs.modules.formats.ext.image import Moved

    data = b"".join(bytes([65 + index]) * 1024 for index in range(8))
    image = Image(MemoryImage(data), 0)
    image.replay({1: Moved(7 * 1024, True), 2: Moved(6 * 1024, False), 5: Moved(7 * 1024, False)}, 1024)
    expected = bytearray(data)
    expected[1024:2048] = b"\xc0\x3b\x39\x98" + b"H" * 1020
    expected[2048:3072] = b"G" * 1024
    expected[5120:6144] = b"H" * 1024
    for size, position in ((8192, 0), (1, 1023), (2, 1023), (1024, 1500), (5000, 1), (3, 1025), (1024, 3072)):
        assert image.pread(size, position) == expected[position : position + size]
