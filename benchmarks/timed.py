"""Run one measurement in a child of its own, with a deadline, and say how long it took and what it cost."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Timed", "TimedOut", "timed"]


class TimedOut(Exception):
    """The measurement took longer than it may."""


@dataclass(frozen=True)
class Timed:
    """What a measurement said of itself, and the processor time of its process and those that it waited for."""

    seconds: float
    reader_cpu: float


def timed(function: Callable[[], float], timeout: float) -> Timed:
    """Call it in a child. Raises TimedOut, or RuntimeError with what went wrong."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(receive)
        os.write(send, _outcome(function))
        os._exit(0)
    os.close(send)
    try:
        if not select.select([receive], [], [], timeout)[0]:
            raise TimedOut
        answer = os.read(receive, 4096)
    finally:
        os.close(receive)
        usage = _end(child)
    outcome = json.loads(answer or '{"error": "the measuring process died"}')
    if "error" in outcome:
        raise RuntimeError(outcome["error"])
    return Timed(outcome["seconds"], usage)


def _outcome(function: Callable[[], float]) -> bytes:
    try:
        return json.dumps({"seconds": function()}).encode()
    except BaseException as error:
        return json.dumps({"error": _describe(error)}).encode()


def _describe(error: BaseException) -> str:
    """In a line that fits into a pipe."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return (text or type(error).__name__)[-500:]


def _end(child: int) -> float:
    """Wait for the child, after killing it and its like if it still works; the processor seconds that it used."""
    done, _status, usage = os.wait4(child, os.WNOHANG)
    if not done:
        try:
            # It is the leader of its group. When it has answered it is about to leave, and this does no harm.
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _done, _status, usage = os.wait4(child, 0)
    return usage.ru_utime + usage.ru_stime
