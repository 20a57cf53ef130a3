"""Programs that a tracer or a preloaded library would fail: nothing traces a view, so they run there as everywhere."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs


@pytest.fixture
def program_of_32_bits(tmp_path: Path) -> Path:
    """A static i386 program that ends with status 42: an ELF header, a program header, and exit(2) by int 0x80."""
    code = b"\xb8\x01\x00\x00\x00" + b"\xbb\x2a\x00\x00\x00" + b"\xcd\x80"
    base, headers = 0x08048000, 52 + 32
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + headers, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = headers + len(code)
    path = tmp_path / "programs/program32"
    path.parent.mkdir()
    path.write_bytes(header + struct.pack("<8I", 1, 0, base, base, size, size, 5, 4096) + code)
    path.chmod(0o755)
    try:
        subprocess.run([path])
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs: {error}")
    return path


def test_a_static_program_of_32_bits(viewfs: Viewfs, program_of_32_bits: Path) -> None:
    assert viewfs("run", "--", program_of_32_bits, check=False).code == 42
    subprocess.run(["mke2fs", "-q", "-d", program_of_32_bits.parent, "p.img", "1M"], check=True, cwd=viewfs.directory)
    assert viewfs("run", "--mount", "p.img:/mnt", "--", "/mnt/program32", check=False).code == 42


@pytest.mark.needs("strace")
def test_a_program_that_is_traced(viewfs: Viewfs) -> None:
    traced = viewfs.sh("--load", "hello", script="strace -f -e trace=openat sh -c 'cat /hello' 2>&1")
    assert "Hello from viewfs!" in traced.out and 'openat(AT_FDCWD, "/hello"' in traced.out


def test_a_directory_made_with_a_slash(viewfs: Viewfs, tmp_path: Path) -> None:
    viewfs.sh(script=f"mkdir {tmp_path}/made/")
    assert (tmp_path / "made").is_dir()
