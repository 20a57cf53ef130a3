"""Which path lies below which. Pure: nothing is looked up, so callers resolve symbolic links and `..` before."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import AnyStr

__all__ = ["is_at_or_below", "is_below"]


def is_below(path: AnyStr, directory: AnyStr) -> bool:
    """Does `path` lie in `directory`, at any depth?

    Both are absolute, or both are relative to the same directory; the empty path is that directory.
    """
    if not directory:
        return bool(path)
    if isinstance(directory, bytes):
        return path.startswith(directory if directory.endswith(b"/") else directory + b"/") and path != directory
    return path.startswith(directory if directory.endswith("/") else directory + "/") and path != directory


def is_at_or_below(path: AnyStr, directory: AnyStr) -> bool:
    """Is `path` the `directory` itself, or does it lie in it at any depth?"""
    return path == directory or is_below(path, directory)
