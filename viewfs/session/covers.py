"""A worker's report about a tree that it has covered: facts, and descriptors with names.

The worker (`agent.covering`) makes it. The agent, the stand-by and the supervisor each read the part that they need.
"""

from __future__ import annotations

import os

from viewfs.linux.plain import signal
from viewfs.linux.process import pid_of, pidfd_send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

__all__ = ["CoverReport", "take_servers"]


class CoverReport:
    """One covered tree. The descriptors belong to whoever has the report."""

    def __init__(self, said: dict[str, Any], fds: Iterable[int]) -> None:
        """A report as it came over a channel. Raises ValueError if there are not as many descriptors as names."""
        self._said = said
        self.fds: dict[str, int] = dict(zip(said["descriptors"], fds, strict=True))

    def for_channel(self) -> tuple[dict[str, Any], list[int]]:
        """The arguments of `__init__` that make a report like this one as it is now."""
        return self._said | {"descriptors": list(self.fds)}, list(self.fds.values())

    @property
    def path(self) -> str:
        """The path that the user has named."""
        path: str = self._said["path"]
        return path

    @property
    def roots(self) -> list[str]:
        """Where trees are to be attached."""
        roots: list[str] = self._said["roots"]
        return roots

    @property
    def depths(self) -> list[int]:
        """How many mounts lie on each of `roots`."""
        depths: list[int] = self._said["depths"]
        return depths

    @property
    def points(self) -> list[str]:
        """Every mount point at or below `roots`."""
        points: list[str] = self._said["points"]
        return points

    @property
    def device(self) -> int | None:
        """st_dev of what was covered."""
        device: int | None = self._said["device"]
        return device

    @property
    def messages(self) -> list[str]:
        """What the user is to be told."""
        messages: list[str] = self._said["messages"]
        return messages

    @property
    def is_served(self) -> bool:
        """Has the worker forked servers, whose parent it stays?"""
        return bool(self._said["servers"])

    def layers(self) -> Iterator[tuple[dict[str, Any], int, int, int]]:
        """For each layer: path, lower and backend; descriptors of the lower tree, the layer, what the view shows."""
        for number, row in enumerate(self._said["layers"], 1):
            lower, layer, view = (self.fds[f"{what}{number}"] for what in ("lower", "layer", "view"))
            yield row, lower, layer, view

    def take_trees(self) -> list[tuple[str, int, int]]:
        """For each tree to attach: its root, and descriptors of the tree and the place, which the caller now owns."""
        return [
            (root, self.fds.pop(f"tree{number}"), self.fds.pop(f"place{number}"))
            for number, root in enumerate(self.roots)
        ]

    def take_servers(self) -> set[int]:
        """The pids of the processes that serve the tree; their pidfds are removed and closed."""
        return take_servers(self.fds)

    def end_servers(self) -> None:
        """Kill the processes that serve the tree."""
        for name, fd in self.fds.items():
            if name.startswith("server"):
                pidfd_send_signal(fd, signal.SIGKILL)

    def take_lock(self) -> int | None:
        """The descriptor that holds the lock of the session's layers, if this report brought it."""
        return self.fds.pop("lock", None)

    def close(self) -> None:
        """Close the descriptors; somebody else has copies of them."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


def take_servers(descriptors: dict[str, int]) -> set[int]:
    """The pids of the servers whose pidfds are in `descriptors`; these are removed from it and closed."""
    names = [name for name in descriptors if name.startswith("server")]
    pids = {pid_of(descriptors[name]) for name in names}
    for name in names:
        os.close(descriptors.pop(name))
    return pids
