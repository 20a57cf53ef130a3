"""Whoever dies while calls wait: each call is answered, and once."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, kill, session_processes, wait_until

OpenView = Callable[..., View]
WriteModule = Callable[..., Path]
WriteCaller = Callable[[str], str]

#: Counts how often each number was given to it.
COUNTING = """
    counts = {}
    waiting = 0

    @call(5000, "size")
    def count(self, caller, number):
        self.counts[caller.tid, number] = self.counts.get((caller.tid, number), 0) + 1
        return number

    @call(5001)
    def told(self, caller, *words):
        return len(self.counts) * 1000 + max(self.counts.values(), default=0)

    @call(5002, "int")
    async def wait(self, caller, milliseconds):
        await trio.sleep(milliseconds / 1000)
        return 7
"""
LOAD = """
wrong = []

def work():
    for number in range(400):
        if (got := outcome(5000, number)) != number:
            wrong.append(got)

threads = [threading.Thread(target=work) for _thread in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(wrong)
"""


def process_called(view: View, name: str) -> int | None:
    found = [pid for pid, comm in session_processes(view.viewfs.directory).items() if comm == name]
    return min(found) if found else None


@contextmanager
def running(view: View, command: str) -> Iterator[subprocess.Popen[str]]:
    whole = ["viewfs", "enter", view.name, "--", "sh", "-c", command]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, env=view.viewfs.environment) as process:
        yield process


def test_notifiers_are_killed(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    """Again and again, under load: no call is lost, and none done twice."""
    view = open_view()
    view("insmod", module(COUNTING))
    killed = set()
    with running(view, caller(LOAD)) as load:
        while load.poll() is None and len(killed) < 30:
            if (notifier := process_called(view, "viewfs-notifier")) is not None and notifier not in killed:
                kill(notifier)
                killed.add(notifier)
        assert load.stdout is not None
        assert load.stdout.read() == "[]\n"
    assert len(killed) > 3
    threads, most = divmod(int(view.sh(caller("print(call(5001))")).out), 1000)
    assert (threads, most) == (1600, 1)


def test_a_notifier_is_killed_while_calls_wait(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    view = open_view()
    view("insmod", module(COUNTING))
    lines = """
        results = []
        threads = [threading.Thread(target=lambda: results.append(outcome(5002, 1500))) for _number in range(8)]
        for thread in threads: thread.start()
        print("begun", flush=True)
        for thread in threads: thread.join()
        print(results)
    """
    with running(view, caller(lines)) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "begun\n"
        wait_until(lambda: waiting_calls(view) == 8, "all of them wait")
        first = process_called(view, "viewfs-notifier")
        assert first is not None
        kill(first)
        assert waiting.stdout.readline() == f"{[7] * 8}\n"


def test_a_server_is_killed(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    """What it was asked fails; what comes then is for the module before it, or for the kernel."""
    view = open_view()
    view("insmod", module("@call(5002)\ndef other(self, caller, *words):\n    return 99", "older"))
    view("insmod", module(COUNTING))
    with running(view, caller("print(outcome(5002, 60_000)); print(outcome(5002, 1), outcome(5000, 1))")) as waiting:
        assert waiting.stdout is not None

        def server() -> int:
            return next(int(row["server"] or 0) for row in view.json("lsmod")["modules"] if row["module"] == "probe")

        wait_until(lambda: waiting_calls(view) == 1, "the call waits")
        kill(server())
        assert waiting.stdout.readline() == "EIO\n"
        assert waiting.stdout.readline() == "99 ENOSYS\n"
    assert [row["state"] for row in view.json("lsmod")["modules"]] == ["mounted", "dead"]
    view("rmmod", "probe")


def waiting_calls(view: View) -> int:
    """How many threads of the session are in the call that waits (proc_pid_syscall(5))."""
    found = 0
    for pid in session_processes(view.viewfs.directory):
        for task in Path(f"/proc/{pid}/task").glob("*/syscall"):
            with suppress(OSError, IndexError):
                found += task.read_text().split()[0] == "5002"
    return found


def test_a_built_in_server_is_replaced(open_view: OpenView) -> None:
    view = open_view()
    view("insmod", "uname", "-o", "sysname=other")
    for _time in range(3):
        assert view.sh("uname").out == "other\n"
        kill(view.json("lsmod")["modules"][0]["server"])
        wait_until(lambda: view.json("lsmod")["modules"][0]["state"] == "mounted", "another has taken over")
    assert view.sh("uname").out == "other\n"


def test_a_supervisor_is_killed(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    view = open_view()
    view("insmod", module(COUNTING))
    kill(view.supervisor)
    assert view.sh(caller("print(call(5000, 3))")).out == "3\n"
    view("rmmod", "probe")
    assert view.sh(caller("print(outcome(5000, 3))")).out == "ENOSYS\n"


def test_a_server_that_hangs(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    view = open_view()
    view("insmod", module("@call(5000)\ndef hang(self, caller, *words):\n    time.sleep(1000)"), "-o", "deadline=1")
    assert view.sh(caller("print(outcome(5000))")).out == "EIO\n"
    assert "has not answered for 1 s" in view("log").out


@pytest.mark.parametrize(
    "lie",
    [
        "b'x'", "bytes(200_000)", "bytes(18)", "own.to_bytes(8, 'little') + b'\\0\\0' + bytes(8) + b'\\7'",
        "own.to_bytes(8, 'little') + b'\\1\\0' + (5000).to_bytes(8, 'little')",
        "own.to_bytes(8, 'little') + b'\\3\\0' + bytes(8)",
        "own.to_bytes(8, 'little') + b'\\4\\0' + bytes(8)",
        "own.to_bytes(8, 'little') + b'\\x08\\0' + bytes([0, 2]) + bytes(6) + b'\\0\\0' + bytes([1, 0, 0, 0]) + b'/'",
        "own.to_bytes(8, 'little') + b'\\0\\0' + bytes(8) + b'\\0\\0' + (9).to_bytes(4, 'little') + bytes(9)",
    ],
)  # fmt: skip
def test_a_server_that_lies(open_view: OpenView, module: WriteModule, caller: WriteCaller, lie: str) -> None:
    """It is told apart, and its module is gone; nobody else notices."""
    view = open_view()
    members = f"""
        @call(5000)
        def lie(self, caller, *words):
            import socket, stat, sys
            own = sys._getframe(1).f_locals["request"].id
            for fd in range(3, 100):
                try:
                    if stat.S_ISSOCK(os.fstat(fd).st_mode):
                        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
                        sock.send({lie})
                        sock.detach()
                except OSError:
                    pass
            time.sleep(0.5)
            return 1
    """
    view("insmod", module("@call(5001)\ndef other(self, caller, *words):\n    return 99", "older"))
    view("insmod", module(members))
    # (An answer to what nobody has asked may be one that a notifier before this one has given.)
    told = "1 1 99\n" if lie == "bytes(18)" else "EIO ENOSYS 99\n"
    assert view.sh(caller("print(outcome(5000), outcome(5000), outcome(5001))")).out == told
    notifier = process_called(view, "viewfs-notifier")
    assert view.sh(caller("print(outcome(5001))")).out == "99\n"
    assert process_called(view, "viewfs-notifier") == notifier


def test_the_end_of_a_session_with_calls_that_wait(
    open_view: OpenView, module: WriteModule, caller: WriteCaller
) -> None:
    view = open_view()
    view("insmod", module(COUNTING))
    with running(view, caller("print('begun', flush=True); call(5002, 600_000)")) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "begun\n"
        view.close()
        assert waiting.wait(SECONDS) != 0
