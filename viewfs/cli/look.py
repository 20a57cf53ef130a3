"""`viewfs lsmod`, `epochs`, `resolve`, `log`: what the view is made of."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from viewfs.cli.arguments import resolved, session_option
from viewfs.cli.main import printable
from viewfs.cli.output import json_option, print_json, print_table
from viewfs.session.client import find_session

if TYPE_CHECKING:
    from viewfs.modules.api.options import Option

__all__ = ["epochs", "log", "lsmod", "resolve"]


def _ask(session_name: str | None, operation: str, **arguments: Any) -> dict[str, Any]:
    with closing(find_session(session_name)) as session:
        return session.request(operation, **arguments)


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
    modules = _ask(session, "lsmod")["modules"]
    if as_json:
        print_json(modules=modules)
        return
    rows = []
    for row in modules:
        state = row["state"]
        if row["pinned_by"]:
            state += ", needed by " + ", ".join(f"epoch {epoch}" for epoch in row["pinned_by"])
        requests = sum(row["requests"].values()) if row["server"] else None
        rows.append(
            (
                row["module"],
                row["path"],
                row["source"],
                row["epoch"],
                state,
                row["server"],
                row["confinement"],
                requests,
            )
        )
    columns = ("MODULE", "PATH", "SOURCE", "EPOCH", "STATE", "PID", "CONFINED", "REQUESTS")
    print_table(columns, rows, dim=[row["state"] != "mounted" for row in modules])


def _list_available(as_json: bool) -> None:
    from viewfs.modules.framework.registry import available

    found = list(available())
    if as_json:
        print_json(
            modules=[
                {
                    "module": one.module.name,
                    "summary": _summary(one.module),
                    "origin": one.origin,
                    "place": one.module.mount_point,
                    "takes_source": one.module.takes_source,
                    "options": [
                        {"name": option.name, "value": option.metavar, "default": _plain(option), "help": option.help}
                        for option in one.module.options
                    ],
                }
                for one in found
            ]
        )
        return
    rows: list[tuple[str, str, str]] = []
    for one in found:
        rows.append((one.module.name, _summary(one.module), one.origin))
        rows += [
            (f"  {o.name}={o.metavar}", f"  {o.help} (default: {o.show(o.default)})", "") for o in one.module.options
        ]
    print_table(("MODULE", "WHAT IT IS", "FROM"), rows)


def _plain(option: Option[Any]) -> Any:
    """The default of an option, as JSON can have it."""
    return option.default if isinstance(option.default, bool | int | float | str) else option.show(option.default)


def _summary(module: type) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


@click.command()
@session_option
@json_option
def epochs(session: str | None, as_json: bool) -> None:
    """The log: every change of the view made an epoch. Those marked * can be entered with `viewfs at`.

    \b
    Example:
      viewfs epochs
    """
    answer = _ask(session, "epochs")
    if as_json:
        print_json(**answer)
        return
    rows = []
    for row in answer["epochs"]:
        marks = []
        if row["shadowed"]:
            marks.append("shadowed")
        if row["removed_in"] is not None:
            marks.append(f"gone in {row['removed_in']}")
        if row["made_from"] is not None:
            marks.append(f"from {row['made_from']}")
        if row["pinned_by"]:
            marks.append("pinned by " + ", ".join(map(str, row["pinned_by"])))
        at = time.strftime("%H:%M:%S", time.localtime(row["time_ns"] / 1e9))
        number = f"{row['epoch']}{'*' if row['enterable'] else ' '}"
        rows.append((number, at, row["operation"], row["path"], row["type"], row["source"], ", ".join(marks)))
    print_table(
        ("EPOCH", "TIME", "WHAT", "WHERE", "TYPE", "FROM", "NOW"),
        rows,
        dim=[not row["enterable"] for row in answer["epochs"]],
    )


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
    answer = _ask(session, "resolve", path=resolved(path), epoch=epoch)
    if as_json:
        print_json(**answer)
        return
    serving = answer["serving"]
    rows = [("serves", *_mount_row(serving))] if serving else []
    rows += [("shadowed", *_mount_row(mount)) for mount in answer["shadowed"]]
    rows.append(("shadowed" if serving else "serves", "", "/", "the host", ""))
    print_table(("", "EPOCH", "PATH", "TYPE", "SOURCE"), rows, dim=[row[0] != "serves" for row in rows])


def _mount_row(mount: dict[str, Any]) -> tuple[Any, ...]:
    return mount["epoch"], mount["path"], mount["type"], mount["source"]


@click.command()
@session_option
@json_option
def log(session: str | None, as_json: bool) -> None:
    """What the module servers of the session reported: warnings, and tracebacks of faulty modules.

    \b
    Example:
      viewfs log
    """
    lines = _ask(session, "log")["lines"]
    if as_json:
        print_json(lines=lines)
    else:
        for line in lines:
            click.echo(printable(line))
