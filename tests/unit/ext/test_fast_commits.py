"""Fast commits are replayed in memory, to what the kernel shows after mounting a copy (tests/data/make-fast-commit)."""

from __future__ import annotations

import errno
import hashlib
import lzma
import random
import stat
import struct
from pathlib import Path

import pytest
from ext_images import content, find, walk
from test_fuzz import read_everything

from tests.unit.images import MemoryImage
from viewfs.modules.formats.ext.checksums import crc32c, seed_from_disk, stored
from viewfs.modules.formats.ext.fastcommit import FieldsTag, NameTag, RangeTag, TagKind, parse_fast_commits
from viewfs.modules.formats.ext.mapping import ChangedMap, Run
from viewfs.modules.formats.ext.volume import ROOT, Volume

DATA = Path(__file__).parents[2] / "data"
BLOCK = 1024
SEQUENCE = 7


@pytest.fixture(scope="module")
def image() -> bytes:
    return lzma.decompress((DATA / "fast-commit.img.xz").read_bytes())


@pytest.fixture(scope="module")
def area(image: bytes) -> int:
    """Where the fast commits begin: with the only tag HEAD at the beginning of a block."""
    return next(at for at in range(0, len(image), BLOCK) if image[at : at + 8] == struct.pack("<HHI", 9, 8, 0))


def commit(*tags: tuple[int, bytes], first: bool = False, sequence: int = SEQUENCE) -> bytes:
    """One fast commit in one block."""
    data = struct.pack("<HHII", TagKind.HEAD, 8, 0, sequence) if first else b""
    data += b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in tags)
    data += struct.pack("<HHI", TagKind.TAIL, BLOCK - len(data) - 4, sequence)
    return (data + struct.pack("<I", stored(crc32c(data, seed_from_disk(0))))).ljust(BLOCK, b"\0")


def name(kind: int, parent: int, inode: int, text: bytes) -> tuple[int, bytes]:
    return kind, struct.pack("<II", parent, inode) + text


def span(inode: int, logical: int, length: int, physical: int) -> tuple[int, bytes]:
    return TagKind.ADD_RANGE, struct.pack("<IIHHI", inode, logical, length, physical >> 32, physical & 0xFFFFFFFF)


def with_commits(image: bytes, area: int, *tags: tuple[int, bytes]) -> Volume:
    """The image with one fast commit in place of those that it has."""
    sequence = int.from_bytes(image[area + 8 : area + 12], "little")
    block = commit(*tags, first=True, sequence=sequence)
    return Volume.open(MemoryImage(image[:area] + block + bytes(BLOCK) + image[area + 2 * BLOCK :]))


def test_everything_is_as_the_kernel_shows_it(image: bytes) -> None:
    volume = Volume.open(MemoryImage(image))
    assert volume.warnings == ()
    assert volume.replayed >= 5
    sums, described = (DATA / "fast-commit.sums").read_text().split("\n\n")
    found = dict(walk(volume))
    assert volume.lookup(ROOT, b"never-synchronized") is None
    for line in sums.splitlines():
        digest, path = line.split("  ./")
        assert hashlib.sha256(content(volume, found[path.encode()])).hexdigest() == digest, path
        assert find(volume, path) == found[path.encode()]
    shown = set()
    for line in described.splitlines():
        path, size, mode, nlink, inode, mtime, sectors = line.split(" ")
        shown.add(path[2:].encode())
        number = found.get(path[2:].encode(), ROOT)
        attributes = volume.attributes(number)
        assert (number, stat.S_IMODE(attributes.mode), attributes.nlink) == (int(inode), int(mode, 8), int(nlink)), path
        if size != "-":
            assert (attributes.size, attributes.blocks) == (int(size), int(sectors)), path
            seconds, fraction = mtime.split(".")
            assert attributes.mtime_ns == int(seconds) * 10**9 + int(fraction[:9]), path
    assert set(found) | {b""} == shown


def test_without_replay_nothing_of_it_is_seen(image: bytes) -> None:
    volume = Volume.open(MemoryImage(image), replay=False)
    assert volume.lookup(ROOT, b"created") is None and volume.replayed == 0


def test_listing_goes_on_after_any_cookie(image: bytes) -> None:
    volume = Volume.open(MemoryImage(image))
    for path in ("kept", "made", "emptied"):
        directory = find(volume, path)
        entries = list(volume.entries(directory))
        assert {b".", b".."} <= {entry[0] for entry in entries}
        for index, (text, cookie, inode, _) in enumerate(entries):
            assert list(volume.entries(directory, cookie)) == entries[index + 1 :]
            assert volume.lookup(directory, text) == inode


def test_damage_ends_the_replay_after_the_last_whole_fast_commit(image: bytes, area: int) -> None:
    whole = Volume.open(MemoryImage(image))
    first = bytearray(image)
    first[area + 20] ^= 1
    volume = Volume.open(MemoryImage(bytes(first)))
    (warning,) = volume.warnings
    assert "fast commits" in warning and "checksum" in warning
    assert volume.lookup(ROOT, b"created") is None
    assert content(volume, find(volume, "kept/file4")).startswith(b"4\n"), "what was committed in full is there"
    second = bytearray(image)
    second[area + BLOCK + 6] ^= 1
    volume = Volume.open(MemoryImage(bytes(second)))
    assert volume.warnings == (), "the rest of older ones looks the same"
    assert volume.replayed < whole.replayed
    assert find(volume, "created") and volume.lookup(ROOT, b"renamed") is None


def test_names_that_are_given_and_taken(image: bytes, area: int) -> None:
    plain = Volume.open(MemoryImage(image[:area] + bytes(BLOCK) + image[area + BLOCK :]))
    kept, file1, file2 = find(plain, "kept"), find(plain, "kept/file1"), find(plain, "kept/file2")
    volume = with_commits(
        image,
        area,
        name(TagKind.LINK, ROOT, file1, b"file1"),
        name(TagKind.LINK, ROOT, file2, b"file1"),  # It exists.
        name(TagKind.UNLINK, kept, file1, b"file1"),
        name(TagKind.UNLINK, kept, file1, b"file1"),  # It doesn't any more.
        name(TagKind.UNLINK, kept, file2, b"file2"),  # The last name.
        name(TagKind.LINK, kept, file2, b"again"),
        name(TagKind.LINK, 4711, file1, b"nowhere"),
    )
    assert volume.warnings == ()
    assert volume.lookup(ROOT, b"file1") == file1 and volume.lookup(kept, b"file1") is None
    assert volume.attributes(file1).nlink == 1
    assert volume.lookup(kept, b"again") is None, "an inode without a name is free"
    with pytest.raises(OSError) as caught:
        volume.attributes(file2)
    assert caught.value.errno == errno.EUCLEAN
    assert volume.statistics().free_files == plain.statistics().free_files + 1


@pytest.mark.parametrize("text", [b"..", b"a/b", b"a\0b"])
def test_impossible_names_end_it(image: bytes, area: int, text: bytes) -> None:
    volume = with_commits(
        image, area, name(TagKind.LINK, ROOT, 14, b"good"), name(TagKind.LINK, ROOT, 14, text), (6, bytes(132))
    )
    (warning,) = volume.warnings
    assert "impossible name" in warning
    assert volume.lookup(ROOT, b"good") == 14


def test_ranges_lie_over_what_is_on_disk_and_over_one_another(image: bytes, area: int) -> None:
    plain = Volume.open(MemoryImage(image[:area] + bytes(BLOCK) + image[area + BLOCK :]))
    number = find(plain, "kept/file19")
    before = content(plain, number)
    deleted = TagKind.DEL_RANGE, struct.pack("<III", number, 2, 3)
    expected = bytearray(before)
    volume = with_commits(
        image, area, span(number, 1, 3, 5), deleted, span(number, 3, 1, 2), span(number, 5, 0x8001, 3)
    )
    expected[BLOCK : 5 * BLOCK] = bytes(4 * BLOCK)
    expected[BLOCK : 2 * BLOCK] = image[5 * BLOCK : 6 * BLOCK]
    expected[3 * BLOCK : 4 * BLOCK] = image[2 * BLOCK : 3 * BLOCK]
    expected[5 * BLOCK : 6 * BLOCK] = bytes(BLOCK)
    assert volume.warnings == ()
    assert content(volume, number) == expected
    for offset in range(0, len(before), 700):
        assert volume.read(number, offset, 2000) == expected[offset : offset + 2000]
    for outside in (1, 8192, 1 << 40):
        (warning,) = with_commits(image, area, span(number, 1, 1, outside)).warnings
        assert "outside of the file system" in warning


def test_files_without_extents_are_read_and_warned_of(image: bytes, area: int) -> None:
    """They get the blocks that were written, as when what was in the inode outgrows it; a kernel may lose them."""
    raw = bytearray(160)
    struct.pack_into("<HHI", raw, 0, 0o100644, 0, BLOCK)
    struct.pack_into("<HII", raw, 0x1A, 1, 2, 0)
    raw[0x80] = 32
    fields = TagKind.INODE, struct.pack("<I", 90) + raw
    volume = with_commits(image, area, fields, span(90, 0, 1, 5), name(TagKind.CREAT, ROOT, 90, b"plain"))
    (warning,) = volume.warnings
    assert "without extents: 90" in warning
    assert content(volume, find(volume, "plain")) == image[5 * BLOCK : 6 * BLOCK]


def test_parser_takes_whole_commits_only() -> None:
    tag = name(TagKind.LINK, 2, 12, b"x")
    first, second = commit(tag, first=True), commit((6, struct.pack("<I", 12) + bytes(128)), span(12, 0, 0x8002, 9))
    found = parse_fast_commits([first, second], SEQUENCE, 256)
    assert found.commits == 2 and found.stopped is None
    assert found.tags == [
        NameTag(TagKind.LINK, 2, 12, b"x"),
        FieldsTag(12, bytes(128)),
        RangeTag(12, 0, 2, 0),
    ]
    assert parse_fast_commits([first, second], SEQUENCE + 1, 256) == (0, [], None)
    assert parse_fast_commits([], SEQUENCE, 256) == (0, [], None)
    assert parse_fast_commits([first, commit(tag, sequence=6), second], SEQUENCE, 256).commits == 1
    for bad in ((1, bytes(15)), (3, bytes(8)), (5, bytes(264)), (6, bytes(131)), (6, bytes(261)), (11, b"")):
        found = parse_fast_commits([commit(bad, first=True)], SEQUENCE, 256)
        assert found.commits == 0 and found.stopped, bad
        found = parse_fast_commits([first, commit(bad)], SEQUENCE, 256)
        assert found.commits == 1 and found.stopped is None, bad


def test_changed_map_is_what_block_by_block_gives() -> None:
    class Plain:
        def runs(self, first: int, end: int):  # type: ignore[no-untyped-def]
            if first < end:
                yield Run(first, 1000 + first, end - first)

    noise = random.Random(3)
    for _ in range(200):
        expected = {block: 1000 + block for block in range(40)}
        changes, at = [], 0
        while (at := at + noise.randrange(6)) < 35:
            length, physical = noise.randrange(1, 5), noise.choice((0, 500))
            changes.append(Run(at, physical, length))
            for block in range(at, at + length):
                expected[block] = physical and physical + block - at
            at += length
        first, end = sorted((noise.randrange(40), noise.randrange(40)))
        found = {}
        for run in ChangedMap(Plain(), changes).runs(first, end):
            found |= {run.logical + index: run.physical + index for index in range(run.length)}
        assert found == {block: value for block, value in expected.items() if value and first <= block < end}


def test_hostile_tags_with_a_right_checksum(image: bytes, area: int) -> None:
    """Whatever the tags say, reading gives the allowed errors and comes to an end."""
    noise = random.Random(4)
    sequence = int.from_bytes(image[area + 8 : area + 12], "little")

    def number() -> int:
        return noise.choice((2, 11, 12, 13, 14, 15, 34, 36, 40, noise.randrange(2100), noise.getrandbits(32)))

    def tag() -> tuple[int, bytes]:
        kind = noise.randrange(1, 7)
        if kind == TagKind.ADD_RANGE:
            physical = noise.choice((noise.randrange(8192), noise.getrandbits(48)))
            return span(number(), noise.choice((0, 3, noise.getrandbits(32))), noise.getrandbits(16), physical)
        if kind == TagKind.DEL_RANGE:
            return kind, struct.pack("<III", number(), noise.randrange(9), noise.getrandbits(noise.choice((3, 32))))
        if kind == TagKind.INODE:
            mode = noise.choice((0o40755, 0o100644, 0o120777, noise.getrandbits(16)))
            data = bytearray(struct.pack("<HHI", mode, 0, noise.choice((0, 1024, 9000))) + noise.randbytes(152))
            data[0x1A:0x1C] = noise.choice((b"\1\0", b"\0\0", b"\xff\xff"))
            data[0x20:0x24] = noise.choice((0, 0x80000, 0x10000000, 0x81000, noise.getrandbits(32))).to_bytes(
                4, "little"
            )
            data[0x80:0x82] = noise.choice((b" \0", b"\0\0", b"\x07\0"))
            return kind, struct.pack("<I", number()) + bytes(data)
        return name(kind, number(), number(), noise.choice((b"made", b"kept", b"file1", b"x", noise.randbytes(3))))

    for _ in range(60):
        tags = [tag() for _ in range(noise.randrange(1, 6))]
        block = commit(*tags, first=True, sequence=sequence)
        read_everything(image[:area] + block[:BLOCK] + bytes(BLOCK) + image[area + 2 * BLOCK :])
