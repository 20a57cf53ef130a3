"""The FUSE protocol's structures, against the C header and against a decoder that knows nothing of the encoder."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fuse_wire import NS, Attr, read_directory, request
from viewfs.modules.api import Attributes, DirectoryEntry, FileSystemStatistics, InodeNumber
from viewfs.mounts.fuse import dirents, protocol
from viewfs.mounts.fuse.dirents import encode_directory
from viewfs.mounts.fuse.protocol import (
    ATTR_OUT,
    ENTRY_OUT,
    HEADER_SIZE,
    ROOT_NODE,
    InitFlags,
    InitRequest,
    Notify,
    Opcode,
    OpenFlags,
    Request,
    SetAttr,
    decode,
    decode_device,
    encode_attributes,
    encode_device,
    encode_entry,
    encode_error,
    encode_init,
    encode_notification,
    encode_open,
    encode_reply_header,
    encode_size,
    encode_statistics,
    encode_xattr,
    negative_entry,
    split_seconds,
)

quick = settings(max_examples=100, deadline=None, database=None)

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)

attributes = st.builds(
    Attributes,
    ino=U64.map(InodeNumber),
    mode=st.builds(
        lambda kind, bits: kind | bits,
        st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK]),
        st.integers(0, 0o7777),
    ),
    size=U64,
    nlink=U32,
    uid=U32,
    gid=U32,
    rdev=st.builds(os.makedev, st.integers(0, 0xFFF), st.integers(0, 0xFFFFF)),
    atime_ns=st.integers(-(1 << 63) * NS, ((1 << 63) - 1) * NS),
    mtime_ns=st.integers(-(1 << 63) * NS, ((1 << 63) - 1) * NS),
    ctime_ns=st.integers(-10 * NS, 10 * NS),
    blocks=U64,
    blksize=U32,
    shown_ino=st.just(0) | U64,
)


# -- the header file

#: What is sent and received, by the header's name for it.
STRUCTS = {
    "fuse_in_header": protocol._IN_HEADER,
    "fuse_out_header": protocol._OUT_HEADER,
    "fuse_attr_out": ATTR_OUT,
    "fuse_entry_out": ENTRY_OUT,
    "fuse_open_out": protocol._OPEN_OUT,
    "fuse_init_out": protocol._INIT_OUT,
    "fuse_statfs_out": protocol._STATFS_OUT,
    "fuse_write_out": protocol._SIZE_OUT,
    "fuse_getxattr_out": protocol._SIZE_OUT,
    "fuse_poll_out": protocol._POLL_OUT,
    "fuse_notify_poll_wakeup_out": protocol._POLL_WAKEUP,
    "fuse_ioctl_out": protocol._IOCTL_OUT,
    "fuse_dirent": dirents._DIRENT,
    "fuse_direntplus": dirents._DIRENTPLUS,
    "fuse_forget_one": protocol._FORGET_ONE,
}
REQUESTS = {
    Opcode.FORGET: "fuse_forget_in",
    Opcode.GETATTR: "fuse_getattr_in",
    Opcode.SETATTR: "fuse_setattr_in",
    Opcode.MKNOD: "fuse_mknod_in",
    Opcode.MKDIR: "fuse_mkdir_in",
    Opcode.RENAME: "fuse_rename_in",
    Opcode.RENAME2: "fuse_rename2_in",
    Opcode.LINK: "fuse_link_in",
    Opcode.OPEN: "fuse_open_in",
    Opcode.OPENDIR: "fuse_open_in",
    Opcode.READ: "fuse_read_in",
    Opcode.READDIR: "fuse_read_in",
    Opcode.READDIRPLUS: "fuse_read_in",
    Opcode.WRITE: "fuse_write_in",
    Opcode.RELEASE: "fuse_release_in",
    Opcode.RELEASEDIR: "fuse_release_in",
    Opcode.FLUSH: "fuse_flush_in",
    Opcode.FSYNC: "fuse_fsync_in",
    Opcode.FSYNCDIR: "fuse_fsync_in",
    Opcode.GETXATTR: "fuse_getxattr_in",
    Opcode.LISTXATTR: "fuse_getxattr_in",
    Opcode.ACCESS: "fuse_access_in",
    Opcode.CREATE: "fuse_create_in",
    Opcode.INTERRUPT: "fuse_interrupt_in",
    Opcode.BATCH_FORGET: "fuse_batch_forget_in",
    Opcode.LSEEK: "fuse_lseek_in",
    Opcode.IOCTL: "fuse_ioctl_in",
    Opcode.POLL: "fuse_poll_in",
    Opcode.FALLOCATE: "fuse_fallocate_in",
    Opcode.TMPFILE: "fuse_create_in",
}
#: The header's macros for the sizes of older forms, which are what goes over the wire unless more was agreed on.
COMPATIBLE = {Opcode.SETXATTR: "FUSE_COMPAT_SETXATTR_IN_SIZE"}
OFFSETS = {
    "fuse_attr_out": {"attr_valid": 0, "attr_valid_nsec": 8, "attr.ino": 16, "attr.atime": 40, "attr.rdev": 92},
    "fuse_entry_out": {"nodeid": 0, "entry_valid": 16, "attr_valid": 24, "entry_valid_nsec": 32, "attr.ino": 40},
    "fuse_init_out": {"max_readahead": 8, "flags": 12, "congestion_threshold": 18, "max_write": 20, "max_pages": 28},
    "fuse_kstatfs": {"blocks": 0, "bsize": 40, "namelen": 44, "frsize": 48},
    "fuse_dirent": {"ino": 0, "off": 8, "namelen": 16, "type": 20, "name": 24},
    "fuse_direntplus": {"entry_out": 0, "dirent": 128},
    "fuse_setattr_in": {"valid": 0, "size": 16, "atime": 32, "atimensec": 56, "mode": 68, "uid": 76, "gid": 80},
    "fuse_ioctl_in": {"fh": 0, "flags": 8, "cmd": 12, "arg": 16, "in_size": 24, "out_size": 28},
    "fuse_poll_in": {"fh": 0, "kh": 8, "flags": 16, "events": 20},
    "fuse_ioctl_out": {"result": 0, "flags": 4, "out_iovs": 12},
    "fuse_write_in": {"fh": 0, "offset": 8, "size": 16},
    "fuse_rename2_in": {"newdir": 0, "flags": 8},
}


def run_c(directory: Path, expressions: list[str]) -> dict[str, int]:
    """The values of C expressions in the light of <linux/fuse.h>."""
    lines = "".join(f'    printf("%llu\\n", (unsigned long long)({expression}));\n' for expression in expressions)
    source = directory / "values.c"
    source.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n#include <linux/fuse.h>\nint main(void) {{\n{lines}return 0;\n}}\n"
    )
    subprocess.run(["gcc", "-o", directory / "values", source], check=True, capture_output=True)
    out = subprocess.run([directory / "values"], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions, map(int, out.split()), strict=True))


@pytest.mark.needs("gcc")
def test_everything_has_the_form_that_the_header_gives_it(tmp_path: Path) -> None:
    expected: dict[str, int] = {f"sizeof(struct {name})": layout.size for name, layout in STRUCTS.items()}
    expected |= {f"sizeof(struct {name})": protocol._BODY[opcode].size for opcode, name in REQUESTS.items()}
    expected |= {name: protocol._BODY[opcode].size for opcode, name in COMPATIBLE.items()}
    expected |= {
        f"offsetof(struct {name}, {field})": at for name, fields in OFFSETS.items() for field, at in fields.items()
    }
    # An opcode or a flag of a newer kernel may not be in this header.
    in_header = Path("/usr/include/linux/fuse.h").read_text()
    expected |= {f"FUSE_{opcode.name}": opcode for opcode in Opcode if f"\tFUSE_{opcode.name}\t" in in_header}
    expected |= {
        f"FUSE_{flag.name}": flag for flag in InitFlags if f"\tFUSE_{flag.name}\t" in in_header.replace(":", "\t")
    }
    expected |= {f"FOPEN_{flag.name}": flag for flag in OpenFlags}
    expected |= {f"FATTR_{flag.name}": flag for flag in SetAttr}
    expected |= {f"FUSE_NOTIFY_{code.name}": code for code in Notify if f"FUSE_NOTIFY_{code.name}" in in_header}
    expected |= {"FUSE_POLL_SCHEDULE_NOTIFY": protocol.POLL_SCHEDULE_NOTIFY, "FUSE_IOCTL_32BIT": protocol.IOCTL_32BIT}
    expected |= {"FUSE_ROOT_ID": ROOT_NODE, "FUSE_KERNEL_VERSION": protocol.VERSION[0]}
    assert len(expected) > 150
    assert run_c(tmp_path, list(expected)) == expected


def test_every_fixed_body_has_been_compared() -> None:
    # fuse_init_in has grown with the protocol; its first four fields have stayed.
    assert set(protocol._BODY) == {*REQUESTS, *COMPATIBLE, Opcode.INIT}


# -- requests


def test_a_request_is_taken_apart() -> None:
    body = struct.pack("=QQIIQII", 5, 4096, 512, 0, 0, 0, 0)
    assert decode(request(Opcode.READ, body, unique=9, node=12)) == Request(
        Opcode.READ, 9, 12, 1000, 1001, 77, (5, 4096, 512, 0, 0, 0, 0), b""
    )
    rename = decode(request(Opcode.RENAME, struct.pack("=Q", 3) + b"old\0new\0"))
    assert rename.fields == (3,) and rename.names() == [b"old", b"new"]


def test_a_request_that_is_not_known_keeps_its_body() -> None:
    assert decode(request(4711, b"what is this")).rest == b"what is this"


def test_forgotten_nodes() -> None:
    body = struct.pack("=II", 2, 0) + struct.pack("=QQQQ", 5, 1, 6, 2) + b"left over"
    assert list(decode(request(Opcode.BATCH_FORGET, body)).forgotten()) == [(5, 1), (6, 2)]


@quick
@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        assert isinstance(decode(data), Request)
    except ValueError:
        pass


@quick
@given(st.sampled_from([*Opcode, 0, 7, 99]), st.binary(max_size=150), st.integers(-3, 3))
def test_any_body_is_decoded_or_refused(opcode: int, body: bytes, wrong_by: int) -> None:
    data = request(opcode, body, length=40 + len(body) + wrong_by)
    try:
        decoded = decode(memoryview(data))
    except ValueError:
        return
    assert not wrong_by
    assert (decoded.opcode, decoded.unique, decoded.node) == (opcode, 1, 1)
    assert body.endswith(decoded.rest)
    assert all(node >= 0 and count >= 0 for node, count in decoded.forgotten())
    assert b"\0" not in b"".join(decoded.names())


@pytest.mark.parametrize("opcode", sorted(protocol._BODY))
def test_a_body_that_is_cut_short(opcode: Opcode) -> None:
    size = protocol._BODY[opcode].size
    assert len(decode(request(opcode, bytes(size))).rest) == 0
    with pytest.raises(ValueError):
        decode(request(opcode, bytes(size - 1)))


# -- replies


def test_headers() -> None:
    assert encode_reply_header(7, 100) == struct.pack("=IiQ", 116, 0, 7)
    assert encode_error(7, errno.ENOENT) == struct.pack("=IiQ", 16, -errno.ENOENT, 7)
    assert encode_notification(Notify.STORE, b"12345678") == struct.pack("=IiQ", 24, 4, 0) + b"12345678"
    assert HEADER_SIZE == 40


def test_only_what_the_kernel_offers_is_agreed_on() -> None:
    wanted = InitFlags.ASYNC_READ | InitFlags.MAX_PAGES
    offer = InitRequest(7, 40, 131072, int(InitFlags.MAX_PAGES | InitFlags.BIG_WRITES) | 1 << 30)
    body = encode_init(offer, wanted, max_write=1 << 20, max_background=64, max_pages=256)
    fields = struct.unpack("=IIIIHHIIHHI28x", body)
    assert fields == (7, 38, 131072, int(InitFlags.MAX_PAGES), 64, 48, 1 << 20, 1, 256, 0, 0)


@quick
@given(attributes, U64, st.integers(0, NS - 1))
def test_attributes(given: Attributes, seconds: int, nanoseconds: int) -> None:
    body = encode_attributes(given, (seconds, nanoseconds))
    assert struct.unpack("=QII", body[:16]) == (seconds, nanoseconds, 0)
    assert Attr.parse(body[16:]).agrees_with(given)


@quick
@given(attributes, U64)
def test_an_entry(given: Attributes, node: int) -> None:
    body = encode_entry(node, given, (3, 5))
    assert struct.unpack("=QQQQII", body[:40]) == (node, 0, 3, 3, 5, 5)
    assert Attr.parse(body[40:]).agrees_with(given)


def test_a_name_that_does_not_exist() -> None:
    body = negative_entry((3, 5))
    assert len(body) == 128
    assert struct.unpack("=QQQQII", body[:40]) == (0, 0, 3, 0, 5, 0)
    assert not any(body[40:])


@pytest.mark.parametrize(
    ("time_ns", "seconds", "nanoseconds"),
    [
        (-1, -1, NS - 1),
        (-NS, -1, 0),
        (-NS - 1, -2, NS - 1),
        (0, 0, 0),
        (NS + 1, 1, 1),
        (-(1 << 31) * NS, -(1 << 31), 0),
    ],
)
def test_times_before_1970(time_ns: int, seconds: int, nanoseconds: int) -> None:
    attr = Attr.parse(encode_attributes(Attributes(InodeNumber(1), 0, mtime_ns=time_ns), (0, 0))[16:])
    assert (attr.mtime, attr.mtimensec) == (seconds, nanoseconds)


@quick
@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_device_numbers(major: int, minor: int) -> None:
    number = os.makedev(major, minor)
    assert encode_device(number) < 1 << 32
    assert decode_device(encode_device(number)) == number


def test_the_device_number_that_everyone_knows() -> None:
    assert encode_device(os.makedev(1, 3)) == 0x103
    assert encode_device(os.makedev(259, 0x12345)) == 0x12310345


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, (0, 0)), (1.5, (1, NS // 2)), (3, (3, 0)), (0.25, (0, NS // 4))]
)
def test_seconds(seconds: float, expected: tuple[int, int]) -> None:
    assert split_seconds(seconds) == expected


# -- directories


entries = st.lists(
    st.builds(DirectoryEntry, st.binary(min_size=1, max_size=255), st.integers(1, (1 << 63) - 1), attributes),
    max_size=8,
)


@quick
@given(entries, st.integers(0, 3000), st.booleans(), st.data())
def test_a_directory_is_read_back(given: list[DirectoryEntry], size: int, plus: bool, data: st.DataObject) -> None:
    root = data.draw(st.sampled_from([entry.attributes.ino for entry in given]) if given else U64)
    body, taken = encode_directory(iter(given), size, (7, 11), root, plus=plus)
    assert len(body) <= size and len(body) % 8 == 0
    assert taken == given[: len(taken)]
    if len(taken) < len(given):
        fixed = 152 if plus else 24
        assert len(body) + -(-(fixed + len(given[len(taken)].name)) // 8) * 8 > size, "one more would have fitted"
    found = read_directory(body, plus)
    assert [entry.name for entry in found] == [entry.name for entry in taken]
    for entry, expected in zip(found, taken, strict=True):
        inode = expected.attributes.ino
        shown = expected.attributes.shown_ino or inode
        assert (entry.ino, entry.cookie, entry.type) == (shown, expected.cookie, expected.attributes.mode >> 12)
        if plus:
            assert entry.node == (0 if not expected.is_known else ROOT_NODE if inode == root else inode)
            assert entry.valid == (7, 7, 11, 11)
            assert entry.attr is not None and entry.attr.agrees_with(expected.attributes)


def test_only_as_much_of_a_directory_is_asked_for_as_fits() -> None:
    asked = 0

    def endless() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield DirectoryEntry(b"name", asked, Attributes(InodeNumber(asked), stat.S_IFREG))

    _body, taken = encode_directory(endless(), 320, (0, 0), 1, plus=False)
    assert len(taken) == 10 and asked == 11


# -- the small ones


def test_an_opened_file() -> None:
    assert encode_open(5, OpenFlags.DIRECT_IO) == struct.pack("=QII", 5, 1, 0)


def test_extended_attributes_and_their_sizes() -> None:
    assert encode_xattr(b"value", 0) == encode_size(5) == struct.pack("=II", 5, 0)
    assert encode_xattr(b"value", 5) == encode_xattr(b"value", 64) == b"value"
    with pytest.raises(OSError) as caught:
        encode_xattr(b"value", 4)
    assert caught.value.errno == errno.ERANGE
    assert encode_xattr(b"", 0) == encode_size(0)


def test_statistics() -> None:
    body = encode_statistics(FileSystemStatistics(1024, 100, 50, 40, 30, 20, 255))
    assert struct.unpack("=QQQQQIIII24x", body) == (100, 50, 40, 30, 20, 1024, 255, 1024, 0)
