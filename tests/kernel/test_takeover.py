"""A module server that dies under its users: another takes its mount over where nothing is lost by it."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.kernel.conftest import View, kill, own_processes, wait_until

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


def test_a_server_that_dies_again_and_again_is_given_up(open_view: Callable[..., View], image: Image) -> None:
    view = open_view("--mount", f"{image(file='content')}:/mnt")

    def dead() -> bool:
        for pid, name in own_processes().items():
            if name == "viewfs-ext":
                kill(pid)
        return bool(view.json("lsmod")["modules"][0]["state"] == "dead")

    wait_until(dead, "it is given up")
    assert view.sh("cat /mnt/file", check=False).code
    view("umount", "/mnt")
    assert view.json("lsmod")["modules"] == []
