"""Running a function in a forked child, which can hang or die alone. The result comes back over a pipe."""

from __future__ import annotations

import os
import select
import time

from viewfs.linux.plain import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["done_apart"]

_PIECE = 1 << 16


def done_apart(
    work: Callable[[int], bytes], *, seconds: float | None = None, most: int = 1 << 20, group: bool = False
) -> bytes:
    """What `work` returns in a child; b"" if it fails, dies, returns more than `most` bytes, or exceeds `seconds`.

    `work` is given the descriptor of the pipe, in case it closes all others. `group`: processes that it starts end with
    it. The child has ended when this returns.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if group:
                os.setsid()
            answer = work(writing)
            while answer:
                answer = answer[os.write(writing, answer) :]
        finally:
            os._exit(0)
    os.close(writing)
    deadline = None if seconds is None else time.monotonic() + seconds
    said = b""
    try:
        while (left := None if deadline is None else max(deadline - time.monotonic(), 0)) is None or left > 0:
            if not select.select([reading], [], [], left)[0]:
                return b""
            piece = os.read(reading, _PIECE)
            if not piece:
                return said
            said += piece
            if len(said) > most:
                return b""
        return b""
    finally:
        os.close(reading)
        try:
            if group:
                os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, or is no group yet
        os.kill(child, signal.SIGKILL)  # nobody has asked after it
        os.waitpid(child, 0)
