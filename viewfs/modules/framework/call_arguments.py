"""The arguments of a system call as a handler gets them, and what it returns as the caller gets that.

A notified call arrives as six words, and copies of what these point to (`viewfs.linux.signatures`). A handler for one
call gets what its signature says. One for a family gets the same arguments for each call of that family.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from viewfs.errors import os_error
from viewfs.linux.signatures import Argument
from viewfs.modules.api import Attributes, FileSystemStatistics
from viewfs.modules.api.calls import STRUCTURES, Descriptor, File, Handed, Opened, Output, Result, SpecialDescriptor
from viewfs.modules.framework.call_structures import packed_entry, packed_stat, packed_statfs

__all__ = ["Answer", "Decoded", "decode"]

AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW = 0x1000, 0x100, 0x200, 0x400
_OPEN_CREAT = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_CLOCK_REALTIME = 0


class Answer(NamedTuple):
    """What the caller gets: a value, and what is copied into its memory, by argument. Or a descriptor, as the value."""

    value: int = 0
    outs: tuple[tuple[int, bytes], ...] = ()
    descriptor: Descriptor | File | Opened | Handed | None = None


class Decoded(NamedTuple):
    """What a handler is called with, and what makes an answer of its result. No arguments: the call is not for it."""

    arguments: tuple[Any, ...] | None
    answer: Callable[[Any], Answer]


class _Raw(NamedTuple):
    """A call as it arrived: its words, each also as its kind says, and what was copied."""

    name: str
    bits: int
    words: Sequence[int]
    values: list[Any]


def decode(
    name: str,
    family: str | None,
    signature: Sequence[Argument],
    bits: int,
    words: Sequence[int],
    copied: Mapping[int, Any],
) -> Decoded:
    """The call `name` for a handler of it, or of `family`. `copied`: what was copied of each argument that is an
    address: bytes, or for what is to be written how many bytes there is room for. Those that are null are not there.

    Raises OSError, which is the caller's errno.
    """
    values = [_value(kind.kind, words[index], copied.get(index)) for index, kind in enumerate(signature)]
    if family is not None:
        try:
            return _FAMILIES[family](_Raw(name, bits, words, values))
        except (OSError, struct.error, TypeError):  # the kernel knows what is wrong with it
            return Decoded(None, _with)
    arguments, outs = [], []
    for index, kind in enumerate(signature):
        if kind.kind == "at":
            continue
        value = values[index]
        if value is None and name.isdigit() and not kind.may_be_null:
            raise os_error(errno.EFAULT)
        structure = STRUCTURES.get((name, index))
        if value is None and structure is not None and kind.is_out:  # the kernel knows what to say
            return Decoded(None, _with)
        if structure is not None and value is not None:
            structure_type = structure[bits == 32]
            value = structure_type() if kind.is_out else structure_type.from_buffer_copy(value)
        if kind.is_out and value is not None:
            if structure is None:
                value = Output(value)
            outs.append((index, value))
        arguments.append(value)

    def answer(result: Result) -> Answer:
        for index, value in outs:
            if isinstance(value, Output) and len(value) > value.size:
                raise ValueError(f"{len(value)} bytes for argument {index}, which has room for {value.size}")
        return _with(result, tuple((index, bytes(value)) for index, value in outs))

    return Decoded(tuple(arguments), answer)


def _value(kind: str, word: int, copied: Any) -> Any:
    match kind:
        case "int" | "fd" | "at":
            return ctypes.c_int32(word & 0xFFFFFFFF).value
        case "off":
            return ctypes.c_int64(word).value
        case "path" | "text":
            return None if copied is None else os.fsdecode(copied)
        case "argv":
            return None if copied is None else copied.split(b"\0")[:-1]
        case "in" | "inv" | "out" | "outv":
            return copied
        case "descriptor":
            return SpecialDescriptor(word & 0xFFFFFFFF, os.fsdecode(copied[4:]), int.from_bytes(copied[:4], "little"))
        case _:
            return word


def _with(result: Result, outs: tuple[tuple[int, bytes], ...] = (), *, close_on_exec: bool = False) -> Answer:
    """The answer of a handler that returned a number, a descriptor or nothing."""
    if isinstance(result, bytes):
        result = File(result)
    if isinstance(result, Opened):
        return Answer(descriptor=replace(result, flags=result.flags | os.O_CLOEXEC) if close_on_exec else result)
    if isinstance(result, Handed):
        return Answer(len(result.data) if result.value is None else result.value, descriptor=result)
    if isinstance(result, Descriptor | File):
        return Answer(descriptor=replace(result, close_on_exec=True) if close_on_exec else result)
    if result is not None and not isinstance(result, int):
        raise TypeError(f"a handler returned {result!r}, which is no result of a system call")
    return Answer(int(result or 0), outs)


def _content(index: int, room: int) -> Callable[[Any], Answer]:
    """For calls that return how many bytes they have put at argument `index`."""

    def answer(result: bytes | str | None) -> Answer:
        data = os.fsencode(result) if isinstance(result, str) else bytes(result or b"")
        return Answer(len(data[:room]), ((index, data[:room]),))

    return answer


def _there(value: Any) -> Any:
    if value is None:
        raise os_error(errno.EFAULT)
    return value


def _target(path: str | None, fd: int, flags: int = AT_EMPTY_PATH) -> str | int:
    """A path, or a descriptor where the path is empty (AT_EMPTY_PATH)."""
    if path:
        return path
    if path is None or not flags & AT_EMPTY_PATH:
        raise os_error(errno.ENOENT)
    return fd


def _wide(raw: _Raw, index: int) -> int:
    """An offset of 64 bits, which callers of 32 bits pass in two words, the low one first."""
    word = raw.words[index] if raw.bits == 64 else raw.words[index] & 0xFFFFFFFF | raw.words[index + 1] << 32
    return ctypes.c_int64(word).value


def _open(raw: _Raw) -> Decoded:
    match raw.name:
        case "open":
            path, flags, mode = raw.values
        case "creat":
            path, mode = raw.values
            flags = _OPEN_CREAT
        case "openat":
            _at, path, flags, mode = raw.values
        case _:
            _at, path, how, _size = raw.values
            flags, mode = struct.unpack_from("=QQ", _there(how))

    def answer(result: Result) -> Answer:
        return _with(result, close_on_exec=bool(flags & os.O_CLOEXEC))

    return Decoded((path, flags, mode if flags & (os.O_CREAT | os.O_TMPFILE) else 0), answer)


def _read(raw: _Raw) -> Decoded:
    room = _there(raw.values[1])
    return Decoded((raw.values[0], room), _content(1, room))


def _pread(raw: _Raw) -> Decoded:
    room = _there(raw.values[1])
    return Decoded((raw.values[0], room, _wide(raw, 3)), _content(1, room))


def _write(raw: _Raw) -> Decoded:
    return Decoded((raw.values[0], _there(raw.values[1])), _with)


def _pwrite(raw: _Raw) -> Decoded:
    return Decoded((raw.values[0], _there(raw.values[1]), _wide(raw, 3)), _with)


def _plain(raw: _Raw) -> Decoded:
    return Decoded(tuple(raw.values), _with)


def _lseek(raw: _Raw) -> Decoded:
    if raw.name == "lseek":
        return Decoded(tuple(raw.values), _with)
    fd, high, low, _room, whence = raw.values

    def answer(result: int) -> Answer:
        return Answer(0, ((3, struct.pack("=q", result)),))

    return Decoded((fd, ctypes.c_int64(high << 32 | low & 0xFFFFFFFF).value, whence), answer)


def _lstat(raw: _Raw) -> Decoded:
    name, values, follow, index = raw.name, raw.values, True, 1
    if name in ("fstat", "fstat64"):
        target = values[0]
    elif name in ("stat", "stat64", "lstat", "lstat64"):
        target, follow = _target(values[0], -1), not name.startswith("l")
    else:
        flags = values[2] if name == "statx" else values[3]
        index = 4 if name == "statx" else 2
        target, follow = _target(values[1], values[0], flags), not flags & AT_SYMLINK_NOFOLLOW

    def answer(result: Attributes) -> Answer:
        return Answer(0, ((index, packed_stat(name, raw.bits, result)),))

    return Decoded((target, follow), answer)


def _paths(raw: _Raw) -> list[Any]:
    """The paths and texts of a call, without the directories that they are relative to."""
    return [value for value in raw.values if value is None or isinstance(value, str)]


def _access(raw: _Raw) -> Decoded:
    return Decoded((_paths(raw)[0], raw.values[-2 if raw.name == "faccessat2" else -1]), _with)


def _readlink(raw: _Raw) -> Decoded:
    at = len(raw.values) == 4
    path = _target(raw.values[1], raw.values[0]) if at else raw.values[0]
    return Decoded((path,), _content(2 if at else 1, _there(raw.values[2 if at else 1])))


def _utimensat(raw: _Raw) -> Decoded:
    if raw.name in ("utime", "utimes"):
        path, given = raw.values[:2]
        target, flags = _target(path, -1), 0
    else:
        fd, path, given = raw.values[:3]
        flags = raw.values[3] if raw.name.startswith("utimensat") else 0
        target = fd if path is None else _target(path, fd, flags)
    return Decoded((target, _times(raw, given), not flags & AT_SYMLINK_NOFOLLOW), _with)


def _times(raw: _Raw, given: bytes | None) -> tuple[int, int] | None:
    """Nanoseconds, of access and of modification; None: now. Negative: UTIME_NOW (−1) and UTIME_OMIT (−2)."""
    if given is None:
        return None
    wide = raw.bits == 64 or raw.name == "utimensat_time64"
    numbers = struct.unpack("=qqqq" if wide else "=iiii", given) if raw.name != "utime" else ()
    if not numbers:
        first, second = struct.unpack("=qq" if wide else "=ii", given)
        return first * 10**9, second * 10**9
    if raw.name in ("utimes", "futimesat"):
        return numbers[0] * 10**9 + numbers[1] * 1000, numbers[2] * 10**9 + numbers[3] * 1000
    now_and_omit = {(1 << 30) - 1: -1, (1 << 30) - 2: -2}
    return tuple(now_and_omit.get(ns, seconds * 10**9 + ns) for seconds, ns in (numbers[:2], numbers[2:]))


def _dup3(raw: _Raw) -> Decoded:
    fd, new, flags = (*raw.values, None, 0)[:3] if raw.name == "dup" else (*raw.values, 0)[:3]
    return Decoded((fd, new, flags), _with)


def _all_paths(raw: _Raw) -> Decoded:
    return Decoded(tuple(_paths(raw)), _with)


def _unlink(raw: _Raw) -> Decoded:
    removes_directory = raw.name == "unlinkat" and raw.values[2] & AT_REMOVEDIR
    return Decoded(None if removes_directory else tuple(_paths(raw)), _with)


def _rmdir(raw: _Raw) -> Decoded:
    is_other = raw.name == "unlinkat" and not raw.values[2] & AT_REMOVEDIR
    return Decoded(None if is_other else tuple(_paths(raw)), _with)


def _mkdir(raw: _Raw) -> Decoded:
    return Decoded((_paths(raw)[0], raw.values[-1]), _with)


def _getdents(raw: _Raw) -> Decoded:
    fd, room, _size = raw.values
    _there(room)

    def answer(result: Iterable[tuple[int, int, bytes | str]]) -> Answer:
        data = b"".join(
            packed_entry(raw.name, raw.bits, inode, kind, os.fsencode(name)) for inode, kind, name in result
        )
        if len(data) > room:
            raise os_error(errno.EINVAL)
        return Answer(len(data), ((1, data),))

    return Decoded((fd, room), answer)


def _chmod(raw: _Raw) -> Decoded:
    if raw.name in ("chmod", "fchmod"):
        target, mode = raw.values
    else:
        target, mode = _target(raw.values[1], raw.values[0]), raw.values[2]
    return Decoded((target, mode), _with)


def _lchown(raw: _Raw) -> Decoded:
    if raw.name == "fchownat":
        fd, path, uid, gid, flags = raw.values
        return Decoded((_target(path, fd, flags), uid, gid, not flags & AT_SYMLINK_NOFOLLOW), _with)
    target, uid, gid = raw.values
    if "32" not in raw.name and raw.bits == 32:
        uid, gid = (-1 if number & 0xFFFF == 0xFFFF else number & 0xFFFF for number in (uid, gid))
    return Decoded((target, uid, gid, not raw.name.startswith("l")), _with)


def _rename(raw: _Raw) -> Decoded:
    return Decoded((*_paths(raw), raw.values[-1] if raw.name == "renameat2" else 0), _with)


def _truncate(raw: _Raw) -> Decoded:
    return Decoded((raw.values[0], _wide(raw, 1) if "64" in raw.name else raw.values[1]), _with)


def _statfs(raw: _Raw) -> Decoded:
    index = 2 if "64" in raw.name else 1

    def answer(result: FileSystemStatistics) -> Answer:
        return Answer(0, ((index, packed_statfs(raw.name, raw.bits, result)),))

    return Decoded((raw.values[0],), answer)


def _getxattr(raw: _Raw) -> Decoded:
    target, name, room, size = raw.values
    return Decoded((target, name), _sized(2, room, size))


def _listxattr(raw: _Raw) -> Decoded:
    target, room, size = raw.values
    sized = _sized(1, room, size)

    def answer(result: Iterable[bytes | str]) -> Answer:
        return sized(b"".join(os.fsencode(name) + b"\0" for name in result))

    return Decoded((target,), answer)


def _sized(index: int, room: int | None, size: int) -> Callable[[bytes], Answer]:
    """For calls that tell only the length where the size is 0 (getxattr(2))."""

    def answer(result: bytes) -> Answer:
        if size == 0:
            return Answer(len(result))
        if len(result) > _there(room):
            raise os_error(errno.ERANGE)
        return Answer(len(result), ((index, bytes(result)),))

    return answer


def _setxattr(raw: _Raw) -> Decoded:
    target, name, value, _size, flags = raw.values
    return Decoded((target, name, value or b"", flags), _with)


def _exec(raw: _Raw) -> Decoded:
    path, argv, environment = raw.values[1:4] if raw.name == "execveat" else raw.values
    return Decoded((path, argv or [], environment or []), _with)


def _sync(raw: _Raw) -> Decoded:
    return Decoded((raw.values[0] if raw.name not in ("sync", "msync") else None,), _with)


def _time(raw: _Raw) -> Decoded:
    clock = raw.values[0] if raw.name.startswith("clock") else _CLOCK_REALTIME
    wide = raw.bits == 64 or raw.name.endswith("64")

    def answer(nanoseconds: int) -> Answer:
        seconds, rest = divmod(nanoseconds, 10**9)
        if not wide and not -1 << 31 <= seconds < 1 << 31:
            raise os_error(errno.EOVERFLOW)
        if raw.name == "time":
            packed = struct.pack("=q" if wide else "=i", seconds)
            return Answer(seconds, () if raw.values[0] is None else ((0, packed),))
        rest = rest if raw.name.startswith("clock") else rest // 1000
        index = 1 if raw.name.startswith("clock") else 0
        outs = () if raw.values[index] is None else ((index, struct.pack("=qq" if wide else "=ii", seconds, rest)),)
        return Answer(0, outs)

    return Decoded((clock,), answer)


_FAMILIES: dict[str, Callable[[_Raw], Decoded]] = {
    "access": _access,
    "chmod": _chmod,
    "close": _plain,
    "dup3": _dup3,
    "exec": _exec,
    "getdents64": _getdents,
    "getxattr": _getxattr,
    "lchown": _lchown,
    "link": _all_paths,
    "listxattr": _listxattr,
    "lseek": _lseek,
    "lstat": _lstat,
    "mkdir": _mkdir,
    "open": _open,
    "pread": _pread,
    "pwrite": _pwrite,
    "read": _read,
    "readlink": _readlink,
    "removexattr": _plain,
    "rename": _rename,
    "rmdir": _rmdir,
    "setxattr": _setxattr,
    "statfs": _statfs,
    "symlink": _all_paths,
    "sync": _sync,
    "time": _time,
    "truncate": _truncate,
    "unlink": _unlink,
    "utimensat": _utimensat,
    "write": _write,
}
