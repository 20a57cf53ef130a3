"""Manual pages, made from the commands: what --help says, in the form of man(7). `tools/pages` writes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
from click.shell_completion import get_completion_class

from viewfs import __version__
from viewfs.cli.main import cli, command_groups

__all__ = ["completion_scripts", "manual_pages"]

#: Where pip installs each shell's script, below the prefix.
_COMPLETIONS = {
    "bash": "share/bash-completion/completions/viewfs",
    "zsh": "share/zsh/site-functions/_viewfs",
    "fish": "share/fish/vendor_completions.d/viewfs.fish",
}
_EXIT_CODES = (
    ("0", "done"),
    ("1", "failed"),
    ("2", "the request itself is wrong"),
    ("3", "this machine can't do it; viewfs\\-doctor(1) says why"),
    ("4", "no such session, mount, epoch or module"),
    ("5", "the source is damaged, or of no known kind"),
    ("126, 127", "of run, shell, enter and at: the command can't be run, or isn't there"),
)


def completion_scripts() -> dict[str, str]:
    """Where it is installed → the script that makes a shell complete viewfs commands."""
    scripts = {}
    for shell, place in _COMPLETIONS.items():
        kind = get_completion_class(shell)
        assert kind is not None
        scripts[place] = kind(cli, {}, "viewfs", "_VIEWFS_COMPLETE").source().strip() + "\n"
    return scripts


def manual_pages() -> dict[str, str]:
    """File name → page: one for viewfs, and one for each command."""
    context = click.Context(cli, info_name="viewfs", **cli.context_settings)
    pages = {"viewfs.1": "\n".join(_overview(context)) + "\n"}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        pages[f"viewfs-{name}.1"] = "\n".join(_page(name, command, context)) + "\n"
    return pages


def _overview(context: click.Context) -> Iterator[str]:
    yield from _head("viewfs", "give a command a file system of its own")
    yield from (".SH SYNOPSIS", ".B viewfs", r"[\-q] [\-v] \fICOMMAND\fR [\fIARGUMENTS\fR]", ".SH DESCRIPTION")
    yield _text(
        "An ordinary user gets a view: a shell or command whose file system differs from everybody else's. In a view"
        " one mounts images without root, loads modules that implement virtual file systems and devices, makes trees"
        " copy-on-write, and keeps or discards the changes. Nothing of it is left on the host."
    )
    for title, commands in command_groups().items():
        yield f".SH {_text(title).upper()}"
        for name, summary in commands.items():
            yield from (".TP", rf"\fBviewfs\-{_text(name)}\fR(1)", _text(summary))
    yield ".SH OPTIONS"
    yield from _options(cli, context)
    yield from _tail()


def _page(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    text = inspect.cleandoc(command.help or "").replace("\b", "")
    body, _, examples = re.sub(r"\n\s*\n\s*Example", "\n\nExample", text).partition("\n\nExample")
    yield from _head(f"viewfs-{name}", next(group[name] for group in command_groups().values() if name in group))
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (".SH SYNOPSIS", rf"\fBviewfs {_text(name)}\fR {_text(usage)}", ".SH DESCRIPTION")
    for number, paragraph in enumerate(filter(None, (part.strip() for part in body.split("\n\n")))):
        if number:
            yield ".PP"
        yield _text(re.sub(r"\s+", " ", paragraph))
    yield ".SH OPTIONS"
    yield from _options(command, context)
    if examples:
        yield from (".SH EXAMPLES", ".nf")
        yield from (_text(line.strip()) for line in examples.splitlines()[1:] if line.strip())
        yield ".fi"
    yield from _tail()


def _head(name: str, summary: str) -> Iterator[str]:
    yield f'.TH "{_text(name).upper()}" 1 "" "viewfs {__version__}" "viewfs"'
    said = summary.rstrip(".")
    yield from (".SH NAME", rf"{_text(name)} \- {_text(said[:1].lower() + said[1:])}")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _text(re.sub(r"\s+", " ", record[1])))


def _tail() -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for code, meaning in _EXIT_CODES:
        yield from (".TP", code, meaning)
    yield from (".SH SEE ALSO", r"viewfs(1), user_namespaces(7), fuse(4), overlayfs")


def _text(text: str) -> str:
    """As roff takes it: a hyphen that can be copied, and no line that begins with a control character."""
    for plain, roff in (("\\", r"\e"), ("-", r"\-"), ('"', r"\(dq"), ("\N{HORIZONTAL ELLIPSIS}", "...")):
        text = text.replace(plain, roff)
    return "\n".join(rf"\&{line}" if line[:1] in (".", "'") else line for line in text.split("\n"))
