"""Serving one /dev/fuse descriptor.

Two loops serve the same `Operations`. As long as every answer is at hand, as those of an image are, a plain blocking
loop
gives them: one read(2), one writev(2), no event loop between. The first method that turns out to be `async` moves the
server
to trio for good, where each request that waits has a task and a cancel scope of its own, so that FUSE_INTERRUPT can
end it.

Around every request stands a guard: `OSError` becomes its errno; anything else is logged with its traceback and
becomes EIO for that
one request. A mount ends by being unmounted, never by an exception.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from viewfs.modules.api import FileSystem
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.operations import Operations
from viewfs.mounts.fuse.protocol import (
    HEADER_SIZE,
    Opcode,
    Request,
    decode,
    encode_error,
    encode_reply_header,
    unique_of,
)

if TYPE_CHECKING:
    import trio

__all__ = ["serve"]

log = logging.getLogger("viewfs.fuse")

#: errno of read(2) on /dev/fuse that mean: that request was taken back, read the next one.
_TRY_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
_MAX_ERRNO = 511


def serve(file_system: FileSystem, fd: int, counters: Counters) -> None:
    """Answer the kernel over `fd` until the file system is unmounted everywhere."""
    server = _Server(file_system, fd, counters)
    try:
        first = server.serve_blocking()
        if first is not None:
            import trio

            os.set_blocking(fd, False)
            trio.run(server.serve_trio, *first)
    finally:
        file_system.close()


class _Server:
    def __init__(self, file_system: FileSystem, fd: int, counters: Counters) -> None:
        self._operations = Operations(file_system)
        self._fd = fd
        self._counters = counters
        self._buffer = bytearray(self._operations.buffer_size)
        self._view = memoryview(self._buffer)
        self._waiting: dict[int, trio.CancelScope] = {}

    def _receive(self) -> Request | None:
        """The next request; None when the file system is unmounted. Raises `BlockingIOError` where it would wait."""
        while True:
            try:
                size = os.readv(self._fd, [self._buffer])
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno in _TRY_AGAIN:
                    continue
                if error.errno == errno.ENODEV:
                    return None
                raise
            if size < HEADER_SIZE:
                return None
            try:
                return decode(self._view[:size])
            except ValueError:
                log.exception("an unintelligible request")
                with contextlib.suppress(OSError):  # its number may be nonsense too
                    os.writev(self._fd, [encode_error(unique_of(self._view), errno.EIO)])

    def _start(self, request: Request) -> Awaitable[bytes | None] | None:
        """Answer the request, or return the promise that will."""
        try:
            answer = self._operations.dispatch(request)
            if isinstance(answer, Awaitable):
                return answer
            self._reply(request, answer)
        except (Exception, SystemExit) as error:
            self._reply_error(request, error)
        return None

    def _reply(self, request: Request, body: bytes | None) -> None:
        if body is None:
            self._counters.count(request.opcode, 0, failed=False)
            return
        # Counted first: whoever has got the answer finds it counted.
        self._counters.count(request.opcode, len(body), failed=False)
        self._send(request, [encode_reply_header(request.unique, len(body)), body])

    def _reply_error(self, request: Request, error: BaseException) -> None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None or not 0 < number <= _MAX_ERRNO:
            number = errno.EIO
            log.error("request %s failed", _name_of(request.opcode), exc_info=error)
        self._counters.count(request.opcode, 0, failed=True)
        if request.opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
            self._send(request, [encode_error(request.unique, number)])

    def _send(self, request: Request, parts: list[bytes]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: the caller has gone away and with it the request; ENODEV: so has the mount.
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return
            log.error("a reply to %s was refused: %s", _name_of(request.opcode), error)
            if len(parts) > 1:
                self._send(request, [encode_error(request.unique, errno.EIO)])

    def serve_blocking(self) -> tuple[Request, Awaitable[bytes | None]] | None:
        """Serve until the end (None), or until a request's answer is a promise (both are returned)."""
        while (request := self._receive()) is not None:
            if request.opcode == Opcode.INTERRUPT:
                continue  # nothing here takes long enough to be interrupted
            promise = self._start(request)
            if promise is not None:
                return request, promise
        return None

    async def serve_trio(self, first: Request, its_promise: Awaitable[bytes | None]) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            self._start_waiting(nursery, first, its_promise)
            while True:
                try:
                    request = self._receive()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._fd)
                    continue
                if request is None:
                    break
                if request.opcode == Opcode.INTERRUPT:
                    self._interrupt(request)
                    continue
                promise = self._start(request)
                if promise is not None:
                    self._start_waiting(nursery, request, promise)
                elif self._waiting:
                    await trio.lowlevel.checkpoint()  # a steady stream of requests must not starve those that wait
            nursery.cancel_scope.cancel()

    def _interrupt(self, request: Request) -> None:
        scope = self._waiting.get(request.fields[0])
        if scope is not None:
            scope.cancel()
        # An interrupt for what is answered already, or not yet read, needs no reply
        # (Documentation/filesystems/fuse.rst).

    def _start_waiting(self, nursery: trio.Nursery, request: Request, promise: Awaitable[bytes | None]) -> None:
        import trio

        # Known before its task runs: an interrupt may be the next thing that the kernel has, and it is not sent again.
        scope = self._waiting[request.unique] = trio.CancelScope()
        nursery.start_soon(self._keep_promise, request, promise, scope)

    async def _keep_promise(self, request: Request, promise: Awaitable[bytes | None], scope: trio.CancelScope) -> None:
        with scope:
            try:
                self._reply(request, await promise)
            except (Exception, SystemExit) as error:
                self._reply_error(request, error)
            finally:
                self._waiting.pop(request.unique, None)
        if scope.cancelled_caught:
            self._reply_error(request, InterruptedError(errno.EINTR, os.strerror(errno.EINTR)))


def _name_of(opcode: int) -> str:
    return Opcode(opcode).name if opcode in Opcode._value2member_map_ else f"opcode {opcode}"
