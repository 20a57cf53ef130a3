"""Any process of a session is killed at any moment: the session ends or goes on, nothing is left of it, or hangs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, Viewfs, session_processes, wait_until
from tests.kernel.cow.conftest import tree

__all__ = ["tree"]

#: `make soak-servers` plays 500.
ROUNDS = int(os.environ.get("VIEWFS_KILL_ROUNDS", "5"))

WORK = """
    for round in 1 2 3 4 5 6; do
        viewfs mount -t hello none /place$round; cat /place$round; viewfs lsmod > /dev/null
        mount -t tmpfs none {place}; umount -l {place}
        viewfs mount {image} /mnt; cat /mnt/file; echo $round > {tree}/file$round; viewfs diff
        viewfs umount --lazy /mnt; viewfs rmmod /place$round
    done
"""


def kill_one(directory: Path, chance: random.Random, after: float) -> str:
    """Kill a process of the session that was started in `directory`, when so much time has passed; what it was."""
    end = time.monotonic() + after
    while time.monotonic() < end:
        time.sleep(0.002)  # the moment is what is tried
    processes = {pid: name for pid, name in session_processes(directory).items() if name.startswith("viewfs")}
    if not processes:
        return ""
    pid = chance.choice(sorted(processes))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return processes[pid]


def test_any_process_at_any_moment(viewfs: Viewfs, image: Callable[..., Path], tree: Path, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    disk = image(file="content")
    (tmp_path / "place").mkdir()
    script = WORK.format(image=disk, tree=tree, place=tmp_path / "place")
    victims = []
    for number in range(ROUNDS):
        running = subprocess.Popen(
            ["viewfs", "run", "--name", "victim", "--cow", str(tree), "--", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=viewfs.environment,
            cwd=tmp_path,
        )
        try:
            victims.append(kill_one(tmp_path, chance, chance.uniform(0, 1.5)))
            running.wait(SECONDS)
            wait_until(
                lambda: not session_processes(tmp_path), f"all have ended (seed {seed}, round {number}: {victims})"
            )
        finally:
            running.kill()
            running.wait()
        # Whatever was killed, the layer can be used.
        assert viewfs("ps", "--json").json["sessions"] == []
        if (viewfs.state / "viewfs/victim").exists():
            viewfs("diff", "--session", "victim")
    assert len({name for name in victims if name}) > 1, f"seed {seed}: several kinds of processes were met"


@pytest.mark.parametrize("name", ["viewfs-agent", "viewfs-standby", "viewfs-supervis"])
def test_a_process_that_is_stopped_keeps_nobody_waiting_for_ever(viewfs: Viewfs, tmp_path: Path, name: str) -> None:
    """`viewfs ps` tells of the other sessions."""
    first = subprocess.Popen(
        ["viewfs", "run", "--name", "stopped", "--", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=viewfs.environment,
        cwd=tmp_path,
    )
    assert first.stdout is not None and first.stdout.readline() == b"ready\n"
    stopped = 0
    viewfs("lsmod", "--session", "stopped")  # for which there is a supervisor
    try:
        (stopped,) = wait_until(
            lambda: [pid for pid, called in session_processes(tmp_path).items() if called == name], "it has its name"
        )
        os.kill(stopped, signal.SIGSTOP)
        out = viewfs("run", "--name", "other", "--", "viewfs", "ps", "--json").json["sessions"]
        assert "other" in {row["name"] for row in out}
    finally:
        if stopped:
            os.kill(stopped, signal.SIGCONT)
        first.communicate(timeout=SECONDS)
        first.stdout.close()


def test_a_session_whose_agent_is_stopped_can_be_ended(viewfs: Viewfs, tmp_path: Path) -> None:
    first = subprocess.Popen(
        [
            "viewfs",
            "run",
            "--name",
            "stopped",
            "--mount",
            "none:/hello:hello",
            "--",
            "sh",
            "-c",
            "echo ready; exec cat",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=viewfs.environment,
        cwd=tmp_path,
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == b"ready\n"
        (agent,) = (pid for pid, name in session_processes(tmp_path).items() if name == "viewfs-agent")
        os.kill(agent, signal.SIGSTOP)
        if ROUNDS > 100:  # it takes its time
            failed = viewfs("mount", "--session", "stopped", "-t", "tmp", "none", "/mnt", check=False)
            assert failed.code == 1 and "the agent does not answer" in failed.err
        viewfs("kill", "stopped")
        first.wait(SECONDS)
        wait_until(lambda: not session_processes(tmp_path), "nothing is left")
    finally:
        first.communicate()
        if first.stdout is not None:
            first.stdout.close()
