"""The quick way takes a command line for what click takes it for, or leaves it to click."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from viewfs.cli.main import cli
from viewfs.cli.quick import door, opening, view
from viewfs.cli.quick.messages import verbosity
from viewfs.cli.quick.parser import parse
from viewfs.errors import ViewfsError

COMMANDS = ["run", "shell", "enter", "at", "ps", "lsmod", "epochs", "resolve", "log", "mount", "umount", "insmod",
            "rmmod", "restart"]  # fmt: skip
OPTIONS = ["--mount", "--load", "--cow", "--name", "--keep", "--history", "--as-root", "--hostname", "--pid", "--ids",
           "--calls", "--no-calls", "--session", "--json", "-o", "-t", "--type", "-l", "--lazy", "-f", "--force",
           "--ask", "--help", "-h", "--epoch", "--available", "-q", "-v", "--quiet", "--verbose",
           "--version"]  # fmt: skip
VALUES = ["a", "/a:/b", "hello", "x=1,y", "-", "--", "", "=", "-x", "1", "--nam", "é", "/m"]

words = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(VALUES),
    st.builds("{}={}".format, st.sampled_from(OPTIONS), st.sampled_from(VALUES)),
)
lines = st.builds(
    lambda before, command, after: [*before, command, *after],
    st.lists(st.sampled_from(["-q", "-v", "--quiet", "--verbose", "-x"]), max_size=2),
    st.sampled_from(COMMANDS),
    st.lists(words, max_size=6),
)

#: Where each way finds what does the work.
PLACES = [
    (opening, "open_view"), (opening, "enter_view"), (opening, "run_at"), (view, "change"), (view, "unmount"),
    (view, "remove_module"), (view, "restart"), (view, "list_modules"), (view, "list_epochs"), (view, "show_log"),
    (view, "show_resolution"), (view, "list_sessions"),
]  # fmt: skip
CLICK = ["viewfs.cli.run", "viewfs.cli.sessions", "viewfs.cli.look", "viewfs.cli.change"]
#: Parameters that only one of the ways names, with what the other leaves at its default.
DEFAULTS: dict[str, Any] = {
    "name": None, "hostname": None, "as_root": False, "ids": "auto", "pid_namespace": False,
    "calls": None, "no_calls": False, "keep": False, "history": False, "cow_backend": None, "layer_directory": None,
    "exclude": (), "include": (),
}  # fmt: skip


def asked(way: Any) -> Any:
    """What a way would have done: the function and its arguments, or how it failed."""
    calls: list[Any] = []

    def recorder(name: str) -> Any:
        def record(*arguments: Any, **named: Any) -> int:
            if name == "open_view":
                named = DEFAULTS | named
            calls.append((name, _plain(arguments), _plain(named), verbosity.quiet, verbosity.verbose))
            return 0

        return record

    import importlib

    verbosity.quiet = verbosity.verbose = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHELL", "/bin/sh")
        for module, name in PLACES:
            patch.setattr(module, name, recorder(name))
            for place in CLICK:
                if hasattr(importlib.import_module(place), name):
                    patch.setattr(f"{place}.{name}", recorder(name))
        try:
            way()
        except ViewfsError as error:
            return str(error)
        finally:
            verbosity.quiet = verbosity.verbose = False
    return calls


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


@given(lines)
def test_what_is_understood_is_what_click_understands(line: list[str]) -> None:
    parsed = parse(line)
    if parsed is None:
        return

    def with_click() -> None:
        done = CliRunner().invoke(cli, line, standalone_mode=False)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception

    assert asked(lambda: door._run(_with_verbosity(parsed))) == asked(with_click), line


def _with_verbosity(parsed: Any) -> Any:
    verbosity.quiet, verbosity.verbose = "quiet" in parsed.flags, "verbose" in parsed.flags
    return parsed


@pytest.mark.parametrize(
    "line",
    [
        "run -- true", "run ls", "-q run --mount /a:/b --load hello,x=1 --name n -- ls -l", "shell", "shell --as-root",
        "enter work", "enter work -- ls /mnt", "at 3 -- true", "at --session w 3 ls", "ps", "ps --json", "lsmod",
        "epochs --json", "resolve /m", "log", "mount a /m", "-v mount -t ext -o ro a /m", "umount -l /m",
        "insmod hello",
        "rmmod hello", "restart /m", "run --name=x -- a --name y",
    ],
)  # fmt: skip
def test_what_is_typed_as_a_rule_is_understood(line: str) -> None:
    assert parse(line.split()) is not None


@pytest.mark.parametrize(
    "line",
    ["", "-q", "run", "run --help", "run ls -l", "run --cow . -- true", "run --name", "ps x", "mount a", "frob",
     "mount --help", "lsmod --available", "run --ask -- true", "--version run", "diff", "resolve --epoch 1 /x"],
)  # fmt: skip
def test_what_is_left_to_click(line: str) -> None:
    assert parse(line.split()) is None


def test_every_command_of_the_quick_way_is_one_of_click() -> None:
    context = click.Context(cli)
    assert not [name for name in COMMANDS if cli.get_command(context, name) is None]
