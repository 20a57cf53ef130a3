"""A server of devices dies over a call, and another one finishes that: it is carried out once.

The kernel's part is played here, so that a server can be killed before each line of Python that it executes.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
import struct
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.unit.fuse_wire import request
from viewfs.modules.api.device import Call, CharDevice, DeviceFile
from viewfs.modules.api.kept import Kept
from viewfs.modules.devices.pipe import _Device as PipeDevice
from viewfs.modules.devices.useless import _Device as UselessDevice
from viewfs.mounts.fuse.device_host import Lasting
from viewfs.mounts.fuse.lasting_devices import LastingDevices
from viewfs.mounts.fuse.ledger import FixedLedger
from viewfs.mounts.fuse.protocol import Opcode, decode

RESENT = 1 << 63
SIZE = 8192
WATCHED = ("lasting_devices.py", "ledger.py", "kept.py", "useless.py", "pipe.py", "device_operations.py", "device.py")
Make = Callable[[Kept], CharDevice]


class Kernel:
    """The kernel's side of one device, whose server can be changed."""

    def __init__(self, make: Make, ledger_bytes: int = FixedLedger.BYTES) -> None:
        self._make = make
        self._fds = FixedLedger.create(ledger_bytes), Kept.create(SIZE)
        self._unique = 0
        self.woken: list[bytes] = []
        self.operations: LastingDevices = None  # type: ignore[assignment]
        self.change_server()

    def close(self) -> None:
        self._forget_server()
        for fd in self._fds:
            os.close(fd)

    def _forget_server(self) -> None:
        """Its parts know each other, and what is mapped keeps descriptors open until all are gone."""
        if self.operations is not None:
            for opened in self.operations.opened.values():
                vars(opened.file).clear()
            vars(self.device).clear()
            vars(self.operations).clear()
            self.operations = None  # type: ignore[assignment]

    def change_server(self) -> None:
        """As when the one before has died: nothing is left of it but its memory."""
        self._forget_server()
        lasting = Lasting.of(*map(os.dup, self._fds), SIZE)
        lasting.settle()
        self.device = self._make(lasting.kept)
        self.operations = LastingDevices({"": self.device}, self.woken.append, ledger=lasting.ledger, kept=lasting.kept)

    def ask(self, opcode: int, body: bytes, *, again: bool = False) -> bytes:
        """The answer to a request, which may have been sent before. Raises OSError."""
        if not again:
            self._unique += 2
        unique = self._unique | RESENT if again else self._unique
        answer: Any = self.operations.dispatch(decode(request(opcode, body, unique=unique)))
        if hasattr(answer, "__await__"):

            async def wait() -> Any:
                with trio.fail_after(0.1):  # it could wait for somebody; nobody comes
                    return await answer

            answer = trio.run(wait)
        return answer if isinstance(answer, bytes) else b"".join(map(bytes, answer or ()))

    def open(self, flags: int) -> int:
        return int(struct.unpack_from("=Q", self.ask(Opcode.OPEN, struct.pack("=II", flags, 0)))[0])


def opening(flags: int) -> bytes:
    return struct.pack("=II", flags, 0)


def reading(handle: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", handle, 0, size, 0, 0, os.O_RDWR, 0)


def writing(handle: int, data: bytes) -> bytes:
    return struct.pack("=QQIIQII", handle, 0, len(data), 0, 0, os.O_RDWR, 0) + data


def releasing(handle: int) -> bytes:
    return struct.pack("=QIIQ", handle, 0, 0, 0)


def killed_at(number: int) -> Callable[[FrameType, str, Any], Any]:
    """Ends this process before the line of that number that is executed in what is watched."""
    left = number

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(WATCHED):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def in_a_child(work: Callable[[], Any], number: int) -> bool:
    """Was it killed before it was done?"""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sys.settrace(killed_at(number))
            work()
            sys.settrace(None)
            code = 0
        except OSError:
            code = 0  # that is an answer too
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status)
    return os.WIFSIGNALED(status)


def contents(kernel: Kernel) -> tuple[list[int], bytes]:
    """What a device holds, as one who opens it sees it."""
    device = kernel.device
    registers = list(device.kept.registers)  # type: ignore[attr-defined]
    if isinstance(device, PipeDevice):
        data = device.take(SIZE)
        device.put(data)
        return registers[1:4], data
    return registers, bytes(device.kept.memory[: registers[0]])  # type: ignore[attr-defined]


def on_useless(kernel: Kernel) -> dict[str, tuple[int, bytes]]:
    handle = kernel.open(os.O_RDWR)
    kernel.ask(Opcode.WRITE, writing(handle, b"first"))
    kernel.ask(Opcode.READ, reading(handle, 2))
    return {
        "open": (Opcode.OPEN, opening(os.O_RDWR)),
        "open and truncate": (Opcode.OPEN, opening(os.O_RDWR | os.O_TRUNC)),
        "read": (Opcode.READ, reading(handle, 2)),
        "write": (Opcode.WRITE, writing(handle, b"second")),
        "write too much": (Opcode.WRITE, writing(handle, b"x" * 2 * SIZE)),
        "release": (Opcode.RELEASE, releasing(handle)),
    }


def on_pipe(kernel: Kernel) -> dict[str, tuple[int, bytes]]:
    reader, writer = kernel.open(os.O_RDONLY), kernel.open(os.O_WRONLY)
    for _round in range(3):  # so that what follows goes around the end
        kernel.ask(Opcode.WRITE, writing(writer, b"o" * 3000))
        kernel.ask(Opcode.READ, reading(reader, 2900))
    return {
        "open to write": (Opcode.OPEN, opening(os.O_WRONLY)),
        "read": (Opcode.READ, reading(reader, 100)),
        "write": (Opcode.WRITE, writing(writer, b"x" * 5000)),
        "release": (Opcode.RELEASE, releasing(writer)),
    }


DEVICES: dict[str, tuple[Make, Callable[[Kernel], dict[str, tuple[int, bytes]]], list[str]]] = {
    "useless": (
        UselessDevice,
        on_useless,
        ["open", "open and truncate", "read", "write", "write too much", "release"],
    ),
    "pipe": (PipeDevice, on_pipe, ["open to write", "read", "write", "release"]),
}


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, row in DEVICES.items() for call in row[2]])
def test_killed_before_every_line(name: str, call: str) -> None:
    make, prepare, _calls = DEVICES[name]

    def tried(number: int | None) -> tuple[bool, Any]:
        """Answer, device and a file that was open, after a call whose server was killed there."""
        kernel = Kernel(make)
        opcode, body = prepare(kernel)[call]
        handle = kernel._unique
        killed = False
        if number is not None:
            killed = in_a_child(lambda: kernel.ask(opcode, body), number)
            kernel._unique = handle + 2
            kernel.change_server()
        answer: bytes | int
        try:
            answer = kernel.ask(opcode, body, again=number is not None)
        except OSError as error:
            assert error.errno is not None
            answer = error.errno
        files = sorted(kernel.operations.opened)
        positions = [getattr(opened.file, "_position", None) for opened in kernel.operations.opened.values()]
        found = answer, contents(kernel), files, positions, kernel.operations.nodes[1].opens  # type: ignore[index]
        kernel.close()
        return killed, found

    _killed, right = tried(None)
    number, killed = 0, True
    while killed:
        killed, found = tried(number)
        assert found == right, f"killed before line {number}"
        number += 1
    assert number > 10, "lines of the server were seen"


def test_a_write_that_waits_goes_on_where_it_was() -> None:
    """Part of it is in the pipe when the server dies."""
    kernel = Kernel(PipeDevice)
    reader, writer = kernel.open(os.O_RDONLY), kernel.open(os.O_WRONLY)
    data = bytes(range(256)) * 100
    body = writing(writer, data)

    async def write_until_it_waits(unique: int) -> None:
        """Ends the process: with 7 if all is written."""
        answer: Any = kernel.operations.dispatch(decode(request(Opcode.WRITE, body, unique=unique)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(die_when_waiting)
            os._exit(7 if await answer == struct.pack("=II", len(data), 0) else 1)

    async def die_when_waiting() -> None:
        await trio.testing.wait_all_tasks_blocked()
        os._exit(0)

    got, code, unique = b"", 0, 1000
    while code == 0:
        if (pid := os.fork()) == 0:
            trio.run(write_until_it_waits, unique)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        kernel.change_server()
        unique |= RESENT
        kernel._unique += 2000
        while cast(PipeDevice, kernel.device).length:
            got += kernel.ask(Opcode.READ, reading(reader, 1000))
    assert code == 7 and got == data
    kernel.close()


def test_who_polls_is_woken_by_the_next_server() -> None:
    kernel = Kernel(PipeDevice)
    reader = kernel.open(os.O_RDONLY | os.O_NONBLOCK)
    kernel.ask(Opcode.POLL, struct.pack("=QQII", reader, 55, 1, 1))
    kernel.change_server()
    assert struct.pack("=Q", 55) in kernel.woken[-1]
    kernel.close()


def test_a_file_that_can_t_go_on_is_dead_and_the_device_is_not() -> None:
    class Forgets(CharDevice):
        exclusive = True

        def __init__(self, kept: Kept) -> None:
            self.kept = kept

        def open(self, call: Call) -> DeviceFile:
            return DeviceFile(self, call)

    kernel = Kernel(Forgets)
    handle = kernel.open(os.O_RDWR)
    kernel.change_server()
    with pytest.raises(OSError) as raised:
        kernel.ask(Opcode.FLUSH, releasing(handle))
    assert raised.value.errno == errno.ENODEV
    other = kernel.open(os.O_RDWR)
    assert other != handle
    kernel.ask(Opcode.RELEASE, releasing(handle))
    with pytest.raises(OSError):
        kernel.open(os.O_RDWR)  # it is one at a time still
    kernel.close()


def test_a_ledger_that_stays_as_large_as_it_is() -> None:
    """It goes from one half to the other, and says so when too much is to be known."""
    fd = FixedLedger.create(1 << 20)
    ledger = FixedLedger(fd)
    for number in range(20_000):
        ledger.begin_step(number)
        ledger.put(number % 10, b"%d" % number * 20)
        ledger.finish(0, b"")
    assert os.fstat(fd).st_size == (1 << 20) + 4096
    right = {number % 10: b"%d" % number * 20 for number in range(20_000)}
    assert FixedLedger(fd).records() == ledger.records() == right
    with pytest.raises(OSError):
        for number in range(20, 1000):
            ledger.begin_step(number)
            ledger.put(number, b"x" * 2000)
    assert FixedLedger(fd).records().items() >= right.items()
    os.close(fd)


@pytest.mark.parametrize("name", DEVICES)
def test_what_a_server_that_was_taken_over_leaves(name: str) -> None:
    """The next one is shut in as well, and ends or serves; it does not hang."""
    make, prepare, calls = DEVICES[name]
    chance = random.Random(name)
    outcomes = set()
    for _round in range(200):
        kernel = Kernel(make)
        requests = prepare(kernel)
        for fd in kernel._fds:
            for _flip in range(chance.randrange(1, 30)):
                os.pwrite(fd, chance.randbytes(1), chance.choice((chance.randrange(64), chance.randrange(6000))))
        try:
            kernel.change_server()
            for call in calls:
                kernel.ask(*requests[call], again=chance.random() < 0.3)
            outcomes.add("served")
        except Exception as error:
            outcomes.add(type(error).__name__)
        finally:
            kernel.close()
            if _round % 20 == 0:
                gc.collect()  # servers that failed while they were made
    assert len(outcomes) > 1
