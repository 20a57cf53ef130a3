"""What is typed: --mount and --load taken apart, mistakes answered with one line, help for everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

from viewfs.cli.main import _COMMANDS, cli
from viewfs.cli.quick.messages import printable
from viewfs.cli.quick.requests import module_path, parse_load, parse_mount
from viewfs.errors import UsageError
from viewfs.session.plans import SessionPlan

COMMANDS = [name for group in _COMMANDS.values() for name in group]


def here(path: str) -> str:
    return os.path.join(os.getcwd(), path)


# -- --mount


@pytest.mark.parametrize(
    ("text", "source", "path", "kind", "options"),
    [
        ("/a.img:/mnt", "/a.img", "/mnt", None, {}),
        ("/a.img:/mnt:ext", "/a.img", "/mnt", "ext", {}),
        ("/a.img:/mnt:ext,ro,journal=ignore", "/a.img", "/mnt", "ext", {"ro": None, "journal": "ignore"}),
        ("/a.img:/mnt:,ro", "/a.img", "/mnt", None, {"ro": None}),
        (":/scratch:tmp,size=1M", "", "/scratch", "tmp", {"size": "1M"}),
        ("/a/../b//c:/mnt/", "/b/c", "/mnt", None, {}),
        (r"/with\:colon:/mnt\:\:2", "/with:colon", "/mnt::2", None, {}),
        ("/a:/b:tmp,label=x=y", "/a", "/b", "tmp", {"label": "x=y"}),
        ("/with space:/mnt ", "/with space", "/mnt ", None, {}),
        ("/undecodable\udcff:/mnt", "/undecodable\udcff", "/mnt", None, {}),
    ],
)
def test_a_mount(text: str, source: str, path: str, kind: str | None, options: dict[str, Any]) -> None:
    assert parse_mount(text) == {
        "source": source, "path": path, "type": kind, "options": options, "cwd": os.getcwd(), "operation": "mount",
        "module_path": module_path(),
    }  # fmt: skip


def test_paths_are_those_of_the_caller() -> None:
    """Who mounts has another working directory."""
    request = parse_mount("a.img:mnt:./my.py")
    assert (request["source"], request["path"], request["type"]) == (here("a.img"), here("mnt"), here("my.py"))
    request = parse_load("my.py:place")
    assert (request["type"], request["path"]) == (here("my.py"), here("place"))


@pytest.mark.parametrize(
    "text", ["", ":", "/a", "/a:", "/a::ext", "/a:/b:ext:more", r"/a\:/b", "/a:/b:ext,=1", "/a:/b:ext,a,a"]
)
def test_what_is_no_mount(text: str) -> None:
    with pytest.raises(UsageError):
        parse_mount(text)


# -- --load


@pytest.mark.parametrize(
    ("text", "kind", "path", "options"),
    [
        ("hello", "hello", None, {}),
        ("hello:/there", "hello", "/there", {}),
        ("hello:", "hello", None, {}),
        ("hello,a=1,b", "hello", None, {"a": "1", "b": None}),
        (r"hello:/a\:b,c=d:e", "hello", "/a:b", {"c": "d:e"}),
        ("/opt/mine.py:/there", "/opt/mine.py", "/there", {}),
    ],
)
def test_a_load(text: str, kind: str, path: str | None, options: dict[str, Any]) -> None:
    assert parse_load(text) == {
        "source": "", "path": path, "type": kind, "options": options, "cwd": os.getcwd(), "operation": "insmod",
        "module_path": module_path(),
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", ":/there", ",a=1", "hello:/a:/b", "hello,a=1,a=2"])
def test_what_is_no_load(text: str) -> None:
    with pytest.raises(UsageError):
        parse_load(text)


@pytest.mark.parametrize("name", ["run", "shell"])
def test_changes_are_made_in_the_order_in_which_they_are_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[SessionPlan] = []

    def keep(plan: SessionPlan, _warn: object) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr("viewfs.session.front.running.run_session", keep)
    line = "--mount /a:/1 --load hello:/2 --as-root --mount=/b:/3 --load hello:/4 -- sh --mount /not:/ours"
    CliRunner().invoke(cli, [name, *line.split()], catch_exceptions=False)
    (plan,) = plans
    assert [(change.arguments["operation"], change.arguments["path"]) for change in plan.changes] == [
        ("mount", "/1"), ("insmod", "/2"), ("mount", "/3"), ("insmod", "/4"),
    ]  # fmt: skip
    assert plan.command == ["sh", "--mount", "/not:/ours"]


# -- help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"], catch_exceptions=False, prog_name="viewfs")
    assert result.exit_code == 0
    assert re.match(rf"Usage: viewfs {name} ", result.output)
    _before, found, example = result.output.partition("Example")
    assert found, "no example"
    assert f"viewfs {name}" in example
    assert "[default: ]" not in result.output
    assert CliRunner().invoke(cli, [name, "-h"], prog_name="viewfs").exit_code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_is_a_sentence(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help
    (summary,) = (group[name][1] for group in _COMMANDS.values() if name in group)
    assert re.search(r"[.?]$", summary.strip()) and len(summary) < 66


def viewfs(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["viewfs", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        env=os.environ | {"COLUMNS": "80", "XDG_RUNTIME_DIR": "/nonexistent"} | environment,
    )


def test_help_is_one_screen() -> None:
    done = viewfs("--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert 24 <= len(lines) <= 45
    assert max(map(len, lines)) <= 80
    for name in COMMANDS:
        assert re.search(rf"^  {name}  +\S", done.stdout, re.MULTILINE)


def test_without_a_command_it_is_the_help_and_a_mistake() -> None:
    done = viewfs()
    assert done.returncode == 2
    assert done.stdout == "" and "Usage: viewfs" in done.stderr


def test_the_version() -> None:
    assert re.fullmatch(r"viewfs, version \d+\.\S+\n", viewfs("--version").stdout)


# -- mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nosuch"], 2, "nosuch"),
        (["run"], 2, "COMMAND"),
        (["mount", "/a"], 2, "DIRECTORY"),
        (["mount", "--nosuch"], 2, "--nosuch"),
        (["completion", "cmd"], 2, "cmd"),
        (["run", "--mount", "/a", "--", "true"], 2, "SRC:DST"),
        (["run", "--load", "", "--", "true"], 2, "MODULE"),
        (["run", "--name", "a/b", "--", "true"], 2, "a/b"),
        (["run", "--hostname", "x" * 65, "--", "true"], 2, "host name"),
        (["mount", "-t", "tmp", "-o", "a,a", "none", "/mnt"], 2, "given twice"),
        (["enter", "nosuch"], 4, "no session is called nosuch"),
        (["kill", "nosuch"], 4, "no session is called nosuch"),
        (["insmod", "hello"], 4, "viewfs shell"),
        (["epochs", "--session", "nosuch"], 4, "nosuch"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_with_one_line(arguments: list[str], code: int, said: str) -> None:
    done = viewfs(*arguments, VIEWFS_SESSION="")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"viewfs: [^\n]+\n", done.stderr), done.stderr
    assert said in done.stderr


def test_what_others_have_named_is_printed_harmlessly() -> None:
    assert printable("a\x1b[2Jb\nc\udcff") == "a\\x1b[2Jb\\nc\\udcff"
    done = viewfs("enter", "a\x1b[2J\nb")
    assert "\x1b[2J" not in done.stderr and done.stderr.count("\n") == 1


def test_python_m_viewfs_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "viewfs", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "viewfs" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = viewfs("completion", shell)
    assert done.returncode == 0 and "_VIEWFS_COMPLETE" in done.stdout


def test_completion_knows_commands_and_modules() -> None:
    def complete(*words: str) -> str:
        return viewfs(
            COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1), _VIEWFS_COMPLETE="bash_complete"
        ).stdout

    assert "umount" in complete("viewfs", "um")
    assert "hello" in complete("viewfs", "insmod", "hel")
