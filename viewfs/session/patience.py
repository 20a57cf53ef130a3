"""How long to wait before another server takes over from one that has died."""

from __future__ import annotations

__all__ = ["LIFE_SECONDS", "Patience"]

#: Seconds between two servers of a mount, at least and at most. A server that lives longer than the latter is in order.
_PAUSE_SECONDS, LIFE_SECONDS = 0.1, 10.0
#: After so many deadlines no other server is tried.
_DEADLINES = 10


class Patience:
    """If a server dies soon and has answered nothing, what killed it will kill the next one too: the pauses become
    longer. At the deadline callers have waited long enough, and after ten times as long the mount is given up.
    """

    def __init__(self, deadline: float = 30.0) -> None:
        """`deadline`: seconds for which servers may die without having answered anything before callers get errors."""
        self._deadline = deadline
        self._began, self._answered = 0.0, 0
        #: How many have died without having answered anything.
        self.failures = 0
        self._failing_since: float | None = None

    def begin(self, now: float) -> None:
        """A server begins."""
        self._began = now

    def is_over(self, now: float) -> bool:
        """Has nothing been answered for longer than the deadline?"""
        return self._failing_since is not None and now - self._failing_since > self._deadline

    def seconds(self, now: float, answered: int) -> float | None:
        """Seconds to wait for the next server, now that one has died; None: no other is to be started.

        `answered`: requests that this server and those before it have answered.
        """
        if answered > self._answered or now - self._began > LIFE_SECONDS:
            self._answered, self._failing_since, self.failures = answered, None, 0
            return max(_PAUSE_SECONDS - (now - self._began), 0)
        self.failures += 1
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > self._deadline * _DEADLINES:
            return None
        return min(_PAUSE_SECONDS * 2.0 ** (self.failures - 1), LIFE_SECONDS)
