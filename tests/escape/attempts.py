"""What somebody would try who has taken a process over. Each attempt returns what it got, or raises what kept it off.

It is imported by the modules of the tests, whose servers are shut in before they call `run`. Attempts are named for
what they would give; where they follow the report of a hole in another sandbox, that is said.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

Attempt = Callable[[], object]
ATTEMPTS: dict[str, Attempt] = {}

#: Numbers of x86-64 (asm/unistd_64.h).
NUMBERS = {
    "ptrace": 101, "syslog": 103, "setuid": 105, "setgid": 106, "capset": 126, "rt_sigqueueinfo": 129,
    "personality": 135, "setpriority": 141, "modify_ldt": 154, "pivot_root": 155, "prctl": 157, "acct": 163,
    "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "sethostname": 170, "iopl": 172,
    "ioperm": 173, "init_module": 175, "quotactl": 179, "tkill": 200, "remap_file_pages": 216, "timer_create": 222,
    "tgkill": 234, "mbind": 237, "mq_open": 240, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
    "ioprio_set": 251, "migrate_pages": 256, "unshare": 272, "move_pages": 279, "perf_event_open": 298,
    "fanotify_init": 300, "prlimit64": 302, "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "sched_setattr": 314,
    "seccomp": 317, "memfd_create": 319, "kexec_file_load": 320, "bpf": 321, "execveat": 322, "userfaultfd": 323,
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fspick": 433,
    "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438, "process_madvise": 440,
    "mount_setattr": 442, "quotactl_fd": 443, "landlock_create_ruleset": 444, "memfd_secret": 447,
    "process_mrelease": 448, "lsm_set_self_attr": 460,
}  # fmt: skip
ON_X86_64 = platform.machine() == "x86_64"


def attempt(name: str) -> Callable[[Attempt], Attempt]:
    def register(function: Attempt) -> Attempt:
        assert name not in ATTEMPTS, name
        ATTEMPTS[name] = function
        return function

    return register


def call(name: str | int, *arguments: object) -> int:
    """A system call. Raises OSError."""
    number = NUMBERS[name] if isinstance(name, str) else name
    padded = [ctypes.c_long(one) if isinstance(one, int) else one for one in (*arguments, *[0] * (6 - len(arguments)))]
    ctypes.set_errno(0)
    result = int(libc.syscall(ctypes.c_long(number), *padded))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def descriptors() -> Iterator[int]:
    for fd in range(256):
        with suppress(OSError):
            os.fstat(fd)
            yield fd


def first_that_works(tries: Iterator[Callable[[], object]]) -> object:
    """The first that raises nothing; all having failed, the last error."""
    last: Exception = PermissionError(errno.EPERM, "nothing to try it with")
    for one in tries:
        try:
            return one()
        except (OSError, ValueError) as error:
            last = error
    raise last


def others() -> list[int]:
    """Numbers that processes have, or could."""
    try:
        mine = os.readlink("/proc/self")  # by which number /proc knows this one, which may be in another pid namespace
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name not in (mine, str(os.getpid()))]
    except OSError:
        return [pid for pid in (1, 2, os.getppid(), *range(3, 2000)) if pid != os.getpid()]


# -- files


@attempt("open a file of the user")
def _open() -> object:
    return os.open("/etc/passwd", os.O_RDONLY)


@attempt("open a file with openat2")
def _openat2() -> object:
    how = ctypes.create_string_buffer(struct.pack("QQQ", os.O_RDONLY, 0, 0))
    return call("openat2", -100, ctypes.c_char_p(b"/etc/passwd"), how, 24)


@attempt("make a file")
def _create() -> object:
    return os.open("/tmp", os.O_TMPFILE | os.O_WRONLY, 0o600)


@attempt("list a directory")
def _list() -> object:
    found = os.listdir("/")
    if not found:
        raise FileNotFoundError(errno.ENOENT, "empty")
    return found


@attempt("walk from an inherited directory")
def _walk() -> object:
    return first_that_works(
        (lambda fd=fd: os.open("../../../../etc/passwd", os.O_RDONLY, dir_fd=fd)) for fd in descriptors()
    )


@attempt("open an inherited descriptor anew, for writing")
def _reopen() -> object:
    return first_that_works((lambda fd=fd: os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)) for fd in descriptors())


@attempt("write into its own code by /proc/self/mem")
def _own_memory() -> object:
    return os.open("/proc/self/mem", os.O_RDWR)


@attempt("open a file by handle (CVE-2015-3629, docker)")
def _handle() -> object:
    handle = ctypes.create_string_buffer(struct.pack("IiQ", 8, 1, 2))
    return first_that_works((lambda fd=fd: call("open_by_handle_at", fd, handle, 0)) for fd in descriptors())


@attempt("make a file in memory")
def _memfd() -> object:
    return call("memfd_create", ctypes.c_char_p(b"x"), 0)


@attempt("watch the file system (fanotify)")
def _fanotify() -> object:
    return call("fanotify_init", 0x200, 0)


@attempt("make a file larger that it has open")
def _grow() -> object:
    def grow(fd: int) -> object:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EBADF, "no file")
        return os.pwrite(fd, b"x", max(os.fstat(fd).st_size, 1 << 24))

    return first_that_works((lambda fd=fd: grow(fd)) for fd in descriptors())


# -- programs


@attempt("start a program")
def _execute() -> object:
    # A path that can't be executed where it is reached: else the test would be at its end.
    try:
        os.execv("/etc/passwd", ["x"])
    except PermissionError as error:
        if error.errno == errno.EACCES and os.path.exists("/etc/passwd"):
            return "it was reached"
        raise


@attempt("run a program from memory (CVE-2019-5736, runc)")
def _memfd_exec() -> object:
    fd = call("memfd_create", ctypes.c_char_p(b"x"), 0)
    os.write(fd, b"#!/nothing\n")
    return call("execveat", fd, ctypes.c_char_p(b""), 0, 0, 0x1000)


@attempt("fork")
def _fork() -> object:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)


@attempt("fork with clone3")
def _clone3() -> object:
    arguments = ctypes.create_string_buffer(struct.pack("8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0))
    pid = call("clone3", arguments, 64)
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)


# -- namespaces and mounts

for _name, _flag in {
    "user": 0x10000000, "mount": 0x20000, "network": 0x40000000, "pid": 0x20000000, "cgroup": 0x2000000,
}.items():  # fmt: skip
    ATTEMPTS[f"make a {_name} namespace"] = lambda flag=_flag: call("unshare", flag)


@attempt("join a namespace by an inherited descriptor")
def _join() -> object:
    return first_that_works((lambda fd=fd: call("setns", fd, 0)) for fd in descriptors())


@attempt("join a namespace of another process")
def _join_other() -> object:
    def join(pid: int) -> object:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        try:
            return call("setns", fd, 0x20000)
        finally:
            os.close(fd)

    return first_that_works((lambda pid=pid: join(pid)) for pid in others())


@attempt("mount")
def _mount() -> object:
    return call("mount", ctypes.c_char_p(b"none"), ctypes.c_char_p(b"/"), ctypes.c_char_p(b"tmpfs"), 0, 0)


@attempt("mount (fsopen)")
def _fsopen() -> object:
    return call("fsopen", ctypes.c_char_p(b"tmpfs"), 0)


@attempt("copy a mount (open_tree)")
def _open_tree() -> object:
    return call("open_tree", -100, ctypes.c_char_p(b"/"), 1)


@attempt("unmount")
def _unmount() -> object:
    return call("umount2", ctypes.c_char_p(b"/"), 2)


@attempt("change a mount's attributes")
def _setattr() -> object:
    attributes = ctypes.create_string_buffer(struct.pack("4Q", 1, 0, 0, 0))
    return call("mount_setattr", -100, ctypes.c_char_p(b"/"), 0, attributes, 32)


@attempt("change the root (chroot)")
def _chroot() -> object:
    return os.chroot("/")


@attempt("change the root (pivot_root)")
def _pivot() -> object:
    return call("pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))


# -- other processes


@attempt("signal every process")
def _kill_all() -> object:
    return os.kill(-1, 0)


@attempt("signal a process")
def _kill() -> object:
    return first_that_works((lambda pid=pid: os.kill(pid, 0)) for pid in others())


@attempt("signal a thread")
def _tkill() -> object:
    return first_that_works((lambda pid=pid: call("tkill", pid, 0)) for pid in others())


@attempt("signal a process with data")
def _queue() -> object:
    information = ctypes.create_string_buffer(struct.pack("iii", signal.SIGTERM, 0, -1), 128)
    return first_that_works((lambda pid=pid: call("rt_sigqueueinfo", pid, 0, information)) for pid in others())


@attempt("signal a process by descriptor")
def _pidfd_signal() -> object:
    return first_that_works((lambda pid=pid: signal.pidfd_send_signal(os.pidfd_open(pid), 0)) for pid in others())


def _signalled_by(own: Callable[[int], object]) -> object:
    """Whom the kernel would signal when something comes is set with `own`: is it kept?"""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        got = own(one.fileno())
        fcntl.fcntl(one, 10, signal.SIGURG)  # F_SETSIG
        fcntl.fcntl(one, fcntl.F_SETFL, fcntl.fcntl(one, fcntl.F_GETFL) | os.O_ASYNC)
        return got


@attempt("have the kernel signal a process (F_SETOWN)")
def _setown() -> object:
    return first_that_works(
        (lambda pid=pid: _signalled_by(lambda fd: fcntl.fcntl(fd, fcntl.F_SETOWN, pid))) for pid in others()
    )


@attempt("have the kernel signal a process (F_SETOWN_EX)")
def _setown_ex() -> object:
    def own(fd: int, pid: int) -> object:
        return fcntl.fcntl(fd, 15, struct.pack("ii", 1, pid))

    return first_that_works((lambda pid=pid: _signalled_by(lambda fd: own(fd, pid))) for pid in others())


@attempt("have the kernel signal a process (FIOSETOWN)")
def _fiosetown() -> object:
    def own(fd: int, pid: int) -> object:
        return fcntl.ioctl(fd, 0x8901, struct.pack("i", pid))

    return first_that_works((lambda pid=pid: _signalled_by(lambda fd: own(fd, pid))) for pid in others())


@attempt("have a timer signal a thread")
def _timer() -> object:
    def make(pid: int) -> object:
        event = ctypes.create_string_buffer(struct.pack("Qiii", 0, signal.SIGURG, 4, pid), 64)
        return call("timer_create", 1, event, ctypes.create_string_buffer(8))

    return first_that_works((lambda pid=pid: make(pid)) for pid in others())


@attempt("trace a process")
def _trace() -> object:
    return first_that_works((lambda pid=pid: call("ptrace", 0x4206, pid, 0, 0)) for pid in others())


@attempt("be traced by its parent")
def _trace_me() -> object:
    return call("ptrace", 0, 0, 0, 0)


def _vector(size: int = 8) -> ctypes.Array[ctypes.c_char]:
    buffer = ctypes.create_string_buffer(size)
    vector = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), size))
    vector.kept = buffer  # type: ignore[attr-defined]
    return vector


@attempt("read another process's memory")
def _vm_read() -> object:
    local, far = _vector(), ctypes.create_string_buffer(struct.pack("QQ", id(ATTEMPTS), 8))
    return first_that_works((lambda pid=pid: call("process_vm_readv", pid, local, 1, far, 1, 0)) for pid in others())


@attempt("write another process's memory")
def _vm_write() -> object:
    local, far = _vector(), ctypes.create_string_buffer(struct.pack("QQ", 0x1000, 8))

    def write(pid: int) -> object:
        try:
            return call("process_vm_writev", pid, local, 1, far, 1, 0)
        except OSError as error:
            if error.errno == errno.EFAULT:
                return "it may, and nothing is there"
            raise

    return first_that_works((lambda pid=pid: write(pid)) for pid in others())


def _open_of_others(name: str) -> object:
    return first_that_works(
        (lambda pid=pid: os.read(os.open(f"/proc/{pid}/{name}", os.O_RDONLY), 1)) for pid in others()
    )


def _of_session() -> list[int]:
    """Processes of viewfs."""
    found = []
    for pid in others():
        with suppress(OSError):
            if open(f"/proc/{pid}/comm").read().startswith("viewfs-"):
                found.append(pid)
    return found


@attempt("read the environment of a process of the session")
def _environ() -> object:
    def read(pid: int) -> object:
        found = os.read(os.open(f"/proc/{pid}/environ", os.O_RDONLY), 10)
        if not found:
            raise OSError(errno.ENODATA, "empty")
        return found

    return first_that_works((lambda pid=pid: read(pid)) for pid in _of_session())


@attempt("open the memory of a process of the session")
def _proc_mem() -> object:
    return first_that_works((lambda pid=pid: os.open(f"/proc/{pid}/mem", os.O_RDWR)) for pid in _of_session())


@attempt("open a descriptor of a process of the session")
def _proc_fd() -> object:
    return first_that_works(
        (lambda pid=pid, fd=fd: os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH)) for pid in _of_session() for fd in range(30)
    )


@attempt("see the root of a process of the session")
def _proc_root() -> object:
    return first_that_works((lambda pid=pid: os.listdir(f"/proc/{pid}/root")) for pid in _of_session())


@attempt("trace a process of the session")
def _trace_session() -> object:
    def seize(pid: int) -> object:
        call("ptrace", 0x4206, pid, 0, 0)
        return pid

    return first_that_works((lambda pid=pid: seize(pid)) for pid in _of_session())


@attempt("take a descriptor of another process")
def _getfd() -> object:
    def take(pid: int) -> object:
        return call("pidfd_getfd", os.pidfd_open(pid), 0, 0)

    return first_that_works((lambda pid=pid: take(pid)) for pid in others())


for _call, _arguments in {
    "kcmp": (0, 0, 0, 0), "process_madvise": (0, 0, 0, 4), "migrate_pages": (8, 0, 0), "move_pages": (0, 0, 0, 0, 0),
}.items():  # fmt: skip

    def _about_others(name: str = _call, rest: tuple[int, ...] = _arguments) -> object:
        return first_that_works((lambda pid=pid: call(name, pid, *rest)) for pid in others())

    ATTEMPTS[f"{_call} of another process"] = _about_others


@attempt("change another process's limits")
def _prlimit() -> object:
    limit = ctypes.create_string_buffer(struct.pack("QQ", 1, 1))
    return first_that_works((lambda pid=pid: call("prlimit64", pid, 4, limit, 0)) for pid in others())
