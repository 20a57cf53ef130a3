"""Arguments that several commands share: what --mount and --load say, options of modules, sessions."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from viewfs.errors import UsageError
from viewfs.session.layer_settings import BACKENDS

__all__ = [
    "COW",
    "LOAD",
    "MOUNT",
    "ChangesInOrder",
    "absolute",
    "complete_ended",
    "cow_backend_option",
    "filter_options",
    "split_options",
    "layer_directory_option",
    "layer_option",
    "module_option",
    "parse_cow",
    "parse_load",
    "parse_mount",
    "resolved",
    "session_option",
]

if TYPE_CHECKING:
    _ParamType = click.ParamType[dict[str, Any]]
else:
    _ParamType = click.ParamType  # generic in the newest versions of click only
_UNESCAPED_COLON = re.compile(r"(?<!\\):")


def absolute(path: str) -> str:
    """`path` seen from the working directory, without following symbolic links."""
    return os.path.abspath(path)


#: Bytes of the longest path, links resolved.
_PATHS_MAX = 1 << 16
#: Seconds that walking a path may take.
_WALK_SECONDS = 2.0


def resolved(path: str) -> str:
    """`path` without symbolic links, as far as that can be told: a file system on the way may not answer, and what is
    taken away then is that."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, os.fsencode(os.path.realpath(path)))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        if select.select([reading], [], [], _WALK_SECONDS)[0] and (found := os.read(reading, _PATHS_MAX)):
            return os.fsdecode(found)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return os.path.abspath(path)


def _layer_directory(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise UsageError("--layer needs a directory")
    return None if value is None else absolute(value)


def layer_directory_option(text: str) -> Callable[[Any], Any]:
    """--layer DIR, as an absolute path."""
    return click.option("--layer", "layer_directory", metavar="DIR", callback=_layer_directory, help=text)


def parse_mount(text: str) -> dict[str, Any]:
    """SRC:DST[:TYPE[,opt=val…]] as a mount request; a backslash before a colon makes it part of a path.

    Raises `UsageError`.
    """
    parts = [part.replace("\\:", ":") for part in _UNESCAPED_COLON.split(text)]
    if len(parts) not in (2, 3) or not parts[1]:
        raise UsageError(
            f"--mount {text}: not of the form SRC:DST[:TYPE[,opt=val…]]", remedy="write \\: for a colon in a path"
        )
    source, place = parts[:2]
    kind, _, options = (parts[2] if len(parts) == 3 else "").partition(",")
    return {
        "type": absolute(kind) if kind.endswith(".py") else kind or None,
        "source": absolute(source) if source else "",
        "path": absolute(place),
        "options": split_options([options]),
        "cwd": os.getcwd(),
        "operation": "mount",
    }


def parse_load(text: str) -> dict[str, Any]:
    """MODULE[:DST][,opt=val…] as a mount request. Raises `UsageError`."""
    head, _, options = text.partition(",")
    name, *place = (part.replace("\\:", ":") for part in _UNESCAPED_COLON.split(head))
    if not name or len(place) > 1:
        raise UsageError(f"--load {text}: not of the form MODULE[:DST][,opt=val…]")
    return load_request(name, place[0] if place else None, [options])


def split_options(arguments: Iterable[str]) -> dict[str, str | None]:
    """`["a=1,b", "c=2"]` as a mapping; None is the value of a bare name.

    Raises `UsageError` for an empty name or one that is given twice.
    """
    given: dict[str, str | None] = {}
    for argument in arguments:
        for part in filter(None, argument.split(",")):
            name, equals, value = part.partition("=")
            if not name:
                raise UsageError(f"option “{part}” has no name", remedy="options have the form name=value")
            if name in given:
                raise UsageError(f"option {name} is given twice")
            given[name] = value if equals else None
    return given


def load_request(name: str, place: str | None, options: list[str]) -> dict[str, Any]:
    """The request that loads module `name`."""
    return {
        "type": absolute(name) if name.endswith(".py") else name,
        "source": "",
        "path": absolute(place) if place else None,
        "options": split_options(options),
        "cwd": os.getcwd(),
        "operation": "insmod",
    }


def parse_cow(text: str) -> list[dict[str, Any]]:
    """PATH[,PATH…] as requests to make each copy-on-write; a backslash before a comma makes it part of a path."""
    paths = [path.replace("\\,", ",") for path in re.split(r"(?<!\\),", text)]
    if not all(paths):
        raise UsageError(f"--cow {text}: not of the form PATH[,PATH…]")
    return [{"request": "cow", "path": absolute(path), "cwd": os.getcwd()} for path in paths]


class _Change(_ParamType):
    """A --mount, --load or --cow."""

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
    """A command with --mount, --load and --cow, in whose context they stand under `viewfs.changes` in the order given.

    (click has the values of each option together.)
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
        CompletionItem(found.module.name, help=(found.module.__doc__ or "").strip().partition("\n")[0])
        for found in available()
        if found.module.name.startswith(incomplete)
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
