"""Shutting a module server in, before it looks at the first byte that somebody else wrote.

A server is treated as if its input had taken it over. It keeps no capability, gains no privilege, and dies with
the agent. A *sealed* server (every module that does not say it needs more) also has an empty root, and may make only
the system calls that serving from open descriptors takes: it can't open, connect, execute or signal anything. A
server that
uses the view or the network keeps them, and is denied what no file system needs.

The mount namespace that is emptied is the server's alone; the epoch it was copied from is kept elsewhere.
"""

from __future__ import annotations

import errno
import os
import resource
from enum import Enum, Flag, auto

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
from viewfs.linux.process import CAP_SYS_PTRACE, CAPS_OF_OWNERS, PIDFD_GET_INFO, drop_capabilities, no_new_privileges
from viewfs.linux.seccomp import ALLOW, ArgumentRule, compile_filter, deny, install_filter

__all__ = ["Confinement", "Needs", "confine", "confine_reader", "sealed_rules", "view_rules"]

_CLONE_THREAD = 0x00010000
_CLONE_NEWUSER = 0x10000000
_AF_UNIX = 1
_AF_ALG = 38
#: asm-generic/ioctls.h: how Python makes a descriptor non-blocking.
_FIONBIO = 0x5421

#: What Python, its threads and an event loop need to serve descriptors that are open already.
_SERVING = """
    read write readv writev splice pread64 pwrite64 preadv fsync fdatasync close fstat newfstatat lseek mmap munmap
    mprotect mremap madvise brk futex rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack clock_gettime
    clock_nanosleep nanosleep gettimeofday time getpid gettid getppid getuid geteuid getgid getegid exit exit_group
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 pipe2 poll ppoll select pselect6 dup fcntl
    restart_syscall sched_yield sched_getaffinity getrandom rseq set_robust_list membarrier recvfrom recvmsg sendmsg
    sendto getsockopt setsockopt uname getrusage times timerfd_create timerfd_settime arch_prctl set_tid_address
""".split()

#: What no file system needs, and a program that was taken over would like to have.
_NEVER = """
    mount umount2 pivot_root chroot unshare setns ptrace process_vm_readv process_vm_writev process_madvise
    kexec_load kexec_file_load init_module finit_module delete_module bpf perf_event_open keyctl add_key
    request_key userfaultfd open_by_handle_at name_to_handle_at open_tree move_mount fsopen fsconfig fsmount
    fspick mount_setattr io_uring_setup io_uring_enter io_uring_register swapon swapoff reboot acct quotactl
    quotactl_fd settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname syslog pidfd_getfd
    kcmp personality
""".split()


#: With setsockopt and messages, which everybody may use, all that AF_ALG takes.
_ALG_SOCKETS = ("bind", "accept", "accept4")
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
    """What servers of devices may do besides."""

    NONE = 0
    #: Ask which process a thread belongs to.
    CALLERS = auto()
    #: Reach into the memory of processes of the session.
    CALLER_MEMORY = auto()
    #: Open sockets of the family AF_ALG.
    KERNEL_CRYPTO = auto()
    #: Read and write files of the session's user whatever their permission bits say, as their owner could by changing
    #: those (a file that was made read-only is written by who made it).
    OWN_FILES = auto()


def sealed_rules(needs: Needs = Needs.NONE) -> tuple[dict[str, int | ArgumentRule], int]:
    """Rules and default for a sealed server. A filter can't see clone3's flags: ENOSYS makes libc use clone."""
    rules: dict[str, int | ArgumentRule] = dict.fromkeys(_SERVING, ALLOW)
    rules["clone"] = ArgumentRule(0, _CLONE_THREAD, ALLOW, deny(errno.EPERM), mask=_CLONE_THREAD)
    rules["clone3"] = deny(errno.ENOSYS)
    ioctls = (_FIONBIO, PIDFD_GET_INFO) if Needs.CALLERS in needs else (_FIONBIO,)
    rules["ioctl"] = ArgumentRule(1, ioctls, ALLOW, deny(errno.EPERM))
    if Needs.CALLERS in needs:
        rules["pidfd_open"] = ALLOW
    if Needs.CALLER_MEMORY in needs:
        rules |= dict.fromkeys(_CALLER_MEMORY, ALLOW)
    if Needs.KERNEL_CRYPTO in needs:
        rules |= dict.fromkeys(_ALG_SOCKETS, ALLOW)
        rules["socket"] = ArgumentRule(0, _AF_ALG, ALLOW, deny(errno.EPERM))
    rules["tgkill"] = ArgumentRule(0, os.getpid(), ALLOW, deny(errno.EPERM))
    rules["socketpair"] = ArgumentRule(0, _AF_UNIX, ALLOW, deny(errno.EPERM))
    return rules, deny(errno.EPERM)


def view_rules(*, network: bool, needs: Needs = Needs.NONE) -> tuple[dict[str, int | ArgumentRule], int]:
    """Rules and default for a server that goes on using the view, the network, or both."""
    rules: dict[str, int | ArgumentRule] = dict.fromkeys(_NEVER, deny(errno.EPERM))
    if Needs.CALLER_MEMORY in needs:
        for name in _CALLER_MEMORY:
            del rules[name]
    rules["clone"] = ArgumentRule(0, 0, ALLOW, deny(errno.EPERM), mask=_CLONE_NEWUSER)
    rules["clone3"] = deny(errno.ENOSYS)
    if not network:
        families = (_AF_UNIX, _AF_ALG) if Needs.KERNEL_CRYPTO in needs else (_AF_UNIX,)
        rules["socket"] = ArgumentRule(0, families, ALLOW, deny(errno.EPERM))
    return rules, ALLOW


def confine_reader() -> None:
    """Leave this process nothing but its open descriptors and memory: for looking at a source outside a view."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    drop_capabilities()
    no_new_privileges()
    install_filter(compile_filter(*sealed_rules()))


def confine(confinement: Confinement, needs: Needs = Needs.NONE) -> None:
    """Shut this process in. It must be single-threaded, in a mount namespace of its own, with CAP_SYS_ADMIN there.

    A server that reaches into its callers' memory keeps CAP_SYS_PTRACE in the session's user namespace, without which
    programs that keep privileges, or an administrator's choice (Yama's ptrace_scope), would be out of its reach.
    """
    sealed = confinement is Confinement.SEALED
    if sealed:
        _empty_root()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kept = {CAP_SYS_PTRACE} if Needs.CALLER_MEMORY in needs else set()
    drop_capabilities(kept | CAPS_OF_OWNERS if Needs.OWN_FILES in needs else kept)
    no_new_privileges()
    if sealed:
        rules, default = sealed_rules(needs)
    else:
        rules, default = view_rules(network=confinement is Confinement.NETWORK, needs=needs)
    install_filter(compile_filter(rules, default))


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
