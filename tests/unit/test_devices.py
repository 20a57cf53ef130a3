"""Devices without a kernel: the operations asked directly, and the host over a pair of sockets."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fuse_wire import Attr, Entry, read_directory, request
from viewfs.modules.api import Answer
from viewfs.modules.api.device import READABLE, WRITABLE, Call, CharDevice, DeviceFile, PollEvents
from viewfs.modules.api.ioctls import _IO, _IOR, _IOW, _IOWR, ioctl, is_read, is_written, size_of
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.device_host import serve_devices
from viewfs.mounts.fuse.device_operations import DeviceOperations
from viewfs.mounts.fuse.protocol import Opcode, decode

SECONDS = 20


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int32), ("y", ctypes.c_int32))


class QueueFile(DeviceFile):
    def read(self, call: Call, size: int) -> Answer[bytes]:
        device = self.device
        return device.when(call, lambda: bool(device.data), lambda: device.take(size))

    def write(self, call: Call, data: bytes) -> int:
        self.device.data += data
        self.device.changed()
        return len(data)

    def poll(self) -> PollEvents:
        return WRITABLE | (READABLE if self.device.data else PollEvents.NONE)

    @ioctl(_IOWR("v", 1, Point), Point)
    def swap(self, call: Call, point: Point) -> None:
        point.x, point.y = point.y, point.x

    @ioctl(_IO("v", 2))
    def double(self, call: Call, number: int) -> int:
        return 2 * number

    @ioctl(_IOR("v", 3, ctypes.c_uint64), ctypes.c_uint64)
    async def later(self, call: Call, number: ctypes.c_uint64) -> None:
        await self.device.until(lambda: bool(self.device.data))
        number.value = len(self.device.data)

    def release(self) -> None:
        self.device.released += 1


class Queue(CharDevice):
    file = QueueFile

    def __init__(self) -> None:
        self.data = bytearray()
        self.released = 0

    def take(self, size: int) -> bytes:
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken


def body(opcode: int, *fields: int, rest: bytes = b"") -> bytes:
    layout = {
        Opcode.OPEN: "=II", Opcode.READ: "=QQIIQII", Opcode.WRITE: "=QQIIQII", Opcode.IOCTL: "=QIIQII",
        Opcode.POLL: "=QQII", Opcode.RELEASE: "=QIIQ", Opcode.GETATTR: "=IIQ", Opcode.FLUSH: "=QIIQ",
        Opcode.READDIR: "=QQIIQII", Opcode.FSYNC: "=QII",
    }[opcode]  # fmt: skip
    count = len(struct.unpack(layout, bytes(struct.calcsize(layout))))
    return struct.pack(layout, *fields, *(0,) * (count - len(fields))) + rest


class Operations:
    """Asks without a host."""

    def __init__(self, **devices: CharDevice) -> None:
        self.sent: list[bytes] = []
        named = {"" if name == "alone" else name: device for name, device in devices.items()}
        self.operations = DeviceOperations(named, self.sent.append)

    def ask(self, opcode: int, *fields: int, rest: bytes = b"", node: int = 1) -> Any:
        answer = self.operations.dispatch(decode(request(opcode, body(opcode, *fields, rest=rest), node=node)))
        return b"".join(answer) if isinstance(answer, list) else answer

    def open(self, flags: int = os.O_RDWR, node: int = 1) -> int:
        handle, _flags, _padding = struct.unpack("=QII", self.ask(Opcode.OPEN, flags, node=node))
        return int(handle)


@pytest.fixture
def alone() -> Operations:
    return Operations(alone=Queue())


@contextmanager
def failing(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number


# -- ioctl numbers


def test_numbers_are_the_header_s() -> None:
    # BLKGETSIZE64, FIONREAD's kin of evdev, a size of 2^14 - 1.
    assert _IOR(0x12, 114, 8) == 0x80081272
    assert _IOW("E", 0x90, 4) == 0x40044590
    assert _IO("v", 2) == 0x7602
    assert size_of(_IOWR("v", 1, 16383)) == 16383
    assert is_read(_IOR("v", 1, 4)) and not is_written(_IOR("v", 1, 4))
    for wrong in (16384, -1):
        with pytest.raises(ValueError):
            _IOR("v", 1, wrong)


def test_a_structure_must_have_the_size_that_the_number_says() -> None:
    with pytest.raises(TypeError, match="8 bytes, and the structure has 4"):
        ioctl(_IOR("v", 1, Point), ctypes.c_int)
    with pytest.raises(TypeError, match="8 bytes"):
        ioctl(_IOR("v", 1, Point))


def test_two_methods_can_t_answer_the_same() -> None:
    with pytest.raises(TypeError, match="both first and second"):

        class Twice(DeviceFile):
            @ioctl(_IO("v", 1))
            def first(self, call: Call, number: int) -> None: ...

            @ioctl(_IO("v", 1))
            def second(self, call: Call, number: int) -> None: ...


# -- the operations


def test_a_device_alone_is_the_root(alone: Operations) -> None:
    attr = Attr.parse(alone.ask(Opcode.GETATTR)[16:])
    assert (attr.mode, attr.size, attr.ino) == (0o100666, 0, 1)
    handle = alone.open()
    alone.ask(Opcode.WRITE, handle, 0, 5, rest=b"hello")
    assert alone.ask(Opcode.READ, handle, 0, 100) == b"hello"


def test_several_devices_are_files_of_a_directory() -> None:
    operations = Operations(one=Queue(), two=Queue())
    entry = Entry.parse(operations.operations.dispatch(decode(request(Opcode.LOOKUP, b"two\0"))))  # type: ignore[arg-type]
    assert entry.node == 3 and entry.attr.mode == 0o100666
    names = [found.name for found in read_directory(operations.ask(Opcode.READDIR, 0, 0, 4096), plus=False)]
    assert names == [b".", b"..", b"one", b"two"]
    with failing(errno.ENOENT):
        operations.operations.dispatch(decode(request(Opcode.LOOKUP, b"three\0")))
    with failing(errno.EISDIR):
        operations.open(node=1)
    one, two = operations.open(node=2), operations.open(node=3)
    operations.ask(Opcode.WRITE, one, 0, 3, rest=b"111", node=2)
    with failing(errno.EAGAIN):
        operations.ask(Opcode.READ, two, 0, 10, 0, 0, os.O_NONBLOCK, node=3)


def test_streams_are_opened_as_such(alone: Operations) -> None:
    def flags_of(operations: Operations) -> int:
        return int(struct.unpack("=QII", operations.ask(Opcode.OPEN, os.O_RDWR))[1])

    positions = Queue()
    positions.stream = False
    # FOPEN_DIRECT_IO, FOPEN_NONSEEKABLE, FOPEN_STREAM, FOPEN_NOFLUSH; FOPEN_PARALLEL_DIRECT_WRITES
    assert flags_of(alone) == 1 | 4 | 16 | 32
    assert flags_of(Operations(alone=positions)) == 1 | 32 | 64


def test_the_rest_of_a_long_read_does_not_wait(alone: Operations) -> None:
    handle = alone.open()
    with failing(errno.EAGAIN):
        alone.ask(Opcode.READ, handle, 1 << 20, 4096)


def test_ioctls(alone: Operations) -> None:
    handle = alone.open()
    swap = _IOWR("v", 1, Point)
    reply = alone.ask(Opcode.IOCTL, handle, 0, swap, 0, 8, 8, rest=struct.pack("=ii", 3, -4))
    assert reply == struct.pack("=iIIIii", 0, 0, 0, 0, -4, 3)
    assert alone.ask(Opcode.IOCTL, handle, 0, _IO("v", 2), 21)[:4] == struct.pack("=i", 42)
    with failing(errno.ENOTTY):
        alone.ask(Opcode.IOCTL, handle, 0, _IO("v", 99), 21)
    with failing(errno.EINVAL):
        alone.ask(Opcode.IOCTL, handle, 0, swap, 0, 8, 8, rest=b"1234")
    with pytest.raises(ValueError, match="can't return"):
        alone.ask(Opcode.IOCTL, handle, 0, _IO("v", 2), 1 << 40)


def test_pollers_are_woken_once_and_only_for_what_they_wait_for(alone: Operations) -> None:
    handle = alone.open()
    assert alone.ask(Opcode.POLL, handle, 77, 1, PollEvents.IN)[:4] == struct.pack("=I", WRITABLE)
    device = alone.operations.opened[handle].device
    device.changed()
    assert alone.sent == [], "nothing to read has come"
    alone.ask(Opcode.WRITE, handle, 0, 1, rest=b"x")
    assert alone.sent == [struct.pack("=IiQQ", 24, 1, 0, 77)]
    alone.ask(Opcode.WRITE, handle, 0, 1, rest=b"y")
    assert len(alone.sent) == 1, "who has been woken looks, and asks again"
    assert alone.ask(Opcode.POLL, handle, 77, 1, PollEvents.IN)[:4] == struct.pack("=I", WRITABLE | READABLE)
    alone.ask(Opcode.WRITE, handle, 0, 1, rest=b"z")
    assert len(alone.sent) == 2


def test_an_exclusive_device() -> None:
    device = Queue()
    device.exclusive, device.busy = True, errno.EUSERS
    operations = Operations(alone=device)
    handle = operations.open()
    with failing(errno.EUSERS):
        operations.open()
    operations.ask(Opcode.RELEASE, handle)
    operations.open()
    assert device.released == 1


def test_a_failing_open_leaves_no_trace() -> None:
    class Never(CharDevice):
        exclusive = True

        def open(self, call: Call) -> DeviceFile:
            raise OSError(errno.ENXIO, "never")

    operations = Operations(alone=Never())
    for _attempt in range(2):
        with failing(errno.ENXIO):
            operations.open()


@pytest.mark.parametrize("given", ["text", None, b"longer than was asked for"])
def test_what_a_device_must_not_return(given: Any) -> None:
    class Wrong(CharDevice):
        class file(DeviceFile):
            def read(self, call: Call, size: int) -> Any:
                return given

    operations = Operations(alone=Wrong())
    with pytest.raises((TypeError, ValueError)):
        operations.ask(Opcode.READ, operations.open(), 0, 4)


def test_memory_is_out_of_reach_unless_declared_and_after_the_answer() -> None:
    call = Call(tid=os.getpid(), uid=0, gid=0)
    with pytest.raises(RuntimeError, match="uses_caller_memory"):
        _ = call.memory
    call = Call(tid=os.getpid(), uid=0, gid=0, has_memory=True)
    buffer = ctypes.create_string_buffer(b"hello", 5)
    memory = call.memory
    assert memory.read(ctypes.addressof(buffer), 5) == b"hello"
    memory.write(ctypes.addressof(buffer), b"HE")
    assert buffer.raw == b"HEllo"
    for address, size, number in [
        (16, 1, errno.EFAULT), (0, 1, errno.EFAULT), ((1 << 64) - 1, 2, errno.EFAULT),
        (ctypes.addressof(buffer), -1, errno.EINVAL), (ctypes.addressof(buffer), 1 << 40, errno.EINVAL),
    ]:  # fmt: skip
        with failing(number):
            memory.read(address, size)
    call.is_over = True
    with pytest.raises(RuntimeError, match="its own again"):
        memory.read(ctypes.addressof(buffer), 1)


def test_a_thread_s_process_is_found() -> None:
    found: list[int] = []

    def look() -> None:
        found.append(Call(tid=threading.get_native_id(), uid=0, gid=0).pid)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    # 0 where the kernel is older than Linux 6.13.
    assert found[0] in (os.getpid(), 0)
    assert Call(tid=os.getpid(), uid=0, gid=0).pid == os.getpid()
    assert Call(tid=0, uid=0, gid=0).pid == 0


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([int(opcode) for opcode in Opcode if opcode not in (Opcode.INTERRUPT,)]),
            st.binary(max_size=96),
            st.integers(0, 4),
        ),
        max_size=20,
    )
)
def test_nothing_that_is_asked_breaks_the_operations(messages: list[tuple[int, bytes, int]]) -> None:
    """Whatever comes, the answer is an errno or a body (or a fault of one call), and the next question is answered."""
    operations = Operations(one=Queue(), two=Queue())
    operations.open(node=2)
    for opcode, data, node in messages:
        try:
            asked = decode(request(opcode, data, node=node))
            answer = operations.operations.dispatch(asked)
        except (OSError, ValueError):
            continue
        if hasattr(answer, "close"):
            answer.close()
    assert Attr.parse(operations.ask(Opcode.GETATTR, node=2)[16:]).mode == 0o100666


# -- the host


class Host:
    """The kernel's end of a served device."""

    def __init__(self, device: CharDevice) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(SECONDS)
        reading, self.control = os.pipe()
        counters = Counters.create()

        def serve() -> None:
            try:
                serve_devices({"": device}, theirs.fileno(), counters, reading)
            finally:
                theirs.close()
                os.close(reading)
                counters.close()

        self._thread = threading.Thread(target=serve)
        self._thread.start()
        self._unique = 0

    def send(self, opcode: int, *fields: int, rest: bytes = b"") -> int:
        self._unique += 1
        packed = struct.pack("=Q", *fields) if opcode == Opcode.INTERRUPT else body(opcode, *fields, rest=rest)
        self.ours.send(request(opcode, packed, unique=self._unique))
        return self._unique

    def receive(self) -> tuple[int, int, bytes]:
        reply = self.ours.recv(1 << 21)
        _length, error, unique = struct.unpack_from("=IiQ", reply)
        return unique, -error, reply[16:]

    def ask(self, opcode: int, *fields: int, rest: bytes = b"") -> tuple[int, bytes]:
        unique = self.send(opcode, *fields, rest=rest)
        answered, error, reply = self.receive()
        assert answered == unique
        return error, reply

    def open(self) -> int:
        error, reply = self.ask(Opcode.OPEN, os.O_RDWR)
        assert error == 0
        return int(struct.unpack_from("=Q", reply)[0])

    def withdraw(self) -> None:
        if self.control >= 0:
            os.close(self.control)
            self.control = -1

    def end(self) -> None:
        self.ours.close()
        self._thread.join(SECONDS)
        self.withdraw()
        assert not self._thread.is_alive()


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def host(queue: Queue) -> Iterator[Host]:
    served = Host(queue)
    yield served
    served.end()


def test_a_read_waits_while_others_are_answered(host: Host) -> None:
    handle = host.open()
    waiting = host.send(Opcode.READ, handle, 0, 100)
    assert host.ask(Opcode.GETATTR)[0] == 0
    writing = host.send(Opcode.WRITE, handle, 0, 3, rest=b"now")
    answers = {unique: (error, reply) for unique, error, reply in (host.receive(), host.receive())}
    assert answers[waiting] == (0, b"now")
    assert answers[writing][0] == 0


def test_an_interrupted_read_is_eintr_and_takes_nothing(host: Host) -> None:
    handle = host.open()
    waiting = host.send(Opcode.READ, handle, 0, 100)
    host.send(Opcode.INTERRUPT, waiting)
    assert host.receive() == (waiting, errno.EINTR, b"")
    assert host.ask(Opcode.WRITE, handle, 0, 3, rest=b"now")[0] == 0
    assert host.ask(Opcode.READ, handle, 0, 100) == (0, b"now")


def test_taking_a_device_away_answers_those_who_wait_and_wakes_those_who_poll(host: Host) -> None:
    handle = host.open()
    assert host.ask(Opcode.POLL, handle, 5, 1, PollEvents.IN)[0] == 0
    waiting = [host.send(Opcode.READ, handle, 0, 100), host.send(Opcode.IOCTL, handle, 0, _IOR("v", 3, 8), 0, 0, 8)]
    assert host.ask(Opcode.GETATTR)[0] == 0
    host.withdraw()
    answers = [host.receive() for _ in range(3)]
    assert (0, -1, struct.pack("=Q", 5)) in answers, "a wake-up"
    assert {(unique, errno.ENODEV, b"") for unique in waiting} <= set(answers)
    for opcode in (Opcode.READ, Opcode.WRITE, Opcode.IOCTL, Opcode.POLL, Opcode.GETATTR, Opcode.OPEN, Opcode.FSYNC):
        by_name = opcode in (Opcode.GETATTR, Opcode.OPEN)
        assert host.ask(opcode, 0 if by_name else handle) == (errno.ENODEV, b""), opcode
    assert host.ask(Opcode.FLUSH, handle)[0] == 0
    assert host.ask(Opcode.RELEASE, handle)[0] == 0


def test_taking_an_idle_device_away(host: Host) -> None:
    handle = host.open()
    assert host.ask(Opcode.POLL, handle, 5, 1, PollEvents.IN)[0] == 0
    host.withdraw()
    assert host.receive() == (0, -1, struct.pack("=Q", 5))


def test_an_async_ioctl_waits(host: Host) -> None:
    handle = host.open()
    waiting = host.send(Opcode.IOCTL, handle, 0, _IOR("v", 3, 8), 0, 0, 8)
    writing = host.send(Opcode.WRITE, handle, 0, 3, rest=b"now")
    answers = {unique: reply for unique, _error, reply in (host.receive(), host.receive())}
    assert answers[waiting] == struct.pack("=iIIIQ", 0, 0, 0, 0, 3)
    assert writing in answers


def test_what_is_open_at_the_end_is_released(queue: Queue) -> None:
    served = Host(queue)
    served.open()
    served.end()
    assert queue.released == 1


def test_a_device_that_does_something_by_itself() -> None:
    class Ticking(Queue):
        async def run(self) -> None:
            self.data += b"tick"
            self.changed()
            raise RuntimeError("on purpose: its end is not the device's")

    served = Host(Ticking())
    try:
        handle = served.open()
        assert served.ask(Opcode.READ, handle, 0, 100) == (0, b"tick")
        assert served.ask(Opcode.WRITE, handle, 0, 1, rest=b"x")[0] == 0
    finally:
        served.end()
