"""Waiting for a worker's answer, and for no longer than there is reason to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import trio

from viewfs.errors import ViewfsError
from viewfs.session.supervisor.agent_link import Child, WorkerProcess
from viewfs.session.supervisor.served import ServedMount

__all__ = ["answering", "ended_first", "while_alive"]


@contextlib.contextmanager
def answering(doing: str, seconds: float, remedy: str) -> Iterator[None]:
    """Wait in the block for at most `seconds`. Raises `ViewfsError`."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise ViewfsError(f"{doing}: no answer after {seconds} seconds", remedy=remedy) from None


@contextlib.asynccontextmanager
async def ended_first(worker: WorkerProcess, served: ServedMount) -> AsyncIterator[None]:
    """If the block is left by an exception, end the server, so that nobody waits for it any more."""
    try:
        yield
    except BaseException:
        worker.child.kill()
        served.release()
        raise


@contextlib.asynccontextmanager
async def while_alive(server: Child, doing: str) -> AsyncIterator[None]:
    """Wait in the block for something that comes from `server`. Raises `ViewfsError` when that process ends."""
    with trio.CancelScope() as scope, server.when_ended(scope.cancel):
        yield
    if scope.cancelled_caught:
        raise ViewfsError(f"{doing}: its server ended ({server.how_it_ended})", remedy="see `viewfs log`")
