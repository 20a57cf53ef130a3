"""Damaged images as programs see them: a name that is there is listed, and nothing reads as empty that isn't."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs

STRUCTURE = "Structure needs cleaning"
#: What programs ask in which order: a listing alone, attributes with it, names one by one, and copies.
ASKED = {
    "names, then a look": "ls -U /mnt/many > /dev/null; stat /mnt/many/7; cat /mnt/many/7",
    "attributes with the names": "ls -lU /mnt/many > /dev/null; cat /mnt/many/7",
    "a look without a listing": "cat /mnt/many/7",
    "a copy": "cp -r /mnt/many copy",
    "an archive": "tar -C /mnt -cf archive many",
    "a walk": "find /mnt/many -type f -size 0; wc -c /mnt/many/*",
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("damage")
    (top / "tree/many").mkdir(parents=True)
    for number in range(200):
        (top / f"tree/many/{number}").write_text(f"{number}\n")
    return top / "tree"


def ext(image: Path, tree: Path, *options: str) -> Path:
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", *options, "-d", tree, image, "20M")
    return image


def run(*command: str | Path) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}
    ).stdout


def ext_with_a_damaged_inode(image: Path, tree: Path) -> None:
    """One byte of i_size of /many/7, which its checksum is of."""
    found = run("debugfs", "-R", "imap /many/7", ext(image, tree))
    block, offset = re.search(r"block (\d+), offset (0x[0-9a-f]+)", found).groups()  # type: ignore[union-attr]
    patch(image, int(block) * 1024 + int(offset, 16) + 4, b"\xee")


def squashfs_with_a_damaged_inode(image: Path, tree: Path) -> None:
    """A type that no inode has, in a table that is not compressed."""
    run("mksquashfs", tree, image, "-noappend", "-quiet", "-no-progress", "-noI", "-no-fragments")
    content = image.read_bytes()
    (table,) = struct.unpack_from("<Q", content, 64)
    size = len(b"7\n")
    place = table + 2
    # Files without fragments: 32 bytes and 4 for each block; the content of each is what it is called.
    while True:
        kind, start = struct.unpack_from("<H", content, place)[0], struct.unpack_from("<I", content, place + 16)[0]
        if kind == 2 and content[start : start + size] == b"7\n":
            break
        place += 36
    patch(image, place, b"\x63\0")


def patch(image: Path, offset: int, data: bytes) -> None:
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("damage", [ext_with_a_damaged_inode, squashfs_with_a_damaged_inode])
@pytest.mark.parametrize("asked", ASKED)
def test_a_damaged_inode_is_listed_and_never_empty(
    viewfs: Viewfs, tmp_path: Path, many: Path, damage: Callable[[Path, Path], None], asked: str
) -> None:
    image = tmp_path / "image"
    damage(image, many)
    script = f"cd {tmp_path}; ls -U /mnt/many | wc -l; {ASKED[asked]}"
    result = viewfs("run", "--mount", f"{image}:/mnt", "--", "sh", "-c", script, check=False)
    assert result.out.startswith("200\n") and STRUCTURE in result.err and result.code != 0
    assert "/mnt/many/7'" in result.err or "/mnt/many/7:" in result.err or "many/7:" in result.err
    assert not (tmp_path / "copy/7").exists()
    assert "/mnt/many/7\n" not in result.out, "it is no file of no bytes"


@pytest.mark.parametrize("checksums", ["metadata_csum", "^metadata_csum"])
def test_a_damaged_block_hides_the_names_in_it_and_no_others(
    viewfs: Viewfs, tmp_path: Path, many: Path, checksums: str
) -> None:
    image = ext(tmp_path / "image", many, "-O", f"{checksums},^dir_index")
    blocks = run("debugfs", "-R", "blocks /many", image).split()
    patch(image, int(blocks[1]) * 1024 + 4, b"\x03")  # the length of the block's first entry
    script = "ls -U /mnt/many > names; cat /mnt/many/$(tail -1 names) | diff - <(tail -1 names)"
    script += "; cat /mnt/many/absent; wc -l < names"
    result = viewfs("run", "--mount", f"{image}:/mnt", "--", "bash", "-c", f"cd {tmp_path}; {script}", check=False)
    assert 100 < int(result.out) < 200, "those behind it are there, and can be read"
    assert f"reading directory '/mnt/many': {STRUCTURE}" in result.err
    assert f"cat: /mnt/many/absent: {STRUCTURE}" in result.err, "it may be one of those that can't be read"


def test_one_wrong_byte_in_the_only_group_descriptor(viewfs: Viewfs, tmp_path: Path, many: Path) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", many, image, "20M")
    patch(image, 4096 + 12, b"\xee")  # free blocks
    result = viewfs.sh("--mount", f"{image}:/mnt", script="cat /mnt/many/* | sort -n | sha256sum; viewfs log")
    expected = viewfs.sh(script="seq 0 199 | sha256sum").out
    assert result.out.startswith(expected)
    assert "image: the checksum of group descriptor 0 is wrong; it is used all the same" in result.out


@pytest.mark.parametrize("revision", ["0", "1"])
def test_a_copy_of_the_superblock_is_found(viewfs: Viewfs, tmp_path: Path, many: Path, revision: str) -> None:
    """Without -t."""
    image = tmp_path / "image"
    options = ("-t", "ext2", "-r", revision, *(("-O", "none") if revision == "0" else ()))
    run("mke2fs", "-q", "-F", *options, "-b", "1024", "-d", many, image, "20M")
    patch(image, 1024, bytes(1024))
    result = viewfs.sh("--mount", f"{image}:/mnt", script="cat /mnt/many/7; viewfs log")
    assert result.out.startswith("7\n") and "the copy in group 1 is used" in result.out


def test_a_journal_that_cannot_be_read(viewfs: Viewfs, tmp_path: Path, many: Path) -> None:
    """-o norecovery reads the image as it lies there, and the refusal says so."""
    image = ext(tmp_path / "image", many)
    run("debugfs", "-w", "-R", "feature needs_recovery", image)
    found = run("debugfs", "-R", "blocks <8>", image).split()
    patch(image, int(found[0]) * 1024, bytes(12))
    refused = viewfs("run", "--mount", f"{image}:/mnt", "--", "true", check=False)
    assert refused.code == 5 and "-o norecovery" in refused.err and refused.err.count("\n") == 1
    assert viewfs.sh("--mount", f"{image}:/mnt:ext,norecovery", script="cat /mnt/many/7").out == "7\n"


def test_an_external_journal(viewfs: Viewfs, tmp_path: Path, many: Path) -> None:
    journal = tmp_path / "journal"
    run("mke2fs", "-q", "-F", "-O", "journal_dev", "-b", "1024", journal, "4M")
    image = ext(tmp_path / "image", many, "-O", "^has_journal")
    patch(image, 1024 + 0x5C, b"\x04")  # has_journal, and no journal inode: it is elsewhere
    run("debugfs", "-w", "-R", "feature needs_recovery has_journal", image)
    refused = viewfs("run", "--mount", f"{image}:/mnt", "--", "true", check=False)
    assert refused.code == 5 and "-o norecovery" in refused.err
    assert viewfs.sh("--mount", f"{image}:/mnt:ext,norecovery", script="cat /mnt/many/7").out == "7\n"


def test_attributes_that_nobody_may_read_are_not_listed(viewfs: Viewfs, tmp_path: Path, many: Path) -> None:
    image = ext(tmp_path / "image", many)
    for name in ("trusted.one", "user.two"):
        run("debugfs", "-w", "-R", f"ea_set /many/7 {name} value", image)
    script = "getfattr -d -m - /mnt/many/7; cp -a /mnt/many/7 copy"
    result = viewfs.sh("--mount", f"{image}:/mnt", script=f"cd {tmp_path}; {script}")
    assert 'user.two="value"' in result.out and "trusted" not in result.out + result.err


@pytest.mark.needs("mkfs.exfat")
def test_exfat(viewfs: Viewfs, tmp_path: Path) -> None:
    """As programs read it: names longer than 255 bytes of UTF-8, letters of either case, a file with a hole behind."""
    from tests.unit.fat.exfat_writer import ExfatWriter

    image = tmp_path / "card.img"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    run("mkfs.exfat", "-L", "CARD", image)
    writer = ExfatWriter(image.read_bytes())
    long = "日" * 200 + ".txt"
    writer.root.file(long, b"long\n")
    writer.root.file("Photo.JPG", bytes(range(256)) * 300)
    image.write_bytes(writer.finish())
    script = "ls -1 /mnt; cat /mnt/日*; sha256sum < /mnt/pHOTO.jpg; stat -c %F:%s /mnt/Photo.JPG; touch /mnt/new"
    result = viewfs("run", "--mount", f"{image}:/mnt", "--", "sh", "-c", script, check=False)
    expected = viewfs.sh(script="python3 -c 'import sys; sys.stdout.buffer.write(bytes(range(256)) * 300)' | sha256sum")
    assert result.out == f"Photo.JPG\n{long}\nlong\n{expected.out}regular file:76800\n"
    assert "Read-only file system" in result.err
    assert viewfs("inspect", "--json", image).json["layers"][-1]["label"] == "CARD"
