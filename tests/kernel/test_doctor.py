"""`viewfs doctor` on this machine, and on this machine with something taken away, as far as a user can do that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import SECONDS, Result, Viewfs

REQUIRED = ["userns", "idmap", "mount", "root", "device", "fuse", "confine", "read"]


@pytest.fixture
def without(viewfs: Viewfs) -> Callable[..., Result]:
    """Run the doctor after `script`, as root of a user namespace where that can take things away."""

    def run(script: str, *options: str, doctor: str = "viewfs doctor") -> Result:
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc"]
        done = subprocess.run(
            [*command, f"{script}\nset +e\n{doctor} {' '.join(options)}"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=viewfs.environment,
            cwd=viewfs.directory,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def states(answer: Any) -> dict[str, str]:
    return {step["name"]: step["state"] for step in answer["steps"]}


def fails_at(result: Result, name: str) -> dict[str, Any]:
    """The step `name`, which failed: all before it went well, and none after it was tried."""
    assert result.code == 3, result
    assert result.err == ""
    answer = result.json
    assert answer["ok"] is False
    names = list(states(answer))
    place = names.index(name)
    assert list(states(answer).values()) == ["ok"] * place + ["failed"] + ["skipped"] * (len(names) - place - 1)
    step: dict[str, Any] = answer["steps"][place]
    assert step["remedy"]
    return step


def test_this_machine_can(viewfs: Viewfs) -> None:
    result = viewfs("doctor")
    assert result.out.endswith("\nThis machine can run viewfs.\n")
    assert "✗" not in result.out
    assert "\x1b" not in result.out
    assert result.err == ""


def test_json(viewfs: Viewfs) -> None:
    answer = viewfs("doctor", "--json").json
    assert (answer["schema"], answer["ok"]) == (1, True)
    assert [states(answer)[name] for name in REQUIRED] == ["ok"] * len(REQUIRED)
    assert answer["facts"]["fuse_device"]["is_fuse"] is True
    assert set(answer["steps"][0]) == {"name", "title", "state", "detail", "remedy"}


@pytest.mark.parametrize("options", [(), ("--pid",), ("--load", "hello"), ("--hostname", "box")])
def test_inside_a_view(viewfs: Viewfs, options: tuple[str, ...]) -> None:
    result = viewfs("run", *options, "--", "viewfs", "doctor")
    assert result.out.endswith("This machine can run viewfs.\n")


def test_as_root_of_a_user_namespace(without: Callable[..., Result]) -> None:
    assert without("true").code == 0


def test_it_leaves_the_view_as_it_was(viewfs: Viewfs) -> None:
    script = """
        cat /proc/self/mountinfo >mounts; ls / >names
        viewfs doctor >report
        diff mounts /proc/self/mountinfo; ls / | diff names -
    """
    assert viewfs.sh(script=script).out == ""


def test_names_can_be_printed_where_the_encoding_has_no_marks(viewfs: Viewfs) -> None:
    viewfs.environment["PYTHONIOENCODING"] = "ascii"
    result = viewfs("doctor")
    assert result.out.startswith("ok ")
    assert result.out.isascii()


def test_no_user_namespaces_left(without: Callable[..., Result]) -> None:
    step = fails_at(without("echo 0 >/proc/sys/user/max_user_namespaces", "--json"), "userns")
    assert "user.max_user_namespaces is 0" in "\n".join(step["remedy"])


def test_no_mount_namespaces_left(without: Callable[..., Result]) -> None:
    step = fails_at(without("echo 0 >/proc/sys/user/max_mnt_namespaces", "--json"), "userns")
    assert "user.max_mnt_namespaces is 0" in "\n".join(step["remedy"])


def test_failure_for_people(without: Callable[..., Result]) -> None:
    result = without("mount -t tmpfs none /dev")
    assert result.code == 3
    lines = result.out.splitlines()
    assert "✗ /dev/fuse                    cannot open /dev/fuse: it does not exist" in lines
    assert any(line.startswith("– FUSE mount") for line in lines)
    assert lines[-1] == "This machine cannot run viewfs: cannot open /dev/fuse: it does not exist."


def test_device_missing(without: Callable[..., Result]) -> None:
    step = fails_at(without("mount -t tmpfs none /dev", "--json"), "device")
    assert "/dev/fuse" in "\n".join(step["remedy"])


def test_device_that_may_not_be_opened(without: Callable[..., Result], tmp_path: Path) -> None:
    """A user can't have a /dev/fuse of another mode; something else that is only root's says the same."""
    result = without("mount --bind /etc/shadow /dev/fuse", "--json")
    step = fails_at(result, "device")
    assert step["detail"] == "cannot open /dev/fuse: permission denied"
    assert "is not the character device 10, 229" in "\n".join(step["remedy"])
    assert result.json["facts"]["fuse_device"]["mode"] == Path("/etc/shadow").stat().st_mode & 0o777


def test_device_that_is_another(without: Callable[..., Result]) -> None:
    step = fails_at(without("mount --bind /dev/null /dev/fuse", "--json"), "device")
    assert "it is not the FUSE device" in step["detail"]


def test_device_on_a_file_system_without_devices(without: Callable[..., Result]) -> None:
    script = "mount --bind /dev/fuse /dev/fuse; mount -o remount,bind,nodev /dev/fuse"
    step = fails_at(without(script, "--json"), "device")
    assert "nodev" in "\n".join(step["remedy"])


def test_id_map_refused_after_unshare_succeeded(without: Callable[..., Result]) -> None:
    script = "mount --rbind /proc /proc; mount -o remount,bind,ro /proc"
    step = fails_at(without(script, "--json"), "idmap")
    assert step["detail"] == "cannot write /proc/self/setgroups: read-only file system"


def test_root_inside_without_the_right_to_be_mapped(without: Callable[..., Result]) -> None:
    step = fails_at(without("true", "--json", doctor="setpriv --bounding-set=-setfcap viewfs doctor"), "idmap")
    assert "CAP_SETFCAP" in "\n".join(step["remedy"])


def test_proc_is_not_mounted(without: Callable[..., Result]) -> None:
    step = fails_at(without("mount -t tmpfs none /proc", "--json"), "idmap")
    assert "mount -t proc proc /proc" in "\n".join(step["remedy"])


def test_chroot(without: Callable[..., Result], tmp_path: Path) -> None:
    """A root that is no mount, with all of the host in it."""
    script = f"""
        mount -t tmpfs none {tmp_path}; cd /; mkdir {tmp_path}/root
        for name in *; do
            if [ -L "$name" ]; then cp -P "$name" {tmp_path}/root
            elif [ -d "$name" ]; then mkdir "{tmp_path}/root/$name"; mount --rbind "/$name" "{tmp_path}/root/$name"
            fi
        done"""
    step = fails_at(without(script, "--json", doctor=f"chroot {tmp_path}/root viewfs doctor"), "userns")
    assert "chroot" in "\n".join(step["remedy"])


def test_seccomp_filter_as_of_a_container(viewfs: Viewfs) -> None:
    script = """if True:
        import errno, os
        from viewfs.linux.process import no_new_privileges
        from viewfs.linux.seccomp import ALLOW, compile_filter, deny, install_filter

        no_new_privileges()
        install_filter(compile_filter({"unshare": deny(errno.EPERM)}, ALLOW))
        os.execvp("viewfs", ["viewfs", "doctor", "--json"])
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=viewfs.environment, timeout=SECONDS
    )
    step = fails_at(Result(done.returncode, done.stdout, done.stderr), "userns")
    assert "seccomp" in "\n".join(step["remedy"])


def test_whoever_ignores_the_ends_of_children(viewfs: Viewfs) -> None:
    script = (
        "import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp('viewfs', ['viewfs', 'doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=viewfs.environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_masked_proc_is_a_warning(without: Callable[..., Result]) -> None:
    result = without("mount -t tmpfs none /proc/sys")
    assert result.code == 0
    assert "! pid namespace and its /proc" in result.out
    assert "`viewfs run --pid` will not work here" in result.out
    assert result.out.endswith("This machine can run viewfs.\n")
