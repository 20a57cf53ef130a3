"""The command `viewfs`: its subcommands are imported when they are used, so that starting a command costs little."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from viewfs import __version__
from viewfs.errors import ViewfsError, explain_os_error

__all__ = ["cli", "main", "warn"]

#: Subcommand → module:attribute, in the order of `viewfs --help`, in groups.
_COMMANDS = {
    "Open a view, and change it": {
        "shell": ("viewfs.cli.run:shell", "A view with your shell in it."),
        "run": ("viewfs.cli.run:run", "A view for one command."),
        "mount": ("viewfs.cli.change:mount", "Mount an image, a directory or a virtual file system."),
        "umount": ("viewfs.cli.change:umount", "Take a mount out of the view."),
        "insmod": ("viewfs.cli.change:insmod", "Load a module."),
        "rmmod": ("viewfs.cli.change:rmmod", "Remove a module."),
        "restart": ("viewfs.cli.change:restart", "Have a new server go on with what is mounted."),
    },
    "Change anything, keep or discard it": {
        "cow": ("viewfs.cli.cow:cow", "Make a tree copy-on-write."),
        "diff": ("viewfs.cli.cow:diff", "What was changed."),
        "commit": ("viewfs.cli.cow:commit", "Make the changes outside of the view too."),
        "discard": ("viewfs.cli.cow:discard", "Throw the changes away."),
        "checkpoint": ("viewfs.cli.states:checkpoint", "Keep the state as it is now."),
        "rollback": ("viewfs.cli.states:rollback", "Go back to a state that was kept."),
        "forget": ("viewfs.cli.cow:forget", "Throw away what ended sessions have left."),
    },
    "Look at the view": {
        "lsmod": ("viewfs.cli.look:lsmod", "What is loaded, or can be."),
        "epochs": ("viewfs.cli.look:epochs", "The log of the view's changes."),
        "resolve": ("viewfs.cli.look:resolve", "Which mount serves a path."),
        "at": ("viewfs.cli.sessions:at", "Run a command in an earlier epoch."),
        "inspect": ("viewfs.cli.inspect:inspect", "What a source is made of."),
        "stats": ("viewfs.cli.stats:stats", "What module servers were asked, and how fast they were."),
        "log": ("viewfs.cli.look:log", "What module servers had to say."),
    },
    "Sessions, and this machine": {
        "ps": ("viewfs.cli.sessions:ps", "Your sessions."),
        "enter": ("viewfs.cli.sessions:enter", "Run a command in a session's view."),
        "kill": ("viewfs.cli.sessions:kill", "End a session and all in it."),
        "gc": ("viewfs.cli.sessions:gc", "Remove what crashed sessions have left."),
        "doctor": ("viewfs.cli.doctor:doctor", "Can this machine do it? Tries, and says what to change."),
        "completion": ("viewfs.cli.completion:completion", "Completion for bash, zsh or fish."),
    },
}


class _Commands(click.Group):
    """Subcommands by name, from `_COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in _COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for commands in _COMMANDS.values():
            if cmd_name in commands:
                module, _, attribute = commands[cmd_name][0].partition(":")
                command: click.Command = getattr(importlib.import_module(module), attribute)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_place, summary) in commands.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="viewfs")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """\b
    Give a command a file system of its own: mount without root, leave no trace.
    Example: viewfs run --mount disk.img:/mnt -- ls -l /mnt
    """
    ctx.obj = {"quiet": quiet, "verbose": verbose}


#: No message is longer than this: paths can have 4,096 bytes and more, and a screen some 2,000 characters.
_LONGEST = 1200


def _shortened(message: str) -> str:
    if len(message) <= _LONGEST:
        return message
    return f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"


def _print_error(message: str) -> None:
    prefix = click.style("viewfs:", fg="red", bold=True)
    click.echo(f"{prefix} {_shortened(printable(message))}", err=True)


def warn(message: str) -> None:
    """Something the user should know, which is no error."""
    context = click.get_current_context(silent=True)
    if context is None or not (context.find_root().obj or {}).get("quiet"):
        click.echo(f"{click.style('viewfs:', fg='yellow')} {_shortened(printable(message))}", err=True)


def tell(message: str) -> None:
    """What was done, for those who asked with -v."""
    context = click.get_current_context(silent=True)
    if context is not None and (context.find_root().obj or {}).get("verbose"):
        click.echo(printable(message), err=True)


def printable(text: str) -> str:
    """`text` without what would move the cursor or can't be encoded: names are other people's input."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _open_standard_streams() -> None:
    """Those that were closed: else the next file that is opened would be one. The command finds them closed again."""
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
            continue
        except OSError:
            fd = os.open(os.devnull, (os.O_RDONLY if mode == "r" else os.O_WRONLY) | os.O_CLOEXEC)
        if fd != number:  # a file of Python's own lies below
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        setattr(sys, ("stdin", "stdout", "stderr")[number], open(number, mode, closefd=False))


def _flush(code: int) -> int:
    """The exit code, if all that was written to standard output gets there."""
    try:
        sys.stdout.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, sys.stdout.fileno())  # Python tries once more at its end
        os.close(null)
        if not code and not isinstance(error, BrokenPipeError):
            _print_error(str(explain_os_error("cannot write the output", error)))
        return code or 1
    return code


def main() -> None:
    """The program: exit codes as documented in docs/cli.md, one line for what went wrong."""
    _open_standard_streams()
    code: Any = 0
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "viewfs"
        said = error.format_message().rstrip(".")
        _print_error(f"{said[:1].lower()}{said[1:]}; see `{command} --help`")
        code = error.exit_code
    except click.Abort:
        code = 130
    except ViewfsError as error:
        _print_error(str(error))
        code = error.exit_code
    except OSError as error:
        _print_error(str(explain_os_error("failed", error)))
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(_flush(code if isinstance(code, int) else 0))
