"""Doing what will be asked for before anybody asks for it.

A round trip costs more than most of what it brings: two context switches, against a copy. So the small files of a
directory that was listed go into the kernel's page cache unasked (FUSE_NOTIFY_STORE), once one of them is read. Each
file that is read is credit for some more: who only lists gets none, and what is wasted is bounded.

What follows in a file that is read from one end to the other is decompressed ahead, into the server's own cache, where
the file system says so (`FileSystem.read_ahead`). It is not stored: the kernel reads ahead of such a reader itself, and
a store takes as long as an answer.

A thread of its own does it, and never one that answers requests: storing into a page that a reader has locked waits for
the answer to that reader.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import cast

from viewfs.modules.api import Content, DirectoryEntry, FileRange, FileSystem, InodeNumber
from viewfs.mounts.fuse.counters import Row
from viewfs.mounts.fuse.protocol import encode_store_header
from viewfs.mounts.fuse.transmit import Transmitter, length_of, pieces_of

__all__ = ["Ahead"]

log = logging.getLogger("viewfs.fuse")

#: Files of at most so many bytes are sent whole.
_SMALL = 64 << 10
#: Bytes that may be sent unasked for each small file that was asked for, and at most at any time.
_CREDIT, _CREDIT_MAX = 2 << 20, 8 << 20
#: A file takes whole pages of the kernel's cache.
_PAGE = 4096
#: Listed files that are remembered, in batches as they were listed.
_BATCHES = 64
#: After so many reads that follow one another a file is taken to be read to its end.
_STREAK = 3
_STREAMS = 64
#: Reads after which a file is looked at again that has turned out not to be compressed.
_NOT_COMPRESSED = 64
#: Bytes that are decompressed at once.
_PIECE = 128 << 10


class _Unmounted(Exception):
    """There is nobody left to send to."""


class _Batch:
    """The small files of a directory, in its order: what was listed in one reply."""

    def __init__(self, files: list[tuple[InodeNumber, int]]) -> None:
        self.files = files
        self.places = {node: place for place, (node, _size) in enumerate(files)}
        #: The first that has not been sent.
        self.next = 0
        self.waiting = False


class _Stream:
    """How far one file has been read, and decompressed."""

    def __init__(self, end: int) -> None:
        self.waiting = False
        self.restart(end)

    def restart(self, end: int) -> None:
        #: Where the next read begins, if it goes on.
        self.next = end
        self.streak = 1
        #: Up to where it has been decompressed, and up to where it should be.
        self.done = 0
        self.until = 0


class Ahead:
    """What is sent ahead over one descriptor. `listed` and `read` are called by the threads that serve it."""

    def __init__(self, file_system: FileSystem, fd: int, counters: Row) -> None:
        self._fs = file_system
        self._transmitter = Transmitter(fd)
        self._counters = counters
        self._batches: OrderedDict[int, _Batch] = OrderedDict()
        self._of: dict[InodeNumber, _Batch] = {}
        self._streams: OrderedDict[InodeNumber, _Stream] = OrderedDict()
        self._credit = 0
        self._lock = threading.Lock()
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="viewfs-ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more is sent."""
        self._work.put(None)
        self._thread.join()
        self._transmitter.close()

    def run_later(self, work: Callable[[], object]) -> None:
        """Something else to be done by the thread that sends."""
        self._work.put(work)

    # What the threads that serve have seen

    def listed(self, entries: Iterable[DirectoryEntry]) -> None:
        """The kernel has been told of these, and knows them from now on."""
        files = [
            (entry.attributes.ino, entry.attributes.size)
            for entry in entries
            if 0 < entry.attributes.size <= _SMALL and entry.attributes.mode & 0o170000 == 0o100000
        ]
        if not files:
            return
        batch = _Batch(files)
        with self._lock:
            self._batches[id(batch)] = batch
            self._of.update(dict.fromkeys(batch.places, batch))
            if len(self._batches) > _BATCHES:
                _id, old = self._batches.popitem(last=False)
                for node in old.places:
                    if self._of.get(node) is old:
                        del self._of[node]
            if self._credit > 0:
                self._send_batch(batch)

    def read(self, node: InodeNumber, offset: int, size: int) -> None:
        """The kernel has asked for these bytes."""
        batch = self._of.get(node)
        if batch is not None:
            with self._lock:
                # The reader goes on to the next one; what is sent should not be what it is asking for just then.
                batch.next = max(batch.next, batch.places[node] + 2)
                self._credit = min(self._credit + _CREDIT, _CREDIT_MAX)
                self._send_batch(batch)
            return
        if self._fs.read_ahead:
            self._stream(node, offset, offset + size)

    def _send_batch(self, batch: _Batch) -> None:
        if not batch.waiting and batch.next < len(batch.files):
            batch.waiting = True
            self._work.put(partial(self._send_files, batch))

    def _stream(self, node: InodeNumber, offset: int, end: int) -> None:
        stream = self._streams.get(node)
        if stream is None:
            with self._lock:
                self._streams[node] = _Stream(end)
                if len(self._streams) > _STREAMS:
                    self._streams.popitem(last=False)
            return
        if offset != stream.next:
            stream.restart(end)
            return
        stream.streak += 1
        stream.next = end
        if stream.streak >= _STREAK:
            stream.until = end + self._fs.read_ahead
            if not stream.waiting:
                stream.waiting = True
                self._work.put(partial(self._decompress, node, stream))

    # The thread that sends

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except _Unmounted:
                return
            except OSError:
                pass  # what can't be read is an errno for whoever asks for it
            except Exception:
                log.exception("sending ahead failed")

    def _send_files(self, batch: _Batch) -> None:
        try:
            while (file := self._take_next(batch)) is not None:
                node, size = file
                self._store(node, 0, size)
        finally:
            batch.waiting = False

    def _take_next(self, batch: _Batch) -> tuple[InodeNumber, int] | None:
        """The next file to be sent, with its size, if there is one and credit for it. (Readers move `next` as well.)"""
        with self._lock:
            if batch.next >= len(batch.files):
                return None
            node, size = batch.files[batch.next]
            taken = -(-size // _PAGE) * _PAGE  # of the kernel's memory; what it takes to send is not less for less
            if taken > self._credit:
                return None
            batch.next += 1
            self._credit -= taken
            return node, size

    def _decompress(self, node: InodeNumber, stream: _Stream) -> None:
        try:
            while (start := max(stream.next, stream.done)) < stream.until:
                stream.done = start + _PIECE
                content = cast(Content, self._fs.read(node, start, _PIECE))
                if all(isinstance(piece, FileRange) for piece in pieces_of(content)):
                    stream.streak = -_NOT_COMPRESSED  # the file lies there as it is, or a part of it, or it has ended
                    return
        finally:
            stream.waiting = False

    def _store(self, node: InodeNumber, offset: int, size: int) -> None:
        content = cast(Content, self._fs.read(node, offset, size))  # it is concurrent, so it makes no promises
        pieces = pieces_of(content)
        length = length_of(pieces)
        if length:
            try:
                self._transmitter.send(encode_store_header(node, offset, length), pieces)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    raise _Unmounted from error
                raise  # ENOENT: the kernel has forgotten the inode
            self._counters.count_pushed(length)
