"""Descriptors of files that a module serves, put into callers: the counters and timers of examples/descriptors.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View

OpenView = Callable[..., View]
WriteModule = Callable[..., Path]
WriteCaller = Callable[[str], str]

EXAMPLE = Path(__file__).parents[3] / "examples/descriptors.py"
FUNCTIONS = """
import array, select, socket, struct

def event(flags=0):
    return call(7001, flags)

def take(fd):
    try:
        return struct.unpack("Q", os.read(fd, 8))[0]
    except OSError as error:
        return errno.errorcode[error.errno]

def add(fd, number):
    try:
        return os.write(fd, struct.pack("Q", number))
    except OSError as error:
        return errno.errorcode[error.errno]

def later(seconds, what):
    threading.Timer(seconds, what).start()
"""


@pytest.fixture
def run(open_view: OpenView, caller: WriteCaller) -> Callable[[str], list[str]]:
    """Run lines of Python in a view with both; what they print."""
    view = open_view()
    view("insmod", f"{EXAMPLE}:Objects")
    view("insmod", f"{EXAMPLE}:Calls")

    def lines(text: str) -> list[str]:
        import textwrap

        return view.sh(caller(FUNCTIONS + textwrap.dedent(text))).out.splitlines()

    return lines


def test_reading_and_writing(run: Callable[[str], list[str]]) -> None:
    assert run("""
        one, two = event(), event(os.O_NONBLOCK)
        print(add(one, 5), add(one, 6), take(one), take(two), add(two, 1), take(two), take(two))
        later(0.2, lambda: add(one, 7)); print(take(one))
        print(add(two, (1 << 64) - 2), add(two, 1), add(one, (1 << 64) - 1), os.get_inheritable(one))
        closed = event(os.O_CLOEXEC); print(os.get_inheritable(closed), os.readlink(f"/proc/self/fd/{one}"))
    """) == ["8 8 11 EAGAIN 8 1 EAGAIN", "7", "8 EAGAIN EINVAL True", "False /dev/object-event"]  # fmt: skip


def test_waiting_for_them(run: Callable[[str], list[str]]) -> None:
    """poll(2), select(2), epoll(7), and a signal in between."""
    assert run("""
        fd = event()
        poll = select.poll(); poll.register(fd, select.POLLIN)
        print(poll.poll(0), select.select([fd], [fd], [], 0)[1] == [fd])
        later(0.2, lambda: add(fd, 1)); print(len(poll.poll(20_000)), take(fd))
        later(0.2, lambda: add(fd, 1)); print(select.select([fd], [], [], 20)[0] == [fd], take(fd))
        epoll = select.epoll(); epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        later(0.2, lambda: add(fd, 1)); print(len(epoll.poll(20)), take(fd))
        signal.signal(signal.SIGALRM, lambda *_ignored: 1 / 0); signal.setitimer(signal.ITIMER_REAL, 0.2)
        try: take(fd)
        except ZeroDivisionError: print("interrupted")
    """) == ["[] True", "1 1", "True 1", "1 1", "interrupted"]  # fmt: skip


def test_sharing_them(run: Callable[[str], list[str]]) -> None:
    """dup(2), fork(2), and a socket to another process: it is one object."""
    assert run("""
        fd = event(); other = os.dup(fd); add(other, 3); print(take(fd)); os.close(fd)
        if os.fork() == 0:
            add(other, 4); os._exit(0)
        os.wait(); print(take(other))
        here, there = socket.socketpair()
        if os.fork() == 0:
            _data, received, _flags, _address = socket.recv_fds(there, 1, 1)
            add(received[0], 9); os._exit(0)
        socket.send_fds(here, [b"."], [other]); os.wait(); print(take(other))
        import subprocess
        add(other, 12)
        print(subprocess.run(["od", "-An", "-N8", "-td8"], stdin=other, stdout=-1, text=True).stdout.strip())
    """) == ["3", "4", "9", "12"]  # fmt: skip


def test_timers(run: Callable[[str], list[str]]) -> None:
    assert run("""
        fd = call(7002, 0)
        def set(first, interval): os.write(fd, struct.pack("QQ", int(first * 1e9), int(interval * 1e9)))
        set(0.2, 0); begun = time.monotonic(); print(take(fd), 0.19 < time.monotonic() - begun < 60)
        set(0.05, 0.05); begun, total = time.monotonic(), 0
        while total < 5: total += take(fd)
        print(total <= (time.monotonic() - begun) / 0.05)
        set(0, 0); print(select.select([fd], [], [], 0.2)[0])
    """) == ["1 True", "True", "[]"]  # fmt: skip


def test_many(run: Callable[[str], list[str]]) -> None:
    assert run("""
        fds = [event() for _number in range(200)]
        for number, fd in enumerate(fds): add(fd, number + 1)
        print([take(fd) for fd in fds] == list(range(1, 201)))
    """) == ["True"]


def test_what_is_not_opened_for_anybody(
    open_view: OpenView, module: WriteModule, caller: WriteCaller, tmp_path: Path
) -> None:
    """A module has no right to files that no server serves, and to none that would be made or emptied."""
    (tmp_path / "file").write_text("mine")
    members = f"""
        @call(7003, "int")
        def file(self, caller, flags):
            return Opened({str(tmp_path / "file")!r}, flags)

        @call(7004, "text")
        def other(self, caller, path):
            return Opened(path)
    """
    view = open_view()
    view("insmod", module(members))
    view("insmod", "null", "/dev/mine")
    lines = f"""
        print([outcome(7003, flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_CREAT)])
        paths = ("relative", "/dev/null", "/etc/passwd", "/none", "/", "/proc/self/mem")
        print([outcome(7004, path) for path in paths])
        print(outcome(7004, "/dev/mine") > 2, open({str(tmp_path / "file")!r}).read())
        os.chdir("/dev"); os.symlink("/dev/mine", {str(tmp_path / "link")!r})
        print(outcome(7004, {str(tmp_path / "link")!r}) > 2)
    """
    assert view.sh(caller(lines)).out.splitlines() == [
        "['EPERM', 'EPERM', 'EIO', 'EIO']",
        "['EIO', 'EPERM', 'EPERM', 'ENOENT', 'EPERM', 'EPERM']",
        "True mine",
        "True",
    ]
