"""Directories that had to gain a mount point: what comes, goes and is replaced is seen on both sides at once."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs, own_processes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory that the user may write, with something of every kind in it."""
    top = tmp_path / "home"
    (top / "project/src").mkdir(parents=True)
    (top / "project/src/main.c").write_text("int main() {}\n")
    (top / "empty").mkdir()
    (top / "notes").write_text("old\n")
    (top / "link").symlink_to("notes")
    os.mkfifo(top / "fifo")
    return top


@pytest.fixture
def view(open_view: Callable[..., View], home: Path) -> View:
    return open_view("--mount", f"none:{home}/new:tmp")


def test_what_is_replaced_outside_is_replaced_inside(view: View, home: Path) -> None:
    """As every editor and git does it: a new file under the old name. What is written inside goes to that."""
    view.sh(f"cat {home}/notes")
    (home / "notes.tmp").write_text("replaced\n")
    os.rename(home / "notes.tmp", home / "notes")
    assert view.sh(f"cat {home}/notes {home}/link; echo written >> {home}/notes").out == "replaced\nreplaced\n"
    assert (home / "notes").read_text() == "replaced\nwritten\n"


def test_names_that_come_and_go(view: View, home: Path) -> None:
    (home / "fresh").mkdir()
    (home / "fresh/file").write_text("outside\n")
    os.unlink(home / "link")
    (home / "empty").rmdir()
    assert view.sh(f"cd {home}; ls; cat fresh/file; echo inside > fresh/more; mkdir made").out.split("\n")[:-1] == [
        "fifo", "fresh", "new", "notes", "project", "outside",
    ]  # fmt: skip
    assert (home / "fresh/more").read_text() == "inside\n" and (home / "made").is_dir()
    view.sh(f"cd {home}; rm -r fresh made notes project; ls new")
    assert sorted(os.listdir(home)) == ["fifo"]


def test_a_directory_of_another_name_is_another(view: View, home: Path) -> None:
    """Moved outside, with something else in its place."""
    view.sh(f"cat {home}/project/src/main.c")
    (home / "project").rename(home / "older")
    (home / "project").mkdir()
    (home / "project/readme").write_text("another\n")
    assert view.sh(f"cd {home}; cat project/readme older/src/main.c").out == "another\nint main() {}\n"


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize(
    ("program", "does"),
    [
        ("vim", "vim -Nesu NONE -c '%s/old/NEW/' -c wq notes; grep -q NEW notes"),
        ("sed", "sed -i s/old/NEW/ notes; grep -q NEW notes"),
        (
            "git",
            "git init -q .; git add notes project; git -c user.name=n -c user.email=e commit -qm one;"
            " git rm -qr project; git -c user.name=n -c user.email=e commit -qm two; test ! -e project;"
            " git checkout -q HEAD~1 -- project; test -e project/src/main.c; git config --file own a.b c",
        ),
        ("rsync", "rsync -a project/ copy/; rsync -a --delete empty/ copy/; test ! -e copy/src; test -d copy"),
    ],
)
def test_programs(view: View, home: Path, program: str, does: str, where: str) -> None:
    """What one side does the other sees as it would without a view; and the mount point stays."""
    if subprocess.run(["sh", "-c", f"command -v {program}"], capture_output=True).returncode:
        pytest.skip(f"{program} is not here")
    script = f"set -e; cd {home}; {does}"
    if where == "inside":
        view.sh(script)
    else:
        subprocess.run(["bash", "-c", script], check=True, capture_output=True)

    def names(listing: str) -> set[str]:
        return {line for line in listing.split("\n") if line and "/new" not in line and line != "./new"}

    look = f"cd {home}; find . -path ./.git -prune -o -print; cat notes"
    inside, outside = view.sh(look).out, subprocess.run(["bash", "-c", look], capture_output=True, text=True).stdout
    assert names(inside) == names(outside) and "./notes" in inside
    assert view.sh(f"touch {home}/new/file; ls {home}/new").out == "file\n" and not (home / "new").exists()


def test_what_is_below_is_native(view: View, home: Path) -> None:
    table = view.sh("cat /proc/self/mountinfo").out
    assert f" {home} " in table and "viewfs-mirror" in table
    assert f" {home}/project " in table and f" {home}/empty " not in table
    # What is full can't be renamed as long as it is a mount point, and nothing is lost by that.
    refused = view.sh(f"mv {home}/project {home}/moved", check=False)
    assert "Device or resource busy" in refused.err and (home / "project/src/main.c").exists()


def test_sockets_and_pipes_in_it_work(view: View, home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(home)
        listener.bind("made-later")
        listener.listen()
        os.chdir("/")
        view.sh(f"(echo through > {home}/fifo) & read line < {home}/fifo; wait; [ $line = through ]")


def test_more_mount_points_in_it(view: View, home: Path) -> None:
    view("mount", "-t", "tmp", "none", home / "second")
    view("mount", "-t", "tmp", "none", home / "a/b/c")
    view("mount", "-t", "tmp", "none", home / "project/inside")
    assert view.sh(f"cd {home}; touch second/x a/b/c/y project/inside/z; ls a/b; ls; ls project").out.split() == [
        "c", "a", "empty", "fifo", "link", "new", "notes", "project", "second", "inside", "src",
    ]  # fmt: skip
    tried = ("rmdir second", "rm -r a", "touch a/file", "mv new other", "ln -T notes second")
    refused = view.sh(f"cd {home}; {' || '.join(tried)}", check=False)
    assert refused.err.count("\n") >= 5
    for place in ("second", "a/b/c", "new", "project/inside"):
        view("umount", home / place)
    count = "grep viewfs- /proc/self/mountinfo | grep -vc ' /viewfs-test'"  # (a name of the host's root)
    assert view.sh(f"ls {home} {home}/project; {count}").out.split() == [
        f"{home}:", "empty", "fifo", "link", "notes", "project", f"{home}/project:", "src", "1",
    ]  # fmt: skip
    assert sorted(os.listdir(home)) == ["empty", "fifo", "link", "notes", "project"]


def test_it_goes_with_its_view(viewfs: Viewfs, home: Path) -> None:
    script = f"echo x > {home}/file; (sleep 100 < {home}/file &) ; viewfs mount -t tmp none {home}/again; exit 3"
    done = viewfs("run", "--mount", f"none:{home}/new:tmp", "--", "sh", "-c", script, check=False)
    assert done.code == 3 and done.err == "" and (home / "file").read_text() == "x\n"


def test_what_is_appended_goes_behind_what_others_append(view: View, home: Path) -> None:
    """A log that is open inside, and written outside meanwhile."""
    (home / "log").write_text("begin\n")
    script = f"""
        exec 3>> {home}/log; echo inside1 >&3; echo ready; read line; echo inside2 >&3
        cat {home}/log
    """
    command = ["viewfs", "enter", view.name, "--", "sh", "-c", script]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=view.viewfs.environment) as inside:
        assert inside.stdout is not None and inside.stdout.readline() == "ready\n"
        with open(home / "log", "a") as log:
            log.write("outside\n")
        out, _err = inside.communicate("go\n")
    assert out == (home / "log").read_text() == "begin\ninside1\noutside\ninside2\n"


def test_more_files_than_may_be_open(open_view: Callable[..., View], home: Path) -> None:
    for number in range(3000):
        (home / f"file{number}").write_text(f"{number}\n")
    view = open_view("--mount", f"none:{home}/new:tmp")
    script = f"""
        ulimit -n; cd {home}; exec 3< file0 4>> file1
        ls -l | wc -l; cat file* | sha256sum; echo new > created; echo more >&4; cat <&3
        mv file2 moved; ls -l file*9 | wc -l; cat moved file1
    """
    lines = view.sh(script).out.splitlines()[1:]
    digest = subprocess.run(["sh", "-c", "cat file* | sha256sum"], cwd=home, capture_output=True, text=True, check=True)
    assert lines[0] == "3007" and lines[2:] == ["0", "300", "2", "1", "more"]
    assert len(lines[1]) == len(digest.stdout.rstrip("\n")) and (home / "created").read_text() == "new\n"
    server = next(pid for pid, name in own_processes().items() if name == "viewfs-mirror")
    # So many descriptors it has had room for: a power of two.
    (slots,) = re.findall(r"^FDSize:\t(\d+)$", Path(f"/proc/{server}/status").read_text(), re.MULTILINE)
    assert int(slots) <= 2048


IN_IT = """
import mmap, os
fd = os.open("appended", os.O_CREAT | os.O_RDWR | os.O_APPEND)
os.write(fd, b"a" * 10)
with mmap.mmap(fd, 10) as memory:
    memory[:3] = b"XYZ"
os.write(fd, b"end")
unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(unnamed, b"unnamed")
os.link(f"/proc/self/fd/{unnamed}", "named", src_dir_fd=os.open("/", os.O_RDONLY), follow_symlinks=True)
"""


def test_mappings_and_files_without_a_name(viewfs: Viewfs, tmp_path: Path) -> None:
    """A page of a mapping is not appended; a file that had no name gets one, on the host."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "in_it.py").write_text(IN_IT)
    viewfs.sh("--mount", f"none:{home}/new:tmp", script=f"cd {home}; {sys.executable} {tmp_path}/in_it.py")
    assert (home / "appended").read_bytes() == b"XYZaaaaaaaend"
    assert (home / "named").read_bytes() == b"unnamed" and (home / "named").stat().st_nlink == 1
