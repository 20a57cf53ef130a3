"""ioctl(2) commands: building their numbers, and declaring which method of an open file answers which command.

A command encodes a direction, the size of the structure that the argument points to, a letter for the driver and a
number (asm-generic/ioctl.h, which x86 and arm64 share). The kernel copies the structure in and out as the command says;
a device sees no other memory of the caller unless its module says `uses_caller_memory`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

__all__ = ["_IO", "_IOR", "_IOW", "_IOWR", "IoctlHandler", "handlers_of", "ioctl", "is_read", "is_written", "size_of"]

_F = TypeVar("_F", bound=Callable[..., Any])

_SIZE_BITS = 14
_NUMBER_SHIFT, _TYPE_SHIFT, _SIZE_SHIFT, _DIRECTION_SHIFT = 0, 8, 16, 30
_WRITE, _READ = 1, 2


def _build(direction: int, type: str | int, number: int, argument: type[Any] | int) -> int:
    size = argument if isinstance(argument, int) else ctypes.sizeof(argument)
    letter = ord(type) if isinstance(type, str) else type
    if not (0 <= size < 1 << _SIZE_BITS and 0 <= letter < 256 and 0 <= number < 256):
        raise ValueError(f"no ioctl number has type {type!r}, number {number} and {size} bytes")
    return direction << _DIRECTION_SHIFT | size << _SIZE_SHIFT | letter << _TYPE_SHIFT | number << _NUMBER_SHIFT


def _IO(type: str | int, number: int) -> int:
    """A command without a structure: its argument is a number. `type` is the driver's letter."""
    return _build(0, type, number, 0)


def _IOR(type: str | int, number: int, argument: type[Any] | int) -> int:
    """A command that fills in the caller's structure; `argument` is the structure's ctypes class, or its size."""
    return _build(_READ, type, number, argument)


def _IOW(type: str | int, number: int, argument: type[Any] | int) -> int:
    """A command that is given a structure."""
    return _build(_WRITE, type, number, argument)


def _IOWR(type: str | int, number: int, argument: type[Any] | int) -> int:
    """A command that is given a structure, and changes it."""
    return _build(_READ | _WRITE, type, number, argument)


def size_of(command: int) -> int:
    """_IOC_SIZE: bytes of the structure."""
    return command >> _SIZE_SHIFT & (1 << _SIZE_BITS) - 1


def is_written(command: int) -> bool:
    """_IOC_WRITE: the caller's structure comes with the request."""
    return bool(command >> _DIRECTION_SHIFT & _WRITE)


def is_read(command: int) -> bool:
    """_IOC_READ: the structure goes back to the caller."""
    return bool(command >> _DIRECTION_SHIFT & _READ)


class IoctlHandler(NamedTuple):
    """The method that answers a command, by name, and the structure that it takes (None: a number)."""

    method: str
    structure: Any


def ioctl(command: int, structure: type[Any] | None = None) -> Callable[[_F], _F]:
    """Mark a method of a `DeviceFile` as the answer to `command`; several marks make it answer several.

    The method is called as `method(call, argument)`. With a `structure`, the argument is an instance of it: filled in
    with what the caller gave, and copied back as the method leaves it, if the command says so. Without one, it is the
    number that the caller gave. ioctl(2) returns what the method returns (None is 0).

    Raises `TypeError` if the structure does not have the size that the command says.
    """
    expected = 0 if structure is None else ctypes.sizeof(structure)
    if size_of(command) != expected:
        raise TypeError(f"ioctl {command:#x} is for {size_of(command)} bytes, and the structure has {expected}")

    def mark(method: _F) -> _F:
        marks: list[tuple[int, Any]] = method.__dict__.setdefault("_ioctls", [])
        marks.append((command, structure))
        return method

    return mark


def handlers_of(cls: type[Any]) -> dict[int, IoctlHandler]:
    """The handlers of a class by command, inherited ones included. Raises `TypeError` if two answer the same."""
    found: dict[int, IoctlHandler] = {}
    for name in dir(cls):
        for command, structure in getattr(getattr(cls, name, None), "_ioctls", ()):
            if command in found:
                raise TypeError(f"{cls.__name__}: both {found[command].method} and {name} answer ioctl {command:#x}")
            found[command] = IoctlHandler(name, structure)
    return found
