"""Structures that system calls of files write, as the kernel lays them out for callers of 64 and of 32 bits."""

from __future__ import annotations

import errno
import os
import stat
import struct

from viewfs.errors import os_error
from viewfs.linux.numbers import AUDIT_ARCH, audit_architecture
from viewfs.modules.api import Attributes, FileSystemStatistics

__all__ = ["packed_entry", "packed_stat", "packed_statfs"]


def packed_stat(name: str, bits: int, at: Attributes) -> bytes:
    """A structure of stat(2) (asm/stat.h of x86, and of most others for 64 bits; linux/stat.h for statx)."""
    blocks = at.blocks or -(-at.size // 512)
    times = [divmod(ns, 10**9) for ns in (at.atime_ns, at.mtime_ns, at.ctime_ns)]
    flat = [number for pair in times for number in pair]
    if name == "statx":
        basic = 0x7FF
        stamps = b"".join(struct.pack("=qIi", seconds, ns, 0) for seconds, ns in (times[0], (0, 0), times[2], times[1]))
        head = struct.pack(
            "=IIQIIIHHQQQQ", basic, 4096, 0, at.nlink, at.uid, at.gid, at.mode, 0, at.ino, at.size, blocks, 0
        )
        device = struct.pack("=IIII", os.major(at.rdev), os.minor(at.rdev), 0, 0)
        return (head + stamps + device).ljust(256, b"\0")
    if bits == 32 and "64" in name:
        return struct.pack(
            "=QIIIIIIQIqIQIIIIIIQ", 0, 0, at.ino & 0xFFFFFFFF, at.mode, at.nlink, at.uid, at.gid, at.rdev, 0, at.size,
            4096, blocks, *flat, at.ino,
        )  # fmt: skip
    if bits == 32:
        if at.size >= 1 << 31:
            raise os_error(errno.EOVERFLOW)
        return struct.pack(
            "=IIHHHHIIIIIIIIIIII", 0, at.ino & 0xFFFFFFFF, at.mode, at.nlink, at.uid & 0xFFFF, at.gid & 0xFFFF, at.rdev,
            at.size, 4096, blocks, *flat, 0, 0,
        )  # fmt: skip
    if audit_architecture() == AUDIT_ARCH["x86_64"]:
        return struct.pack(
            "=QQQIIIIQqqqqqqqqq24x", 0, at.ino, at.nlink, at.mode, at.uid, at.gid, 0, at.rdev, at.size, 4096, blocks,
            *flat,
        )  # fmt: skip
    return struct.pack(
        "=QQIIIIQQqiiqqqqqqq8x", 0, at.ino, at.mode, at.nlink, at.uid, at.gid, at.rdev, 0, at.size, 4096, 0, blocks,
        *flat,
    )  # fmt: skip


def packed_statfs(name: str, bits: int, at: FileSystemStatistics) -> bytes:
    """A structure of statfs(2) (asm/statfs.h)."""
    counts = (at.blocks, at.free_blocks, at.available_blocks, at.files, at.free_files)
    block, name_max = at.block_size, at.name_max
    if bits == 64:
        data = struct.pack("=qq5Qqqqq32x", 0, block, *counts, 0, name_max, block, 0)
    elif "64" in name:
        data = struct.pack("=II5QQIII16x", 0, block, *counts, 0, name_max, block, 0)
    else:
        data = struct.pack("=II5IQIII16x", 0, block, *(min(one, 0xFFFFFFFF) for one in counts), 0, name_max, block, 0)
    return data


def packed_entry(call: str, bits: int, inode: int, kind: int, name: bytes) -> bytes:
    """struct linux_dirent64 or linux_dirent (getdents(2))."""
    kind = stat.S_IFMT(kind) >> 12
    if call == "getdents64":
        length = -(-(19 + len(name) + 1) // 8) * 8
        return struct.pack("=QqHB", inode, 0, length, kind) + name.ljust(length - 19, b"\0")
    head = "=QqH" if bits == 64 else "=IiH"
    size, unit = struct.calcsize(head), bits // 8
    length = -(-(size + len(name) + 2) // unit) * unit
    mask = (1 << bits) - 1
    return struct.pack(head, inode & mask, 0, length) + name.ljust(length - size - 1, b"\0") + bytes([kind])
