"""Turning a file system's answers, given at once or as promises, into the bodies of replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from viewfs.modules.api import Answer, Buffer, FileRange

__all__ = ["Body", "as_bytes", "as_pieces", "done", "finish_later", "then"]

T = TypeVar("T")
#: A reply's body, perhaps in pieces; None where the protocol wants no reply at all.
Body = bytes | list[Buffer | FileRange] | None


def then(answer: Answer[T], finish: Callable[[T], Body]) -> Answer[Body]:
    """What `finish` makes of an answer: now, or when the promise is kept."""
    # (Checking for the method is several times as fast as checking whether it is an Awaitable.)
    if hasattr(answer, "__await__"):
        return finish_later(cast(Awaitable[T], answer), finish)
    return finish(answer)


async def finish_later(answer: Awaitable[T], finish: Callable[[T], Body]) -> Body:
    """As `then`, for a promise."""
    return finish(await answer)


def done(_value: Any = None) -> bytes:
    """The empty body of a reply that reports success."""
    return b""


def as_bytes(value: object) -> bytes:
    """A module's answer as bytes. Raises TypeError for other types: with None, for one, no reply would be sent."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"bytes expected, not {type(value).__name__}")
    return bytes(value)


def as_pieces(value: object) -> bytes | list[Buffer | FileRange]:
    """A module's answer to a read as content, without copying it. Raises TypeError for other types."""
    if type(value) is bytes:
        return value
    if type(value) is list:
        return value if all(type(piece) in _PIECES for piece in value) else [_piece(piece) for piece in value]
    return [_piece(value)]


#: Types of pieces that need no further check.
_PIECES = frozenset({bytes, bytearray, FileRange})


def _piece(value: object) -> Buffer | FileRange:
    if not isinstance(value, bytes | bytearray | memoryview | FileRange):
        raise TypeError(f"bytes expected, not {type(value).__name__}")
    # len() must be in bytes.
    return value.cast("B") if isinstance(value, memoryview) and value.itemsize != 1 else value
