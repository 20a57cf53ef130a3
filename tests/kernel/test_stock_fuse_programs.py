"""Programs that speak FUSE, as Debian has them, mount in a view by themselves."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.conftest import View, host_mounts, kill, session_processes, wait_until

OpenView = Callable[..., View]


@dataclass(frozen=True)
class Program:
    """`command` mounts something with `file` in it on `{out}`; it has all in a directory `{d}`."""

    command: str
    #: As it is called in the process table.
    process: str
    can_be_written: bool = False


SSHFS = "sshfs -o 'ssh_command={d}/server' x:{d}/in {out}"
RCLONE = "HOME={d} rclone --config /dev/null mount --daemon :local:{d}/in {out}"
PROGRAMS = {
    "squashfuse": Program("squashfuse {d}/i.sqfs {out}", "squashfuse"),
    "bindfs": Program("bindfs {d}/in {out}", "bindfs", True),
    "sshfs": Program(SSHFS, "sshfs", True),
    "fuse2fs": Program("fuse2fs -o ro {d}/i.ext4 {out}", "fuse2fs"),
    "archivemount": Program("archivemount -o ro {d}/i.tar {out}", "archivemount"),
    "rclone (go)": Program(RCLONE, "rclone", True),
    "unionfs": Program("unionfs {d}/new=RW:{d}/in=RO {out}", "unionfs"),
    "mergerfs": Program("mergerfs {d}/in:{d}/new {out}", "mergerfs", True),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("in", "out", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/file").write_text("inside")
    (tmp_path / "server").write_text("#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n")
    (tmp_path / "server").chmod(0o755)
    with tarfile.open(tmp_path / "i.tar", "w") as archive:
        archive.add(tmp_path / "in/file", "file")
    subprocess.run(["mksquashfs", tmp_path / "in", tmp_path / "i.sqfs", "-quiet", "-no-progress"], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tmp_path / "in", tmp_path / "i.ext4", "8M"], check=True)
    return tmp_path


@pytest.mark.parametrize("name", ["squashfuse", "bindfs", "sshfs", "rclone (go)"])
def test_it_asks_fusermount(open_view: OpenView, directory: Path, name: str) -> None:
    """Where mount(2) is the kernel's: the module `fusermount` stands in for the host's setuid program."""
    program, out = PROGRAMS[name], directory / "out"
    view = open_view("--no-calls", "--load", "fusermount")
    view.sh(program.command.format(d=directory, out=out))
    wait_until(lambda: len(view.json("lsmod")["modules"]) == 2, "it is mounted")
    assert view.sh(f"cat {out}/file").out == "inside" and list(out.iterdir()) == []
    view.sh(f"fusermount3 -u {out}")
    assert [row["module"] for row in view.json("lsmod")["modules"]] == ["fusermount"]
    again = view.sh(f"fusermount3 -u {out}", check=False)
    assert again.code == 1 and again.err.startswith("fusermount3: nothing of this view is mounted")
    assert view.sh(f"fusermount3 -o odd {out}", check=False).code == 1
    wait_until(lambda: program.process not in session_processes(directory).values(), "it has ended")


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_mounts_and_unmounts(open_view: OpenView, directory: Path, name: str) -> None:
    program = PROGRAMS[name]
    view = open_view()
    out = directory / "out"
    command = program.command.format(d=directory, out=out)

    def mount() -> None:
        view.sh(command)
        wait_until(lambda: view.json("lsmod")["modules"], "it is mounted")

    mount()
    (row,) = view.json("lsmod")["modules"]
    assert (row["module"], row["path"]) == ("fuse", str(out))
    assert {"file", "inside"} <= set(view.sh(f"ls {out}; cat {out}/file").out.split())
    if program.can_be_written:
        assert view.sh(f"echo new > {out}/other; cat {out}/other; rm {out}/other").out == "new\n"
    assert list(out.iterdir()) == [] and not host_mounts(out), "nobody outside sees it"
    view.sh(f"umount {out}")
    assert view.json("lsmod")["modules"] == []
    wait_until(lambda: program.process not in session_processes(directory).values(), "it has ended")
    mount()
    (killed,) = [pid for pid, comm in session_processes(directory).items() if comm == program.process][:1]
    kill(killed)
    wait_until(lambda: view.sh(f"ls {out}", check=False).code != 0, "its mount is dead")
    view.sh(f"fusermount3 -u {out} || umount {out}")
    mount()
    view.close()
    wait_until(lambda: program.process not in session_processes(directory).values(), "it ends with the session")
