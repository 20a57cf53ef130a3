"""Trees on file systems that only root can mount, made copy-on-write by an ordinary user, with layers on them too."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.cow.conftest import snapshot
from tests.kernel.cow.test_interrupted_commit import WORK, in_a_child
from viewfs.linux.mount import MountFlags, mount
from viewfs.linux.namespaces import CloneFlags, unshare

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount these")
MAKE = {
    "ext4": ["mke2fs", "-q", "-t", "ext4", "{image}"],
    "xfs": ["mkfs.xfs", "-q", "{image}"],
    "btrfs": ["mkfs.btrfs", "-q", "{image}"],
    "tmpfs": [],
    "erofs": ["mkfs.erofs", "{image}", "{tree}"],
    "squashfs": ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress"],
}
READ_ONLY = ("erofs", "squashfs")


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="viewfs-test-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        yield Path(name)


class Account:
    """Who an ordinary user is, and commands run as that user."""

    def __init__(self, place: Path) -> None:
        self.entry = pwd.getpwnam(os.environ.get("VIEWFS_TEST_ACCOUNT", "viewfs-test"))
        self.environment = {
            "PATH": f"{self.entry.pw_dir}/checkout/bin:{os.environ['PATH']}",
            "PYTHONPATH": f"{self.entry.pw_dir}/checkout",
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(place / "run"),
        }
        self.own(place / "run")

    def own(self, directory: Path) -> Path:
        directory.mkdir(mode=0o700, exist_ok=True)
        os.chown(directory, self.entry.pw_uid, self.entry.pw_gid)
        return directory

    def __call__(self, *command: str | Path, cwd: Path | str = "/") -> str:
        ids = [f"--reuid={self.entry.pw_uid}", f"--regid={self.entry.pw_gid}", "--clear-groups"]
        done = subprocess.run(
            ["setpriv", *ids, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=cwd,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout)
        return done.stdout

    def viewfs(self, *arguments: str | Path) -> str:
        return self(sys.executable, "-B", "-m", "viewfs", *arguments)


CONTENT = """
    mkdir -p directory/deeper empty; printf 'one\\ntwo\\nthree\\n' > text; head -c 2560 /dev/zero > binary
    echo deleted > directory/gone; echo bottom > directory/deeper/file; ln -s text link; echo '#!/bin/sh' > script
"""


@pytest.mark.parametrize("kind", MAKE)
def test_work_in_a_view_and_directly(kind: str, place: Path) -> None:
    known = Path("/proc/filesystems").read_text().split()
    if kind not in known or (MAKE[kind] and not os.path.exists("/dev/loop-control")):
        pytest.skip(f"this kernel has no {kind}, or no loop devices")
    account = Account(place)
    tree = account.own(place / "tree")
    account("sh", "-c", CONTENT, cwd=tree)
    image = place / "image"
    if kind not in READ_ONLY:
        with open(image, "wb") as file:
            file.truncate(400 << 20)
    if MAKE[kind]:
        command = [word.format(image=image, tree=tree) for word in MAKE[kind]]
        subprocess.run(command, check=True, capture_output=True)

    def work() -> None:
        unshare(CloneFlags.NEWNS)
        mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
        (place / "mount").mkdir()
        source = ["-t", kind, "none"] if kind == "tmpfs" else ["-t", kind, "-o", "loop", str(image)]
        subprocess.run(["mount", *source, place / "mount"], check=True)
        if kind in READ_ONLY:
            on_read_only(account, place)
        else:
            on_writable(account, place, tree)

    assert in_a_child(work) == 0


def on_writable(account: Account, place: Path, tree: Path) -> None:
    top = account.own(place / "mount/top")
    account("cp", "-a", tree, top / "tree")
    account("cp", "-a", tree, top / "direct")
    account.environment["XDG_STATE_HOME"] = str(account.own(top / "state"))
    before = snapshot(top / "tree")
    script = f"cd {top}/tree; set -e; {WORK} stat -f -c %T {top}/tree"
    shown = account.viewfs("run", "--name", "n", "--cow", top / "tree", "--", "sh", "-c", script)
    assert shown == "overlayfs\n"
    assert snapshot(top / "tree") == before
    account("sh", "-ec", WORK, cwd=top / "direct")
    account.viewfs("commit", "--session", "n")
    assert without_times(top / "tree") == without_times(top / "direct")


def on_read_only(account: Account, place: Path) -> None:
    account.environment["XDG_STATE_HOME"] = str(account.own(place / "state"))
    target = account.own(place / "out")
    script = f"cd {place}/mount; set -e; {WORK} cp -a . {target}/view"
    shown = account.viewfs("run", "--name", "n", "--cow", place / "mount", "--", "sh", "-c", script)
    assert shown == ""
    account("sh", "-ec", WORK, cwd=place / "tree")
    # (In the view the names of what was linked have different numbers, so that cp makes two files of them.)
    assert without_links(target / "view") == without_links(place / "tree")
    account.viewfs("commit", "--session", "n", "--to", target / "new.squashfs")
    assert (target / "new.squashfs").stat().st_size


def without_times(tree: Path) -> dict[str, object]:
    return {path: row[:4] for path, row in snapshot(tree).items()}


def without_links(tree: Path) -> dict[str, object]:
    return {path: (*row[:2], row[3]) for path, row in snapshot(tree).items()}
