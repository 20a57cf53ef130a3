"""What has happened to a session, and what its programs have told each other: the last of it, numbered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import trio

from viewfs.epochs import Change
from viewfs.errors import UsageError
from viewfs.session.supervisor.deposit import KeptHappenings

__all__ = ["MESSAGE_MOST", "Happenings", "checked_message"]

#: Bytes of JSON in one message, and of its name.
MESSAGE_MOST, _NAME_MOST = 1 << 16, 255


class Happenings:
    """Those of one supervisor, which leaves them with the stand-by."""

    def __init__(self, kept: KeptHappenings, deposit: Callable[[dict[str, Any]], None]) -> None:
        self._kept = kept
        self._deposit = deposit
        self._come = trio.Event()
        self._epoch = max((entry["epoch"] for entry in kept if "epoch" in entry), default=-1)

    def add(self, kind: str, /, *, time_ns: int | None = None, **facts: Any) -> int:
        """Something has happened: its number."""
        entry = {"number": self._kept.last + 1, "time_ns": time_ns or time.time_ns(), "kind": kind, **facts}
        self._kept.append(entry)
        self._deposit(entry)
        self._come.set()
        self._come = trio.Event()
        return self._kept.last

    def add_changes(self, changes: Iterable[Change]) -> None:
        """The changes of a view, of which some may be known."""
        for change in changes:
            if change.epoch > self._epoch:
                self._epoch = change.epoch
                facts = {"epoch": change.epoch, "path": change.path, "module": change.type, "source": change.source}
                self.add(change.operation, time_ns=change.time_ns, **facts)

    async def after(self, number: int, *, wait: bool) -> list[dict[str, Any]]:
        """Those after `number`; `wait`: until there is one."""
        while True:
            found = [entry for entry in self._kept if entry["number"] > number]
            if found or not wait:
                return found
            await self._come.wait()


def checked_message(name: Any, value: Any) -> None:
    """Raises `UsageError` for what can't be published."""
    if not isinstance(name, str) or not name or len(name.encode()) > _NAME_MOST or not name.isprintable():
        raise UsageError(f"a message has a name of 1 to {_NAME_MOST} printable bytes")
    if len(json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")) > MESSAGE_MOST:
        raise UsageError(f"the message {name} is longer than {MESSAGE_MOST} bytes of JSON")
