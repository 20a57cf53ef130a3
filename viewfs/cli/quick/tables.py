"""Listings: a table for people, one JSON object for scripts."""

from __future__ import annotations

import os
import sys

from viewfs.cli.quick.messages import printable, styled
from viewfs.session.wire import plain_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

__all__ = ["SCHEMA", "print_json", "print_line", "print_table"]

#: The version of every JSON object that is printed.
SCHEMA = 1
#: Columns that have numbers.
_RIGHT = frozenset({"EPOCH", "PID", "REQUESTS", "MOUNTS", "COUNT", "P50", "P99"})
_GAP = 2
#: On a narrow terminal no column becomes narrower than this.
_NARROWEST = 6


def print_line(text: str) -> None:
    """On standard output; undecodable bytes of paths must have been made printable."""
    sys.stdout.write(text + "\n")


def print_json(**content: Any) -> None:
    """One object with the schema's version in it; undecodable bytes of paths appear as \\udcXX escapes."""
    whole = {"schema": SCHEMA} | content
    if sys.stdout.isatty():
        import json

        print_line(json.dumps(whole, indent=2))
    else:
        print_line(plain_json.dumps_spaced(whole))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, dim: Sequence[bool] = ()) -> None:
    """A table as wide as its content; colours on a terminal only, where what is too wide goes on in the next line.

    `dim` marks the rows that matter less.
    """
    cells = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(columns, *cells, strict=True)]
    on_terminal = sys.stdout.isatty()
    if on_terminal:
        _narrow(widths, _terminal_width())
    for number, row in enumerate([list(columns), *cells]):
        faint = 0 < number <= len(dim) and dim[number - 1]
        style = ["bold"] if number == 0 else ["dim"] if faint else []
        for line in _lines(columns, row, widths):
            print_line(styled(line, *style, on_terminal=on_terminal))


def _terminal_width() -> int:
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80


def _narrow(widths: list[int], available: int) -> None:
    """Make the widest columns narrower until all fit, or can't be made narrower."""
    while sum(widths) + _GAP * (len(widths) - 1) > available and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1


def _lines(columns: Sequence[str], row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The lines that a row takes."""
    folded = [list(_fold(cell, width)) for cell, width in zip(row, widths, strict=True)]
    for number in range(max(map(len, folded))):
        parts = []
        for column, pieces, width in zip(columns, folded, widths, strict=True):
            piece = pieces[number] if number < len(pieces) else ""
            blank = " " * (width - _width(piece))
            parts.append(blank + piece if column in _RIGHT else piece + blank)
        yield (" " * _GAP).join(parts).rstrip()


def _fold(text: str, width: int) -> Iterator[str]:
    piece, size = "", 0
    for character in text:
        more = _width(character)
        if piece and size + more > width:
            yield piece
            piece, size = "", 0
        piece += character
        size += more
    yield piece


def _width(text: str) -> int:
    """In cells of a terminal (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)
