"""Making the next part of a listing, or the listing of the next directory, while the kernel is busy with the last one.

A program that walks a tree asks for a directory, looks at its entries, and asks for the next one: server and client
take turns, and one of two processors is idle. The next question can be predicted: the rest of the directory, else its
first subdirectory, else the directory after it in its parent. The answer is made ahead, and dropped if something else
is asked for. Only one answer is ever made ahead.
"""

from __future__ import annotations

import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from viewfs.modules.api import DirectoryEntry, InodeNumber

__all__ = ["Listing", "Listings"]

#: A reply's body, and the entries in it.
Listing: TypeAlias = tuple[bytes, list[DirectoryEntry]]

#: How many directories are remembered together with the directory after them.
_KNOWN = 8192
#: An entry of a READDIRPLUS reply is no longer than this: a reply with less room left may not be the whole listing.
_LONGEST_ENTRY = 152 + 256
_DIRECTORY = stat.S_IFDIR
_DOTS = (b".", b"..")


class _Question(NamedTuple):
    """What the kernel asks for: the entries of a directory after a cookie, in at most `size` bytes."""

    directory: InodeNumber
    start: int
    size: int


class _Prepared:
    """An answer that is being made."""

    def __init__(self, question: _Question) -> None:
        self.question = question
        #: Held by the thread that makes the answer.
        self.making = threading.Lock()
        self.made: Listing | None = None


class Listings:
    """Answers to READDIRPLUS. Any thread may call it."""

    def __init__(
        self, make: Callable[[InodeNumber, int, int], Listing], run_later: Callable[[Callable[[], object]], None]
    ) -> None:
        """`make` answers a question; `run_later` runs a function in another thread."""
        self._make = make
        self._run_later = run_later
        self._prepared: _Prepared | None = None
        self._next: OrderedDict[InodeNumber, InodeNumber] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, directory: InodeNumber, start: int, size: int) -> Listing:
        """Raises the OSError of `make`."""
        question = _Question(directory, start, size)
        prepared = self._prepared
        if prepared is not None and prepared.question == question:
            with prepared.making:  # which waits if the answer is being made
                self._prepared = None
                listing = prepared.made or self._make(*question)
        else:
            listing = self._make(*question)
        self._prepare(question, *listing)
        return listing

    def _prepare(self, question: _Question, body: bytes, entries: Sequence[DirectoryEntry]) -> None:
        if not entries:
            return
        inside = [
            entry.attributes.ino
            for entry in entries
            if entry.attributes.mode & 0o170000 == _DIRECTORY and entry.name not in _DOTS
        ]
        with self._lock:
            behind = self._next.get(question.directory)
            order = inside if behind is None else [*inside, behind]
            self._next.update(pairwise(order))
            while len(self._next) > _KNOWN:
                self._next.popitem(last=False)
            if len(body) + _LONGEST_ENTRY > question.size:
                expected = question._replace(start=entries[-1].cookie)
            elif inside:
                expected = question._replace(directory=inside[0], start=0)
            elif behind is not None:
                expected = question._replace(directory=behind, start=0)
            else:
                return
            prepared = self._prepared = _Prepared(expected)
        self._run_later(lambda: self._fill(prepared))

    def _fill(self, prepared: _Prepared) -> None:
        """Make the answer, unless it has been asked for meanwhile. Runs in another thread."""
        if self._prepared is prepared and prepared.making.acquire(blocking=False):
            try:
                prepared.made = self._make(*prepared.question)
            finally:
                prepared.making.release()
