"""What every server can be told with `-o`, whatever its module: how much it may use, and how long it may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from viewfs.errors import UsageError
from viewfs.modules.api.options import choice, integer, parse_options, size

__all__ = ["SERVER_OPTIONS", "ServerOptions"]

#: What a listing can bring. Attributes are most of the work; without them, programs that look at names ask for each.
LISTINGS = ("attributes", "names")
SERVER_OPTIONS = (
    size("memory", 1 << 30, "memory that the server may use, beyond what it starts with"),
    integer("processes", 256, "threads that the server may have", minimum=16),
    choice("listing", LISTINGS, LISTINGS[0], "what a listing brings: attributes too, or names alone"),
    integer("deadline", 30, "seconds in which the server has to answer", minimum=1, maximum=86400),
)


#: Bytes that a server needs for its threads and to answer.
_LEAST_MEMORY = 32 << 20
#: Bytes of address space that no machine goes beyond.
_MOST_MEMORY = 1 << 57


class ServerOptions(NamedTuple):
    """The options that were given, and the defaults of the others."""

    memory: int
    processes: int
    #: One of `LISTINGS`.
    listing: str
    #: Seconds.
    deadline: int

    @classmethod
    def of(cls, options: Mapping[str, str | None]) -> ServerOptions:
        """Read them from all options of a mount. Raises `UsageError` for an invalid value."""
        names = [option.name for option in SERVER_OPTIONS]
        given = {name: value for name, value in options.items() if name in names}
        found = cls(**parse_options("server", SERVER_OPTIONS, given))
        if found.memory < _LEAST_MEMORY:
            raise UsageError(f"option memory: no server can do with less than {_LEAST_MEMORY >> 20}M")
        if found.memory > _MOST_MEMORY:
            raise UsageError(f"option memory: no machine has more than {_MOST_MEMORY >> 50}P")
        return found

    @classmethod
    def without(cls, options: Mapping[str, str | None]) -> dict[str, str | None]:
        """The options that are left for the module."""
        names = [option.name for option in SERVER_OPTIONS]
        return {name: value for name, value in options.items() if name not in names}
