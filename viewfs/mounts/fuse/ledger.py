"""What a server's successor has to know, in memory that survives the server.

The kernel keeps using the numbers that the dead server gave to nodes and files. So a server records, before each reply,
what these numbers mean: in a log of records, each with a number, of which the last one with the same number counts.
The death of the server can't leave half a record: a record becomes valid when the end of the log is moved behind it,
which is one store of eight bytes.

Beside the log is the last request that was carried out. If it was finished, its answer is there too, and is sent again;
if it had only begun, the successor learns of that (`once`).
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
    """The request that was carried out last, or was being carried out when the server died."""

    unique: int
    #: The argument `position` of `begin`.
    position: int
    #: The errno and the body of its answer; None if it was not finished.
    answer: tuple[int, bytes] | None


class Ledger:
    """The ledger of a server and its successors. Only one thread may use it."""

    def __init__(self, fd: int) -> None:
        """`fd` is from `create`; the caller still owns it."""
        self._fd = fd
        self._header = mmap.mmap(fd, _HEADER_BYTES)
        self._words = memoryview(self._header)[:_ANSWER].cast("Q")
        self._map_log()
        self._end = self._words[_LOG] & 0xFFFFFFFF

    @staticmethod
    def create() -> int:
        """A descriptor of an empty ledger."""
        fd = os.memfd_create("viewfs-ledger", os.MFD_CLOEXEC)
        os.truncate(fd, _HEADER_BYTES + _LEAST_BYTES)
        return fd

    def _map_log(self) -> None:
        self._size = os.fstat(self._fd).st_size - _HEADER_BYTES
        self._log = mmap.mmap(self._fd, self._size, offset=_HEADER_BYTES)

    # -- records

    def put(self, number: int, value: bytes) -> None:
        """Record `value` under `number`, replacing an earlier one."""
        self._append(_RECORD.pack(number, len(value)) + value)

    def drop(self, number: int) -> None:
        """Remove the record under `number`."""
        self._append(_RECORD.pack(number, _DROPPED))

    def records(self) -> dict[int, bytes]:
        """The valid records, by number."""
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
        """The bytes of a log with only the valid records."""
        return b"".join(_RECORD.pack(number, len(value)) + value for number, value in self.records().items())

    def _make_room(self, needed: int) -> None:
        """Write the valid records to another place, which then is the log."""
        old_begin, old_end = self._words[_LOG] >> 32, self._end
        rest = self._rewritten()
        # Twice the size, so that as much again fits before the next time. (In whole pages, because it is mapped.)
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
        """Record that request `unique` is begun; `position` is stored with it."""
        words = self._words
        words[_PHASE] = _NOTHING
        words[_UNIQUE], words[_POSITION] = unique, position
        words[_PHASE] = _BEGUN

    def finish(self, error: int, body: bytes) -> None:
        """Record that the request was carried out, and its answer: an errno (0: none) and a body, which is short."""
        words = self._words
        words[_ERROR], words[_LENGTH] = error, len(body)
        self._header[_ANSWER : _ANSWER + len(body)] = body
        words[_PHASE] = _DONE

    def last(self) -> LastRequest | None:
        """The last request of the previous server, if there is one."""
        words = self._words
        if words[_PHASE] == _NOTHING:
            return None
        answer = None
        if words[_PHASE] == _DONE:
            answer = words[_ERROR], self._header[_ANSWER : _ANSWER + words[_LENGTH]]
        return LastRequest(words[_UNIQUE], words[_POSITION], answer)


class FixedLedger(Ledger):
    """A ledger of a fixed size, for a server that has sealed itself off.

    Records that are made between `begin_step` and `finish` can be undone with `set_back`.
    """

    #: Bytes of the records that one step may make, and bytes of the log in all.
    STEP_BYTES = 64 << 10
    BYTES = 4 << 20

    @staticmethod
    def create(size: int = BYTES) -> int:
        """As `Ledger.create`, with `size` bytes for the log."""
        return memory_file("viewfs-ledger", _HEADER_BYTES + size)

    @property
    def _half(self) -> int:
        return self._size // 2

    def begin_step(self, unique: int) -> None:
        """Record that request `unique` is about to be carried out or continued."""
        begin = self._words[_LOG] >> 32
        if self._end + self.STEP_BYTES > (self._size if begin else self._half):
            self._move(0 if begin else self._half)
        self.begin(unique, self._end)

    def _move(self, begin: int) -> None:
        """Write the valid records to the other half, which then is the log."""
        rest = self._rewritten()
        if len(rest) + 2 * self.STEP_BYTES > self._half:
            return  # too many records: `_make_room` raises ENOSPC when there is no room at all
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
        """Forget the last request, which is not finished, without undoing its records."""
        self._words[_PHASE] = _NOTHING

    def set_back(self, end: int) -> None:
        """Undo the records of the last step: the log ends at `end` again, where it did when the step began."""
        self._end = end
        self._words[_LOG] = self._words[_LOG] & ~0xFFFFFFFF | end
