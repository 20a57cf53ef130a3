"""What a server's successor has to know, in memory that survives the server.

The kernel goes on calling files by the numbers that the dead server has given them. So that server writes down, before
each answer, what it means by them: records under a number each, of which the last one counts. Nothing is torn by a
death: a record counts from when the end of the log is moved behind it, which is one store of eight bytes.

Beside the log is the one request that was being carried out. Where it was finished its answer is there, and is given
again; where it was only begun the successor is told so (`once`).
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from viewfs.errors import os_error
from viewfs.linux.files import fallocate
from viewfs.modules.api.kept import memory_file

__all__ = ["FixedLedger", "LastRequest", "Ledger"]

#: A record: its number and how many bytes follow.
_RECORD = struct.Struct("<QI")
_DROPPED = 0xFFFFFFFF
_HEADER_BYTES = mmap.PAGESIZE
_LEAST_BYTES = 16 * mmap.PAGESIZE
#: Words of the header: where the log begins and ends (32 bits each), and the last request.
_LOG, _PHASE, _UNIQUE, _POSITION, _ERROR, _LENGTH = range(6)
_ANSWER = 64
_NOTHING, _BEGUN, _DONE = range(3)
#: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of linux/falloc.h.
_PUNCH_HOLE = 0x03


class LastRequest(NamedTuple):
    """The request that was carried out last, or was when the server died."""

    unique: int
    #: What was written down at its beginning.
    position: int
    #: The errno and the body of its answer; None: it was not finished.
    answer: tuple[int, bytes] | None


class Ledger:
    """One server's, or that of the next. Made for one thread."""

    def __init__(self, fd: int) -> None:
        """`fd` is of `create`, and stays the caller's."""
        self._fd = fd
        self._header = mmap.mmap(fd, _HEADER_BYTES)
        self._words = memoryview(self._header)[:_ANSWER].cast("Q")
        self._map_log()
        self._end = self._words[_LOG] & 0xFFFFFFFF

    @staticmethod
    def create() -> int:
        """A descriptor of an empty one."""
        fd = os.memfd_create("viewfs-ledger", os.MFD_CLOEXEC)
        os.truncate(fd, _HEADER_BYTES + _LEAST_BYTES)
        return fd

    def _map_log(self) -> None:
        self._size = os.fstat(self._fd).st_size - _HEADER_BYTES
        self._log = mmap.mmap(self._fd, self._size, offset=_HEADER_BYTES)

    # -- records

    def put(self, number: int, value: bytes) -> None:
        """From now on that is what is known under `number`."""
        self._append(_RECORD.pack(number, len(value)) + value)

    def drop(self, number: int) -> None:
        """Nothing is any more."""
        self._append(_RECORD.pack(number, _DROPPED))

    def records(self) -> dict[int, bytes]:
        """All that is known."""
        known: dict[int, bytes] = {}
        for number, value in self._read():
            if value is None:
                known.pop(number, None)
            else:
                known[number] = value
        return known

    def _read(self) -> Iterator[tuple[int, bytes | None]]:
        place = self._words[_LOG] >> 32
        while place < self._end:
            number, length = _RECORD.unpack_from(self._log, place)
            place += _RECORD.size
            if length == _DROPPED:
                yield number, None
            else:
                yield number, self._log[place : place + length]
                place += length

    def _append(self, record: bytes) -> None:
        end = self._end + len(record)
        if end > self._size:
            self._make_room(len(record))
            end = self._end + len(record)
        self._log[self._end : end] = record
        self._end = end
        self._words[_LOG] = self._words[_LOG] & ~0xFFFFFFFF | end

    def _rewritten(self) -> bytes:
        """What counts, one record after the other."""
        return b"".join(_RECORD.pack(number, len(value)) + value for number, value in self.records().items())

    def _make_room(self, needed: int) -> None:
        """Write what counts to another place, which then is the log."""
        old_begin, old_end = self._words[_LOG] >> 32, self._end
        rest = self._rewritten()
        # As much again can come before the next time. (In whole pages, as it is mapped.)
        size = max(-(-2 * (len(rest) + needed) // mmap.PAGESIZE) * mmap.PAGESIZE, _LEAST_BYTES)
        begin = 0 if size <= old_begin else -(-old_end // mmap.PAGESIZE) * mmap.PAGESIZE
        if begin + size > self._size:
            self._resize(begin + size)
        self._log[begin : begin + len(rest)] = rest
        self._end = begin + len(rest)
        self._words[_LOG] = begin << 32 | self._end
        if begin == 0:
            self._resize(size)
        else:
            fallocate(self._fd, _PUNCH_HOLE, _HEADER_BYTES + old_begin, old_end - old_begin)

    def _resize(self, size: int) -> None:
        self._log.close()
        os.truncate(self._fd, _HEADER_BYTES + size)
        self._map_log()

    # -- the request that is being carried out

    def begin(self, unique: int, position: int = 0) -> None:
        """That one is begun, at `position` if that means anything."""
        words = self._words
        words[_PHASE] = _NOTHING
        words[_UNIQUE], words[_POSITION] = unique, position
        words[_PHASE] = _BEGUN

    def finish(self, error: int, body: bytes) -> None:
        """It was carried out, and its answer is that errno (0: none) and that body, which is short."""
        words = self._words
        words[_ERROR], words[_LENGTH] = error, len(body)
        self._header[_ANSWER : _ANSWER + len(body)] = body
        words[_PHASE] = _DONE

    def last(self) -> LastRequest | None:
        """The last request, as the server before has left it."""
        words = self._words
        if words[_PHASE] == _NOTHING:
            return None
        answer = None
        if words[_PHASE] == _DONE:
            answer = words[_ERROR], self._header[_ANSWER : _ANSWER + words[_LENGTH]]
        return LastRequest(words[_UNIQUE], words[_POSITION], answer)


class FixedLedger(Ledger):
    """One that stays as large as it was made, for a server that has shut itself in.

    What is put between `begin_step` and `finish` can be set back.
    """

    #: Bytes that one step may put, and how many a log has in all.
    STEP_BYTES = 64 << 10
    BYTES = 4 << 20

    @staticmethod
    def create(size: int = BYTES) -> int:
        """As of a `Ledger`, with `size` bytes for the log."""
        return memory_file("viewfs-ledger", _HEADER_BYTES + size)

    @property
    def _half(self) -> int:
        return self._size // 2

    def begin_step(self, unique: int) -> None:
        """Request `unique` is about to be carried out, or goes on."""
        begin = self._words[_LOG] >> 32
        if self._end + self.STEP_BYTES > (self._size if begin else self._half):
            self._move(0 if begin else self._half)
        self.begin(unique, self._end)

    def _move(self, begin: int) -> None:
        """What counts goes to the other half, which then is the log."""
        rest = self._rewritten()
        if len(rest) + 2 * self.STEP_BYTES > self._half:
            return  # too much is open: `_make_room` says so when there is no room at all
        self._log[begin : begin + len(rest)] = rest
        self._end = begin + len(rest)
        self._words[_LOG] = begin << 32 | self._end

    def _make_room(self, needed: int) -> None:
        raise os_error(errno.ENOSPC)

    def _append(self, record: bytes) -> None:
        if not self._words[_LOG] >> 32 and self._end + len(record) > self._half:
            self._make_room(len(record))
        super()._append(record)

    def forget_last(self) -> None:
        """What was done of it so far stays, and it is not finished."""
        self._words[_PHASE] = _NOTHING

    def set_back(self, end: int) -> None:
        """The log ends there again, as it did when the last step began."""
        self._end = end
        self._words[_LOG] = self._words[_LOG] & ~0xFFFFFFFF | end
