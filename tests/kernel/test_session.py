"""Sessions: exit statuses, what outlives what, names, and that the end of one leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs, kill, own_processes, session_processes, wait_until


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
@pytest.mark.parametrize("options", [(), ("--pid",)])
def test_exit_status_is_the_commands(viewfs: Viewfs, script: str, code: int, options: tuple[str, ...]) -> None:
    assert viewfs("run", *options, "--", "sh", "-c", script, check=False).code == code


def test_a_command_that_cannot_be_run(viewfs: Viewfs, tmp_path: Path) -> None:
    missing = viewfs("run", "--", "no-such-program", check=False)
    assert (missing.code, missing.err) == (127, "viewfs: cannot run no-such-program: no such command\n")
    (tmp_path / "plain").write_text("not a program")
    refused = viewfs("run", "--", "./plain", check=False)
    assert (refused.code, refused.err) == (126, "viewfs: cannot run ./plain: permission denied\n")


def test_streams_descriptors_environment_and_directory_are_the_callers(viewfs: Viewfs, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    script = "cat; echo $FOO; pwd; cat <&5; echo to stderr >&2"
    done = subprocess.run(
        ["bash", "-c", f"cd here; FOO=bar viewfs run -- sh -c '{script}' 5< <(echo five)"],
        input="in\n",
        capture_output=True,
        text=True,
        env=viewfs.environment,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == ["in", "bar", str(tmp_path / "here"), "five"]
    assert done.stderr == "to stderr\n"


def test_signals_sent_to_viewfs_reach_the_command(viewfs: Viewfs) -> None:
    script = "trap 'echo got term; exit 9' TERM; echo ready; while :; do sleep 0.01; done"
    with subprocess.Popen(
        ["viewfs", "run", "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True, env=viewfs.environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "got term\n"
        assert process.wait() == 9


def test_what_runs_in_the_background_ends_with_the_command(viewfs: Viewfs, tmp_path: Path) -> None:
    script = f"""
        (sleep 1000 & echo $! > {tmp_path}/child)
        setsid nohup sh -c 'echo $$ > {tmp_path}/daemon; exec sleep 1000' >/dev/null 2>&1 &
        setsid sh -c 'trap "" TERM HUP; echo $$ > {tmp_path}/stubborn; while :; do sleep 0.1; done' &
        until [ -s {tmp_path}/daemon -a -s {tmp_path}/stubborn ]; do :; done
    """
    viewfs.sh(script=script)
    for name in ("child", "daemon", "stubborn"):
        assert int((tmp_path / name).read_text()) not in own_processes()


def test_processes_are_asked_to_end_before_they_are_killed(viewfs: Viewfs, tmp_path: Path) -> None:
    """And while they clean up, the file systems of the view still answer."""
    said = tmp_path / "said"
    script = f"""
        setsid sh -c 'trap "cat /hello > {said}; exit" TERM; : > {tmp_path}/ready; while :; do sleep 0.01; done' &
        until [ -e {tmp_path}/ready ]; do :; done
    """
    viewfs.sh("--load", "hello", script=script)
    assert said.read_text() == "Hello from viewfs!\n"


def _pids_of(view: View, name: str) -> list[int]:
    return [pid for pid, command in own_processes().items() if command == name]


@pytest.mark.parametrize("victim", ["front", "standby", "supervisor", "agent", "command", "server"])
@pytest.mark.parametrize("options", [(), ("--pid",)])
def test_nothing_is_left_whoever_is_killed(
    open_view: Callable[..., View], image: Callable[..., Path], victim: str, options: tuple[str, ...]
) -> None:
    """The fixture looks for processes, mounts and sockets afterwards; here it is that the end comes."""
    disk = image(file="content")
    view = open_view(*options, "--mount", f"{disk}:/mnt", "--load", "hello")
    inside = subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "sh", "-c", "cd /mnt; echo $$; exec sleep 1000"],
        stdout=subprocess.PIPE,
        text=True,
        env=view.viewfs.environment,
    )
    assert inside.stdout is not None and inside.stdout.readline()
    names = {
        "standby": "viewfs-standby",
        "supervisor": "viewfs-supervis",
        "agent": "viewfs-agent",
        "server": "viewfs-ext",
    }
    if victim == "front":
        view.process.kill()
    elif victim == "command":
        # The view's command is below its front; with a pid namespace a process that stands for it is between.
        near = {pid for pid in own_processes() if _try_parent(pid) == view.process.pid} | {view.process.pid}
        kill(next(pid for pid in _pids_of(view, "cat") if _try_parent(pid) in near))
    else:
        for pid in _pids_of(view, names[victim]):
            kill(pid)
    if victim in ("server", "supervisor"):
        wait_until(lambda: view.json("lsmod")["modules"][0]["server"], "another has taken over")
        assert view.sh("cat /mnt/file /hello").out == "contentHello from viewfs!\n"
        view.close()
    assert inside.wait(60) != 0
    inside.stdout.close()
    code = view.process.wait(60)
    assert code == {"front": -signal.SIGKILL, "command": 137, "standby": 1, "agent": 1}.get(victim, 0)
    if victim in ("standby", "agent"):
        assert view.process.stderr is not None
        assert view.process.stderr.read() == f"viewfs: the session ended: its {victim} was killed by SIGKILL\n"


def _try_parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_a_kept_session_goes_on_until_it_is_killed(viewfs: Viewfs, image: Callable[..., Path]) -> None:
    disk = image(file="content")
    assert (
        viewfs(
            "run", "--keep", "--name", "kept", "--mount", f"{disk}:/mnt", "--", "sh", "-c", "exit 4", check=False
        ).code
        == 4
    )
    try:
        (session,) = viewfs("ps", "--json").json["sessions"]
        assert session["name"] == "kept" and session["kept"] and session["mounts"] == 1
        assert viewfs("enter", "kept", "--", "cat", "/mnt/file").out == "content"
        assert viewfs("enter", "kept", "--", "sh", "-c", "exit 6", check=False).code == 6
    finally:
        viewfs("kill", "kept")
    assert viewfs("ps", "--json").json["sessions"] == []
    gone = viewfs("enter", "kept", "--", "true", check=False)
    assert gone.code == 4 and gone.err == "viewfs: no session is called kept; `viewfs ps` lists them\n"


@pytest.mark.parametrize("victim", ["viewfs-standby", "viewfs-agent"])
def test_a_kept_session_ends_with_its_processes(viewfs: Viewfs, tmp_path: Path, victim: str) -> None:
    viewfs("run", "--keep", "--name", "kept", "--load", "hello", "--", "true")
    ours = session_processes(tmp_path)
    assert victim in ours.values()
    for pid, name in ours.items():
        if name == victim:
            kill(pid)
    wait_until(lambda: not set(session_processes(tmp_path)) & set(ours), "all of the session has ended")


def test_names(open_view: Callable[..., View], viewfs: Viewfs) -> None:
    open_view(name="taken")
    again = viewfs("run", "--name", "taken", "--", "true", check=False)
    assert again.code == 2 and again.err.startswith("viewfs: a session called taken exists")
    bad = viewfs("run", "--name", "../x", "--", "true", check=False)
    assert bad.code == 2 and bad.err.count("\n") == 1
    assert viewfs("enter", "taken", "--", "sh", "-c", "echo $VIEWFS_SESSION").out == "taken\n"


def test_the_socket_is_private(open_view: Callable[..., View], viewfs: Viewfs) -> None:
    open_view()
    directory = viewfs.runtime / "viewfs"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [entry.name for entry in directory.iterdir()] == ["test.sock"]


def framed(text: str) -> bytes:
    return len(text).to_bytes(4, "big") + text.encode()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        b"\0\0\0\x02{}" * 3,
        framed('{"op":null}'),
        framed("[1, 2]"),
        framed('{"op":"mount","path":[]}'),
        framed('{"op":"mount","type":7,"source":null,"path":"/x","options":3}'),
        framed('{"op":"resolve","epoch":{}}'),
        framed('{"op":"umount","path":"/"}'),
        framed('{"op":"spawn","argv":["true"],"env":{},"cwd":"/","group":0}'),
        framed('{"op":"end"}')[:-1],
    ],
)
def test_nonsense_on_the_socket_does_no_harm(open_view: Callable[..., View], viewfs: Viewfs, sent: bytes) -> None:
    view = open_view("--load", "hello")
    for _client in range(3):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(viewfs.runtime / "viewfs/test.sock"))
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert view.sh("cat /hello").out == "Hello from viewfs!\n"


def test_a_session_of_another_version(viewfs: Viewfs) -> None:
    (viewfs.runtime / "viewfs").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(viewfs.runtime / "viewfs/newer.sock"))
        listener.listen()
        asking = subprocess.Popen(
            ["viewfs", "enter", "newer"], stderr=subprocess.PIPE, text=True, env=viewfs.environment
        )
        with listener.accept()[0] as connection:
            connection.sendall(framed('{"viewfs":99}'))
            _out, err = asking.communicate(timeout=60)
    assert (asking.returncode, err) == (1, "viewfs: session newer is of another version of viewfs\n")
    assert viewfs("ps", "--json").json["sessions"] == [], "nobody listens there any more"


def test_without_a_runtime_directory(viewfs: Viewfs, tmp_path: Path) -> None:
    del viewfs.environment["XDG_RUNTIME_DIR"]
    viewfs.environment["TMPDIR"] = str(tmp_path)
    place = tmp_path / f"viewfs-{os.getuid()}"
    script = f"stat -c %a {place}; viewfs mount -t tmp none /somewhere; viewfs ps --json"
    done = viewfs("run", "--name", "here", "--", "sh", "-c", script)
    assert done.out.startswith("700\n") and '"name":"here"' in done.out.replace(" ", "")
    assert not place.exists()


def test_commands_outside_a_view_say_so(viewfs: Viewfs) -> None:
    for command in (["lsmod"], ["epochs"], ["umount", "/mnt"], ["at", "0", "--", "true"]):
        done = viewfs(*command, check=False)
        assert done.code == 4
        assert (
            done.err == "viewfs: this is not inside a view; start one with `viewfs shell`, or name one with --session\n"
        )


def test_the_view_is_found_by_its_namespace(viewfs: Viewfs) -> None:
    """Not by a variable that a program may have dropped, or that points elsewhere."""
    done = viewfs.sh(
        "--name", "a", script="env -u VIEWFS_SESSION viewfs mount -t tmp n /x; VIEWFS_SESSION=b viewfs lsmod"
    )
    assert "/x" in done.out


@pytest.mark.parametrize("covered", ["{runtime}", "/tmp"])
def test_a_session_is_found_whatever_its_view_covers(viewfs: Viewfs, covered: str) -> None:
    place = covered.format(runtime=viewfs.runtime)
    script = "cd /; unset VIEWFS_SESSION; viewfs lsmod --json; viewfs insmod hello /hello && cat /hello"
    done = viewfs.sh("--name", "covered", "--mount", f"none:{place}:tmp", script=script)
    assert place in done.out and done.out.endswith("Hello from viewfs!\n")
    assert (
        viewfs.sh("--mount", f"none:{place}:tmp", script="viewfs lsmod --session $VIEWFS_SESSION | wc -l").out == "2\n"
    )


def test_what_killed_sessions_have_left_is_removed(
    viewfs: Viewfs, open_view: Callable[..., View], tmp_path: Path
) -> None:
    """And nothing else: not what is running, nor what has a name."""
    (tmp_path / "tree").mkdir()
    viewfs.sh("--name", "named", "--cow", tmp_path / "tree", script=f"echo x > {tmp_path}/tree/file")
    living = open_view("--cow", tmp_path / "tree", name="living")
    runtime, state = viewfs.runtime / "viewfs", viewfs.state / "viewfs"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "gone.sock"))
    script = f"cp -a {state}/unnamed.* {tmp_path}/copy 2>&- || true; ls {state}; viewfs gc --dry-run --json"
    inside = viewfs.sh("--cow", tmp_path / "tree", script=script).out
    assert '"found": ["' + str(runtime) in inside.replace('":["', '": ["'), "what is in use is not found"
    (name,) = re.findall(r"^unnamed\..*$", inside, re.MULTILINE)
    copy = state / name  # as if its session had been killed an hour ago
    (tmp_path / "copy").rename(copy)
    os.utime(copy, (1, 1))
    shown = viewfs("gc", "--dry-run").out.splitlines()
    assert sorted(shown) == sorted([str(runtime / "gone.sock"), str(copy)])
    assert viewfs("gc", "--json").json["removed"] == shown and viewfs("gc").out == ""
    assert not copy.exists() and (state / "named").exists()
    assert living.sh("echo still here").out == "still here\n"
