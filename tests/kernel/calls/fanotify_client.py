"""What programs of the tests begin with that use fanotify(7), and hold nothing of viewfs."""

from __future__ import annotations

__all__ = ["CLIENT"]

CLIENT = r'''
import array, ctypes, errno, fcntl, os, select, signal, struct, subprocess, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
ACCESS, MODIFY, CLOSE_WRITE, CLOSE_NOWRITE, OPEN, OPEN_EXEC = 1, 2, 8, 0x10, 0x20, 0x1000
OVERFLOW, OPEN_PERM, ACCESS_PERM, OPEN_EXEC_PERM = 0x4000, 0x10000, 0x20000, 0x40000
ON_CHILD, ONDIR = 0x8000000, 0x40000000
ALL = ACCESS | MODIFY | CLOSE_WRITE | CLOSE_NOWRITE | OPEN | OPEN_EXEC
NONBLOCK, CONTENT, PRE_CONTENT, PIDFD, TID, FID, FD_ERROR = 2, 4, 8, 0x80, 0x100, 0x200, 0x2000
ADD, REMOVE, MOUNT, IGNORED, SURVIVES, FLUSH, FILESYSTEM, IGNORE = 1, 2, 0x10, 0x20, 0x40, 0x80, 0x100, 0x400
NAMES = {bit: name for name, bit in dict(
    access=ACCESS, modify=MODIFY, close_write=CLOSE_WRITE, close=CLOSE_NOWRITE, open=OPEN, exec=OPEN_EXEC,
    overflow=OVERFLOW, open_perm=OPEN_PERM, access_perm=ACCESS_PERM, exec_perm=OPEN_EXEC_PERM).items()}

def outcome(value):
    if value >= 0:
        return value
    return errno.errorcode[ctypes.get_errno()]

def init(flags=NONBLOCK, how=os.O_RDONLY):
    return outcome(libc.fanotify_init(flags, how))

def mark(group, path, mask, flags=ADD, directory=-100):
    path = None if path is None else os.fsencode(path)
    return outcome(libc.fanotify_mark(group, flags, ctypes.c_uint64(mask), directory, path))

def events(group, size=8192):
    """What is there: (names of the mask, pid, path); descriptors are closed."""
    found = []
    while True:
        try:
            data = os.read(group, size)
        except BlockingIOError:
            return found
        for at in range(0, len(data), 24):
            length, _v, _r, _l, mask, fd, pid = struct.unpack_from("=IBBHQii", data, at)
            path = os.readlink(f"/proc/self/fd/{fd}") if fd >= 0 else fd
            if fd >= 0:
                os.close(fd)
            names = "+".join(name for bit, name in NAMES.items() if mask & bit)
            found.append((names, pid, path))

def one(group):
    """One event: mask, descriptor, pid. It waits for it."""
    return struct.unpack("=8xQii", os.read(group, 24))

def respond(group, fd, allow):
    return os.write(group, struct.pack("=iI", fd, 1 if allow else 2))

def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
'''
