"""`viewfs lsmod`, `epochs`, `resolve`, `log`: what the view is made of."""

from __future__ import annotations

import click

from viewfs.cli.arguments import session_option
from viewfs.cli.output import json_option
from viewfs.cli.quick.requests import module_path
from viewfs.cli.quick.tables import print_json, print_table
from viewfs.cli.quick.view import list_epochs, list_modules, show_log, show_resolution

__all__ = ["epochs", "log", "lsmod", "resolve"]


@click.command()
@click.option("--available", is_flag=True, help="Modules that can be loaded, with their options.")
@session_option
@json_option
def lsmod(available: bool, session: str | None, as_json: bool) -> None:
    """What is mounted and loaded, by which server, and how often it was asked.

    \b
    Examples:
      viewfs lsmod
      viewfs lsmod --available
    """
    if available:
        _list_available(as_json)
        return
    list_modules(session, as_json)


def _list_available(as_json: bool) -> None:
    from viewfs.modules.framework.registry import available

    found = list(available(module_path()))
    if as_json:
        print_json(
            modules=[
                {
                    "module": one.name,
                    "summary": one.summary,
                    "origin": one.origin,
                    "place": one.place,
                    "takes_source": one.takes_source,
                    "options": [{name: each[name] for name in each if name != "shown"} for each in one.options],
                }
                for one in found
            ]
        )
        return
    rows: list[tuple[str, str, str]] = []
    for one in found:
        rows.append((one.name, one.summary, one.origin))
        rows += [
            (f"  {each['name']}={each['value']}", f"  {each['help']} (default: {each['shown']})", "")
            for each in one.options
        ]
    print_table(("MODULE", "WHAT IT IS", "FROM"), rows)


@click.command()
@session_option
@json_option
def epochs(session: str | None, as_json: bool) -> None:
    """The log: every change of the view made an epoch. Those marked * can be entered with `viewfs at`.

    \b
    Example:
      viewfs epochs
    """
    list_epochs(session, as_json)


@click.command()
@click.option("--epoch", type=int, metavar="N", help="As of epoch N (default: now).")
@session_option
@json_option
@click.argument("path")
def resolve(epoch: int | None, session: str | None, as_json: bool, path: str) -> None:
    """Which mount serves PATH, and what it shadows.

    \b
    Example:
      viewfs resolve /mnt/image
    """
    show_resolution(session, as_json, path, epoch)


@click.command()
@session_option
@json_option
def log(session: str | None, as_json: bool) -> None:
    """What the module servers of the session reported: warnings, and tracebacks of faulty modules.

    \b
    Example:
      viewfs log
    """
    show_log(session, as_json)
