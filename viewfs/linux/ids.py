"""The numbers of users and groups that this process's user namespace knows (user_namespaces(7))."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["IdRange", "MappedIds", "has_number", "id_ranges", "known_ids", "mapped_ids", "overflow_id"]


#: All ids but -1, which is nobody's.
_EVERYBODY = (1 << 32) - 1


class IdRange:
    """A line of /proc/PID/uid_map: `length` ids from `inside` on are `outside` and so on in the parent."""

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
    """Is it certain that there is somebody of that number? (What stat(2) shows of all others is the overflow id.)"""
    return number in known_ids(kind)


class MappedIds:
    """The ids that a user namespace has a mapping for."""

    def __init__(self, ranges: Iterable[IdRange], without: int | None = None) -> None:
        self._ranges = [range(one.inside, one.inside + one.length) for one in ranges]
        self._without = without

    def __contains__(self, number: object) -> bool:
        return number != self._without and any(number in one for one in self._ranges)


def mapped_ids(kind: str) -> MappedIds:
    """Those of this process's user namespace; `kind` is "uid" or "gid"."""
    return MappedIds(id_ranges(kind))


def known_ids(kind: str) -> MappedIds:
    """The same without the overflow id, unless everybody has a number: of a file that is shown as that one's nobody can
    tell whose it is."""
    overflow = overflow_id(kind)
    return MappedIds(id_ranges(kind), without=overflow)


_overflow_ids: dict[str, int | None] = {}


def overflow_id(kind: str) -> int | None:
    """The "uid" or "gid" of all who have no number in this user namespace; None where everybody has one.

    (user_namespaces(7), “Unmapped user and group IDs”.) Of a process that does not change its namespace afterwards.
    """
    if kind not in _overflow_ids:
        _overflow_ids[kind] = _read_overflow_id(kind)
    return _overflow_ids[kind]


def _read_overflow_id(kind: str) -> int | None:
    if sum(one.length for one in id_ranges(kind)) >= _EVERYBODY:
        return None
    with open(f"/proc/sys/kernel/overflow{kind}") as file:
        return int(file.read())
