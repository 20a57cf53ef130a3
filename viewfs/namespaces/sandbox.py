"""Shutting a module server in, before it looks at the first byte that somebody else wrote.

A server is treated as if its input had taken it over. It keeps no capability, gains no privilege, and dies with
the agent. A *sealed* server (every module that does not say it needs more) also has an empty root, and may make only
the system calls that serving from open descriptors takes: it can't open, connect, execute or signal anything. A server
that uses the view or the network keeps them, and is denied what no file system needs.

Several barriers stand behind each other: namespaces (no network except for servers that need it, no System V IPC, a
user namespace in which the server has no capability and only its own threads are counted), Landlock, the seccomp
filter, resource limits. The mount namespace that is emptied is the server's alone; the epoch it was copied from is kept
elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, Flag, auto
from functools import cache

from viewfs.linux.landlock import Scope, restrict_self
from viewfs.linux.mount import (
    AT_FDCWD,
    MountAttr,
    MoveMount,
    UmountFlags,
    detached_tmpfs,
    move_mount,
    pivot_root,
    umount2,
)
from viewfs.linux.namespaces import CloneFlags, unshare
from viewfs.linux.process import (
    CAP_SYS_PTRACE,
    CAPS_OF_OWNERS,
    PIDFD_GET_INFO,
    drop_capabilities,
    forget_environment,
    hide_memory,
    no_new_privileges,
    show_memory,
)
from viewfs.linux.seccomp import ALLOW, ArgumentRule, compile_filter, deny, install_filter

__all__ = ["Confinement", "Limits", "Needs", "confine", "confine_reader", "make_filters", "sealed_rules", "view_rules"]

_CLONE_THREAD = 0x00010000
_CLONE_NEWUSER = 0x10000000
_AF_UNIX = 1
_AF_ALG = 38
#: asm-generic/ioctls.h: how Python makes a descriptor non-blocking.
_FIONBIO = 0x5421
#: TIOCSTI, TIOCLINUX: input to a terminal as if the user had typed it.
_IOCTLS_OF_TERMINALS = (0x5412, 0x541C)

#: All that a sealed server knows of the environment: how to show texts and times.
_VARIABLES = ("LANG", "LC_ALL", "LC_CTYPE", "LC_TIME", "TZ")

#: What Python, its threads and an event loop need to serve descriptors that are open already.
_SERVING = """
    read write readv writev splice pread64 pwrite64 preadv fsync fdatasync close fstat newfstatat lseek mmap munmap
    mremap madvise brk futex rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack clock_gettime
    clock_nanosleep nanosleep gettimeofday time getpid gettid getppid getuid geteuid getgid getegid exit exit_group
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 pipe2 poll ppoll select pselect6 dup
    restart_syscall sched_yield sched_getaffinity getrandom rseq set_robust_list membarrier recvfrom recvmsg
    getsockopt uname getrusage times timerfd_create timerfd_settime arch_prctl set_tid_address
""".split()

#: What fcntl(2) may be asked for: nothing that sends signals (F_SETOWN, F_SETSIG) or waits for others (locks, leases).
_FCNTL = (
    fcntl.F_DUPFD,
    fcntl.F_DUPFD_CLOEXEC,
    fcntl.F_GETFD,
    fcntl.F_SETFD,
    fcntl.F_GETFL,
    fcntl.F_SETFL,
    fcntl.F_GETPIPE_SZ,
    fcntl.F_SETPIPE_SZ,
)
#: How a process gets others signalled by the kernel: F_SETOWN, F_SETOWN_EX, F_SETSIG.
_FCNTL_SIGNALS = (fcntl.F_SETOWN, 15, fcntl.F_SETSIG)
#: The call does nothing, and succeeds.
_DONE = deny(0)
#: PROT_READ | PROT_WRITE.
_READ_WRITE = 3
#: SO_SNDBUF and SO_RCVBUF of asm-generic/socket.h.
_SO_BUFFERS = (7, 8)
#: MAP_SHARED with MAP_ANONYMOUS, and MAP_GROWSDOWN with anything: memory that RLIMIT_DATA does not count.
_UNCOUNTED_BITS = 0x121
_UNCOUNTED = (0x21, 0x100, 0x101, 0x120, 0x121)

#: What no file system needs, and a program that was taken over would like to have.
_NEVER = """
    mount umount2 pivot_root chroot unshare setns ptrace process_vm_readv process_vm_writev process_madvise
    kexec_load kexec_file_load init_module finit_module delete_module bpf perf_event_open keyctl add_key
    request_key userfaultfd open_by_handle_at name_to_handle_at open_tree move_mount fsopen fsconfig fsmount
    fspick mount_setattr io_uring_setup io_uring_enter io_uring_register swapon swapoff reboot acct quotactl
    quotactl_fd settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname syslog pidfd_getfd
    kcmp personality modify_ldt memfd_secret process_mrelease
""".split()
#: What a process asks of prctl(2) only in order to be traced or to gain privilege: PR_SET_DUMPABLE, PR_SET_MM,
#: PR_CAP_AMBIENT, PR_SET_PTRACER.
_PRCTL = (4, 35, 47, 0x59616D61)


#: System calls that sockets of the family AF_ALG need besides socket(2).
_ALG_SOCKETS = ("bind", "accept", "accept4", "setsockopt", "sendmsg")
#: What viewfs's own file systems never do: they use the view for its files alone.
_NOT_FOR_FILES = """
    execve execveat kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal socket connect bind
    fanotify_init mq_open fork vfork pidfd_open
""".split()
#: How a device follows the pointers that its callers give it.
_CALLER_MEMORY = ("process_vm_readv", "process_vm_writev")


class Confinement(Enum):
    """How much a server may still do; the values are what `viewfs lsmod` shows."""

    SEALED = "sealed"
    VIEW = "view"
    NETWORK = "view+network"

    @classmethod
    def of(cls, *, uses_view: bool, uses_network: bool) -> Confinement:
        if uses_network:
            return cls.NETWORK  # names and certificates are looked up in files
        return cls.VIEW if uses_view else cls.SEALED


class Needs(Flag):
    """What some servers may do besides: those of devices, and viewfs's own file systems."""

    NONE = 0
    #: Ask which process a thread belongs to.
    CALLERS = auto()
    #: Reach into the memory of processes of the session.
    CALLER_MEMORY = auto()
    #: Open sockets of the family AF_ALG.
    KERNEL_CRYPTO = auto()
    #: Read and write files of the session's user whatever their permission bits say. (Their owner could change those,
    #: and a process that has made a read-only file can write to it.)
    OWN_FILES = auto()
    #: Answer system calls: hand descriptors out over sockets that it has, and let the notifier see what it asks for
    #: itself, as it sees that of every program of the view.
    CALLS = auto()


@dataclass(frozen=True)
class Limits:
    """How much a server may use (setrlimit(2)); images that are what they seem never come near it."""

    #: Bytes beyond those that it has when it is shut in.
    memory: int = 1 << 30
    #: Threads.
    processes: int = 256
    #: Open descriptors.
    descriptors: int = 128
    #: Bytes up to which it may write a file; None: any number.
    file_size: int | None = 0

    def apply(self) -> None:
        """Limit this process from now on. Raises OSError."""
        address_space, data = _memory_used()
        _limit(resource.RLIMIT_DATA, data + self.memory)
        # Address space is not memory: each thread takes some for its stack and its part of the heap.
        _limit(resource.RLIMIT_AS, address_space + self.memory + _ADDRESSES_FOR_THREADS)
        _limit(resource.RLIMIT_NOFILE, self.descriptors)
        if self.file_size is not None:
            _limit(resource.RLIMIT_FSIZE, self.file_size)

    def apply_to_threads(self) -> None:
        """Limit the number of threads, in a user namespace of one's own, where no others count. Raises OSError."""
        _limit(resource.RLIMIT_NPROC, self.processes)


_ADDRESSES_FOR_THREADS = 2 << 30


def _limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _memory_used() -> tuple[int, int]:
    """Address space, and what counts as data, in bytes (proc_pid_statm(5)); 0 where a view has something else there."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm") as file:
        fields = file.read().split()
        return int(fields[0]) * resource.getpagesize(), int(fields[5]) * resource.getpagesize()
    return 0, 0


def sealed_rules(needs: Needs = Needs.NONE, pid: int | None = None) -> tuple[dict[str, int | ArgumentRule], int]:
    """Rules and default for a sealed server, this process or `pid`. A filter can't see clone3's flags: ENOSYS makes
    libc use clone."""
    rules: dict[str, int | ArgumentRule] = dict.fromkeys(_SERVING, ALLOW)
    rules["clone"] = ArgumentRule(0, _CLONE_THREAD, ALLOW, deny(errno.EPERM), mask=_CLONE_THREAD)
    rules["clone3"] = deny(errno.ENOSYS)
    ioctls = (_FIONBIO, PIDFD_GET_INFO) if Needs.CALLERS in needs else (_FIONBIO,)
    rules["ioctl"] = ArgumentRule(1, ioctls, ALLOW, deny(errno.EPERM))
    if Needs.CALLERS in needs:
        rules["pidfd_open"] = ALLOW
    if Needs.CALLER_MEMORY in needs:
        rules |= dict.fromkeys(_CALLER_MEMORY, ALLOW)
    if Needs.CALLS in needs:
        rules["sendmsg"] = ALLOW
    if Needs.KERNEL_CRYPTO in needs:
        rules |= dict.fromkeys(_ALG_SOCKETS, ALLOW)
        rules["socket"] = ArgumentRule(0, _AF_ALG, ALLOW, deny(errno.EPERM))
    rules["tgkill"] = ArgumentRule(0, os.getpid() if pid is None else pid, ALLOW, deny(errno.EPERM))
    rules["socketpair"] = ArgumentRule(0, _AF_UNIX, ALLOW, deny(errno.EPERM))
    # Only to the peer that a socket is connected to: no address. (A filter can't see the address in a sendmsg message.)
    rules["sendto"] = ArgumentRule(4, 0, ALLOW, deny(errno.EPERM), is_pointer=True)
    # An event loop makes socket buffers small, but needn't. Large ones would take memory that no limit counts.
    rules.setdefault("setsockopt", ArgumentRule(2, _SO_BUFFERS, _DONE, deny(errno.EPERM)))
    # Memory that can't be written is not counted, whatever is in it. (Stacks and heaps are made writable later.)
    rules["mprotect"] = ArgumentRule(2, _READ_WRITE, ALLOW, deny(errno.EPERM))
    rules["fcntl"] = ArgumentRule(1, _FCNTL, ALLOW, deny(errno.EPERM))
    rules["mmap"] = ArgumentRule(3, _UNCOUNTED, deny(errno.EPERM), ALLOW, mask=_UNCOUNTED_BITS)
    return rules, deny(errno.EPERM)


def view_rules(*, network: bool, needs: Needs = Needs.NONE) -> tuple[dict[str, int | ArgumentRule], int]:
    """Rules and default for a server that goes on using the view, the network, or both."""
    rules: dict[str, int | ArgumentRule] = dict.fromkeys(_NEVER, deny(errno.EPERM))
    if Needs.CALLER_MEMORY in needs:
        for name in _CALLER_MEMORY:
            del rules[name]
    rules["clone"] = ArgumentRule(0, 0, ALLOW, deny(errno.EPERM), mask=_CLONE_NEWUSER)
    rules["clone3"] = deny(errno.ENOSYS)
    rules["fcntl"] = ArgumentRule(1, _FCNTL_SIGNALS, deny(errno.EPERM), ALLOW)
    rules["ioctl"] = ArgumentRule(1, _IOCTLS_OF_TERMINALS, deny(errno.EPERM), ALLOW)
    rules["prctl"] = ArgumentRule(0, _PRCTL, deny(errno.EPERM), ALLOW)
    rules["prlimit64"] = ArgumentRule(0, 0, ALLOW, deny(errno.EPERM))
    if Needs.OWN_FILES in needs:
        rules |= dict.fromkeys(_NOT_FOR_FILES, deny(errno.EPERM))
        rules["clone"] = ArgumentRule(0, _CLONE_THREAD, ALLOW, deny(errno.EPERM), mask=_CLONE_THREAD)
        return rules, ALLOW
    if not network:
        families = (_AF_UNIX, _AF_ALG) if Needs.KERNEL_CRYPTO in needs else (_AF_UNIX,)
        rules["socket"] = ArgumentRule(0, families, ALLOW, deny(errno.EPERM))
    return rules, ALLOW


#: Stands for this process's number in a filter that was made before it was known. No process has it (pid_max, proc(5)).
_PID_MARK = 0x7FFFFFF1


@cache
def _sealed_template(needs: Needs) -> bytes:
    return compile_filter(*sealed_rules(needs, _PID_MARK))


def _sealed_program(needs: Needs = Needs.NONE) -> bytes:
    mark, own = (number.to_bytes(4, sys.byteorder) for number in (_PID_MARK, os.getpid()))
    return _sealed_template(needs).replace(mark, own)


def make_filters() -> None:
    """Have the filter that most servers need in memory, for processes that are forked from this one."""
    _sealed_template(Needs.NONE)


def confine_reader() -> None:
    """Leave this process nothing but its open descriptors and memory: for looking at a source outside a view."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hide_memory()
    forget_environment(_VARIABLES)
    Limits().apply()
    drop_capabilities()
    no_new_privileges()
    restrict_self(files=True, network=True, scoped=Scope.ABSTRACT_SOCKETS | Scope.SIGNALS)
    install_filter(_sealed_program())


def confine(confinement: Confinement, needs: Needs = Needs.NONE, limits: Limits | None = None) -> None:
    """Shut this process in. It must be single-threaded, in a mount namespace of its own, with CAP_SYS_ADMIN there.

    A server that reaches into its callers' memory keeps CAP_SYS_PTRACE in the session's user namespace. Without it
    programs that keep privileges, or an administrator's setting (Yama's ptrace_scope), would be out of its reach.
    `limits`: how much it may use; None: as much as any process of the user.
    """
    sealed = confinement is Confinement.SEALED
    has_network = confinement is Confinement.NETWORK
    kept = {CAP_SYS_PTRACE} if Needs.CALLER_MEMORY in needs else set()
    kept |= CAPS_OF_OWNERS if Needs.OWN_FILES in needs else set()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _leave(CloneFlags.NEWIPC)
    if not has_network:
        _leave(CloneFlags.NEWNET)
    if sealed or Needs.OWN_FILES in needs:
        forget_environment(_VARIABLES)
    if limits is not None:
        limits.apply()
    with _own_directory() as proc:
        if sealed:
            _empty_root()
        uid, gid = os.getuid(), os.getgid()
        if limits is not None and not kept and proc is not None and _leave(CloneFlags.NEWUSER):
            _map_ids(proc, uid, gid)
            limits.apply_to_threads()
    if Needs.CALLS in needs:
        show_memory()
    else:
        hide_memory()
    drop_capabilities(kept)
    no_new_privileges()
    if Needs.CALLER_MEMORY not in needs:  # under Landlock it could not reach the memory of others
        scoped = Scope.SIGNALS if has_network else Scope.SIGNALS | Scope.ABSTRACT_SOCKETS
        restrict_self(files=sealed, network=not has_network, scoped=scoped)
    program = _sealed_program(needs) if sealed else compile_filter(*view_rules(network=has_network, needs=needs))
    install_filter(program)


def _leave(kind: int) -> bool:
    """Go into a new, empty namespace of that kind. False if the kernel or its limits (namespaces(7)) refuse it."""
    try:
        unshare(kind)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSPC, errno.EPERM, errno.EUSERS, errno.ENOMEM):
            raise
        return False
    return True


@contextlib.contextmanager
def _own_directory() -> Iterator[int | None]:
    """This process's directory of /proc; None where a view has something else there."""
    try:
        proc = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.close(os.open("uid_map", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc))
    except OSError:
        yield None
        return
    try:
        yield proc
    finally:
        os.close(proc)


def _map_ids(proc: int, uid: int, gid: int) -> None:
    """In a new user namespace, map `uid` and `gid` to themselves (user_namespaces(7)). Raises OSError."""
    show_memory()  # otherwise these files do not belong to this user
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _empty_root() -> None:
    """Replace everything that this mount namespace shows by an empty read-only directory."""
    root = detached_tmpfs("viewfs-sealed", {"mode": "555", "size": "4k"}, MountAttr.RDONLY)
    try:
        move_mount(root, "", AT_FDCWD, "/", MoveMount.F_EMPTY_PATH)
        os.fchdir(root)
    finally:
        os.close(root)
    pivot_root(".", ".")
    umount2(".", UmountFlags.DETACH)
    os.chdir("/")
