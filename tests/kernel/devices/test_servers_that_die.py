"""Servers of devices that are killed while programs use them."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, kill, wait_until

OpenView = Callable[..., View]


def server_of(view: View, module: str) -> int | None:
    return next((row["server"] for row in view.json("lsmod")["modules"] if row["module"] == module), None)


def kill_server(view: View, module: str) -> None:
    server = wait_until(lambda: server_of(view, module), "it is served")
    kill(server)


def python(view: View, script: str) -> subprocess.Popen[str]:
    """A program in the view that the test talks to."""
    return subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "python3", "-uc", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=view.viewfs.environment,
    )


def tell(program: subprocess.Popen[str]) -> str:
    """Have it go on, and hear what it says."""
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write("\n")
    program.stdin.flush()
    return program.stdout.readline()


def test_files_that_are_open_go_on(open_view: OpenView) -> None:
    view = open_view()
    view("insmod", "useless")
    program = python(
        view,
        "import os; f = os.open('/dev/useless', os.O_RDWR | os.O_TRUNC)\n"
        "os.write(f, b'one two'); print(os.read(f, 4))\n"
        "input(); print(os.read(f, 100), os.write(f, b' three'), os.read(f, 100))",
    )
    assert program.stdout is not None and program.stdout.readline() == "b'one '\n"
    kill_server(view, "useless")
    assert tell(program) == "b'two' 6 b' three'\n"
    program.communicate(timeout=SECONDS)
    assert view.sh("cat /dev/useless").out == "one two three"
    assert "another server has taken over /dev/useless" in view("log").out


def test_a_device_that_keeps_nothing(open_view: OpenView) -> None:
    """Who has it open gets ENODEV; who opens it again, a new one."""
    view = open_view()
    view("insmod", "-o", "seed=1", "random", "/dev/chance")
    program = python(
        view,
        "f = open('/dev/chance', 'rb', buffering=0); print(len(f.read(4)))\n"
        "import errno\ninput()\n"
        "try: print(f.read(4))\nexcept OSError as e: print(errno.errorcode[e.errno])\n"
        "f.close(); print(len(open('/dev/chance', 'rb', buffering=0).read(4)))",
    )
    assert program.stdout is not None and program.stdout.readline() == "4\n"
    kill_server(view, "random")
    assert tell(program) == "ENODEV\n"
    assert program.communicate(timeout=SECONDS)[0] == "4\n"


STREAM = """
import os, random, sys
size, what = int(sys.argv[1]), sys.argv[2]
if what == "write":
    out = os.open("/dev/pipe", os.O_WRONLY)
    data = random.Random(1).randbytes(size)
    done = 0
    while done < size:
        done += os.write(out, data[done:done + 1 + done % 30000])
else:
    into = os.open("/dev/pipe", os.O_RDONLY)
    got = []
    while data := os.read(into, 1 + len(got) * 7 % 20000):
        got.append(data)
    data = b"".join(got)
    print(len(data), data == random.Random(1).randbytes(size))
"""


def test_a_stream_under_kills(open_view: OpenView, tmp_path: Path) -> None:
    """Nothing is lost, nothing comes twice."""
    view = open_view()
    view("insmod", "-o", "size=16K", "pipe")
    script = tmp_path / "stream.py"
    script.write_text(STREAM)
    size = 40 << 20
    programs = [
        subprocess.Popen(
            ["viewfs", "enter", view.name, "--", "python3", script, str(size), what],
            stdout=subprocess.PIPE,
            text=True,
            env=view.viewfs.environment,
        )
        for what in ("read", "write")
    ]
    chance = random.Random(size)
    killed = 0
    while programs[0].poll() is None:
        time.sleep(chance.uniform(0.02, 0.2))  # the moment is what is tried
        server = server_of(view, "pipe")
        if server is not None and programs[0].poll() is None:
            kill(server)
            killed += 1
    assert programs[0].communicate(timeout=SECONDS)[0] == f"{size} True\n"
    assert programs[1].wait(SECONDS) == 0
    if programs[1].stdout is not None:
        programs[1].stdout.close()
    assert killed > 2


def test_a_disk_under_kills(open_view: OpenView, image: Callable[..., Path]) -> None:
    """A file system is made and filled on it, and read again."""
    view = open_view()
    view("insmod", "-o", "size=32M", "ramdisk")
    work = subprocess.Popen(
        [
            "viewfs", "enter", view.name, "--", "sh", "-euc",
            "mkfs.ext4 -q -d /etc /dev/ramdisk 24M 2>/dev/null || mkfs.ext4 -q /dev/ramdisk 24M;"
            "for i in 1 2 3 4 5; do e2fsck -fn /dev/ramdisk >/dev/null; done; sha256sum < /dev/ramdisk",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=view.viewfs.environment,
    )  # fmt: skip
    chance = random.Random(1)
    while work.poll() is None:
        time.sleep(chance.uniform(0.02, 0.2))  # the moment is what is tried
        if (server := server_of(view, "ramdisk")) is not None and work.poll() is None:
            kill(server)
    out = work.communicate(timeout=SECONDS)[0]
    assert work.returncode == 0
    assert view.sh("e2fsck -fn /dev/ramdisk > /dev/null; sha256sum < /dev/ramdisk").out == out


def test_who_waits_in_poll_is_woken(open_view: OpenView) -> None:
    view = open_view()
    view("insmod", "pipe")
    program = python(
        view,
        "import os, select; f = os.open('/dev/pipe', os.O_RDONLY | os.O_NONBLOCK); p = select.poll()\n"
        "p.register(f, select.POLLIN); print('waits'); print(p.poll(60000) == [(f, 1)], os.read(f, 10))",
    )
    assert program.stdout is not None and program.stdout.readline() == "waits\n"
    kill_server(view, "pipe")
    wait_until(lambda: "taken over /dev/pipe" in view("log").out, "another serves")
    view.sh("printf woken > /dev/pipe")
    assert program.communicate(timeout=SECONDS)[0] == "True b'woken'\n"


def test_a_device_that_is_restarted(open_view: OpenView, tmp_path: Path) -> None:
    """A module of one's own that keeps its state goes on with new code; one that keeps nothing is not restarted."""
    module = tmp_path / "counts.py"
    module.write_text(COUNTS)
    view = open_view()
    view("insmod", module)
    assert view.sh("cat /dev/counts; cat /dev/counts").out == "count 1\ncount 2\n"
    module.write_text(COUNTS.replace("count %d", "COUNT %d"))
    view("restart", "/dev/counts")
    assert view.sh("cat /dev/counts").out == "COUNT 3\n"
    view("insmod", "random", "/dev/chance")
    refused = view("restart", "/dev/chance", check=False)
    assert refused.code == 2 and "its server has state that another would not have" in refused.err


COUNTS = """
from viewfs.modules.api.device import CharDevice, DeviceFile, DeviceModule


class File(DeviceFile):
    has_read = False

    def read(self, call, size):
        if self.has_read:
            return b""
        self.has_read = True
        self.device.kept.registers[0] += 1
        return b"count %d\\n" % self.device.kept.registers[0]


class Device(CharDevice):
    file = File

    def __init__(self, kept):
        self.kept = kept


class Counts(DeviceModule):
    name = "counts"

    @classmethod
    def keeps(cls, options):
        return 0

    def open_devices(self, mounting):
        return Device(self.kept(mounting))
"""


@pytest.mark.parametrize("module", ["null", "clock"])
def test_files_without_state_go_on(open_view: OpenView, module: str) -> None:
    view = open_view()
    view("insmod", module, "/dev/it")
    program = python(
        view,
        "import os; f = os.open('/dev/it', os.O_RDONLY); os.read(f, 5); print(1); input(); os.read(f, 5); print(2)",
    )
    assert program.stdout is not None and program.stdout.readline() == "1\n"
    kill_server(view, module)
    assert tell(program) == "2\n"
    program.communicate(timeout=SECONDS)


def test_a_device_that_is_unplugged_stays_gone(open_view: OpenView) -> None:
    """Though its server is killed afterwards, while somebody has it open."""
    view = open_view()
    view("insmod", "useless")
    program = python(
        view,
        "import os; f = os.open('/dev/useless', os.O_RDWR); print(1); input()\n"
        "try: os.read(f, 5)\nexcept OSError as e: print(e.errno)",
    )
    assert program.stdout is not None and program.stdout.readline() == "1\n"
    server = server_of(view, "useless")
    view("rmmod", "useless")
    assert server is not None
    try:
        os.kill(server, 9)
    except ProcessLookupError:
        pass
    assert tell(program) in ("19\n", "107\n", "103\n")
    program.communicate(timeout=SECONDS)


CIPHER = """
import ctypes, fcntl, os
from viewfs.modules.devices.crypto.layouts import *
f = os.open("/dev/crypto", os.O_RDWR)
key = ctypes.create_string_buffer(bytes(range(16)), 16)
iv = ctypes.create_string_buffer(bytes(16), 16)
s = SessionOp(cipher=11, keylen=16, key=ctypes.addressof(key))
fcntl.ioctl(f, session_command(SessionOp), s)
h = SessionOp(mac=103)
fcntl.ioctl(f, session_command(SessionOp), h)

def crypt(data, first):
    src, dst = ctypes.create_string_buffer(data, len(data)), ctypes.create_string_buffer(len(data))
    op = CryptOp(ses=s.ses, op=0, len=len(data), src=ctypes.addressof(src), dst=ctypes.addressof(dst))
    op.iv = ctypes.addressof(iv) if first else 0
    fcntl.ioctl(f, crypt_command(CryptOp), op)
    return dst.raw

def hash(data, flags):
    src, mac = ctypes.create_string_buffer(data, len(data)), ctypes.create_string_buffer(64)
    op = CryptOp(ses=h.ses, len=len(data), flags=flags, src=ctypes.addressof(src), mac=ctypes.addressof(mac))
    try:
        fcntl.ioctl(f, crypt_command(CryptOp), op)
    except OSError as error:
        return str(error.errno)
    return mac.raw[:20].hex()

hash(b"part", COP_FLAG_UPDATE)
out = crypt(b"a" * 64, True)
print("begun")
input()
out += crypt(b"b" * 64, False)
print(out.hex(), hash(b"other part", COP_FLAG_UPDATE | COP_FLAG_FINAL), hash(b"whole", 0))
"""


def test_sessions_of_a_cipher_go_on(open_view: OpenView) -> None:
    """With the initialisation vector where the last call left it, and a hash of which only a part was computed."""
    view = open_view()
    view("insmod", "crypto")
    whole = python(view, CIPHER)
    assert whole.stdout is not None and whole.stdout.readline() == "begun\n"
    right = tell(whole).split()
    whole.communicate(timeout=SECONDS)
    program = python(view, CIPHER)
    assert program.stdout is not None and program.stdout.readline() == "begun\n"
    kill_server(view, "crypto")
    found = tell(program).split()
    program.communicate(timeout=SECONDS)
    assert found == right
    assert right[1:] == [hashlib.sha224(text).hexdigest()[:40] for text in (b"partother part", b"whole")]
    assert len(right[0]) == 256
