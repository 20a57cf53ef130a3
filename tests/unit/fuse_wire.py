"""FUSE messages as the kernel makes and reads them, written after fs/fuse and apart from the code that is tested."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

from viewfs.modules.api import Attributes

NS = 1_000_000_000


def request(
    opcode: int, body: bytes = b"", *, unique: int = 1, node: int = 1, length: int | None = None, uid: int = 1000
) -> bytes:
    """fuse_in_header and what follows it; `length` is for one that lies."""
    size = 40 + len(body) if length is None else length
    return struct.pack("=IIQQIIIHH", size, opcode, unique, node, uid, 1001, 77, 0, 0) + body


def reading(offset: int = 0, size: int = 4096, handle: int = 0) -> bytes:
    """fuse_read_in."""
    return struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0)


@dataclass(frozen=True)
class Attr:
    """struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int

    @classmethod
    def parse(cls, data: bytes) -> Attr:
        def number(offset: int, size: int, signed: bool = False) -> int:
            return int.from_bytes(data[offset : offset + size], "little", signed=signed)

        assert len(data) == 88
        large = [number(8 * index, 8, signed=index >= 3) for index in range(6)]
        return cls(*large, *(number(48 + 4 * index, 4) for index in range(10)))

    def agrees_with(self, given: Attributes) -> bool:
        times = [(given.atime_ns, self.atime, self.atimensec), (given.mtime_ns, self.mtime, self.mtimensec),
                 (given.ctime_ns, self.ctime, self.ctimensec)]  # fmt: skip
        assert all(0 <= ns < NS and seconds * NS + ns == expected for expected, seconds, ns in times)
        # new_encode_dev of linux/kdev_t.h, turned round.
        major, minor = self.rdev >> 8 & 0xFFF, self.rdev & 0xFF | self.rdev >> 12 & 0xFFF00
        assert os.makedev(major, minor) == given.rdev
        same = (self.ino, self.size, self.blocks, self.mode, self.nlink, self.uid, self.gid, self.blksize, self.flags)
        return same == (
            given.shown_ino or given.ino, given.size, given.blocks, given.mode, given.nlink, given.uid, given.gid,
            given.blksize, 0,
        )  # fmt: skip


@dataclass(frozen=True)
class Dirent:
    """What the kernel finds in a READDIR or READDIRPLUS reply."""

    name: bytes
    ino: int
    cookie: int
    type: int
    node: int | None = None
    attr: Attr | None = None
    valid: tuple[int, ...] = ()


def read_directory(body: bytes, plus: bool) -> list[Dirent]:
    """The reply as fs/fuse/readdir.c goes through it: FUSE_DIRENT_SIZE, FUSE_DIRENTPLUS_SIZE, each a multiple of 8."""
    found: list[Dirent] = []
    while body:
        entry: dict[str, Any] = {}
        at = 0
        if plus:
            node, _generation, *valid = struct.unpack_from("=QQQQII", body)
            entry = {"node": node, "valid": tuple(valid), "attr": Attr.parse(body[40:128])}
            at = 128
        ino, cookie, length, kind = struct.unpack_from("=QQII", body, at)
        name = body[at + 24 : at + 24 + length]
        size = -(-(at + 24 + length) // 8) * 8
        assert len(name) == length and size <= len(body)
        assert not any(body[at + 24 + length : size]), "padding is zero"
        found.append(Dirent(name, ino, cookie, kind, **entry))
        body = body[size:]
    return found


@dataclass(frozen=True)
class Entry:
    """struct fuse_entry_out."""

    node: int
    entry_valid: tuple[int, int]
    attr_valid: tuple[int, int]
    attr: Attr

    @classmethod
    def parse(cls, body: bytes) -> Entry:
        node, generation, entry_valid, attr_valid, entry_ns, attr_ns = struct.unpack("=QQQQII", body[:40])
        assert generation == 0
        return cls(node, (entry_valid, entry_ns), (attr_valid, attr_ns), Attr.parse(body[40:]))
