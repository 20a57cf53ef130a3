"""The memory of other processes (process_vm_readv(2))."""

from __future__ import annotations

import ctypes
import errno

from viewfs.linux.libc import check, function

__all__ = ["process_vm_readv", "process_vm_writev"]


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_c = ctypes
_vm_arguments = (_c.c_int, _c.c_void_p, _c.c_ulong, _c.c_void_p, _c.c_ulong, _c.c_ulong)
_process_vm_readv = function("process_vm_readv", *_vm_arguments)
_process_vm_writev = function("process_vm_writev", *_vm_arguments)


def process_vm_readv(pid: int, address: int, into: bytearray | memoryview) -> None:
    """Fill `into` with process `pid`'s memory at `address` (process_vm_readv(2)).

    Raises OSError(EFAULT) if any of it is not mapped: a short transfer is an error here.
    """
    size = len(into)
    local = _Iovec(ctypes.addressof(ctypes.c_char.from_buffer(into)), size)
    remote = _Iovec(address, size)
    done = check(_process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0), "process_vm_readv")
    if done != size:
        raise OSError(errno.EFAULT, f"process_vm_readv: {done} of {size} bytes")


def process_vm_writev(pid: int, address: int, data: bytes | bytearray | memoryview) -> None:
    """Put `data` into process `pid`'s memory at `address` (process_vm_writev(2)); EFAULT unless all of it fits."""
    size = len(data)
    if isinstance(data, bytes) or (isinstance(data, memoryview) and data.readonly):
        data = bytearray(data)
    local = _Iovec(ctypes.addressof(ctypes.c_char.from_buffer(data)), size)
    remote = _Iovec(address, size)
    done = check(_process_vm_writev(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0), "process_vm_writev")
    if done != size:
        raise OSError(errno.EFAULT, f"process_vm_writev: {done} of {size} bytes")
