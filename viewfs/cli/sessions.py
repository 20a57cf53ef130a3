"""`viewfs ps`, `enter`, `kill`, `at`: sessions as such, and commands in them."""

from __future__ import annotations

import sys

import click

from viewfs.cli.arguments import session_argument, session_option
from viewfs.cli.output import json_option
from viewfs.cli.quick.messages import tell, warn
from viewfs.cli.quick.opening import enter_view, run_at
from viewfs.cli.quick.tables import print_json
from viewfs.cli.quick.view import list_sessions
from viewfs.errors import ViewfsError
from viewfs.session.client import find_session
from viewfs.session.left_layers import garbage, take_away

__all__ = ["at", "enter", "gc", "kill", "ps"]


@click.command()
@json_option
def ps(as_json: bool) -> None:
    """Your sessions: name, since when, what runs in it; and those that have ended and left changes.

    \b
    Example:
      viewfs ps
    """
    list_sessions(as_json)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what there is.")
@json_option
def gc(dry_run: bool, as_json: bool) -> None:
    """Remove what a machine that went down, or a session that was killed, has left: sockets that nobody listens on, and
    changes of sessions without a name. Those of named ones stay until `viewfs forget`.

    \b
    Example:
      viewfs gc --dry-run
    """
    found = list(garbage())
    removed: list[str] = []
    failed: list[ViewfsError] = []
    for path in found if not dry_run else ():
        try:
            take_away(path)
            removed.append(path)
        except ViewfsError as error:
            failed.append(error)
    shown = found if dry_run else removed
    if as_json:
        print_json(removed=removed, found=found)
    else:
        for path in shown:
            click.echo(path)
        done = "would be removed" if dry_run else "removed"
        tell(f"{len(shown)} {done}" if found else "nothing is left of anything")
    for one in failed[:-1]:
        warn(str(one))
    if failed:
        raise failed[-1]


@click.command()
@session_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def enter(name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND (default: your shell) in the view of session NAME. Its exit status is the result.

    \b
    Example:
      viewfs enter work -- ls /mnt
    """
    sys.exit(enter_view(name, list(command)))


@click.command()
@session_option
@click.argument("epoch", metavar="N")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def at(session: str | None, epoch: str, command: tuple[str, ...]) -> None:
    """Run COMMAND (default: your shell) in the view as it was in epoch N, or in the state that `viewfs checkpoint` kept
    under that name. Its exit status is the result.

    \b
    Example:
      viewfs at 0 -- ls /mnt
    """
    sys.exit(run_at(epoch, list(command), session))


@click.command()
@session_argument
def kill(name: str) -> None:
    """End session NAME: its processes, its mounts, all of it.

    \b
    Example:
      viewfs kill work
    """
    with find_session(name) as session:
        session.end()
