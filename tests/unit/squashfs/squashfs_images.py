"""Images of squashfs to test with, made by mksquashfs, and what unsquashfs says of them."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.unit.images import MemoryImage
from viewfs.modules.api import Attributes
from viewfs.modules.formats.squashfs.volume import Volume

#: In the order of their numbers.
COMPRESSORS = ("gzip", "lzma", "lzo", "xz", "lz4", "zstd")
#: What mksquashfs is told for tables that `Parts` understands.
STORED_TABLES = ("-noI", "-noX")
STORED = (*STORED_TABLES, "-noD", "-noF")
_SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


# The tools


def tool(name: str) -> str:
    path = shutil.which(name, path=_SEARCH)
    if path is None:
        pytest.skip(f"{name} of squashfs-tools is not installed")
    return path


def run(*command: str | Path, good: tuple[int, ...] = (0,), stdin: bytes = b"") -> bytes:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, input=stdin)
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode in good, f"{command}: {done.returncode}\n{output}"
    return done.stdout


def available(compressor: str) -> str:
    """The name of a compressor that this mksquashfs has; the test is skipped if it has not."""
    done = subprocess.run([tool("mksquashfs"), "-help"], capture_output=True, check=False)
    text = (done.stdout + done.stderr).decode(errors="replace")
    known = re.search(r"ompressors available[^\n]*\n((?:\s+[^\n]*\n)+)", text)
    if known is None or not re.search(rf"\b{compressor}\b", known[1]):
        pytest.skip(f"this mksquashfs was built without {compressor}")
    return compressor


def mksquashfs(path: Path, tree: Path, *options: str | Path, pseudo: str = "", append: bool = False) -> Path:
    """An image of `tree` with, in the language of `mksquashfs -pf`, `pseudo`."""
    extra: list[str | Path] = [] if append else ["-noappend"]
    if pseudo:
        definitions = path.with_suffix(".pseudo")
        definitions.write_text(pseudo)
        extra += ["-pf", definitions]
    run(tool("mksquashfs"), tree, path, "-no-progress", "-quiet", "-no-recovery", *options, *extra)
    return path


def mksquashfs_from_tar(path: Path, tar: bytes, *options: str) -> Path:
    """An image of what is in a tar file: ids, devices and attributes that only root could give to files."""
    command = [tool("mksquashfs"), "-", str(path), "-tar", "-noappend", "-no-progress", "-quiet", "-no-recovery"]
    done = subprocess.run([*command, *options], capture_output=True, check=False, input=tar)
    if b"-tar" in done.stderr and b"invalid option" in done.stderr:
        pytest.skip("this mksquashfs does not read tar files")
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return path


Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str,
    data: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    xattrs: Mapping[str, bytes] | None = None,
    **fields: object,
) -> Member:
    """One for `tar`."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(data), 1
    for key, value in fields.items():
        setattr(info, key, value)
    info.pax_headers = {
        f"LIBARCHIVE.xattr.{urllib.parse.quote(key)}": base64.b64encode(value).decode().rstrip("=")
        for key, value in (xattrs or {}).items()
    }
    return info, data


def tar(*members: Member) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def unsquashfs(path: Path, target: Path, *options: str) -> Path:
    """Extract; 2 is the exit code for what only root could make."""
    run(tool("unsquashfs"), "-no-progress", *options, "-d", target, path, good=(0, 2))
    return target


def superblock_says(path: Path, *options: str) -> dict[str, int]:
    """The numbers of `unsquashfs -stat`, by what they are numbers of."""
    text = run(tool("unsquashfs"), "-stat", *options, path).decode()
    found = {
        name: int(number) for name, number in re.findall(r"^(?:Number of )?(\w[\w ]*?) (\d+)\b", text, re.MULTILINE)
    }
    assert "inodes" in found, text
    return found


# The reader


def opened_bytes(data: bytes) -> Volume:
    return Volume.open(MemoryImage(data))


def names_in(volume: Volume, directory: int) -> list[bytes]:
    """Without `.` and `..`."""
    return [name for name, *_ in volume.entries(directory, 0)][2:]


def walk(volume: Volume, directory: int | None = None, path: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """The path and node of everything below the root, each directory before what is in it."""
    for name, _cookie, node, _kind in volume.entries(volume.root if directory is None else directory, 0):
        if name in (b".", b".."):
            continue
        yield path + name, node
        if stat.S_ISDIR(volume.attributes(node).mode):
            yield from walk(volume, node, path + name + b"/")


def find(volume: Volume, path: str | bytes) -> int:
    node: int | None = volume.root
    for part in filter(None, os.fsencode(path).split(b"/")):
        assert node is not None
        node = volume.lookup(node, part)
    assert node is not None, path
    return node


def content(volume: Volume, node: int) -> bytes:
    return bytes(volume.read(node, 0, volume.attributes(node).size))


def listing(volume: Volume) -> bytes:
    """All that there is, as `unsquashfs -UTC -lln` shows it, but for the number of spaces."""

    def line(path: bytes, node: int) -> bytes:
        attributes = volume.attributes(node)
        size = str(attributes.size)
        if stat.S_ISCHR(attributes.mode) or stat.S_ISBLK(attributes.mode):
            # unsquashfs takes the number apart as it was done when devices had 16 bits, and with a sign.
            device = encoded_device(attributes.rdev)
            device -= device >> 31 << 32
            size = f"{device >> 8:3d},{device & 0xFF:3d}"
        elif not any(kind(attributes.mode) for kind in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)):
            size = "0"
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(attributes.mtime_ns // 10**9))
        text = f"{stat.filemode(attributes.mode)} {attributes.uid}/{attributes.gid} {size} {when} squashfs-root"
        target = b" -> " + volume.readlink(node) if stat.S_ISLNK(attributes.mode) else b""
        return text.encode() + path + target + b"\n"

    lines = [line(b"", volume.root)]
    lines += (line(b"/" + path, node) for path, node in walk(volume))
    return collapsed(b"".join(lines))


def collapsed(text: bytes) -> bytes:
    return re.sub(rb" +", b" ", text)


def unsquashfs_listing(path: Path, *options: str) -> bytes:
    return collapsed(run(tool("unsquashfs"), "-UTC", "-lln", *options, path))


def encoded_device(device: int) -> int:
    """As Linux puts it into 32 bits (new_encode_dev)."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


# What is compared


def assert_same_attributes(attributes: Attributes, path: Path, *, owners: bool = True, bits: int = 0o7777) -> None:
    """`attributes` are what lstat(2) says of `path`, as far as squashfs keeps it; of the mode these `bits`."""
    real = path.lstat()
    assert stat.S_IFMT(attributes.mode) == stat.S_IFMT(real.st_mode), path
    assert stat.S_IMODE(attributes.mode) & bits == stat.S_IMODE(real.st_mode) & bits, path
    # Seconds of 32 bits without sign are all there is.
    assert attributes.mtime_ns == (real.st_mtime_ns // 10**9 & 0xFFFFFFFF) * 10**9, path
    assert attributes.atime_ns == attributes.ctime_ns == attributes.mtime_ns
    if owners:
        assert (attributes.uid, attributes.gid) == (real.st_uid, real.st_gid), path
    if stat.S_ISDIR(real.st_mode):
        assert attributes.nlink == 2 + sum(item.is_dir() and not item.is_symlink() for item in path.iterdir()), path
    else:
        assert (attributes.size, attributes.nlink) == (real.st_size, real.st_nlink), path
    assert attributes.rdev == real.st_rdev, path


def assert_same_tree(
    volume: Volume, root: Path, *, owners: bool = True, bits: int = 0o7777, ignored: frozenset[bytes] = frozenset()
) -> list[bytes]:
    """`volume` holds just what is below `root`, but for the paths `ignored`. Returns the paths that were compared."""
    found: dict[bytes, int] = dict(walk(volume))
    expected = {os.fsencode(item.relative_to(root)) for item in root.rglob("*")}
    assert set(found) - ignored == expected - ignored
    nodes: dict[tuple[int, int], int] = {}
    for path, node in [(b"", volume.root), *found.items()]:
        if path in ignored:
            continue
        item = root / os.fsdecode(path) if path else root
        attributes = volume.attributes(node)
        assert attributes.ino == node
        if path or owners:
            assert_same_attributes(attributes, item, owners=owners, bits=bits)
        assert find(volume, path) == node
        real = item.lstat()
        if stat.S_ISREG(real.st_mode):
            assert content(volume, node) == item.read_bytes(), path
        elif stat.S_ISLNK(real.st_mode):
            assert volume.readlink(node) == os.readlink(os.fsencode(item)), path
        # The same file has the same node, and another file another one.
        assert nodes.setdefault((real.st_dev, real.st_ino), node) == node, path
    assert len(set(nodes.values())) == len(nodes)
    return list(found)


def xattrs_of(path: Path) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
