"""A module server that dies under its users: another takes its mount over where nothing is lost by it."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, kill, own_processes, wait_until

Image = Callable[..., Path]


def server_of(view: View) -> int | None:
    """The process that serves the only mount."""
    pid: int | None = view.json("lsmod")["modules"][0]["server"]
    return pid


def test_a_reader_does_not_notice_that_servers_are_killed(open_view: Callable[..., View], image: Image) -> None:
    content = random.Random(3).randbytes(24 << 20)
    view = open_view("--mount", f"{image(size='64M', big=content)}:/mnt")
    reading = subprocess.Popen(
        [
            "viewfs",
            "enter",
            view.name,
            "--",
            "sh",
            "-c",
            "echo begin; dd if=/mnt/big bs=64k iflag=fullblock 2>/dev/null",
        ],
        stdout=subprocess.PIPE,
        env=view.viewfs.environment,
    )
    assert reading.stdout is not None and reading.stdout.readline() == b"begin\n"
    digest, length = hashlib.sha256(), 0
    for _time in range(4):
        part = reading.stdout.read(4 << 20)
        digest.update(part)
        length += len(part)
        victim = wait_until(lambda: server_of(view), "there is a server")
        kill(victim)
        wait_until(lambda victim=victim: server_of(view) not in (victim, None), "another server has taken over")
    rest = reading.stdout.read()
    digest.update(rest)
    assert reading.wait(30) == 0
    reading.stdout.close()
    assert (length + len(rest), digest.hexdigest()) == (len(content), hashlib.sha256(content).hexdigest())
    assert view("log").out.count("another server has taken over /mnt") == 4


def state_of(view: View) -> str:
    return str(view.json("lsmod")["modules"][0]["state"])


def test_servers_that_die_again_and_again(open_view: Callable[..., View], image: Image) -> None:
    """For a deadline readers wait; then they get errors at once. A server that lives puts all in order."""
    view, disk = open_view(), image(file="content")
    content = disk.read_bytes()
    view("mount", "-o", "deadline=1", disk, "/mnt")

    def let_servers_die() -> None:
        disk.write_bytes(b"")
        server = server_of(view)
        assert server is not None
        kill(server)

    let_servers_die()
    for _time in range(2):
        assert view.sh("cat /mnt/file", check=False).err == "cat: /mnt/file: Input/output error\n"
    assert state_of(view) == "restarting", "others are still tried"
    disk.write_bytes(content)
    wait_until(lambda: view.sh("cat /mnt/file", check=False).out == "content", "it is there again")


LOOPS = """
import os, time
from viewfs.modules.api import Module
from viewfs.modules.api.nodes import computed_file

class Loops(Module):
    name = "loops"

    def open(self, mounting):
        if mounting.options["where"] == "open":
            time.sleep(1000)
        return computed_file(lambda: time.sleep(1000))

    from viewfs.modules.api.options import text
    options = (text("where", "read", "where it hangs"),)
"""


def test_a_read_that_hangs_is_ended_at_the_deadline(open_view: Callable[..., View], tmp_path: Path) -> None:
    """Nobody can take over from a module of one's own; whoever reads gets an error instead of waiting."""
    (tmp_path / "loops.py").write_text(LOOPS)
    view = open_view()
    view("insmod", "-o", "deadline=1", tmp_path / "loops.py", "/loops")
    read = view.sh("cat /loops", check=False)
    assert read.code == 1 and read.out == ""
    assert "has not answered for 1 s: it is ended" in view("log").out
    view("umount", "/loops")


def test_a_module_that_hangs_when_it_opens(open_view: Callable[..., View], tmp_path: Path) -> None:
    """It keeps nobody else from mounting meanwhile, and is given up at the deadline."""
    (tmp_path / "loops.py").write_text(LOOPS)
    view = open_view()
    arguments = ["insmod", "--session", view.name, "-o", "deadline=5,where=open", str(tmp_path / "loops.py"), "/loops"]
    waiting = subprocess.Popen(["viewfs", *arguments], stderr=subprocess.PIPE, text=True, env=view.viewfs.environment)
    wait_until(lambda: "viewfs-loops" in own_processes().values(), "it opens")
    view("insmod", "hello", "/hello")
    assert waiting.poll() is None and view.sh("cat /hello").out == "Hello from viewfs!\n"
    _out, err = waiting.communicate()
    assert waiting.returncode == 1 and "no answer after 5 seconds" in err and err.count("\n") == 1
    assert [row["path"] for row in view.json("lsmod")["modules"]] == ["/hello"]
    wait_until(lambda: "viewfs-loops" not in own_processes().values(), "its server is gone")


def test_a_hung_server_is_taken_away_by_force(open_view: Callable[..., View], tmp_path: Path) -> None:
    """Whoever waits gets an error; asking for it by its path waits for nothing."""
    (tmp_path / "loops.py").write_text(LOOPS)
    view = open_view()
    view("insmod", tmp_path / "loops.py", "/loops")
    command = ["viewfs", "enter", view.name, "--", "sh", "-c", "echo begin; cat /loops"]
    reading = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=view.viewfs.environment)
    assert reading.stdout is not None and reading.stdout.readline() == b"begin\n"
    shown = view.sh("viewfs resolve --json /loops; viewfs umount --force /loops; viewfs lsmod --json")
    assert '"type": "loops"' in shown.out.replace('"type":"', '"type": "') and shown.out.count("/loops") >= 2
    _out, err = reading.communicate(timeout=SECONDS)
    assert reading.returncode == 1 and err.startswith(b"cat: ")
    assert view.json("lsmod")["modules"] == []


READER = """
import hashlib, os, random, sys, time
end, good, errors, wrong = time.monotonic() + float(sys.argv[1]), 0, 0, 0
sums = dict(line.split() for line in open(sys.argv[2]))
while time.monotonic() < end:
    name = random.choice(sorted(sums))
    try:
        fd = os.open(f"/mnt/{name}", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the server is to be asked, and not the cache
        data = b"".join(iter(lambda: os.read(fd, 1 << 17), b""))
        os.close(fd)
    except OSError as error:
        errors += 1
        print(error, file=sys.stderr)
        continue
    good, wrong = good + 1, wrong + (hashlib.sha256(data).hexdigest() != sums[name])
print(good, errors, wrong)
"""


@pytest.mark.parametrize("kind", ["ext", "squashfs", "copy-on-write"])
def test_servers_that_are_killed_every_second(
    open_view: Callable[..., View], image: Image, tmp_path: Path, kind: str
) -> None:
    """Nobody reads a wrong byte, gets an error, or hangs. (`make soak-servers`: 32 readers, ten minutes.)"""
    seconds, readers = int(os.environ.get("VIEWFS_SOAK_KILLING", "4")), int(os.environ.get("VIEWFS_SOAK_READERS", "4"))
    files = {f"file{number}": random.Random(number).randbytes(300_000 * number) for number in range(1, 9)}
    (tmp_path / "sums").write_text("".join(f"{n} {hashlib.sha256(data).hexdigest()}\n" for n, data in files.items()))
    (tmp_path / "files").mkdir()
    for name, data in files.items():
        (tmp_path / "files" / name).write_bytes(data)
    if kind == "ext":
        view = open_view("--mount", f"{image(size='64M', **files)}:/mnt")
    elif kind == "squashfs":
        disk = tmp_path / "image.squashfs"
        subprocess.run(["mksquashfs", tmp_path / "files", disk, "-quiet", "-no-progress"], check=True)
        view = open_view("--mount", f"{disk}:/mnt")
    else:
        view = open_view("--cow", tmp_path / "files", "--cow-backend", "fuse")
        view("mount", "-t", "bind", tmp_path / "files", "/mnt")

    def server() -> int | None:
        if kind != "copy-on-write":
            return server_of(view)
        return next((pid for pid, name in own_processes().items() if name == "viewfs-cow"), None)

    (tmp_path / "reader.py").write_text(READER)
    script = (
        f"for n in $(seq {readers}); do {sys.executable} {tmp_path}/reader.py {seconds} {tmp_path}/sums & done; wait"
    )
    reading = subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=view.viewfs.environment,
    )
    killed = 0
    while reading.poll() is None:
        try:
            reading.wait(1)
        except subprocess.TimeoutExpired:
            if (pid := server()) is not None:
                kill(pid)
                killed += 1
    out, err = reading.communicate()
    counts = [tuple(map(int, line.split())) for line in out.splitlines()]
    total = tuple(map(sum, zip(*counts, strict=True)))
    print(f"{kind}: {killed} servers killed, {total[0]} files read, {total[1]} errors, {total[2]} wrong")
    assert len(counts) == readers and total[0] > readers and total[1:] == (0, 0), (killed, counts, err[-2000:])
    assert killed >= min(seconds, 3) - 1


HANGS = """
import time
from viewfs.modules.api import Attributes, DirectoryEntry, FileSystem, Module
import stat

class Hangs(Module):
    name = "hangs"

    def open(self, mounting):
        return Tree()

class Tree(FileSystem):
    def getattr(self, inode):
        kind = stat.S_IFREG | 0o444 if inode == 2 else stat.S_IFDIR | 0o755
        return Attributes(ino=inode, mode=kind, size=10)

    def lookup(self, parent, name):
        numbers = {b"file": 2, b"sub": 3}
        if parent == 1 and name in numbers:
            return self.getattr(numbers[name])
        raise FileNotFoundError(2, "no")

    def readdir(self, inode, offset=0):
        return []

    def read(self, inode, offset, size):
        time.sleep(1000)
"""


def test_what_is_inside_goes_with_what_is_taken_away_by_force(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    view = open_view()
    view("insmod", "-o", "deadline=600", tmp_path / "hangs.py", "/hangs")
    view("mount", "-t", "tmp", "none", "/hangs/sub")
    command = ["viewfs", "enter", view.name, "--", "sh", "-c", "echo begin; cat /hangs/file"]
    reading = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=view.viewfs.environment)
    assert reading.stdout is not None and reading.stdout.readline() == b"begin\n"
    assert "is mounted in it" in view("umount", "/hangs", check=False).err
    view("umount", "--force", "/hangs")
    reading.communicate(timeout=SECONDS)
    assert reading.returncode == 1 and view.json("lsmod")["modules"] == []
    assert [row["operation"] for row in view.json("epochs")["epochs"]][-2:] == ["umount", "umount"]


GREETS = """
from viewfs.modules.api import Module
from viewfs.modules.api.nodes import Directory, computed_file, ComputedFile, NodeFileSystem

class Greets(Module):
    name = "greets"
    {needs}

    def open(self, mounting):
        read = {read}
        return NodeFileSystem(Directory({{"sub": Directory({{"file": ComputedFile(read)}})}}))
"""


@pytest.mark.parametrize("needs", ["", "uses_view = True"])
def test_a_restart_runs_the_code_as_it_is_now(open_view: Callable[..., View], tmp_path: Path, needs: str) -> None:
    """Who has a directory open goes on in it; a file that is open is lost."""
    code = tmp_path / "greets.py"
    code.write_text(GREETS.format(needs=needs, read="lambda: 'one\\n'"))
    view = open_view()
    view("insmod", code, "/greets")
    view("mount", "-t", "tmp", "none", "/later")
    view.sh("touch /later/unseen")  # by the module, which is of an earlier epoch
    script = """
        cd /greets/sub
        exec 3<file 4<file
        cat <&4; echo ready; read line
        cat /greets/sub/file; cat file; pwd; cat <&3 || echo lost
    """
    command = ["viewfs", "enter", view.name, "--", "sh", "-c", script]
    reading = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=view.viewfs.environment
    )
    assert reading.stdin is not None and reading.stdout is not None
    assert [reading.stdout.readline() for _ in range(2)] == ["one\n", "ready\n"]
    read = "lambda: 'two\\n'"
    if needs:
        read += " if not __import__('os').path.exists('/later/unseen') else 'seen\\n'"
    code.write_text(GREETS.format(needs=needs, read=read))
    before = server_of(view)
    view("restart", "/greets")
    assert server_of(view) != before
    out, _err = reading.communicate("\n", timeout=SECONDS)
    assert out == "two\ntwo\n/greets/sub\nlost\n"
    # A code that doesn't load changes nothing.
    code.write_text("nothing")
    failed = view("restart", "/greets", check=False)
    assert failed.code == 1 and "does not load" in failed.err and failed.err.count("\n") == 1
    assert view.sh("cat /greets/sub/file").out == "two\n"
    assert view.json("lsmod")["modules"][0]["state"] == "mounted"


def test_a_reader_does_not_notice_restarts(open_view: Callable[..., View], image: Image) -> None:
    content = random.Random(3).randbytes(24 << 20)
    view = open_view("--mount", f"{image(size='64M', big=content)}:/mnt")
    reading = subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "dd", "if=/mnt/big", "bs=64k", "iflag=fullblock", "status=none"],
        stdout=subprocess.PIPE,
        env=view.viewfs.environment,
    )
    assert reading.stdout is not None
    digest = hashlib.sha256()
    for _time in range(4):
        digest.update(reading.stdout.read(4 << 20))
        assert view.json("restart", "/mnt") == {"schema": 1, "path": "/mnt", "server": server_of(view)}
    digest.update(reading.stdout.read())
    assert reading.wait(SECONDS) == 0 and digest.hexdigest() == hashlib.sha256(content).hexdigest()
    reading.stdout.close()


def test_what_can_not_be_restarted(open_view: Callable[..., View], tmp_path: Path) -> None:
    view = open_view("--mount", "none:/there:tmp")
    view("insmod", "random", "/chance")
    for place, why in (
        ("/there", "no module serves it"),
        ("/chance", "has state"),
        ("/nothing", "nothing of this"),
    ):
        failed = view("restart", place, check=False)
        assert failed.code == (4 if place == "/nothing" else 2) and why in failed.err and failed.err.count("\n") == 1
    assert view.sh("head -c 4 /chance", check=False).code == 0
