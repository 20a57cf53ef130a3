"""What arguments of commands ask for, as requests of the control socket."""

from __future__ import annotations

import os

from viewfs.errors import UsageError
from viewfs.linux.apart import done_apart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

__all__ = [
    "absolute",
    "load_request",
    "module_path",
    "mount_request",
    "parse_cow",
    "parse_load",
    "parse_mount",
    "program_request",
    "resolved",
    "split_options",
    "split_unescaped",
]

#: Bytes of the longest path, links resolved.
_PATHS_MAX = 1 << 16
#: Seconds that walking a path may take.
_WALK_SECONDS = 2.0


def absolute(path: str) -> str:
    """`path` seen from the working directory, without following symbolic links."""
    return os.path.abspath(path)


def resolved(path: str) -> str:
    """`path` with symbolic links resolved, unless a file system on the way does not answer. (Then that file system is
    what is to be taken away.)"""
    found = done_apart(lambda _writing: os.fsencode(os.path.realpath(path)), seconds=_WALK_SECONDS, most=_PATHS_MAX)
    return os.fsdecode(found) if found else os.path.abspath(path)


def split_unescaped(text: str, mark: str) -> list[str]:
    """Split `text` at each `mark` without a backslash before it. Other marks are kept, without their backslash."""
    parts = [""]
    for number, piece in enumerate(text.split(mark)):
        if number and parts[-1].endswith("\\"):
            parts[-1] = parts[-1][:-1] + mark + piece
        elif number:
            parts.append(piece)
        else:
            parts[-1] = piece
    return parts


def parse_mount(text: str) -> dict[str, Any]:
    """SRC:DST[:TYPE[,opt=val…]] as a mount request; a backslash before a colon makes it part of a path.

    Raises `UsageError`.
    """
    parts = split_unescaped(text, ":")
    if len(parts) not in (2, 3) or not parts[1]:
        raise UsageError(
            f"--mount {text}: not of the form SRC:DST[:TYPE[,opt=val…]]", remedy="write \\: for a colon in a path"
        )
    source, place = parts[:2]
    kind, _, options = (parts[2] if len(parts) == 3 else "").partition(",")
    return mount_request(kind or None, absolute(source) if source else "", place, [options])


def module_name(name: str) -> str:
    """What the session calls the module `name`: a file (and class, behind a colon) by its whole path."""
    return absolute(name) if name.endswith(".py") or name.rpartition(":")[0].endswith(".py") else name


def mount_request(kind: str | None, source: str, place: str, options: Iterable[str]) -> dict[str, Any]:
    """The request that mounts `source` on `place`. Raises `UsageError`."""
    return {
        "type": None if kind is None else module_name(kind),
        "source": source,
        "path": absolute(place),
        "options": split_options(options),
        "cwd": os.getcwd(),
        "module_path": module_path(),
        "operation": "mount",
    }


def parse_load(text: str) -> dict[str, Any]:
    """MODULE[:DST][,opt=val…] as a mount request. Raises `UsageError`."""
    head, _, options = text.partition(",")
    name, *place = split_unescaped(head, ":")
    if not name or len(place) > 1:
        raise UsageError(f"--load {text}: not of the form MODULE[:DST][,opt=val…]")
    return load_request(name, place[0] if place else None, [options])


def load_request(name: str, place: str | None, options: Iterable[str]) -> dict[str, Any]:
    """The request that loads module `name`. Raises `UsageError`."""
    return {
        "type": module_name(name),
        "source": "",
        "path": absolute(place) if place else None,
        "options": split_options(options),
        "cwd": os.getcwd(),
        "module_path": module_path(),
        "operation": "insmod",
    }


def program_request(program: str, place: str, options: Iterable[str], arguments: Sequence[str]) -> dict[str, Any]:
    """The request that has a program serve `place`, which `{}` in its arguments stands for. Raises `UsageError`."""
    request = load_request(program, place, options)
    return request | {"type": program, "program": list(arguments)}


#: The variable with directories of the user's own modules, before the one of the XDG Base Directory Specification.
MODULE_PATH_VARIABLE = "VIEWFS_MODULE_PATH"


def module_path() -> list[str]:
    """Where modules of the user's own are found by name."""
    data = os.environ.get("XDG_DATA_HOME")
    if not data or not os.path.isabs(data):
        data = os.path.join(os.path.expanduser("~"), ".local/share")
    given = filter(None, os.environ.get(MODULE_PATH_VARIABLE, "").split(os.pathsep))
    return [*map(os.path.abspath, given), os.path.join(data, "viewfs/modules")]


def parse_cow(text: str) -> list[dict[str, Any]]:
    """PATH[,PATH…] as requests to make each copy-on-write; a backslash before a comma makes it part of a path."""
    paths = split_unescaped(text, ",")
    if not all(paths):
        raise UsageError(f"--cow {text}: not of the form PATH[,PATH…]")
    return [{"request": "cow", "path": absolute(path), "cwd": os.getcwd()} for path in paths]


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
