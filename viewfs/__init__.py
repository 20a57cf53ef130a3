"""viewfs: give a process a file system view of its own."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike

__all__ = ["__version__", "call"]

__version__ = "0.1.0"


def call(number: int, *arguments: int | bytes | str | PathLike[str] | bytearray | memoryview | None) -> int:
    """Make a system call that a module answers (docs/calls.md), or any other: `viewfs.linux.calling.call`."""
    from viewfs.linux import calling

    return calling.call(number, *arguments)
