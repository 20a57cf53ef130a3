"""What hangs is ended where it hangs. No test judges how long something takes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

#: Far more than anything takes on a machine that is busy.
HANGING = 120


@contextmanager
def not_hanging(seconds: int = HANGING) -> Iterator[None]:
    """In the main thread."""

    def hangs(_number: int, _frame: object) -> None:
        raise AssertionError(f"it has taken {seconds} seconds")

    handler = signal.signal(signal.SIGALRM, hangs)
    outer = signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(outer)
        signal.signal(signal.SIGALRM, handler)
