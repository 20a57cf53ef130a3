"""Modules that answer system calls, written to files, and programs that make such calls."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

IMPORTS = """
import errno, os, threading, time
import trio
from viewfs.errors import UsageError
from viewfs.modules.api import Attributes, FileSystemStatistics
from viewfs.modules.api.calls import GO_ON, CallModule, Descriptor, File, Opened, call
from viewfs.modules.api.options import text
"""
#: What a program of Python that makes calls begins with.
CALLER = """
import ctypes, errno, os, signal, sys, threading, time
from viewfs import call

def outcome(number, *arguments):
    try:
        return call(number, *arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

"""


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., Path]:
    """Write a file with the class `Probe`, a module called NAME, which has these members."""

    def write(members: str, name: str = "probe") -> Path:
        path = tmp_path / f"{name}.py"
        body = textwrap.indent(textwrap.dedent(members), "    ")
        path.write_text(f'{IMPORTS}\nclass Probe(CallModule):\n    name = "{name}"\n{body}\n')
        return path

    return write


@pytest.fixture
def caller(tmp_path: Path) -> Callable[[str], str]:
    """The command that runs lines of Python, with what `CALLER` has."""
    written: list[Path] = []

    def write(lines: str) -> str:
        written.append(tmp_path / f"caller{len(written)}.py")
        written[-1].write_text(CALLER + textwrap.dedent(lines))
        return f"{sys.executable} {written[-1]}"

    return write


@pytest.fixture(scope="session")
def compiled_32(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile a C function `run` for 32 bits, without a library: `call` makes a system call, `say` prints a number or a
    text."""
    directory = tmp_path_factory.mktemp("programs")

    def build(source: str) -> Path:
        program = directory / f"program{len(list(directory.iterdir()))}"
        options = "-m32 -static -nostdlib -ffreestanding -fno-pie -no-pie -fno-stack-protector -O1 -Wall".split()
        whole = START_32 + source
        subprocess.run(
            ["gcc", *options, "-x", "c", "-o", program, "-"], input=whole.encode(), check=True, capture_output=True
        )
        return program

    return build


START_32 = r"""
static int call(int n, long a, long b, long c, long d, long e, long f) {
    long words[6] = {a, b, c, d, e, f};
    int result;
    __asm__ volatile(
        "push %%ebp; push %%ebx; mov %%eax, %%ebp; mov 0(%%ecx), %%ebx; mov 8(%%ecx), %%edx; mov 12(%%ecx), %%esi;"
        "mov 16(%%ecx), %%edi; push 20(%%ecx); mov 4(%%ecx), %%ecx; pop %%eax; xchg %%eax, %%ebp; int $0x80;"
        "pop %%ebx; pop %%ebp"
        : "=a"(result) : "a"(n), "c"(words) : "edx", "esi", "edi", "memory");
    return result;
}
static unsigned length(const char *text) { unsigned n = 0; while (text[n]) n++; return n; }
static void write_out(const char *text, unsigned n) { call(4, 1, (long)text, n, 0, 0, 0); }
static void say(long number) {
    char digits[12]; int at = 12, negative = number < 0;
    unsigned rest = negative ? -number : number;
    do { digits[--at] = '0' + rest % 10; rest /= 10; } while (rest);
    if (negative) digits[--at] = '-';
    write_out(digits + at, 12 - at); write_out(" ", 1);
}
static void say_text(const char *text) { write_out(text, length(text)); write_out(" ", 1); }
static void run(void);
void _start(void) { run(); call(252, 0, 0, 0, 0, 0, 0); }
"""
