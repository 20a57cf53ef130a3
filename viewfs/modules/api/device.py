"""What the author of a character device implements.

A `CharDevice` is the device; every open(2) of it makes a `DeviceFile`, which lives until the last descriptor of that
open is closed. Each method gets the `Call`: who calls, and with which flags. As everywhere, a method that knows its
answer is a plain `def`, and one that has to wait an `async def`, which is cancelled when its caller is interrupted.
`CharDevice.when` is both: the answer if it is there, EAGAIN for a caller who does not want to wait, else the wait.

Devices have no queues to wake: they say `changed()`, and whoever waits in read(2), poll(2) or epoll(7) looks again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from enum import IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from viewfs.errors import os_error
from viewfs.linux.memory import process_vm_readv, process_vm_writev
from viewfs.linux.process import thread_group_of
from viewfs.modules.api import Answer, Buffer, Module, Mounting
from viewfs.modules.api.ioctls import IoctlHandler, handlers_of
from viewfs.modules.api.kept import Kept
from viewfs.modules.api.options import Option, flag, permissions

if TYPE_CHECKING:
    from trio.lowlevel import ParkingLot

__all__ = [
    "READABLE",
    "WRITABLE",
    "Call",
    "CallerMemory",
    "CharDevice",
    "DeviceFile",
    "DeviceModule",
    "PollEvents",
]

T = TypeVar("T")


class PollEvents(IntFlag):
    """What poll(2) waits for (asm-generic/poll.h)."""

    NONE = 0
    IN = 0x001
    PRI = 0x002
    OUT = 0x004
    ERR = 0x008
    HUP = 0x010
    RDNORM = 0x040
    WRNORM = 0x100
    RDHUP = 0x2000


READABLE = PollEvents.IN | PollEvents.RDNORM
WRITABLE = PollEvents.OUT | PollEvents.WRNORM


class CallerMemory:
    """The memory of the process that waits for an answer: for the pointers in an ioctl's structure.

    It can be used until the answer is given: the caller stands still until then, and afterwards the addresses may mean
    anything. (process_vm_readv(2); other threads of the process may still change what is read.)
    """

    #: Bytes in one go, at most: what a caller says is long need not be.
    LIMIT = 16 << 20

    def __init__(self, call: Call) -> None:
        self._call = call

    def _check(self, address: int, size: int) -> None:
        if self._call.is_over:
            raise RuntimeError("the caller has its answer; its memory is its own again")
        if size < 0 or size > self.LIMIT:
            raise os_error(errno.EINVAL)
        if size and (address <= 0 or address + size > 1 << 64):
            raise os_error(errno.EFAULT)

    def read(self, address: int, size: int) -> bytearray:
        """`size` bytes at `address`. Raises OSError: EFAULT if not all of it is there."""
        self._check(address, size)
        data = bytearray(size)
        self.read_into(address, data)
        return data

    def read_into(self, address: int, into: bytearray | memoryview) -> None:
        """Fill `into` from `address`. Raises OSError as `read` does."""
        if len(into):
            self._check(address, len(into))
            self._reaching(process_vm_readv, address, into)

    def write(self, address: int, data: Buffer) -> None:
        """Put `data` at `address`. Raises OSError: EFAULT if it does not fit into what may be written."""
        if len(data):
            self._check(address, len(data))
            self._reaching(process_vm_writev, address, data)

    def _reaching(self, transfer: Callable[[int, int, Any], None], address: int, what: Any) -> None:
        try:
            transfer(self._call.tid, address, what)
        except (PermissionError, ProcessLookupError) as error:
            # A program that keeps everybody out of its memory, or that no process number of ours stands for.
            raise os_error(errno.EFAULT) from error


class Call:
    """One call of a device: who made it, and how."""

    __slots__ = (
        "_group",
        "_has_memory",
        "_progress",
        "flags",
        "gid",
        "is_32bit",
        "is_again",
        "is_over",
        "note_progress",
        "offset",
        "tid",
        "uid",
    )

    def __init__(
        self,
        *,
        tid: int,
        uid: int,
        gid: int,
        flags: int = 0,
        offset: int = 0,
        is_32bit: bool = False,
        has_memory: bool = False,
    ) -> None:
        #: The thread that calls, by its number in the session's pid namespace; 0 for one that has none there.
        self.tid = tid
        #: Its file system user and group, as the session sees them.
        self.uid = uid
        self.gid = gid
        #: The open file's flags at the time (O_NONBLOCK, O_APPEND, …), as in open(2).
        self.flags = flags
        #: Where in the file, for devices that are no streams; bytes.
        self.offset = offset
        #: A program of 32 bits: its structures and pointers are smaller.
        self.is_32bit = is_32bit
        self.is_over = False
        #: A server that has died had begun this call, and what it changed was set back, but for the caller's memory.
        self.is_again = False
        #: Set by the host.
        self.note_progress: Callable[[int], None] | None = None
        self._progress = 0
        self._has_memory = has_memory
        self._group: int | None = None

    @property
    def pid(self) -> int:
        """The process that calls; 0 if it can't be told (see `thread_group_of`). Looked up when it is asked for."""
        if self._group is None:
            self._group = thread_group_of(self.tid) if self.tid and not self.is_over else 0
        return self._group

    @property
    def nonblocking(self) -> bool:
        return bool(self.flags & os.O_NONBLOCK)

    @property
    def progress(self) -> int:
        """How far a call has come that waits in the middle, in units of its own: 0 at first, and what it was set to
        last though another server carries it on."""
        return self._progress

    @progress.setter
    def progress(self, done: int) -> None:
        self._progress = done
        if self.note_progress is not None:
            self.note_progress(done)

    @property
    def memory(self) -> CallerMemory:
        """Raises `RuntimeError` in a device whose module does not say `uses_caller_memory`."""
        if not self._has_memory:
            raise RuntimeError("only modules with uses_caller_memory = True reach into their callers' memory")
        return CallerMemory(self)


class DeviceFile:
    """One open of a device. The methods here are those of a device that can do nothing but be opened."""

    #: Command → how it is answered; made from the methods that `ioctl` marks.
    ioctls: ClassVar[Mapping[int, IoctlHandler]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.ioctls = handlers_of(cls)

    #: Set by the host.
    keep: Callable[[int, bytes | None], None] = staticmethod(lambda _number, _state: None)

    def __init__(self, device: Any, call: Call) -> None:
        self.device = device
        self.flags = call.flags
        #: Of `remember`, by number.
        self.remembered: dict[int, bytes] = {}

    def remember(self, state: bytes | None, number: int = 0) -> None:
        """Have `CharDevice.reopen` of another server know `state` (None: nothing any more) of this file, under that
        number (of 32 bits). For modules that keep something (`DeviceModule.keeps`)."""
        if state is None:
            self.remembered.pop(number, None)
        else:
            self.remembered[number] = state
        self.keep(number, state)

    def read(self, call: Call, size: int) -> Answer[Buffer]:
        """Up to `size` bytes; none is the end. Raises OSError."""
        raise os_error(errno.EINVAL)

    def write(self, call: Call, data: bytes) -> Answer[int]:
        """How many of the bytes were taken. Raises OSError."""
        raise os_error(errno.EINVAL)

    def poll(self) -> PollEvents:
        """What would not have to wait now. `CharDevice.changed` says that this may have changed."""
        return READABLE | WRITABLE

    def flush(self, call: Call) -> Answer[None]:
        """A descriptor is closed; an error here is what close(2) returns."""
        return None

    def fsync(self, call: Call, *, data_only: bool) -> Answer[None]:
        """Make what was written last."""
        return None

    def release(self) -> Answer[None]:
        """The last descriptor is gone. Nobody learns of an error here."""
        return None


class CharDevice:
    """A device: what all who open it share."""

    #: What an open makes.
    file: type[DeviceFile] = DeviceFile
    #: Without positions: lseek(2) and pread(2) are ESPIPE, and a reader that waits holds up nobody on the same
    #: descriptor. A device with positions finds them in `Call.offset`.
    stream: bool = True
    #: Bytes, as stat(2) and lseek(2) show them; for devices with positions.
    size: int = 0
    #: Permission bits.
    permissions: int = 0o666
    #: One open at a time: the next one gets `busy`.
    exclusive: bool = False
    busy: int = errno.EBUSY

    #: Reading, writing and ioctls can be done twice as well as once, so that nobody has to know whether one was done
    #: when its server died.
    repeatable: bool = False

    _lot: ParkingLot | None = None
    #: Set by the host: pollers are to look again.
    wake_pollers: Callable[[], None] = staticmethod(lambda: None)
    #: Set by the host: a call goes on after waiting, or is about to wait.
    step_begins: Callable[[], None] = staticmethod(lambda: None)
    step_ends: Callable[[], None] = staticmethod(lambda: None)

    def open(self, call: Call) -> Answer[DeviceFile]:
        """Called at every open(2). Raises OSError."""
        return self.file(self, call)

    def reopen(self, call: Call, remembered: Mapping[int, bytes]) -> DeviceFile:
        """A file that is open since a server before this one: with which flags `call` says, and what it remembers by
        number. Raises OSError if it can't go on, whose calls then are ENODEV until it is opened again."""
        raise os_error(errno.ENODEV)

    async def run(self) -> None:
        """What goes on while nobody calls: override it for a device that becomes ready by itself. It is cancelled
        when the device is taken away."""

    def close(self) -> None:
        """The device is taken away, and nobody has it open."""

    def changed(self) -> None:
        """Something has changed that a waiting call or poll(2) may be waiting for."""
        if self._lot is not None:
            self._lot.unpark_all()
        self.wake_pollers()

    def when(self, call: Call, ready: Callable[[], bool], act: Callable[[], T]) -> Answer[T]:
        """What `act` returns, as soon as `ready()`: at once, or after waiting. Between the two nothing else happens.

        Raises BlockingIOError where the caller would have to wait and does not want to.
        """
        if ready():
            return act()
        if call.nonblocking:
            raise os_error(errno.EAGAIN)
        return self._act_later(ready, act)

    async def _act_later(self, ready: Callable[[], bool], act: Callable[[], T]) -> T:
        await self.until(ready)
        return act()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait for `changed()` until `ready()`. Cancelled if the caller is interrupted or the device taken away."""
        from trio.lowlevel import ParkingLot

        if self._lot is None:
            self._lot = ParkingLot()
        self.step_ends()
        while not ready():
            await self._lot.park()
        self.step_begins()


#: Options that every device has.
_COMMON_OPTIONS = (
    flag("exclusive", "one open at a time; others get EBUSY, or what the device says instead"),
    Option(
        "mode",
        permissions("mode", 0, "").parse,
        None,
        "permission bits",
        "OCTAL",
        show=lambda bits: "the device's own" if bits is None else f"{bits:o}",
    ),
)


class DeviceModule(Module):
    """A loadable module that is one device, or several. It is put at /dev/NAME unless a place is given."""

    #: It reads and writes memory of the processes that call it: `Call.memory`. Its server keeps CAP_SYS_PTRACE in the
    #: session, and may reach into every process of the view.
    uses_caller_memory: ClassVar[bool] = False

    @classmethod
    def uses_kernel_crypto(cls, options: Mapping[str, Any]) -> bool:
        """Will it open AF_ALG sockets, given these options?"""
        return False

    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int | None:
        """How many bytes of memory (`Mounting.kept`) its devices need to go on where their server dies; None: they
        don't, and what was open then is ENODEV until it is opened again."""
        return None

    def kept(self, mounting: Mounting) -> Kept:
        """What its devices keep; of a module that keeps nothing beyond its server too. Raises as `Kept` does."""
        return mounting.kept or Kept(self.keeps(mounting.options) or 0)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            if cls.mount_point is None:
                cls.mount_point = f"/dev/{cls.name}"
            cls.options = (*cls.__dict__.get("options", ()), *_COMMON_OPTIONS)

    def open_devices(self, mounting: Mounting) -> CharDevice | Mapping[str, CharDevice]:
        """The device; or several, by what is appended to the place for each ("" for one at the place itself).

        Raises `DamagedSourceError` or `UsageError` with what the user is to be told.
        """
        raise NotImplementedError

    def devices(self, mounting: Mounting) -> dict[str, CharDevice]:
        """What `open_devices` gives, with the options applied that every device has."""
        opened = self.open_devices(mounting)
        devices = {"": opened} if isinstance(opened, CharDevice) else dict(opened)
        for device in devices.values():
            device.exclusive = device.exclusive or mounting.options["exclusive"]
            if mounting.options["mode"] is not None:
                device.permissions = mounting.options["mode"]
        return devices
