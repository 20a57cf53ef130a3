"""Arguments that several commands share: what --mount and --load say, options of modules, sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from viewfs.cli.quick.requests import absolute, module_path, parse_cow, parse_load, parse_mount
from viewfs.errors import UsageError
from viewfs.session.layer_settings import BACKENDS

__all__ = [
    "COW",
    "LOAD",
    "MOUNT",
    "ChangesInOrder",
    "complete_ended",
    "cow_backend_option",
    "filter_options",
    "layer_directory_option",
    "layer_option",
    "module_option",
    "session_option",
]

if TYPE_CHECKING:
    _ParamType = click.ParamType[dict[str, Any]]
else:
    _ParamType = click.ParamType  # generic in the newest versions of click only


def _layer_directory(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise UsageError("--layer needs a directory")
    return None if value is None else absolute(value)


def layer_directory_option(text: str) -> Callable[[Any], Any]:
    """--layer DIR, as an absolute path."""
    return click.option("--layer", "layer_directory", metavar="DIR", callback=_layer_directory, help=text)


class _Change(_ParamType):
    """The value of a --mount, --load or --cow."""

    def __init__(self, name: str, metavar: str) -> None:
        self.name = name
        self._metavar = metavar

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self._metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        return {"mount": parse_mount, "load": parse_load, "cow": parse_cow}[self.name](value)


MOUNT = _Change("mount", "SRC:DST[:TYPE[,opt=val…]]")
LOAD = _Change("load", "MODULE[:DST][,opt=val…]")
COW = _Change("cow", "PATH[,…]")


class ChangesInOrder(click.Command):
    """A command with --mount, --load and --cow. Its context has their values, in the order given, as `viewfs.changes`.

    (click itself groups the values by option.)
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _values, _rest, order = self.make_parser(ctx).parse_args(args=list(args))
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            given = {name: iter(ctx.params[name]) for name in ("mounts", "loads", "cows")}
            ctx.meta["viewfs.changes"] = [next(given[param.name]) for param in order if param.name in given]
        return rest


def _complete_sessions(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from viewfs.session.client import sessions

    found = []
    for session in sessions():
        if session.name.startswith(incomplete):
            found.append(CompletionItem(session.name, help=" ".join(session.status["command"])))
        session.close()
    return found


def complete_ended(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of sessions that have ended and left changes."""
    from viewfs.session.client import sessions
    from viewfs.session.left_layers import left_behind

    running = []
    for session in sessions():
        running.append(session.name)
        session.close()
    ended = left_behind(running)
    return [CompletionItem(name, help=", ".join(paths)) for name, paths in ended if name.startswith(incomplete)]


def complete_modules(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of modules that can be loaded."""
    from viewfs.modules.framework.registry import available

    return [
        CompletionItem(found.name, help=found.summary)
        for found in available(module_path())
        if found.name.startswith(incomplete)
    ]


session_argument = click.argument("name", shell_complete=_complete_sessions)
session_option = click.option(
    "--session",
    metavar="NAME",
    shell_complete=_complete_sessions,
    help="The session to act on; inside a view, by default, that view's.",
)
module_option = click.option("-o", "options", metavar="opt=val,…", multiple=True, help="Options of the module.")


def cow_backend_option(name: str) -> Callable[[Any], Any]:
    """An option `name` that says what serves copy-on-write trees."""
    return click.option(
        name,
        "cow_backend",
        type=click.Choice(BACKENDS),
        help="What serves them: the kernel's overlay (fast; changes only what is yours), viewfs's own file system"
        " over FUSE, or whichever fits (auto).",
    )


layer_option = layer_directory_option("Where the changes are kept, if it was said with `viewfs run --layer`.")


def filter_options(command: Any) -> Any:
    """--exclude and --include."""
    for name, text in (
        ("--include", "Only what is called so, or is at such a path; of what is excluded, this all the same."),
        ("--exclude", "Not what is called so, or is at such a path in the tree, with all in it. Repeatable."),
    ):
        command = click.option(name, multiple=True, metavar="GLOB", help=text)(command)
    return command
