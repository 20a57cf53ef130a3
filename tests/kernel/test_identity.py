"""Who one is in a view, and what one may not do there."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs


def test_as_root_the_session_is_found_without_a_runtime_directory(viewfs: Viewfs) -> None:
    del viewfs.environment["XDG_RUNTIME_DIR"]
    viewfs.environment["TMPDIR"] = str(viewfs.directory)
    assert viewfs.sh("--as-root", script="viewfs epochs --json | head -c 20").out.startswith('{"schema": 1')


def test_the_user_stays_who_they_are(viewfs: Viewfs, tmp_path: Path) -> None:
    done = viewfs.sh(script=f"id -u; id -g; id -un; touch {tmp_path}/mine; stat -c %u {tmp_path}/mine /usr")
    uid, gid, name, mine, usr = done.out.split()
    assert (int(uid), int(gid)) == (os.getuid(), os.getgid())
    assert name == subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
    assert int(mine) == os.getuid() and int(usr) == 65534, "ids that have no mapping show as the overflow id"
    assert (tmp_path / "mine").stat().st_uid == os.getuid()


def test_as_root_is_an_appearance(viewfs: Viewfs, tmp_path: Path) -> None:
    script = f"""
        id -u; id -g
        echo x > {tmp_path}/file; chown 0:0 {tmp_path}/file; stat -c %u {tmp_path}/file
        cat /etc/shadow 2>/dev/null || echo no
        mount -t proc none /mnt 2>/dev/null || echo no
        umount /proc 2>/dev/null || echo no
    """
    done = viewfs.sh("--as-root", script=script)
    assert done.out.split() == ["0", "0", "0", "no", "no", "no"]
    assert (tmp_path / "file").stat().st_uid == os.getuid()


@pytest.mark.parametrize("options", [(), ("--as-root",), ("--pid",)])
def test_a_command_has_no_capability_that_reaches_the_view(viewfs: Viewfs, options: tuple[str, ...]) -> None:
    done = viewfs.sh(*options, script="cat /proc/self/status")
    sets = {line.split(":")[0]: int(line.split()[1], 16) for line in done.out.splitlines() if line.startswith("Cap")}
    allowed = 0x800000FF if "--as-root" in options else 0
    sets.pop("CapBnd")  # of what a program could gain, which no_new_privs sees to
    assert sets == {"CapInh": 0, "CapPrm": allowed, "CapEff": allowed, "CapAmb": 0}
    assert "NoNewPrivs:\t1" in done.out


def test_host_name(viewfs: Viewfs) -> None:
    assert viewfs.sh("--hostname", "box", script="hostname; uname -n").out.split() == ["box", "box"]
    assert socket.gethostname() != "box"


def test_pid_namespace_shows_the_views_processes_only(viewfs: Viewfs) -> None:
    done = viewfs.sh("--pid", script="ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm; mount -t proc 2>/dev/null | wc -l")
    count, first, _mounts = done.out.split()
    assert int(count) < 8 and first == "viewfs-agent"


def test_orphans_in_a_pid_namespace_are_reaped(open_view: Callable[..., View]) -> None:
    view = open_view("--pid")
    view.sh("for i in 1 2 3 4 5; do (setsid sleep 0.01 &); done")
    script = "until ! grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do viewfs lsmod >/dev/null; done; echo none"
    assert view.sh(script).out.splitlines()[-1] == "none"


def test_the_agent_cannot_be_traced_from_the_view(viewfs: Viewfs) -> None:
    script = """
        python3 - <<'END'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
for entry in os.listdir("/proc"):
    if entry.isdigit():
        try:
            name = open(f"/proc/{entry}/comm").read().strip()
        except OSError:
            continue
        if name == "viewfs-agent":
            print(name, libc.ptrace(16, int(entry), 0, 0), ctypes.get_errno())
END
    """
    # Whoever else has a session on this machine has an agent too.
    assert set(viewfs.sh("--load", "hello", script=script).out.splitlines()) == {"viewfs-agent -1 1"}


def test_mounts_do_not_propagate(viewfs: Viewfs) -> None:
    """Neither out of the view nor into it, though the namespace around it shares all of its mounts."""
    script = (
        "grep -c shared: /proc/self/mountinfo; viewfs run -- grep -c -e shared: -e master: /proc/self/mountinfo || true"
    )
    outside = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "shared", "bash", "-c", script]
    done = subprocess.run(outside, capture_output=True, text=True, env=viewfs.environment, cwd=viewfs.directory)
    shared, in_view = done.stdout.split()
    assert int(shared) > 0 and in_view == "0", done
