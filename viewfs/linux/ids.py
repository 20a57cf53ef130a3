"""The numbers of users and groups that this process's user namespace knows (user_namespaces(7))."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

__all__ = ["mapped_ids", "overflow_id"]


def mapped_ids(kind: str) -> frozenset[int]:
    """The ids that this process's user namespace has a mapping for; `kind` is "uid" or "gid".

    A map that covers more than 65,536 ids (the initial namespace's covers all) is cut off there.
    """
    ids: set[int] = set()
    with open(f"/proc/self/{kind}_map") as table:
        for line in table:
            inside, _outside, count = map(int, line.split())
            ids.update(range(inside, inside + min(count, 65536)))
    return frozenset(ids)


@lru_cache
def overflow_id(kind: str) -> int | None:
    """The "uid" or "gid" of all who have no number in this user namespace; None where everybody has one.

    (user_namespaces(7), “Unmapped user and group IDs”.) Of a process that does not change its namespace afterwards.
    """
    number = int(Path(f"/proc/sys/kernel/overflow{kind}").read_text())
    return None if number in mapped_ids(kind) else number
