"""Options of a module: declared once, with a type and a default; parsed, checked and shown from that declaration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from viewfs.errors import UsageError

__all__ = [
    "Option",
    "choice",
    "decimal",
    "flag",
    "integer",
    "parse_options",
    "permissions",
    "size",
    "text",
]

T = TypeVar("T")

_SIZE = re.compile(r"([0-9]{1,19})\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_TRUTH = {
    "": True,
    "yes": True,
    "true": True,
    "on": True,
    "1": True,
    "no": False,
    "false": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True)
class Option(Generic[T]):
    """One option. `parse` takes what follows `NAME=` and raises `ValueError` with what it should have been."""

    name: str
    parse: Callable[[str], T]
    default: T
    help: str
    #: What to show for a value: "SIZE", "a|b".
    metavar: str
    #: `NAME` alone is allowed.
    bare: bool = False
    #: A value as a person would write it.
    show: Callable[[T], str] = str


def text(name: str, default: str, help: str) -> Option[str]:
    """An option that takes any text."""
    return Option(name, str, default, help, "TEXT", show=lambda given: given or "none")


def integer(name: str, default: int, help: str, *, minimum: int = 0, maximum: int | None = None) -> Option[int]:
    """An option that takes a whole number; 0o and 0x prefixes are understood."""

    def parse(value: str) -> int:
        try:
            number = int(value, 0)
        except ValueError:
            raise ValueError("a whole number") from None
        if number < minimum or (maximum is not None and number > maximum):
            raise ValueError(f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}")
        return number

    return Option(name, parse, default, help, "N")


def decimal(name: str, default: float, help: str) -> Option[float]:
    """An option that takes a number, which may have a sign and a fraction."""

    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError("a number such as 2, -1.5 or 0.001")
        return number

    return Option(name, parse, default, help, "NUMBER", show=lambda number: f"{number:g}")


def permissions(name: str, default: int, help: str) -> Option[int]:
    """An option that takes permission bits in octal, as chmod(1) does."""

    def parse(value: str) -> int:
        try:
            bits = int(value, 8)
        except ValueError:
            bits = -1
        if not 0 <= bits <= 0o7777:
            raise ValueError("permission bits in octal, such as 755")
        return bits

    return Option(name, parse, default, help, "OCTAL", show=lambda bits: f"{bits:o}")


def size(name: str, default: int, help: str) -> Option[int]:
    """An option that takes a number of bytes, with K, M, G, T or P for powers of 1024."""

    def parse(value: str) -> int:
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError("a size such as 4096, 64K or 2G")
        return int(match[1]) * int(1024 ** _UNITS[match[2].upper()])

    return Option(name, parse, default, help, "SIZE")


def flag(name: str, help: str) -> Option[bool]:
    """An option that is on if it is given: `NAME`, `NAME=yes`, `NAME=no`."""

    def parse(value: str) -> bool:
        try:
            return _TRUTH[value.lower()]
        except KeyError:
            raise ValueError("yes or no") from None

    return Option(name, parse, False, help, "yes|no", bare=True, show=lambda on: "yes" if on else "no")


def choice(name: str, values: Iterable[str], default: str, help: str) -> Option[str]:
    """An option that takes one of a few words."""
    allowed = tuple(values)

    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return value

    return Option(name, parse, default, help, "|".join(allowed))


def parse_options(
    module: str, declared: Iterable[Option[Any]], given: Mapping[str, str | None], *, besides: Sequence[str] = ()
) -> dict[str, Any]:
    """Every declared option with its value. `besides`: names of further options, which are handled elsewhere.

    Raises `UsageError` for an option that `module` does not have, and for a value that is not of its type.
    """
    known = {option.name: option for option in declared}
    for name in given:
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            if besides:
                have += f", every mount has {', '.join(besides)}"
            raise UsageError(f"module {module} has no option {name}", remedy=have)
    values = {}
    for name, option in known.items():
        if name not in given:
            values[name] = option.default
            continue
        value = given[name]
        if value is None and not option.bare:
            raise UsageError(f"option {name} of module {module} needs a value", remedy=f"{name}={option.metavar}")
        try:
            values[name] = option.parse(value or "")
        except ValueError as error:
            raise UsageError(f"option {name} of module {module}: “{value}” should be {error}") from None
    return values
