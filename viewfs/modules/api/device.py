"""What the author of a character device implements.

A `CharDevice` is the device; every open(2) of it makes a `DeviceFile`, which lives until the last descriptor of that
open is closed. Each method gets the `Call`: who calls, and with which flags. As everywhere, a method that knows its
answer is a plain `def`, and one that has to wait an `async def`, which is cancelled when its caller is interrupted.
`CharDevice.when` does either: it returns the answer if there is one, raises EAGAIN for a caller that does not want to
wait, and waits otherwise.

Devices have no wait queues: they call `changed()`, and all that wait in read(2), poll(2) or epoll(7) check again.
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
    """The memory of the calling process, for following the pointers in an ioctl's structure.

    It can be used until the call is answered: the calling thread waits until then, and afterwards the addresses may
    mean anything. (process_vm_readv(2); other threads of the process may still change what is read.)
    """

    #: Bytes of one transfer, at most: the length that a caller gives may be wrong.
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
        """Put `data` at `address`. Raises OSError: EFAULT if not all of that memory can be written."""
        if len(data):
            self._check(address, len(data))
            self._reaching(process_vm_writev, address, data)

    def _reaching(self, transfer: Callable[[int, int, Any], None], address: int, what: Any) -> None:
        try:
            transfer(self._call.tid, address, what)
        except (PermissionError, ProcessLookupError) as error:
            # The program denies access to its memory, or has no process number in our pid namespace.
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
        #: The calling thread, by its number in the session's pid namespace; 0 if it has none there.
        self.tid = tid
        #: Its file system user and group, as the session sees them.
        self.uid = uid
        self.gid = gid
        #: The open file's flags at the time (O_NONBLOCK, O_APPEND, …), as in open(2).
        self.flags = flags
        #: The position in the file, in bytes, for devices that are not streams.
        self.offset = offset
        #: The caller is a 32-bit program: its structures and pointers are smaller.
        self.is_32bit = is_32bit
        self.is_over = False
        #: An earlier server had begun this call and died. What it had changed was undone, except the caller's memory.
        self.is_again = False
        #: Set by the host.
        self.note_progress: Callable[[int], None] | None = None
        self._progress = 0
        self._has_memory = has_memory
        self._group: int | None = None

    @property
    def pid(self) -> int:
        """The calling process; 0 if it is not known (see `thread_group_of`). Looked up when it is first asked for."""
        if self._group is None:
            self._group = thread_group_of(self.tid) if self.tid and not self.is_over else 0
        return self._group

    @property
    def nonblocking(self) -> bool:
        return bool(self.flags & os.O_NONBLOCK)

    @property
    def progress(self) -> int:
        """How far a call that waits midway has come, in units of its own: 0 at first, then the value that was set last,
        even if another server continues the call."""
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

    #: Command → its handler, from the methods that `ioctl` marks.
    ioctls: ClassVar[Mapping[int, IoctlHandler]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.ioctls = handlers_of(cls)

    #: Set by the host.
    keep: Callable[[int, bytes | None], None] = staticmethod(lambda _number, _state: None)

    def __init__(self, device: Any, call: Call) -> None:
        self.device = device
        self.flags = call.flags
        #: What was given to `remember`, by number.
        self.remembered: dict[int, bytes] = {}

    def remember(self, state: bytes | None, number: int = 0) -> None:
        """Store `state` of this file under `number` (32 bits), for `CharDevice.reopen` in a later server; None deletes
        it. For modules that keep state (`DeviceModule.keeps`)."""
        if state is None:
            self.remembered.pop(number, None)
        else:
            self.remembered[number] = state
        self.keep(number, state)

    def read(self, call: Call, size: int) -> Answer[Buffer]:
        """Up to `size` bytes; no bytes mean the end of the file. Raises OSError."""
        raise os_error(errno.EINVAL)

    def write(self, call: Call, data: bytes) -> Answer[int]:
        """Returns how many of the bytes were taken. Raises OSError."""
        raise os_error(errno.EINVAL)

    def poll(self) -> PollEvents:
        """The events that are ready now. When this may have changed, the device calls `CharDevice.changed`."""
        return READABLE | WRITABLE

    def flush(self, call: Call) -> Answer[None]:
        """Called when a descriptor is closed; close(2) returns the error that this raises."""
        return None

    def fsync(self, call: Call, *, data_only: bool) -> Answer[None]:
        """Make what was written durable."""
        return None

    def release(self) -> Answer[None]:
        """Called when the last descriptor is closed. No caller sees an error that this raises."""
        return None


class CharDevice:
    """A device: what all its open files share."""

    #: The class of its open files.
    file: type[DeviceFile] = DeviceFile
    #: Without positions: lseek(2) and pread(2) fail with ESPIPE, and a reader that waits does not hold up other calls
    #: on the same descriptor. A device with positions finds them in `Call.offset`.
    stream: bool = True
    #: Its size in bytes, as stat(2) and lseek(2) show it; for devices with positions.
    size: int = 0
    #: Permission bits.
    permissions: int = 0o666
    #: One open at a time: the next one gets `busy`.
    exclusive: bool = False
    busy: int = errno.EBUSY

    #: Reads, writes and ioctls have the same effect if they are done twice, so that after the death of a server it
    #: doesn't matter whether one was done.
    repeatable: bool = False

    _lot: ParkingLot | None = None
    #: Set by the host: makes pollers check again.
    wake_pollers: Callable[[], None] = staticmethod(lambda: None)
    #: Set by the host: called when a call continues after waiting, and when it is about to wait.
    step_begins: Callable[[], None] = staticmethod(lambda: None)
    step_ends: Callable[[], None] = staticmethod(lambda: None)

    def open(self, call: Call) -> Answer[DeviceFile]:
        """Called at every open(2). Raises OSError."""
        return self.file(self, call)

    def reopen(self, call: Call, remembered: Mapping[int, bytes]) -> DeviceFile:
        """Continue a file that an earlier server had open: `call` has its flags, `remembered` what it stored, by
        number. Raises OSError if it can't continue; calls on it then fail with ENODEV until it is opened again."""
        raise os_error(errno.ENODEV)

    async def run(self) -> None:
        """The device's background task: override it for a device that becomes ready by itself. It is cancelled when
        the device is taken away."""

    def close(self) -> None:
        """Called when the device is taken away and nobody has it open."""

    def changed(self) -> None:
        """Announce a change that a waiting call or poll(2) may be waiting for."""
        if self._lot is not None:
            self._lot.unpark_all()
        self.wake_pollers()

    def when(self, call: Call, ready: Callable[[], bool], act: Callable[[], T]) -> Answer[T]:
        """What `act()` returns, called once `ready()` is true: at once, or after waiting. Nothing else runs in between.

        Raises BlockingIOError if the caller would have to wait and does not want to.
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
        """Wait until `ready()` is true, which each `changed()` checks. Cancelled if the caller is interrupted or the
        device is taken away."""
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
    """A loadable module that is one device, or several. It is mounted at /dev/NAME unless a mount point is given."""

    #: It reads and writes memory of the processes that call it: `Call.memory`. Its server keeps CAP_SYS_PTRACE in the
    #: session, and can access the memory of every process of the view.
    uses_caller_memory: ClassVar[bool] = False

    @classmethod
    def uses_kernel_crypto(cls, options: Mapping[str, Any]) -> bool:
        """Will it open AF_ALG sockets, given these options?"""
        return False

    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int | None:
        """How many bytes of memory (`Mounting.kept`) its devices need to survive the death of their server. None: they
        don't survive it, and calls on files that were open then fail with ENODEV until they are opened again."""
        return None

    def kept(self, mounting: Mounting) -> Kept:
        """The memory of its devices, even if that does not outlive the server. Raises as `Kept` does."""
        return mounting.kept or Kept(self.keeps(mounting.options) or 0)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            if cls.mount_point is None:
                cls.mount_point = f"/dev/{cls.name}"
            cls.options = (*cls.__dict__.get("options", ()), *_COMMON_OPTIONS)

    def open_devices(self, mounting: Mounting) -> CharDevice | Mapping[str, CharDevice]:
        """The device; or several, by the suffix that each adds to the mount point ("" for the mount point itself).

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
