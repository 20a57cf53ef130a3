"""The server of a copy-on-write tree dies, and another one takes over: programs go on with what they have open."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.kernel.conftest import SECONDS, Viewfs, kill, own_processes, wait_until
from tests.kernel.cow.conftest import snapshot
from tests.kernel.cow.test_random_work import SCRIPT, begin


def servers(name: str) -> list[int]:
    return [pid for pid, called in own_processes().items() if called == name]


def kill_servers(name: str) -> list[int]:
    """Those that there were."""
    killed = servers(name)
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            kill(pid)
    return killed


#: Goes on with what it has open whenever a line comes, and then prints what it sees.
PROGRAM = """
import os, sys
def begin():
    global read, written, gone, lower_gone, appended, unnamed, replaced, removed, path_only, below_path_only
    os.mkdir("removed"); removed = os.open("removed", os.O_RDONLY | os.O_DIRECTORY); os.rmdir("removed")
    open("short", "w").write("short"); path_only = os.open("short", os.O_PATH); os.unlink("short")
    os.chdir("deeper"); below_path_only = os.open("file", os.O_PATH); os.unlink("file"); os.chdir("..")
    read = open("../text"); read.readline()
    written = open("../new", "w"); written.write("new\\n"); written.flush()
    gone = open("../gone", "w+"); gone.write("gone\\n"); gone.flush(); os.unlink("../gone")
    lower_gone = open("gone"); os.unlink("gone")
    appended = open("../text", "a")
    unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR); os.write(unnamed, b"unnamed\\n")
    open("../other", "w").write("replaced\\n"); replaced = open("../other"); open("../third", "w").write("third\\n")
    os.rename("../third", "../other")
def go_on(number):
    written.write(f"{number}\\n"); written.flush()
    gone.write(f"{number}\\n"); gone.flush(); gone.seek(0)
    appended.write(f"{number}\\n"); appended.flush()
    os.mkdir(f"made{number}"); open(f"made{number}/file", "x").write("x"); os.rename(f"made{number}", f"moved{number}")
    read.seek(0); lower_gone.seek(0); replaced.seek(0)
    return [read.read(), open("../new").read(), gone.read(), lower_gone.read(), os.pread(unnamed, 100, 0),
            replaced.read(), open("../other").read(), sorted(os.listdir(".")), os.getcwd(),
            os.fstat(gone.fileno()).st_nlink, os.listdir(removed), os.fstat(removed).st_nlink,
            os.fstat(path_only).st_size, os.fstat(path_only).st_nlink, os.fstat(below_path_only).st_nlink]
begin()
for number, _line in enumerate(iter(sys.stdin.readline, "")):
    print(go_on(number), flush=True)
"""


def test_programs_go_on_with_what_they_have_open(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    """Files that were removed, replaced, or never had a name, the working directory, the end of a file."""
    (tmp_path / "program.py").write_text(PROGRAM)
    viewfs.environment["VIEWFS_COW_BACKEND"] = "fuse"
    working = tree / "directory"
    running = subprocess.Popen(
        ["viewfs", "run", "--cow", str(tree), "--", sys.executable, str(tmp_path / "program.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=viewfs.environment,
        cwd=working,
    )
    assert running.stdin is not None and running.stdout is not None
    seen, killed = [], 0
    for number in range(4):
        if number:
            killed += len(kill_servers("viewfs-cow"))
        print("go on", file=running.stdin, flush=True)
        seen.append(ast.literal_eval(running.stdout.readline()))
    running.stdin.close()
    assert running.wait(SECONDS) == 0 and killed == 3
    running.stdout.close()
    for number, row in enumerate(seen):
        lines = "".join(f"{n}\n" for n in range(number + 1))
        assert row == [
            f"one\ntwo\nthree\n{lines}", f"new\n{lines}", f"gone\n{lines}", "to be deleted\n", b"unnamed\n",
            "replaced\n", "third\n", ["deeper", *(f"moved{n}" for n in range(number + 1))], str(working), 0,
            [], 0, 5, 0, 0,
        ]  # fmt: skip
    assert sorted(path.name for path in working.iterdir()) == ["deeper", "gone"]


def test_work_goes_on_while_servers_are_killed(viewfs: Viewfs, tmp_path: Path) -> None:
    """Again and again, at random moments; what is committed in the end is what the same work does directly."""
    seeds = range(1, int(os.environ.get("VIEWFS_SOAK_TREES", "6")) + 1)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for name in ("direct", "cow"):
        (tmp_path / name).mkdir()
        begin(tmp_path / name, seeds)
    command = [sys.executable, str(script), "60", *map(str, seeds)]
    subprocess.run(command, cwd=tmp_path / "direct", check=True)
    viewfs.environment["VIEWFS_COW_BACKEND"] = "fuse"
    working = subprocess.Popen(
        ["viewfs", "run", "--name", "n", "--cow", tmp_path / "cow", "--", "sh", "-c", 'echo; exec "$@"', "-", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=viewfs.environment,
        cwd=tmp_path / "cow",
    )
    assert working.stdout is not None and working.stdout.readline() == b"\n"
    working.stdout.close()
    chance, killed = random.Random(1), 0
    while working.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            working.wait(chance.uniform(0.05, 0.3))
        killed += len(kill_servers("viewfs-cow"))
    assert working.stderr is not None
    with working.stderr:
        assert working.returncode == 0, working.stderr.read()
    viewfs("commit", "--session", "n")
    for seed in seeds:
        assert snapshot(tmp_path / "cow" / str(seed)) == snapshot(tmp_path / "direct" / str(seed)), f"seed {seed}"
    assert killed > 3


def test_a_directory_of_the_host_goes_on_being_served(viewfs: Viewfs, tmp_path: Path) -> None:
    """One that had to gain a mount point: what is open, names of both sides, and one more mount point."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").write_text("one\n")
    (home / "gone").write_text("gone\n")
    script = f"""
        cd {home}
        exec 3<file 4>>file 5<gone
        rm gone
        echo ready; read line
        echo two >&4; cat <&3; cat file; cat here/inside
        echo three > made; ls
        viewfs mount -t tmp none {home}/there; echo x > there/x; ls there
        cat <&5 || echo lost
        echo ready; read line; ls; echo x > there/y; ls there; viewfs umount {home}/there; ls
    """
    view = subprocess.Popen(
        [
            "viewfs",
            "run",
            "--mount",
            f"none:{home}/here:tmp",
            "--",
            "bash",
            "-euc",
            f"echo in > {home}/here/inside; {script}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=viewfs.environment,
    )
    assert view.stdin is not None and view.stdout is not None
    with view, view.stdin, view.stdout:
        assert view.stdout.readline() == "ready\n"
        assert len(kill_servers("viewfs-mirror")) == 1
        (home / "outside").write_text("out\n")
        print(file=view.stdin, flush=True)
        lines = list(iter(view.stdout.readline, "ready\n"))
        assert lines == ["one\n", "two\n", "one\n", "two\n", "in\n", *lines[5:]], lines
        assert lines[5:] == ["file\n", "here\n", "made\n", "outside\n", "x\n", "lost\n"]
        assert len(kill_servers("viewfs-mirror")) == 1
        print(file=view.stdin, flush=True)
        rest = view.stdout.read().splitlines()
        assert rest == ["file", "here", "made", "outside", "there", "x", "y", "file", "here", "made", "outside"]
    assert view.returncode == 0
    assert (home / "made").read_text() == "three\n" and sorted(os.listdir(home)) == ["file", "made", "outside"]


def test_nobody_waits_for_a_server_that_dies_at_once(viewfs: Viewfs, tree: Path) -> None:
    """While the view is made, or by a command after it: there is an error, or what was to be done."""
    viewfs.environment["VIEWFS_COW_BACKEND"] = "fuse"
    viewfs.sh("--name", "n", "--cow", tree, script=f"cd {tree}; for n in $(seq 300); do echo $n > $n; done")
    commands = (["run", "--name", "n", "--cow", str(tree), "--", "ls", str(tree)], ["diff", "--session", "n", "--stat"])
    chance, killed, codes = random.Random(1), 0, set()
    for number in range(20):
        with subprocess.Popen(
            ["viewfs", *commands[number % 2]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=viewfs.environment
        ) as running:
            while running.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(chance.uniform(0.001, 0.02))
                killed += len(kill_servers("viewfs-cow"))
            assert running.stderr is not None
            err = running.stderr.read().decode()
        codes.add(running.returncode)
        assert "Traceback" not in err, err
    assert killed > 10 and len(codes) > 1, (killed, codes)


def test_the_parent_of_a_server_is_killed(viewfs: Viewfs, tree: Path) -> None:
    """Its mount is gone, and the view goes on, however young it is."""
    viewfs.environment["VIEWFS_COW_BACKEND"] = "fuse"
    running = subprocess.Popen(
        [
            "viewfs",
            "run",
            "--name",
            "n",
            "--cow",
            str(tree),
            "--",
            "sh",
            "-c",
            "echo; read l; ls $0; echo on",
            str(tree),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=viewfs.environment,
    )
    assert running.stdout is not None and running.stdout.readline() == "\n"
    assert len(kill_servers("viewfs-cover")) == 1
    wait_until(lambda: not servers("viewfs-cow"), "its server is gone too")
    out, err = running.communicate("\n", timeout=SECONDS)
    assert (running.returncode, out) == (0, "on\n") and "not connected" in err
