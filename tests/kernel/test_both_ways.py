"""The quick way and the whole program do the same: command lines are run by both, and what a user notices is compared.

(tests/unit/test_quick_parser.py compares what they understand; tests/kernel/test_terminal.py has both at a terminal.)
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs, wait_until

#: Outside of a view. `{image}` is one.
OUTSIDE = [
    "--version", "", "--help", "frob", "run", "run --help", "run --frob -- true", "run -- true", "run -- false",
    "run -- sh -c 'exit 42'", "run -- sh -c 'kill -9 $$'", "run -- sh -c 'kill -15 $$'", "run -- nosuchcommand",
    "run -- /etc/passwd", "run -- /", "run true", "run ls -l", "run -- ls -d /etc", "-q run -- true",
    "run --name x/y -- true", "run --name '' -- true", "run --name a --name b -- sh -c 'echo $VIEWFS_SESSION'",
    "run --hostname box -- uname -n", "run --hostname '' -- true", f"run --hostname {'x' * 65} -- true",
    "run --as-root -- id -u", "run --as-root --ids one -- id -u", "run --pid -- sh -c 'echo $$'",
    "run --mount {image}:/m -- cat /m/file", "run --mount={image}:/m -- cat /m/file", "run --mount {image} -- true",
    "run --mount /nosuch:/m -- true", "run --mount {image}:/m:nosuch -- true", "run --mount none:/t:tmp -- ls /t",
    "run --load hello -- cat /hello", "run --load hello,x=1 -- true", "run --load nosuch -- true",
    "run --load hello:/a --mount {image}:/b -- sh -c 'cat /a /b/file; viewfs epochs'",
    "run --history -- true", "run -- sh -c 'echo out; echo err >&2'", "run -- cat", "run -- pwd", "run -- env -0",
    "shell -- true", "shell -- sh -c 'exit 3'", "shell --frob", "ps", "ps --json", "ps x", "lsmod", "epochs --json",
    "log", "resolve /", "mount {image} /m", "umount /m", "insmod hello", "rmmod hello", "restart hello",
    "lsmod --session nosuch", "enter nosuch", "enter nosuch -- true", "at 0 -- true", "at x -- true", "enter",
    "run -- sh -c 'ulimit -n; umask; nice'", "run -- ls /proc/self/fd", "lsmod --available --json", "mount --help",
]  # fmt: skip

#: In a view, in this order.
INSIDE = [
    "lsmod", "epochs --json", "mount {image} /m", "mount --json {image} /m2", "-v mount -t tmp none /t", "lsmod",
    "resolve /m/file", "resolve --json /nothing", "resolve", "insmod hello", "insmod -o x=1 hello /h", "insmod nosuch",
    "lsmod --json", "rmmod hello", "rmmod hello", "umount /m", "umount /m", "umount -l /m2", "umount --force /t",
    "mount -t tmp -o size=1M,mode=700 none /t", "mount -t tmp -o size=x none /u", "restart /t", "umount /t", "log",
    "at 0 -- ls -d /m", "at 1 -- cat /m/file", "at 99 -- true", f"at {'9' * 5000} -- true",
    "at 1 -- sh -c 'exit 5'", "ps", "epochs",
]  # fmt: skip


def plain(text: str) -> str:
    """Without what differs each time: process numbers, times, temporary names."""
    text = re.sub(r"\d\d:\d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d", "TIME", text)
    text = re.sub(r'"(time_ns|started_ns|pid|server|bytes)": \d+', r'"\1": N', text)
    text = re.sub(r"(VIEWFS_SESSION|VIEWFS_WHOLE|_)=[^\0]*\0", "", text)
    text = re.sub(r'"requests": \{[^}]*\}', '"requests": {}', text)
    return re.sub(r"\b\d{2,7}\b", "N", re.sub(r" +", " ", text))


def said(command: str, environment: dict[str, str], directory: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", f"viewfs {command}"], env=environment, cwd=directory, capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL, errors="surrogateescape",
    )  # fmt: skip
    return done.returncode, plain(done.stdout), plain(done.stderr)


@pytest.mark.parametrize("command", OUTSIDE)
def test_outside(viewfs: Viewfs, tmp_path: Path, image: Callable[..., Path], command: str) -> None:
    line = command.replace("{image}", str(image(file="content")) if "{image}" in command else "")
    quick = said(line, viewfs.environment, tmp_path)
    whole = said(line, viewfs.environment | {"VIEWFS_WHOLE": "1"}, tmp_path)
    assert quick == whole
    assert quick[0] in (0, 1, 2, 3, 4, 5, 42, 126, 127, 137, 143) or "exit" in line
    assert "Traceback" not in quick[2]


def test_inside(open_view: Callable[..., View], viewfs: Viewfs, image: Callable[..., Path]) -> None:
    disk = image(file="content")
    seen = []
    for whole in ("", "1"):
        view = open_view()
        answers = []
        for command in INSIDE:
            line = f"VIEWFS_WHOLE={whole} viewfs {command.replace('{image}', str(disk))}"
            done = view.sh(line, check=False)
            answers.append((command, done.code, plain(done.out), plain(done.err)))
        seen.append(answers)
        view.close()
    for quick, complete in zip(*seen, strict=True):
        assert quick == complete


@pytest.mark.parametrize("whole", ["", "1"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_signals(viewfs: Viewfs, number: signal.Signals, whole: str) -> None:
    """What is sent to the front gets to the command, whose end is its own."""
    script = f"trap 'echo got; exit 7' {number.name[3:]}; echo ready; while :; do sleep 0.01; done"
    front = subprocess.Popen(["viewfs", "run", "--", "bash", "-c", script], stdout=subprocess.PIPE, text=True,
                             env=viewfs.environment | {"VIEWFS_WHOLE": whole})  # fmt: skip
    assert front.stdout is not None and front.stdout.readline() == "ready\n"
    front.send_signal(number)
    assert front.stdout.read() == "got\n" and front.wait() == 7
    front.stdout.close()


@pytest.mark.parametrize("whole", ["", "1"])
@pytest.mark.parametrize(
    ("closed", "code"), [("<&-", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 1)]
)
def test_streams_that_are_closed_or_full(viewfs: Viewfs, closed: str, code: int, whole: str) -> None:
    environment = viewfs.environment | {"VIEWFS_WHOLE": whole}
    done = subprocess.run(["sh", "-c", f"viewfs ps --json {closed}"], env=environment, capture_output=True, timeout=60)
    assert done.returncode == code, done
    if code:
        assert done.stderr == b"viewfs: cannot write the output: no space left on device\n"


@pytest.mark.parametrize("whole", ["", "1"])
def test_the_reader_of_a_pipe_has_gone(viewfs: Viewfs, whole: str) -> None:
    script = "{ sleep 0.3; viewfs lsmod --available; echo $? >&2; } | true"
    environment = viewfs.environment | {"VIEWFS_WHOLE": whole}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == "1\n"


def test_what_is_closed_for_viewfs_is_closed_for_the_command(viewfs: Viewfs) -> None:
    script = "viewfs run -- ls /proc/self/fd <&- | tr '\\n' ' '; viewfs run -- sh -c 'read x || echo none' <&-"
    seen = []
    for whole in ("", "1"):
        environment = viewfs.environment | {"VIEWFS_WHOLE": whole}
        done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
        seen.append((done.returncode, done.stdout, done.stderr))
    assert seen[0] == seen[1] and "none" in seen[0][1]


def test_other_paths_to_it(viewfs: Viewfs, tmp_path: Path) -> None:
    """A link to the script, and a working directory that is gone."""
    script = subprocess.run(
        ["sh", "-c", "command -v viewfs"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (tmp_path / "linked").symlink_to(script)
    (tmp_path / "again").symlink_to("linked")
    for path in ("linked", "again"):
        done = subprocess.run([tmp_path / path, "run", "--", "echo", "here"], env=viewfs.environment,
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.stdout == "here\n", done
    gone, seen = tmp_path / "gone", []
    for whole in ("", "1"):
        line = f"mkdir {gone}; cd {gone}; rmdir {gone}; exec viewfs run -- echo here"
        environment = viewfs.environment | {"VIEWFS_WHOLE": whole}
        done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=60)
        seen.append((done.returncode, done.stdout, done.stderr))
    assert seen[0] == seen[1] and "Traceback" not in seen[0][2]


def test_python_paths_and_variables(viewfs: Viewfs, tmp_path: Path) -> None:
    """Variables that change what Python does are honoured: then it starts in the ordinary way."""
    for name, value in {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1", "PYTHONDEVMODE": "1"}.items():
        done = subprocess.run(["viewfs", "run", "--", "echo", "here"], env=viewfs.environment | {name: value},
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.stdout == "here\n" and "Traceback" not in done.stderr, done


def test_a_view_in_which_nothing_is_asked_has_no_agent(viewfs: Viewfs, tmp_path: Path) -> None:
    view = subprocess.Popen(["viewfs", "run", "--", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, env=viewfs.environment, text=True)  # fmt: skip
    assert view.stdin is not None and view.stdout is not None and view.stdout.readline() == "ready\n"
    children = set(Path(f"/proc/{view.pid}/task/{view.pid}/children").read_text().split())
    wait_until(lambda: sorted(_names(children)) == ["cat", "viewfs-standby"], "both have become what they are")
    standby = next(pid for pid in children if _names({pid}) == ["viewfs-standby"])
    assert Path(f"/proc/{standby}/task/{standby}/children").read_text() == ""
    view.communicate("")
    assert view.returncode == 0


def _names(pids: set[str]) -> list[str]:
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids if os.path.exists(f"/proc/{pid}/comm")]
