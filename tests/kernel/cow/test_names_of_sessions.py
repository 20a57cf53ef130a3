"""One session at a time has the layers of a name, wherever its control socket is; and nobody's are removed by guess."""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, Viewfs, kill, session_processes, wait_until
from tests.kernel.cow.conftest import Cow, snapshot


@pytest.fixture
def elsewhere(viewfs: Viewfs, tmp_path: Path) -> Iterator[Viewfs]:
    """The same user with the same layers and another runtime directory, as cron, su and ssh give one."""
    yield (other := with_runtime(viewfs, tmp_path / "runtime-of-cron"))
    assert not (other.runtime / "viewfs").exists(), "sockets are left"


def with_runtime(viewfs: Viewfs, runtime: Path) -> Viewfs:
    runtime.mkdir(mode=0o700)
    other = copy.copy(viewfs)
    other.runtime = runtime
    other.environment = viewfs.environment | {"XDG_RUNTIME_DIR": str(runtime)}
    return other


OpenView = Callable[..., View]


def test_a_second_session_is_refused(open_view: OpenView, viewfs: Viewfs, elsewhere: Viewfs, tree: Path) -> None:
    view = open_view("--cow", tree, name="work")
    view.sh(f"echo first > {tree}/text")
    refused = elsewhere.sh("--name", "work", "--cow", tree, script=f"rm {tree}/script", check=False)
    assert refused.code == 1 and refused.out == "" and refused.err.count("\n") == 1, refused
    assert str(viewfs.runtime) in refused.err and "work" in refused.err, "who holds it is named"
    assert view.sh(f"cat {tree}/text; ls {tree}/script").out == f"first\n{tree}/script\n"
    assert view("diff", "--name-only").out == f"{tree}/text\n"
    view.close()
    after = elsewhere.sh("--name", "work", "--cow", tree, script=f"cat {tree}/text; rm {tree}/script")
    assert after.out == "first\n"
    assert viewfs("diff", "--session", "work", "--name-only").out == f"{tree}/script\n{tree}/text\n"


def test_who_is_refused_takes_nothing_away(open_view: OpenView, elsewhere: Viewfs, tree: Path) -> None:
    """Of a session that has changed nothing yet there is nothing to keep, unless it lives."""
    view = open_view("--cow", tree, name="work")
    for script in ("true", "echo x"):
        assert elsewhere.sh("--name", "work", "--cow", tree, script=script, check=False).code == 1
    assert elsewhere("ps", "--json").json["ended"] == []
    view.sh(f"mkdir {tree}/new; echo first > {tree}/text; cat {tree}/text; ls {tree}/new")
    assert view("diff", "--name-only").out == f"{tree}/new\n{tree}/text\n"
    view.close()
    assert elsewhere("diff", "--session", "work", "--name-only").out == f"{tree}/new\n{tree}/text\n"


def test_commands_that_look_only(cow: Cow, tree: Path) -> None:
    """Two that compare do not stand in each other's way: one waits in a pager, say."""
    cow.sh("seq 20000 > text")
    command = ["viewfs", "diff", "--session", "cow"]
    with subprocess.Popen(command, stdout=-1, text=True, env=cow.viewfs.environment) as pager:
        assert pager.stdout is not None and pager.stdout.readline().startswith("changed")
        second = cow("diff", "--name-only", check=False)  # the first has more to say than a pipe holds
        assert pager.poll() is None
        assert len(pager.stdout.read().splitlines()) > 20000
    assert second.out == f"{tree}/text\n", second


def test_a_tree_that_is_made_copy_on_write_later(open_view: OpenView, elsewhere: Viewfs, tree: Path) -> None:
    """A name alone is no reason to refuse anything; the layers are."""
    view = open_view("--cow", tree, name="work")
    view.sh(f"echo first > {tree}/text")
    script = f"viewfs cow {tree} || echo refused: $?; cat {tree}/text"
    result = elsewhere.sh("--name", "work", script=script)
    assert result.out == "refused: 1\none\ntwo\nthree\n" and result.err.count("\n") == 1
    assert view.sh(f"cat {tree}/text").out == "first\n"


@pytest.mark.parametrize(
    "command", [("commit",), ("diff",), ("discard",), ("commit", "--force"), ("commit", "--to", "x.tar"), ("forget",)]
)
def test_commands_from_elsewhere(open_view: OpenView, elsewhere: Viewfs, tree: Path, command: tuple[str, ...]) -> None:
    """They don't find the session, and so must leave alone what it has."""
    before = snapshot(tree)
    view = open_view("--cow", tree, name="work")
    view.sh(f"echo first > {tree}/text; mkdir {tree}/new")
    arguments = ("forget", "work") if command == ("forget",) else (*command, "--session", "work")
    refused = elsewhere(*arguments, check=False)
    assert refused.code == 1 and refused.out == "" and refused.err.count("\n") == 1, refused
    assert str(view.viewfs.runtime) in refused.err
    assert snapshot(tree) == before and not (elsewhere.directory / "x.tar").exists()
    assert view("diff", "--name-only").out == f"{tree}/new\n{tree}/text\n"
    view.sh(f"echo more >> {tree}/text")
    view.close()
    done = elsewhere(*arguments)
    assert done.out != "" and done.err == ""
    assert ((tree / "text").read_text() == "first\nmore\n") == (command[0] == "commit" and "--to" not in command)


def test_what_runs_elsewhere_has_not_ended(open_view: OpenView, elsewhere: Viewfs, tree: Path) -> None:
    view = open_view("--cow", tree, name="work")
    view.sh(f"echo first > {tree}/text")
    assert elsewhere("ps", "--json").json["ended"] == []
    view.close()
    assert elsewhere("ps", "--json").json["ended"] == [{"name": "work", "paths": [str(tree)]}]


def test_a_session_that_was_killed_holds_nothing(open_view: OpenView, elsewhere: Viewfs, tree: Path) -> None:
    view = open_view("--cow", tree, name="work")
    view.sh(f"echo first > {tree}/text")
    assert elsewhere("diff", "--session", "work", check=False).code == 1
    for pid, name in session_processes(view.viewfs.directory).items():
        if name == "viewfs-standby":
            kill(pid)
    view.process.communicate(timeout=SECONDS)
    wait_until(lambda: elsewhere("diff", "--session", "work", check=False).code == 0, "the lock is free")
    assert elsewhere("diff", "--session", "work", "--name-only").out == f"{tree}/text\n"
    shutil.rmtree(view.viewfs.runtime / "viewfs", ignore_errors=True)  # its socket stays until somebody looks


def test_programs_do_not_have_the_lock(cow: Cow) -> None:
    """One that goes on somehow would keep the name from everybody."""
    shown = cow.sh("ls -l /proc/self/fd /proc/$$/fd").out
    assert " -> " in shown and ".session" not in shown


def test_many_at_once(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    """Who is not refused is alone with the layers from its first to its last change."""
    script = f"cd {tree}; for n in $(seq 30); do mkdir only; echo $n > only/n; rm only/n; rmdir only; done; echo done"
    started = []
    for number in range(6):
        environment = with_runtime(viewfs, tmp_path / f"runtime{number}").environment
        command = ["viewfs", "run", "--name", "work", "--cow", str(tree), "--", "bash", "-euc", script]
        started.append(subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment, cwd=tmp_path))
    ended = [(*process.communicate(timeout=SECONDS), process.returncode) for process in started]
    assert {(out, code) for out, _err, code in ended} <= {("done\n", 0), ("", 1)}, ended
    assert ("done\n", 0) in {(out, code) for out, _err, code in ended}
    assert all("in use by" in err and err.count("\n") == 1 for _out, err, code in ended if code), ended
    assert not (tree / "only").exists()


@contextmanager
def unnamed(viewfs: Viewfs, tree: Path) -> Iterator[Callable[[str], str]]:
    """A session whose name was not given: scripts are run in it, one after the other."""
    loop = 'echo ready; while read -r line; do eval "$line"; echo end; done'
    command = ["viewfs", "run", "--cow", str(tree), "--", "bash", "-c", loop]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, env=viewfs.environment) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None and stdout.readline() == "ready\n"

        def run(script: str) -> str:
            stdin.write(script + "\n")
            stdin.flush()
            lines = list(iter(stdout.readline, "end\n"))
            assert "" not in lines[-1:]
            return "".join(lines)

        yield run
        process.communicate(timeout=SECONDS)
        assert process.returncode == 0


def test_sessions_without_a_name(viewfs: Viewfs, elsewhere: Viewfs, tree: Path) -> None:
    """The end of one takes away its own layers, and those alone."""
    with unnamed(viewfs, tree) as one:
        assert one(f"echo one > {tree}/text; mkdir {tree}/new") == ""
        with unnamed(elsewhere, tree) as other:
            assert other(f"cat {tree}/text; rm {tree}/text; ls {tree}").startswith("one\ntwo\nthree\n")
            assert len(os.listdir(viewfs.state / "viewfs")) == 2
        assert len(os.listdir(viewfs.state / "viewfs")) == 1
        assert one(f"cat {tree}/text; echo more > {tree}/new/file; cat {tree}/new/file") == "one\nmore\n"
    assert not (viewfs.state / "viewfs").exists() or os.listdir(viewfs.state / "viewfs") == []
    assert (tree / "text").read_text() == "one\ntwo\nthree\n"


def test_what_another_machine_has_is_left_alone(viewfs: Viewfs, tree: Path) -> None:
    """A home directory can be on several machines: what one had before it went down goes, what others have does not."""
    state = viewfs.state / "viewfs"
    with unnamed(viewfs, tree) as run:
        run(f"echo one > {tree}/text")
        (own,) = os.listdir(state)
        kind, machine, boot, *rest = own.split(".")
        other_machine = f"{int(machine, 16) ^ 1:08x}"
        names = {
            "another machine": ".".join([kind, other_machine, boot, *rest]),
            "another machine, earlier": ".".join([kind, other_machine, "00000000", *rest]),
            "in use": ".".join([kind, machine, "00000001", *rest]),
            "left": ".".join([kind, machine, "00000002", *rest]),
        }
        for name in names.values():
            shutil.copytree(state / own, state / name, ignore=shutil.ignore_patterns("work"))
        with open(state / names["in use"] / ".session", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            run("true")
            assert viewfs.sh("--cow", tree, script=f"echo two > {tree}/text; cat {tree}/text").out == "two\n"
            there = {what for what, name in names.items() if (state / name).exists()}
    assert there in (names.keys(), names.keys() - {"left"}), "what is not known to be left is never removed"
    assert all((state / names[what] / "").exists() for what in ("another machine", "another machine, earlier"))
