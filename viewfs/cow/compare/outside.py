"""Owners and access control lists with ids that are not mapped in this user namespace.

In a user namespace an entry of a list with such an id is read as “nobody” (-1), a list that has one can't be set
(acl(5)), and no file can be given to such an id (user_namespaces(7)). A process that stays outside can do what its user
can. So a command forks one before it joins a view, and that process gets and sets the lists and owners of single files.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from viewfs.linux.process import die_with_parent

__all__ = ["ACL_PREFIX", "fetch", "give_owner_of", "has_strangers", "outside", "store"]

ACL_PREFIX = "system.posix_acl_"
_ENTRY = struct.Struct("<HHI")
_HEADER = 4
#: ACL_USER and ACL_GROUP of linux/posix_acl.h, which alone have an id.
_WITH_ID = (0x02, 0x08)
_NOBODY = 0xFFFFFFFF
_MOST = 65536
_FAILED = struct.Struct("<i")
#: The message that is about an owner, and not a list.
_OWNER = b"owner"

#: The socket to the process that stays outside, in commands that have one.
_helper: socket.socket | None = None


def has_strangers(value: bytes) -> bool:
    """Does a list (linux/posix_acl_xattr.h) name somebody whose id is not mapped here?"""
    entries = (_ENTRY.unpack_from(value, offset) for offset in range(_HEADER, len(value) - _ENTRY.size + 1, 8))
    return any(tag in _WITH_ID and number == _NOBODY for tag, _permissions, number in entries)


@contextmanager
def outside() -> Iterator[None]:
    """Inside the block `fetch` and `store` work. To be entered before this process joins another user namespace."""
    global _helper
    if _helper is not None:
        yield
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            die_with_parent(parent)
            _serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    _helper = ours
    try:
        yield
    finally:
        _helper = None
        ours.close()
        os.waitpid(pid, 0)


def fetch(path: bytes, key: str) -> bytes | None:
    """The list `key` of what is at `path`, with the ids as they are outside; None where that can't be had."""
    answer = _ask(path, key, b"")
    return answer[_FAILED.size :] if answer is not None and not _FAILED.unpack_from(answer)[0] else None


def store(path: bytes, key: str, value: bytes) -> bool:
    """Set the list `key` of what is at `path`, with ids as they are outside; False where that can't be done."""
    answer = _ask(path, key, value)
    return answer is not None and not _FAILED.unpack_from(answer)[0]


def give_owner_of(directory: int, name: bytes, other: int) -> bool:
    """Give `name` in the open `directory` the owner and group of the file that is open in `other`, where those are not
    mapped here; False where that can't be done."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        answer = _send(_OWNER, fd, other)
    finally:
        os.close(fd)
    return answer is not None and not _FAILED.unpack_from(answer)[0]


def _ask(path: bytes, key: str, value: bytes) -> bytes | None:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _send(key.encode() + b"\0" + value, fd)
    finally:
        os.close(fd)


def _send(message: bytes, *fds: int) -> bytes | None:
    if _helper is None:
        return None
    try:
        socket.send_fds(_helper, [message], fds)
        return _helper.recv(_MOST + _FAILED.size) or None
    except OSError:
        return None


def _serve(channel: socket.socket) -> None:
    while True:
        message, fds, _flags, _address = socket.recv_fds(channel, _MOST, 2)
        if not message:
            return
        name, _, value = message.partition(b"\0")
        place = b"/proc/self/fd/%d" % fds[0]
        answer = b""
        try:
            if message == _OWNER:
                old, new = os.fstat(fds[1]), os.fstat(fds[0])
                os.chown(place, old.st_uid if old.st_uid != new.st_uid else -1, old.st_gid)
            elif value:
                os.setxattr(place, name, value)
            else:
                answer = os.getxattr(place, name)
            failed = 0
        except OSError as error:
            failed = error.errno or 1
        channel.send(_FAILED.pack(failed) + answer)
        for fd in fds:
            os.close(fd)
