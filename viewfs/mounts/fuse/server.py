"""One /dev/fuse descriptor: reading requests, having them answered, and writing the answers.

`OSError` becomes its errno. Any other exception is logged with its traceback and becomes EIO for that one request
(MemoryError: ENOMEM). A mount ends by being unmounted, never by an exception. Requests whose answer is a promise
have a task and a cancel scope each, so that FUSE_INTERRUPT can end them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
from collections.abc import Awaitable, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol, cast

from viewfs.errors import os_error
from viewfs.modules.api import Answer, CacheCounts
from viewfs.mounts.fuse.answers import Body
from viewfs.mounts.fuse.counters import Row
from viewfs.mounts.fuse.protocol import (
    HEADER_SIZE,
    Opcode,
    Request,
    decode,
    encode_error,
    encode_reply_header,
    unique_of,
)
from viewfs.mounts.fuse.transmit import Transmitter, length_of

if TYPE_CHECKING:
    import trio

__all__ = ["Dispatcher", "Server"]

log = logging.getLogger("viewfs.fuse")

#: errno of read(2) on /dev/fuse that mean: that request was taken back, read the next one.
_TRY_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
_MAX_ERRNO = 511
#: Bytes of the longest request that brings no data: names.
_WITHOUT_DATA = 64 << 10


class Dispatcher(Protocol):
    """What answers requests: the operations of a file system, or of devices."""

    @property
    def buffer_size(self) -> int:
        """How many bytes the longest request can have."""

    @property
    def takes_writes(self) -> bool:
        """Can requests bring data?"""

    @property
    def caches(self) -> Sequence[CacheCounts]:
        """What counts hits and misses."""

    def dispatch(self, request: Request) -> Answer[Body]:
        """The body of the reply, or a promise of it. Raises OSError with the errno to reply with."""


class Server:
    """Reads requests, one at a time, and answers them."""

    #: What a call gets that is cancelled.
    cancelled = errno.EINTR

    def __init__(self, operations: Dispatcher, fd: int, counters: Row) -> None:
        self.operations = operations
        self.fd = fd
        self._counters = counters
        self._transmitter = Transmitter(fd)
        size = self.operations.buffer_size
        self._buffer = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        # What requests take is touched now: if the server is killed while the kernel gets pages for a request, that one
        # fails with EIO, and is not sent again. The rest takes no memory until it is needed, if ever.
        for place in range(0, size if self.operations.takes_writes else min(size, _WITHOUT_DATA), mmap.PAGESIZE):
            self._buffer[place] = 0
        self.waiting: dict[int, trio.CancelScope] = {}

    def close(self) -> None:
        self._transmitter.close()

    def receive(self) -> Request | None:
        """The next request; None when the file system is unmounted. Raises `BlockingIOError` where it would wait."""
        while True:
            try:
                size = os.readv(self.fd, [self._buffer])
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
                return decode(self._buffer[:size])
            except ValueError:
                log.exception("an unintelligible request")
                with contextlib.suppress(OSError):  # its number may be nonsense too
                    os.writev(self.fd, [encode_error(unique_of(self._buffer), errno.EIO)])

    def start(self, request: Request) -> Awaitable[Body] | None:
        """Answer the request, or return the promise that will."""
        begun = perf_counter_ns()
        self._counters.begin(begun)
        try:
            answer = self.operations.dispatch(request)
            if hasattr(answer, "__await__"):
                return cast(Awaitable[Body], answer)
            self._reply(request, answer, begun)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # (no terminal sends a server signals)
            self._reply_error(request, error)
        finally:
            self._counters.begin(0)
        return None

    def _reply(self, request: Request, body: Body, begun: int) -> None:
        # Counted first: whoever has got the answer finds it counted.
        counters = self._counters
        if body is None:
            counters.count(request.opcode, 0, failed=False)
            return
        try:
            if isinstance(body, bytes):
                counters.count(request.opcode, len(body), failed=False)
                os.writev(self.fd, (encode_reply_header(request.unique, len(body)), body))
            else:
                length = length_of(body)
                counters.count(request.opcode, length, failed=False)
                counters.note_caches(self.operations.caches)
                self._transmitter.send(encode_reply_header(request.unique, length), body)
        except OSError as error:
            if not self._is_gone(error):
                if error.errno != errno.EIO:  # that is the source's fault
                    log.error("a reply to %s was refused: %s", _name_of(request.opcode), error)
                counters.count_error()
                self._send_error(request, errno.EIO)
        counters.count_latency(request.opcode, perf_counter_ns() - begun)

    def _reply_error(self, request: Request, error: BaseException) -> None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None or not 0 < number <= _MAX_ERRNO:
            number = errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO
            log.error("request %s failed", _name_of(request.opcode), exc_info=error)
        self._counters.count(request.opcode, 0, failed=True)
        if request.opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
            self._send_error(request, number)

    def _send_error(self, request: Request, number: int) -> None:
        try:
            os.write(self.fd, encode_error(request.unique, number))
        except OSError as error:
            if not self._is_gone(error):
                log.error("a reply to %s was refused: %s", _name_of(request.opcode), error)

    @staticmethod
    def _is_gone(error: OSError) -> bool:
        """ENOENT: the caller has gone away and with it the request; ENODEV: so has the mount."""
        return error.errno in (errno.ENOENT, errno.ENODEV)

    def handle(self, request: Request, nursery: trio.Nursery) -> None:
        """Answer a request, at once or by a task in `nursery`; or end the task that an interrupt is for."""
        if request.opcode == Opcode.INTERRUPT:
            self._interrupt(request)
            return
        promise = self.start(request)
        if promise is not None:
            self.start_waiting(nursery, request, promise)

    def _interrupt(self, request: Request) -> None:
        scope = self.waiting.get(request.fields[0])
        if scope is not None:
            scope.cancel()
        # An interrupt for what is answered already, or not yet read, needs no reply
        # (Documentation/filesystems/fuse.rst).

    def start_waiting(self, nursery: trio.Nursery, request: Request, promise: Awaitable[Body]) -> None:
        import trio

        # Known before its task runs: an interrupt may be the next thing that the kernel has, and it is not sent again.
        scope = self.waiting[request.unique] = trio.CancelScope()
        nursery.start_soon(self._keep_promise, request, promise, scope)

    async def _keep_promise(self, request: Request, promise: Awaitable[Body], scope: trio.CancelScope) -> None:
        with scope:
            try:
                begun = perf_counter_ns()
                self._reply(request, await promise, begun)
            except (Exception, SystemExit) as error:
                self._reply_error(request, error)
            finally:
                self.waiting.pop(request.unique, None)
        if scope.cancelled_caught:
            self._reply_error(request, os_error(self.cancelled))


def _name_of(opcode: int) -> str:
    return Opcode(opcode).name if opcode in Opcode._value2member_map_ else f"opcode {opcode}"
