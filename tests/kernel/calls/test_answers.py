"""What a handler is given, and what the caller gets."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs

OpenView = Callable[..., View]
WriteModule = Callable[..., Path]
WriteCaller = Callable[[str], str]

MEMBERS = """
    @call(5000, "text in@2 size out@4 size int")
    def everything(self, caller, name, data, size, answer, room, number):
        assert (size, answer.size) == (len(data), min(room, 1 << 16))
        answer += f"{name}:{data.hex()}:{number}".encode()
        return len(answer)

    @call(5001, "int")
    def fails(self, caller, number):
        raise OSError(number, "as it was told")

    @call(5002)
    def breaks(self, caller, *words):
        return 1 // 0

    @call(5003, "out:8 text? in:4? out:4?")
    def overflows(self, caller, answer, text, data, more):
        answer += bytes(9)

    @call(5004)
    def who(self, caller, which, *words):
        return (caller.pid, caller.tid, caller.uid, caller.gid, caller.bits)[which]

    @call(5005, "out@1 size")
    def where(self, caller, answer, size):
        answer += os.fsencode(caller.cwd)
        return len(answer)

    @call(5006, "int")
    def pipe(self, caller, close_on_exec):
        reading, writing = os.pipe()
        os.write(writing, b"from the module")
        os.close(writing)
        self.kept = reading
        return Descriptor(reading, close_on_exec=bool(close_on_exec))

    @call(5007, "int")
    def file(self, caller, size):
        return File(bytes(size))

    @call(5008)
    def odd(self, caller, which, *words):
        return [1.5, "text", [], 1 << 70, Descriptor(999), GO_ON, None, True, -5][which]

    @call(5009, "int")
    async def sleep(self, caller, seconds):
        await trio.sleep(seconds)
        return 42

    @call(5010)
    async def stubborn(self, caller, *words):
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return 43
"""


@pytest.fixture
def view(open_view: OpenView, module: WriteModule) -> View:
    view = open_view()
    view("insmod", module(MEMBERS))
    return view


def test_memory(view: View, caller: WriteCaller) -> None:
    lines = """
        room = bytearray(40)
        size = call(5000, "näme", b"\\0\\1\\xff", 3, room, 40, -7)
        print(room[:size].decode(), room[size:].count(0) == 40 - size)
        print(outcome(5000, "n", b"", 0, bytearray(2), 2, 0), outcome(5000, "n", b"x", 1, None, 2, 0))
        print(outcome(5000, None, b"", 0, room, 40, 0), outcome(5000, 8, b"", 0, room, 40, 0))
        print(outcome(5000, "n", 8, 9, room, 40, 0), outcome(5000, "n", b"", 0, 8, 40, 0))
        print(outcome(5000, b"x" * 70000, b"", 0, room, 40, 0), outcome(5000, "n", b"", 0, room, 1 << 60, 0))
        big = os.urandom(60000)
        room = bytearray(130000)
        print(outcome(5000, "n", big, len(big), room, 65536, 0))
        print(outcome(5003, bytearray(8), None, None, None), outcome(5003, None, None, None, None))
    """
    assert view.sh(caller(lines)).out.splitlines() == [
        "näme:0001ff:-7 True",
        "EIO EFAULT",
        "EFAULT EFAULT",
        "EFAULT EFAULT",
        "ENAMETOOLONG 4",
        "EIO",
        "EIO EFAULT",
    ]


def test_errors_and_defects(view: View, caller: WriteCaller) -> None:
    lines = "print([outcome(5001, n) for n in (1, 38, 110, 512, 4096, 0, -3)])"
    assert view.sh(caller(lines)).out == "['EPERM', 'ENOSYS', 'ETIMEDOUT', 'EIO', 'EIO', 'EIO', 'EIO']\n"
    assert view.sh(caller("print(outcome(5002))")).out == "EIO\n"
    assert "ZeroDivisionError" in view("log").out and "probe.py" in view("log").out


def test_results(view: View, caller: WriteCaller) -> None:
    lines = "print([outcome(5008, number) for number in range(9)])"
    assert view.sh(caller(lines)).out == "['EIO', 'EIO', 'EIO', 'EIO', 'EBADF', 'ENOSYS', 0, 1, 'EIO']\n"


def test_who_calls(view: View, caller: WriteCaller, tmp_path: Path) -> None:
    lines = """
        def asks():
            found = [call(5004, which) for which in range(5)]
            print(found == [os.getpid(), threading.get_native_id(), os.getuid(), os.getgid(), 64])
        asks()
        thread = threading.Thread(target=asks); thread.start(); thread.join()
        os.chdir(sys.argv[1]); room = bytearray(4096); print(os.fsdecode(bytes(room[:call(5005, room, 4096)])))
    """
    assert view.sh(f"{caller(lines)} {tmp_path}").out == f"True\nTrue\n{tmp_path}\n"


def test_descriptors(view: View, caller: WriteCaller) -> None:
    lines = """
        for flag in (0, 1):
            fd = call(5006, flag)
            print(os.read(fd, 100), os.read(fd, 1), os.get_inheritable(fd) == (not flag))
        fd = call(5007, 10)
        print(os.fstat(fd).st_size, os.read(fd, 100), outcome(5007, 65536) > 2, outcome(5007, 65537))
        for attempt in (lambda: os.write(fd, b"x"), lambda: os.write(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"x")):
            try:
                attempt(); print("it can be changed")
            except OSError: pass
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd, fd)); os.dup2(0, fd - 1)
        print([outcome(5007, 1) for _number in range(3)][-1])
    """
    assert view.sh(caller(lines)).out.splitlines() == [
        "b'from the module' b'' True",
        "b'from the module' b'' True",
        f"10 {bytes(10)} True EIO",
        "EMFILE",
    ]


def test_signals(view: View, caller: WriteCaller) -> None:
    """A call that waits is interrupted, or goes on, as the handler says; one that can't be given up is not."""
    lines = """
        came = []
        signal.signal(signal.SIGALRM, lambda *_ignored: came.append(1))
        for restarts, number, argument in ((False, 5009, 20), (True, 5009, 1), (False, 5010, 0)):
            signal.siginterrupt(signal.SIGALRM, not restarts)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            print(outcome(number, argument), len(came))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        print(outcome(5009, 1), len(came))
    """
    assert view.sh(caller(lines)).out == "EINTR 1\n42 2\n43 3\n42 3\n"


def test_a_signal_for_another_thread(view: View, caller: WriteCaller) -> None:
    """It is the first thread's: one that waits in a call does not notice."""
    lines = """
        results = []
        thread = threading.Thread(target=lambda: results.append(outcome(5009, 1)))
        came = []
        signal.signal(signal.SIGALRM, lambda *_ignored: came.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        thread.start(); thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(results, len(came) > 3)
    """
    assert view.sh(caller(lines)).out == "[42] True\n"


def test_many_at_once(view: View, caller: WriteCaller) -> None:
    """Calls that wait hold up no others: 300 threads wait a second, and it takes about one."""
    lines = """
        threading.stack_size(1 << 16)
        results = []
        threads = [threading.Thread(target=lambda: results.append(call(5009, 2))) for _number in range(300)]
        began = time.monotonic()
        for thread in threads: thread.start()
        room = bytearray(4096)
        answered = call(5005, room, 4096)
        for thread in threads: thread.join()
        print(results == [42] * 300, time.monotonic() - began < 100, answered > 0)
    """
    assert view.sh(caller(lines)).out == "True True True\n"


def test_a_caller_that_is_killed(view: View, caller: WriteCaller) -> None:
    script = f"timeout -s KILL 0.3 {caller('call(5009, 60)')} || echo $?"
    assert view.sh(script).out == "137\n"
    assert view.sh(caller("print(call(5009, 0))")).out == "42\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="32-bit programs of x86")
def test_programs_of_32_bits(
    open_view: OpenView, module: WriteModule, compiled_32: Callable[[str], Path], tmp_path: Path
) -> None:
    members = """
        @call(5000, "text out@2 size off")
        def greet(self, caller, who, answer, size, number):
            answer += f"{who} {caller.bits}".encode()
            return len(answer)

        @call("open")
        def open(self, caller, path, flags, mode):
            return File(path.encode())

        @call("lstat")
        def lstat(self, caller, target, follow):
            size = 9 if target == "/small" else (1 << 33) + 7
            return Attributes(5, 0o100640, size=size, uid=70000, nlink=3, mtime_ns=1_600_000_000_500_000_000)

        @call("statfs")
        def statfs(self, caller, target):
            return FileSystemStatistics(512, 1 << 33, 7, 6, 5, 4, 3)

        @call("getdents64")
        def list(self, caller, fd, room):
            return [(9, 0o40000, "a"), (1 << 33, 0o100000, b"bcd")]

        @call("lseek")
        def lseek(self, caller, fd, offset, whence):
            return offset + (1 << 32)

        @call("time")
        def time(self, caller, clock):
            return 86400 * 10**9 + 7

        @call("pread")
        def pread(self, caller, fd, size, offset):
            return f"{offset}".encode()

        @call("uname")
        def uname(self, caller, name):
            name.machine = b"i386"

        def owns(self, caller, *arguments):
            return caller.bits == 32
    """
    view = open_view("--calls=open,lstat,time,pread,statfs,getdents64,lseek")
    view("insmod", module(members))
    source = """
    static char data[512];
    static void run(void) {
        int size = call(5000, (long)"me", (long)data, 100, 5, 0, 0);
        data[size] = 0; say_text(data);
        int fd = call(5, (long)"/nowhere/at/all", 0, 0, 0, 0, 0);
        size = call(3, fd, (long)data, 100, 0, 0, 0); data[size] = 0; say_text(data);
        say(call(195, (long)"/x", (long)data, 0, 0, 0, 0));
        say(*(long *)(data + 44)); say(*(long *)(data + 48)); say(*(unsigned *)(data + 24));
        say(*(unsigned *)(data + 72));
        say(*(unsigned *)(data + 76)); say(*(unsigned *)(data + 16));
        say(call(106, (long)"/x", (long)data, 0, 0, 0, 0));
        say(call(106, (long)"/small", (long)data, 0, 0, 0, 0)); say(*(unsigned *)(data + 20));
        say(*(unsigned short *)(data + 8)); say(*(unsigned *)(data + 40));
        say(call(268, (long)"/x", 84, (long)data, 0, 0, 0)); say(*(long *)(data + 4)); say(*(long *)(data + 12));
        say(*(long *)(data + 16)); say(*(long *)(data + 56));
        say(call(99, (long)"/x", (long)data, 0, 0, 0, 0)); say(*(long *)(data + 8) == -1); say(*(long *)(data + 36));
        say(call(220, 0, (long)data, 400, 0, 0, 0)); say(data[18]); say_text(data + 19); say_text(data + 24 + 19);
        say(call(141, 0, (long)data, 400, 0, 0, 0)); say_text(data + 10); say_text(data + 16 + 10); say(data[15]);
        say(call(140, 0, 1, 5, (long)data, 0, 0)); say(*(long *)data); say(*(long *)(data + 4));
        say(call(265, 0, (long)data, 0, 0, 0, 0)); say(*(int *)data); say(*(int *)(data + 4));
        say(call(403, 0, (long)data, 0, 0, 0, 0)); say(*(long *)data); say(*(long *)(data + 4));
        say(call(13, 0, 0, 0, 0, 0, 0));
        size = call(180, 0, (long)data, 100, 7, 1, 0); data[size] = 0; say_text(data);
        say(call(122, (long)data, 0, 0, 0, 0, 0)); say_text(data + 4 * 65);
    }
    """
    assert view.sh(str(compiled_32(source))).out.split() == [
        "me", "32", "/nowhere/at/all", "0", "7", "2", "70000", "1600000000", "500000000", str(0o100640),
        "-75",
        "0", "9", str(0o100640), "1600000000",
        "0", "512", "2", "7", "3",
        "0", "1", "3",
        "48", "4", "a", "bcd",
        "32", "a", "bcd", "4",
        "0", "5", "2",
        "0", "86400", "7", "0", "86400", "0", "86400", str((1 << 32) + 7), "0", "i386",
    ]  # fmt: skip
    assert os.path.exists(tmp_path)


@pytest.mark.parametrize("number", ["ENOSYS", "EPERM"])
def test_where_a_sandbox_forbids_to_read_memory(
    viewfs: Viewfs, module: WriteModule, tmp_path: Path, number: str
) -> None:
    """As Docker and Kubernetes do, which leave /proc/PID/mem alone."""
    (tmp_path / "sandboxed.py").write_text(f"""
import errno, os, sys
from viewfs.linux.process import no_new_privileges
from viewfs.linux.seccomp import ALLOW, compile_filter, deny, install_filter

no_new_privileges()
calls = ("process_vm_readv", "process_vm_writev")
install_filter(compile_filter(dict.fromkeys(calls, deny(errno.{number})), ALLOW))
os.execvp(sys.argv[1], sys.argv[1:])
""")
    members = """
        @call("open")
        def open(self, caller, path, flags, mode):
            return File(path.encode())

        @call(5000, "out@1 size")
        def tell(self, caller, answer, size):
            answer += b"told"
            return 4
    """
    viewfs.command = [sys.executable, str(tmp_path / "sandboxed.py"), "viewfs"]
    (tmp_path / "real").write_text(" real ")
    (tmp_path / "tell.py").write_text(
        "import viewfs\nroom = bytearray(9)\nviewfs.call(5000, room, 9)\nprint(room[:4])\n"
    )
    opening, telling = members.split("\n\n")
    one, two = module(opening, "opening"), module(telling, "telling")
    script = f"""
        viewfs insmod {one} {tmp_path}/place; viewfs insmod {two}
        cat {tmp_path}/place/x {tmp_path}/real; python3 {tmp_path}/tell.py
    """
    assert viewfs.sh("--calls=open", script=script).out == f"{tmp_path}/place/x real bytearray(b'told')\n"
