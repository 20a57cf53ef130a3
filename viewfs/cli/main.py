"""The command `viewfs`: its subcommands are imported when they are used, so that starting a command costs little."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import click

from viewfs import __version__
from viewfs.cli.quick.messages import exit_code, flush, print_error, verbosity

__all__ = ["cli", "command_groups", "run"]

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
        "events": ("viewfs.cli.events:events", "What happens to the view."),
        "publish": ("viewfs.cli.events:publish", "Tell followers of events something."),
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


def command_groups() -> dict[str, dict[str, str]]:
    """Title of each group of `viewfs --help` → its commands, and what each is for."""
    return {
        title: {name: summary for name, (_place, summary) in commands.items()} for title, commands in _COMMANDS.items()
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

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without empty lines around it, so that all of the help is on one screen."""
        with formatter.indentation():
            formatter.write_text(inspect.cleandoc(self.help or ""))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_heading("Options")
        with formatter.indentation():
            formatter.write_dl([record for one in self.get_params(ctx) if (record := one.get_help_record(ctx))])
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_place, summary) in commands.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="viewfs")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
def cli(quiet: bool, verbose: bool) -> None:
    """\b
    Give a command a file system of its own: mount without root, leave no trace.
    Example: viewfs run --mount disk.img:/mnt -- ls -l /mnt
    """
    verbosity.quiet, verbosity.verbose = quiet, verbose


def run() -> int:
    """Run the whole program, with open standard streams. Returns the exit code (docs/cli.md). An error is one line."""
    return flush(exit_code(_run_with_click))


def _run_with_click() -> int:
    try:
        code: Any = cli.main(prog_name="viewfs", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "viewfs"
        said = error.format_message().rstrip(".")
        print_error(f"{said[:1].lower()}{said[1:]}; see `{command} --help`")
        return error.exit_code
    except click.Abort:
        return 130
    except SystemExit as error:
        code = error.code
    return code if isinstance(code, int) else 0
