"""Large directories, hashed and not, and the hashes of names."""

from __future__ import annotations

import os
import random
import re
import struct
from pathlib import Path

import pytest
from conftest import Opener
from ext_images import (
    UUID,
    big_directory,
    check,
    debugfs,
    e2fsck,
    find,
    linear_directory,
    mke2fs,
    names,
    run,
    tool,
)

from viewfs.modules.formats.ext.namehash import HashVersion, name_hash
from viewfs.modules.formats.ext.volume import Volume

NAMES = names(20_000)


def compare(volume: Volume, wanted: list[bytes]) -> None:
    directory = find(volume, "big")
    entries = list(volume.entries(directory, 0))
    assert sorted(entry[0] for entry in entries) == sorted([b".", b"..", *wanted])
    cookies = [entry[1] for entry in entries]
    assert cookies == sorted(set(cookies)) and cookies[0] > 0 and cookies[-1] < 1 << 63
    for index in range(0, len(entries), 1499):
        assert list(volume.entries(directory, cookies[index])) == entries[index + 1 :]
    assert list(volume.entries(directory, 1 << 62)) == []
    numbers = {entry[0]: entry[2] for entry in entries}
    for name in wanted[::37]:
        assert volume.lookup(directory, name) == numbers[name]
    assert (volume.lookup(directory, b"."), volume.lookup(directory, b"..")) == (directory, 2)
    for name in (b"", b"absent", b"00001-", b"\xff", b"x" * 255, b"x" * 300):
        assert volume.lookup(directory, name) is None


@pytest.mark.parametrize("block_size", [1024, 4096, 65536])
def test_many_names_without_index(block_size: int, tmp_path: Path, opened: Opener) -> None:
    size = "64M" if block_size == 65536 else "16M"
    image = big_directory(tmp_path / "image", NAMES, block_size, "-t", "ext2", "-O", "^dir_index", size=size)
    check(image)
    compare(opened(image), NAMES)


@pytest.mark.parametrize(
    ("block_size", "kind"), [(1024, "half_md4"), (1024, "tea"), (1024, "legacy"), (4096, "half_md4")]
)
def test_many_names_with_index(block_size: int, kind: str, tmp_path: Path, opened: Opener) -> None:
    image = big_directory(tmp_path / "image", NAMES, block_size, "-t", "ext4", "-O", "dir_index")
    debugfs(image, f"ssv def_hash_version {kind}")
    e2fsck(image, "-D")
    check(image)
    shape = debugfs(image, "htree /big")
    assert f"Indirect levels: {1 if block_size == 1024 else 0}" in shape
    compare(opened(image), NAMES)


def test_many_names_with_index_hashed_as_unsigned_characters(tmp_path: Path, opened: Opener) -> None:
    image = big_directory(tmp_path / "image", NAMES, 4096, "-t", "ext4")
    debugfs(image, "ssv flags 2")
    e2fsck(image, "-D")
    check(image)
    compare(opened(image), NAMES)


def test_hash_of_unknown_signedness_is_not_believed(tmp_path: Path, opened: Opener) -> None:
    image = big_directory(tmp_path / "image", NAMES, 4096, "-t", "ext4")
    debugfs(image, "ssv flags 2")
    e2fsck(image, "-D")
    debugfs(image, "ssv flags 0")
    volume = opened(image)
    assert volume.lookup(find(volume, "big"), NAMES[0]) == find(volume, "one")


def test_names_of_one_hash_in_several_blocks(tmp_path: Path, opened: Opener) -> None:
    """With the legacy hash, names that collide are easily found: a leaf is then continued in the next one."""
    noise = random.Random(2)
    by_hash: dict[int, list[bytes]] = {}
    for _ in range(150_000):
        name = b"%06x" % noise.getrandbits(24)
        by_hash.setdefault(name_hash(HashVersion.LEGACY, name, (0, 0, 0, 0)), []).append(name)
    wanted = sorted({name for group in by_hash.values() if len(group) > 1 for name in group})[:3000]
    image = big_directory(tmp_path / "image", wanted, 1024, "-t", "ext4", "-O", "dir_index")
    debugfs(image, "ssv def_hash_version legacy")
    e2fsck(image, "-D")
    volume = opened(image)
    directory = find(volume, "big")
    assert all(volume.lookup(directory, name) for name in wanted)


def test_index_of_three_levels(tmp_path: Path, opened: Opener) -> None:
    wanted = [b"%07d" % number + b"y" * 240 for number in range(47_000)]
    image = big_directory(tmp_path / "image", wanted, 1024, "-t", "ext4", "-O", "large_dir", size="48M")
    e2fsck(image, "-D")
    if "Indirect levels: 2" not in debugfs(image, "htree /big"):
        pytest.skip("this e2fsck makes indexes of no more than two levels")
    volume = opened(image)
    directory = find(volume, "big")
    assert all(volume.lookup(directory, name) for name in wanted[::99])
    assert sum(1 for _ in volume.entries(directory, 0)) == len(wanted) + 2


def test_casefolded_directory_is_looked_up_by_exact_name(tmp_path: Path, opened: Opener) -> None:
    image = big_directory(tmp_path / "image", NAMES[:2000], 1024, "-t", "ext4", "-O", "casefold")
    debugfs(image, "sif /big flags 0x40000000")
    e2fsck(image, "-D")
    volume = opened(image)
    directory = find(volume, "big")
    assert "casefold" in volume.features
    assert volume.lookup(directory, NAMES[2]) and volume.lookup(directory, NAMES[2].upper()) is None


def test_deleted_names_are_gone(tmp_path: Path, opened: Opener) -> None:
    image = big_directory(tmp_path / "image", NAMES[:50], 1024, "-t", "ext4")
    debugfs(image, *(f"unlink /big/{os.fsdecode(name)}" for name in NAMES[1:50:4]))
    volume = opened(image)
    compare(volume, [name for index, name in enumerate(NAMES[:50]) if index % 4 != 1])


def test_inline_directory(tmp_path: Path, opened: Opener) -> None:
    """Entries in i_block, and after them in the attribute system.data, where only the kernel would put some."""
    tree = tmp_path / "tree"
    for name in ("a", "some", "b" * 12):
        (tree / "big" / name).mkdir(parents=True)
    image = mke2fs(tmp_path / "image", "-t", "ext4", "-O", "inline_data", "-d", tree)
    check(image)
    assert "Flags: 0x10000000" in debugfs(image, "stat /big")
    volume = opened(image)
    compare(volume, [b"a", b"some", b"b" * 12])
    inode = find(volume, "big/a")
    more = tmp_path / "more"
    more.write_bytes(
        struct.pack("<IHBB8s", inode, 16, 5, 2, b"fifth") + struct.pack("<IHBB12s", inode, 20, 9, 2, b"and sixth")
    )
    debugfs(image, f"ea_set -f {more} /big system.data", "sif /big size 96")
    volume = opened(image)
    compare(volume, [b"a", b"some", b"b" * 12, b"fifth", b"and sixth"])
    entries = list(volume.entries(find(volume, "big"), 0))
    for index, (_, cookie, _, kind) in enumerate(entries):
        assert kind == 2
        assert list(volume.entries(find(volume, "big"), cookie)) == entries[index + 1 :]


def test_listing_takes_what_is_asked_for(tmp_path: Path, opened: Opener) -> None:
    image = big_directory(tmp_path / "image", NAMES, 4096, "-t", "ext2", "-O", "^dir_index")
    volume = opened(image)
    directory = find(volume, "big")
    first = [next(iter(volume.entries(directory, 0)))]
    while len(first) < 200:
        first.append(next(iter(volume.entries(directory, first[-1][1]))))
    assert [name for name, *_ in first] == [b".", b"..", *NAMES[:198]]


@pytest.mark.parametrize("kind", ["legacy", "half_md4", "tea"])
@pytest.mark.parametrize("name", ["a", "word", "exactly-sixteen.", "somewhat-longer-than-sixteen", "n" * 32, "m" * 255])
@pytest.mark.parametrize("seed", ["00000000-0000-0000-0000-000000000000", UUID])
def test_hash_is_that_of_debugfs(kind: str, name: str, seed: str) -> None:
    output = run(tool("debugfs"), "-R", f"dx_hash -h {kind} -s {seed} {name}")
    match = re.search(r"0x([0-9a-f]+) \(minor", output)
    assert match, output
    data = bytes.fromhex(seed.replace("-", ""))
    words = tuple(int.from_bytes(data[start : start + 4], "little") for start in range(0, 16, 4))
    assert name_hash(HashVersion[kind.upper()], name.encode(), words) == int(match[1], 16)


def test_helper_makes_blocks_that_are_full() -> None:
    assert len(linear_directory([(b"name", 12)], 13, 1024)) == 1024
