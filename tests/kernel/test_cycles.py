"""Mounts that come and go leave nothing in the processes of a session, and many can be there at once."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import View, Viewfs, session_processes, wait_until
from viewfs.session.client import Session, find_session
from viewfs.session.runtime import RuntimeDirectory
from viewfs.session.wire.channel import Channel

#: `make soak-servers` has 10,000 cycles and 1,000 mounts.
CYCLES = int(os.environ.get("VIEWFS_SOAK_CYCLES", "12"))
MOUNTS = int(os.environ.get("VIEWFS_SOAK_MOUNTS", "70"))

VIEWS = int(os.environ.get("VIEWFS_SOAK_VIEWS", "8"))
OWNERS = ("viewfs-standby", "viewfs-supervis")

OpenView = Callable[..., View]


def descriptors(view: View) -> int:
    return len(os.listdir(f"/proc/{view.supervisor}/fd"))


def resident(view: View) -> int:
    """KiB of the stand-by and the supervisor (proc_pid_statm(5))."""
    pids = [pid for pid, name in session_processes(view.viewfs.directory).items() if name in OWNERS]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4


@pytest.fixture
def session(open_view: OpenView, monkeypatch: pytest.MonkeyPatch) -> Any:
    view = open_view()
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, view.viewfs.environment[name])
    with closing(find_session(view.name)) as found:
        yield view, found


def load(session: Session, module: str, place: str, **options: str) -> None:
    session.request("mount", type=module, source="", path=place, options=options, cwd="/", operation="insmod")


def unload(session: Session, place: str) -> None:
    session.request("umount", path=place, operation="rmmod")


@pytest.mark.parametrize("module", ["hello", "tmp", "useless", "unreal"])
def test_no_descriptor_is_left_of_a_mount(session: tuple[View, Session], module: str) -> None:
    view, found = session
    counts, memory = [], 0
    for _cycle in range(CYCLES):
        load(found, module, "/place")
        unload(found, "/place")
        counts.append(wait_until(lambda: descriptors(view), "they can be counted"))
        if _cycle == CYCLES // 2:
            memory = resident(view)
    wait_until(lambda: descriptors(view) <= counts[1], f"there are no more than after the second: {counts}")
    assert resident(view) < memory + 1024, "memory does not grow"
    logged = view.json("epochs")["epochs"]
    assert logged[-1]["epoch"] == 2 * CYCLES and len(logged) <= 2201 and view.json("lsmod")["modules"] == []


def test_many_mounts_at_once(session: tuple[View, Session]) -> None:
    """(`make soak-servers`: more than the descriptors of a usual process would be enough for.)"""
    view, found = session
    for number in range(MOUNTS):
        load(found, "hello", f"/many/{number}")
    assert view.sh("cat /many/*").out == "Hello from viewfs!\n" * MOUNTS
    for number in range(MOUNTS):
        unload(found, f"/many/{number}")
    assert view.json("lsmod")["modules"] == []


def test_more_mounts_than_a_process_has_descriptors_for(open_view: OpenView) -> None:
    """Three of each are kept by the supervisor and by the stand-by; commands have the limit that the user has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        view = open_view()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    script = "for number in $(seq 50); do viewfs insmod hello /many/$number; done; cat /many/* | wc -l"
    inside = view.sh(f"viewfs at 0 -- sh -c 'ulimit -Sn'; {script}").out
    assert inside == "100\n50\n"
    assert view("log").out == ""


def test_many_views_at_once(open_view: OpenView, image: Callable[..., Path], viewfs: Viewfs) -> None:
    disk = image(file="content")
    views = [open_view("--mount", f"{disk}:/mnt", name=f"view{number}") for number in range(VIEWS)]
    assert {row["name"] for row in viewfs("ps", "--json").json["sessions"]} == {view.name for view in views}
    assert {view.sh("cat /mnt/file").out for view in views} == {"content"}
    assert all(view.close() == (0, "") for view in views)
    assert not session_processes(viewfs.directory)


def test_an_epoch_that_comes_again_can_be_entered(session: tuple[View, Session], tmp_path: Path) -> None:
    """The same was mounted in epochs 1 and 3."""
    view, found = session
    load(found, "hello", "/hello")
    load(found, "hello", "/second")
    unload(found, "/second")
    load(found, "hello", "/third")
    for epoch in (1, 3):
        out = view.viewfs(
            "at", str(epoch), "--session", view.name, "--", "sh", "-c", "cat /hello; cat /second /third 2>&-; true"
        ).out
        assert out == "Hello from viewfs!\n"


def test_a_client_that_goes_away_while_it_mounts(session: tuple[View, Session], tmp_path: Path) -> None:
    """Whatever the moment, the directory in which the mount point was to be is there, and the mount is or isn't."""
    view, _found = session
    for number in range(16):
        directory = tmp_path / f"directory{number}"
        directory.mkdir()
        (directory / "file").touch()
        (runtime,) = RuntimeDirectory.existing()
        with closing(runtime), closing(Channel(runtime.connect(view.name))) as channel:
            assert channel.receive() is not None
            channel.send({"id": 1, "op": "mount", "type": "hello", "path": f"{directory}/x"})
            time.sleep(number * 0.008)  # the moment is what is tried
    load(_found, "hello", "/last")  # after all that was going on
    for number in range(16):
        listed = view.sh(f"ls {tmp_path}/directory{number}; touch {tmp_path}/directory{number}/new").out.split()
        assert listed in (["file"], ["file", "x"])
        assert (tmp_path / f"directory{number}/new").exists()
