"""What system calls take: where an argument points to memory, and how much of that a call reads or writes (the manual
pages of section 2; sizes from the kernel's headers, for callers of 64 and of 32 bits).

A signature has a word for each argument:

    int       an int of C, with a sign          size      a size, or another unsigned word
    off       an offset, with a sign            fd        a descriptor
    at        the directory that the next path is relative to
    path      the address of a path             text      the address of another text
    argv      the address of addresses of texts, with a null pointer behind them
    in:N      the address of N bytes that are read; of N/M bytes: M for callers of 32 bits
    in@K      the same, of as many bytes as argument K says
    out:N     the address of N bytes that are written; out@K as above
    descriptor  a special descriptor: its number, what is open, and how
    inv@K     the address of K pieces of memory to be read (struct iovec); outv@K: to be written
    address   an address that is passed as it is

A ? behind one says that it may be a null pointer: `text?`, `out@2?`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

__all__ = [
    "FAMILIES",
    "OTHERS_OF_32_BITS",
    "SIGNATURES",
    "SIGNATURES_OF_32_BITS",
    "SPECIAL_SIGNATURES",
    "Argument",
    "parse_signature",
    "special",
]

SIGNATURES = {
    "access": "path int", "acct": "path", "chmod": "path int", "chown": "path int int", "chown32": "path int int",
    "chroot": "path", "clock_gettime": "int out:16/8", "clock_gettime64": "int out:16",
    "clock_settime": "int in:16/8", "clock_settime64": "int in:16", "close": "fd", "creat": "path int", "dup": "fd",
    "dup2": "fd int", "dup3": "fd int int", "execve": "path argv argv", "execveat": "at path argv argv int",
    "faccessat": "at path int", "faccessat2": "at path int int", "fanotify_init": "int int",
    "fanotify_mark": "fd int off at path?", "fchmod": "fd int", "fchmodat": "at path int",
    "fchmodat2": "at path int int", "fchown": "fd int int", "fchown32": "fd int int",
    "fchownat": "at path int int int", "fdatasync": "fd", "fgetxattr": "fd text out@3 size",
    "flistxattr": "fd out@2 size", "fremovexattr": "fd text", "fsetxattr": "fd text in@3 size int",
    "fstat": "fd out:144/64", "fstat64": "fd out:96", "fstatat64": "at path out:96 int",
    "fstatfs": "fd out:120/64", "fstatfs64": "fd size out:84", "fsync": "fd", "ftruncate": "fd off",
    "ftruncate64": "fd size size", "futimesat": "at path in:32/16", "getdents": "fd out@2 size",
    "getdents64": "fd out@2 size", "gettimeofday": "out:16/8 out:8", "getxattr": "path text out@3 size",
    "lchown": "path int int", "lchown32": "path int int", "lgetxattr": "path text out@3 size", "link": "path path",
    "linkat": "at path at path int", "listxattr": "path out@2 size", "llistxattr": "path out@2 size",
    "lremovexattr": "path text", "lseek": "fd off int", "_llseek": "fd size size out:8 int",
    "lsetxattr": "path text in@3 size int", "lstat": "path out:144/64", "lstat64": "path out:96",
    "mkdir": "path int", "mkdirat": "at path int", "mknod": "path int int", "mknodat": "at path int int",
    "mount": "text path text size text", "msync": "address size int", "newfstatat": "at path out:144 int",
    "open": "path int int", "openat": "at path int int", "openat2": "at path in@3 size", "personality": "size",
    "pivot_root": "path path", "pread64": "fd out@2 size off off", "preadv": "fd outv@2 int size size",
    "preadv2": "fd outv@2 int size size int", "pwrite64": "fd in@2 size off off", "pwritev": "fd inv@2 int size size",
    "pwritev2": "fd inv@2 int size size int", "read": "fd out@2 size", "readlink": "path out@2 size",
    "readlinkat": "at path out@3 size", "readv": "fd outv@2 int", "removexattr": "path text", "rename": "path path",
    "renameat": "at path at path", "renameat2": "at path at path int", "rmdir": "path",
    "setdomainname": "in@1 size", "setfsgid": "int", "setfsgid32": "int", "setfsuid": "int", "setfsuid32": "int",
    "setgid": "int", "setgid32": "int", "setgroups": "int address", "setgroups32": "int address",
    "sethostname": "in@1 size", "setregid": "int int", "setregid32": "int int", "setresgid": "int int int",
    "setresgid32": "int int int", "setresuid": "int int int", "setresuid32": "int int int", "setreuid": "int int",
    "setreuid32": "int int", "settimeofday": "in:16/8 in:8", "setuid": "int", "setuid32": "int",
    "setxattr": "path text in@3 size int", "stat": "path out:144/64", "stat64": "path out:96",
    "statfs": "path out:120/64", "statfs64": "path size out:84", "statx": "at path int int out:256",
    "swapoff": "path", "swapon": "path int", "symlink": "text path", "symlinkat": "text at path", "sync": "",
    "sync_file_range": "fd off off int", "syncfs": "fd", "time": "out:8/4", "truncate": "path off",
    "truncate64": "path size size", "umount": "path", "umount2": "path int", "uname": "out:390", "unlink": "path",
    "unlinkat": "at path int", "utime": "path in:16/8", "utimensat": "at path in:32/16 int",
    "utimensat_time64": "at path in:32 int", "utimes": "path in:32/16", "write": "fd in@2 size",
    "writev": "fd inv@2 int",
}  # fmt: skip


def special(call: str) -> str:
    """What a call of a special descriptor is called (`viewfs.linux.unotify.WINDOW`)."""
    return f"special-{call}"


#: Calls whose arguments are others where a word has 32 bits: what they are called then, and what those are.
OTHERS_OF_32_BITS = {"fanotify_mark": "fanotify_mark32"}
SIGNATURES_OF_32_BITS = {"fanotify_mark32": "fd int size size at path?"}

#: Of calls of special descriptors. (An ioctl may write an int.)
SPECIAL_SIGNATURES = {special("read"): "descriptor out@2 size", special("ioctl"): "descriptor size out:4?"}

#: Calls that do one thing in different ways, by what a module has one handler for.
FAMILIES = {
    "access": ("access", "faccessat", "faccessat2"),
    "chmod": ("chmod", "fchmod", "fchmodat", "fchmodat2"),
    "close": ("close",),
    "dup3": ("dup", "dup2", "dup3"),
    "exec": ("execve", "execveat"),
    "getdents64": ("getdents", "getdents64"),
    "getxattr": ("getxattr", "lgetxattr", "fgetxattr"),
    "lchown": ("chown", "chown32", "lchown", "lchown32", "fchown", "fchown32", "fchownat"),
    "link": ("link", "linkat"),
    "listxattr": ("listxattr", "llistxattr", "flistxattr"),
    "lseek": ("lseek", "_llseek"),
    "lstat": ("stat", "stat64", "lstat", "lstat64", "fstat", "fstat64", "newfstatat", "fstatat64", "statx"),
    "mkdir": ("mkdir", "mkdirat"),
    "open": ("open", "openat", "openat2", "creat"),
    "pread": ("pread64", "preadv", "preadv2"),
    "pwrite": ("pwrite64", "pwritev", "pwritev2"),
    "read": ("read", "readv"),
    "readlink": ("readlink", "readlinkat"),
    "removexattr": ("removexattr", "lremovexattr", "fremovexattr"),
    "rename": ("rename", "renameat", "renameat2"),
    "rmdir": ("rmdir", "unlinkat"),
    "setxattr": ("setxattr", "lsetxattr", "fsetxattr"),
    "statfs": ("statfs", "statfs64", "fstatfs", "fstatfs64"),
    "symlink": ("symlink", "symlinkat"),
    "sync": ("fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync"),
    "time": ("clock_gettime", "clock_gettime64", "gettimeofday", "time"),
    "truncate": ("truncate", "truncate64", "ftruncate", "ftruncate64"),
    "unlink": ("unlink", "unlinkat"),
    "utimensat": ("utime", "utimes", "futimesat", "utimensat", "utimensat_time64"),
    "write": ("write", "writev"),
}


class Argument(NamedTuple):
    """One argument. `sizes` in bytes, for callers of 64 and of 32 bits; or `length`, the argument that says it."""

    kind: str
    sizes: tuple[int, int] = (0, 0)
    length: int | None = None
    #: A null pointer will do. (Of the calls of the kernel, the kernel's own answer tells.)
    may_be_null: bool = False

    @property
    def is_out(self) -> bool:
        return self.kind in ("out", "outv")


@cache
def parse_signature(signature: str) -> tuple[Argument, ...]:
    """The arguments of a signature. Raises ValueError for what is none."""
    found = tuple(map(_parse, signature.split()))
    for one in found:
        if one.length is not None and one.length >= len(found):
            raise ValueError(f"no argument {one.length} in “{signature}”")
    if len(found) > 6:
        raise ValueError("a system call takes six arguments at most")
    return found


_PLAIN = ("int", "size", "off", "fd", "at", "path", "text", "argv", "address", "descriptor")


def _parse(word: str) -> Argument:
    if word.endswith("?"):
        return _parse(word[:-1])._replace(may_be_null=True)
    if word in _PLAIN:
        return Argument(word)
    kind, sized, size = word.partition(":")
    if sized and kind in ("in", "out"):
        long, _slash, short = size.partition("/")
        if long.isdecimal() and (not short or short.isdecimal()):
            return Argument(kind, (int(long), int(short or long)))
    kind, counted, index = word.partition("@")
    if counted and kind in ("in", "out", "inv", "outv") and index.isdecimal():
        return Argument(kind, length=int(index))
    raise ValueError(f"“{word}” is no argument of a system call")
