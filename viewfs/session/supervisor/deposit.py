"""What a supervisor leaves with its stand-by, so that another supervisor can go on where it died.

It is a table, in which a row has a name, a JSON value, and descriptors. After each change of the view the supervisor
sends the rows that have changed. The stand-by keeps the values, and the descriptors open, for the next supervisor,
which it forks.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from viewfs.linux.plain import socket
from viewfs.session.wire import plain_json
from viewfs.session.wire.channel import Channel
from viewfs.session.wire.protocol import MAX_FDS, MAX_FRAME, Message

__all__ = ["LOG_LINES", "Deposit", "Depositor", "Entry", "KeptHappenings", "Row"]

#: How many lines of its log a session keeps.
LOG_LINES = 1000
#: How much of what has happened: so many, and so many bytes of JSON.
_HAPPENINGS, _HAPPENINGS_BYTES = 1000, 1 << 21
#: Seconds that a stand-by may take to read: one that somebody has stopped must not block the supervisor.
_SECONDS = 10.0
#: Bytes of rows in one message, at most, unless one row alone is longer.
_PART = MAX_FRAME // 8


@dataclass(frozen=True)
class Row:
    """One row. It does not own its descriptors."""

    value: Any
    fds: tuple[int, ...] = ()


class Entry(NamedTuple):
    """A row as it is now. `make` is called only if the row has changed: if its `mark` is another than before."""

    name: str
    mark: Any
    make: Callable[[], Row]


class KeptHappenings:
    """The last of what has happened to a session (`happenings`)."""

    def __init__(self) -> None:
        self._entries: deque[tuple[dict[str, Any], int]] = deque()
        self._bytes = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (entry for entry, _size in self._entries)

    def append(self, entry: dict[str, Any]) -> None:
        size = len(plain_json.dumps(entry))
        self._entries.append((entry, size))
        self._bytes += size
        while len(self._entries) > _HAPPENINGS or (self._bytes > _HAPPENINGS_BYTES and len(self._entries) > 1):
            self._bytes -= self._entries.popleft()[1]

    @property
    def last(self) -> int:
        """The number of the last one; 0 if there was none."""
        return int(self._entries[-1][0]["number"]) if self._entries else 0


@dataclass
class Deposit:
    """The stand-by's side."""

    rows: dict[str, Row] = field(default_factory=dict)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    happenings: KeptHappenings = field(default_factory=KeptHappenings)
    #: How often it has changed.
    changes: int = 0
    #: Parts of a change that is not complete yet: put, dropped.
    _parts: list[tuple[dict[str, Row | None], list[str]]] = field(default_factory=list)

    def take(self, message: Message, fds: list[int]) -> None:
        """Take what a `Depositor` has sent. The descriptors are the deposit's from now on."""
        if "log" in message:
            self.log.append(message["log"])
            return
        if "happening" in message:
            self.happenings.append(message["happening"])
            return
        if message.get("sync"):
            return
        left = iter(fds)
        put: dict[str, Row | None] = {}
        for name, value, count in message.get("put", ()):
            if count is None:  # the row keeps the descriptors that it has here
                before = self.rows.get(name)
                put[name] = Row(value, () if before is None else before.fds)
            else:
                put[name] = Row(value, tuple(next(left) for _ in range(count)))
        self._parts.append((put, message.get("drop", [])))
        if not message.get("more"):
            self._apply()

    @property
    def servers(self) -> set[int]:
        """The pids of the processes that serve something (the row “servers”)."""
        return set(self.rows["servers"].value) if "servers" in self.rows else set()

    def _apply(self) -> None:
        """Apply all parts of a change at once."""
        self.changes += 1
        for put, dropped in self._parts:
            for name in dropped:
                _close(self.rows.pop(name, None), None)
            for name, row in put.items():
                assert row is not None
                _close(self.rows.get(name), row)
                self.rows[name] = row
        self._parts.clear()

    def forget_part(self) -> None:
        """Drop a change whose sender died before it was complete."""
        for put, _dropped in self._parts:
            for name, row in put.items():
                _close(row, self.rows.get(name))
        self._parts.clear()

    def close(self) -> None:
        """Close all descriptors."""
        self.forget_part()
        for row in self.rows.values():
            _close(row, None)
        self.rows = {name: Row(row.value) for name, row in self.rows.items()}


def _close(row: Row | None, kept: Row | None) -> None:
    """Close the descriptors of `row` that `kept` does not have."""
    for fd in set(row.fds if row else ()) - set(kept.fds if kept else ()):
        os.close(fd)


class Depositor:
    """The supervisor's side."""

    def __init__(self, sock: socket.socket, rows: Mapping[str, Row]) -> None:
        """`rows`: what the stand-by has already."""
        self._channel = Channel(sock)
        sock.settimeout(_SECONDS)
        #: Name → mark and descriptors of each row that the stand-by has.
        self._known: dict[str, tuple[Any, tuple[int, ...]]] = {name: (None, row.fds) for name, row in rows.items()}
        self._is_gone = False

    def fileno(self) -> int:
        return self._channel.fileno()

    def put(self, entries: Iterable[Entry]) -> None:
        """Have the stand-by keep these, and no others."""
        changed: list[tuple[str, Row, int | None]] = []
        now: dict[str, tuple[Any, tuple[int, ...]]] = {}
        for name, mark, make in entries:
            before = self._known.get(name)
            if before is not None and (before[0] is mark or before[0] == mark):
                now[name] = before
                continue
            row = make()
            now[name] = mark, row.fds
            # (A descriptor number may be used for another file later, but not in the same row.)
            has_fds = before is not None and before[1] == row.fds
            changed.append((name, row, None if has_fds else len(row.fds)))
        dropped = [name for name in self._known if name not in now]
        self._known = now
        if changed or dropped:
            self._send_in_parts(changed, dropped)

    def _send_in_parts(self, changed: list[tuple[str, Row, int | None]], dropped: list[str]) -> None:
        part: list[tuple[str, Any, int | None]] = []
        fds: list[int] = []
        size = 0
        for name, row, count in changed:
            length = len(name) + len(plain_json.dumps(row.value))
            if part and (len(fds) + (count or 0) > MAX_FDS or size + length > _PART):
                self._send({"put": part, "more": True}, fds)
                part, fds, size = [], [], 0
            part.append((name, row.value, count))
            fds += row.fds if count else ()
            size += length
        self._send({"put": part, "drop": dropped}, fds)

    def log(self, line: str) -> None:
        """Send a line of the log, so that the next supervisor has it too."""
        self._send({"log": line})

    def happening(self, entry: dict[str, Any]) -> None:
        """The same of something that has happened."""
        self._send({"happening": entry})

    def let_go(self) -> None:
        """The session ends: have the stand-by close all of it, and wait until it has."""
        self._ask({"let_go": True})

    def sync(self) -> None:
        """Wait until the stand-by has taken, and told others of, all that it was sent."""
        self._ask({"sync": True})

    def _ask(self, message: Message) -> None:
        self._send(message)
        if not self._is_gone:
            try:
                self._channel.receive()
            except OSError:
                pass

    def _send(self, message: Message, fds: list[int] | None = None) -> None:
        """Send to the stand-by. If that is gone, or stopped, the supervisor goes on without it."""
        if not self._is_gone:
            try:
                self._channel.send(message, fds)
            except OSError:
                self._is_gone = True
