"""A session in a pid namespace, where whoever adopts orphans never asks after them, as process 1 of many a container.

Such a zombie keeps the namespace's first process from ending. That is nobody's business but the adopter's.
"""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs, kill, session_processes, wait_until

#: PR_SET_CHILD_SUBREAPER of linux/prctl.h.
ADOPTER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
front = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
status = os.waitpid(front, 0)[1]
print(os.waitstatus_to_exitcode(status), flush=True)
sys.stdin.read()
"""
#: After so many seconds nothing hangs.
SECONDS = 10
AGENT_LOST = b"viewfs: the session ended: its agent was killed by SIGKILL\n"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("victim", ["front", "between", "init", "command"])
@pytest.mark.parametrize("more", [(), ("--load", "hello")], ids=["bare", "module"])
def test_a_session_ends_though_nobody_reaps(viewfs: Viewfs, tmp_path: Path, victim: str, more: tuple[str, ...]) -> None:
    script = "(setsid sleep 600 &); echo ready; exec sleep 601"
    adopter = subprocess.Popen(
        [sys.executable, "-c", ADOPTER, "viewfs", "run", "--pid", *more, "--", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=viewfs.environment,
        cwd=tmp_path,
        bufsize=0,
    )
    assert adopter.stdout is not None and adopter.stdin is not None and adopter.stderr is not None

    def running() -> dict[int, str]:
        """Those that have not ended, without the adopter and what only waits for its zombies to be reaped."""
        found = session_processes(tmp_path)
        return {pid: name for pid, name in found.items() if pid != adopter.pid and _has_memory(pid)}

    try:
        assert adopter.stdout.readline() == b"ready\n"
        command = wait_until(lambda: _called(running(), b"sleep\x00601\x00"), "the command is there")
        between = parent_of(command)
        init = next(pid for pid, name in running().items() if name == "viewfs-agent")
        kill({"front": parent_of(between), "between": between, "init": init, "command": command}[victim])
        assert select.select([adopter.stdout], [], [], SECONDS)[0], "the front has ended"
        assert adopter.stdout.readline() == {"front": b"-9\n", "init": b"1\n"}.get(victim, b"137\n")
        wait_until(lambda: not running(), "nothing is left that runs", SECONDS)
    finally:
        for pid in running():
            kill(pid)
        adopter.stdin.close()
        adopter.wait(SECONDS)
        said = adopter.stderr.read()
        adopter.stdout.close()
        adopter.stderr.close()
        wait_until(lambda: not session_processes(tmp_path), "the zombies are gone with who adopted them")
    assert said == (AGENT_LOST if victim == "init" else b"")


def _called(processes: dict[int, str], command: bytes) -> int | None:
    return next((pid for pid in processes if Path(f"/proc/{pid}/cmdline").read_bytes() == command), None)


def _has_memory(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/statm").read_text().startswith("0 ")
    except OSError:
        return False
