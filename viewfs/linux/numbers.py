"""System call numbers of the architectures that viewfs runs on, and no others: a number is never guessed.

From asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64). None: the architecture does not have that call.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AUDIT_ARCH", "AUDIT_ARCH_I386", "audit_architecture", "numbers_by_table", "syscall_number"]

#: AUDIT_ARCH_* of linux/audit.h, by what uname(2) calls the machine.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
AUDIT_ARCH_I386 = 0x40000003
_COLUMN = {"x86_64": 0, "aarch64": 1}

# fmt: off
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "accept": (43, 202), "accept4": (288, 242), "access": (21, None), "acct": (163, 89), "add_key": (248, 217),
    "adjtimex": (159, 171), "arch_prctl": (158, None), "bind": (49, 200), "bpf": (321, 280), "brk": (12, 214),
    "capget": (125, 90), "capset": (126, 91), "chmod": (90, None), "chown": (92, None), "chroot": (161, 51),
    "clock_adjtime": (305, 266), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "clock_settime": (227, 112), "clone": (56, 220), "clone3": (435, 435), "close": (3, 57), "connect": (42, 203),
    "creat": (85, None), "delete_module": (176, 106), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "epoll_wait": (232, None), "eventfd2": (290, 19), "execve": (59, 221), "execveat": (322, 281), "exit": (60, 93),
    "exit_group": (231, 94), "faccessat": (269, 48), "faccessat2": (439, 439), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "fchown": (93, 55), "fchownat": (260, 54), "fcntl": (72, 25), "fdatasync": (75, 83), "fgetxattr": (193, 10),
    "finit_module": (313, 273), "flistxattr": (196, 13), "fork": (57, None), "fremovexattr": (199, 16),
    "fsconfig": (431, 431), "fsetxattr": (190, 7), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433),
    "fstat": (5, 80), "fstatfs": (138, 44), "fsync": (74, 82), "ftruncate": (77, 46), "futex": (202, 98),
    "futimesat": (261, None), "getdents": (78, None), "getdents64": (217, 61), "getegid": (108, 177),
    "geteuid": (107, 175), "getgid": (104, 176), "getpid": (39, 172), "getppid": (110, 173), "getrandom": (318, 278),
    "getrusage": (98, 165), "getsockopt": (55, 209), "gettid": (186, 178), "gettimeofday": (96, 169),
    "getuid": (102, 174), "getxattr": (191, 8), "init_module": (175, 105), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "io_uring_setup": (425, 425), "ioctl": (16, 29), "kcmp": (312, 272),
    "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219), "kill": (62, 129),
    "landlock_create_ruleset": (444, 444), "landlock_restrict_self": (446, 446), "lchown": (94, None),
    "lgetxattr": (192, 9), "link": (86, None), "linkat": (265, 37), "listxattr": (194, 11), "llistxattr": (195, 12),
    "lremovexattr": (198, 15), "lseek": (8, 62), "lsetxattr": (189, 6), "lstat": (6, None), "madvise": (28, 233),
    "membarrier": (324, 283), "memfd_secret": (447, 447), "mkdir": (83, None), "mkdirat": (258, 34),
    "mknod": (133, None), "mknodat": (259, 33), "mmap": (9, 222), "modify_ldt": (154, None), "mount": (165, 40),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "mprotect": (10, 226), "mq_open": (240, 180),
    "mremap": (25, 216), "msync": (26, 227), "munmap": (11, 215), "name_to_handle_at": (303, 264),
    "nanosleep": (35, 101), "newfstatat": (262, 79), "open": (2, None), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428), "openat": (257, 56), "openat2": (437, 437), "perf_event_open": (298, 241),
    "personality": (135, 92), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pipe2": (293, 59), "pivot_root": (155, 41), "poll": (7, None), "ppoll": (271, 73), "prctl": (157, 167),
    "pread64": (17, 67), "preadv": (295, 69), "preadv2": (327, 286), "prlimit64": (302, 261),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pselect6": (270, 72), "ptrace": (101, 117), "pwrite64": (18, 68),
    "pwritev": (296, 70), "pwritev2": (328, 287), "quotactl": (179, 60), "quotactl_fd": (443, 443), "read": (0, 63),
    "readlink": (89, None), "readlinkat": (267, 78), "readv": (19, 65), "reboot": (169, 142), "recvfrom": (45, 207),
    "recvmsg": (47, 212), "removexattr": (197, 14), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "request_key": (249, 218), "restart_syscall": (219, 128), "rmdir": (84, None),
    "rseq": (334, 293), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigqueueinfo": (129, 138),
    "rt_sigreturn": (15, 139), "rt_tgsigqueueinfo": (297, 240), "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124), "seccomp": (317, 277), "select": (23, None), "sendmsg": (46, 211), "sendto": (44, 206),
    "set_robust_list": (273, 99), "set_tid_address": (218, 96), "setdomainname": (171, 162), "setfsgid": (123, 152),
    "setfsuid": (122, 151), "setgid": (106, 144), "setgroups": (116, 159), "sethostname": (170, 161),
    "setns": (308, 268), "setregid": (114, 143), "setresgid": (119, 149), "setresuid": (117, 147),
    "setreuid": (113, 145), "setsockopt": (54, 208), "settimeofday": (164, 170), "setuid": (105, 146),
    "setxattr": (188, 5), "sigaltstack": (131, 132), "socket": (41, 198), "socketpair": (53, 199),
    "splice": (275, 76), "stat": (4, None), "statfs": (137, 43), "statx": (332, 291), "swapoff": (168, 225),
    "swapon": (167, 224), "symlink": (88, None), "symlinkat": (266, 36), "sync": (162, 81),
    "sync_file_range": (277, 84), "syncfs": (306, 267), "syslog": (103, 116), "tgkill": (234, 131),
    "time": (201, None), "timerfd_create": (283, 85), "timerfd_settime": (286, 86), "times": (100, 153),
    "tkill": (200, 130), "truncate": (76, 45), "umount2": (166, 39), "uname": (63, 160), "unlink": (87, None),
    "unlinkat": (263, 35), "unshare": (272, 97), "userfaultfd": (323, 282), "utime": (132, None),
    "utimensat": (280, 88), "utimes": (235, None), "vfork": (58, None), "write": (1, 64), "writev": (20, 66),
}
#: What programs of 32 bits call on x86_64, as far as it is noticed (asm/unistd_32.h).
_I386 = {
    "_llseek": 140, "access": 33, "acct": 51, "chmod": 15, "chown": 182, "chown32": 212, "chroot": 61,
    "clock_gettime": 265, "clock_gettime64": 403, "clock_settime": 264, "clock_settime64": 404, "close": 6,
    "creat": 8, "dup": 41, "dup2": 63, "dup3": 330, "execve": 11, "execveat": 358, "faccessat": 307,
    "faccessat2": 439, "fanotify_init": 338, "fanotify_mark": 339, "fchmod": 94, "fchmodat": 306, "fchmodat2": 452,
    "fchown": 95, "fchown32": 207, "fchownat": 298, "fdatasync": 148, "fgetxattr": 231, "flistxattr": 234,
    "fremovexattr": 237, "fsconfig": 431, "fsetxattr": 228, "fsmount": 432, "fsopen": 430, "fspick": 433,
    "fstat": 108, "fstat64": 197, "fstatat64": 300, "fstatfs": 100, "fstatfs64": 269, "fsync": 118, "ftruncate": 93,
    "ftruncate64": 194, "futimesat": 299, "getdents": 141, "getdents64": 220, "gettimeofday": 78, "getxattr": 229,
    "io_uring_setup": 425, "lchown": 16, "lchown32": 198, "lgetxattr": 230, "link": 9, "linkat": 303,
    "listxattr": 232, "llistxattr": 233, "lremovexattr": 236, "lseek": 19, "lsetxattr": 227, "lstat": 107,
    "lstat64": 196, "mkdir": 39, "mkdirat": 296, "mknod": 14, "mknodat": 297, "mount": 21, "mount_setattr": 442,
    "move_mount": 429, "msync": 144, "oldolduname": 59, "olduname": 109, "open": 5, "open_tree": 428, "openat": 295,
    "openat2": 437, "personality": 136, "pivot_root": 217, "pread64": 180, "preadv": 333, "preadv2": 378,
    "pwrite64": 181, "pwritev": 334, "pwritev2": 379, "read": 3, "readlink": 85, "readlinkat": 305, "readv": 145,
    "removexattr": 235, "rename": 38, "renameat": 302, "renameat2": 353, "rmdir": 40, "set_thread_area": 243,
    "setdomainname": 121,
    "setfsgid": 139, "setfsgid32": 216, "setfsuid": 138, "setfsuid32": 215, "setgid": 46, "setgid32": 214,
    "setgroups": 81, "setgroups32": 206, "sethostname": 74, "setregid": 71, "setregid32": 204, "setresgid": 170,
    "setresgid32": 210, "setresuid": 164, "setresuid32": 208, "setreuid": 70, "setreuid32": 203, "settimeofday": 79,
    "setuid": 23, "setuid32": 213, "setxattr": 226, "stat": 106, "stat64": 195, "statfs": 99, "statfs64": 268,
    "statx": 383, "stime": 25, "swapoff": 115, "swapon": 87, "symlink": 83, "symlinkat": 304, "sync": 36,
    "sync_file_range": 314, "syncfs": 344, "time": 13, "truncate": 92, "truncate64": 193, "umount": 22, "umount2": 52,
    "uname": 122, "unlink": 10, "unlinkat": 301, "utime": 30, "utimensat": 320, "utimensat_time64": 412,
    "utimes": 271, "write": 4, "writev": 146,
}
# fmt: on


def _this_machine() -> str:
    """What Python was built for. (What uname(2) says is up to a view.)"""
    built_for: str = getattr(sys.implementation, "_multiarch", "") or os.uname().machine
    return built_for.partition("-")[0]


def audit_architecture() -> int:
    """The number of this machine's system call table in seccomp(2). Raises OSError(ENOSYS) if it is not known."""
    machine = _this_machine()
    if machine not in AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no system call numbers known for {machine}")
    return AUDIT_ARCH[machine]


def syscall_number(name: str) -> int | None:
    """The number of system call `name` on this machine, None where the architecture has none of that name.

    Raises OSError(ENOSYS) for an architecture, and KeyError for a name, that is not in the table.
    """
    audit_architecture()
    return _NUMBERS[name][_COLUMN[_this_machine()]]


def numbers_by_table(names: Iterable[str]) -> dict[int, dict[int, str]]:
    """For each system call table that programs of this machine may use, by its AUDIT_ARCH: the numbers of those of
    `names` that it has, and what they are called.

    (Programs of 32 bits on aarch64 have a table that is not known here.) Raises as `syscall_number`; a name may be one
    of 32 bits only.
    """
    own = audit_architecture()
    names = list(names)
    known = {name: syscall_number(name) for name in names if name in _NUMBERS or name not in _I386}
    tables = {own: {number: name for name, number in known.items() if number is not None}}
    if own == AUDIT_ARCH["x86_64"]:
        tables[AUDIT_ARCH_I386] = {_I386[name]: name for name in names if name in _I386}
    return tables
