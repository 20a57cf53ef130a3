"""Which content each file may have after a power cut: what was announced, from what was promised last on.

A *space* is a place where files are seen: the tree outside, the view, a state that was kept. For each path of a space
there is a sequence of versions. Announcing one allows it; promising the newest forbids all before. Both are marks in
the log of the disks, so that for every moment it is known what holds.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ABSENT", "ANYTHING", "Described", "Promises", "describe_file", "directory", "regular"]

#: What a path is, in short: kind, mode, size and digest.
Described = str
ABSENT: Described = "absent"
#: Programs of the view that sync nothing may find anything.
ANYTHING: Described = "anything"


def regular(content: bytes, mode: int = 0o644) -> Described:
    """A file with this content."""
    return describe(stat.S_IFREG | mode, content)


def directory(mode: int = 0o755) -> Described:
    return describe(stat.S_IFDIR | mode, b"")


def describe_file(path: Path) -> Described:
    return describe(path.stat().st_mode, path.read_bytes())


def describe(mode: int, content: bytes) -> Described:
    """As `guest.describe` does it in the view."""
    if stat.S_ISDIR(mode):
        return f"{stat.filemode(mode)}"
    digest = hashlib.sha256(content).hexdigest()[:12] if content.strip(b"\0") else "zeros"
    return f"{stat.filemode(mode)} {len(content)} bytes {digest}"


@dataclass
class _History:
    #: Each with the number of the mark at which it was announced.
    versions: list[tuple[int, Described]]
    #: (mark, version) of each promise.
    kept: list[tuple[int, int]] = field(default_factory=list)

    def allowed(self, mark: int) -> list[Described]:
        first = max((version for at, version in self.kept if at <= mark), default=0)
        return [one for at, one in self.versions[first:] if at <= mark]


@dataclass(frozen=True)
class _Commit:
    """All of it or nothing."""

    mark: int
    old: Mapping[str, Described]
    new: Mapping[str, Described]


class Promises:
    """Everything that was announced and promised."""

    def __init__(self, mark: Callable[[str], int]) -> None:
        """`mark` puts a text into the log and returns its number."""
        self._mark = mark
        self._spaces: dict[str, dict[str, _History]] = {}
        self._commits: list[_Commit] = []
        self._never_lost: list[tuple[str, tuple[str, ...], tuple[Described, ...]]] = []
        #: Marks after which a space can be had for certain.
        self._there: dict[str, int] = {}

    def begin(self, space: str, content: Mapping[str, Described]) -> None:
        """All that is in `space`, from now on and for certain."""
        mark = self._mark(f"{space} is there")
        self._spaces[space] = {path: _History([(mark, one)]) for path, one in content.items()}
        self._there[space] = mark

    def newest(self, space: str) -> dict[str, Described]:
        """What is there now, if the power stays."""
        return {path: history.versions[-1][1] for path, history in self._spaces[space].items()}

    def will(self, space: str, path: str, *versions: Described, since: int | None = None) -> int:
        """It is going to be each of `versions`, one after the other, or has been `since` a mark; that mark."""
        mark = self._mark(f"{space}: {path} is going to be changed") if since is None else since
        history = self._spaces[space].setdefault(path, _History([(-1, ABSENT)]))
        history.versions += [(mark, one) for one in versions]
        return mark

    def keep(self, space: str, *paths: str) -> None:
        """What was announced of `paths` last is what it stays."""
        mark = self._mark(f"{space}: {', '.join(paths)} is durable")
        for path in paths:
            history = self._spaces[space][path]
            history.kept.append((mark, len(history.versions) - 1))

    def never_lost(self, space: str, paths: Sequence[str], *contents: Described) -> None:
        """One of `paths` has one of `contents` at any moment."""
        self._never_lost.append((space, tuple(paths), contents))

    def commit(self, space: str, new: Mapping[str, Described]) -> None:
        """All of `new` is going to be there, or nothing of it."""
        old = {path: one for path, one in self.newest(space).items() if path in new}
        for path, one in new.items():
            self.will(space, path, one)
        self._commits.append(_Commit(self._mark(f"{space}: a commit"), old, dict(new)))

    def finished(self, found: Mapping[str, Described], mark: int) -> Mapping[str, Described]:
        """What the newest commit had to do outside, if all of it is `found` there."""
        for commit in reversed(self._commits):
            if commit.mark <= mark:
                done = all(found.get(path, ABSENT) == one for path, one in commit.new.items())
                return commit.new if done else {}
        return {}

    def allowed(self, space: str, path: str, mark: int) -> list[Described]:
        """What `path` may be."""
        history = self._spaces[space].get(path)
        return [ABSENT] if history is None else history.allowed(mark)

    def is_there(self, space: str, mark: int) -> bool:
        return self._there.get(space, mark + 1) <= mark

    def spaces(self) -> Iterable[str]:
        return self._spaces

    def broken(self, space: str, found: Mapping[str, Described], mark: int) -> list[str]:
        """What of `found` is against a promise that holds after `mark` marks."""
        said = []
        histories = self._spaces[space]
        for path in sorted({*found, *histories}):
            here = found.get(path, ABSENT)
            allowed = histories[path].allowed(mark) if path in histories else []
            if here not in (allowed or [ABSENT]) and ANYTHING not in allowed:
                wanted = " or ".join(dict.fromkeys(allowed)) or ABSENT
                said.append(f"{space}: {path} is {here}, and not {wanted}")
        for where, paths, contents in self._never_lost:
            if where == space and not any(found.get(path) in contents for path in paths):
                said.append(f"{space}: none of {', '.join(paths)} has its content")
        for commit in self._commits:
            if space != "outside" or mark < commit.mark:
                continue
            new = {path for path, one in commit.new.items() if found.get(path, ABSENT) == one}
            old = {path for path in commit.new if found.get(path, ABSENT) == commit.old.get(path, ABSENT)}
            if len(new) < len(commit.new) and len(old) < len(commit.new) and commit is self._commits[-1]:
                said.append(f"{space}: of a commit {sorted(new - old)} were done and {sorted(old - new)} were not")
        return said
