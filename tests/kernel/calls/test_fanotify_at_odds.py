"""Groups of fanotify(7) whose programs are killed, interrupted or careless, and mounts that come in between."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.calls.fanotify_client import CLIENT
from tests.kernel.conftest import View

Run = Callable[..., list[str]]


@pytest.fixture
def run(open_view: Callable[..., View], tmp_path: Path) -> Run:
    """Run lines of Python with `CLIENT` in a view that has the module and a directory `d`; what they print."""
    (tmp_path / "d").mkdir()
    view = open_view("--load", "fanotify")

    def lines(text: str) -> list[str]:
        program = tmp_path / "program.py"
        program.write_text(f"{CLIENT}\nos.chdir({str(tmp_path)!r})\n{textwrap.dedent(text)}")
        return view.sh(f"{sys.executable} {program}").out.splitlines()

    return lines


def test_many_questions_at_once(run: Run) -> None:
    """The server hears answers and calls at the same time."""
    assert run("""
        for name in "abcd": open(f"d/{name}", "w").write("text")
        group = init(CONTENT); mark(group, "d", OPEN_PERM | ACCESS_PERM | ON_CHILD)
        def answer():
            while True:
                data = os.read(group, 4096)
                for at in range(0, len(data), 24):
                    fd, = struct.unpack_from("=16xi", data, at); respond(group, fd, True); os.close(fd)
        in_thread(answer)
        script = "i=0; while [ $i -lt 40 ]; do read word < d/%s; i=$((i+1)); done; echo $word"
        readers = [subprocess.Popen(["sh", "-c", script % name], stdout=-1, text=True) for name in "abcd"]
        print(*(reader.communicate(timeout=100)[0].strip() for reader in readers))
    """) == ["text text text text"]  # fmt: skip


def test_a_listener_that_is_killed_while_it_reads(run: Run) -> None:
    """Whatever it was about to be given is allowed."""
    assert run("""
        open("d/x", "w").write("text")
        listener = '''
        group = init(CONTENT); mark(group, "d", OPEN_PERM | ON_CHILD); print("ready", flush=True)
        while True: os.read(group, 4096)
        '''
        import textwrap
        program = open(sys.argv[0]).read().split("os.chdir")[0] + textwrap.dedent(listener)
        codes = []
        for number in range(8):
            listening = subprocess.Popen([sys.executable, "-c", program], stdout=-1, text=True)
            listening.stdout.readline()
            readers = [subprocess.Popen(["cat", "d/x"], stdout=-3) for _each in range(3)]
            time.sleep(0.01 * number); listening.kill(); listening.wait()
            codes += [reader.wait(60) for reader in readers]
        print(set(codes))
    """) == ["{0}"]  # fmt: skip


def test_descriptors_that_are_closed_without_an_answer(run: Run) -> None:
    """The next question has the same number: an answer is for the older, and all are allowed at the end."""
    assert run("""
        for name in "abc": open(f"d/{name}", "w")
        group = init(CONTENT); mark(group, "d", OPEN_PERM | ON_CHILD)
        readers = [subprocess.Popen(["cat", f"d/{name}"], stderr=-3) for name in "abc"]
        numbers, pids = [], []
        for _reader in readers:
            mask, fd, pid = one(group); os.close(fd); numbers.append(fd); pids.append(pid)
        print(len(set(numbers)), respond(group, numbers[0], False))
        print(next(reader for reader in readers if reader.pid == pids[0]).wait(60)); os.close(group)
        print(sorted(reader.wait(60) for reader in readers))
    """) == ["1 8", "1", "[0, 0, 1]"]  # fmt: skip


def test_signals_of_who_waits(run: Run) -> None:
    """One that has a handler waits for the answer, and one that kills does not."""
    assert run("""
        open("d/x", "w")
        group = init(CONTENT); mark(group, "d", OPEN_PERM | ON_CHILD)
        def program(what):
            return subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(14, lambda *_ignored: None);"
                "signal.alarm(1); " + what], stdout=-1, text=True)
        def wait_for_alarm(pid):
            pending = 0
            while not pending >> signal.SIGALRM - 1 & 1:
                time.sleep(0.01)
                lines = open(f"/proc/{pid}/status").read().splitlines()
                pending = sum(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd"))
        waiting = program("print(open('d/x').read() == '')")
        mask, fd, pid = one(group); wait_for_alarm(pid); print(waiting.poll(), respond(group, fd, True))
        print(waiting.communicate(timeout=60)[0].strip()); os.close(fd)
        waiting = program("open('d/x')"); one(group); wait_for_alarm(waiting.pid); waiting.kill()
        print(waiting.wait(60))
    """) == ["None 8", "True", "-9"]  # fmt: skip


def test_mounts_over_what_is_watched(run: Run) -> None:
    """When the marks are gone, what the user has mounted there stays."""
    assert run("""
        os.makedirs("b/w")
        for name in ("d", "b/w"):
            group = init(); mark(group, name, OPEN)
            if name == "b/w":
                os.rename("b", "c"); os.makedirs("b/w")
            subprocess.run(["mount", "-t", "tmpfs", "none", name], check=True)
            open(f"{name}/precious", "w").write("text"); os.close(group); time.sleep(0.5)
            print(open(f"{name}/precious").read(), subprocess.run(["umount", name]).returncode)
    """) == ["text 0", "text 0"]  # fmt: skip


def test_links_of_proc(run: Run) -> None:
    """They lead to what the caller has; and to open one of a group makes no second descriptor of it."""
    assert run("""
        open("d/x", "w").close(); group = init()
        file, directory = os.open("d/x", os.O_RDONLY), os.open("d", os.O_RDONLY)
        pid = os.getpid()
        for path in (f"/proc/self/fd/{file}", f"/proc/{pid}/fd/{file}", f"/dev/fd/{file}", "/proc/self/cwd/d/x"):
            print(mark(group, path, OPEN), end=" ")
        print(mark(group, "x", OPEN, directory=directory), mark(group, None, OPEN, directory=file))
        try: open(f"/proc/self/fd/{group}")
        except OSError as error: print(errno.errorcode[error.errno])
        open("d/x"); print(len(events(group)))
    """) == ["0 0 0 0 0 0", "ENXIO", "1"]  # fmt: skip


def test_what_makes_no_modify_event(run: Run) -> None:
    """As in the kernel: writing to a mapping, and truncate(2)."""
    assert run("""
        import mmap
        open("d/x", "w").write("text" * 1000)
        group = init(); mark(group, "d", MODIFY | ON_CHILD)
        with open("d/x", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[:4] = b"TEXT"; memory.flush()
        os.truncate("d/x", 8); print(events(group)); open("d/x", "a").write("more"); print(len(events(group)))
    """) == ["[]", "1"]  # fmt: skip


def test_a_group_that_is_closed_while_it_is_read(run: Run) -> None:
    assert run("""
        group = init(0); said = []
        def read():
            try: os.read(group, 100)
            except OSError as error: said.append(errno.errorcode[error.errno])
        thread = in_thread(read); time.sleep(0.3); os.close(group); thread.join(60); print(said)
    """) == ["['EBADF']"]  # fmt: skip
