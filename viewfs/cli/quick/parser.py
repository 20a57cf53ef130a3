"""The usual forms of the command line. Everything else is left to click.

`parse` never reports an error: unless it is certain that click would parse the words in the same way, it returns None,
and click parses the whole command line.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Parsed", "parse"]

_FLAG, _VALUE, _MANY, _IN_ORDER = range(4)
#: Spelling → name of the parameter, kind.
_VIEW = {
    "--mount": ("changes", _IN_ORDER),
    "--load": ("changes", _IN_ORDER),
    "--name": ("name", _VALUE),
    "--keep": ("keep", _FLAG),
    "--history": ("history", _FLAG),
    "--as-root": ("as_root", _FLAG),
    "--hostname": ("hostname", _VALUE),
    "--pid": ("pid_namespace", _FLAG),
    "--calls": ("calls", _VALUE),
    "--no-calls": ("no_calls", _FLAG),
}
_SESSION = {"--session": ("session", _VALUE)}
_ASKING = _SESSION | {"--json": ("as_json", _FLAG)}
_MODULE = _ASKING | {"-o": ("options", _MANY)}
_REMOVING = _ASKING | {
    "-l": ("lazy", _FLAG),
    "--lazy": ("lazy", _FLAG),
    "-f": ("force", _FLAG),
    "--force": ("force", _FLAG),
}
#: Command → its options, and how many words follow: at least, at most (None: the rest is a command).
_COMMANDS: dict[str, tuple[dict[str, tuple[str, int]], int, int | None]] = {
    "run": (_VIEW, 1, None),
    "shell": (_VIEW, 0, None),
    "enter": ({}, 1, None),
    "at": (_SESSION, 1, None),
    "ps": ({"--json": ("as_json", _FLAG)}, 0, 0),
    "lsmod": (_ASKING, 0, 0),
    "epochs": (_ASKING, 0, 0),
    "resolve": (_ASKING, 1, 1),
    "log": (_ASKING, 0, 0),
    "mount": (_MODULE | {"-t": ("kind", _VALUE), "--type": ("kind", _VALUE)}, 2, 2),
    "umount": (_REMOVING, 1, 1),
    "insmod": (_MODULE, 1, 2),
    "rmmod": (_REMOVING, 1, 1),
    "restart": (_ASKING, 1, 1),
}
_GLOBAL = {"-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}


class Parsed:
    """A command, what its options say, and the words after them."""

    def __init__(self, command: str, given: dict[str, Any], words: list[str], flags: set[str]) -> None:
        self.command = command
        #: Parameters that were given → True, a text, or a list of texts; for `changes` a list of (option, text).
        self.given = given
        self.words = words
        #: "quiet" and "verbose", if the options before the command say so.
        self.flags = flags


def parse(arguments: list[str]) -> Parsed | None:
    """The parsed command line; None if click is to parse it."""
    flags = set()
    start = 0
    while start < len(arguments) and (flag := _GLOBAL.get(arguments[start])):
        flags.add(flag)
        start += 1
    if start == len(arguments) or arguments[start] not in _COMMANDS:
        return None
    command = arguments[start]
    options, least, most = _COMMANDS[command]
    given: dict[str, Any] = {}
    words: list[str] = []
    left = arguments[start + 1 :]
    left.reverse()
    while left:
        word = left.pop()
        if word == "--":
            words += reversed(left)
            break
        if word[:1] != "-" or word == "-":
            words.append(word)
            continue
        spelled, equals, value = word.partition("=") if word[:2] == "--" else (word, "", "")
        if spelled not in options:
            return None
        name, kind = options[spelled]
        if kind == _FLAG:
            if equals:
                return None
            given[name] = True
            continue
        if not equals:
            if not left:
                return None
            value = left.pop()
        if kind == _VALUE:
            given[name] = value
        else:
            given.setdefault(name, []).append((spelled, value) if kind == _IN_ORDER else value)
    if len(words) < least or (most is not None and len(words) > most):
        return None
    return Parsed(command, given, words, flags)
