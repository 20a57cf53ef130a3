"""Where the kernel makes no overlay viewfs serves the same layer itself: the same commands, and the same tests.

(`make soak` runs more of them so.)
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs
from tests.kernel.cow import (
    test_commit,
    test_diff,
    test_interrupted_commit,
    test_new_images,
    test_real_work,
    test_states,
    test_views,
)
from tests.kernel.cow.conftest import Cow, snapshot
from tests.kernel.cow.test_new_images import foreign
from tests.kernel.cow.test_random_work import test_states_and_discards
from tests.kernel.cow.test_real_work import materials

__all__ = ["foreign", "materials", "test_states_and_discards"]

for _module in (test_commit, test_diff, test_interrupted_commit, test_new_images, test_states, test_views):
    globals().update({name: value for name, value in vars(_module).items() if name.startswith("test_")})


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch, viewfs: Viewfs) -> None:
    """No overlay is tried, so that one isn't made."""
    viewfs.environment["VIEWFS_COW_BACKEND"] = "fuse"
    monkeypatch.setenv("VIEWFS_COW_BACKEND", "fuse")


@pytest.mark.parametrize("name", ["sqlite", "tar x with all types of files"])
def test_real_programs(viewfs: Viewfs, materials: Path, name: str) -> None:
    test_real_work.test_committed_is_the_same_as_done_directly(viewfs, materials, name)


def test_it_is_shown(cow: Cow, tree: Path) -> None:
    result = cow.sh(
        f"grep ' {tree} ' /proc/self/mounts; echo x > text; cat text; pgrep -u $(id -u) -r S,R,D -xc viewfs-cow"
    )
    assert "fuse.viewfs.cow" in result.out and result.out.endswith("x\n1\n")
    assert result.err == ""  # as asked for


def test_where_layers_would_lie_on_an_overlay(viewfs: Viewfs, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real reason: the state directory is in a tree that is copy-on-write itself."""
    del viewfs.environment["VIEWFS_COW_BACKEND"]
    before = snapshot(tree)
    top = tree.parent
    script = f"""
        export XDG_STATE_HOME={top}/inner-state
        cd {tree}; viewfs run --name inner --cow {tree} -- sh -c 'cd {tree}; echo inner > text; rm script; cat text'
        cat text
        viewfs diff --session inner --name-only
        viewfs commit --session inner
        cat text
    """
    result = viewfs.sh("--cow", top, script=script)
    shown = f"inner\none\ntwo\nthree\n{tree}/script\n{tree}/text\ncommitted: 1 changed, 1 deleted\ninner\n"
    assert result.out == shown
    assert f"the kernel makes no overlay of it with layers in {top}/inner-state" in result.err
    assert snapshot(tree) == before


def test_commands_from_outside(open_view: Callable[..., View], tree: Path) -> None:
    """Which a FUSE mount does not answer, unless they join the view's user namespace."""
    view = open_view("--cow", tree)
    view.sh(f"echo x > {tree}/text; viewfs checkpoint one; echo y > {tree}/text; rm {tree}/link")
    assert view("diff", "--name-only").out == f"{tree}/link\n{tree}/text\n"
    assert view("diff", "--name-only", "one..").out == f"{tree}/link\n{tree}/text\n"
    assert view("discard", tree / "link").out == "discarded: 1 deleted\n"
    assert view("commit").out == "committed: 1 changed\n" and (tree / "text").read_text() == "y\n"


PROGRAM = """
import mmap, os
with open("text", "r+b") as file:                      # a shared mapping is written back
    with mmap.mmap(file.fileno(), 0) as memory:
        memory[:3] = b"ONE"
reader = open("binary", "rb")                          # open before it is copied up, and read afterwards
before = os.pread(reader.fileno(), 5, 0)
with open("binary", "r+b") as writer:
    writer.write(b"wrote")
assert os.pread(reader.fileno(), 5, 0) == b"wrote", "a reader sees what is written"
unlinked = open("unlinked", "w+")
unlinked.write("still there"); unlinked.flush()
os.unlink("unlinked")
unlinked.seek(0)
assert unlinked.read() == "still there" and os.fstat(unlinked.fileno()).st_size == 11
old = open("directory/gone"); os.unlink("directory/gone")
assert old.read() == "to be deleted\\n"
for call, error in ((lambda: os.rmdir("directory"), 39), (lambda: os.rename("directory", "x"), 18),
                    (lambda: os.mkdir("empty"), 17), (lambda: os.unlink("empty"), 21), (lambda: os.rmdir("text"), 20),
                    (lambda: os.link("text", "script"), 17), (lambda: os.stat("none"), 2)):
    try:
        call()
    except OSError as raised:
        assert raised.errno == error, (raised, error)
    else:
        raise AssertionError(error)
os.mkdir("many")
for number in range(500):
    open(f"many/{number}", "w").close()
with os.scandir("many") as entries:                    # removing what is being listed
    for entry in entries:
        os.unlink(entry.path)
os.rmdir("many")
fds = [os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600) for _ in range(2)]
for number in range(100):
    os.write(fds[number % 2], b"%02d" % number)
assert open("log").read() == "".join("%02d" % number for number in range(100))
os.link("log", "second"); os.stat("second")
assert os.path.samefile("log", "second") and os.stat("log").st_nlink == 2
with open("log", "a") as log: log.write("more")
assert open("second").read().endswith("99more")
with open("second", "w") as second: second.write("x" * 200)
assert open("log").read() == "x" * 200                 # each name has pages of its own
os.unlink("second")
os.rename("log", "script")                             # over a file of the lower tree
assert os.stat("script").st_size == 200 and os.statvfs(".").f_blocks
"""


def test_what_programs_rely_on(cow: Cow, tree: Path) -> None:
    (tree.parent / "program.py").write_text(PROGRAM)
    assert cow.sh("python3 ../program.py; head -1 text").out == "ONE\n"
    assert cow.sh("head -1 text; head -c 5 binary; stat -c %s script; ls directory").out == "ONE\nwrote200\ndeeper\n"
    cow("commit")
    assert (tree / "text").read_text() == "ONE\ntwo\nthree\n" and (tree / "script").stat().st_size == 200


MANY = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))
files = [open(f"{number}", "w+") for number in range(2500)]
for file in files:
    file.write(file.name)
    file.flush()
assert all(os.pread(file.fileno(), 10, 0).decode() == file.name for file in files)
"""


def test_change_times_when_a_file_is_copied_up(cow: Cow, tree: Path) -> None:
    """The file's, and those of the directories that it is in, which the kernel is keeping: it is told of the new ones,
    so that nobody, tar above all, finds out later and takes it for a change."""
    shown = "stat -c '%n %z %i' . directory directory/deeper directory/deeper/file text"
    result = cow.sh(f"""
        {shown}
        exec 3>> directory/deeper/file
        {shown}; echo; {shown.replace("stat", "stat --cached=never")}
        tar -cf /dev/null .; chmod 600 text; tar -cf /dev/null .
    """)
    kept, asked = result.out.split("\n\n")
    before, after = kept.splitlines()[:5], kept.splitlines()[5:]
    assert after == asked.splitlines()
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, False, False, True]
    assert "changed" not in result.err


def test_many_files_that_are_open(cow: Cow, tree: Path) -> None:
    """The server has each of them open as well, and may, whatever the limit that it was started with."""
    (tree.parent / "many.py").write_text(MANY)
    script = "ulimit -Sn 256; viewfs run --name many --cow . -- sh -c 'python3 ../many.py && ls | wc -l'"
    result = cow.viewfs.sh(script=f"cd {tree}; {script}")
    assert int(result.out) > 2500


def test_who_reads_what_the_command_prints_does_not_wait_for_the_server(viewfs: Viewfs, tree: Path) -> None:
    """The view is kept, and with it the server; the command's streams are not."""
    result = viewfs("run", "--keep", "--name", "kept", "--cow", tree, "--", "echo", "printed")
    assert result.out == "printed\n"
    viewfs("kill", "kept")


def test_servers_are_asked_after(cow: Cow) -> None:
    """Whoever is process 1 may not do it, as in many a container."""
    cow.sh("viewfs checkpoint one")
    left = subprocess.run(["ps", "-u", str(os.getuid()), "-o", "stat,comm"], capture_output=True, text=True, check=True)
    assert "viewfs-co" not in left.stdout, left.stdout
