"""A file system's answers, given at once or promised, as the bodies of replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from viewfs.modules.api import Answer, Buffer, FileRange

__all__ = ["Body", "as_bytes", "as_pieces", "done", "finish_later", "then"]

T = TypeVar("T")
#: A reply's body, perhaps in pieces; None where the protocol wants no reply at all.
Body = bytes | list[Buffer | FileRange] | None


def then(answer: Answer[T], finish: Callable[[T], Body]) -> Answer[Body]:
    """What `finish` makes of an answer, now or when the promise is kept."""
    # (Asking for the method is several times as fast as asking whether it is an Awaitable.)
    if hasattr(answer, "__await__"):
        return finish_later(cast(Awaitable[T], answer), finish)
    return finish(answer)


async def finish_later(answer: Awaitable[T], finish: Callable[[T], Body]) -> Body:
    """The same of what is a promise."""
    return finish(await answer)


def done(_value: Any = None) -> bytes:
    """The body of a reply that says no more than that."""
    return b""


def as_bytes(value: object) -> bytes:
    """What a module gave as bytes. Raises TypeError: None, for one, would be a request that nobody answers."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"bytes expected, not {type(value).__name__}")
    return bytes(value)


def as_pieces(value: object) -> bytes | list[Buffer | FileRange]:
    """What a module gave as the content of a file, not copied. Raises TypeError."""
    if type(value) is bytes:
        return value
    if type(value) is list:
        return value if all(type(piece) in _PIECES for piece in value) else [_piece(piece) for piece in value]
    return [_piece(value)]


#: What needs no second look.
_PIECES = frozenset({bytes, bytearray, FileRange})


def _piece(value: object) -> Buffer | FileRange:
    if not isinstance(value, bytes | bytearray | memoryview | FileRange):
        raise TypeError(f"bytes expected, not {type(value).__name__}")
    # What it is long must be in bytes.
    return value.cast("B") if isinstance(value, memoryview) and value.itemsize != 1 else value
