"""Changes of a session without a name go with it, whichever of its processes are killed: nothing is left of it."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs, kill, session_processes, wait_until
from tests.kernel.cow.conftest import snapshot
from tests.kernel.cow.test_more_ids import pytestmark as has_more_ids

#: After so many seconds nothing is left.
SECONDS = 10
#: Names of the processes of a session (comm), in the order in which they are started.
FRONT, STANDBY, AGENT, SUPERVISOR = "viewfs", "viewfs-standby", "viewfs-agent", "viewfs-supervis"

Started = Callable[..., "Session"]


class Session:
    """A session that runs until something ends it."""

    def __init__(self, viewfs: Viewfs, *arguments: str | Path) -> None:
        self.viewfs = viewfs
        self.front = subprocess.Popen(
            ["viewfs", "run", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=viewfs.environment,
            cwd=viewfs.directory,
        )
        assert self.front.stdout is not None and self.front.stdout.readline() == b"ready\n", self.front.communicate()

    def pid(self, name: str) -> int:
        """The oldest process of that name."""
        if name == FRONT:
            return self.front.pid
        found = [pid for pid, called in session_processes(self.viewfs.directory).items() if called == name]
        return min(found, key=lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]))

    def kill(self, *names: str) -> None:
        for pid in [self.pid(name) for name in names]:
            kill(pid)

    def wait(self) -> None:
        self.front.communicate(timeout=SECONDS)


@pytest.fixture
def started(viewfs: Viewfs) -> Started:
    return lambda *arguments: Session(viewfs, *arguments)


def left(viewfs: Viewfs, *, processes: bool = True) -> list[str]:
    """What there is of sessions: processes, sockets, layers."""
    found = list(session_processes(viewfs.directory).values()) if processes else []
    for directory in (viewfs.runtime / "viewfs", viewfs.state / "viewfs"):
        with suppress(FileNotFoundError):
            found += os.listdir(directory)
    return found


@pytest.mark.parametrize("more", [(), ("--pid",), ("--load", "hello")], ids=["bare", "pid", "module"])
@pytest.mark.parametrize(
    "victims",
    [(FRONT,), (STANDBY,), (AGENT,), (FRONT, STANDBY), (FRONT, AGENT), (STANDBY, AGENT)],
    ids=lambda names: "+".join(name.removeprefix("viewfs-") for name in names),
)
def test_of_one_session(
    viewfs: Viewfs, started: Started, tree: Path, victims: list[str], more: tuple[str, ...]
) -> None:
    before = snapshot(tree)
    session = started("--cow", tree, *more, "--", "sh", "-c", f"cd {tree}; echo x > new; echo ready; exec cat")
    session.kill(*victims)
    session.wait()
    wait_until(lambda: not left(viewfs), f"nothing is left, and not {left(viewfs)}", SECONDS)
    assert snapshot(tree) == before


@pytest.mark.parametrize("victims", [(SUPERVISOR, STANDBY), (AGENT, SUPERVISOR), (FRONT, STANDBY, SUPERVISOR)])
def test_of_a_tree_that_was_covered_later(viewfs: Viewfs, started: Started, tree: Path, victims: list[str]) -> None:
    session = started("--", "sh", "-c", f"viewfs cow {tree}; cd {tree}; echo x > new; echo ready; exec cat")
    session.kill(*victims)
    session.wait()
    wait_until(lambda: not left(viewfs), f"nothing is left, and not {left(viewfs)}", SECONDS)


def test_of_one_that_goes_on_without_its_command(viewfs: Viewfs, tree: Path) -> None:
    """Nobody is there then but the agent."""
    viewfs("run", "--keep", "--cow", tree, "--", "sh", "-c", f"echo x > {tree}/new")
    standby = next(pid for pid, name in session_processes(viewfs.directory).items() if name == STANDBY)
    kill(standby)
    wait_until(lambda: not left(viewfs), f"nothing is left, and not {left(viewfs)}", SECONDS)


@pytest.mark.parametrize(
    ("victim", "options"),
    [(STANDBY, ()), *((victim, more) for victim in (STANDBY, AGENT) for more in (("--pid",), ("--load", "hello")))],
)
def test_of_a_session_inside(
    viewfs: Viewfs, started: Started, tree: Path, options: tuple[str, ...], victim: str
) -> None:
    """It ends at once with the one around it, which takes away what it leaves."""
    session = started(*options, "--", "viewfs", "run", "--cow", tree, "--", "sh", "-c", "echo ready; exec cat")
    session.kill(victim)
    session.wait()
    wait_until(lambda: not left(viewfs), f"nothing is left, and not {left(viewfs)}", SECONDS)


def test_where_all_of_it_is_killed_the_next_session_takes_it_away(viewfs: Viewfs, started: Started, tree: Path) -> None:
    session = started("--cow", tree, "--", "sh", "-c", "echo ready; exec sleep 600")
    living = started("--cow", tree, "--", "sh", "-c", f"echo y > {tree}/living; echo ready; exec cat")
    (first, second) = sorted(os.listdir(viewfs.state / "viewfs"), key=lambda name: int(name.rpartition(".")[2]))
    for pid in _tree_of(session.front.pid):
        kill(pid)
    session.wait()
    wait_until(lambda: session.front.pid not in session_processes(viewfs.directory), "they have ended")
    assert first in left(viewfs, processes=False)
    viewfs("run", "--", "true")
    assert sorted(os.listdir(viewfs.state / "viewfs")) == [second], "another's stay"
    viewfs("gc")
    living.wait()
    assert left(viewfs) == []


def _tree_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _tree_of(int(child)))]


@has_more_ids[0]
@has_more_ids[1]
def test_files_of_other_ids(viewfs: Viewfs, tree: Path) -> None:
    """Directories that only their owner may change, and the owner is one of the user's further ids."""
    script = f"cd {tree}; mkdir theirs; touch theirs/file; chmod 700 theirs; chown 5:5 theirs/file theirs"
    viewfs.sh("--as-root", "--ids", "many", "--cow", tree, script=script)
    assert left(viewfs) == []


def test_directories_as_deep_as_there_are_descriptors(viewfs: Viewfs, tree: Path) -> None:
    deep = "import os; [(os.mkdir('d'), os.chdir('d')) for _ in range(1100)]; open('file', 'w').close()"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        viewfs.sh("--cow", tree, script=f'cd {tree}; python3 -c "{deep}"')
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert left(viewfs) == []


def test_what_others_have_put_there_is_left_alone(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    """Nothing behind a link is thrown away, nothing that is no layer keeps a session from ending, or `gc` from going
    on."""
    state = viewfs.state / "viewfs"
    prefix = viewfs.sh("--cow", tree, script=f"ls {state}").out.rpartition(".")[0]
    precious = tmp_path / "precious"
    (precious / "sub").mkdir(parents=True)
    (precious / "file").write_text("keep")
    before = snapshot(precious)
    state.mkdir(parents=True)
    (state / f"{prefix}.1").symlink_to(precious)
    (state / f"{prefix}.2").touch()
    for number, make in enumerate((os.mkfifo, lambda path: path.symlink_to("/dev/null"), Path.mkdir), 3):
        (state / f"{prefix}.{number}").mkdir()
        make(state / f"{prefix}.{number}/.session")
    (state / f"{prefix}.6/layer-0123/upper").mkdir(parents=True)
    (state / "named").symlink_to(precious)
    ended = viewfs("run", "--cow", tree, "--", "sh", "-c", f"echo x > {tree}/new; exit 7", check=False)
    assert (ended.code, ended.err.count("\n")) == (7, 1), ended
    assert not (state / f"{prefix}.6").exists()
    for command in (("gc",), ("forget", "named"), ("ps",)):
        viewfs(*command, check=False)
    assert snapshot(precious) == before and len(os.listdir(state)) == 6


def test_gc_on_a_disk_that_is_full(viewfs: Viewfs, tree: Path) -> None:
    """It makes room, and so must not need any."""
    script = f"""
        export XDG_STATE_HOME=/mnt/small; unset VIEWFS_SESSION
        for size in 64K 4K 1; do dd if=/dev/zero bs=$size of=/mnt/small/rest.$size 2>/dev/null || true; done
        viewfs run --cow {tree} -- true 2>/dev/null || echo full
        viewfs gc || echo failed; ls /mnt/small | grep -v rest || true; ls -A /mnt/small/viewfs 2>/dev/null || true
    """
    assert viewfs.sh("--mount", "none:/mnt/small:tmp,size=1M", script=script).out in ("full\n", "full\nviewfs\n")
