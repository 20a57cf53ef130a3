"""Processes by pidfd, their memory, and giving up privilege (capabilities(7), prctl(2))."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys

from viewfs.linux.libc import (
    addressof,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_ulong,
    c_void_p,
    check,
    function,
    syscall,
)
from viewfs.linux.plain import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CAPS_OF_OWNERS",
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "FAKE_ROOT_CAPABILITIES",
    "PIDFD_GET_INFO",
    "PYTHON",
    "Waiting",
    "children_of",
    "deliverable_signal",
    "die_with_parent",
    "drop_capabilities",
    "forget_environment",
    "fork_into",
    "has_capabilities",
    "has_capability",
    "has_no_new_privileges",
    "hide_memory",
    "how_it_ended",
    "is_exiting",
    "is_killed",
    "is_stopped",
    "keep_for_programs",
    "keep_only",
    "no_new_privileges",
    "pid_of",
    "pidfd_getfd",
    "pidfd_is_dead",
    "pidfd_open",
    "pidfd_send_signal",
    "raise_descriptor_limit",
    "reads_and_writes",
    "set_name",
    "show_memory",
    "signal_name",
    "thread_group_of",
]

#: What a program that believes itself root uses on its own files: chown, dac_override, dac_read_search, fowner, fsetid,
#: kill, setgid, setuid, setfcap (linux/capability.h). None reaches further than the ids that its user namespace maps;
#: the last is what a user namespace inside needs to map its root (user_namespaces(7)).
FAKE_ROOT_CAPABILITIES = frozenset({*range(8), 31})

#: The command that runs a module in a process of its own. (-P: not one of that name in the working directory.)
PYTHON = (sys.executable, "-P", "-m")

CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21
#: chown, dac_override, dac_read_search, fowner, fsetid.
CAPS_OF_OWNERS = frozenset(range(5))

_CAPABILITY_VERSION_3 = 0x20080522


#: struct pidfd_info of linux/pidfd.h, version 0: mask, cgroupid, pid, tgid, ppid, eight identities, exit code.
_PIDFD_INFO = struct.Struct("QQIII8Ii")
_PIDFD_THREAD = os.O_EXCL
_PIDFD_INFO_PID = 1
#: _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11


#: What capset(2) takes: version and process; and twice, for the lower and the upper half of the numbers, the effective,
#: permitted and inheritable set.
_CAP_HEADER = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
_CAP_DATA = struct.Struct("6I")
_prctl = function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_set_name = function("prctl", c_int, c_char_p, c_ulong, c_ulong, c_ulong)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_capset = syscall("capset", c_char_p, c_char_p)
_capget = syscall("capget", c_char_p, c_void_p)
_pidfd_getfd = syscall("pidfd_getfd", c_int, c_int, c_uint)
_clone = syscall("clone", *[c_ulong] * 5, holds_lock=True)


def pidfd_open(pid: int) -> int:
    """pidfd_open(2), close-on-exec."""
    return os.pidfd_open(pid)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """pidfd_getfd(2): a close-on-exec duplicate of that process's descriptor `number`. Raises OSError."""
    return check(_pidfd_getfd(pidfd, number, 0), "pidfd_getfd")


def pidfd_send_signal(pidfd: int, number: int) -> bool:
    """pidfd_send_signal(2). False where the process is gone already."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def signal_name(number: int) -> str:
    """As signal(7) has it."""
    names = (name for name, value in vars(signal).items() if value == number and name[:3] == "SIG" and name[3] != "_")
    return next(names, f"signal {number}")


def how_it_ended(code: int) -> str:
    """What `os.waitstatus_to_exitcode` gave, in words."""
    return f"was killed by {signal_name(-code)}" if code < 0 else f"ended with status {code}"


def pid_of(pidfd: int) -> int:
    """The process's number as this process sees it (the Pid line of proc_pid_fdinfo(5)); -1 if it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        for line in info:
            if line.startswith("Pid:"):
                return int(line[4:])
    return -1


def children_of(pid: int) -> set[int]:
    """The pids of the children of `pid` (proc_pid_task(5)); none where the kernel doesn't tell."""
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


#: PF_EXITING of the kernel's linux/sched.h.
_EXITING = 0x4


def _stat_of(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third, the state, on. Raises OSError if it can't be told."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def is_exiting(pidfd: int) -> bool:
    """Has the process begun to end, so that it runs no program any more? (The flags of proc_pid_stat(5).)"""
    try:
        return bool(int(_stat_of(pid_of(pidfd))[6]) & _EXITING)
    except OSError:
        return pidfd_is_dead(pidfd)


def has_capability(tid: int, number: int) -> bool:
    """Is that capability in the thread's effective set (proc_pid_status(5))? Raises OSError if it can't be told."""
    with open(f"/proc/{tid}/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line[7:], 16) >> number & 1)
    return False


class Waiting:
    """What `deliverable_signal` knows of a signal."""

    NONE, PERHAPS, CERTAINLY = range(3)


def deliverable_signal(tid: int) -> int:
    """Does a signal wait for this thread that it neither blocks nor ignores (SigPnd, ShdPnd, SigBlk and SigIgn of
    proc_pid_status(5))? `Waiting.NONE` if it is gone.

    One for the whole process is the first thread's, unless that blocks it. Then it is another's that does not: which
    one's can't be told if there are several.
    """
    try:
        own = _signals(tid)
        if own["SigPnd"] & ~own["SigBlk"] & ~own["SigIgn"]:
            return Waiting.CERTAINLY
        shared = own["ShdPnd"] & ~own["SigBlk"] & ~own["SigIgn"]
        process = thread_group_of(tid) if shared else tid
        if shared and process != tid:
            others = [
                _signals(int(other))["SigBlk"] for other in os.listdir(f"/proc/{process}/task") if int(other) != tid
            ]
            shared &= _signals(process)["SigBlk"]
            if shared and any(shared & ~blocked for blocked in others):
                return Waiting.PERHAPS
    except OSError:
        return Waiting.NONE
    return Waiting.CERTAINLY if shared else Waiting.NONE


def _signals(tid: int) -> dict[str, int]:
    with open(f"/proc/{tid}/status") as file:
        pairs = (line.split(":") for line in file if line.startswith(("SigPnd", "ShdPnd", "SigBlk", "SigIgn")))
        return {name: int(value, 16) for name, value in pairs}


def is_killed(tid: int) -> bool:
    """Is SIGKILL on its way to a thread, or is it gone?"""
    try:
        found = _signals(tid)
    except (OSError, KeyError, ValueError):
        return True
    return bool((found["SigPnd"] | found["ShdPnd"]) >> (signal.SIGKILL - 1) & 1)


def is_stopped(pid: int) -> bool:
    """Has a signal stopped the process (SIGSTOP, say; the state of proc_pid_stat(5))?"""
    try:
        return _stat_of(pid)[0] == "T"
    except OSError:
        return False


def reads_and_writes(pid: int) -> int | None:
    """How many calls that read or write the process has made (syscr and syscw of proc_pid_io(5)); None where that can't
    be told."""
    try:
        with open(f"/proc/{pid}/io") as file:
            counts = dict(line.split(": ") for line in file)
        return int(counts["syscr"]) + int(counts["syscw"])
    except (OSError, KeyError):
        return None


def thread_group_of(tid: int) -> int:
    """The process that thread `tid` belongs to; 0 if it can't be told.

    By pidfd (ioctl_pidfd(2), PIDFD_GET_INFO, Linux 6.13), which takes nothing but a number. Older kernels tell only of
    a process's main thread, whose number is the process's.
    """
    try:
        pidfd = os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError:
        return tid if _is_main_thread(tid) else 0
    try:
        asked = _PIDFD_INFO.pack(_PIDFD_INFO_PID, *[0] * 13)
        return int(_PIDFD_INFO.unpack(fcntl.ioctl(pidfd, PIDFD_GET_INFO, asked))[3])
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


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may: trees are walked, and mounts kept, with some for each."""
    import resource  # few processes need it

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def drop_capabilities(keep: Iterable[int] = (), *, bounding: bool = True) -> None:
    """Leave this process only the capabilities `keep`; with `bounding`, programs that it executes can't gain another.

    With no_new_privs they gain none anyway: a program with file capabilities runs without them. If the bounding set is
    reduced, such a program can't be executed at all (capabilities(7)).

    Removes everything else from the bounding set, then sets the other sets at once. Emptying the inheritable set also
    empties the ambient set, which must be part of it (capabilities(7)).
    """
    kept = frozenset(keep)
    for capability in range(64) if bounding else ():
        if capability not in kept and _prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # past the last one the kernel knows; or no CAP_SETPCAP, so nothing to lose
    low, high = _halves(kept)
    check(_capset(_CAP_HEADER, _CAP_DATA.pack(low, low, 0, high, high, 0)), "capset")


def _halves(capabilities: Iterable[int]) -> tuple[int, int]:
    mask = sum(1 << number for number in capabilities)
    return mask & 0xFFFFFFFF, mask >> 32


def fork_into(kinds: int) -> int:
    """As `os.fork`, but the child is in new namespaces of these kinds (clone(2)). Raises OSError.

    Only for a process with one thread: the C library's fork handlers are not run. Python's are, as for any fork.
    """
    import ctypes

    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_clone(kinds | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, f"clone: {os.strerror(number)}")
    return pid


def _own_capabilities() -> tuple[int, int]:
    """The effective and the permitted set of this process, as masks. Raises OSError."""
    data = (c_uint * 6)()
    check(_capget(_CAP_HEADER, addressof(data)), "capget")
    return data[0] | data[3] << 32, data[1] | data[4] << 32


def has_capabilities(wanted: Iterable[int]) -> bool:
    """Are these in the effective set? (They count in this process's own user namespace.)"""
    effective, _permitted = _own_capabilities()
    return all(effective >> number & 1 for number in wanted)


def keep_for_programs(capabilities: Iterable[int]) -> None:
    """Let programs that this process executes have `capabilities`, as far as it has them (capabilities(7), ambient)."""
    effective, permitted = _own_capabilities()
    low = (effective & 0xFFFFFFFF, permitted & 0xFFFFFFFF, permitted & 0xFFFFFFFF)
    high = (effective >> 32, permitted >> 32, permitted >> 32)
    check(_capset(_CAP_HEADER, _CAP_DATA.pack(*low, *high)), "capset")
    for capability in capabilities:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)  # EPERM for one that isn't there


def no_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS: execve(2) grants nothing from now on."""
    check(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def hide_memory() -> None:
    """PR_SET_DUMPABLE 0: no process of the same user may trace this one, read its memory or open its descriptors,
    except with CAP_SYS_PTRACE in the user namespace in which the program was executed (ptrace(2)). Children inherit it
    until they execute something."""
    check(_prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def show_memory() -> None:
    """Undo `hide_memory`."""
    check(_prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def has_no_new_privileges() -> bool:
    """PR_GET_NO_NEW_PRIVS: does a set-user-ID program run as its user only?"""
    return bool(_prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0))


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """PR_SET_PDEATHSIG: get signal `number` when the parent ends, or at once if `parent` is gone already.

    Must be called again after a change of credentials.
    """
    check(_prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")
    if os.getppid() not in (parent, 0):  # 0: it is outside of this process's pid namespace
        os.kill(os.getpid(), number)


def keep_only(*fds: int) -> None:
    """Close everything but the standard streams and `fds`: a pipe that stays open here would never end elsewhere, and
    any descriptor could be of a mount that waits for this process."""
    start = 3
    for fd in sorted(fd for fd in fds if fd >= start):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 1 << 20)


def forget_environment(kept: Iterable[str] = ()) -> None:
    """Remove all variables but `kept`, and overwrite the memory they were in (proc_pid_stat(5), fields 50 and 51)."""
    import ctypes

    left = {name: os.environ[name] for name in kept if name in os.environ}
    values = list(os.environ._data.values())  # type: ignore[attr-defined]
    os.environ.clear()
    for value in values:
        if len(value) > 1:  # Python shares the shorter ones
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


_move = function("memmove", c_void_p, c_char_p, c_size_t)


def set_name(name: str) -> None:
    """What `ps` shows: the command name (prctl(2), PR_SET_NAME), and in place of the arguments what fits there."""
    check(_set_name(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl")
    # The kernel reads the arguments from there.
    start, end = _places_of_arguments()[:2]
    if start < end:
        _move(start, name.encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)
