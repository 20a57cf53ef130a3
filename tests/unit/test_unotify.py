"""Filters that notify calls: what they say of each number, and what the kernel does with them."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_seccomp import run
from viewfs.linux.libc import address_of
from viewfs.linux.numbers import AUDIT_ARCH, AUDIT_ARCH_I386, audit_architecture, numbers_by_table, syscall_number
from viewfs.linux.process import no_new_privileges
from viewfs.linux.signatures import SIGNATURES
from viewfs.linux.unotify import CALL_SIZE, VIRTUAL, WINDOW, Listener, NotifiedCall, install_listener, notifying_filter
from viewfs.linux.vdso import made_at_the_start
from viewfs.session.calls.notified import RARE

ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
ENOSYS = 0x00050000 | errno.ENOSYS
NUMBERS = st.sets(st.integers(0, 500), max_size=120)


@given(NUMBERS, st.integers(0, 500), st.integers(0, 2**32 - 1) | st.integers(950, 1030), st.integers(0, 2**32 - 1))
def test_calls_of_special_descriptors(own: set[int], special: int, first: int, upper: int) -> None:
    """Only the lower half of the first argument counts, and calls that are notified anyway are."""
    table = AUDIT_ARCH["x86_64"]
    program = notifying_filter({table: own}, None, {table: [special]})
    said = run(program, special, first | upper << 32, architecture=table)
    assert said == (NOTIFY if special in own or first in WINDOW else ALLOW)
    assert run(program, special + 1, 960, architecture=table) == (NOTIFY if special + 1 in own else ALLOW)


@given(NUMBERS, NUMBERS, NUMBERS, st.integers(0, 1100) | st.integers(0, 2**32 - 1))
def test_what_it_says(own: set[int], compat: set[int], missing: set[int], number: int) -> None:
    missing -= own
    program = notifying_filter({AUDIT_ARCH["x86_64"]: own, AUDIT_ARCH_I386: compat}, {AUDIT_ARCH["x86_64"]: missing})
    for table, numbers in ((AUDIT_ARCH["x86_64"], own), (AUDIT_ARCH_I386, compat), (AUDIT_ARCH["aarch64"], None)):
        said = run(program, number, architecture=table)
        virtual = numbers is not None and VIRTUAL <= number < 1 << 30
        if virtual or number in (numbers or ()):
            assert said == NOTIFY
        else:
            assert said == (ENOSYS if table == AUDIT_ARCH["x86_64"] and number in missing else ALLOW)


def test_the_calls_of_a_view_are_known_in_both_tables() -> None:
    tables = numbers_by_table(RARE)
    assert tables[audit_architecture()][syscall_number("mount") or -1] == "mount"
    if audit_architecture() == AUDIT_ARCH["x86_64"]:
        assert tables[AUDIT_ARCH_I386][21] == "mount" and tables[AUDIT_ARCH_I386][22] == "umount"
        assert {"mount", "umount2", "fsopen"} <= set(tables[AUDIT_ARCH["x86_64"]].values())


def under_filter(then: Callable[[], int]) -> tuple[Listener, int]:
    """A child that runs `then` with uname(2) notified, and exits with what that returns: its listener and pid."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            no_new_privileges()
            listener = install_listener(notifying_filter(numbers_by_table(["uname"])))
            socket.send_fds(theirs, [b"."], [listener])
            os.close(listener)
            status = then()
        finally:
            os._exit(status)
    theirs.close()
    with ours:
        _data, fds, _flags, _address = socket.recv_fds(ours, 1, 1)
    return Listener(fds[0]), pid


def uname() -> int:
    """0, or an errno."""
    buffer = ctypes.create_string_buffer(400)
    if ctypes.CDLL(None, use_errno=True).uname(buffer) == 0:
        return 0 if buffer.value == b"Linux" else 98
    return ctypes.get_errno()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda listener, call: listener.let_pass(call.id), 0),
        (lambda listener, call: listener.answer(call.id, error=errno.EXDEV), errno.EXDEV),
        (lambda listener, call: listener.answer(call.id), 98),
    ],
)
def test_answers(answer: Callable[[Listener, NotifiedCall], bool], status: int) -> None:
    listener, pid = under_filter(uname)
    place = bytearray(CALL_SIZE)
    assert listener.receive(address_of(place))
    call = NotifiedCall(place)
    assert (call.tid, call.number, call.architecture) == (pid, syscall_number("uname"), audit_architecture())
    assert listener.waits(call.id)
    assert answer(listener, call)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    assert not listener.waits(call.id) and not answer(listener, call)
    listener.close()


def test_nobody_has_the_listener_any_more() -> None:
    listener, pid = under_filter(uname)
    listener.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.ENOSYS


def test_there_is_one_listener_at_a_time() -> None:
    def second() -> int:
        try:
            install_listener(notifying_filter({}))
        except OSError as error:
            return error.errno or 97
        return 0

    listener, pid = under_filter(second)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EBUSY
    listener.close()


def test_the_caller_is_killed() -> None:
    listener, pid = under_filter(uname)
    place = bytearray(CALL_SIZE)
    assert listener.receive(address_of(place))
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert not listener.answer(NotifiedCall(place).id)
    listener.close()


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.uname().machine != "x86_64", reason="x86_64 only")
def test_the_tables_are_those_of_the_headers() -> None:
    """As far as the compiler has them."""
    for table, header in ((AUDIT_ARCH["x86_64"], "asm/unistd_64.h"), (AUDIT_ARCH_I386, "asm/unistd_32.h")):
        found = numbers_by_table((*SIGNATURES, *RARE, *made_at_the_start()))[table]
        source = f"#include <{header}>\n" + "".join(f"is {name} __NR_{name}\n" for name in found.values())
        said = subprocess.run(["cpp", "-P"], input=source, capture_output=True, text=True, check=True).stdout
        lines = [line.split() for line in said.splitlines() if line.startswith("is ")]
        assert {int(number): name for _is, name, number in lines if number.isdigit()}.items() <= found.items()
        assert sum(number.isdigit() for _is, _name, number in lines) > len(found) - 5, "headers may lack what is new"
