"""What callers can do to a notifier, to modules and to each other, and what modules do wrong: it stays theirs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.calls.test_processes_that_die import process_called, running
from tests.kernel.conftest import View, Viewfs, kill, session_processes, wait_until
from viewfs.linux.signatures import FAMILIES

OpenView = Callable[..., View]
WriteModule = Callable[..., Path]
WriteCaller = Callable[[str], str]

GOES_ON = "\n".join(
    f"@call({family!r})\ndef on_{family}(self, caller, *arguments):\n    return GO_ON" for family in FAMILIES
)
WAITS = """
    begun = cancelled = 0

    @call(5003)
    def has_begun(self, caller, *words):
        return self.begun

    @call(5000, "int")
    async def wait(self, caller, milliseconds):
        self.begun += 1
        try:
            await trio.sleep(milliseconds / 1000)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return 42

    @call(5001)
    def told(self, caller, *words):
        return self.cancelled
"""


def test_memory_of_a_server_that_hangs(
    open_view: OpenView, module: WriteModule, caller: WriteCaller, tmp_path: Path
) -> None:
    """It is waited for by its caller alone: not by the notifier, and not by others."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/file").write_bytes(b"text\0" + bytes(5000))
    view = open_view()
    members = """
        @call(5000, "text out@2 size")
        def size(self, caller, text, out, room):
            out += b"x"
            return len(text)
    """
    view("insmod", module(members))
    lines = """
        import mmap
        file = open(sys.argv[1], "r+b")
        memory = mmap.mmap(file.fileno(), 5000)
        room = bytearray(4)
        print("ready", flush=True); sys.stdin.readline()
        print(call(5000, "abc", memory, 4), flush=True)
    """
    view.sh(f"bindfs {tmp_path}/in {tmp_path}/out")
    (server,) = [pid for pid, comm in session_processes(tmp_path).items() if comm == "bindfs"]
    command = ["viewfs", "enter", view.name, "--", "sh", "-c", f"{caller(lines)} {tmp_path}/out/file"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=view.viewfs.environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(server, 19)
        process.stdin.write("\n")
        process.stdin.flush()
        others = caller("room = bytearray(4); print([call(5000, 'x' * n, room, 4) for n in range(3)])")
        assert view.sh(f"{others}; uname").out == "[0, 1, 2]\nLinux\n"
        os.kill(server, 18)
        assert process.stdout.readline() == "3\n"
        process.stdin.close()
    view.sh(f"umount {tmp_path}/out")


def test_callers_that_are_killed(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    """Their handlers are cancelled, and nothing is kept for them."""
    view = open_view()
    view("insmod", module(WAITS))
    lines = """
        children = []
        for _number in range(60):
            child = os.fork()
            if child == 0:
                outcome(5000, 600_000); os._exit(0)
            children.append(child)
        while call(5003) < 60: time.sleep(0.01)
        for child in children: os.kill(child, signal.SIGKILL)
        for child in children: os.waitpid(child, 0)
    """
    view.sh(caller(lines))
    wait_until(lambda: view.sh(caller("print(call(5001))")).out == "60\n", "all handlers were cancelled")


def test_too_many_calls_of_one_module(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    """It has a quarter of the places; others are answered meanwhile."""
    view = open_view()
    view("insmod", module(WAITS))
    view("insmod", module("@call(5002)\ndef other(self, caller, *words):\n    return 7", "other"))
    lines = """
        threading.stack_size(1 << 16)
        results = []
        threads = [threading.Thread(target=lambda: results.append(outcome(5000, 4000))) for _number in range(1100)]
        for thread in threads: thread.start()
        print(call(5002), os.uname().sysname)
        for thread in threads: thread.join()
        print(results.count(42) >= 1000, results.count(42) + results.count("EAGAIN"))
    """
    assert view.sh(caller(lines)).out == "7 Linux\nTrue 1100\n"


def test_one_signal_for_several_threads(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    """Whose it is can't be told: some are interrupted, and nobody sees the kernel's own errnos."""
    view = open_view()
    view("insmod", module(WAITS))
    lines = """
        came, results = [], []
        signal.signal(signal.SIGUSR1, lambda *_ignored: came.append(1))
        signal.siginterrupt(signal.SIGUSR1, False)
        threads = [threading.Thread(target=lambda: results.append(outcome(5000, 3000))) for _number in range(4)]
        for thread in threads: thread.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        while call(5003) < 4: time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        for thread in threads: thread.join()
        print("EINTR" in results, set(results) <= {42, "EINTR"}, len(results))
    """
    assert view.sh(caller(lines)).out == "True True 4\n"


def test_what_a_module_that_lets_go_does_not_change(
    open_view: OpenView, module: WriteModule, caller: WriteCaller, tmp_path: Path
) -> None:
    """Null pointers, sizes that are too large, memory that is not there: the kernel says what it says without."""
    lines = """
        from viewfs.linux.numbers import syscall_number as number
        fd = os.open("/etc/passwd", os.O_RDONLY); null = os.open("/dev/null", os.O_WRONLY)
        def show(name, *arguments): print(name, arguments, outcome(number(name), *arguments))
        for name in ("read", "write", "pread64", "pwrite64"): show(name, fd if "r" == name[-1] else null, None, 0, 0)
        for name in ("readv", "writev"): show(name, null, None, 0); show(name, 99, 8, 1); show(name, null, 8, -1)
        show("statx", fd, None, 0x1000, 0x7FF, bytearray(256)); show("newfstatat", fd, None, bytearray(144), 0x1000)
        show("newfstatat", -100, None, bytearray(144), 0); show("openat2", -100, "/", bytearray(4), 4)
        show("openat2", -100, "/", bytearray(24), 100_000); show("write", 99, 8, 5); show("write", null, 8, 5)
        show("getdents64", 99, 0, 0); show("readlink", "/proc/self", None, 0); show("read", fd, 8, 5)
        show("setxattr", "/etc/passwd", "user.x", bytes(70_000), 70_000, 0); show("open", None, 0); show("open", 8, 0)
        show("open", "x" * 5000, 0); show("stat", "/none", 8); show("uname", None); show("uname", 8)
        show("execve", "/none", 8, None); show("utimensat", -100, None, None, 0)
        os.write(null, bytes(200_000)); print(os.spawnl(os.P_WAIT, "/bin/true", *["x" * 1000] * 100))
    """
    view = open_view("--calls=all,close")
    command = caller(lines)
    before = view.sh(command).out
    view("insmod", module(GOES_ON + '\n@call("uname")\ndef uname(self, caller, name):\n    return GO_ON\n'))
    assert view.sh(command).out == before and len(before.splitlines()) > 25
    assert view("log").out == ""


def test_programs_that_can_not_be_read(open_view: OpenView, module: WriteModule, tmp_path: Path) -> None:
    """And commands that the session starts itself, whose memory nobody may read."""
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o111)
    view = open_view("--calls=all")
    names = ("exec", "open")
    members = (f"@call({name!r})\ndef on_{name}(self, caller, *arguments):\n    return GO_ON" for name in names)
    view("insmod", module("\n".join(members)))
    assert view.sh(f"{program}; echo $?; viewfs at 0 -- echo there").out == "0\nthere\n"


def test_a_module_of_many_calls(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    members = "\n".join(f"@call({5000 + n})\ndef c{n}(self, caller, *words):\n    return {n}" for n in range(300))
    view = open_view()
    view("insmod", module(members))
    assert view.sh(caller("print([call(5000 + n) for n in (0, 63, 64, 255, 256, 299)])")).out == (
        "[0, 63, 64, 255, 256, 299]\n"
    )
    assert view.json("lsmod")["modules"][0]["requests"]["others"] == 5


def test_all_that_a_call_can_take(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    members = """
        @call(5000, "text text text text text text")
        def six(self, caller, *texts):
            return sum(map(len, texts))

        @call(5001, "out@1 size out@3 size out@5 size")
        def outs(self, caller, one, a, two, b, three, c):
            for answer in (one, two, three):
                answer += bytes(answer.size)
            return a + b + c

        @call("exec")
        def exec(self, caller, path, arguments, environment):
            return GO_ON
    """
    view = open_view("--calls=exec")
    view("insmod", module(members))
    lines = """
        print(call(5000, *[b"x" * 65_000] * 6))
        rooms = [bytearray(65536) for _number in range(3)]
        print(call(5001, rooms[0], 65536, rooms[1], 65536, rooms[2], 65536))
        environment = {f"VARIABLE_{n}": "y" * 1000 for n in range(100)}
        print(os.spawnve(os.P_WAIT, "/bin/true", ["x" * 1000] * 100, environment))
    """
    assert view.sh(caller(lines)).out == "390000\n196608\n0\n"


def test_it_is_not_begun_twice(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    """A notifier is killed while a handler is at work, and then its server is replaced."""
    members = """
        @call(5000)
        def slow(self, caller, *words):
            print("begun", file=__import__("sys").stderr, flush=True)
            time.sleep(2)
            return 1
    """
    view = open_view()
    view("insmod", module(members))
    with running(view, caller("print(outcome(5000))")) as waiting:
        wait_until(lambda: "begun" in view("log").out, "the handler has begun")
        notifier = process_called(view, "viewfs-notifier")
        assert notifier is not None
        kill(notifier)
        wait_until(lambda: process_called(view, "viewfs-notifier") not in (None, notifier), "there is another")
        view("restart", "probe")
        assert waiting.stdout is not None and waiting.stdout.read() == "EIO\n"
    assert view("log").out.count("begun") == 1


def test_a_place_with_links(open_view: OpenView, module: WriteModule, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").touch()
    (tmp_path / "link").symlink_to("real")
    view = open_view("--calls=open")
    view(
        "insmod",
        module('@call("open")\ndef open(self, caller, path, *flags):\n    return File(b"x")'),
        tmp_path / "link",
    )
    script = f"cd {tmp_path}; cat link/file real/file; cd link; cat file ./file $PWD/file"
    assert view.sh(script).out == "xxxxx"


def test_a_mount_where_viewfs_serves(viewfs: Viewfs, tmp_path: Path) -> None:
    (tmp_path / "tree/place").mkdir(parents=True)
    script = f"cd {tmp_path}/tree; mount -t tmpfs none place && stat -f -c %T place"
    assert viewfs.sh("--cow", tmp_path / "tree", "--cow-backend", "fuse", script=script).out == "tmpfs\n"


@pytest.mark.parametrize(
    "options", ["time -o offset=1e30", "time -o rate=-1", "time -o rate=1e300", "time -o offset=1e300"]
)
def test_options_that_can_not_be(viewfs: Viewfs, options: str) -> None:
    done = viewfs("run", "--calls=time", "--", "viewfs", "insmod", *options.split(), check=False)
    assert done.code == 2 and len(done.err.splitlines()) == 1


def test_names_that_are_no_text(open_view: OpenView) -> None:
    view = open_view()
    assert view.sh("viewfs insmod uname -o release=$(printf '\\377'); uname -r | od -An -tx1").out.strip() == "ff 0a"
