"""Where in a file the file system is: at its beginning, behind the program of an AppImage, or where it is told."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.images import ImageFile, MemoryImage
from tests.unit.squashfs.conftest import Opener
from tests.unit.squashfs.squashfs_images import (
    COMPRESSORS,
    assert_same_tree,
    available,
    content,
    find,
    listing,
    mksquashfs,
    opened_bytes,
    run,
    tool,
    unsquashfs_listing,
    walk,
)
from tests.unit.squashfs.squashfs_parts import patched
from viewfs.errors import DamagedSourceError
from viewfs.modules.formats.squashfs.volume import Volume

#: What an AppImage says in the padding of its ELF identification (type 2).
APPIMAGE = b"AI\x02"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real one, with a symbol table behind its code, and the table of its sections at the very end."""
    directory = tmp_path_factory.mktemp("program")
    source = directory / "runtime.c"
    source.write_text('const char text[] = "hsqs hsqs";\nint main(int n, char **a) { return n + text[0] + a[0][0]; }\n')
    done = subprocess.run(["gcc", "-g", "-o", directory / "runtime", source], capture_output=True)
    assert done.returncode == 0, done.stderr
    data = bytearray((directory / "runtime").read_bytes())
    data[8:11] = APPIMAGE
    return bytes(data)


def elf_end(data: bytes) -> int:
    """The end of the section headers, as AppImage's runtime finds its file system."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    return int(table + size * count)


def bare_elf(bits: int, order: str, body: int) -> bytes:
    """The headers of a program of another machine: nothing but `body` bytes, and two sections."""
    kind = bytes((2 if bits == 64 else 1, 1 if order == "<" else 2, 1, 0)) + APPIMAGE
    header_size, section_size = (64, 64) if bits == 64 else (52, 40)
    ident = b"\x7fELF" + kind.ljust(12, b"\0")
    form = "HHIQQQIHHHHHH" if bits == 64 else "HHIIIIIHHHHHH"
    header = struct.pack(order + form, 2, 3, 1, 0, 0, header_size + body, 0, header_size, 0, 0, section_size, 2, 0)
    return ident + header + b"x" * body + bytes(2 * section_size)


@pytest.fixture(scope="session")
def payload(plain: bytes) -> bytes:
    return plain


def same(volume: Volume, payload: bytes) -> bool:
    return listing(volume) == listing(opened_bytes(payload)) and len(list(walk(volume))) > 100


def test_app_image(program: bytes, tree: Path, tmp_path: Path, opened: Opener) -> None:
    assert elf_end(program) == len(program)
    image = tmp_path / "Some.AppImage"
    for compressor in COMPRESSORS:
        file_system = mksquashfs(tmp_path / "image", tree, "-comp", available(compressor), "-b", "4K", "-root-owned")
        image.write_bytes(program + file_system.read_bytes())
        volume = opened(image)
        assert volume.compression == compressor
        assert_same_tree(volume, tree, owners=False)
        assert listing(volume) == unsquashfs_listing(image, "-offset", str(len(program)))
        with ImageFile(image) as source:
            assert Volume.probe(source)


def test_app_image_made_by_mksquashfs(program: bytes, tree: Path, tmp_path: Path, opened: Opener) -> None:
    """Which leaves room for the program with -offset, as some builders do."""
    image = mksquashfs(tmp_path / "image", tree, "-b", "4K", "-offset", str(len(program)))
    with open(image, "r+b") as file:
        file.write(program)
    assert_same_tree(opened(image), tree)
    assert_same_tree(opened(image, offset=len(program)), tree)


@pytest.mark.parametrize("body", [0, 1, 3333, 200_000, 5 << 20])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("bits", [32, 64])
def test_programs_of_other_machines(bits: int, order: str, body: int, payload: bytes) -> None:
    data = bare_elf(bits, order, body) + payload
    volume = opened_bytes(data)
    assert Volume.probe(MemoryImage(data))
    assert content(volume, find(volume, "few/two")) == b"22"


def test_app_image_that_looks_like_a_file_system_before_it(payload: bytes) -> None:
    """The magic number is in the program too."""
    program = bytearray(bare_elf(64, "<", 50_000))
    for place in (64, 4096, 8192, 20_001):
        program[place : place + 4] = b"hsqs"
    volume = opened_bytes(bytes(program) + payload)
    assert same(volume, payload)
    assert same(opened_bytes(bytes(program) + payload), payload)


@pytest.mark.parametrize(
    "changes",
    [
        {0x28: struct.pack("<Q", 1 << 63)},  # The section headers are nowhere,
        {0x28: struct.pack("<Q", (1 << 64) - 1)},
        {0x28: bytes(8), 0x3A: bytes(4)},  # or there are none,
        {0x3A: b"\xff\xff\xff\xff"},  # or they go on for ever.
        {4: b"\0\0"},
        {4: b"\x07\x07"},
    ],
    ids=str,
)
def test_app_image_with_damaged_headers(changes: dict[int, bytes], payload: bytes) -> None:
    data = bytearray(bare_elf(64, "<", 1000) + payload)
    for place, value in changes.items():
        data[place : place + len(value)] = value
    assert Volume.probe(MemoryImage(bytes(data))) in (True, False)
    try:
        volume = opened_bytes(bytes(data))
    except DamagedSourceError as error:
        assert "image" in str(error)
    else:
        assert same(volume, payload)


def test_program_with_nothing_behind_it(program: bytes, payload: bytes) -> None:
    for data in (program, program + bytes(5000), program + payload[:50], bare_elf(32, ">", 10), program[:64]):
        assert not Volume.probe(MemoryImage(data))
        with pytest.raises(DamagedSourceError):
            opened_bytes(data)


@pytest.mark.parametrize("padding", [4096, 512, 1000, 1 << 20])
def test_offset_that_is_told(padding: int, payload: bytes, tree: Path, tmp_path: Path, opened: Opener) -> None:
    """As of a shell script that has its files behind it."""
    script = b"#!/bin/sh\nexec mount -o loop,offset=4096 $0 /mnt\n".ljust(padding, b"\n")
    image = tmp_path / "installer"
    image.write_bytes(script + payload)
    volume = opened(image, offset=padding)
    assert same(volume, payload)
    for path in ("large", "sparse", "few/two"):
        assert content(volume, find(volume, path)) == content(opened_bytes(payload), find(volume, path))
    image.write_bytes(script + payload + b"trailing bytes that are not of the file system" * 1000)
    assert same(opened(image, offset=padding), payload)


def test_offset_zero_that_is_told(payload: bytes) -> None:
    volume = Volume.open(MemoryImage(payload), offset=0)
    assert same(volume, payload)


def test_two_file_systems(payload: bytes, tree: Path, tmp_path: Path) -> None:
    """The first is found, the second can be told."""
    other = mksquashfs(tmp_path / "image", tree, "-b", "4K").read_bytes()
    both = payload + other
    assert same(opened_bytes(both), payload)
    volume = Volume.open(MemoryImage(both), offset=len(payload))
    assert_same_tree(volume, tree)


@pytest.mark.parametrize("offset", [1, 95, 4096, 1 << 20, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 70, -1, -4096])
def test_offset_that_is_wrong(offset: int, payload: bytes, tmp_path: Path, opened: Opener) -> None:
    with pytest.raises(DamagedSourceError, match="name of it"):
        Volume.open(MemoryImage(payload), offset=offset, name="name of it")
    image = tmp_path / "name of it"
    image.write_bytes(payload)
    with pytest.raises(DamagedSourceError, match="name of it"):
        opened(image, offset=offset)


def test_offset_before_the_end(payload: bytes) -> None:
    for offset in (len(payload), len(payload) - 1, len(payload) - 96, len(payload) + 1):
        with pytest.raises(DamagedSourceError):
            Volume.open(MemoryImage(payload), offset=offset)


def test_snap(tree: Path, tmp_path: Path, opened: Opener) -> None:
    """As `snap pack` makes them."""
    options = ("-comp", available("xz"), "-no-fragments", "-all-root", "-no-xattrs", "-noappend")
    image = tmp_path / "some_1.snap"
    run(tool("mksquashfs"), tree, image, *options, "-no-progress")
    volume = opened(image)
    assert volume.compression == "xz" and volume.no_xattrs and volume.block_size == 1 << 17
    assert_same_tree(volume, tree, owners=False)
    assert listing(volume) == unsquashfs_listing(image)
    with ImageFile(image) as source:
        assert Volume.probe(source)


def test_what_is_no_file_system(tmp_path: Path, payload: bytes) -> None:
    noise = random.Random(9)
    for data in (
        b"",
        b"hsqs",
        payload[:95],
        bytes(1 << 20),
        noise.randbytes(1 << 16),
        b"#!/bin/sh\n" * 9999,
        b"\x7fELF",
        b"\x7fELF" * 1000,
        b"sqsh" + payload[4:],  # The other byte order, which only older versions had.
        b"hsqs" * 1000,
    ):
        with pytest.raises(DamagedSourceError, match="name of it"):
            Volume.open(MemoryImage(data), name="name of it")
        if not data.startswith(b"hsqs"):
            assert not Volume.probe(MemoryImage(data))
    assert Volume.probe(MemoryImage(payload))


@pytest.mark.parametrize("head", [b"\x7fELF\x02\x01", b"#!/bin/sh\n", b"hsqs"])
def test_looking_is_quick(head: bytes) -> None:
    """The magic number again and again, in as much of a file as is looked through."""
    source = MemoryImage(head + b"hsqs" * (9 << 20))
    assert Volume.probe(source) in (True, False)
    probed = sum(size for size, _ in source.reads)
    with pytest.raises(DamagedSourceError):
        Volume.open(source)
    opened = sum(size for size, _ in source.reads) - probed
    assert max(probed, opened) <= source.size and len(source.reads) < 150, "nothing is read again and again"


def test_sources_that_fail(payload: bytes) -> None:
    """Probing never raises; opening tells what can't be read."""

    class Failing:
        size = len(payload)

        def pread(self, size: int, offset: int) -> bytes:
            raise OSError(5, os.strerror(5))

    assert not Volume.probe(Failing())
    with pytest.raises((DamagedSourceError, OSError)):
        Volume.open(Failing())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"major": 3, "minor": 1}, r"3\.1"),
        ({"major": 5, "minor": 0}, r"5\.0"),
        ({"compression": 0}, "0"),
        ({"compression": 7}, "7"),
        ({"compression": 0xFFFF}, "65535"),
    ],
    ids=str,
)
def test_what_can_not_be_read_is_named(fields: dict[str, int], said: str, payload: bytes) -> None:
    with pytest.raises(DamagedSourceError, match=f"name of it.*{said}"):
        Volume.open(MemoryImage(patched(payload, **fields)), name="name of it")


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_compression_is_known_by_its_name(compressor: str, plains: Callable[[str], bytes]) -> None:
    volume = opened_bytes(plains(compressor))
    assert volume.compression == compressor
