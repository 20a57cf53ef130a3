"""The syscall floor, against the kernel: what works without any privilege."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from viewfs.linux.libc import path_bytes
from viewfs.linux.memory import process_vm_readv, process_vm_writev
from viewfs.linux.mount import MountFlags, mount, umount2
from viewfs.linux.namespaces import namespace_id
from viewfs.linux.process import (
    pid_of,
    pidfd_is_dead,
    pidfd_open,
    pidfd_send_signal,
)


@pytest.fixture
def child() -> Iterator[tuple[int, ctypes.Array[ctypes.c_char]]]:
    """A process that waits, and memory that it has at the same address as this one."""
    memory = ctypes.create_string_buffer(b"something to read", 64)
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid, memory
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_memory_of_another_process(child: tuple[int, ctypes.Array[ctypes.c_char]]) -> None:
    pid, memory = child
    address = ctypes.addressof(memory)
    read = bytearray(18)
    process_vm_readv(pid, address, read)
    assert read == b"something to read\0"
    for data in (b"be known", bytearray(b"be known"), memoryview(b"be known")):
        process_vm_writev(pid, address + 10, data)
    process_vm_readv(pid, address + 10, memoryview(read)[10:])
    assert read == b"something be known"
    assert memory.value == b"something to read", "it is the other's memory that was written"


def test_memory_that_is_not_there(child: tuple[int, ctypes.Array[ctypes.c_char]]) -> None:
    pid, _memory = child
    with pytest.raises(OSError, match="process_vm_readv") as caught:
        process_vm_readv(pid, 4096, bytearray(8))
    assert caught.value.errno == errno.EFAULT
    with pytest.raises(OSError, match="process_vm_writev") as caught:
        process_vm_writev(pid, 4096, b"x")
    assert caught.value.errno == errno.EFAULT


def test_a_process_by_descriptor() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    fd = pidfd_open(pid)
    try:
        assert pid_of(fd) == pid and not pidfd_is_dead(fd)
        assert pidfd_send_signal(fd, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert pidfd_is_dead(fd)
        os.waitpid(pid, 0)
        assert not pidfd_send_signal(fd, signal.SIGKILL), "it is gone, and no later process is hit"
        assert pid_of(fd) == -1
    finally:
        os.close(fd)


def test_errors_name_the_call_and_the_path() -> None:
    with pytest.raises(OSError, match="umount2") as caught:
        umount2("/no/such/place")
    assert caught.value.filename == "/no/such/place"
    with pytest.raises(OSError, match="mount") as caught:
        mount("none", "/no/such/place", "tmpfs", MountFlags.NOSUID)
    assert caught.value.errno in (errno.EPERM, errno.ENOENT)


def test_a_path_with_nul_is_none() -> None:
    with pytest.raises(ValueError, match="NUL"):
        path_bytes("a\0b")


def test_namespaces_are_told_apart() -> None:
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    other = os.open("/proc/self/ns/user", os.O_RDONLY)
    try:
        assert namespace_id(own) != namespace_id(other)
    finally:
        os.close(own)
        os.close(other)


def test_a_name_is_set_whatever_has_become_of_the_environment() -> None:
    """A variable that is added moves it, and python-prctl would write where it was."""
    code = (
        "import os; from viewfs.linux.process import set_name; set_name('one')\n"
        "print(open('/proc/self/cmdline').read().rstrip('\\0 '), open('/proc/self/comm').read().strip())\n"
        "os.environ.update({f'VIEWFS_TEST_{n}': 'x' * 1000 for n in range(100)}); set_name('two')\n"
        "print(open('/proc/self/comm').read().strip())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "one one\ntwo\n"
