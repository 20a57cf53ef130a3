"""Serving one /dev/fuse descriptor.

Three loops serve the same `Operations`. As long as every answer is at hand, as those of an image are, a plain blocking
loop gives them: one read(2), one write, no event loop between. A file system that any thread may ask gets several such
loops, so that one answers while another decompresses or copies, and one thread more that sends ahead what will be asked
for (`ahead`). And the first method that turns out to be `async` moves the server to trio for good, where each request
that waits has a task and a cancel scope of its own, so that FUSE_INTERRUPT can end it.

Around every request stands a guard: `OSError` becomes its errno; anything else is logged with its traceback and becomes
EIO for that one request. A mount ends by being unmounted, never by an exception.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import sys
import threading
from collections.abc import Awaitable
from time import perf_counter_ns
from typing import TYPE_CHECKING, cast

from viewfs.modules.api import FileSystem
from viewfs.mounts.fuse.ahead import Ahead
from viewfs.mounts.fuse.counters import MAX_ROWS, Counters, Row
from viewfs.mounts.fuse.operations import Body, Operations
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

__all__ = ["serve"]

log = logging.getLogger("viewfs.fuse")

#: errno of read(2) on /dev/fuse that mean: that request was taken back, read the next one.
_TRY_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
_MAX_ERRNO = 511


#: Threads that answer, at most: more than there are processors only get into each other's way.
_MAX_THREADS = MAX_ROWS - 1
#: How long one thread may keep the interpreter while another one waits for it, seconds. Python's own 5 ms is as long as
#: a hundred requests take.
_SWITCH_SECONDS = 0.0005
#: Objects made and not freed, after which Python looks for cycles of them. Answering makes none, and looking takes long
#: where a cache is full.
_GARBAGE = 100_000


def serve(file_system: FileSystem, fd: int, counters: Counters) -> None:
    """Answer the kernel over `fd` until the file system is unmounted everywhere."""
    try:
        if file_system.immutable and file_system.concurrent:
            _serve_with_threads(file_system, fd, counters)
        else:
            _serve_alone(file_system, fd, counters)
    finally:
        file_system.close()


def _serve_alone(file_system: FileSystem, fd: int, counters: Counters) -> None:
    server = _Server(Operations(file_system), fd, counters.rows[0])
    try:
        first = server.serve_blocking()
        if first is not None:
            import trio

            os.set_blocking(fd, False)
            trio.run(server.serve_trio, *first)
    finally:
        server.close()


class _Lead:
    """The right to read the next request, which one thread has at a time.

    Whoever has it answers what it reads, and reads on; so one thread answers all that is quick, and stays on one
    processor with all it needs in that one's caches. Before what takes longer, as decompressing does, it is passed on.
    (Copying does not: a reader waits for 128 KiB at a time, which takes as long as waking another thread.)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leader = 0

    def take(self) -> None:
        """Wait for it, if this thread has it not."""
        me = threading.get_ident()
        if self._leader != me:
            self._lock.acquire()
            self._leader = me

    def give(self) -> None:
        """Pass it on, if this thread has it."""
        if self._leader == threading.get_ident():
            self._leader = 0
            self._lock.release()


def _serve_with_threads(file_system: FileSystem, fd: int, counters: Counters) -> None:
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    count = min(max(len(os.sched_getaffinity(0)), 2), _MAX_THREADS)
    lead = _Lead()
    file_system.about_to_work = lead.give
    ahead = Ahead(file_system, fd, counters.rows[count])
    operations = Operations(file_system, ahead)
    servers = [_Server(operations, fd, row, lead) for row in counters.rows[:count]]

    def run(server: _Server) -> None:
        try:
            if server.serve_blocking() is not None:
                log.error("%s is said to be concurrent, and is not", type(file_system).__name__)
        finally:
            lead.give()
            server.close()

    threads = [threading.Thread(target=run, args=[server], name="viewfs-serve") for server in servers[1:]]
    for thread in threads:
        thread.start()
    try:
        run(servers[0])
    finally:
        for thread in threads:
            thread.join()
        ahead.close()


class _Server:
    """A loop that reads requests and answers them."""

    def __init__(self, operations: Operations, fd: int, counters: Row, lead: _Lead | None = None) -> None:
        self._operations = operations
        self._fd = fd
        self._counters = counters
        self._lead = lead
        self._transmitter = Transmitter(fd)
        self._buffer = bytearray(self._operations.buffer_size)
        self._view = memoryview(self._buffer)
        self._waiting: dict[int, trio.CancelScope] = {}

    def close(self) -> None:
        self._transmitter.close()

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

    def _start(self, request: Request) -> Awaitable[Body] | None:
        """Answer the request, or return the promise that will."""
        begun = perf_counter_ns()
        try:
            answer = self._operations.dispatch(request)
            if hasattr(answer, "__await__"):
                return cast(Awaitable[Body], answer)
            self._reply(request, answer, begun)
        except (Exception, SystemExit) as error:
            self._reply_error(request, error)
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
                os.writev(self._fd, (encode_reply_header(request.unique, len(body)), body))
            else:
                length = length_of(body)
                counters.count(request.opcode, length, failed=False)
                counters.note_caches(self._operations.caches)
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
            number = errno.EIO
            log.error("request %s failed", _name_of(request.opcode), exc_info=error)
        self._counters.count(request.opcode, 0, failed=True)
        if request.opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
            self._send_error(request, number)

    def _send_error(self, request: Request, number: int) -> None:
        try:
            os.write(self._fd, encode_error(request.unique, number))
        except OSError as error:
            if not self._is_gone(error):
                log.error("a reply to %s was refused: %s", _name_of(request.opcode), error)

    @staticmethod
    def _is_gone(error: OSError) -> bool:
        """ENOENT: the caller has gone away and with it the request; ENODEV: so has the mount."""
        return error.errno in (errno.ENOENT, errno.ENODEV)

    def serve_blocking(self) -> tuple[Request, Awaitable[Body]] | None:
        """Serve until the end (None), or until a request's answer is a promise (both are returned)."""
        lead = self._lead
        while True:
            if lead is not None:
                lead.take()
            request = self._receive()
            if request is None:
                return None
            if request.opcode == Opcode.INTERRUPT:
                continue  # nothing here takes long enough to be interrupted
            promise = self._start(request)
            if promise is not None:
                return request, promise

    async def serve_trio(self, first: Request, its_promise: Awaitable[Body]) -> None:
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

    def _start_waiting(self, nursery: trio.Nursery, request: Request, promise: Awaitable[Body]) -> None:
        import trio

        # Known before its task runs: an interrupt may be the next thing that the kernel has, and it is not sent again.
        scope = self._waiting[request.unique] = trio.CancelScope()
        nursery.start_soon(self._keep_promise, request, promise, scope)

    async def _keep_promise(self, request: Request, promise: Awaitable[Body], scope: trio.CancelScope) -> None:
        with scope:
            try:
                begun = perf_counter_ns()
                self._reply(request, await promise, begun)
            except (Exception, SystemExit) as error:
                self._reply_error(request, error)
            finally:
                self._waiting.pop(request.unique, None)
        if scope.cancelled_caught:
            self._reply_error(request, InterruptedError(errno.EINTR, os.strerror(errno.EINTR)))


def _name_of(opcode: int) -> str:
    return Opcode(opcode).name if opcode in Opcode._value2member_map_ else f"opcode {opcode}"
