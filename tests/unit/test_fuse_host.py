"""The loops that serve a /dev/fuse descriptor, over a pair of sockets: one datagram is one request, as there.

(What only the kernel can do, the tests of the kernel tier have it do.)
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fuse_wire import reading, request
from tests.unit.memory_fs import Memory, Still, failed, with_async_methods
from viewfs.modules.api import FileSystem, InodeNumber
from viewfs.mounts.fuse.counters import Counters, Snapshot
from viewfs.mounts.fuse.host import serve
from viewfs.mounts.fuse.protocol import InitFlags, Opcode

SECONDS = 20
GETATTR = bytes(16)


class Mount:
    """The kernel's end: sends requests, gets replies."""

    def __init__(self, file_system: FileSystem) -> None:
        self.file_system = file_system
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(SECONDS)
        self._counters = Counters.create()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._unique = 0
        self.problem: BaseException | None = None

    def _serve(self) -> None:
        try:
            serve(self.file_system, self._theirs.fileno(), self._counters)
        except BaseException as problem:
            self.problem = problem
        finally:
            self._theirs.close()

    def start(self) -> None:
        self._thread.start()

    def send(self, opcode: int, body: bytes = b"", node: int = 1) -> int:
        self._unique += 1
        self.ours.send(request(opcode, body, unique=self._unique, node=node))
        return self._unique

    def receive(self) -> tuple[int, int, bytes]:
        """The next reply: which request it answers, errno (0: none), body."""
        reply = self.ours.recv(1 << 21)
        length, error, unique = struct.unpack_from("=IiQ", reply)
        assert length == len(reply), "a reply, not the end"
        return unique, -error, reply[16:]

    def ask(self, opcode: int, body: bytes = b"", node: int = 1) -> tuple[int, bytes]:
        unique = self.send(opcode, body, node)
        answered, error, reply = self.receive()
        assert answered == unique
        return error, reply

    def interrupt(self, unique: int) -> None:
        self.send(Opcode.INTERRUPT, struct.pack("=Q", unique))

    @property
    def still_serves(self) -> bool:
        return self.ask(Opcode.GETATTR, GETATTR)[0] == 0

    @property
    def counted(self) -> Snapshot:
        return self._counters.snapshot()

    def unmount(self) -> None:
        """Here it is the end of the connection; for the kernel it is ENODEV."""
        self.ours.shutdown(socket.SHUT_WR)
        if self._thread.ident is None:
            self._theirs.close()
        while self.ours.recv(1 << 21):
            pass  # what is left unread would be a connection reset
        self.ours.close()
        if self._thread.ident is not None:
            self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the loop did not end"
        self._counters.close()


@contextmanager
def mounted(file_system: FileSystem, *, start: bool = True) -> Iterator[Mount]:
    mount = Mount(file_system)
    if start:
        mount.start()
    try:
        yield mount
    finally:
        mount.unmount()
    assert mount.problem is None, f"the loop ended with {mount.problem!r}"


@pytest.fixture(params=[lambda kind: kind, with_async_methods], ids=["plain", "async"])
def of(request: pytest.FixtureRequest) -> Callable[[type[Any]], type[Any]]:
    """A class of file systems as it is, and with methods that wait: each of the two loops."""
    return request.param  # type: ignore[no-any-return]


Of = Callable[[type[Any]], type[Any]]


def test_a_mount_from_beginning_to_end(of: Of) -> None:
    file_system = of(Still)()
    with mounted(file_system) as mount:
        error, body = mount.ask(Opcode.INIT, struct.pack("=IIIII44x", 7, 40, 131072, 0xFFFFFFFF, 0))
        assert (error, len(body)) == (0, 64)
        assert InitFlags.NO_OPEN_SUPPORT in InitFlags(struct.unpack_from("=IIII", body)[3])
        assert mount.ask(Opcode.OPEN, bytes(8)) == (errno.ENOSYS, b"")
        assert mount.ask(Opcode.READ, reading(0, 4096), 11) == (0, Still.content[:4096])
        assert mount.ask(Opcode.READ, reading(1 << 40, 4096), 11) == (0, b"")
        assert mount.ask(Opcode.GETATTR, GETATTR, 99) == (errno.ESTALE, b"")
        assert mount.ask(9999, b"whatever") == (errno.ENOSYS, b"")
        mount.send(Opcode.FORGET, bytes(8))
        mount.send(Opcode.BATCH_FORGET, bytes(8))
        assert mount.still_serves, "and a forget is not answered"
        assert not file_system.closed
        counted = mount.counted
    assert counted.requests == {"init": 1, "open": 1, "read": 2, "getattr": 2, "forget": 1, "batch_forget": 1}
    assert (counted.errors, counted.bytes_out) == (3, 64 + 4096 + 104)
    assert file_system.closed


def test_large_writes(of: Of) -> None:
    with mounted(of(Memory)()) as mount:
        data = os.urandom(100_000)
        assert mount.ask(Opcode.MKNOD, struct.pack("=IIII", 0o100644, 0, 0, 0) + b"file\0")[0] == 0
        assert mount.ask(Opcode.WRITE, reading(0, len(data)) + data, 2) == (0, struct.pack("=II", len(data), 0))
        assert mount.ask(Opcode.READ, reading(0, len(data)), 2) == (0, data)


# -- modules that are wrong


class Faulty(Still):
    """Each inode is another way to be wrong."""

    faults: tuple[Any, ...] = (
        RuntimeError("a fault of the module"),
        OSError("no errno at all"),
        OSError(4095, "an errno that the protocol has no room for"),
        ExceptionGroup("several", [OSError(errno.EIO, "one")]),
        None,
        "text",
        7,
        failed(errno.EXDEV),
    )

    def read(self, inode: InodeNumber, offset: int, size: int) -> Any:
        fault = self.faults[inode - 100]
        if isinstance(fault, Exception):
            raise fault
        return fault


def test_a_fault_costs_one_request(of: Of, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(of(Faulty)()) as mount:
        for node in range(100, 107):
            assert mount.ask(Opcode.READ, reading(), node) == (errno.EIO, b""), Faulty.faults[node - 100]
            assert mount.still_serves
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 7
        assert "a fault of the module" in caplog.text and "Traceback" in caplog.text
        caplog.clear()
        assert mount.ask(Opcode.READ, reading(), 107) == (errno.EXDEV, b"")
        assert not caplog.records, "an errno is an answer and no fault"
        assert mount.counted.errors == 8


def test_bodies_that_the_kernel_would_not_send(of: Of, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(of(Memory)()) as mount:
        for opcode, body in [
            (Opcode.RENAME, bytes(8)),
            (Opcode.RENAME, bytes(8) + b"no end"),
            (Opcode.SYMLINK, b"only one\0"),
            (Opcode.UNLINK, b""),
            (Opcode.MKDIR, bytes(8)),
            (Opcode.MKNOD, bytes(16)),
            (Opcode.LINK, bytes(8)),
        ]:
            assert mount.ask(opcode, body) == (errno.EIO, b""), opcode
        assert mount.still_serves


def test_what_is_no_request_gets_an_error_and_nothing_else(of: Of, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(of(Memory)()) as mount:
        assert mount.still_serves
        mount.ours.send(request(Opcode.READ, bytes(5)))
        mount.ours.send(request(Opcode.GETATTR, GETATTR, length=4000))
        assert [mount.receive()[1] for _request in range(2)] == [errno.EIO, errno.EIO]
        assert mount.still_serves
    assert "unintelligible" in caplog.text


@settings(max_examples=40, deadline=None, database=None)
@given(
    st.sampled_from([Memory, Still, with_async_methods(Memory)]),
    st.lists(
        st.builds(
            request,
            st.sampled_from([*Opcode, 77]),
            st.binary(max_size=120)
            | st.builds(lambda size, rest: bytes(size) + rest, st.integers(0, 90), st.binary(max_size=40)),
            node=st.integers(0, 4) | st.integers(0, (1 << 64) - 1),
        )
        | st.binary(min_size=40, max_size=200),
        max_size=8,
    ),
)
def test_nothing_that_is_sent_ends_the_loop(kind: type[FileSystem], datagrams: list[bytes]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        with mounted(kind()) as mount:
            mount._unique = 1 << 63  # so that no answer can be to one of those
            for datagram in datagrams:
                mount.ours.send(datagram)
            probe = mount.send(Opcode.STATFS)
            while mount.receive()[0] != probe:
                pass
    finally:
        logging.disable(logging.NOTSET)


# -- requests that wait


class Waiting(Still):
    """Reading inode 50 waits until inode 51 is read, reading 52 until somebody interrupts, others not at all."""

    immutable = False

    def __init__(self) -> None:
        super().__init__()
        self.happened = trio.Event()
        self.given_up: list[str] = []

    async def read(self, inode: InodeNumber, offset: int, size: int) -> bytes:
        if inode == 50:
            await self.happened.wait()
        elif inode == 51:
            self.happened.set()
        elif inode == 52:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.given_up.append("cancelled")
                raise
        elif inode == 53:
            with trio.move_on_after(0):
                await trio.sleep_forever()
        elif inode == 54:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fail)
                await trio.sleep_forever()
        return b"read %d" % inode

    async def fail(self) -> None:
        raise RuntimeError("in a task of the module's own")


def test_a_request_that_waits_holds_up_no_other() -> None:
    with mounted(Waiting()) as mount:
        waiting = mount.send(Opcode.READ, reading(), 50)
        assert mount.still_serves
        waking = mount.send(Opcode.READ, reading(), 51)
        replies = {mount.receive(), mount.receive()}
        assert replies == {(waking, 0, b"read 51"), (waiting, 0, b"read 50")}


def test_an_interrupt_ends_the_request_that_it_is_for() -> None:
    file_system = Waiting()
    with mounted(file_system) as mount:
        one, other = mount.send(Opcode.READ, reading(), 52), mount.send(Opcode.READ, reading(), 52)
        assert mount.still_serves
        mount.interrupt(other)
        assert mount.receive() == (other, errno.EINTR, b"")
        assert mount.still_serves
        mount.interrupt(one)
        assert mount.receive() == (one, errno.EINTR, b"")
        assert file_system.given_up == ["cancelled"] * 2
        mount.interrupt(one)
        mount.interrupt(4711)
        assert mount.still_serves, "an interrupt for what is answered, or was never asked, needs no reply"


@pytest.mark.parametrize("before", [0, 1])
def test_an_interrupt_right_behind_its_request(before: int) -> None:
    """The kernel sends it once. Here it is there before the server has so much as begun to wait."""
    with mounted(Waiting(), start=False) as mount:
        first = [mount.send(Opcode.READ, reading(), 53) for _ in range(before)]
        unique = mount.send(Opcode.READ, reading(), 52)
        mount.interrupt(unique)
        mount.start()
        replies = {mount.receive() for _ in range(before + 1)}
        assert replies == {(unique, errno.EINTR, b""), *((one, 0, b"read 53") for one in first)}
        assert mount.still_serves


def test_a_plain_file_system_has_nothing_to_interrupt() -> None:
    with mounted(Still()) as mount:
        mount.interrupt(1)
        assert mount.still_serves


def test_a_module_may_cancel_and_fail_in_tasks_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with mounted(Waiting()) as mount:
        assert mount.ask(Opcode.READ, reading(), 53) == (0, b"read 53")
        assert mount.ask(Opcode.READ, reading(), 54) == (errno.EIO, b"")
        assert mount.still_serves
    assert "in a task of the module's own" in caplog.text


def test_what_waits_at_the_end_is_given_up() -> None:
    file_system = Waiting()
    with mounted(file_system) as mount:
        mount.send(Opcode.READ, reading(), 52)
        mount.send(Opcode.READ, reading(), 50)
        assert mount.still_serves
    assert file_system.given_up == ["cancelled"]
    assert file_system.closed
