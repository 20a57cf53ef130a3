"""The memory of other processes (process_vm_readv(2))."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from viewfs.linux.libc import check, function

__all__ = ["NotAtHand", "check_at_hand", "process_vm_readv", "process_vm_writev"]


_ENTRY = struct.Struct("=Q")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_c = ctypes
_vm_arguments = (_c.c_int, _c.c_void_p, _c.c_ulong, _c.c_void_p, _c.c_ulong, _c.c_ulong)
_process_vm_readv = function("process_vm_readv", *_vm_arguments)
_process_vm_writev = function("process_vm_writev", *_vm_arguments)


#: What a sandbox around us says that has other rules for these calls than for /proc (Docker, Kubernetes).
_FORBIDDEN = (errno.ENOSYS, errno.EPERM)


def _by_file(pid: int, address: int, data: bytearray | memoryview, *, writing: bool) -> int:
    """The same by /proc/PID/mem: how many bytes. Raises OSError: PermissionError if that is forbidden too."""
    if writing and not _can_be_written(pid, address, len(data)):  # which that file would overlook (FOLL_FORCE)
        return 0
    memory = os.open(f"/proc/{pid}/mem", (os.O_RDWR if writing else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        return os.pwrite(memory, data, address) if writing else os.preadv(memory, [data], address)
    except OverflowError:
        return 0
    finally:
        os.close(memory)


def _can_be_written(pid: int, address: int, size: int) -> bool:
    """Is all of it in memory that the process may write to (proc_pid_maps(5))?"""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            place, rights = line.split(maxsplit=2)[:2]
            start, end = (int(word, 16) for word in place.split("-"))
            if start <= address < end:
                if rights[1] != "w":
                    return False
                if address + size <= end:
                    return True
                address, size = end, address + size - end
    return False


class NotAtHand(Exception):
    """Memory that its process may have to wait for before it can be read or written."""


#: Of an entry of /proc/PID/pagemap (pagemap.rst): the page is there, in memory that others may share or a file has; it
#: is written down when it is written to (userfaultfd).
_PRESENT, _OF_FILE, _WATCHED = 1 << 63, 1 << 61, 1 << 57
_PAGE = os.sysconf("SC_PAGE_SIZE")


def check_at_hand(pid: int, address: int, size: int, *, writing: bool) -> None:
    """Raises `NotAtHand` unless this memory of the process can be had without waiting: what is a file's, or anybody's
    to provide (userfaultfd(2)), may be a long time coming. Raises OSError if the process is gone."""
    first, last = address // _PAGE, (address + max(size, 1) - 1) // _PAGE
    try:
        pages = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        raise NotAtHand from None
    try:
        entries = os.pread(pages, 8 * (last - first + 1), 8 * first)
    except (OSError, OverflowError):
        raise NotAtHand from None
    finally:
        os.close(pages)
    bad = _OF_FILE | _WATCHED if writing else 0
    for (entry,) in _ENTRY.iter_unpack(entries):
        if not entry & _PRESENT or entry & bad:
            raise NotAtHand
    if len(entries) < 8 * (last - first + 1):
        raise NotAtHand


def process_vm_readv(pid: int, address: int, into: bytearray | memoryview) -> None:
    """Fill `into` with process `pid`'s memory at `address` (process_vm_readv(2)).

    Raises OSError(EFAULT) if any of it is not mapped: a short transfer is an error here.
    """
    _transfer(pid, address, into, writing=False)


def process_vm_writev(pid: int, address: int, data: bytes | bytearray | memoryview) -> None:
    """Put `data` into process `pid`'s memory at `address` (process_vm_writev(2)); EFAULT unless all of it fits."""
    if isinstance(data, bytes) or (isinstance(data, memoryview) and data.readonly):
        data = bytearray(data)
    _transfer(pid, address, data, writing=True)


def _transfer(pid: int, address: int, data: bytearray | memoryview, *, writing: bool) -> None:
    name, entry = ("process_vm_writev", _process_vm_writev) if writing else ("process_vm_readv", _process_vm_readv)
    size = len(data)
    local = _Iovec(ctypes.addressof(ctypes.c_char.from_buffer(data)), size)
    remote = _Iovec(address, size)
    try:
        done = check(entry(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0), name)
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
        done = _by_file(pid, address, data, writing=writing)
    if done != size:
        raise OSError(errno.EFAULT, f"{name}: {done} of {size} bytes")
