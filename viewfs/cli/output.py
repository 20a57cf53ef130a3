"""The option that asks for JSON, and a bar where something takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import click

__all__ = ["json_option", "progress_bar"]

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")


@contextmanager
def progress_bar(
    doing: str, total: int | None, *, shown: bool = True, patience: float = 1.0
) -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes of each file copied. It shows a bar on a terminal, after `patience` seconds.

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
