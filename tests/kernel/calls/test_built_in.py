"""The modules uname, time and nosync, and the client library in C."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs

OpenView = Callable[..., View]
WriteModule = Callable[..., Path]
WriteCaller = Callable[[str], str]

ROOT = Path(__file__).parents[3]
DAY = 86400


def test_uname(open_view: OpenView) -> None:
    view = open_view()
    real = view.sh("uname -snrvm").out.split("\n")[0].split()
    view("insmod", "uname", "-o", "release=1.2.3-x,machine=vax")
    view("insmod", "uname", "-o", "nodename=zebra")
    assert view.sh("uname -snrm").out.split() == [real[0], "zebra", "1.2.3-x", "vax"]
    assert "1.2.3-x" in view.sh("python3 -c 'import platform; print(platform.uname())'").out
    view("rmmod", "uname")
    assert view.sh("uname -n").out == f"{real[1]}\n"
    refused = view("insmod", "uname", "-o", f"release={'x' * 65}", check=False)
    assert refused.code == 2 and "64 bytes" in refused.err


def near(shown: str, expected: float) -> bool:
    return abs(float(shown) - expected) < 100


def test_time(open_view: OpenView, caller: WriteCaller) -> None:
    """Programs that would ask the vDSO make calls instead: of C, Perl, Python, and shells."""
    view = open_view("--calls=time")
    view("insmod", "time", "-o", f"offset={1000 * DAY}")
    then = time.time() + 1000 * DAY
    for script in ("date +%s.%N", "printf '%(%s)T\n' -1", "perl -e 'print time'", caller("print(time.time())")):
        assert near(view.sh(script).out, then), script
    lines = "before = time.monotonic(); print(time.clock_gettime(time.CLOCK_BOOTTIME) - before)"
    monotonic = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    assert near(view.sh(caller(lines)).out, monotonic), "it is no time of day"
    view("rmmod", "time")
    assert near(view.sh("date +%s").out, time.time())


def test_the_time_stands_still_or_hurries(open_view: OpenView, caller: WriteCaller) -> None:
    view = open_view("--calls=time")
    view("insmod", "time", "-o", "freeze")
    lines = "before = time.time(); time.sleep(0.1); print(time.time() - before)"
    assert view.sh(caller(lines)).out == "0.0\n"
    view("insmod", "time", "-o", "rate=1000")
    assert float(view.sh(caller(lines)).out) > 90
    assert "--calls=time,sync" in view("insmod", "nosync", check=False).err


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a vDSO of x86")
def test_static_programs_and_those_of_32_bits(
    open_view: OpenView, tmp_path: Path, compiled_32: Callable[[str], Path]
) -> None:
    (tmp_path / "now.c").write_text(
        "#include <stdio.h>\n#include <time.h>\n#include <sys/time.h>\nint main(void) { struct timeval tv;"
        'gettimeofday(&tv, 0); printf("%ld %ld", (long)time(0), (long)tv.tv_sec); }'
    )
    subprocess.run(["gcc", "-static", "-o", tmp_path / "now", tmp_path / "now.c"], check=True)
    # The vDSO of 32 bits, found as a C library does, and changed when the program sets up its thread's memory.
    small = compiled_32(r"""
    struct descriptor { unsigned number, base, limit, flags; };
    static void run(void) {
        struct descriptor descriptor = {-1, 0, 0xfffff, 0x51};
        call(243, (long)&descriptor, 0, 0, 0, 0, 0);
        long *at = (long *)__builtin_frame_address(0) + 2;
        while (at[0] != 33 || at[1] & 0xfff) at++;
        char *vdso = (char *)at[1];
        unsigned short count = *(unsigned short *)(vdso + 48), size = *(unsigned short *)(vdso + 46);
        char *sections = vdso + *(long *)(vdso + 32);
        for (int number = 0; number < count; number++) {
            char *section = sections + number * size;
            if (*(long *)(section + 4) != 11) continue;
            char *names = vdso + *(long *)(sections + *(long *)(section + 24) * size + 16);
            char *symbol = vdso + *(long *)(section + 16), *end = symbol + *(long *)(section + 20);
            for (; symbol < end; symbol += 16) {
                char *name = names + *(long *)symbol;
                if (name[2] == 'v' && name[7] == 't' && name[8] == 'i') {
                    long (*now)(long *) = (long (*)(long *))(vdso + *(long *)(symbol + 4));
                    say(now(0));
                }
            }
        }
    }
    """)
    view = open_view("--calls=time")
    view("insmod", "time", "-o", f"offset={1000 * DAY}")
    then = time.time() + 1000 * DAY
    assert all(near(word, then) for word in view.sh(f"{tmp_path}/now").out.split())
    (shown,) = view.sh(str(small)).out.split()
    assert near(shown, then)


def test_nosync(open_view: OpenView, caller: WriteCaller, tmp_path: Path) -> None:
    """No call for the disk reaches the kernel: of a descriptor that there is not, neither."""
    view = open_view("--calls=sync")
    lines = """
        for sync in (os.fsync, os.fdatasync):
            try:
                print(sync(999))
            except OSError as error:
                print(errno.errorcode[error.errno])
        os.sync()
    """
    assert view.sh(caller(lines.replace("os.sync()", ""))).out == "EBADF\nEBADF\n"
    view("insmod", "nosync")
    assert view.sh(caller(lines)).out == "None\nNone\n"
    (row,) = view.json("lsmod")["modules"]
    assert row["requests"] == {"fdatasync": 1, "fsync": 1, "sync": 1}
    view("rmmod", "nosync")
    view("insmod", "nosync", tmp_path)
    inside = f"import os; os.fsync(os.open('{tmp_path}', os.O_RDONLY))"
    view.sh(f'python3 -c "{inside}"; sync {tmp_path}')
    assert sum(view.json("lsmod")["modules"][0]["requests"].values()) == 2


def test_programs_in_c(open_view: OpenView, module: WriteModule, tmp_path: Path) -> None:
    (tmp_path / "program.c").write_text("""
#include <stdio.h>
#include <viewfs.h>

int main(void)
{
    char answer[64];
    long size = viewfs_call(9999, "C", answer, sizeof answer);
    if (size < 0)
        perror("9999");
    else
        printf("%.*s %d %d\\n", (int)size, answer, viewfs_has_call(9998), viewfs_has_call(9997));
    return 0;
}
""")
    members = """
        @call(9999, "text out@2 size")
        def greet(self, caller, who, answer, size):
            answer += f"hello, {who}".encode()
            return len(answer)

        @call(9998)
        def nothing(self, caller, *words):
            pass
    """
    for compiler, standard in (("gcc", "c99"), ("gcc", "gnu17"), ("g++", "c++17")):
        options = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-std={standard}", f"-I{ROOT}/share/include"]
        language = ["-x", "c++"] if compiler == "g++" else []
        subprocess.run([compiler, *options, *language, "-o", tmp_path / standard, tmp_path / "program.c"], check=True)
    view = open_view()
    view("insmod", module(members))
    for standard in ("c99", "gnu17", "c++17"):
        assert view.sh(f"{tmp_path}/{standard}").out == "hello, C 1 0\n"
    outside = subprocess.run([tmp_path / "c99"], capture_output=True, text=True, check=True)
    assert outside.stderr == f"9999: {os.strerror(38)}\n"


def test_calls_from_python_outside(viewfs: Viewfs) -> None:
    import viewfs as library

    with pytest.raises(OSError, match="38"):
        library.call(9999, "text", bytearray(3))
    with pytest.raises(TypeError):
        library.call(9999, 1, 2, 3, 4, 5, 6, 7)
    assert library.call(39) == os.getpid() or platform.machine() != "x86_64"
    assert viewfs("run", "--", "python3", "-c", "import viewfs; print(viewfs.__version__)").out.strip()


def test_viewfs_in_a_view_with_another_uname(open_view: OpenView) -> None:
    view = open_view()
    view("insmod", "uname", "-o", "machine=vax,release=1")
    assert view.sh("viewfs run -- viewfs run -- uname -m; viewfs insmod hello; cat /hello").out.startswith("vax\nHello")
