"""`viewfs events` and `publish`: what happens to a session, and what its programs tell each other."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from viewfs.cli.arguments import session_option
from viewfs.cli.output import json_option
from viewfs.cli.quick.messages import printable
from viewfs.cli.quick.tables import print_json, print_line
from viewfs.errors import UsageError, ViewfsError
from viewfs.session.client import find_session

__all__ = ["events", "publish"]

#: How often a session is tried whose supervisor was replaced, and after how many seconds.
_TIMES, _SECONDS = 50, 0.1


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on, until the session ends.")
@click.option("--after", type=int, default=0, metavar="N", help="Only those with a number above N.")
@session_option
@json_option
def events(follow: bool, after: int, session: str | None, as_json: bool) -> None:
    """What has happened to the view: mounts, modules, servers, commands, and messages of programs.

    With --follow, --json gives an object a line.

    \b
    Examples:
      viewfs events
      viewfs events --follow --json
    """
    if not follow:
        with find_session(session) as found:
            entries = found.request("events", after=after, wait=False)["events"]
        if as_json:
            print_json(events=entries)
            return
        for entry in entries:
            _show(entry)
        return
    with suppress(KeyboardInterrupt, BrokenPipeError):
        for entry in _followed(session, after):
            if as_json:
                print(json.dumps(entry), flush=True)
            else:
                _show(entry)
                sys.stdout.flush()


def _followed(session: str | None, after: int) -> Iterator[dict[str, Any]]:
    with find_session(session) as found:
        name = found.name
    failed = 0
    while failed < _TIMES:
        try:
            with find_session(name) as found:
                while True:
                    for entry in found.request("events", after=after, wait=True)["events"]:
                        after, failed = entry["number"], 0
                        yield entry
        except (OSError, ViewfsError):  # its supervisor was replaced, or it has ended
            failed += 1
            try:
                find_session(name).close()
            except ViewfsError:
                return
            time.sleep(_SECONDS)


def _show(entry: dict[str, Any]) -> None:
    when = time.strftime("%H:%M:%S", time.localtime(entry["time_ns"] / 1e9))
    words = [f"{key}={_word(entry[key])}" for key in entry if key not in ("number", "time_ns", "kind") and entry[key]]
    print_line(" ".join([str(entry["number"]), when, entry["kind"], *words]))


def _word(value: Any) -> str:
    return printable(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@click.command()
@session_option
@click.argument("name")
@click.argument("value", default="null")
def publish(session: str | None, name: str, value: str) -> None:
    """Tell all who follow the session's events something: NAME, and JSON up to 64 KiB (-: from standard input).

    \b
    Examples:
      viewfs publish tests-done
      viewfs publish build '{"ok": true, "seconds": 12}'
    """
    try:
        parsed = json.loads(sys.stdin.read() if value == "-" else value)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the message {name} is no JSON: {error}", remedy="put a text in quotation marks") from None
    with find_session(session) as found:
        found.request("publish", name=name, value=parsed)
