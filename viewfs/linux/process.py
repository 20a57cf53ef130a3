"""Processes by pidfd, their memory, and giving up privilege (capabilities(7), prctl(2)).

`prctl` is the python-prctl package; capset(2) is called directly because one call replaces all three sets at once.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import sys
from collections.abc import Iterable

import prctl

from viewfs.linux.libc import check, function, syscall
from viewfs.linux.namespaces import CloneFlags

__all__ = [
    "CAPS_OF_OWNERS",
    "CAP_SYS_PTRACE",
    "FAKE_ROOT_CAPABILITIES",
    "PIDFD_GET_INFO",
    "PYTHON",
    "children_of",
    "die_with_parent",
    "drop_capabilities",
    "forget_environment",
    "fork_into",
    "has_capabilities",
    "has_no_new_privileges",
    "hide_memory",
    "keep_for_programs",
    "keep_only",
    "no_new_privileges",
    "pid_of",
    "pidfd_is_dead",
    "pidfd_open",
    "pidfd_send_signal",
    "process_vm_readv",
    "process_vm_writev",
    "set_name",
    "show_memory",
    "thread_group_of",
]

#: What a program that believes itself root uses on its own files: chown, dac_override, dac_read_search, fowner, fsetid,
#: kill, setgid, setuid, setfcap (linux/capability.h). None reaches further than the ids that its user namespace maps;
#: the
#: last is what a user namespace inside needs to map its root (user_namespaces(7)).
FAKE_ROOT_CAPABILITIES = frozenset({*range(8), 31})

#: What runs a module in a process of its own, and none of that name which lies in the working directory (-P).
PYTHON = (sys.executable, "-P", "-m")

CAP_SYS_PTRACE = 19
#: chown, dac_override, dac_read_search, fowner, fsetid.
CAPS_OF_OWNERS = frozenset(range(5))

_CAPABILITY_VERSION_3 = 0x20080522
_IOV_MAX = 1024


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _PidfdInfo(ctypes.Structure):
    """struct pidfd_info of linux/pidfd.h, version 0."""

    _fields_ = (
        ("mask", ctypes.c_uint64),
        ("cgroupid", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("tgid", ctypes.c_uint32),
        ("ppid", ctypes.c_uint32),
        ("identities", ctypes.c_uint32 * 8),
        ("exit_code", ctypes.c_int32),
    )


_PIDFD_THREAD = os.O_EXCL
_PIDFD_INFO_PID = 1
#: _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
PIDFD_GET_INFO = 3 << 30 | ctypes.sizeof(_PidfdInfo) << 16 | 0xFF << 8 | 11


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_c = ctypes
_prctl = function("prctl", _c.c_int, *[_c.c_ulong] * 4)
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_capset = syscall("capset", _c.c_void_p, _c.c_void_p)
_capget = syscall("capget", _c.c_void_p, _c.c_void_p)
_clone = syscall("clone", *[_c.c_ulong] * 5, holds_lock=True)
_vm_arguments = (_c.c_int, _c.c_void_p, _c.c_ulong, _c.c_void_p, _c.c_ulong, _c.c_ulong)
_process_vm_readv = function("process_vm_readv", *_vm_arguments)
_process_vm_writev = function("process_vm_writev", *_vm_arguments)


def pidfd_open(pid: int) -> int:
    """pidfd_open(2), close-on-exec."""
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, number: int) -> bool:
    """pidfd_send_signal(2). False where the process is gone already."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def pid_of(pidfd: int) -> int:
    """The process's number as this process sees it (the Pid line of proc_pid_fdinfo(5)); -1 if it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        for line in info:
            if line.startswith("Pid:"):
                return int(line[4:])
    return -1


def children_of(pid: int) -> set[int]:
    """The processes whose parent it is (proc_pid_task(5)); none where the kernel doesn't tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return {int(child) for child in file.read().split()}
    except OSError:
        return set()


def pidfd_is_dead(pidfd: int) -> bool:
    """Has the process ended? (It may still wait to be reaped.)"""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


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


def thread_group_of(tid: int) -> int:
    """The process that thread `tid` belongs to; 0 if it can't be told.

    By pidfd (ioctl_pidfd(2), PIDFD_GET_INFO, Linux 6.13), for which nothing but a number is needed. Before that only a
    process's main thread can be told, whose number is the process's.
    """
    try:
        pidfd = os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError:
        return tid if _is_main_thread(tid) else 0
    try:
        asked = bytes(_PidfdInfo(mask=_PIDFD_INFO_PID))
        return int(_PidfdInfo.from_buffer_copy(fcntl.ioctl(pidfd, PIDFD_GET_INFO, asked)).tgid)
    except OSError:
        return tid if _is_main_thread(tid) else 0
    finally:
        os.close(pidfd)


def _is_main_thread(tid: int) -> bool:
    try:
        os.close(os.pidfd_open(tid))
    except OSError:
        return False
    return True


def drop_capabilities(keep: Iterable[int] = (), *, bounding: bool = True) -> None:
    """Leave this process only the capabilities `keep`, and (`bounding`) what it executes no way to gain another.

    With no_new_privs nothing is gained anyway. Without its bounding set a process can't even execute a program that
    has file capabilities, which then has none of them (capabilities(7)).

    Removes everything else from the bounding set, then sets the other sets at once; with the inheritable set the
    ambient
    one is emptied, which must be part of it (capabilities(7)).
    """
    kept = frozenset(keep)
    for capability in range(64) if bounding else ():
        # The package's own capbset_drop stops at the last capability that its headers knew.
        if capability not in kept and _prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # past the last one the kernel knows; or no CAP_SETPCAP, so nothing to lose
    mask = sum(1 << capability for capability in kept)
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)(
        _CapData(mask & 0xFFFFFFFF, mask & 0xFFFFFFFF, 0),
        _CapData(mask >> 32, mask >> 32, 0),
    )
    check(_capset(ctypes.addressof(header), ctypes.addressof(data)), "capset")


def fork_into(kinds: CloneFlags) -> int:
    """As `os.fork`, the child being in new namespaces of these kinds (clone(2)). Raises OSError.

    Only for a process with one thread: the C library is not asked to prepare for it. Python is, as for any fork.
    """
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_clone(int(kinds) | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, f"clone: {os.strerror(number)}")
    return pid


def has_capabilities(wanted: Iterable[int]) -> bool:
    """Are these in the effective set? (They count in this process's own user namespace.)"""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    check(_capget(ctypes.addressof(header), ctypes.addressof(data)), "capget")
    return all(data[number // 32].effective >> number % 32 & 1 for number in wanted)


def keep_for_programs(capabilities: Iterable[int]) -> None:
    """Let programs that this process executes have `capabilities`, as far as it has them (capabilities(7), ambient)."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    check(_capget(ctypes.addressof(header), ctypes.addressof(data)), "capget")
    for part in data:
        part.inheritable = part.permitted
    check(_capset(ctypes.addressof(header), ctypes.addressof(data)), "capset")
    for capability in capabilities:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)  # EPERM for one that isn't there


def no_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS: execve(2) grants nothing from now on."""
    prctl.set_no_new_privs(1)


def hide_memory() -> None:
    """PR_SET_DUMPABLE 0: no process of the same user may trace this one, read its memory or open its descriptors, but
    with CAP_SYS_PTRACE in the user namespace in which the program was executed (ptrace(2)). Children inherit it until
    they execute something."""
    prctl.set_dumpable(0)


def show_memory() -> None:
    """Take `hide_memory` back."""
    prctl.set_dumpable(1)


def has_no_new_privileges() -> bool:
    """PR_GET_NO_NEW_PRIVS: does a set-user-ID program run as its user only?"""
    return bool(prctl.get_no_new_privs())


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """PR_SET_PDEATHSIG, and at once if `parent` is gone already. Must be called again after a change of credentials."""
    prctl.set_pdeathsig(number)
    if os.getppid() not in (parent, 0):  # 0: it is outside of this process's pid namespace
        os.kill(os.getpid(), number)


def keep_only(*fds: int) -> None:
    """Close everything but the standard streams and `fds`: a pipe that stays open here would never end elsewhere, and
    any could be one of a mount that waits for this process."""
    start = 3
    for fd in sorted(fd for fd in fds if fd >= start):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 1 << 20)


def forget_environment(kept: Iterable[str] = ()) -> None:
    """Have no variable but `kept`, and overwrite where others were in memory (proc_pid_stat(5), fields 50 and 51)."""
    left = {name: os.environ[name] for name in kept if name in os.environ}
    values = list(os.environ._data.values())  # type: ignore[attr-defined]
    os.environ.clear()
    for value in values:
        if len(value) > 1:  # shorter ones are everybody's
            ctypes.memset(id(value) + bytes.__basicsize__ - 1, 0, len(value))
    start, end = _places_of_arguments()[2:]
    ctypes.memset(start, 0, end - start)
    os.environ.update(left)


def _places_of_arguments() -> tuple[int, int, int, int]:
    """Where the kernel put arguments and environment: begin and end of each; equal where that can't be told."""
    try:
        with open("/proc/self/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        arguments, end_of_arguments, environment, end_of_environment = map(int, fields[45:49])
    except (OSError, ValueError):
        return 0, 0, 0, 0  # a view may have something else on /proc
    return arguments, max(arguments, end_of_arguments), environment, max(environment, end_of_environment)


def set_name(name: str) -> None:
    """What `ps` shows: the command name (prctl(2), PR_SET_NAME), and in place of the arguments what fits there."""
    prctl.set_name(name[:15])
    # Where the kernel reads them from.
    start, end = _places_of_arguments()[:2]
    if start < end:
        ctypes.memset(start, 0, end - start)
        text = name.encode()[: end - start - 1]
        ctypes.memmove(start, text, len(text))
