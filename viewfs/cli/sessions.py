"""`viewfs ps`, `enter`, `kill`, `at`: sessions as such, and commands in them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from contextlib import closing
from typing import Any

import click

from viewfs.cli.arguments import session_argument, session_option
from viewfs.cli.main import tell
from viewfs.cli.output import json_option, print_json, print_table
from viewfs.cli.run import _interactive_shell
from viewfs.errors import ViewfsError
from viewfs.linux.process import pid_of, pidfd_send_signal
from viewfs.session.client import SESSION_VARIABLE, Session, find_session, sessions
from viewfs.session.front.front import run_in_view
from viewfs.session.left_layers import garbage, left_behind, take_away

__all__ = ["at", "enter", "gc", "kill", "ps"]


@click.command()
@json_option
def ps(as_json: bool) -> None:
    """Your sessions: name, since when, what runs in it; and those that have ended and left changes.

    \b
    Example:
      viewfs ps
    """
    found: list[dict[str, Any]] = []
    for session in sessions():
        with closing(session):
            here = session.is_view_of_caller()
            found.append({name: session.status[name] for name in _SHOWN} | {"here": here})
    found.sort(key=lambda status: status["started_ns"])
    ended = list(left_behind([status["name"] for status in found]))
    if as_json:
        print_json(sessions=found, ended=[{"name": name, "paths": paths} for name, paths in ended])
        return
    rows: list[tuple[Any, ...]] = []
    for status in found:
        since = time.strftime("%F %H:%M", time.localtime(status["started_ns"] / 1e9))
        kept = "kept" if status["kept"] else ("here" if status["here"] else "")
        rows.append(
            (status["name"], since, status["pid"], status["epoch"], status["mounts"], " ".join(status["command"]), kept)
        )
    rows += [
        (name, None, None, None, None, f"ended; changed {', '.join(paths) or 'what can not be read'}", "")
        for name, paths in ended
    ]
    print_table(("NAME", "SINCE", "PID", "EPOCH", "MOUNTS", "COMMAND", ""), rows, dim=[row[1] is None for row in rows])


_SHOWN = ("name", "pid", "command", "started_ns", "epoch", "mounts", "as_root", "kept")


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
    if not dry_run:
        for path in found:
            take_away(path)
    if as_json:
        print_json(removed=[] if dry_run else found, found=found)
        return
    for path in found:
        click.echo(path)
    done = "would be removed" if dry_run else "removed"
    tell(f"{len(found)} {done}" if found else "nothing is left of anything")


@click.command()
@session_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def enter(name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND (default: your shell) in the view of session NAME. Its exit status is the result.

    \b
    Example:
      viewfs enter work -- ls /mnt
    """
    with closing(find_session(name)) as session:
        sys.exit(_run_in(session, list(command), None))


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
    with closing(find_session(session)) as found:
        number = int(epoch) if epoch.isdecimal() else found.request("state", state=epoch)["epoch"]
        sys.exit(_run_in(found, list(command), number))


def _run_in(session: Session, command: list[str], epoch: int | None) -> int:
    argv, environment = (command, {}) if command else _interactive_shell()
    environment[SESSION_VARIABLE] = session.name
    if session.is_view_of_caller():
        return _have_it_run(session, argv, environment, epoch)
    try:
        namespaces = session.namespaces(epoch)
        return run_in_view(namespaces, argv, os.environ | environment, as_root=session.status["as_root"])
    except OSError as error:
        raise ViewfsError(f"cannot enter session {session.name}: {(error.strerror or '').lower()}") from error


def _have_it_run(session: Session, argv: list[str], environment: dict[str, str], epoch: int | None) -> int:
    """From inside, where there is no right to enter another epoch: the agent starts it, and signals are passed on."""
    os.environ.update(environment)
    pidfd, number = session.spawn(argv, epoch=epoch, group=os.getpgrp())

    def pass_on(number: int, _frame: object) -> None:
        pidfd_send_signal(pidfd, number)

    with contextlib.suppress(OSError):
        in_our_group = os.getpgid(pid_of(pidfd)) == os.getpgrp()
        passed_on = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
        for received in passed_on if in_our_group else [*passed_on, signal.SIGINT, signal.SIGQUIT]:
            signal.signal(received, pass_on)
        if in_our_group:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    status = session.wait_for_end(number)
    return status if status >= 0 else 128 - status


@click.command()
@session_argument
def kill(name: str) -> None:
    """End session NAME: its processes, its mounts, all of it.

    \b
    Example:
      viewfs kill work
    """
    with closing(find_session(name)) as session:
        session.end()
