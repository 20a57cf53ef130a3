"""The memory that a session takes. Its processes hide theirs, so that only root can look."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel.conftest import wait_until
from tests.root.test_lower_file_systems import place
from tests.root.test_names_of_the_host import Names

__all__ = ["place"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can look")
MIB = 1024
SECONDS = 60


def memory_of(pid: int, kind: str) -> int:
    """KiB, as proc_pid_smaps(5) counts them: `Private_Dirty` is a process's own, and `Pss_Anon` that with its share of
    what it has in common with others."""
    table = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(rf"^{kind}: +([0-9]+) kB", table, re.MULTILINE)[0])


def session_of(front: subprocess.Popen[str]) -> dict[str, int]:
    """Its processes, by name; the command is none of them."""
    found: dict[str, int] = {}
    ahead = [front.pid]
    while ahead:
        pid = ahead.pop()
        with suppress(FileNotFoundError):  # it has just ended
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name.startswith("viewfs") or pid == front.pid:
                found[name if pid != front.pid else "front"] = pid
            ahead += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


def test_memory(place: Path) -> None:
    """Of a view in which nothing is mounted at most 15 MiB, and of an idle mount of its own at most 5."""
    names = Names(place)
    disk = place / "disk.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk, "8M"], check=True)
    disk.chmod(0o644)
    of_mount = {"front", "viewfs-agent", "viewfs-standby", "viewfs-supervis"}
    for options, expected in (
        ((), {"front", "viewfs-standby"}),
        (("--load", "hello"), of_mount | {"viewfs-hello"}),
        (("--mount", f"{disk}:/image"), of_mount | {"viewfs-ext"}),
    ):
        with names.start("run", *options, "--", "sh", "-c", "cat /hello; echo ready; exec cat") as running:
            assert running.stdout is not None
            while (line := running.stdout.readline()) != "ready\n":
                assert line
            # Workers may just be ending.
            wait_until(lambda: set(session_of(running)) == expected, f"{expected} are there, and no others")  # noqa: B023
            session = session_of(running)
            if options:
                (server,) = (pid for name, pid in session.items() if name not in of_mount)
                wait_until(lambda: memory_of(server, "Private_Dirty") <= 5 * MIB, "it takes no more", 10)  # noqa: B023
            else:
                assert sum(memory_of(pid, "Pss_Anon") for pid in session.values()) <= 15 * MIB
            running.communicate("", timeout=SECONDS)
