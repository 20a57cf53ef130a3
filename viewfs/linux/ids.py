"""The numbers of users and groups that this process's user namespace knows (user_namespaces(7))."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["IdRange", "MappedIds", "has_number", "id_ranges", "known_ids", "mapped_ids", "overflow_id"]


#: All ids but -1, which is nobody's.
_EVERYBODY = (1 << 32) - 1


class IdRange:
    """A line of /proc/PID/uid_map: the `length` ids from `inside` on are those from `outside` on in the parent."""

    def __init__(self, inside: int, outside: int, length: int) -> None:
        self.inside = inside
        self.outside = outside
        self.length = length

    def __iter__(self) -> Iterator[int]:
        """The three numbers, as the kernel and newuidmap(1) take them."""
        return iter((self.inside, self.outside, self.length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdRange) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def id_ranges(kind: str) -> list[IdRange]:
    """The map of this process's user namespace; `kind` is "uid" or "gid"."""
    with open(f"/proc/self/{kind}_map") as file:
        text = file.read()
    return [IdRange(*map(int, line.split())) for line in text.splitlines()]


def has_number(kind: str, number: int) -> bool:
    """Is that id certainly mapped? (stat(2) shows the overflow id for all ids that are not.)"""
    return number in known_ids(kind)


class MappedIds:
    """The ids that a user namespace has a mapping for."""

    def __init__(self, ranges: Iterable[IdRange], without: int | None = None) -> None:
        self._ranges = [range(one.inside, one.inside + one.length) for one in ranges]
        self._without = without

    def __contains__(self, number: object) -> bool:
        return number != self._without and any(number in one for one in self._ranges)


def mapped_ids(kind: str) -> MappedIds:
    """The ids that this process's user namespace maps; `kind` is "uid" or "gid"."""
    return MappedIds(id_ranges(kind))


def known_ids(kind: str) -> MappedIds:
    """As `mapped_ids`, without the overflow id unless all ids are mapped: the owner of a file that is shown with the
    overflow id is not known."""
    overflow = overflow_id(kind)
    return MappedIds(id_ranges(kind), without=overflow)


_overflow_ids: dict[str, int | None] = {}


def overflow_id(kind: str) -> int | None:
    """The "uid" or "gid" that stands for all unmapped ids in this user namespace; None if all are mapped.

    (user_namespaces(7), “Unmapped user and group IDs”.) It is read once, so the process must not change its namespace
    afterwards.
    """
    if kind not in _overflow_ids:
        _overflow_ids[kind] = _read_overflow_id(kind)
    return _overflow_ids[kind]


def _read_overflow_id(kind: str) -> int | None:
    if sum(one.length for one in id_ranges(kind)) >= _EVERYBODY:
        return None
    with open(f"/proc/sys/kernel/overflow{kind}") as file:
        return int(file.read())
