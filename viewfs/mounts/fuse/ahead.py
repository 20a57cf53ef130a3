"""Putting content into the kernel's page cache before anybody asks for it (FUSE_NOTIFY_STORE).

A round trip costs more than most of what it brings: two context switches, against a copy. So what will be asked for
next is sent along:

- the small files of a directory that was listed, once one of them is read. Each file that is read is credit for some
  more that may be sent unasked: who only lists gets none, and what is wasted is bounded;
- what follows in a file that is read from one end to the other, in windows.

A thread of its own does it, and never one that answers requests: storing into a page that a reader has locked waits for
the answer to that reader.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from queue import SimpleQueue

from viewfs.modules.api import DirectoryEntry, FileSystem, InodeNumber
from viewfs.mounts.fuse.counters import Row
from viewfs.mounts.fuse.protocol import encode_store_header
from viewfs.mounts.fuse.transmit import Transmitter, length_of, pieces_of

__all__ = ["Ahead"]

log = logging.getLogger("viewfs.fuse")

#: Files of at most so many bytes are sent whole.
_SMALL = 64 << 10
#: Bytes that may be sent unasked for each small file that was asked for, and at most at any time.
_CREDIT, _CREDIT_MAX = 2 << 20, 8 << 20
#: Listed files that are remembered, in batches as they were listed.
_BATCHES = 64
#: After so many reads that follow one another a file is taken to be read to its end.
_STREAK = 3
_STREAMS = 64
#: Bytes sent ahead of such a reader.
_WINDOW = 2 << 20
_PIECE = 256 << 10


class _Batch:
    """The small files of a directory, in its order: what was listed in one reply."""

    def __init__(self, files: list[tuple[InodeNumber, int]]) -> None:
        self.files = files
        self.places = {node: place for place, (node, _size) in enumerate(files)}
        #: The first that has not been sent.
        self.next = 0
        self.waiting = False


class _Stream:
    """How far one file has been read, and sent."""

    def __init__(self, end: int) -> None:
        self.waiting = False
        self.restart(end)

    def restart(self, end: int) -> None:
        #: Where the next read begins, if it goes on.
        self.next = end
        self.streak = 1
        self.sent = 0
        #: Where to stop sending.
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
        self._work: SimpleQueue[_Batch | tuple[InodeNumber, _Stream] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="viewfs-ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more is sent."""
        self._work.put(None)
        self._thread.join()
        self._transmitter.close()

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
                batch.next = max(batch.next, batch.places[node] + 1)
                self._credit = min(self._credit + _CREDIT, _CREDIT_MAX)
                self._send_batch(batch)
            return
        self._stream(node, offset, offset + size)

    def _send_batch(self, batch: _Batch) -> None:
        if not batch.waiting and batch.next < len(batch.files):
            batch.waiting = True
            self._work.put(batch)

    def _stream(self, node: InodeNumber, offset: int, end: int) -> None:
        stream = self._streams.get(node)
        if stream is None or not stream.next <= offset <= max(stream.next, stream.sent):
            if stream is not None:
                stream.restart(end)
                return
            with self._lock:
                self._streams[node] = _Stream(end)
                if len(self._streams) > _STREAMS:
                    self._streams.popitem(last=False)
            return
        stream.streak += 1
        stream.next = end
        if stream.streak >= _STREAK:
            # The kernel has its own reading ahead under way, right behind what it has asked for.
            stream.until = end + _WINDOW
            if not stream.waiting:
                stream.waiting = True
                self._work.put((node, stream))

    # The thread that sends

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                if isinstance(work, _Batch):
                    self._send_files(work)
                else:
                    self._send_stream(*work)
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.EBADF):
                    return  # unmounted
                # What can't be read is an errno for whoever asks for it. ENOENT: the kernel has forgotten the inode.
            except Exception:
                log.exception("sending ahead failed")

    def _send_files(self, batch: _Batch) -> None:
        try:
            while batch.next < len(batch.files) and self._credit > 0:
                node, size = batch.files[batch.next]
                batch.next += 1
                with self._lock:
                    self._credit -= size
                self._store(node, 0, size)
        finally:
            batch.waiting = False

    def _send_stream(self, node: InodeNumber, stream: _Stream) -> None:
        try:
            while True:
                start = max(stream.next, stream.sent)
                if start >= stream.until:
                    return
                done = self._store(node, start, min(_PIECE, stream.until - start))
                stream.sent = start + done
                if not done:
                    stream.until = 0
        finally:
            stream.waiting = False

    def _store(self, node: InodeNumber, offset: int, size: int) -> int:
        """Send what there is of `size` bytes; returns how many."""
        content = self._fs.read(node, offset, size)
        pieces = pieces_of(content)  # type: ignore[arg-type]  # a concurrent file system makes no promises
        length = length_of(pieces)
        if length:
            self._transmitter.send(encode_store_header(node, offset, length), pieces)
            self._counters.count_pushed(length)
        return length
