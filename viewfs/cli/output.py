"""Listings: a table for people, one JSON object for scripts; and a bar where something takes long."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from viewfs.cli.main import printable

__all__ = ["json_option", "print_json", "print_table", "progress_bar"]

#: The version of every JSON object that is printed.
SCHEMA = 1

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")


def print_json(**content: Any) -> None:
    """One object with the schema's version in it; undecodable bytes of paths appear as \\udcXX escapes."""
    click.echo(json.dumps({"schema": SCHEMA} | content, indent=2 if sys.stdout.isatty() else None))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, dim: Sequence[bool] = ()) -> None:
    """A table as wide as its content; colours on a terminal only. `dim` marks the rows that matter less."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        right = column in ("EPOCH", "PID", "REQUESTS", "MOUNTS", "COUNT", "P50", "P99")
        table.add_column(column, justify="right" if right else "left", no_wrap=not console.is_terminal, overflow="fold")
    for number, row in enumerate(rows):
        faint = number < len(dim) and dim[number]
        cells = ["" if cell is None else printable(str(cell)) for cell in row]
        table.add_row(*(Text(cell) for cell in cells), style="dim" if faint else None)
    if console.is_terminal:
        console.print(table)
    else:
        _print_plain(columns, table, console)


def _print_plain(columns: Sequence[str], table: Any, console: Any) -> None:
    """Not on a terminal nothing is cut, whatever the width; trailing blanks are not printed."""
    console.width = 10_000
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


@contextmanager
def progress_bar(
    doing: str, total: int | None, *, shown: bool = True, patience: float = 1.0
) -> Iterator[Callable[[int], None]]:
    """What is told the bytes of each file that was copied: a bar, after `patience` seconds, if somebody looks.

    `total`: how many bytes it will be; None if that is not known.
    """
    begun, done = time.monotonic(), 0
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def told(size: int) -> None:
            nonlocal advance, done
            done += size
            if advance is not None:
                advance(size)
            elif shown and sys.stderr.isatty() and time.monotonic() - begun >= patience:
                advance = stack.enter_context(_bar(doing, done, total))

        yield told


@contextmanager
def _bar(doing: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (doing, BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda size: bar.advance(task, size)
