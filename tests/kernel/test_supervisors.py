"""A supervisor that is killed, or ends for lack of work: the session goes on, and the next one finds it as it was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, Viewfs, kill, session_processes, wait_until
from tests.kernel.cow.conftest import tree

__all__ = ["tree"]

OpenView = Callable[..., View]
#: `make soak-servers` plays 100.
ROUNDS = int(os.environ.get("VIEWFS_KILL_ROUNDS", "10")) // 5


def supervisors(view: View) -> list[int]:
    return [pid for pid, name in session_processes(view.viewfs.directory).items() if name == "viewfs-supervis"]


def kill_supervisor(view: View) -> None:
    (pid,) = supervisors(view)
    kill(pid)


def test_all_that_it_knew(open_view: OpenView, image: Callable[..., Path], tree: Path, tmp_path: Path) -> None:
    disk = image(file="content")
    view = open_view("--history", "--cow", tree)
    view("mount", disk, "/mnt")
    view("mount", "-t", "tmp", "none", "/made/by/viewfs")
    view("insmod", "useless", "/dev/useless")
    view.sh(f"echo changed > {tree}/file; echo kept > /made/by/viewfs/file")
    view("checkpoint", "before")
    view("umount", "/made/by/viewfs")
    asked = [("epochs",), ("lsmod",), ("diff",), ("log",), ("resolve", "/mnt/file"), ("status",)]
    before = {what[0]: view.json(*what) for what in asked[:-3]}
    resolved = view("resolve", "/mnt/file").out

    kill_supervisor(view)

    now = {what[0]: view.json(*what) for what in asked[:-3]}
    for row in before["lsmod"]["modules"] + now["lsmod"]["modules"]:
        del row["requests"], row["bytes"]
    assert now == before
    assert view("resolve", "/mnt/file").out == resolved
    assert "the supervisor ended (killed by signal 9); another goes on" in view("log").out
    # What is kept of past epochs is there, and the view can be changed.
    assert view.sh("cat /mnt/file; viewfs at 3 -- cat /made/by/viewfs/file").out == "contentkept\n"
    assert view.sh("echo 1 > /dev/useless; ls /made/by 2>&1 | cat").code == 0
    view("mount", "-t", "hello", "none", "/hello")
    kill_supervisor(view)
    for place in ("/hello", "/dev/useless", "/mnt"):
        view("umount", place)
    assert mounted(view) == [str(tree)]
    view.sh(f"echo more >> {tree}/file")
    kill_supervisor(view)
    view("commit")
    assert (tree / "file").read_text() == "changed\nmore\n"


def test_a_server_that_dies_with_it(open_view: OpenView, image: Callable[..., Path]) -> None:
    view = open_view("--mount", f"{image(file='content')}:/mnt")
    reader = subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "sh", "-c", "while cat /mnt/file; do :; done; echo failed"],
        stdout=subprocess.PIPE,
        env=view.viewfs.environment,
    )
    assert reader.stdout is not None and reader.stdout.read(7) == b"content"
    servers = [pid for pid, name in session_processes(view.viewfs.directory).items() if name == "viewfs-ext"]
    for pid in (*supervisors(view), *servers):
        kill(pid)
    wait_until(lambda: view.json("lsmod")["modules"][0]["state"] == "mounted", "another serves")
    assert view.json("lsmod")["modules"][0]["server"] not in servers
    view.close()
    out = reader.communicate(timeout=SECONDS)[0]
    assert set(out.decode().split("content")) <= {"", "failed\n"}


def test_a_command_that_runs_in_another_epoch(open_view: OpenView) -> None:
    """It ends with its own status, whoever announces that."""
    view = open_view("--load", "hello")
    script = "echo $$; read line; exit $line"
    inside = subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "viewfs", "at", "0", "--", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=view.viewfs.environment,
    )
    assert inside.stdout is not None and inside.stdout.readline()
    kill_supervisor(view)
    inside.communicate("7\n", timeout=SECONDS)
    assert inside.returncode == 7


def test_the_session_can_be_ended_after_it(open_view: OpenView, viewfs: Viewfs) -> None:
    view = open_view("--load", "hello")
    kill_supervisor(view)
    viewfs("kill", view.name)
    assert view.process.wait(SECONDS) != 0
    assert not session_processes(viewfs.directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kept_session_goes_on(viewfs: Viewfs, number: int) -> None:
    """Killed with SIGKILL it does; SIGTERM is how an administrator ends the session."""
    viewfs("run", "--keep", "--name", "kept", "--load", "hello", "--", "true")
    try:
        for pid, name in session_processes(viewfs.directory).items():
            if name == "viewfs-supervis":
                os.kill(pid, number)
        if number == signal.SIGKILL:
            assert viewfs("enter", "kept", "--", "cat", "/hello").out == "Hello from viewfs!\n"
    finally:
        viewfs("kill", "kept", check=number == signal.SIGKILL)
    wait_until(lambda: not session_processes(viewfs.directory), "nothing is left")


def test_kill_waits_for_the_end(viewfs: Viewfs) -> None:
    """Of programs too that don't mind being asked."""
    script = "trap '' TERM; echo $$; while :; do sleep 1000; done"
    with subprocess.Popen(
        ["viewfs", "run", "--name", "stubborn", "--load", "hello", "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        env=viewfs.environment,
    ) as running:
        assert running.stdout is not None and running.stdout.readline()
        viewfs("kill", "stubborn")
        assert not [name for name in session_processes(viewfs.directory).values() if name in ("sh", "sleep")]
        running.communicate(timeout=SECONDS)


def test_a_view_in_which_nothing_is_mounted_has_none(open_view: OpenView, tree: Path) -> None:
    """It comes when it is asked for, and knows what the last one knew."""
    view = open_view("--cow", tree)
    assert not supervisors(view)
    view("mount", "-t", "hello", "none", "/hello")
    view("umount", "/hello")
    view.sh(f"echo changed > {tree}/file")
    before = view("epochs").out
    assert supervisors(view)
    wait_until(lambda: not supervisors(view), "it has ended")
    assert view("epochs").out == before
    assert view("diff", "--name-only").out == f"{tree}/file\n"
    view("mount", "-t", "hello", "none", "/hello")
    assert view.sh("cat /hello").out == "Hello from viewfs!\n"
    assert view.close() == (0, "")


def test_a_session_that_ends_while_there_is_none(viewfs: Viewfs, tree: Path) -> None:
    """What was changed is told, and discarded."""
    script = f"viewfs lsmod; echo changed > {tree}/file; read line"
    with subprocess.Popen(
        ["viewfs", "run", "--cow", tree, "--", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=viewfs.environment,
    ) as running:
        names = wait_until(lambda: [*session_processes(viewfs.directory).values()], "it is there")
        wait_until(lambda: "viewfs-supervis" in session_processes(viewfs.directory).values(), "it was asked")
        wait_until(lambda: "viewfs-supervis" not in session_processes(viewfs.directory).values(), "it has ended")
        _out, said = running.communicate("\n", timeout=SECONDS)
        assert f"what was changed in {tree} is discarded" in said and names
    assert not session_processes(viewfs.directory)


CHANGES = """
    for round in 1 2 3 4 5 6 7 8; do
        viewfs mount -t hello none /place$round; viewfs mount {image} /mnt/$round; viewfs cow {tree}/$round
        viewfs umount /place$round; viewfs umount --lazy /mnt/$round
    done; true
"""


def test_killed_in_the_middle_of_changes(open_view: OpenView, image: Callable[..., Path], tree: Path) -> None:
    """What it says is mounted is, and nothing else."""
    disk = image(file="content")
    for number in range(1, 9):
        (tree / str(number)).mkdir()
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for number in range(ROUNDS):
        view = open_view(name=f"round{number}")
        changing = subprocess.Popen(
            ["viewfs", "enter", view.name, "--", "sh", "-c", CHANGES.format(image=disk, tree=tree)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=view.viewfs.environment,
        )
        for _kill in range(chance.randrange(1, 4)):
            time.sleep(chance.uniform(0, 0.4))  # the moment is what is tried
            for pid in supervisors(view):
                kill(pid)
        changing.wait(SECONDS)
        wait_until(partial(nobody_restarts, view), f"seed {seed}: settled")
        known = mounted(view)
        table = view.sh("cat /proc/self/mountinfo").out.splitlines()
        places = [line.split()[4] for line in table if " fuse.viewfs.hello " in line or " fuse.viewfs.ext " in line]
        places += [line.split()[4] for line in table if " overlay viewfs-cow" in line and str(tree) in line]
        assert sorted(places) == known, f"seed {seed}, round {number}"
        for path in reversed(known):
            view("umount", "--lazy", path)
        assert not mounted(view)
        view.close()


def mounted(view: View) -> list[str]:
    return sorted(row["path"] for row in view.json("lsmod")["modules"] if row["state"] == "mounted")


def nobody_restarts(view: View) -> bool:
    return all(row["state"] != "restarting" for row in view.json("lsmod")["modules"])


def test_no_supervisor_that_can_begin(viewfs: Viewfs) -> None:
    """There are too few descriptors for one: that ends soon, and with one line."""
    limited = ["sh", "-c", 'ulimit -n 20; exec "$@"', "sh", *viewfs.command, "run", "--load", "hello", "--", "true"]
    begin = time.monotonic()
    ended = subprocess.run(limited, env=viewfs.environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended
    assert "its supervisors ended, one after the other" in ended.stderr
    assert time.monotonic() - begin < 20, "they are not tried for as long as those that are killed (30 s)"
