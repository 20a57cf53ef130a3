"""Which changes are selected, by shell patterns (glob(7)). Pure.

A pattern without a slash is for a name anywhere; one with a slash (but at its end) for a path from the top of the tree,
where `**` is any number of directories. What is below an excluded directory is excluded too, unless included itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import fsencode

__all__ = ["EVERYTHING", "Filter"]


@dataclass(frozen=True)
class Filter:
    """Everything except what `exclude` matches and `include` does not."""

    exclude: tuple[bytes, ...] = ()
    include: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, exclude: Sequence[str], include: Sequence[str]) -> Filter:
        """If only `include` is given, whatever it does not match is excluded."""
        left_out = exclude or (("*",) if include else ())
        return cls(*(tuple(_from_top(fsencode(one)) for one in patterns) for patterns in (left_out, include)))

    def passes(self, path: bytes) -> bool:
        """Is `path`, relative to the top of its tree, selected?"""
        if not self.exclude or not path:
            return True
        parts = path.split(b"/")
        above = [b"/".join(parts[: count + 1]) for count in range(len(parts))]
        taken_in = any(_matches(self.include, one) for one in above)
        return taken_in or not any(_matches(self.exclude, one) for one in above)

    def may_pass_below(self, path: bytes) -> bool:
        """May something in the directory `path` be selected, though the directory itself is not?"""
        return bool(self.include) or self.passes(path)


def _from_top(pattern: bytes) -> bytes:
    """The form that `_matches` takes: a pattern for paths begins with a slash."""
    path = pattern.removeprefix(b"./").rstrip(b"/")
    return b"/" + path.lstrip(b"/") if b"/" in path or path != pattern.rstrip(b"/") else path


def _matches(patterns: Sequence[bytes], path: bytes) -> bool:
    parts = path.split(b"/")
    return any(
        _fits(pattern[1:].split(b"/"), parts) if pattern[:1] == b"/" else fnmatchcase(parts[-1], pattern)
        for pattern in patterns
    )


def _fits(pattern: list[bytes], parts: list[bytes]) -> bool:
    """Does the pattern match the path, component by component?"""
    if not pattern:
        return not parts
    if pattern[0] == b"**":
        return any(_fits(pattern[1:], parts[count:]) for count in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(pattern[1:], parts[1:])


EVERYTHING = Filter()
