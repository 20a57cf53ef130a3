"""fanotify(7) for programs of an ordinary user: groups that report descriptors, and are asked."""

from __future__ import annotations

import platform
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.calls.fanotify_client import CLIENT
from tests.kernel.conftest import View, wait_until

OpenView = Callable[..., View]
Run = Callable[..., list[str]]


@pytest.fixture
def run(open_view: OpenView, tmp_path: Path) -> Run:
    """Run lines of Python with `CLIENT` in a view that has the module and a directory `d`; what they print. `view`: in
    that one."""
    (tmp_path / "d").mkdir()
    ours: list[View] = []

    def lines(text: str, view: View | None = None, *, check: bool = True) -> list[str]:
        if view is None and not ours:
            ours.append(open_view("--load", "fanotify"))
        program = tmp_path / "program.py"
        program.write_text(f"{CLIENT}\nos.chdir({str(tmp_path)!r})\n{textwrap.dedent(text)}")
        return (view or ours[0]).sh(f"{sys.executable} {program}", check=check).out.splitlines()

    return lines


def test_what_another_program_does(run: Run) -> None:
    assert run("""
        group = init()
        print(mark(group, "d", ALL | ON_CHILD | ONDIR))
        done = subprocess.Popen(["sh", "-c", "echo hello > d/x; read word < d/x; exec /bin/ls d"], stdout=-3)
        done.wait()
        for names, pid, path in events(group):
            print(names, pid == done.pid, os.path.relpath(path))
        print(events(group))
    """) == [
        "0",
        "access+modify+close_write+close+open True d/x",
        "access+close+open True d",
        "[]",
    ]  # fmt: skip


def test_without_the_module_it_is_refused(open_view: OpenView, run: Run) -> None:
    """And with it, it acts at once on what runs already."""
    view = open_view()
    assert run("print(init(), init(CONTENT), init(FID))", view)[0].startswith("EPERM EPERM ")
    view("insmod", "fanotify")
    assert run("print(init() >= 960, init(CONTENT) >= 960)", view) == ["True True"]
    view("rmmod", "fanotify")
    assert run("print(init())", view) == ["EPERM"]


def test_being_asked(run: Run) -> None:
    """Opening, reading and executing wait for the answer."""
    assert run("""
        open("d/secret", "w").write("text"); open("d/plain", "w").write("text")
        open("d/tool", "w").write("#!/bin/sh\\necho ran"); os.chmod("d/tool", 0o755)
        group = init(CONTENT)
        mark(group, "d", OPEN_PERM | OPEN_EXEC_PERM | ON_CHILD)

        def answer(count):
            for _each in range(count):
                mask, fd, pid = one(group)
                name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
                respond(group, fd, name != "secret" and mask != OPEN_EXEC_PERM)
                os.close(fd)

        def cat(path):
            return subprocess.run(["cat", path], capture_output=True, text=True)

        in_thread(lambda: answer(10))
        print(cat("d/plain").stdout, cat("d/secret").stderr.strip())
        print(subprocess.run(["sh", "-c", "./d/tool; echo $?"], capture_output=True, text=True).stdout.strip())
        mark(group, "d", OPEN_PERM | OPEN_EXEC_PERM | ON_CHILD, REMOVE)
        group = init(CONTENT); mark(group, "d/plain", ACCESS_PERM)
        def refuse():
            mask, fd, pid = one(group)
            print(mask == ACCESS_PERM, os.read(fd, 9), respond(group, fd, False)); os.close(fd)
        thread = in_thread(refuse); print(cat("d/plain").stderr.strip()); thread.join(20)
    """) == [
        "text cat: d/secret: Operation not permitted",
        "126",
        "True b'text' 8",
        "cat: d/plain: Operation not permitted",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["os.close(group)", "os.kill(os.getpid(), 9)"])
def test_nobody_waits_for_who_is_gone(run: Run, open_view: OpenView, tmp_path: Path, how: str) -> None:
    view = open_view("--load", "fanotify")
    run(
        f"""
        open("d/file", "w").write("text")
        group = init(CONTENT)
        mark(group, "d", OPEN_PERM | ON_CHILD)
        waiting = subprocess.Popen(["sh", "-c", "cat d/file > said; cat d/file > again"])
        one(group)
        {how}
        waiting.wait()
        """,
        view,
        check=False,
    )
    wait_until(lambda: (tmp_path / "again").exists() and (tmp_path / "again").read_text() == "text", "both are allowed")


def test_waiting_for_events(run: Run) -> None:
    """A blocking read, poll(2), epoll(7), FIONREAD, and a signal in between."""
    assert run("""
        group = init(0); free = init()
        for one_group in (group, free):
            mark(one_group, "d", OPEN | ON_CHILD)
        def later():
            time.sleep(0.2); open("d/x", "w")
        try: os.read(free, 24)
        except BlockingIOError: print("nothing")
        in_thread(later); mask, fd, pid = one(group); print(mask == OPEN, pid == os.getpid()); os.close(fd)
        waiting = array.array("i", [0]); fcntl.ioctl(free, 0x541B, waiting); print(waiting[0])
        poll = select.poll(); poll.register(group, select.POLLIN); print(poll.poll(0))
        in_thread(later); print(len(poll.poll(20_000)), len(select.select([group], [], [], 20)[0])); one(group)
        epoll = select.epoll(); epoll.register(group, select.EPOLLIN)
        in_thread(later); print(len(epoll.poll(20))); one(group)
        signal.signal(signal.SIGALRM, lambda *_ignored: 1 / 0); signal.setitimer(signal.ITIMER_REAL, 0.2)
        try: os.read(group, 24)
        except ZeroDivisionError: print("interrupted")
        try: os.read(free, 23)
        except OSError as error: print(errno.errorcode[error.errno])
    """) == ["nothing", "True True", "24", "[]", "1 1", "1", "interrupted", "EINVAL"]  # fmt: skip


def test_marks_of_every_kind(run: Run) -> None:
    assert run("""
        subprocess.run("mkdir m && mount -t tmpfs none m && mkdir m/a m/b && echo 1 > m/a/f && echo 1 > m/b/f",
                       shell=True, check=True)
        def touched(group, *paths):
            for path in paths: open(path).close()
            return sorted(os.path.relpath(path, "m") for _names, _pid, path in events(group))
        for kind in (MOUNT, FILESYSTEM):
            group = init()
            print(mark(group, "m/a", OPEN, ADD | kind), touched(group, "m/a/f", "m/b/f"))
            print(mark(group, "m/b/f", OPEN, ADD | IGNORED), touched(group, "m/a/f", "m/b/f"))
            open("m/b/f", "a").write("more"); events(group)
            print(touched(group, "m/a/f", "m/b/f"))
            mark(group, "m/b/f", OPEN, ADD | IGNORED | SURVIVES); open("m/b/f", "a").write("more"); events(group)
            print(touched(group, "m/a/f", "m/b/f"), mark(group, "m/b", OPEN, REMOVE | kind), touched(group, "m/a/f"))
            print(mark(group, "m/b", OPEN, REMOVE | kind), mark(group, None, 0, FLUSH | kind)); os.close(group)
        group = init(); mark(group, "m/a", OPEN | ON_CHILD | ONDIR); os.listdir("m/b")
        print(touched(group, "m/a/f", "m/b/f"), os.listdir("m/a"), touched(group))
        os.close(group)
        print(subprocess.run(["umount", "m"]).returncode)
    """) == [
        *("0 ['a/f', 'b/f']", "0 ['a/f']", "['a/f', 'b/f']", "['a/f'] 0 []", "ENOENT 0") * 2,
        "['a/f'] ['f'] ['a']",
        "0",
    ]  # fmt: skip


def test_what_is_refused(run: Run) -> None:
    """As in the kernel."""
    assert run("""
        group = init()
        print(init(0x8000), init(CONTENT | PRE_CONTENT), init(PIDFD | TID), init(CONTENT | FID), init(0, 3))
        print(mark(group, "d", 0), mark(group, "d", OPEN_PERM), mark(group, "d", OPEN, ADD | REMOVE))
        print(mark(group, "d", 1 << 33), mark(group, "missing", OPEN), mark(group, "d", 0x100))
        print(mark(group, "d", OPEN, ADD | IGNORE), mark(group, "d", OPEN, ADD | MOUNT | IGNORE))
        open("d/x", "w"); print(mark(group, "d/x", OPEN, ADD | 8), mark(group, "d/x", OPEN, REMOVE))
        print(mark(0, "d", OPEN), mark(987, "d", OPEN), mark(group, "/proc", OPEN), mark(group, "/", OPEN, ADD | MOUNT))
        pipe, _end = os.pipe(); print(mark(group, None, OPEN, ADD | MOUNT, pipe), mark(group, None, OPEN, ADD, pipe))
        asked = init(CONTENT | NONBLOCK)
        for answer in (struct.pack("=iI", 99, 1), struct.pack("=iI", -1, 1), struct.pack("=iI", 99, 7), b"short"):
            try: os.write(asked, answer)
            except OSError as error: print(errno.errorcode[error.errno], end=" ")
    """) == [
        "EINVAL EINVAL EINVAL EINVAL EINVAL",
        "EINVAL EINVAL EINVAL",
        "EINVAL ENOENT EINVAL",
        "EISDIR EINVAL",
        "ENOTDIR ENOENT",
        "EINVAL EBADF ENOTSUP ENOTSUP",
        "EINVAL 0",
        "ENOENT EINVAL EINVAL EINVAL ",
    ]  # fmt: skip


def test_what_a_reader_has_no_room_for(run: Run) -> None:
    """The event is lost, as in the kernel, and those after it are not; and a question that nobody can be given is
    answered with no."""
    assert run("""
        import resource
        group = init(); mark(group, "d", OPEN | ON_CHILD)
        for name in "abcdef": open(f"d/{name}", "w").close()
        filler = [os.dup(0) for _each in range(3)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler) + 3, 4096))
        data = os.read(group, 4096); fds = [struct.unpack_from("=16xi", data, at)[0] for at in range(0, len(data), 24)]
        print(len(fds))
        try: os.read(group, 4096)
        except OSError as error: print(errno.errorcode[error.errno])
        for fd in fds: os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        print([os.path.basename(path) for _names, _pid, path in events(group)])
    """) == ["2", "EMFILE", "['e', 'f']"]  # fmt: skip


def test_a_descriptor_needs_a_number(run: Run) -> None:
    """Numbers below 1024 have to be allowed, and there are 64 of them."""
    assert run("""
        import resource
        groups = [init() for _each in range(65)]
        print(groups[0], groups[63], groups[64]); [os.close(group) for group in groups[:64]]
        print(init() in range(960, 1024))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096)); print(init())
    """) == ["960 1023 EMFILE", "True", "EMFILE"]  # fmt: skip


def test_a_watched_directory_is_as_it_was(run: Run) -> None:
    """Names, links, mappings, locks and attributes; what was there before can be seen, and what is made stays."""
    assert run("""
        import mmap
        open("d/before", "w").write("before")
        group = init(); mark(group, "d", ALL | ON_CHILD)
        os.mkdir("d/sub"); os.rename("d/before", "d/sub/after"); os.symlink("sub/after", "d/link")
        os.link("d/sub/after", "d/hard"); print(open("d/link").read(), os.stat("d/hard").st_nlink)
        os.truncate("d/hard", 3); os.chmod("d/hard", 0o600); os.setxattr("d/hard", "user.k", b"v")
        with open("d/hard", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[:3] = b"new"; memory.flush(); fcntl.flock(file, fcntl.LOCK_EX)
        os.mkfifo("d/fifo"); os.remove("d/fifo")
        for _time in range(2):
            print(sorted(os.listdir("d")), open("d/sub/after").read(), oct(os.stat("d/hard").st_mode),
                  os.getxattr("d/hard", "user.k"))
            os.close(group)
            group = init()
    """) == ["before 2", *["['hard', 'link', 'sub'] new 0o100600 b'v'"] * 2]  # fmt: skip


def test_it_comes_and_goes(run: Run, open_view: OpenView, tmp_path: Path) -> None:
    """Nothing lies over a directory any more once nobody has a mark in it; and if the module's server is killed, its
    directories are as before."""
    view = open_view("--load", "fanotify")
    run(
        'group = init(); mark(group, "d", OPEN); print(open("/proc/self/mountinfo").read().count("viewfs-fanotify"))',
        view,
    )
    wait_until(lambda: str(tmp_path / "d") not in view("lsmod").out, "nothing is watched any more")
    (tmp_path / "d/file").write_text("text")
    lines = run(
        """
        import json
        group = init(); mark(group, "d", OPEN | ON_CHILD)
        modules = json.loads(subprocess.run(["viewfs", "lsmod", "--json"], capture_output=True, check=True).stdout)
        os.kill(next(one["server"] for one in modules["modules"] if one["module"] == "fanotify"), 9)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                print(open("d/file").read()); break
            except OSError: time.sleep(0.05)
        while (group := init()) == "EIO" and time.monotonic() < deadline: time.sleep(0.05)
        print(mark(group, "d", OPEN | ON_CHILD)); open("d/file"); print(len(events(group)))
        """,
        view,
    )
    assert lines == ["text", "0", "1"]


def test_programs_with_directories_from_before(run: Run, open_view: OpenView) -> None:
    """A working directory leads below what watches. With the calls themselves notified, groups are told of these."""
    lines = """
        os.chdir("d"); [os.remove(name) for name in os.listdir()]
        open("old", "w").write("text")
        kept = open("old")
        group = init(); mark(group, ".", ALL | ON_CHILD)
        open("new", "w").close(); open("old").read(); kept.read(); kept.close()
        found = {}
        for names, pid, path in events(group):
            found.setdefault(os.path.basename(path), set()).update(names.split("+"))
        print({name: sorted(said) for name, said in sorted(found.items())})
    """
    assert run(lines, open_view("--load", "fanotify", name="plain")) == ["{}"]
    view = open_view("--calls=open,read,write,close,exec", "--load", "fanotify")
    seen = run(lines, view)
    assert seen == ["{'new': ['close_write', 'open'], 'old': ['access', 'close', 'open']}"]
    asked = """
        os.chdir("d"); open("secret", "w").write("text")
        group = init(CONTENT); mark(group, ".", OPEN_PERM | ON_CHILD)
        def refuse():
            mask, fd, pid = one(group); respond(group, fd, False)
        in_thread(refuse)
        print(subprocess.run(["cat", "secret"], capture_output=True, text=True).stderr.strip())
    """
    assert run(asked, view) == ["cat: secret: Operation not permitted"]


def test_what_proc_says_of_a_group(run: Run, open_view: OpenView) -> None:
    """proc_pid_fdinfo(5), in views where open(2) is notified."""
    view = open_view("--calls=open", "--load", "fanotify")
    lines = run(
        """
        group = init(); mark(group, "d", OPEN | ON_CHILD); mark(group, "d", MODIFY, ADD | IGNORED | SURVIVES)
        status = os.stat("d")
        told = open(f"/proc/self/fdinfo/{group}").read().splitlines()
        print(told[0].split()[0], told[-2]); print(told[-1].split("mflags")[1])
        """,
        view,
    )
    assert lines == ["pos: fanotify flags:2 event-flags:0", ": 40 mask:8000020 ignored_mask:2 "]


def test_groups_that_report_handles_are_the_kernels(run: Run, open_view: OpenView) -> None:
    """Marks on mounts and file systems that were made in the view work too."""
    lines = """
        os.mkdir("m"); subprocess.run(["mount", "-t", "tmpfs", "none", "m"], check=True)
        group = init(FID | NONBLOCK)
        print(os.readlink(f"/proc/self/fd/{group}"), mark(group, "m", OPEN, ADD | FILESYSTEM))
        open("m/x", "w").close(); print(len(os.read(group, 4096)) > 24)
        print(mark(group, "m", OPEN, ADD | MOUNT), mark(group, "/usr", OPEN, ADD | FILESYSTEM))
    """
    view = open_view("--as-root")
    found = run(lines, view)
    if found[0].endswith("EPERM"):
        pytest.skip("this kernel lets nobody but the machine's administrator have such marks")
    assert found == ["anon_inode:[fanotify] 0", "True", "0 EPERM"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="32-bit programs of x86")
def test_programs_of_32_bits(open_view: OpenView, compiled_32: Callable[[str], Path], tmp_path: Path) -> None:
    """The mask of fanotify_mark is two words there."""
    (tmp_path / "d").mkdir()
    program = compiled_32(f"""
    static char data[256];
    static void run(void) {{
        int group = call(338, 2, 0, 0, 0, 0, 0);
        say(group);
        say(call(339, group, 1, 0x08000020, 0, -100, (long)"{tmp_path}/d"));
        call(6, call(5, (long)"{tmp_path}/d/x", 0101, 0644, 0, 0, 0), 0, 0, 0, 0, 0);
        say(call(3, group, (long)data, sizeof data, 0, 0, 0));
        say(*(int *)(data + 8)); say(*(int *)(data + 20) == call(20, 0, 0, 0, 0, 0, 0));
        call(6, *(int *)(data + 16), 0, 0, 0, 0, 0);
    }}""")
    assert open_view("--load", "fanotify").sh(str(program)).out.split() == ["960", "0", "24", "32", "1"]
