"""Asking groups whether something may happen, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from viewfs.errors import os_error
from viewfs.linux.fanotify import Event
from viewfs.modules.calls.fanotify.groups import Group, Happening

__all__ = ["ask"]


async def ask(questions: Iterable[tuple[Group, Event]], happening: Happening, hold: Callable[[], int]) -> None:
    """Wait until all have allowed it. Raises OSError if one has not."""
    for group, event in questions:
        if group.is_closed:
            continue
        answered = trio.Event()
        result = [0]

        def answer(number: int, answered: trio.Event = answered, result: list[int] = result) -> None:
            result[0] = number
            answered.set()

        queued = group.ask(happening, event, hold, answer)
        if queued is None:
            continue
        try:
            await answered.wait()
        except trio.Cancelled:
            group.withdraw(queued)
            raise
        if result[0]:
            raise os_error(result[0])
