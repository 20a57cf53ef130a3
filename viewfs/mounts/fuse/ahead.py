"""Sending and decompressing data before the kernel asks for them.

For small files, a round trip costs more than the data: two context switches, compared with a copy. So once a small file
of a listed directory is read, the server stores others in the kernel's page cache unasked (FUSE_NOTIFY_STORE). Each
file that is read gives credit for some more: a program that only lists directories gets none, and waste is bounded.

If a file is read sequentially, its next part is decompressed ahead into the server's own cache, as far as the file
system says (`FileSystem.read_ahead`). It is not stored in the page cache: the kernel reads ahead for such a reader
itself, and a store takes as long as an answer.

A separate thread does this, never one that answers requests: storing into a page that a reader has locked waits for the
answer to that reader.
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

#: Files of at most this many bytes are sent ahead.
_SMALL = 64 << 10
#: Bytes that may be sent unasked for each small file that is read, and the largest credit at any time.
_CREDIT, _CREDIT_MAX = 2 << 20, 8 << 20
#: A file takes whole pages of the kernel's cache.
_PAGE = 4096
#: How many batches of listed files are remembered.
_BATCHES = 64
#: After this many consecutive reads, a file is expected to be read to its end.
_STREAK = 3
_STREAMS = 64
#: If a file turns out not to be compressed, it is not read ahead again for this many reads.
_NOT_COMPRESSED = 64
#: Bytes that are decompressed at once.
_PIECE = 128 << 10


class _Unmounted(Exception):
    """The file system is unmounted: nothing more can be sent."""


class _Batch:
    """The small files that were listed in one reply, in the order of the directory."""

    def __init__(self, files: list[tuple[InodeNumber, int]]) -> None:
        self.files = files
        self.places = {node: place for place, (node, _size) in enumerate(files)}
        #: The index of the first file that has not been sent.
        self.next = 0
        self.waiting = False


class _Stream:
    """How far one file has been read, and decompressed ahead."""

    def __init__(self, end: int) -> None:
        self.waiting = False
        self.restart(end)

    def restart(self, end: int) -> None:
        #: Where the next read begins, if the file is read sequentially.
        self.next = end
        self.streak = 1
        #: Up to where the file has been decompressed, and up to where it should be.
        self.done = 0
        self.until = 0


class Ahead:
    """Sends ahead over one descriptor. The threads that serve it call `listed` and `read`."""

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
        """Stop sending."""
        self._work.put(None)
        self._thread.join()
        self._transmitter.close()

    def run_later(self, work: Callable[[], object]) -> None:
        """Run `work` in the thread that sends."""
        self._work.put(work)

    # What the threads that serve have seen

    def listed(self, entries: Iterable[DirectoryEntry]) -> None:
        """Note that the kernel was given these entries, and knows their inodes."""
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
        """Note that the kernel has asked for these bytes."""
        batch = self._of.get(node)
        if batch is not None:
            with self._lock:
                # The reader will ask for the next file at the same time, so sending begins with the one after that.
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
                pass  # the error is reported when the data are asked for
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
        """The next file to send, with its size, if there is one and credit for it. (Readers advance `next` as well.)"""
        with self._lock:
            if batch.next >= len(batch.files):
                return None
            node, size = batch.files[batch.next]
            taken = -(-size // _PAGE) * _PAGE  # the kernel's memory; sending a part of a page costs as much as all
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
                    stream.streak = -_NOT_COMPRESSED  # this part is not compressed, or it is the end of the file
                    return
        finally:
            stream.waiting = False

    def _store(self, node: InodeNumber, offset: int, size: int) -> None:
        content = cast(Content, self._fs.read(node, offset, size))  # concurrent, so the answer is not a promise
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
