"""On a terminal: prompt, Ctrl-C, Ctrl-Z, job control, hang-up. A pseudo-terminal takes the place of the user."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pexpect
import pytest

from tests.kernel.conftest import SECONDS, Viewfs, session_processes, wait_until

PROMPT = r"\(term\) \S*[$#] "


@pytest.fixture(params=["", "1"], ids=["quick", "whole"])
def terminal(viewfs: Viewfs, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., pexpect.spawn]]:
    """Start something on a terminal, with a home directory whose start files say nothing; viewfs the quick way, and by
    the whole program."""
    viewfs.environment["VIEWFS_WHOLE"] = request.param
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.bashrc").write_text("PS1='host$ '; bind 'set enable-bracketed-paste off'\n")
    environment = viewfs.environment | {"HOME": str(tmp_path / "home"), "SHELL": "/bin/bash", "TERM": "dumb"}
    started: list[pexpect.spawn] = []

    def start(command: str, *arguments: str) -> pexpect.spawn:
        child = pexpect.spawn(
            command, list(arguments), env=environment, cwd=str(tmp_path), encoding="utf-8", timeout=SECONDS
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def test_the_prompt_shows_the_view(terminal: Callable[..., pexpect.spawn]) -> None:
    shell = terminal("viewfs", "shell", "--name", "term")
    shell.expect(r"\(term\) host\$ ")
    shell.sendline("exit 5")
    shell.expect(pexpect.EOF)
    shell.wait()
    assert shell.exitstatus == 5


@pytest.mark.parametrize(
    "shell",
    ["sh", pytest.param("zsh", marks=pytest.mark.needs("zsh")), pytest.param("fish", marks=pytest.mark.needs("fish"))],
)
def test_every_shell_gets_such_a_prompt(
    terminal: Callable[..., pexpect.spawn], viewfs: Viewfs, tmp_path: Path, shell: str
) -> None:
    (tmp_path / "home/.zshrc").write_text("PROMPT='own %% '\n")
    started = terminal("env", f"SHELL={shutil.which(shell)}", "viewfs", "shell", "--name", "term")
    started.expect(r"\(term\) ")
    started.sendline("echo in-$VIEWFS_SESSION-now")
    started.expect("in-term-now")
    started.sendline("exit")
    started.expect(pexpect.EOF)


def has_the_terminal(name: str, directory: Path) -> bool:
    """A process of this name is in the group that gets what the keys of its terminal send (proc_pid_stat(5))."""
    for pid in [pid for pid, found in session_processes(directory).items() if found == name]:
        with suppress(OSError):
            _, _, group, _, _, in_front = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:6]
            if group == in_front:
                return True
    return False


def test_job_control_inside(terminal: Callable[..., pexpect.spawn], tmp_path: Path) -> None:
    shell = terminal("viewfs", "shell", "--name", "term", "--load", "hello")
    shell.expect(PROMPT)
    shell.sendline("sleep 1000")
    wait_until(lambda: has_the_terminal("sleep", tmp_path), "the command runs")
    shell.sendintr()
    shell.expect(PROMPT)
    shell.sendline("echo status $?")
    shell.expect(r"status 130\r\n")
    shell.expect(PROMPT)
    shell.sendline("sleep 1000")
    wait_until(lambda: has_the_terminal("sleep", tmp_path), "the command runs")
    shell.sendcontrol("z")
    shell.expect("Stopped")
    shell.expect(PROMPT)
    shell.sendline("cat /hello; fg")
    shell.expect("Hello from viewfs!")
    shell.expect("sleep 1000")
    # A shell names the job first and gives it the terminal then; Ctrl-C in between would be its own.
    wait_until(lambda: has_the_terminal("sleep", tmp_path), "the command is in front again")
    shell.sendintr()
    shell.expect(PROMPT)
    shell.sendline("jobs; echo no''ne")
    shell.expect(r"none\r\n")
    shell.expect(PROMPT)  # an end of file that comes before the shell reads a line is lost
    shell.sendeof()
    shell.expect(pexpect.EOF)


def test_ctrl_c_ends_a_command_and_its_view(terminal: Callable[..., pexpect.spawn], tmp_path: Path) -> None:
    run = terminal("viewfs", "run", "--", "sh", "-c", "echo ready; sleep 1000")
    run.expect("ready")
    # A shell that is about to become its last command may catch the signal and forget it.
    wait_until(lambda: "sleep" in session_processes(tmp_path).values(), "the command runs")
    run.sendintr()
    run.expect(pexpect.EOF)
    run.wait()
    assert run.exitstatus == 130


def test_a_command_that_handles_ctrl_c_goes_on(terminal: Callable[..., pexpect.spawn]) -> None:
    script = "trap 'echo caught' INT; echo ready; while read line; do echo got $line; done; exit 3"
    run = terminal("viewfs", "run", "--", "bash", "-c", script)
    run.expect("ready")
    run.sendintr()
    run.expect("caught")
    run.sendline("word")
    run.expect("got word")
    run.sendeof()
    run.expect(pexpect.EOF)
    run.wait()
    assert run.exitstatus == 3


def test_a_view_is_a_job_of_the_shell_around_it(terminal: Callable[..., pexpect.spawn]) -> None:
    """Ctrl-Z stops the whole of it, fg and bg go on with it."""
    outer = terminal("bash", "-i")
    outer.expect(r"host\$ ")
    outer.sendline("viewfs run -- sh -c 'echo ready; read word; echo got $word'")
    outer.expect("ready\r\n")
    outer.sendcontrol("z")
    outer.expect("Stopped")
    outer.expect(r"host\$ ")
    outer.sendline("fg")
    outer.expect("viewfs run")
    outer.sendline("something")
    outer.expect("got something")
    outer.expect(r"host\$ ")
    outer.sendline("exit")
    outer.expect(pexpect.EOF)


def test_suspending_the_inner_shell(terminal: Callable[..., pexpect.spawn]) -> None:
    outer = terminal("bash", "-i")
    outer.expect(r"host\$ ")
    outer.sendline("viewfs shell --name term")
    outer.expect(PROMPT)
    outer.sendline("suspend")
    outer.expect("Stopped")
    outer.expect(r"host\$ ")
    outer.sendline("fg")
    outer.expect("viewfs shell")
    outer.sendline("echo back $((40+2))")
    outer.expect("back 42")
    outer.expect(PROMPT)
    outer.sendline("exit")
    outer.expect(r"host\$ ")
    outer.sendline("exit")
    outer.expect(pexpect.EOF)


def test_at_inside_a_view_has_the_terminal(terminal: Callable[..., pexpect.spawn], tmp_path: Path) -> None:
    shell = terminal("viewfs", "shell", "--name", "term", "--mount", "none:/scratch:tmp")
    shell.expect(PROMPT)
    shell.sendline("viewfs at 0 -- sh -c 'echo ready; read word; echo got $word; sleep 1000'")
    shell.expect("ready\r\n")
    shell.sendline("something")
    shell.expect("got something")
    wait_until(lambda: "sleep" in session_processes(tmp_path).values(), "it sleeps")
    shell.sendintr()
    shell.expect(PROMPT)
    shell.sendline("echo status $?")
    shell.expect(r"status 130\r\n")
    shell.expect(PROMPT)
    shell.sendeof()
    shell.expect(pexpect.EOF)


def test_the_view_ends_when_the_terminal_hangs_up(terminal: Callable[..., pexpect.spawn], tmp_path: Path) -> None:
    shell = terminal("viewfs", "shell", "--name", "term", "--load", "hello")
    shell.expect(PROMPT)
    shell.sendline("nohup sleep 1000 >/dev/null 2>&1 &")
    shell.expect(PROMPT)
    wait_until(lambda: "sleep" in session_processes(tmp_path).values(), "it sleeps")
    ours = session_processes(tmp_path)
    os.close(os.dup(shell.child_fd))
    with suppress(pexpect.ExceptionPexpect):  # it waits less than the end of a session may take
        shell.close(force=False)
    wait_until(lambda: not set(session_processes(tmp_path)) & set(ours), "all of the session has ended")


def test_listings_have_colour_on_a_terminal_only(terminal: Callable[..., pexpect.spawn], viewfs: Viewfs) -> None:
    run = terminal("env", "TERM=xterm-256color", "viewfs", "lsmod", "--available")
    shown = run.read()
    assert "\x1b[1m" in shown
    assert "\x1b" not in viewfs("lsmod", "--available").out


@pytest.mark.parametrize("module", ["useless", "tmp"])
def test_terminals_can_be_made_where_the_view_has_a_name_in_dev(viewfs: Viewfs, module: str) -> None:
    """/dev/ptmx looks for a devpts beside itself, in the mount that it was opened in."""
    python = "import os, pty; one, other = pty.openpty(); print(os.isatty(other))"
    script = f"{sys.executable} -c '{python}'; script -qc 'echo here' /dev/null; ls -l /dev/ptmx"
    done = viewfs.sh("--mount", f"none:/dev/viewfs-test:{module}", script=script)
    assert re.match(r"True\nhere\r?\n", done.out), done


@pytest.mark.parametrize("options", ["", "--pid", "--pid --as-root"])
def test_stopped_and_continued(terminal: Callable[..., pexpect.spawn], tmp_path: Path, options: str) -> None:
    """Ctrl-Z, fg, and again; then Ctrl-C gets there."""
    shell = terminal("bash", "-i")
    shell.expect(r"host\$ ")
    shell.sendline(f"viewfs run {options} -- sleep 1000")
    wait_until(lambda: "sleep" in session_processes(tmp_path).values(), "it sleeps")
    for _again in range(3):
        shell.sendcontrol("z")
        shell.expect("Stopped")
        shell.expect(r"host\$ ")
        shell.sendline("fg")
        shell.expect("sleep 1000\r\n")
        sleeping = next(pid for pid, name in session_processes(tmp_path).items() if name == "sleep")
        wait_until(lambda: _state(sleeping) == "S", "it goes on")  # noqa: B023
    shell.sendintr()
    shell.expect(r"host\$ ")
    shell.sendline("echo status $?")
    shell.expect(r"status 130\r\n")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
