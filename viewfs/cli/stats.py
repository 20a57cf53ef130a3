"""`viewfs stats`: what module servers were asked, and how fast they were."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import click

from viewfs.cli.arguments import session_option
from viewfs.cli.output import json_option
from viewfs.cli.quick.tables import print_json, print_table
from viewfs.errors import NotFoundError
from viewfs.session.client import find_session

__all__ = ["stats"]


@click.command()
@session_option
@json_option
@click.argument("path", required=False)
def stats(session: str | None, as_json: bool, path: str | None) -> None:
    """What the server of each mount was asked, how often, and how long its answers took; of the mount at PATH, or of
    all.

    P50 and P99: half of the answers, and all but one in a hundred, took at most so long, from the request's arrival
    at the server on. What the kernel answers from its own caches is not counted, for no server hears of it.

    \b
    Examples:
      viewfs stats
      viewfs stats --json /mnt
    """
    with closing(find_session(session)) as found:
        servers: list[dict[str, Any]] = found.request("stats")["servers"]
    if path is not None:
        place = os.path.abspath(path)
        servers = [server for server in servers if server["path"] == place]
        if not servers:
            raise NotFoundError(f"no server has a mount at {place}", remedy="see `viewfs lsmod`")
    if as_json:
        print_json(servers=servers)
        return
    rows: list[tuple[object, ...]] = []
    for server in servers:
        title = f"{server['path']} ({server['module']})"
        for number, row in enumerate(_rows_of(server)):
            rows.append(("" if number else title, *row))
    print_table(("SERVER OF", "WHAT", "COUNT", "P50", "P99", ""), rows)


def _rows_of(server: dict[str, Any]) -> list[tuple[object, ...]]:
    requests, latency = server["requests"], server["latency_ns"]
    rows: list[tuple[object, ...]] = []
    for name, count in sorted(requests.items(), key=lambda item: -item[1]):
        rows.append((name, count, *_times(latency.get(name)), ""))
    errors = f"{server['errors']} of them errors" if server["errors"] else ""
    size = f"{_size(server['bytes'])} of answers"
    rows.append(("all", sum(requests.values()), *_times(latency.get("all")), ", ".join(filter(None, (size, errors)))))
    ahead, cache = server["ahead"], server["cache"]
    if ahead["messages"]:
        rows.append(("sent ahead", ahead["messages"], "", "", _size(ahead["bytes"])))
    asked = cache["hits"] + cache["misses"]
    if asked:
        rows.append(
            ("blocks looked for", asked, "", "", f"{100 * cache['hits'] // asked} % were in the server's caches")
        )
    return rows


def _times(latency: dict[str, int] | None) -> tuple[str, str]:
    return ("", "") if latency is None else (_time(latency["p50"]), _time(latency["p99"]))


def _time(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e3:.0f} µs" if nanoseconds < 10_000_000 else f"{nanoseconds / 1e6:.0f} ms"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
