"""Modules that redefine system calls, and add calls that no kernel has.

A handler is a method that says which call it answers. It is given who calls, and the arguments: numbers, paths and
texts, and what they point to, which was copied once. What it returns is the call's result; an `OSError` that it raises
is the caller's errno.

    class Greeting(CallModule):
        name = "greeting"

        @call(9999, "text out@2 size")
        def greet(self, caller, who, answer, size):
            answer += f"hello, {who}".encode()[:size]
            return len(answer)
"""

from __future__ import annotations

import ctypes
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar

from viewfs.linux.libc import c_void_p, check, function
from viewfs.linux.signatures import (
    FAMILIES,
    SIGNATURES,
    SIGNATURES_OF_32_BITS,
    SPECIAL_SIGNATURES,
    parse_signature,
    special,
)
from viewfs.linux.unotify import OPEN_FLAGS, VIRTUAL
from viewfs.modules.api import Module, Mounting

__all__ = [
    "GO_ON", "STRUCTURES", "CallModule", "Caller", "Descriptor", "File", "Handed", "HandedDescriptor", "Handler",
    "InView", "Opened", "Output", "Result", "SpecialDescriptor", "Timespec", "Timeval", "Utsname", "call",
    "special_call",
]  # fmt: skip

_uname = function("uname", c_void_p)
F = TypeVar("F", bound=Callable[..., Any])


class _GoOn:
    def __repr__(self) -> str:
        return "GO_ON"


#: A handler returns this to have the call done as if its module were not there: by a module that was loaded earlier, or
#: by the kernel.
GO_ON = _GoOn()


@dataclass(frozen=True)
class Descriptor:
    """Returned by a handler: the caller gets a duplicate of `fd`, and its number there is the result.

    It may be an end of a pipe or a socket, an eventfd or a timerfd. Whoever made it closes it, when it pleases.
    """

    fd: int
    close_on_exec: bool = False

    def __post_init__(self) -> None:
        if type(self.fd) is not int or not 0 <= self.fd < 1 << 31:
            raise ValueError(f"{self.fd!r} is no descriptor")


@dataclass(frozen=True)
class File:
    """Returned by a handler: the caller gets a descriptor of a file with this content (64 KiB at most), which nobody
    can change, and its number is the result."""

    content: bytes
    close_on_exec: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.content, bytes):
            raise TypeError(f"the content of a file is bytes, and not {self.content!r}")


@dataclass(frozen=True)
class Opened:
    """Returned by a handler: the caller gets a descriptor of the file at the absolute `path` of its view, and its
    number is the result.

    It has to be a file that a module serves, such as a device. (A module has no right to have others opened.)
    """

    path: str
    #: Of open(2): how it is to be read and written, O_NONBLOCK, O_APPEND, O_DIRECTORY, O_CLOEXEC.
    flags: int = os.O_RDWR
    #: Its number is one of `viewfs.linux.unotify.WINDOW`, so that its calls can be answered (`special_call`).
    is_special: bool = False

    def __post_init__(self) -> None:
        if not os.path.isabs(self.path) or "\0" in self.path:
            raise ValueError(f"{self.path!r} is no absolute path")
        if self.flags & ~OPEN_FLAGS:
            raise ValueError(f"a file can't be opened for a caller with the flags {self.flags:#o}")


@dataclass(frozen=True)
class SpecialDescriptor:
    """What a handler of `special_call` gets as its first argument."""

    number: int
    #: The path of what is open.
    path: str
    #: As of open(2).
    flags: int


class HandedDescriptor(NamedTuple):
    """A descriptor in the data of a `Handed`."""

    #: Where its number there (an int) goes in the data.
    offset: int
    #: It is closed when it was handed over.
    fd: int
    #: How much of the data is good if the caller can't have it, or any of those that follow.
    good: int
    close_on_exec: bool = False


@dataclass(frozen=True)
class Handed:
    """Returned by a handler: the caller gets `data` in its buffer, and duplicates of descriptors, whose numbers there
    are put into the data."""

    data: bytes
    #: 253 at most.
    fds: tuple[HandedDescriptor, ...] = ()
    #: The call's result; None: the length of the data.
    value: int | None = None
    #: Called with the numbers of those that the caller has got, before it has the answer, and whether it could not be
    #: given more. (Else it is gone, if these are too few.)
    given: Callable[[list[int], bool], None] = lambda _numbers, _failed: None


#: What a handler may return; None is 0.
Result: TypeAlias = "int | bytes | Descriptor | File | Handed | Opened | _GoOn | None"


class Output(bytearray):
    """Memory of the caller that a handler may fill: empty at first, and `size` bytes at most. What is in it when the
    handler returns is copied to the caller."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


@dataclass(frozen=True)
class Caller:
    """Who waits for the answer."""

    #: The call: its name, or its number if it is one that no kernel has.
    call: str
    pid: int
    tid: int
    #: Effective ids, as the host has them.
    uid: int
    gid: int
    #: 64, or 32.
    bits: int
    #: The working directory.
    cwd: str
    #: The six words of the call, as they are.
    words: tuple[int, ...]
    #: Which arguments were relative paths.
    relative: frozenset[int] = frozenset()


class Utsname(ctypes.Structure):
    """struct new_utsname (linux/utsname.h)."""

    FIELDS: ClassVar = ("sysname", "nodename", "release", "version", "machine", "domainname")
    sysname: bytes
    nodename: bytes
    release: bytes
    version: bytes
    machine: bytes
    domainname: bytes
    _fields_ = tuple((name, ctypes.c_char * 65) for name in FIELDS)

    @classmethod
    def now(cls) -> Utsname:
        """What uname(2) says to this process: to a module, what was said before it."""
        found = cls()
        check(_uname(ctypes.addressof(found)), "uname")
        return found


class Timespec(ctypes.Structure):
    """struct __kernel_timespec: 64 bits each."""

    seconds: int
    nanoseconds: int
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


class Timeval(ctypes.Structure):
    """struct __kernel_old_timeval of callers of 64 bits."""

    seconds: int
    microseconds: int
    _fields_ = (("seconds", ctypes.c_int64), ("microseconds", ctypes.c_int64))


@dataclass(frozen=True)
class Handler:
    """A method that answers calls."""

    method: str
    #: The family whose arguments it takes, if it is for one (`viewfs.linux.signatures`).
    family: str | None
    #: What it answers → signature.
    signatures: dict[str, str]
    #: The module can be loaded where these calls are not notified.
    is_dispensable: bool = False


def call(which: str | int, signature: str | None = None, *, is_dispensable: bool = False) -> Callable[[F], F]:
    """Have the method answer this call: the name of a system call; of a family of them; or a number from 1000 on, with
    a `signature` that says what its arguments are (`viewfs.linux.signatures`; without one, six numbers).

    `is_dispensable`: the module does without the call in views that don't ask their session about it. Raises
    ValueError for a call that is not known.
    """
    family = None
    if isinstance(which, int):
        if not VIRTUAL <= which < 1 << 30:
            raise ValueError(f"a call of one's own has a number from {VIRTUAL} on, and not {which}")
        signatures = {str(which): "size size size size size size" if signature is None else signature}
    elif signature is not None:
        raise ValueError(f"{which} has a signature already")
    elif which in FAMILIES:
        family = which
        signatures = {name: SIGNATURES[name] for name in FAMILIES[which]}
    elif which in SIGNATURES or which in SIGNATURES_OF_32_BITS:
        signatures = {which: SIGNATURES.get(which) or SIGNATURES_OF_32_BITS[which]}
    else:
        raise ValueError(f"no system call or family is called {which}")
    return _marking(family, signatures, is_dispensable=is_dispensable)


def special_call(name: str) -> Callable[[F], F]:
    """Have the method answer read(2) or ioctl(2) of special descriptors (`Opened.is_special`).

    It gets a `SpecialDescriptor`, and `GO_ON` leaves others' alone. An ioctl can write an int.
    """
    return _marking(None, {special(name): SPECIAL_SIGNATURES[special(name)]})


def _marking(family: str | None, signatures: dict[str, str], *, is_dispensable: bool = False) -> Callable[[F], F]:
    for one in signatures.values():
        parse_signature(one)

    def mark(method: F) -> F:
        handlers = [*getattr(method, "_answers", []), Handler(method.__name__, family, signatures, is_dispensable)]
        method._answers = handlers  # type: ignore[attr-defined]
        return method

    return mark


class InView(Protocol):
    """What a module that lives in the view can have done there. It waits for others: call it in a thread."""

    def mount_fuse(self, path: str, root_mode: int, source: str) -> int:
        """Mount a FUSE file system that this process serves: the descriptor of /dev/fuse. Raises OSError."""

    def unmount(self, path: str, *, lazy: bool = False) -> None:
        """Unmount it, if nobody uses it or it is to be `lazy`. Raises OSError: EBUSY."""


class CallModule(Module):
    """A module that answers system calls. Methods with `call` are its handlers.

    Where `insmod` names a place, only calls with a path there or below are the module's, and those with a descriptor of
    a file there.
    """

    #: Where `insmod` names no place, it owns this one; None: its calls wherever they lead.
    mount_point: ClassVar[str | None] = None
    #: Its server is a process of the view like its programs, with no less and no more rights: it sees the view as it is
    #: now, and not as it was when the module was loaded.
    lives_in_view: ClassVar[bool] = False
    #: Set by the host if it does.
    in_view: InView
    #: Set by the host: hear what has come for the module until now, besides calls which caller has got which numbers.
    hear_more: Callable[[], None] = staticmethod(lambda: None)

    def begin(self, mounting: Mounting) -> None:
        """Called once, before the first call. `mounting.mount_point` is the place, or empty.

        Raises `UsageError` with what the user is to be told.
        """

    def end(self) -> None:
        """Called when the module was unloaded."""

    def owns(self, caller: Caller, *arguments: Any) -> bool:
        """Is this call the module's? One that is not goes on. (Asked for every call that a handler is for.)"""
        return True

    async def run(self) -> None:
        """Called once, in the event loop, if any handler is `async`: for work that goes on between calls. When it
        returns, nothing ends; it is cancelled when the module is unloaded."""

    @classmethod
    def handlers(cls) -> Iterator[Handler]:
        """All handlers, those of base classes too."""
        for _name, member in inspect.getmembers(cls, callable):
            yield from getattr(member, "_answers", ())

    @classmethod
    def waits(cls) -> bool:
        """Is any handler `async`?"""
        return any(inspect.iscoroutinefunction(getattr(cls, handler.method)) for handler in cls.handlers())


#: (call, argument) → the structure that is there, for callers of 64 bits and of 32.
_Structures: TypeAlias = "dict[tuple[str, int], tuple[type[ctypes.Structure], type[ctypes.Structure]]]"


class _Timespec32(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int32), ("nanoseconds", ctypes.c_int32))


class _Timeval32(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int32), ("microseconds", ctypes.c_int32))


STRUCTURES: _Structures = {
    ("uname", 0): (Utsname, Utsname),
    ("clock_gettime", 1): (Timespec, _Timespec32),
    ("clock_gettime64", 1): (Timespec, Timespec),
    ("clock_settime", 1): (Timespec, _Timespec32),
    ("clock_settime64", 1): (Timespec, Timespec),
    ("gettimeofday", 0): (Timeval, _Timeval32),
    ("settimeofday", 0): (Timeval, _Timeval32),
}
