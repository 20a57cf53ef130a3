"""`viewfs shell` and `viewfs run`: open a view, run something in it, end it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from viewfs.cli.arguments import COW, LOAD, MOUNT, ChangesInOrder, cow_backend_option, layer_directory_option
from viewfs.cli.quick.messages import tell, warn
from viewfs.cli.quick.opening import interactive_shell, open_view
from viewfs.errors import UsageError
from viewfs.linux.process import PYTHON
from viewfs.session.layer_names import state_directory

__all__ = ["run", "shell"]

_STDERR = 2
_OPTIONS = (
    click.option("--mount", "mounts", type=MOUNT, multiple=True, help="Mount this first. Repeatable, in order."),
    click.option("--load", "loads", type=LOAD, multiple=True, help="Load this module first. Repeatable, in order."),
    click.option("--cow", "cows", type=COW, multiple=True, help="Make these copy-on-write. Repeatable, in order."),
    cow_backend_option("--cow-backend"),
    click.option(
        "--exclude", multiple=True, metavar="GLOB", help="Directories that --cow leaves as they are. Repeatable."
    ),
    click.option("--include", multiple=True, metavar="GLOB", help="Those that it does not, of what is excluded."),
    layer_directory_option("Keep the changes in DIR, after the view too."),
    click.option("--name", help="Call the session that; `viewfs enter NAME` joins it."),
    click.option("--keep", is_flag=True, help="Keep the session after the command has ended."),
    click.option("--history", is_flag=True, help="Keep every epoch enterable: what is unmounted lives on."),
    click.option("--as-root", is_flag=True, help="Appear as uid 0 inside. (It gives no right that you don't have.)"),
    click.option(
        "--ids",
        type=click.Choice(["auto", "one", "many"]),
        default="auto",
        help="Which users there are: you alone, or those too that /etc/subuid gives you (auto: with --as-root).",
    ),
    click.option("--hostname", metavar="H", help="The host name that the view has."),
    click.option("--pid", "pid_namespace", is_flag=True, help="See only the view's own processes."),
    click.option("--calls", metavar="FAMILY,…", help="System calls that modules may answer, besides the rare ones."),
    click.option("--no-calls", is_flag=True, help="Leave mount(2) and its kind to the kernel."),
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _open(command: list[str], environment: dict[str, str], given: dict[str, Any]) -> int:
    groups = click.get_current_context().meta.get("viewfs.changes", [])
    changes = [change for group in groups for change in (group if isinstance(group, list) else [group])]
    others = {name: value for name, value in given.items() if name not in ("mounts", "loads", "cows")}
    return open_view(command, environment, changes, **others)


@click.command(cls=ChangesInOrder)
@_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(command: tuple[str, ...], **given: Any) -> None:
    """A view with your shell in it, or COMMAND. All of it ends with the shell.

    \b
    Examples:
      viewfs shell
      viewfs shell --mount disk.img:/mnt
      viewfs shell --name work --load hello
    """
    argv, environment = (list(command), {}) if command else interactive_shell()
    sys.exit(_open(argv, environment, given))


@click.command(cls=ChangesInOrder)
@_options
@click.option("--ask", is_flag=True, help="Show what was changed at the end, and ask whether to commit it.")
@click.option("-y", "--yes", "answer", flag_value="yes", help="With --ask: do.")
@click.option("-n", "--no", "answer", flag_value="no", help="With --ask: don't.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def run(command: tuple[str, ...], ask: bool, answer: str | None, **given: Any) -> None:
    """A view for one command, whose exit status is the result (128+n if signal n ended it).

    \b
    Examples:
      viewfs run -- id
      viewfs run --mount disk.img:/mnt -- ls -l /mnt
      viewfs run --cow . -- make install
      viewfs run --cow . --ask -- ./configure
      viewfs run --as-root --hostname box -- sh -c 'id; hostname'
      viewfs run -- sh -c 'mount -t tmpfs none /mnt; echo x > /mnt/file; ls /mnt'
    """
    if not ask:
        if answer is not None:
            raise UsageError("-y and -n go with --ask")
        sys.exit(_open(list(command), {}, given))
    if not given["cows"] or given["name"] is not None or given["keep"]:
        raise UsageError("--ask goes with --cow, and without --name and --keep")
    name = given["name"] = f"ask-{os.getpid()}-{time.time_ns():x}"  # pids are used again
    status = _open(list(command), {}, given)
    sys.exit(_decide(name, given["layer_directory"], answer) or status)


def _decide(name: str, layer_directory: str | None, answer: str | None) -> int:
    """Show what was changed in a session that has ended, and commit it or throw it away: 0 if that was done.

    All output goes to standard error, for standard output is the command's.
    """
    import subprocess  # only here: without --ask it is not needed

    where = [] if layer_directory is None else ["--layer", layer_directory]

    def viewfs(*command: str, stdout: int = _STDERR) -> int:
        return subprocess.run([*PYTHON, "viewfs", *command], stdout=stdout, check=False).returncode

    directory = layer_directory or state_directory()
    if not os.path.isdir(os.path.join(directory, name)):
        tell("nothing has changed")
        return 0
    found = subprocess.run(
        [*PYTHON, "viewfs", "-q", "diff", "--name-only", "--session", name, *where],
        stdout=subprocess.PIPE,
        check=False,
    )
    if not found.returncode and not found.stdout:
        tell("nothing has changed")
        return min(viewfs("forget", *where, name, stdout=subprocess.DEVNULL), 1)
    if viewfs("diff", "--stat", "--session", name, *where):
        return 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        keeps = (
            answer == "yes" if answer is not None else click.confirm("Commit these changes?", default=False, err=True)
        )
    except click.Abort:
        at = "".join(f" {one}" for one in where)
        warn(f"neither committed nor discarded: `viewfs commit{at} --session {name}`, or `viewfs forget{at} {name}`")
        return 130
    return viewfs("commit", "--session", name, *where) if keeps else viewfs("forget", *where, name)
