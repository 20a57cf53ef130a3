"""seccomp filters: the compiled program run by an interpreter of its own, and installed for real in a process."""

from __future__ import annotations

import errno
import fcntl
import json
import platform
import struct
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.linux.numbers import audit_architecture, syscall_number
from viewfs.linux.seccomp import ALLOW, KILL, ArgumentRule, compile_filter, deny, install_filter
from viewfs.namespaces import sandbox
from viewfs.namespaces.sandbox import Needs, sealed_rules, view_rules

EPERM, ENOSYS = deny(errno.EPERM), deny(errno.ENOSYS)
Rules = dict[str, int | ArgumentRule]

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no numbers for this machine")


def run(program: bytes, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the kernel would do: the classic BPF machine of linux/filter.h, over struct seccomp_data."""
    ours = audit_architecture() if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, ours, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    instructions = list(struct.iter_unpack("=HBBI", program))
    assert len(instructions) <= 4096, "BPF_MAXINSNS"
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        match code:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                assert k % 4 == 0 and k < len(data)
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x05:  # BPF_JMP | BPF_JA
                at += k
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += if_true if accumulator == k else if_false
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                at += if_true if accumulator >= k else if_false
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= k
            case 0x06:  # BPF_RET | BPF_K
                return int(k)
            case _:
                raise AssertionError(f"instruction {code:#x}")


def of(rules: Rules, default: int, name: str, *arguments: int) -> int:
    number = syscall_number(name)
    assert number is not None
    return run(compile_filter(rules, default), number, *arguments)


def test_rules_and_the_default() -> None:
    rules: Rules = {"read": ALLOW, "mount": EPERM, "clone3": ENOSYS}
    for default in (ALLOW, EPERM, KILL):
        assert of(rules, default, "read") == ALLOW
        assert of(rules, default, "mount") == EPERM
        assert of(rules, default, "clone3") == ENOSYS
        assert of(rules, default, "write") == default


def test_a_rule_for_an_argument() -> None:
    rules: Rules = {
        "clone": ArgumentRule(0, 0x10000, ALLOW, EPERM, mask=0x10000),
        "tgkill": ArgumentRule(1, 42, ALLOW, ENOSYS),
        "write": EPERM,
    }
    assert of(rules, KILL, "clone", 0x3D0F00) == ALLOW
    assert of(rules, KILL, "clone", 0x1200011) == EPERM
    assert of(rules, KILL, "tgkill", 0, 42) == ALLOW
    assert of(rules, KILL, "tgkill", 42, 0) == ENOSYS
    assert of(rules, KILL, "write", 42) == EPERM, "the rules behind one with an argument are reached"
    assert of(rules, KILL, "read") == KILL


@settings(max_examples=100, deadline=None, database=None)
@given(st.integers(0, (1 << 32) - 1), st.integers(0, 5), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
def test_arguments_are_compared_as_said(value: int, index: int, given: int, mask: int) -> None:
    arguments = [0] * 6
    arguments[index] = given
    expected = ALLOW if given & mask & 0xFFFFFFFF == value else EPERM
    assert of({"read": ArgumentRule(index, value, ALLOW, EPERM, mask)}, KILL, "read", *arguments) == expected


def test_calls_by_other_tables_end_the_process() -> None:
    """i386 on x86_64 and the like have other numbers for the same calls; x32 has a bit in the number."""
    program = compile_filter({}, ALLOW)
    assert run(program, 1) == ALLOW
    for other in (0x40000003, 0xC000003E ^ 1, 0x40000028, 0):  # AUDIT_ARCH_I386, nonsense, AUDIT_ARCH_ARM, none
        assert run(program, 1, architecture=other) == KILL
    for number in (0x40000000, 0x40000001, 0xFFFFFFFF):
        assert run(program, number) == KILL


def test_a_call_that_this_machine_does_not_have() -> None:
    program = compile_filter({"arch_prctl": ALLOW, "read": ALLOW}, EPERM)
    assert run(program, syscall_number("read") or 0) == ALLOW
    assert len(compile_filter({}, EPERM)) + (2 if platform.machine() == "aarch64" else 4) * 8 == len(program)


def test_names_that_nobody_knows() -> None:
    with pytest.raises(KeyError):
        compile_filter({"no_such_call": ALLOW}, EPERM)


def test_what_is_no_program_is_not_installed() -> None:
    with pytest.raises(OSError) as caught:
        install_filter(b"1234567")
    assert caught.value.errno == errno.EINVAL


# -- the rules of module servers


@pytest.mark.parametrize("name", ["read", "write", "pread64", "writev", "futex", "epoll_ctl", "exit_group", "mmap"])
def test_a_sealed_server_can_serve(name: str) -> None:
    assert of(*sealed_rules(), name) == ALLOW


@pytest.mark.parametrize(
    "name",
    ["openat2", "socket", "mount", "ptrace", "unshare", "setns", "bpf", "io_uring_setup", "process_vm_readv", "keyctl"],
)
def test_a_sealed_server_can_do_no_more(name: str) -> None:
    assert of(*sealed_rules(), name) == EPERM


def test_servers_of_devices_may_do_what_they_need_and_no_more() -> None:
    pidfd_get_info, fionbio, any_other = 0xC040FF0B, 0x5421, 0x5401
    for needs in Needs:
        rules, default = sealed_rules(needs)
        callers, memory, crypto = (flag in needs for flag in (Needs.CALLERS, Needs.CALLER_MEMORY, Needs.KERNEL_CRYPTO))
        assert of(rules, default, "pidfd_open") == (ALLOW if callers else EPERM)
        # (ioctl's command is its second argument.)
        assert of(rules, default, "ioctl", 0, fionbio) == ALLOW
        assert of(rules, default, "ioctl", 0, pidfd_get_info) == (ALLOW if callers else EPERM)
        assert of(rules, default, "ioctl", 0, any_other) == EPERM
        assert of(rules, default, "process_vm_writev") == (ALLOW if memory else EPERM)
        assert of(rules, default, "socket", 38) == (ALLOW if crypto else EPERM)
        for name in ("pidfd_getfd", "ptrace", "openat2"):
            assert of(rules, default, name) == EPERM
        assert of(rules, default, "socket", 1) == of(rules, default, "socket", 2) == EPERM
        rules, default = view_rules(network=False, needs=needs)
        assert of(rules, default, "process_vm_readv") == (ALLOW if memory else EPERM)
        assert of(rules, default, "socket", 38) == (ALLOW if crypto else EPERM)


def test_numbers_that_the_table_does_not_have_are_denied_to_a_sealed_server() -> None:
    program = compile_filter(*sealed_rules())
    assert all(run(program, number) == EPERM for number in range(450, 1000))


@pytest.mark.parametrize("network", [False, True])
def test_a_server_that_uses_the_view(network: bool) -> None:
    rules, default = view_rules(network=network)
    for name in ("mount", "unshare", "setns", "ptrace", "bpf", "pivot_root", "open_by_handle_at", "userfaultfd"):
        assert of(rules, default, name) == EPERM
    for name in ("read", "openat2", "fcntl"):
        assert of(rules, default, name) == ALLOW
    assert of(rules, default, "clone", 0x1200011) == ALLOW
    assert of(rules, default, "clone", 0x10000011) == EPERM, "CLONE_NEWUSER"
    assert of(rules, default, "socket", 1) == ALLOW
    assert of(rules, default, "socket", 2) == (ALLOW if network else EPERM)


@pytest.mark.parametrize("address", [0, 1, 1 << 31, 1 << 32, 0x7FFF_0000_0000, (1 << 64) - 1])
def test_a_message_may_have_no_address(address: int) -> None:
    """A pointer has 64 bits: the upper half counts as well."""
    rules, default = sealed_rules()
    assert of(rules, default, "sendto", 3, 4096, 1, 0, address, 0) == (ALLOW if address == 0 else EPERM)
    assert of(rules, default, "sendmsg", 3, 4096, 0) == EPERM


@pytest.mark.parametrize("high", [0, 1 << 32], ids=["", "with high bits"])
def test_what_a_descriptor_may_be_asked_for(high: int) -> None:
    """The kernel takes an unsigned int: what is above it changes nothing."""
    sealed, sealed_default = sealed_rules()
    view, view_default = view_rules(network=True)
    own, own_default = view_rules(network=False, needs=Needs.OWN_FILES)
    for command, sealed_may, others_may in (
        (fcntl.F_GETFL, True, True),
        (fcntl.F_DUPFD_CLOEXEC, True, True),
        (fcntl.F_SETLK, False, True),
        (fcntl.F_SETOWN, False, False),
        (15, False, False),  # F_SETOWN_EX
        (10, False, False),  # F_SETSIG
    ):
        assert of(sealed, sealed_default, "fcntl", 3, command | high) == (ALLOW if sealed_may else EPERM), command
        for rules, default in ((view, view_default), (own, own_default)):
            assert of(rules, default, "fcntl", 3, command | high) == (ALLOW if others_may else EPERM), command
    for request in (0x5412, 0x541C):  # TIOCSTI, TIOCLINUX
        for rules, default in ((sealed, sealed_default), (view, view_default), (own, own_default)):
            assert of(rules, default, "ioctl", 0, request | high) == EPERM


def test_a_sealed_server_has_no_memory_that_is_not_counted() -> None:
    rules, default = sealed_rules()
    private, shared, anonymous = 0x02, 0x01, 0x20
    assert of(rules, default, "mmap", 0, 4096, 3, private | anonymous) == ALLOW
    assert of(rules, default, "mmap", 0, 4096, 3, shared) == ALLOW, "of a file that is open"
    assert of(rules, default, "mmap", 0, 4096, 3, shared | anonymous) == EPERM
    assert of(rules, default, "mmap", 0, 4096, 3, private | anonymous | 0x20000) == ALLOW, "MAP_STACK, of threads"
    assert of(rules, default, "mmap", 0, 4096, 3, private | anonymous | 0x100) == EPERM, "MAP_GROWSDOWN"


def test_what_servers_of_own_files_have_no_use_for() -> None:
    rules, default = view_rules(network=False, needs=Needs.OWN_FILES)
    for name in ("execve", "execveat", "kill", "socket", "connect", "pidfd_send_signal", "fork"):
        if syscall_number(name) is not None:
            assert of(rules, default, name) == EPERM, name
    assert of(rules, default, "clone", 0x00010000) == ALLOW and of(rules, default, "clone", 17) == EPERM
    assert of(rules, default, "prctl", 4) == EPERM and of(rules, default, "prctl", 15) == ALLOW
    assert of(rules, default, "prlimit64", 0) == ALLOW and of(rules, default, "prlimit64", 1) == EPERM


# -- for real


def under(rules: str, script: str) -> Any:
    """The result of `script` in a process with these rules: a list of what `attempt` made of each line."""
    program = f"""
import _socket, ctypes, errno, json, os, signal, socket, sys, threading, time
import trio
from viewfs.linux.process import no_new_privileges
from viewfs.linux.seccomp import compile_filter, install_filter
from viewfs.namespaces.sandbox import sealed_rules, view_rules

results = {{}}

def attempt(name, call):
    try:
        call()
    except OSError as error:
        results[name] = errno.errorcode[error.errno]
    except RuntimeError as error:
        results[name] = str(error)
    else:
        results[name] = "done"

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

def thread():
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()

async def in_a_thread():
    await trio.to_thread.run_sync(lambda: None)
    await trio.sleep(0.001)

read, write = os.pipe()
null = os.open("/dev/null", os.O_RDWR)
no_new_privileges()
install_filter(compile_filter(*{rules}))
{textwrap.dedent(script)}
os.write(1, json.dumps(results).encode())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sealed_process() -> None:
    results = under(
        "sealed_rules()",
        """
        attempt("open", lambda: os.open("/dev/null", os.O_RDONLY))
        attempt("listdir", lambda: os.listdir("/"))
        attempt("socket", lambda: socket.socket(socket.AF_UNIX).close())
        attempt("internet", lambda: socket.socket(socket.AF_INET).close())
        attempt("fork", fork)
        attempt("exec", lambda: os.execv("/bin/true", ["true"]))
        attempt("kill", lambda: os.kill(os.getppid(), 0))
        attempt("unlink", lambda: os.unlink("/nothing"))
        attempt("mkdir", lambda: os.mkdir("/nothing/at/all"))
        attempt("write", lambda: os.write(write, b"hello"))
        attempt("read", lambda: os.read(read, 5))
        attempt("pread", lambda: os.pread(null, 5, 0))
        attempt("writev", lambda: os.writev(null, [b"a", b"b"]))
        attempt("fstat", lambda: os.fstat(null))
        attempt("memory", lambda: bytearray(64 << 20))
        attempt("thread", thread)
        attempt("sleep", lambda: time.sleep(0.001))
        attempt("random", lambda: os.urandom(8))
        attempt("trio", lambda: trio.run(in_a_thread))
        """,
    )
    denied = {"open", "listdir", "socket", "internet", "fork", "exec", "kill", "unlink", "mkdir"}
    assert {name: result for name, result in results.items() if name in denied} == dict.fromkeys(denied, "EPERM")
    assert {name: result for name, result in results.items() if name not in denied} == dict.fromkeys(
        ("write", "read", "pread", "writev", "fstat", "memory", "thread", "sleep", "random", "trio"), "done"
    )


@pytest.mark.parametrize("network", [False, True])
def test_a_process_that_uses_the_view(network: bool) -> None:
    results = under(
        f"view_rules(network={network})",
        """
        libc = ctypes.CDLL(None, use_errno=True)
        def check(result):
            if result < 0:
                raise OSError(ctypes.get_errno(), "failed")
        attempt("open", lambda: os.close(os.open("/dev/null", os.O_RDONLY)))
        attempt("fork", fork)
        attempt("thread", thread)
        attempt("unix", lambda: socket.socket(socket.AF_UNIX).close())
        attempt("internet", lambda: socket.socket(socket.AF_INET).close())
        attempt("unshare", lambda: check(libc.unshare(0x10000000)))
        attempt("mount", lambda: check(libc.mount(b"none", b"/proc", b"tmpfs", 0, None)))
        """,
    )
    assert results == {
        "open": "done",
        "fork": "done",
        "thread": "done",
        "unix": "done",
        "internet": "done" if network else "EPERM",
        "unshare": "EPERM",
        "mount": "EPERM",
    }


def test_a_filter_needs_no_new_privileges() -> None:
    """Without them the kernel refuses it to who is not privileged (seccomp(2))."""
    script = "from viewfs.linux.seccomp import *; install_filter(compile_filter({}, ALLOW))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "seccomp: Permission denied" in done.stderr


def test_a_filter_that_was_made_before_is_the_same() -> None:
    """What is made once for all servers has the number of each in it."""
    for needs in (Needs.NONE, Needs.CALLERS, Needs.CALLERS | Needs.CALLER_MEMORY):
        assert sandbox._sealed_program(needs) == compile_filter(*sealed_rules(needs))
