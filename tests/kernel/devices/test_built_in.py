"""The devices that come with viewfs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, wait_until
from tests.kernel.devices.conftest import Program
from tests.kernel.devices.test_calls import client_pid, run, wchan

Start = Callable[..., Program]


def test_useless(open_view: Callable[..., View]) -> None:
    view = open_view()
    view("insmod", "useless")
    assert view.sh("echo hi > /dev/useless; cat /dev/useless; cat /dev/useless").out == "hi\nhi\n"
    assert view.sh("echo there >> /dev/useless; cat /dev/useless; echo new > /dev/useless; cat /dev/useless").out == (
        "hi\nthere\nnew\n"
    )
    view("rmmod", "useless")
    view("insmod", "-o", "size=4", "useless")
    assert view.sh("echo -n 123456 > /dev/useless || echo full; cat /dev/useless").out.startswith("full\n1234")


def test_null_zero_and_full(open_view: Callable[..., View], client: Path) -> None:
    view = open_view()
    for name in ("null", "zero", "full"):
        view("insmod", name)
    script = """
        cp /etc/passwd /dev/null; wc -c < /dev/null
        head -c 3000000 /dev/zero | tr -d '\\0' | wc -c; head -c 3000000 /dev/zero | wc -c
        dd if=/dev/zero of=/dev/zero bs=2M count=3 status=none iflag=fullblock
        head -c 5 /dev/full | od -An -tx1
    """
    assert view.sh(script).out.split() == ["0", "0", "3000000", "00", "00", "00", "00", "00"]
    assert run(view, client, "write", "x", device="/dev/full") == ["write: ENOSPC"]


def test_random_with_a_seed_is_the_same_in_every_run(open_view: Callable[..., View]) -> None:
    def run_of(name: str, seed: str) -> list[str]:
        view = open_view(name=name)
        view("insmod", "-o", f"seed={seed}", "random", "/dev/urandom")
        sums = view.sh("for i in 1 2 3; do head -c 100000 /dev/urandom | sha256sum; done").out.split("\n")
        view.close()
        return sums[:3]

    first, again, other = run_of("a", "one"), run_of("b", "one"), run_of("c", "two")
    assert first == again
    assert len({*first, *other}) == 6


def test_random_without_a_seed(open_view: Callable[..., View]) -> None:
    view = open_view()
    view("insmod", "random", "/dev/chance")
    assert len(set(view.sh("for i in 1 2 3; do head -c 32 /dev/chance | sha256sum; done").out.split("\n"))) == 4


def test_pipe_carries_a_stream_between_processes(open_view: Callable[..., View], tmp_path: Path) -> None:
    view = open_view()
    view("insmod", "-o", "size=16K", "pipe")
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 20_000)
    assert (
        view.sh(f"cat {data} > /dev/pipe & sha256sum < /dev/pipe; sha256sum < {data}; wait").out.split()[::2]
        == (view.sh(f"sha256sum < {data}; sha256sum < {data}").out.split()[::2])
    )
    assert view.sh("echo early > /dev/pipe; cat /dev/pipe").out == "early\n", "what was written waits for its reader"


def test_pipe_holds_a_writer_back(open_view: Callable[..., View], client: Path, start: Start) -> None:
    view = open_view()
    view("insmod", "-o", "size=16K", "pipe")
    assert run(view, client, "fill", device="/dev/pipe") == ["full: EAGAIN", "took: 16384", "writable: 0"]
    writer = start(view, client, "/dev/pipe", "write", "more")
    pid = client_pid(writer)
    wait_until(lambda: "request_wait" in wchan(pid), "the writer waits")
    assert view.sh("head -c 16384 /dev/pipe | wc -c").out == "16384\n"
    assert writer.rest() == ["write: 4"]
    assert view.sh("cat /dev/pipe").out == "more"


def test_pipe_gives_what_it_has_to_a_reader_who_wants_more(open_view: Callable[..., View], client: Path) -> None:
    """A read(2) of 3 MiB comes as several requests, of which the later ones must not wait."""
    view = open_view()
    view("insmod", "-o", "size=2M", "pipe")
    for size in (1 << 20, (1 << 20) + 5, 100):
        # The reader has the pipe open for writing too, by the shell, so that there is no end to be seen.
        said = view.sh(f"exec 3<>/dev/pipe; head -c {size} /dev/zero >&3; {client} /dev/pipe much").out
        assert said == f"read: {size}\n"


def test_an_interrupted_write_is_a_short_one(open_view: Callable[..., View], client: Path, start: Start) -> None:
    view = open_view()
    view("insmod", "-o", "size=16K", "pipe")
    writer = start(view, client, "/dev/pipe", "write-much", "20000")
    assert writer.line() == "writing"
    pid = client_pid(writer)
    wait_until(lambda: "request_wait" in wchan(pid), "the writer waits")
    os.kill(pid, signal.SIGINT)
    assert writer.rest() == ["write: 16384"]
    writer = start(view, client, "/dev/pipe", "write-much", "10")
    assert writer.line() == "writing"
    pid = client_pid(writer)
    wait_until(lambda: "request_wait" in wchan(pid), "the writer waits, with nothing written")
    os.kill(pid, signal.SIGINT)
    assert writer.rest() == ["write: EINTR"]


def test_a_large_write_goes_through_a_small_pipe(open_view: Callable[..., View], client: Path, start: Start) -> None:
    view = open_view()
    view("insmod", "-o", "size=16K", "pipe")
    writer = start(view, client, "/dev/pipe", "write-much", f"{3 << 20}")
    assert view.sh(f"head -c {3 << 20} /dev/pipe | wc -c").out == f"{3 << 20}\n"
    assert writer.rest() == ["writing", f"write: {3 << 20}"]


def test_pipe_polls(open_view: Callable[..., View], client: Path, start: Start) -> None:
    view = open_view()
    view("insmod", "pipe")
    program = start(view, client, "/dev/pipe", "select", "20")
    assert program.line() == "waiting"
    view.sh("echo -n now > /dev/pipe")
    assert program.rest() == ["select: 1", "read: 3 now"]


def test_ramdisk_is_made_a_file_system_and_mounted(open_view: Callable[..., View], tmp_path: Path) -> None:
    view = open_view()
    view("insmod", "-o", "size=16M", "ramdisk")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "hello").write_text("from a ramdisk\n")
    assert view.sh("stat -c %s /dev/ramdisk").out == f"{16 << 20}\n"
    view.sh(f"mkfs.ext4 -q -d {tree} /dev/ramdisk && e2fsck -fn /dev/ramdisk")
    view("mount", "/dev/ramdisk", "/mnt/disk")
    assert view.sh("cat /mnt/disk/hello").out == "from a ramdisk\n"
    # The file system that was made from it goes on working, though nobody finds the disk any more.
    view("rmmod", "ramdisk")
    assert view.sh("test -e /dev/ramdisk || cat /mnt/disk/hello").out == "from a ramdisk\n"
    view("umount", "/mnt/disk")
    assert view.json("lsmod")["modules"] == []


@pytest.mark.needs("mkfs.vfat", "mcopy")
def test_ramdisk_is_made_a_vfat_and_mounted(open_view: Callable[..., View], tmp_path: Path) -> None:
    view = open_view()
    view("insmod", "-o", "size=8M", "ramdisk")
    content = random.Random(1).randbytes(300_000)
    (tmp_path / "A long name.bin").write_bytes(content)
    view.sh("mkfs.vfat -n LABEL /dev/ramdisk && fsck.vfat -n /dev/ramdisk")
    view.sh(f"mmd -i /dev/ramdisk ::directory && mcopy -i /dev/ramdisk {tmp_path}/A* ::directory")
    view("mount", "/dev/ramdisk", "/mnt/disk")
    assert view.sh("find /mnt/disk -printf '%P\\n'").out == "\ndirectory\ndirectory/A long name.bin\n"
    assert view.sh(f"cmp /mnt/disk/directory/A* {tmp_path}/A* && echo same").out == "same\n"
    assert view.json("lsmod")["modules"][-1]["module"] == "vfat"


def test_ramdisk_of_a_file(open_view: Callable[..., View], tmp_path: Path) -> None:
    file = tmp_path / "sectors"
    file.write_bytes(b"a" * 8192)
    view = open_view()
    view.sh(f"cd {tmp_path} && viewfs insmod -o file=sectors ramdisk /dev/rd")
    view.sh("printf new | dd of=/dev/rd bs=1 seek=4096 conv=notrunc,fsync status=none")
    assert file.read_bytes() == b"a" * 4096 + b"new" + b"a" * 4093
    assert (
        view.sh("printf x | dd of=/dev/rd bs=1 seek=8192 conv=notrunc status=none 2>&1 || true")
        .out.strip()
        .endswith("No space left on device")
    )
    assert file.stat().st_size == 8192
    file.chmod(0o444)
    view.sh(f"viewfs insmod -o file={file} ramdisk /dev/read-only")
    assert view.sh("stat -c %a /dev/read-only; head -c 1 /dev/read-only").out == "444\na"
    missing = view("insmod", "-o", f"file={tmp_path}/none", "ramdisk", "/dev/none", check=False)
    assert missing.code == 2 and "none" in missing.err and missing.err.count("\n") == 1


def test_a_disk_tells_its_size(open_view: Callable[..., View]) -> None:
    view = open_view()
    view("insmod", "-o", "size=3M", "ramdisk")
    script = """
import fcntl, struct
with open("/dev/ramdisk", "rb") as disk:
    print(struct.unpack("Q", fcntl.ioctl(disk, 0x80081272, bytes(8)))[0], disk.seek(0, 2))
"""
    assert view.sh(f"python3 -c '{script}'").out == f"{3 << 20} {3 << 20}\n"


@pytest.fixture
def partitioned(tmp_path: Path) -> Callable[[str], Path]:
    """A disk of 16 MiB with partitions as sfdisk makes them."""

    def make(script: str) -> Path:
        path = tmp_path / "disk.img"
        path.write_bytes(bytes(16 << 20))
        subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True, capture_output=True)
        return path

    return make


@pytest.mark.needs("sfdisk")
@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_partitions(open_view: Callable[..., View], partitioned: Callable[[str], Path], label: str) -> None:
    disk = partitioned(f"label: {label}\n2048 4096\n8192 4096\n")
    view = open_view()
    view("mount", "-t", "partitions", disk, "/dev/disk")
    view.sh("mkfs.ext4 -q /dev/disk2; printf first | dd of=/dev/disk1 conv=notrunc status=none")
    sizes = view.sh("stat -c '%n %s' /dev/disk /dev/disk1 /dev/disk2").out.split()
    assert sizes == ["/dev/disk", f"{16 << 20}", "/dev/disk1", f"{4096 * 512}", "/dev/disk2", f"{4096 * 512}"]
    content = disk.read_bytes()
    assert content[2048 * 512 :][:5] == b"first"
    assert content[8192 * 512 + 1024 + 56 :][:2] == b"\x53\xef", "an ext superblock, where the partition begins"
    view("mount", "/dev/disk2", "/mnt/second")
    assert view.sh("ls /mnt/second").out == "lost+found\n"
    over = view.sh("dd if=/dev/zero of=/dev/disk1 bs=1M count=3 2>&1 || true").out
    assert "No space left on device" in over
    assert disk.read_bytes()[(2048 + 4096) * 512 : 8192 * 512] == bytes((8192 - 6144) * 512)
    view("umount", "/mnt/second")
    view("rmmod", "partitions")
    assert view.sh("ls -d /dev/disk?* 2>/dev/null || echo none").out.split()[-1] == "none"


@pytest.mark.needs("sfdisk")
def test_logical_partitions_are_counted_from_5(
    open_view: Callable[..., View], partitioned: Callable[[str], Path]
) -> None:
    disk = partitioned("label: dos\n2048 2048\n4096 24000 E\n6144 2048\n10240 2048\n")
    view = open_view()
    view("insmod", "-o", f"file={disk}", "partitions", "/dev/sd")
    assert view.sh("cd /dev; ls -d sd sd?").out.split() == ["sd", "sd1", "sd5", "sd6"]


def test_partitions_of_what_has_none(open_view: Callable[..., View], tmp_path: Path) -> None:
    view = open_view()
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(1 << 20))
    refused = view("mount", "-t", "partitions", empty, "/dev/disk", check=False)
    assert refused.code == 5 and "partition" in refused.err and refused.err.count("\n") == 1


def test_clock(open_view: Callable[..., View]) -> None:
    view = open_view()
    view("insmod", "-o", "offset=-86400,rate=10", "clock")
    script = """
        before=$(date +%s); read first < /dev/clock; sleep 0.2; read second < /dev/clock
        echo $((before - 86400)) $first $second
    """
    before, first, second = map(float, view.sh(script).out.split())
    assert before - 1 <= first <= before + 60
    assert 2 <= second - first <= 60
    refused = view("insmod", "-o", "rate=fast", "clock", "/dev/other", check=False)
    assert refused.code == 2 and "a number" in refused.err


def test_several_devices_leave_one_trace_in_the_log(
    open_view: Callable[..., View], partitioned: Callable[[str], Path]
) -> None:
    disk = partitioned("label: gpt\n2048 2048\n4096 2048\n")
    view = open_view()
    view("insmod", "-o", f"file={disk}", "partitions", "/dev/d")
    assert view.json("lsmod")["modules"][0]["also"] == ["/dev/d1", "/dev/d2"]
    assert len(view.json("epochs")["epochs"]) == 2
    assert "/dev/d2" in view("resolve", "/dev/d2").out or "partitions" in view("resolve", "/dev/d2").out
    view("umount", "/dev/d1")
    assert view.sh("ls -d /dev/d /dev/d? 2>/dev/null || true").out == ""


def test_what_can_t_be_loaded_is_told_in_a_line(open_view: Callable[..., View], tmp_path: Path) -> None:
    view = open_view()
    wrong: list[tuple[tuple[str, ...], int, str]] = [
        (("-o", "size=1", "pipe"), 2, "at least 4096 bytes"),
        (("-o", "size=99999999999999999", "ramdisk"), 2, "no memory for a ramdisk"),
        (("-o", "size=0", "ramdisk"), 2, "at least one byte"),
        (("-o", "frob=1", "zero"), 2, "it has exclusive, mode"),
        (("-o", "mode=9", "zero"), 2, "permission bits in octal"),
        (("partitions",), 2, "-o file="),
        (("-o", "file=/", "partitions"), 2, "is a directory"),
        (("useless", "/dev"), 2, "cannot mount on /dev: it is a directory"),
    ]
    for arguments, code, said in wrong:
        refused = view("insmod", *arguments, check=False)
        assert (refused.code, refused.err.count("\n")) == (code, 1), refused
        assert said in refused.err
    assert view.json("lsmod")["modules"] == []
    assert len(view.json("epochs")["epochs"]) == 1


def test_modules_are_listed_with_what_they_take(open_view: Callable[..., View]) -> None:
    shown = open_view()("lsmod", "--available").out
    assert "permission bits (default: the device's own)" in shown
    assert "backend=cryptography|kernel" in shown
