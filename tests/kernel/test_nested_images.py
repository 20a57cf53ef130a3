"""The main job: an image, an image found inside it mounted over the same directory, and both work."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs, host_mounts, wait_until

Image = Callable[..., Path]


@pytest.fixture
def nested(image: Image) -> Path:
    """An image with an image in it."""
    inner = image("inner.img", size="1M", inner="from the inner image")
    return image("outer.img", image=inner, outer="from the outer image")


def seen_by_the_host() -> list[str]:
    """Names of the views here."""
    names = ("/mnt/outer", "/mnt/inner", "/mnt/image", "/hello")
    return [name for name in names if os.path.lexists(name)]


def test_an_image_inside_an_image_on_the_same_directory(viewfs: Viewfs, nested: Path) -> None:
    script = """
        cat /mnt/outer
        viewfs mount /mnt/image /mnt
        cat /mnt/inner
        test ! -e /mnt/outer
        grep -c fuse.viewfs.ext /proc/self/mounts
    """
    done = viewfs.sh("--mount", f"{nested}:/mnt", script=script)
    assert not host_mounts(viewfs.directory)
    assert done.out == "from the outer imagefrom the inner image" + done.out[-2:]
    assert int(done.out[-2:]) == 2, "each mount shows in the view's own table"
    assert not seen_by_the_host()


def test_the_host_sees_nothing_while_the_view_is_open(
    open_view: Callable[..., View], viewfs: Viewfs, nested: Path
) -> None:
    view = open_view("--mount", f"{nested}:/mnt", "--mount", "/mnt/image:/mnt", "--load", "hello")
    assert view.sh("cat /mnt/inner").out == "from the inner image"
    assert not host_mounts(viewfs.directory) and not seen_by_the_host()


def test_ten_levels_over_one_directory(viewfs: Viewfs, image: Image) -> None:
    levels = 10
    path = image("level10.img", size="1M", level="10")
    for level in range(levels - 1, 0, -1):
        path = image(f"level{level}.img", size=f"{levels - level + 2}M", level=str(level), image=path)
    script = "cat /mnt/level; while [ -e /mnt/image ]; do viewfs mount /mnt/image /mnt; echo; cat /mnt/level; done"
    done = viewfs.sh("--mount", f"{path}:/mnt", script=script)
    assert done.out.split() == [str(level) for level in range(1, levels + 1)]


def test_every_epoch_can_be_seen(open_view: Callable[..., View], nested: Path) -> None:
    view = open_view("--mount", f"{nested}:/mnt", "--mount", "/mnt/image:/mnt")
    assert view("at", "1", "--", "cat", "/mnt/outer").out == "from the outer image"
    assert view("at", "2", "--", "cat", "/mnt/inner").out == "from the inner image"
    assert view("at", "0", "--", "ls", "/mnt").out.split() == sorted(os.listdir("/mnt"))
    # From inside too, where the agent has to help.
    assert view.sh("viewfs at 1 -- cat /mnt/outer; echo; viewfs at 0 -- sh -c 'exit 7' || echo $?").out == (
        "from the outer image\n7\n"
    )
    missing = view("at", "9", "--", "true", check=False)
    assert (missing.code, missing.err.count("\n")) == (4, 1)


def test_the_log_says_what_happened(open_view: Callable[..., View], nested: Path) -> None:
    view = open_view("--mount", f"{nested}:/mnt", "--mount", "/mnt/image:/mnt")
    log = view.json("epochs")
    assert log["schema"] == 1 and log["current"] == 2
    assert [(row["epoch"], row["operation"], row["path"], row["type"], row["source"]) for row in log["epochs"]] == [
        (0, "start", "", "", ""),
        (1, "mount", "/mnt", "ext", str(nested)),
        (2, "mount", "/mnt", "ext", "/mnt/image"),
    ]
    assert [row["shadowed"] for row in log["epochs"]] == [False, True, False]
    assert log["epochs"][2]["made_from"] == 1 and log["epochs"][1]["pinned_by"] == [2]
    times = [row["time_ns"] for row in log["epochs"]]
    assert times == sorted(times)
    table = view("epochs").out
    assert "shadowed" in table and "from 1" in table


def test_resolve_names_the_mount_and_what_it_shadows(open_view: Callable[..., View], nested: Path) -> None:
    view = open_view("--mount", f"{nested}:/mnt", "--mount", "/mnt/image:/mnt")
    now = view.json("resolve", "/mnt/inner")
    assert now["serving"]["epoch"] == 2 and [row["epoch"] for row in now["shadowed"]] == [1]
    then = view.json("resolve", "--epoch", "1", "/mnt/inner")
    assert then["serving"]["epoch"] == 1 and then["shadowed"] == []
    assert view.json("resolve", "/usr")["serving"] is None


def test_unmounting_what_a_later_mount_was_made_from(open_view: Callable[..., View], nested: Path) -> None:
    view = open_view("--mount", f"{nested}:/mnt/../srv", "--mount", "/srv/image:/mnt")
    view("umount", "/srv")
    assert view.sh("ls /srv; cat /mnt/inner").out.endswith("from the inner image")
    assert "outer" not in view.sh("ls /srv").out
    lower = next(row for row in view.json("lsmod")["modules"] if row["epoch"] == 1)
    assert lower["state"] == "unmounted" and lower["pinned_by"] == [2] and lower["server"]
    # Nobody pins it any more: its server ends, and with it the epochs that had it.
    view("umount", "/mnt")
    wait_until(lambda: not view.json("lsmod")["modules"], "the servers have ended")
    gone = view("at", "1", "--", "true", check=False)
    assert gone.code == 4 and "/srv (ext) was unmounted in epoch 3" in gone.err


def test_history_keeps_what_is_unmounted(open_view: Callable[..., View], nested: Path) -> None:
    view = open_view("--history", "--mount", f"{nested}:/mnt")
    view("umount", "/mnt")
    assert view("at", "1", "--", "cat", "/mnt/outer").out == "from the outer image"


def test_a_mount_in_use_is_not_taken_away_unless_asked(open_view: Callable[..., View], nested: Path) -> None:
    view = open_view("--mount", f"{nested}:/mnt")
    busy = view.sh("cd /mnt; viewfs umount /mnt", check=False)
    assert busy.code == 1 and "busy" in busy.err and "--lazy" in busy.err
    assert view.sh("cd /mnt; viewfs umount --lazy /mnt; cat outer; ls /mnt").out.startswith("from the outer image")
    assert view("umount", "/mnt", check=False).code == 4


def test_a_mount_with_another_inside_it_is_busy(open_view: Callable[..., View], nested: Path) -> None:
    view = open_view("--mount", f"{nested}:/mnt", "--mount", "none:/mnt/lost+found:tmp")
    refused = view("umount", "/mnt", check=False)
    assert refused.code == 2 and "/mnt/lost+found" in refused.err
    view("umount", "/mnt/lost+found")
    view("umount", "/mnt")


def test_no_request_reaches_the_server_the_second_time(open_view: Callable[..., View], image: Image) -> None:
    tree = {f"file{number}": "x" * number * 100 for number in range(200)}
    view = open_view("--mount", f"{image('many.img', size='16M', **tree)}:/mnt")
    touch_all = "find /mnt -ls | wc -l; find /mnt -type f -exec cat {} + | sha256sum; ls -d /mnt/nothing 2>&1 || true"

    def requests() -> dict[str, int]:
        """Without STATFS: find calls statfs(2) itself, once a run, and the kernel passes that on every time."""
        counted = dict(view.json("lsmod")["modules"][0]["requests"])
        counted.pop("statfs", None)
        return counted

    first = view.sh(touch_all)
    counted = requests()
    assert counted["readdirplus"] and counted["read"], "the first time everything has to be asked for"
    # (Where the kernel has taken a page away meanwhile it asks for that one again; it doesn't each time. It never asks
    # for anything else again.)
    reads = [counted["read"]]
    for _again in range(3):
        assert view.sh(touch_all).out == first.out
        assert requests() | {"read": 0} == counted | {"read": 0}
        reads.append(requests()["read"])
    assert any(after == before for before, after in pairwise(reads)), reads
    # A program that makes no such call by itself makes no request at all.
    walk = "python3 -c \"import os; [os.read(os.open(e.path, 0), 1 << 20) for e in os.scandir('/mnt') if e.is_file()]\""
    view.sh(walk)
    for _again in range(3):
        before = view.json("lsmod")["modules"][0]["requests"]
        view.sh(walk)
        after = view.json("lsmod")["modules"][0]["requests"]
        if after == before:
            break
    assert after == before


def test_real_programs_work_on_an_image(viewfs: Viewfs, image: Image, tmp_path: Path) -> None:
    """A repository and a database inside an image, read by git, tar, rsync, sqlite, dd and Python."""
    tree = tmp_path / "content"
    (tree / "repository").mkdir(parents=True)
    git = ["git", "-C", tree / "repository", "-c", "user.name=N", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    (tree / "repository/file").write_text("text\n" * 1000)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    subprocess.run(["sqlite3", tree / "data.db", "create table t(x); insert into t values (42);"], check=True)
    (tree / "program.py").write_text("print('python ran')\n")
    subprocess.run(
        ["gcc", "-static", "-x", "c", "-", "-o", tree / "static"], input=b"int main(){return 23;}", check=True
    )
    path = tmp_path / "programs.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, path, "32M"], check=True, capture_output=True)
    script = f"""
        cd /mnt
        git -c safe.directory='*' -C repository log --format=%s
        git -c safe.directory='*' clone -q repository {tmp_path}/clone && cat {tmp_path}/clone/file | wc -l
        git -c safe.directory='*' -C repository fsck --full && echo fsck ok
        sqlite3 -readonly 'file:data.db?immutable=1' 'select x from t'
        python3 program.py
        ./static || echo "static $?"
        tar cf - --exclude=lost+found . | tar xf - -C {tmp_path}/untarred
        rsync -a --exclude=lost+found ./ {tmp_path}/synced/
        dd if=static bs=1 skip=1 count=3 status=none
        cp /mnt/new /mnt/other 2>&1 || touch /mnt/new 2>&1 || true
    """
    (tmp_path / "untarred").mkdir()
    done = viewfs.sh("--mount", f"{path}:/mnt", script=script)
    lines = done.out.splitlines()
    assert lines[:6] == ["first", "1000", "fsck ok", "42", "python ran", "static 23"]
    assert lines[6].startswith("ELF") and "Read-only file system" in done.out
    for copy in ("untarred", "synced"):
        assert subprocess.run(["diff", "-r", tree, tmp_path / copy], capture_output=True).stdout == b""
