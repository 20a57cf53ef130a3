"""More attempts: terminals, sockets, the kernel, more than one's share, secrets. `run` makes them all."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import gc
import mmap
import os
import re
import resource
import socket
import struct
import threading
from contextlib import suppress

from tests.escape.attempts import ATTEMPTS, ON_X86_64, attempt, call, descriptors, first_that_works, libc

__all__ = ["ATTEMPTS", "run"]

#: What the environment of each test has: nothing like it is to be found in a server.
SECRET = re.compile(rb"s[e]cret-[0-9a-f]{32}")


# -- terminals


@attempt("type for the user (TIOCSTI, CVE-2017-5226, bubblewrap)")
def _sti() -> object:
    return first_that_works((lambda fd=fd: fcntl.ioctl(fd, 0x5412, b"x")) for fd in descriptors())


@attempt("paste for the user (TIOCLINUX, CVE-2023-1523, snap)")
def _linux() -> object:
    return first_that_works((lambda fd=fd: fcntl.ioctl(fd, 0x541C, b"\x03")) for fd in descriptors())


@attempt("type for the user, with high bits (CVE-2019-10063, flatpak)")
def _sti_high() -> object:
    byte = ctypes.create_string_buffer(b"x")

    def high(fd: int) -> object:
        return call(16 if ON_X86_64 else 29, fd, 0x5412 | 1 << 32, byte)

    return first_that_works((lambda fd=fd: high(fd)) for fd in descriptors())


# -- sockets

for _name, _family in {
    "a unix": 1, "an internet": 2, "an IPv6": 10, "a netlink": 16, "a packet": 17, "an AF_ALG": 38, "a vsock": 40,
}.items():  # fmt: skip
    ATTEMPTS[f"make {_name} socket"] = lambda family=_family: socket.socket(
        family, socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_RAW if family in (16, 17) else socket.SOCK_STREAM
    ).close()


def _abstract() -> bytes:
    return b"\0viewfs-escape"


@attempt("send to an abstract socket (CVE-2020-15257, containerd)")
def _abstract_sendto() -> object:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        return one.sendto(b"x", _abstract())


@attempt("send to an abstract socket, in a message")
def _abstract_sendmsg() -> object:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        return one.sendmsg([b"x"], [], 0, _abstract())


@attempt("connect to an abstract socket")
def _abstract_connect() -> object:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        return one.connect(_abstract())


@attempt("wait for others at an abstract socket")
def _abstract_bind() -> object:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        return one.bind(_abstract() + b"-2")


@attempt("pass descriptors on")
def _pass() -> object:
    one, other = socket.socketpair()
    with one, other:
        return one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])


@attempt("reach the host's network")
def _network() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", 9))
        return one.send(b"")


# -- the kernel

#: EINVAL says that there is no such user, and no way back.
_NONE = ("setuid", "setgid", "seccomp")

for _title, _what in {
    "load a BPF program": ("bpf", 5, 0, 0),
    "handle page faults (userfaultfd)": ("userfaultfd", 1),
    "make an io_uring": ("io_uring_setup", 4, 0),
    "count events (perf_event_open)": ("perf_event_open", 0, 0, -1, -1, 0),
    "use the session's keyring": ("keyctl", 0, -3, 0),
    "change the clock": ("settimeofday", 0, 0),
    "read the kernel's log": ("syslog", 10, 0, 0),
    "call itself another host": ("sethostname", 0, 0),
    "switch off address randomisation": ("personality", 0x0040000),
    "change its descriptor table (modify_ldt)": ("modify_ldt", 0, 0, 0),
    "touch ports": ("iopl", 3),
    "account for processes": ("acct", 0),
    "load a module": ("finit_module", 0, 0, 0),
    "swap": ("swapon", 0, 0),
    "loosen the filter": ("seccomp", 0, 0, 0),
    "show its memory again": ("prctl", 4, 1, 0, 0, 0),
    "gain a capability": ("prctl", 47, 2, 21, 0, 0),
    "be another user": ("setuid", 0),
    "be in another group": ("setgid", 0),
    "open a message queue": ("mq_open", 0, 0o100, 0o600, 0),
    "have secret memory": ("memfd_secret", 0),
}.items():

    def _kernel(arguments: tuple[object, ...] = _what) -> object:
        try:
            return call(*arguments)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno in (errno.EFAULT, errno.EBADF) or (
                error.errno == errno.EINVAL and arguments[0] not in _NONE
            ):
                return f"the kernel looked at it: {error.strerror}"
            raise

    ATTEMPTS[_title] = _kernel


@attempt("set capabilities")
def _capset() -> object:
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    data = ctypes.create_string_buffer(struct.pack("6I", *[0xFFFFFFFF] * 6))
    return call("capset", header, data)


#: What the filter of a sealed server lets through, or what would end the test if it did what it says.
_NOT_CALLED = {
    0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 23, 24, 25, 28, 32, 34, 35, 39, 44, 45, 47, 53, 54,
    55, 56, 57, 58, 60, 61, 62, 63, 72, 74, 75, 96, 98, 100, 101, 102, 104, 107, 108, 110, 112, 131, 158, 186, 200, 201,
    202, 204, 218, 219, 228, 230, 231, 232, 233, 234, 262, 270, 271, 273, 275, 281, 283, 286, 290, 291, 293, 295, 318,
    324, 334, 441,
    335, 336,  # uretprobe and uprobe, for breakpoints of the kernel's: whoever else calls them gets SIGILL
}  # fmt: skip


@attempt("any other system call")
def _numbers() -> object:
    """With nothing, and with an inherited descriptor and a buffer, which many take. For servers whose filter lets
    through what it knows; those that deny what they know would be at their end."""
    buffer = ctypes.create_string_buffer(4096)
    through = []
    for number in [*range(480), *range(512, 548)]:
        if number in _NOT_CALLED:
            continue
        for arguments in ((0, 0, 0, 0, 0, 0), (3, buffer, 4096, 0, 0, 0), (-100, buffer, 0, 0, 0, 0)):
            try:
                call(number, *arguments)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOSYS):
                    through.append(number)
            else:
                through.append(number)
    if not through:
        raise PermissionError(errno.EPERM, "each of them")
    return sorted({*through})


# -- more than its share

_LARGE = 1500 << 20


@attempt("take 1,500 MiB")
def _memory() -> object:
    with suppress(MemoryError):
        return len(bytearray(_LARGE))
    raise OSError(errno.ENOMEM, "no")


@attempt("take 1,500 MiB that is shared")
def _shared() -> object:
    with mmap.mmap(-1, _LARGE) as memory:
        for offset in range(0, _LARGE, 4096):
            memory[offset] = 1
        return _LARGE


@attempt("take 1,500 MiB as a stack that grows")
def _growing() -> object:
    with mmap.mmap(-1, _LARGE, 0x02 | 0x20 | 0x100) as memory:
        for offset in range(0, _LARGE, 4096):
            memory[offset] = 1
        return _LARGE


@attempt("have 3,000 threads")
def _threads() -> object:
    stop = threading.Event()
    started = []
    threading.stack_size(64 << 10)
    try:
        for _ in range(3000):
            thread = threading.Thread(target=stop.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"after {len(started)}") from error
    finally:
        threading.stack_size(0)
        stop.set()
        for thread in started:
            thread.join()
    return len(started)


@attempt("have 2,000 descriptors")
def _many() -> object:
    fds: list[int] = []
    try:
        while len(fds) < 2000:
            fds += os.pipe()
        return len(fds)
    finally:
        for fd in fds:
            os.close(fd)


@attempt("raise its limits")
def _raise() -> object:
    try:
        return resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
    except ValueError as error:
        raise OSError(errno.EPERM, str(error)) from error


# -- secrets


@attempt("find a secret of the environment in its memory")
def _secrets() -> object:
    """Whatever can be read is looked through, from the mappings that a fork leaves where they were."""
    found = []
    for begin, end in MAPS:
        for at in range(begin, end, 1 << 16):
            data = _read_memory(at, min((1 << 16) + 64, end - at))
            if (match := SECRET.search(data)) is not None:
                found.append(hex(at + match.start()))
    if not found:
        raise OSError(errno.ENODATA, "nothing")
    return found


#: Where memory is, as long as /proc can be read: taken when this is imported.
MAPS: list[tuple[int, int]] = []


def _note_maps() -> None:
    with suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps:
            place, rights = line.split()[:2]
            begin, _, end = place.partition("-")
            if "r" in rights and "[v" not in line:
                MAPS.append((int(begin, 16), int(end, 16)))


_note_maps()
_pipe: list[int] = []


def _read_memory(at: int, size: int) -> bytes:
    """By way of a pipe, where what isn't there is EFAULT and no signal."""
    if not _pipe:
        _pipe.extend(os.pipe())
        fcntl.fcntl(_pipe[1], fcntl.F_SETPIPE_SZ, 1 << 17)
    written = libc.write(_pipe[1], ctypes.c_void_p(at), ctypes.c_size_t(size))
    return os.read(_pipe[0], written) if written > 0 else b""


def run(names: list[str] | None = None) -> dict[str, str]:
    """What became of each attempt: “got through: …”, or the errno that refused it."""
    results = {}
    before = {*descriptors(), *_pipe}
    for name, function in ATTEMPTS.items():
        if names is not None and name not in names:
            continue
        try:
            got = function()
            results[name] = f"got through: {str(got)[:200]}"
        except OSError as error:
            results[name] = errno.errorcode.get(error.errno or 0, str(error))
        except Exception as error:
            results[name] = f"failed: {type(error).__name__}: {error}"
    # What attempts have left open is not to keep the server from serving what they have found.
    gc.collect()
    for fd in {*descriptors()} - before - {*_pipe}:
        os.close(fd)
    return results
