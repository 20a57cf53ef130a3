"""Immutable file systems that know nothing of threads: they are sent ahead too, and never called twice at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.test_fuse_ahead import Shelf, interpreter_as_it_was, mounted, texts
from viewfs.modules.api import DirectoryEntry, InodeNumber
from viewfs.mounts.fuse.serial import OneAtATime, is_plain

__all__ = ["interpreter_as_it_was"]


class Alone(Shelf):
    """Notices when it is called while it is being called."""

    concurrent = False

    def __init__(self, *directories: Any) -> None:
        super().__init__(*directories)
        self.inside = threading.Lock()
        self.threads: set[str] = set()

    def _enter(self) -> None:
        assert self.inside.acquire(blocking=False), "two calls at once"
        self.threads.add(threading.current_thread().name)

    def getattr(self, inode: InodeNumber) -> Any:
        return super().getattr(inode)

    def readdir(self, directory: InodeNumber, start: int) -> Any:
        entries = super().readdir(directory, start)

        def one_by_one() -> Iterator[DirectoryEntry]:
            for entry in entries:
                self._enter()
                self.inside.release()
                yield entry

        return one_by_one()

    def read(self, inode: InodeNumber, offset: int, size: int) -> Any:
        self._enter()
        try:
            # What it gives is its own, and another the next time.
            self.buffer = bytearray(super().read(inode, offset, size))
            return memoryview(self.buffer)
        finally:
            self.inside.release()


def test_what_follows_is_sent_and_no_two_calls_meet() -> None:
    shelf = Alone(texts(200), texts(200), texts(200))
    with mounted(shelf) as kernel:
        for directory in kernel.list(1):
            for node in kernel.list(directory):
                if node not in kernel.sent:
                    assert kernel.read(node) == shelf.files[node]
    assert len(kernel.sent) > 100
    assert "viewfs-ahead" in shelf.threads and len(shelf.threads) == 2


@pytest.mark.parametrize("promised", ["read", "readdir", "lookup"])
def test_a_promise_after_all(promised: str) -> None:
    """A plain method that returns a promise: from then on it is served as what it is."""

    class Sometimes(Alone):
        def promise(self, answer: Any) -> Any:
            async def later() -> Any:
                return answer

            return later()

    plain = getattr(Alone, promised)
    setattr(Sometimes, promised, lambda self, *arguments: self.promise(plain(self, *arguments)))
    shelf = Sometimes(texts(20))
    assert is_plain(shelf)
    with mounted(shelf) as kernel:
        nodes = kernel.list(100_000)
        assert len(nodes) == 20
        assert [kernel.read(node) for node in nodes] == [shelf.files[node] for node in nodes]
        assert kernel.ask(1, b"file 100001\0", 100_000)[0] == 0
        assert len(kernel.list(100_000)) == 20


def test_async_methods_are_seen_beforehand() -> None:
    class Waits(Shelf):
        async def read(self, inode: InodeNumber, offset: int, size: int) -> Any:  # type: ignore[override]
            return b""

    assert is_plain(Shelf()) and not is_plain(Waits())


def test_a_promise_is_nothing_for_who_can_t_wait() -> None:
    class Waits(Shelf):
        async def later(self) -> bytes:
            return b""

        def read(self, inode: InodeNumber, offset: int, size: int) -> Any:
            return self.later()

    never = OneAtATime(Waits(texts(1)), threading.Lock(), never_waits=True)
    with pytest.raises(BlockingIOError):
        never.read(InodeNumber(100_001), 0, 10)
