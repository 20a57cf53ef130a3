"""Having something done by a forked child, which can hang or die alone, and hearing of it by a pipe."""

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
    """What `work` returns, which a child does; b"" where it fails, dies, says too much, or takes longer than `seconds`.

    `work` is given the descriptor that its answer goes to, in case it closes all others. `group`: what it starts ends
    with it. The child has ended when this returns.
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
            else:
                os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(child, 0)
