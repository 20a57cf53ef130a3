"""Directories that the user can't write follow the host too: `/`, `/dev`, `/usr/lib`. Only root can change them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.test_lower_file_systems import Account, place

__all__ = ["place"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change them")
NAME = "viewfs-test-name"
PLACES = (f"/dev/{NAME}", f"/{NAME}", f"/usr/lib/{NAME}")


class Names:
    """Views of the account, and what root does meanwhile."""

    def __init__(self, place: Path) -> None:
        self.account = Account(place)
        entry = self.account.entry
        ids = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        self._command = ["setpriv", *ids, sys.executable, "-B", "-m", "viewfs"]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.account.environment,
            cwd="/",
        )


@pytest.fixture
def names(place: Path) -> Iterator[Names]:
    yield Names(place)
    for path in map(Path, PLACES):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_what_comes_and_goes(names: Names) -> None:
    """A device that appears, a directory, and their ends: told by a shell in a view that stays open."""
    script = """
        echo ready; read _
        for n in $(seq 100); do [ -e /$0 ] && [ -e /usr/lib/$0/file ] && [ -e /dev/$0 ] && break; sleep 0.1; done
        cat /$0/file /usr/lib/$0/file; echo into > /dev/$0; stat -c %F /dev/$0; touch /$0/denied
        echo seen; read _
        for n in $(seq 100); do [ -e /$0 ] || [ -e /usr/lib/$0 ] || [ -e /dev/$0 ] || break; sleep 0.1; done
        ls -d /$0 /usr/lib/$0 /dev/$0
    """
    mounts = ("--mount", "none:/dev/viewfs-test:tmp", "--mount", "none:/usr/lib/viewfs-test:tmp")
    process = names.start("run", *mounts, "--", "sh", "-c", script, NAME)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        os.mknod(f"/dev/{NAME}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.chmod(f"/dev/{NAME}", 0o666)
        for place in (f"/{NAME}", f"/usr/lib/{NAME}"):
            os.mkdir(place, 0o755)
            Path(place, "file").write_text(f"{place}\n")
        process.stdin.write("go\n")
        process.stdin.flush()
        lines = list(iter(process.stdout.readline, "seen\n"))  # fewer, if something is not there
        assert [*lines, "seen\n"] == [f"/{NAME}\n", f"/usr/lib/{NAME}\n", "character special file\n", "seen\n"]
        os.unlink(f"/dev/{NAME}")
        for place in (f"/{NAME}", f"/usr/lib/{NAME}"):
            shutil.rmtree(place)
    finally:
        out, err = process.communicate("go\n", timeout=60)
    assert out == "" and err.count("No such file or directory") == 3 and "Permission denied" in err


def test_nothing_stays_behind(names: Names) -> None:
    """Neither processes nor mounts, when the mount point is taken away again.

    (Names that others make in the root of the host meanwhile come with a process and a mount each.)
    """
    script = """
        viewfs() { PYTHON -B -m viewfs "$@"; }
        count() { cat /proc/[0-9]*/comm 2> /dev/null | grep -c viewfs-place; grep -c ' /dev' /proc/self/mountinfo; }
        before=$(count)
        for n in 1 2 3 4 5; do viewfs mount -t tmp none /dev/viewfs-test; [ "$(count)" != "$before" ] || echo nothing
            viewfs umount /dev/viewfs-test; done
        for n in $(seq 50); do [ "$(count)" = "$before" ] && break; sleep 0.1; done
        [ "$(count)" = "$before" ] && echo same
    """
    script = script.replace("PYTHON", sys.executable)
    process = names.start("run", "--pid", "--", "sh", "-c", script)
    assert process.communicate(timeout=100) == ("same\n", "")
