"""Serving a file system over one /dev/fuse descriptor.

There are three ways to serve `Operations`. As long as every answer is there at once, as those of an image are, a plain
blocking loop is used: one read(2), one write(2), no event loop. A file system that several threads may call gets
several such loops, so that one answers while another decompresses or copies, and an additional thread that sends ahead
what will be asked for (`ahead`). One that never changes but is not thread-safe gets one loop, the additional thread and
a lock (`serial`). The first method that returns a promise moves the server to trio for good, where each request that
waits has a task and a cancel scope of its own, so that FUSE_INTERRUPT can end it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeAlias

from viewfs.modules.api import FileSystem, InodeNumber, WritableFileSystem
from viewfs.mounts.fuse.ahead import Ahead
from viewfs.mounts.fuse.answers import Body
from viewfs.mounts.fuse.counters import MAX_ROWS, Counters, Row
from viewfs.mounts.fuse.operations import Operations
from viewfs.mounts.fuse.protocol import Notify, Opcode, Request, encode_notification, encode_stale_attributes
from viewfs.mounts.fuse.serial import OneAtATime, is_plain
from viewfs.mounts.fuse.server import Server

if TYPE_CHECKING:
    from viewfs.mounts.fuse.once import LastingOperations

__all__ = ["serve", "take_over"]

_First: TypeAlias = tuple[Request, Awaitable[Body]]

log = logging.getLogger("viewfs.fuse")

#: Threads that answer, at most: more threads than processors only slow each other down.
_MAX_THREADS = MAX_ROWS - 1
#: How long one thread may keep the interpreter while another waits for it, in seconds. In Python's default of 5 ms, a
#: hundred requests could be answered.
_SWITCH_SECONDS = 0.0005
#: How many new objects make Python search for reference cycles. Answering makes no cycles, and with full caches the
#: search takes long.
_GARBAGE = 100_000


def take_over(fd: int) -> None:
    """Have the kernel resend requests that an earlier server did not answer (linux/fuse.h; EINVAL before Linux 6.9)."""
    os.write(fd, encode_notification(Notify.RESEND, b""))


def serve(file_system: FileSystem, fd: int, counters: Counters, operations: LastingOperations | None = None) -> None:
    """Answer the kernel over `fd` until the file system is unmounted everywhere.

    With `operations` a file system continues where the previous server was, and records what the next one needs.
    """
    try:
        if operations is not None:
            _serve_alone(file_system, fd, counters, operations=operations)
        elif file_system.immutable and file_system.concurrent:
            _serve_with_threads(file_system, fd, counters)
        elif file_system.immutable and is_plain(file_system):
            _serve_sending_ahead(file_system, fd, counters)
        else:
            _serve_alone(file_system, fd, counters)
    finally:
        file_system.close()


def _serve_alone(
    file_system: FileSystem,
    fd: int,
    counters: Counters,
    first: _First | None = None,
    operations: Operations | None = None,
) -> None:
    """Serve in one thread. `first` is a request that has been read already, and its promise."""
    server = _Server(operations or Operations(file_system), fd, counters.rows[0])
    if isinstance(file_system, WritableFileSystem):
        file_system.attributes_changed = server.tell_of_changed_attributes
    try:
        first = first or server.serve_blocking()
        if first is not None:
            import trio

            os.set_blocking(fd, False)
            trio.run(server.serve_trio, *first)
    finally:
        server.close()


def _serve_sending_ahead(file_system: FileSystem, fd: int, counters: Counters) -> None:
    """Serve in one thread, with another one that sends ahead; a lock lets only one of them call the file system."""
    lock = threading.Lock()
    ahead = Ahead(OneAtATime(file_system, lock, never_waits=True), fd, counters.rows[1])
    operations = Operations(OneAtATime(file_system, lock, never_waits=False), ahead)
    server = _Server(operations, fd, counters.rows[0])
    try:
        first = server.serve_blocking()
    finally:
        server.close()
        ahead.close()
    if first is not None:
        _serve_alone(file_system, fd, counters, first)


class _Lead:
    """The right to read the next request, which one thread has at a time.

    The thread that has it answers the request that it reads, and reads the next. So one thread answers all quick
    requests, and stays on one processor, whose caches have what it needs. Before longer work, such as decompressing,
    the thread passes the right on. (But not before copying: a reader asks for 128 KiB at a time, and to copy them takes
    as long as waking another thread.)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leader = 0

    def take(self) -> None:
        """Wait for the right, if this thread does not have it."""
        me = threading.get_ident()
        if self._leader != me:
            self._lock.acquire()
            self._leader = me

    def give(self) -> None:
        """Pass the right on, if this thread has it."""
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


class _Server(Server):
    """The loops that serve a file system."""

    def __init__(self, operations: Operations, fd: int, counters: Row, lead: _Lead | None = None) -> None:
        super().__init__(operations, fd, counters)
        self._operations = operations
        self._lead = lead

    def tell_of_changed_attributes(self, inode: InodeNumber) -> None:
        """Invalidate the attributes that the kernel has cached. (It drops them without waiting for anything.)"""
        with contextlib.suppress(OSError):  # ENOENT: the kernel does not know the inode
            os.write(self.fd, encode_stale_attributes(self._operations.node(inode)))

    def serve_blocking(self) -> tuple[Request, Awaitable[Body]] | None:
        """Serve until the end (returns None), or until an answer is a promise (returns that and the request)."""
        lead = self._lead
        while True:
            if lead is not None:
                lead.take()
            request = self.receive()
            if request is None:
                return None
            if request.opcode == Opcode.INTERRUPT:
                continue  # nothing here takes long enough to be interrupted
            promise = self.start(request)
            if promise is not None:
                return request, promise

    async def serve_trio(self, first: Request, its_promise: Awaitable[Body]) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            self.start_waiting(nursery, first, its_promise)
            while True:
                try:
                    request = self.receive()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self.fd)
                    continue
                if request is None:
                    break
                self.handle(request, nursery)
                if self.waiting:
                    await trio.lowlevel.checkpoint()  # a steady stream of requests must not starve those that wait
            nursery.cancel_scope.cancel()
