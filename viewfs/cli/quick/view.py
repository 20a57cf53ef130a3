"""Commands of an open view: changes of it, and listings of what it is made of."""

from __future__ import annotations

import os
import time

from viewfs.cli.quick.messages import printable, tell
from viewfs.cli.quick.requests import resolved
from viewfs.cli.quick.tables import print_json, print_line, print_table
from viewfs.session.client import find_session, sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "change",
    "list_epochs",
    "list_modules",
    "list_sessions",
    "remove_module",
    "restart",
    "show_log",
    "show_resolution",
    "unmount",
]


def change(session: str | None, operation: str, as_json: bool, arguments: dict[str, Any]) -> None:
    """Ask for a change that makes an epoch."""
    with find_session(session) as found:
        result = found.request(operation, **arguments)
    if as_json:
        print_json(**result)
    else:
        tell(f"epoch {result['epoch']}: {arguments.get('operation', operation)} {result['path']}")


def unmount(session: str | None, as_json: bool, path: str, *, lazy: bool, force: bool) -> None:
    """`viewfs umount`."""
    change(session, "umount", as_json, {"path": resolved(path), "lazy": lazy, "force": force})


def remove_module(session: str | None, as_json: bool, module: str, *, lazy: bool, force: bool) -> None:
    """`viewfs rmmod`."""
    arguments: dict[str, Any] = {"module": module, "lazy": lazy, "force": force, "operation": "rmmod"}
    if "/" in module:
        arguments["path"] = resolved(module)
    change(session, "umount", as_json, arguments)


def restart(session: str | None, as_json: bool, module: str) -> None:
    """`viewfs restart`."""
    arguments: dict[str, Any] = {"module": module}
    if "/" in module:
        arguments["path"] = resolved(module)
    result = _ask(session, "restart", **arguments)
    if as_json:
        print_json(**result)
    else:
        tell(f"restarted: {result['path']} (process {result['server']})")


def _ask(session: str | None, operation: str, **arguments: Any) -> dict[str, Any]:
    with find_session(session) as found:
        return found.request(operation, **arguments)


def list_modules(session: str | None, as_json: bool) -> None:
    """`viewfs lsmod`."""
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
        where = row["path"] if row["calls"] is None else _calls(row["path"], row["calls"])
        what = (row["module"], where, row["source"], row["epoch"])
        rows.append((*what, state, row["server"], row["confinement"], requests))
    columns = ("MODULE", "PATH", "SOURCE", "EPOCH", "STATE", "PID", "CONFINED", "REQUESTS")
    print_table(columns, rows, dim=[row["state"] != "mounted" for row in modules])


#: So many of the system calls that a module answers are named in a table.
_NAMED = 4


def _calls(place: str, calls: list[str]) -> str:
    """What a module owns of the system calls, in a few words."""
    named = calls if len(calls) <= _NAMED + 1 else [*calls[:_NAMED], f"{len(calls) - _NAMED} more"]
    return f"{', '.join(named)} of {place}" if place else ", ".join(named)


def list_epochs(session: str | None, as_json: bool) -> None:
    """`viewfs epochs`."""
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


def show_resolution(session: str | None, as_json: bool, path: str, epoch: int | None) -> None:
    """`viewfs resolve`."""
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


def show_log(session: str | None, as_json: bool) -> None:
    """`viewfs log`."""
    lines = _ask(session, "log")["lines"]
    if as_json:
        print_json(lines=lines)
    else:
        for line in lines:
            print_line(printable(line))


_SHOWN = ("name", "pid", "command", "started_ns", "epoch", "mounts", "as_root", "kept")


def list_sessions(as_json: bool) -> None:
    """`viewfs ps`."""
    found: list[dict[str, Any]] = []
    for session in sessions():
        with session:
            here = session.is_view_of_caller()
            found.append({name: session.status[name] for name in _SHOWN} | {"here": here})
    found.sort(key=lambda status: status["started_ns"])
    ended = _ended([status["name"] for status in found])
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


def _ended(running: list[str]) -> list[tuple[str, list[str]]]:
    """Sessions that have ended and left changes, and where those are."""
    from viewfs.session.layer_names import state_directory

    try:
        if not os.listdir(state_directory()):
            return []
    except OSError:
        return []
    from viewfs.python import complete

    complete()
    from viewfs.session.left_layers import left_behind

    return list(left_behind(running))
