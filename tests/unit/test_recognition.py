"""What a source is that no module mounts, made by the tools that make such things."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from viewfs.errors import DamagedSourceError
from viewfs.modules.framework.recognition import recognize, recognize_nondescript
from viewfs.modules.framework.registry import probe, source_takers
from viewfs.modules.framework.sources import open_source


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def empty(path: Path, megabytes: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(megabytes << 20)
    return path


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("file"), io.BytesIO())


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file", "content")


def cpio(path: Path) -> None:
    made = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], input=b"/bin/sh\n", stdout=subprocess.PIPE, check=True
    )
    path.write_bytes(made.stdout)


def ar(path: Path) -> None:
    (path.parent / "member").write_text("x")
    run("ar", "rc", path, path.parent / "member")


def database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table one (two)")
    connection.close()


#: What the sentence says, a word of the remedy, and what makes one.
MADE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "gzip": ("a gzip file", "gzip -dk", lambda path: path.write_bytes(gzip.compress(b"x"))),
    "xz": ("an xz file", "xz -dk", lambda path: path.write_bytes(lzma.compress(b"x"))),
    "bzip2": ("a bzip2 file", "bzip2 -dk", lambda path: path.write_bytes(bz2.compress(b"x"))),
    "tar": ("a tar archive", "tar -C", tar),
    "zip": ("a zip archive", "unzip", zipped),
    "ar": ("an ar archive", "ar x", ar),
    "sqlite": ("an SQLite database", "no image", database),
    "xfs": ("an XFS file system", "no reader", lambda path: run("mkfs.xfs", "-q", empty(path, 300))),
    "btrfs": ("a btrfs file system", "no reader", lambda path: run("mkfs.btrfs", "-q", empty(path, 120))),
    "erofs": ("an EROFS file system", "fsck.erofs", lambda path: run("mkfs.erofs", path, "/etc/apt")),
    "minix": ("a minix file system", "no reader", lambda path: run("mkfs.minix", empty(path, 4))),
    "cramfs": ("a cramfs image", "no reader", lambda path: run("mkfs.cramfs", "/etc/apt", path)),
    "swap": ("swap space", "no files", lambda path: run("mkswap", empty(path, 4))),
    "program": ("a program", "no image", lambda path: path.write_bytes(Path("/bin/true").read_bytes())),
    "script": ("a script", "no image", lambda path: path.write_text("#!/bin/sh\n")),
    "text": ("a text", "no image", lambda path: path.write_text("# Grüße\n" * 1000)),
    "empty": ("an empty file", "nothing", lambda path: path.touch()),
    "zeros": ("a file with zeros at its beginning", "offset", lambda path: empty(path, 1)),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_no_module_mounts_is_named(kind: str, tmp_path: Path) -> None:
    sentence, remedy, make = MADE[kind]
    path = tmp_path / "source"
    try:
        make(path)
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not here")
    source = open_source(str(path))
    with pytest.raises(DamagedSourceError) as caught:
        probe(source, "IMAGE", source_takers())
    source.close()
    told = str(caught.value)
    assert f"IMAGE is {sentence}" in told and remedy in told and "\n" not in told
    assert "NAME" not in told


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_a_disk_with_partitions_says_how_to_reach_them(label: str, tmp_path: Path) -> None:
    """The offset that is named is where the first partition begins."""
    disk = empty(tmp_path / "disk", 16)
    subprocess.run(["sfdisk", "-q", disk], input=f"label: {label}\n2MiB,4MiB,L\n", text=True, check=True)
    source = open_source(str(disk))
    found = recognize(source, "disk")
    source.close()
    assert found is not None and "partitions" in found.kind
    assert "-t partitions disk" in found.remedy and "offset=2M" in found.remedy


def test_an_hfs_volume(tmp_path: Path) -> None:
    """A master directory block of 2024 (Inside Macintosh: Files, 2-60), which no tool here makes."""
    path = tmp_path / "hfs"
    block = struct.pack(">2sIIHHHHHIIH", b"BD", 3_800_000_000, 3_800_000_000, 0x100, 3, 3, 0, 1594, 512, 2048, 5)
    path.write_bytes(bytes(1024) + block.ljust(512, b"\0") + bytes(1 << 20))
    source = open_source(str(path))
    found = recognize(source, "hfs")
    source.close()
    assert found is not None and found.kind == "an HFS file system"


def test_a_boot_sector_without_partitions_is_no_disk(tmp_path: Path) -> None:
    disk = empty(tmp_path / "disk", 1)
    with open(disk, "r+b") as file:
        file.seek(510)
        file.write(b"\x55\xaa")
    source = open_source(str(disk))
    assert recognize(source, "disk") is None and recognize_nondescript(source) is None
    source.close()
