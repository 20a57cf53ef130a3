"""The requests of file systems that have a coroutine for each kind, as those that are written for pyfuse3."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Any

from viewfs.mounts.fuse.counters import Row
from viewfs.mounts.fuse.protocol import Opcode

__all__ = ["counted"]


def counted(row: Row, operations: Any) -> Any:
    """`operations`, with its coroutines counted that have an opcode's name; and since when the oldest of them has not
    answered. They run in one thread."""
    return _Counted(row, operations)


class _Counted:
    def __init__(self, row: Row, operations: Any) -> None:
        self._row = row
        self._operations = operations
        self._begun: dict[object, int] = {}  # the oldest first

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._operations, name)
        opcode = Opcode.__members__.get(name.upper())
        if opcode is None or not inspect.iscoroutinefunction(value):
            return value
        handler = functools.partial(self._handle, value, opcode)
        setattr(self, name, handler)
        return handler

    async def _handle(self, handler: Callable[..., Awaitable[Any]], opcode: int, *arguments: Any) -> Any:
        mark, begun = object(), perf_counter_ns()
        self._begun[mark] = begun
        self._note_oldest()
        failed, length = True, 0
        try:
            answer = await handler(*arguments)
            failed, length = False, len(answer) if isinstance(answer, bytes) else 0
            return answer
        finally:
            del self._begun[mark]
            self._note_oldest()
            self._row.count(opcode, length, failed=failed)
            self._row.count_latency(opcode, perf_counter_ns() - begun)

    def _note_oldest(self) -> None:
        self._row.begin(next(iter(self._begun.values()), 0))
