"""The FUSE protocol as pure code: bytes in, requests out; answers in, bytes out.

Structures, opcodes and flags are those of linux/fuse.h, version 7.38; every one is native-endian with natural
alignment. Nothing here reads a descriptor or knows a file system.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from struct import Struct, error
from typing import NamedTuple

from viewfs.modules.api import Attributes, FileSystemStatistics

__all__ = [
    "ATTR_OUT",
    "ENTRY_OUT",
    "HEADER_SIZE",
    "ROOT_NODE",
    "InitFlags",
    "InitRequest",
    "IOCTL_32BIT",
    "Notify",
    "Opcode",
    "OpenFlags",
    "POLL_SCHEDULE_NOTIFY",
    "Request",
    "SetAttr",
    "decode",
    "encode_attributes",
    "encode_entry",
    "encode_error",
    "encode_init",
    "encode_ioctl",
    "encode_poll",
    "encode_poll_wakeup",
    "encode_position",
    "encode_reply_header",
    "encode_statistics",
    "encode_stale_attributes",
    "encode_store_header",
    "negative_entry",
]

VERSION = (7, 38)
#: FUSE_ROOT_ID
ROOT_NODE = 1
#: Seconds that are longer than any mount lasts. (The kernel converts them to jiffies; its limit is far above.)
FOREVER = 1 << 31


class Opcode(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class InitFlags(IntFlag):
    """The FUSE_INIT flags that are used."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class OpenFlags(IntFlag):
    """FOPEN_*."""

    NONE = 0
    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6


class Notify(IntEnum):
    """enum fuse_notify_code."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    DELETE = 6
    RESEND = 7


#: FUSE_WRITE_CACHE: the data come from the page cache, and the file handle is a guess of the kernel's.
WRITE_CACHE = 1 << 0
#: FUSE_POLL_SCHEDULE_NOTIFY: the caller waits, and has to be notified.
POLL_SCHEDULE_NOTIFY = 1
#: FUSE_IOCTL_32BIT: the caller is a 32-bit program on a 64-bit kernel.
IOCTL_32BIT = 1 << 3


class SetAttr(IntFlag):
    """FATTR_*: which fields of a SETATTR request are valid."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


#: fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding.
_IN_HEADER = Struct("=IIQQIIIHH")
HEADER_SIZE = _IN_HEADER.size
_OUT_HEADER = Struct("=IiQ")
#: fuse_attr: ino, size, blocks, three times in seconds and in nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags.
ATTR = "QQQqqqIIIIIIIIII"
#: fuse_attr_out: valid, valid nsec, dummy, attr.
ATTR_OUT = Struct("=QII" + ATTR)
#: fuse_entry_out: nodeid, generation, entry valid, attr valid, both nsec, attr.
ENTRY_OUT = Struct("=QQQQII" + ATTR)
_OPEN_OUT = Struct("=QII")
_INIT_OUT = Struct("=IIIIHHIIHHI28x")
#: Of fuse_init_in, behind the fixed part: flags2, the upper half of the flags.
_FLAGS2 = Struct("=I")
_STATFS_OUT = Struct("=QQQQQIIII24x")
_POSITION_OUT = Struct("=Q")
_SIZE_OUT = Struct("=II")
#: fuse_notify_store_out: nodeid, offset, size, padding.
_STORE_OUT = Struct("=QQI4x")
#: fuse_notify_inval_inode_out: node, offset, length.
_INVAL_INODE_OUT = Struct("=Qqq")
#: fuse_poll_out, and fuse_notify_poll_wakeup_out.
_POLL_OUT = Struct("=II")
_POLL_WAKEUP = Struct("=Q")
#: fuse_ioctl_out: result, flags, in_iovs, out_iovs; the last three are for unrestricted ioctls.
_IOCTL_OUT = Struct("=iIII")

#: The fixed part of each request's body.
_BODY = {
    Opcode.FORGET: Struct("=Q"),
    Opcode.GETATTR: Struct("=IIQ"),
    Opcode.SETATTR: Struct("=IIQQQqqqIIIIIIII"),
    Opcode.MKNOD: Struct("=IIII"),
    Opcode.MKDIR: Struct("=II"),
    Opcode.RENAME: Struct("=Q"),
    Opcode.RENAME2: Struct("=QII"),
    Opcode.LINK: Struct("=Q"),
    Opcode.OPEN: Struct("=II"),
    Opcode.OPENDIR: Struct("=II"),
    Opcode.READ: Struct("=QQIIQII"),
    Opcode.READDIR: Struct("=QQIIQII"),
    Opcode.READDIRPLUS: Struct("=QQIIQII"),
    Opcode.WRITE: Struct("=QQIIQII"),
    Opcode.RELEASE: Struct("=QIIQ"),
    Opcode.RELEASEDIR: Struct("=QIIQ"),
    Opcode.FLUSH: Struct("=QIIQ"),
    Opcode.FSYNC: Struct("=QII"),
    Opcode.FSYNCDIR: Struct("=QII"),
    Opcode.SETXATTR: Struct("=II"),
    Opcode.GETXATTR: Struct("=II"),
    Opcode.LISTXATTR: Struct("=II"),
    Opcode.ACCESS: Struct("=II"),
    Opcode.CREATE: Struct("=IIII"),
    Opcode.INTERRUPT: Struct("=Q"),
    Opcode.IOCTL: Struct("=QIIQII"),
    Opcode.POLL: Struct("=QQII"),
    Opcode.BATCH_FORGET: Struct("=II"),
    Opcode.LSEEK: Struct("=QQII"),
    Opcode.FALLOCATE: Struct("=QQQII"),
    Opcode.TMPFILE: Struct("=IIII"),
    Opcode.INIT: Struct("=IIII"),
}
_FORGET_ONE = Struct("=QQ")
_FIXED: dict[int, Struct] = {int(opcode): layout for opcode, layout in _BODY.items()}


class Request(NamedTuple):
    """One request. `fields` are the fixed part of its body in the header file's order; `rest` is what follows it."""

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    fields: tuple[int, ...]
    rest: bytes

    def names(self) -> list[bytes]:
        """The NUL-terminated names that follow the fixed part."""
        return self.rest.split(b"\0")[:-1]

    def forgotten(self) -> Iterable[tuple[int, int]]:
        """BATCH_FORGET: pairs of node and number of look-ups."""
        usable = len(self.rest) - len(self.rest) % _FORGET_ONE.size
        return _FORGET_ONE.iter_unpack(self.rest[:usable])


class InitRequest(NamedTuple):
    """The fixed part of FUSE_INIT that every kernel sends."""

    major: int
    minor: int
    max_readahead: int
    flags: int

    @classmethod
    def of(cls, request: Request) -> InitRequest:
        """With all flags, also those that newer kernels send."""
        major, minor, readahead, flags = request.fields
        if flags & InitFlags.INIT_EXT and len(request.rest) >= _FLAGS2.size:
            flags |= _FLAGS2.unpack_from(request.rest)[0] << 32
        return cls(major, minor, readahead, flags)


def decode(data: bytes | memoryview) -> Request:
    """The request in `data`, which is all that one read(2) of the descriptor gave.

    Raises `ValueError` if it is cut short; if the opcode is unknown, the whole body is in `rest`.
    """
    try:
        length, opcode, unique, node, uid, gid, pid, _extlen, _pad = _IN_HEADER.unpack_from(data)
        if length != len(data):
            raise ValueError(f"a request of {length} bytes came as {len(data)}")
        layout = _FIXED.get(opcode)
        if layout is None:
            return Request(opcode, unique, node, uid, gid, pid, (), bytes(data[HEADER_SIZE:]))
        fields = layout.unpack_from(data, HEADER_SIZE)
    except error as problem:
        raise ValueError(f"a request cut short: {problem}") from problem
    return Request(opcode, unique, node, uid, gid, pid, fields, bytes(data[HEADER_SIZE + layout.size :]))


def unique_of(data: bytes | memoryview) -> int:
    """The number of a request of which only the header can be decoded."""
    unique: int = _IN_HEADER.unpack_from(data)[2]
    return unique


def encode_reply_header(unique: int, length: int) -> bytes:
    """The header of a successful reply with `length` bytes."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + length, 0, unique)


def encode_error(unique: int, number: int) -> bytes:
    """A whole reply with errno `number`; 0 is success without a body."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, -number, unique)


def encode_notification(code: Notify, body: bytes) -> bytes:
    """A message that is not a reply (fuse_out_header with unique 0 and the code as error)."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), code, 0) + body


def encode_store_header(node: int, offset: int, length: int) -> bytes:
    """The header of a message that stores `length` bytes of an inode, from `offset` on, in the kernel's page cache."""
    size = _OUT_HEADER.size + _STORE_OUT.size
    return _OUT_HEADER.pack(size + length, Notify.STORE, 0) + _STORE_OUT.pack(node, offset, length)


def encode_stale_attributes(node: int) -> bytes:
    """A message that invalidates the attributes that the kernel has cached of an inode, but not its pages."""
    return encode_notification(Notify.INVAL_INODE, _INVAL_INODE_OUT.pack(node, -1, 0))


def encode_init(
    request: InitRequest, wanted: InitFlags, *, max_write: int, max_background: int, max_pages: int
) -> bytes:
    """The body of the reply to FUSE_INIT, with the `wanted` flags that the kernel offers. `max_write` in bytes."""
    flags = int(wanted) & request.flags
    upper = flags >> 32 if flags & InitFlags.INIT_EXT else 0
    lower, congested = flags & 0xFFFFFFFF, max_background * 3 // 4
    return _INIT_OUT.pack(
        *VERSION, request.max_readahead, lower, max_background, congested, max_write, 1, max_pages, 0, upper
    )


def encode_device(rdev: int) -> int:
    """A device number in the protocol's form of 32 bits (new_encode_dev of linux/kdev_t.h)."""
    if not rdev:
        return 0
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12


def decode_device(number: int) -> int:
    """The inverse of `encode_device`, as `os.makedev` makes it."""
    return os.makedev((number & 0xFFF00) >> 8, (number & 0xFF) | (number >> 12 & 0xFFF00))


def _attr(a: Attributes) -> tuple[int, ...]:
    atime, atime_ns = divmod(a.atime_ns, 1_000_000_000)
    mtime, mtime_ns = divmod(a.mtime_ns, 1_000_000_000)
    ctime, ctime_ns = divmod(a.ctime_ns, 1_000_000_000)
    return (
        a.shown_ino or a.ino, a.size, a.blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        a.mode, a.nlink, a.uid, a.gid, encode_device(a.rdev), a.blksize, 0,
    )  # fmt: skip


def split_seconds(seconds: float) -> tuple[int, int]:
    """Seconds as whole seconds and nanoseconds."""
    seconds = min(seconds, FOREVER)
    whole = int(seconds)
    return whole, int((seconds - whole) * 1e9)


def encode_attributes(attributes: Attributes, valid: tuple[int, int]) -> bytes:
    """fuse_attr_out; `valid` is how long the kernel may keep them, in seconds and nanoseconds."""
    return ATTR_OUT.pack(valid[0], valid[1], 0, *_attr(attributes))


def encode_entry(node: int, attributes: Attributes, valid: tuple[int, int]) -> bytes:
    """fuse_entry_out."""
    return ENTRY_OUT.pack(node, 0, valid[0], valid[0], valid[1], valid[1], *_attr(attributes))


def negative_entry(valid: tuple[int, int]) -> bytes:
    """fuse_entry_out with node 0: there is no such name, and the kernel may cache that."""
    return ENTRY_OUT.pack(0, 0, valid[0], 0, valid[1], 0, *(0,) * 16)


def encode_open(handle: int, flags: OpenFlags) -> bytes:
    """fuse_open_out."""
    return _OPEN_OUT.pack(handle, flags, 0)


def encode_poll(events: int) -> bytes:
    """fuse_poll_out."""
    return _POLL_OUT.pack(events, 0)


def encode_poll_wakeup(poll_handle: int) -> bytes:
    """A message that makes the pollers of the open file with the kernel's number `poll_handle` poll again."""
    return encode_notification(Notify.POLL, _POLL_WAKEUP.pack(poll_handle))


def encode_ioctl(result: int, data: bytes) -> bytes:
    """fuse_ioctl_out, followed by the bytes for the caller's structure."""
    return _IOCTL_OUT.pack(result, 0, 0, 0) + data


def encode_position(position: int) -> bytes:
    """fuse_lseek_out."""
    return _POSITION_OUT.pack(position)


def encode_size(size: int) -> bytes:
    """fuse_getxattr_out, and fuse_write_out, which has the same form."""
    return _SIZE_OUT.pack(size, 0)


def encode_xattr(value: bytes, room: int) -> bytes:
    """The answer to GETXATTR or LISTXATTR for a caller with a buffer of `room` bytes; 0 asks for the length.

    Raises OSError(ERANGE) if it does not fit.
    """
    if room == 0:
        return encode_size(len(value))
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def encode_statistics(s: FileSystemStatistics) -> bytes:
    """fuse_statfs_out."""
    return _STATFS_OUT.pack(
        s.blocks, s.free_blocks, s.available_blocks, s.files, s.free_files, s.block_size, s.name_max, s.block_size, 0
    )
