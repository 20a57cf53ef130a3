"""What programs rely on when they use a character device: a compiled, static C program is the client."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from tests.kernel.conftest import SECONDS, View, wait_until
from tests.kernel.devices.conftest import HERE, Program

Start = Callable[..., Program]


def run(view: View, client: Path, *arguments: str, device: str = "/dev/probe") -> list[str]:
    return view.sh(" ".join([str(client), device, *arguments])).out.splitlines()


def client_pid(program: Program, name: str = "client") -> int:
    """The process of the view that `viewfs enter` stands for."""

    def find() -> int | None:
        for pid in descendants(program.process.pid):
            try:
                if Path(f"/proc/{pid}/comm").read_text().startswith(name):
                    return pid
            except OSError:
                continue
        return None

    return int(wait_until(find, "the program runs"))


def descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def test_the_devices_directory_keeps_what_it_had(own_probe: View) -> None:
    """Every node of the host is there and works; a new device is beside them, and the host has none."""
    before = own_probe.viewfs.sh(script="ls /dev | sort").out.split()
    script = """
        ls /dev | sort
        test -c /dev/null; test -c /dev/tty; test -d /dev/pts; test -d /dev/shm
        head -c 4 /dev/zero | wc -c >&2; echo x > /dev/null; echo y > /dev/stderr; echo z > /dev/fd/2
        touch /dev/shm/viewfs-$$; rm /dev/shm/viewfs-$$
    """
    inside = own_probe.sh(script)
    assert sorted(inside.out.split()) == sorted([*before, "probe"])
    assert inside.err.split() == ["4", "y", "z"]
    assert not os.path.exists("/dev/probe")


def test_nonblocking_and_blocking_reads(probe: View, client: Path) -> None:
    assert run(probe, client, "nonblock") == ["nonblock: EAGAIN", "write: 7", "blocking: 7 message"]


def test_short_reads_and_writes_and_the_end(probe: View, client: Path) -> None:
    assert run(probe, client, "write", "shorter", "hello", "end") == ["write: 3", "write: 5", "write: 3"]
    assert run(probe, client, "read") == ["read: 5 hello"]
    assert run(probe, client, "read") == ["read: 0 "]


def test_a_reader_waits_for_a_writer_in_another_process(probe: View, client: Path, start: Start) -> None:
    program = start(probe, client, "/dev/probe", "select", "20")
    assert program.line() == "waiting"
    run(probe, client, "write", "late")
    assert program.rest() == ["select: 1", "read: 4 late"]


def test_poll(probe: View, client: Path, start: Start) -> None:
    program = start(probe, client, "/dev/probe", "poll", "20000")
    assert [program.line() for _ in range(2)] == ["before: 0", "writable: 1"]
    run(probe, client, "write", "polled")
    assert program.rest() == ["after: 1", "revents: IN", "read: 6 polled"]


@pytest.mark.parametrize("trigger", ["level", "edge"])
def test_epoll(probe: View, client: Path, start: Start, trigger: str) -> None:
    program = start(probe, client, "/dev/probe", "epoll", trigger, "3")
    assert program.line() == "waiting"
    for number in range(3):
        run(probe, client, "write", f"m{number}")
        assert [program.line() for _ in range(2)] == ["epoll: 1", f"read: 2 m{number}"]
    assert program.rest() == ["then: 0"]


def test_an_edge_is_told_once(probe: View, client: Path) -> None:
    said = run(probe, client, "edge-unread")
    assert said == ["write: 1", "first: 1", "again: 0", "write: 1", "second: 1"]


def test_a_signal_ends_a_blocked_read(probe: View, client: Path, start: Start) -> None:
    program = start(probe, client, "/dev/probe", "signal")
    assert program.line() == "reading"
    pid = client_pid(program)
    wait_until(lambda: "request_wait" in wchan(pid), "it waits for the device")
    os.kill(pid, signal.SIGINT)
    assert program.rest() == ["read: EINTR"]
    assert run(probe, client, "nonblock")[0] == "nonblock: EAGAIN"


def wchan(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_blocked_reader_can_be_killed(probe: View, client: Path, start: Start, number: int) -> None:
    """And what is written afterwards is the next reader's, not the dead one's."""
    program = start(probe, client, "/dev/probe", "read")
    pid = client_pid(program)
    wait_until(lambda: "request_wait" in wchan(pid), "it waits for the device")
    os.kill(pid, number)
    program.rest()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "it is gone, in no state at all")
    run(probe, client, "write", "next")
    assert run(probe, client, "read") == ["read: 4 next"]


def test_threads_and_a_child_on_one_descriptor_get_an_answer_each(probe: View, client: Path) -> None:
    said = run(probe, client, "shared")
    assert sorted(line.split(": ")[0] for line in said) == ["child", "thread", "thread"]
    assert sorted(line.split(": ")[1] for line in said) == ["1 1", "1 2", "1 3"]


def test_a_stream_has_no_positions(probe: View, client: Path) -> None:
    said = run(probe, client, "positions")
    assert said == ["lseek: ESPIPE", "pread: ESPIPE", "pwrite: ESPIPE", "mmap: ENODEV", "stat: regular 0"]


def test_release_comes_with_the_last_descriptor(own_probe: View, client: Path) -> None:
    said = run(own_probe, client, "releases")
    assert said[0] == "in the child still: 2 opens, 0 releases"
    opens, releases, flushes = (int(part.split()[0]) for part in said[1].removeprefix("nowhere: ").split(","))
    assert (opens, releases) == (2, 1) and flushes >= 3


def test_ioctls(probe: View, client: Path) -> None:
    assert run(probe, client, "ioctls") == [
        "SWAP: 7", "point: 2 1", "KEEP: 0", "ADD: 42", "unknown: ENOTTY", "unknown with data: ENOTTY", "FAIL: EXDEV",
        "bad pointer: EFAULT",
    ]  # fmt: skip


def test_the_caller_is_known(probe: View, client: Path) -> None:
    said = run(probe, client, "who")
    assert said == ["WHO: 0", "pid tid uid gid", "flags: RDWR APPEND", "thread: pid tid"]


def test_pointers_inside_a_structure(probe: View, client: Path) -> None:
    assert run(probe, client, "memory") == [
        "UPPER: 64", "POINTERS inside the structure", "nowhere: EFAULT", "constant: EFAULT", "endless: EINVAL",
        "too late: EIO", "UPPER: 64",
    ]  # fmt: skip
    assert "RuntimeError: the caller has its answer" in probe("log").out


def test_a_device_that_raises_fails_that_call_only(probe: View, client: Path) -> None:
    assert run(probe, client, "write", "raise", "well") == ["write: EIO", "write: 4"]
    assert "ZeroDivisionError: on purpose" in probe("log").out


def test_exclusive(open_view: Callable[..., View], client: Path) -> None:
    view = open_view()
    view("insmod", "-o", "exclusive", HERE / "probe.py", "/dev/only")
    assert run(view, client, "exclusive", device="/dev/only") == ["second: EBUSY", "afterwards: 0"]


def test_permission_bits(open_view: Callable[..., View]) -> None:
    view = open_view()
    view("insmod", "-o", "mode=400", "null", "/dev/mine")
    assert view.sh("stat -c %a /dev/mine; echo x > /dev/mine || echo refused").out == "400\nrefused\n"


def test_a_device_can_be_taken_away_while_it_is_open(own_probe: View, client: Path, start: Start) -> None:
    holder = start(own_probe, client, "/dev/probe", "hold")
    assert holder.line() == "open"
    reader = start(own_probe, client, "/dev/probe", "read")
    poller = start(own_probe, client, "/dev/probe", "select", "20")
    assert poller.line() == "waiting"
    wait_until(lambda: "request_wait" in wchan(client_pid(reader)), "the reader waits")
    own_probe("rmmod", "probe")
    assert reader.rest() == ["read: ENODEV"]
    assert poller.rest() == ["select: 1", "read: ENODEV"]
    holder.tell()
    said = holder.rest()
    assert said == ["read: ENODEV", "write: ENODEV", "ioctl: ENODEV", "poll: 1", "revents: ERR", "close: 0"]
    assert own_probe.sh("test -e /dev/probe || echo gone").out == "gone\n"
    assert own_probe.json("lsmod")["modules"] == []


def test_a_server_that_is_killed_leaves_nobody_waiting(own_probe: View, client: Path, start: Start) -> None:
    reader = start(own_probe, client, "/dev/probe", "read")
    pid = client_pid(reader)
    wait_until(lambda: "request_wait" in wchan(pid), "it waits for the device")
    os.kill(own_probe.json("lsmod")["modules"][0]["server"], signal.SIGKILL)
    (said,) = reader.rest()
    assert said in ("read: ECONNABORTED", "read: ENOTCONN")
    assert run(own_probe, client, "read") in (["open: ENOTCONN"], ["open: ECONNABORTED"])
    own_probe("rmmod", "probe")
    own_probe("insmod", HERE / "probe.py")
    assert run(own_probe, client, "nonblock")[0] == "nonblock: EAGAIN"


@pytest.mark.parametrize("option", ["--pid", "--as-root"])
def test_callers_are_known_in_every_kind_of_view(open_view: Callable[..., View], client: Path, option: str) -> None:
    """Process numbers of the view's own, and programs that keep capabilities, whose memory is harder to reach."""
    view = open_view(option, "--load", HERE / "probe.py")
    assert run(view, client, "who")[1:] == ["pid tid uid gid", "flags: RDWR APPEND", "thread: pid tid"]
    assert run(view, client, "memory")[:2] == ["UPPER: 64", "POINTERS inside the structure"]


def test_a_device_in_a_view_inside_a_view(own_probe: View, client: Path) -> None:
    """It works there too. The caller has no number that the outer view's server could know."""
    said = own_probe.sh(f"viewfs run -- {client} /dev/probe nonblock").out.splitlines()
    assert said == ["nonblock: EAGAIN", "write: 7", "blocking: 7 message"]


def test_ctrl_c_at_a_terminal(probe: View) -> None:
    """The shell that waits for cat goes on."""
    child = pexpect.spawn(
        "viewfs",
        ["enter", probe.name, "--", "bash", "--norc"],
        env=probe.viewfs.environment | {"PS1": "now> "},
        timeout=SECONDS,
    )
    child.expect_exact("now> ")
    child.sendline("cat /dev/probe")
    wait_until(lambda: any("request_wait" in wchan(pid) for pid in descendants(child.pid)), "cat waits")
    child.sendcontrol("c")
    child.expect_exact("now> ")
    child.sendline("echo status $?; exit")
    child.expect_exact("status 130")
    child.expect(pexpect.EOF)
    child.close()


def test_a_server_keeps_what_its_module_declares(probe: View) -> None:
    """CAP_SYS_PTRACE for who reaches into callers' memory, nothing for others; a filter and no way to more for all."""
    probe("insmod", "useless", "/dev/plain")

    def status(pid: int) -> dict[str, str]:
        return dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())

    servers = {row["path"]: (row["confinement"], status(row["server"])) for row in probe.json("lsmod")["modules"]}
    probe("rmmod", "useless")
    kept = {"/dev/probe": ("sealed+caller memory", 1 << 19), "/dev/plain": ("sealed", 0)}
    for path, (confinement, capabilities) in kept.items():
        shown, server = servers[path]
        assert shown == confinement
        for name in ("CapEff", "CapPrm", "CapBnd"):
            assert int(server[name], 16) == capabilities, f"{path} {name}"
        assert (server["CapInh"], server["CapAmb"]) == ("0" * 16, "0" * 16)
        assert (server["Seccomp"], server["NoNewPrivs"]) == ("2", "1")


def test_at_any_place(open_view: Callable[..., View], client: Path, tmp_path: Path) -> None:
    view = open_view()
    view("insmod", HERE / "probe.py", tmp_path / "deep/er/probe")
    view("insmod", "null", "/dev/random")
    assert run(view, client, "nonblock", device=f"{tmp_path}/deep/er/probe")[2] == "blocking: 7 message"
    assert view.sh("wc -c < /dev/random").out == "0\n"
    view("rmmod", "null")
    assert view.sh("head -c 4 /dev/random | wc -c").out == "4\n"


@pytest.mark.needs("gcc")
def test_a_program_of_32_bits(probe: View, compiled: Callable[..., Path]) -> None:
    client = compiled("client", "-m32", "-static")
    assert run(probe, client, "memory")[:2] == ["UPPER: 32", "POINTERS inside the structure"]
    assert run(probe, client, "ioctls")[:4] == ["SWAP: 7", "point: 2 1", "KEEP: 0", "ADD: 42"]
