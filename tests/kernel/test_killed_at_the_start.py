"""A part of a session is killed while the first mounts are made: that is said, at once, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs, kill, session_processes, wait_until


@pytest.mark.parametrize("victim", ["viewfs-standby", "viewfs-agent"])
@pytest.mark.parametrize("delay_ms", [0, 5, 15, 60])
def test_killed_while_a_module_is_loaded(viewfs: Viewfs, tmp_path: Path, victim: str, delay_ms: int) -> None:
    front = subprocess.Popen(["viewfs", "run", "--load", "hello", "--", "true"], env=viewfs.environment,
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    pid = wait_until(lambda: front.poll() is not None or _find(tmp_path, victim), f"{victim} is there")
    until = time.monotonic() + delay_ms / 1000
    while time.monotonic() < until:  # how far it has come by then is left to chance
        os.sched_yield()
    if pid is not True:
        kill(pid)
    _out, said = front.communicate(timeout=60)
    name = victim.removeprefix("viewfs-")
    assert (front.returncode, said) in [
        (0, ""),
        (1, f"viewfs: the session ended: its {name} was killed by SIGKILL\n"),
    ]
    wait_until(lambda: not session_processes(tmp_path), "all of it has ended")


def _find(directory: Path, name: str) -> int | None:
    return next((pid for pid, called in session_processes(directory).items() if called == name), None)
