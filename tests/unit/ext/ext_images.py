"""Images of ext2, ext3 and ext4 to test with, made by e2fsprogs, and what e2fsprogs says of them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from viewfs.modules.formats.ext.volume import ROOT, Volume

UUID = "01234567-89ab-cdef-0123-456789abcdef"
_SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def tool(name: str) -> str:
    path = shutil.which(name, path=_SEARCH)
    if path is None:
        pytest.skip(f"{name} of e2fsprogs is not installed")
    return path


def run(*command: str | Path, good: Iterable[int] = (0,)) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode in good, f"{command}: {done.returncode}\n{output}"
    return done.stdout.decode(errors="replace")


def mke2fs(path: Path, *options: str | Path, size: str = "16M", unsupported: str = "") -> Path:
    """Make a file system with a fixed UUID; `unsupported` is what an older mke2fs may say, to be skipped."""
    command = [tool("mke2fs"), "-q", "-F", "-U", UUID, "-E", f"hash_seed={UUID}", *options, path, size]
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    if done.returncode and unsupported and unsupported.encode() in done.stderr:
        pytest.skip(f"this mke2fs does not know {options}")
    assert done.returncode == 0, (command, done.stderr.decode(errors="replace"))
    return path


def debugfs(path: Path, *commands: str) -> str:
    """Run commands that may write, all in one go."""
    script = path.with_suffix(".debugfs")
    script.write_text("\n".join(commands) + "\n")
    output = run(tool("debugfs"), "-w", "-f", script, path)
    script.unlink()
    return output


def e2fsck(path: Path, *options: str) -> None:
    """Check and mend; 0 to 3 are the exit codes of success."""
    run(tool("e2fsck"), "-f", "-y", *options, path, good=(0, 1, 2, 3))


def replay_journal(path: Path) -> None:
    """Let e2fsck replay the journal, and do nothing else."""
    run(tool("e2fsck"), "-y", "-E", "journal_only", path, good=(0, 1, 2, 3))


def check(path: Path) -> None:
    """The image is without fault, as e2fsck sees it."""
    run(tool("e2fsck"), "-f", "-n", path)


def walk(volume: Volume, directory: int = ROOT, path: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """The path and inode number of everything but `lost+found`."""
    for name, _cookie, inode, _kind in volume.entries(directory, 0):
        if name in (b".", b"..") or (directory == ROOT and name == b"lost+found"):
            continue
        yield path + name, inode
        if stat.S_ISDIR(volume.attributes(inode).mode):
            yield from walk(volume, inode, path + name + b"/")


def find(volume: Volume, path: str | bytes) -> int:
    inode: int | None = ROOT
    for part in os.fsencode(path).split(b"/"):
        assert inode is not None
        inode = volume.lookup(inode, part)
    assert inode is not None, path
    return inode


def content(volume: Volume, inode: int) -> bytes:
    return volume.read(inode, 0, volume.attributes(inode).size)


class Stat(NamedTuple):
    """What debugfs says of an inode."""

    kind: str
    flags: int
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


def stats(path: Path, inodes: Iterable[int]) -> dict[int, Stat]:
    """As `debugfs stat` shows them."""
    output = debugfs(path, *(f"stat <{inode}>" for inode in inodes))
    found = {}
    for part in re.split(r"^debugfs: stat ", output, flags=re.MULTILINE)[1:]:
        kind, mode, flags = _match(r"Type: (.+?)\s+Mode:\s+(\d+)\s+Flags: (\w+)", part)
        uid, gid = _match(r"User:\s+(\d+)\s+Group:\s+(\d+)", part)
        (size,) = _match(r"Size: (\d+)$", part) if "Size: " in part.split("File ACL")[0] else ("0",)
        links, blocks = _match(r"Links: (\d+)\s+Blockcount: (\d+)", part)
        times = [
            _time(*_match(rf"^\s*{name}: 0x([0-9a-f]+)(?::([0-9a-f]+))? ", part))
            for name in ("atime", "mtime", "ctime")
        ]
        number = int(part[part.index("<") + 1 : part.index(">")])
        found[number] = Stat(
            kind, int(flags, 16), int(mode, 8), int(uid), int(gid), int(size), int(links), int(blocks), *times
        )
    return found


def _match(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, (pattern, text)
    return found.groups()


def _time(low: str, extra: str | None) -> int:
    seconds = struct.unpack("<i", struct.pack("<I", int(low, 16)))[0]
    bits = int(extra or "0", 16)
    return (seconds + ((bits & 3) << 32)) * 10**9 + (bits >> 2)


def linear_directory(entries: list[tuple[bytes, int]], inode: int, block_size: int, parent: int = ROOT) -> bytes:
    """The blocks of a directory with these names, without index and without checksums."""
    blocks: list[list[tuple[bytes, int, int]]] = [[]]
    room = block_size
    for name, number in [(b".", inode), (b"..", parent), *entries]:
        kind = 2 if name in (b".", b"..") else 1
        need = len(name) + 8 + 3 & ~3
        if need > room:
            blocks.append([])
            room = block_size
        blocks[-1].append((name, number, kind))
        room -= need
    data = []
    for block in blocks:
        packed = b""
        for index, (name, number, kind) in enumerate(block):
            record = len(name) + 8 + 3 & ~3
            if index + 1 == len(block):
                record = block_size - len(packed)
            packed += struct.pack("<IHBB", number, record & 0xFFFF, len(name), kind) + name.ljust(record - 8, b"\0")
        data.append(packed)
    return b"".join(data)


def names(count: int) -> list[bytes]:
    """Names of several lengths, every fourth of them not ASCII."""
    ends = (b"-\xc3\xa9\xff", b"", b"-and-more", b"x" * 70)
    return [b"%05d" % number + ends[number % len(ends)] for number in range(count)]


def big_directory(path: Path, wanted: list[bytes], block_size: int, *options: str, size: str = "16M") -> Path:
    """An image whose directory /big has these names, all for one file.

    mke2fs takes minutes to enter so many names one after another. So the directory is written as a file, turned into
    a directory, and handed to e2fsck, which counts the links.
    """
    mke2fs(path, "-b", str(block_size), *options, size=size)
    source = path.with_suffix(".content")
    source.write_bytes(b"content")
    listing = path.with_suffix(".listing")
    listing.write_bytes(linear_directory([(name, 12) for name in wanted], 13, block_size))
    debugfs(path, f"write {source} one", f"write {listing} big", "sif big mode 040755", "sif big links_count 2")
    e2fsck(path)
    return path
