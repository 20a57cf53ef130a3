"""A hostile server of each kind tries everything (`attempts`), and nothing of it succeeds that it is not meant to do.

The table in docs/security.md is what comes of it: an attempt that is new belongs there, one that succeeds fails here.
"""

from __future__ import annotations

import json
import platform
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.escape.more_attempts import ATTEMPTS
from tests.kernel.conftest import SECONDS, Viewfs, viewfs

__all__ = ["viewfs"]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the attempts have the numbers of x86-64")

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs/security.md"

#: What is tried runs once the server has shut itself in.
MODULE = """
import json, sys
sys.path.insert(0, {checkout!r})
from tests.escape.more_attempts import run
from viewfs.modules.api import Module
from viewfs.modules.api.nodes import computed_file

class Hostile(Module):
    name = "escape"
    mount_point = "/escape"
    {needs}

    def open(self, mounting):
        report = json.dumps(run())
        return computed_file(lambda: report)
"""

DEVICE = """
import json, sys
sys.path.insert(0, {checkout!r})
from tests.escape.more_attempts import run
from viewfs.modules.api.device import CharDevice, DeviceFile, DeviceModule

class File(DeviceFile):
    at = 0

    def read(self, call, size):
        self.at += size
        return self.device.report[self.at - size : self.at]

class Device(CharDevice):
    file = File

class Hostile(DeviceModule):
    name = "escape"
    mount_point = "/escape"
    {needs}

    def open_devices(self, mounting):
        device = Device()
        device.report = json.dumps(run()).encode()
        return device
"""

SYSTEM_CALLS = """
import json, sys
sys.path.insert(0, {checkout!r})
from tests.escape.more_attempts import run
from viewfs.modules.api.calls import CallModule, File, call

class Hostile(CallModule):
    name = "escape"
    {needs}

    def begin(self, mounting):
        self.report = json.dumps(run())

    @call(5000)
    def tell(self, caller, *words):
        return File(self.report.encode())
"""
READ = "import os, viewfs; print(os.read(viewfs.call(5000), 1 << 20).decode())"

#: As `session.forked_server` shuts in who serves directories that the user has anyway.
OWN = """
import ctypes, json, os, sys
sys.path.insert(0, {checkout!r})
from tests.escape.more_attempts import run
from viewfs.namespaces.sandbox import Confinement, Needs, confine
from viewfs.namespaces.user import IdentityMap, unshare_user_namespace
from viewfs.linux.namespaces import CloneFlags

unshare_user_namespace(IdentityMap.of_caller(), CloneFlags.NEWNS)
confine(Confinement.VIEW, Needs.OWN_FILES)
print(json.dumps(run()))
"""

#: A server of each kind: its text, and what its class says of its needs.
SERVERS = {
    "reader": (MODULE, ""),
    "device": (DEVICE, ""),
    "device with callers' memory": (DEVICE, "uses_caller_memory = True"),
    "calls": (SYSTEM_CALLS, ""),
    "view": (MODULE, "uses_view = True"),
    "network": (MODULE, "uses_network = True"),
}
PROFILES = [*SERVERS, "own files", "program"]

#: What a program of the view tries is about the processes of its session.
OF_SESSION = [name for name in ATTEMPTS if name.endswith(" of the session")]
PROGRAM = """
import json, sys
sys.path.insert(0, {checkout!r})
from tests.escape.more_attempts import run
print(json.dumps(run({names!r})))
"""

_FILES = {
    "open a file of the user",
    "open a file with openat2",
    "make a file",
    "list a directory",
    "open an inherited descriptor anew, for writing",
    "make a file in memory",
    "make a file larger that it has open",
    "pass descriptors on",
    "take 1,500 MiB that is shared",
    "take 1,500 MiB as a stack that grows",
}
#: What the programs do that a server may start which uses the view.
_PROGRAMS = {
    "watch the file system (fanotify)",
    "start a program",
    "fork",
    "make a unix socket",
    "wait for others at an abstract socket",
    "open a message queue",
    "find a secret of the environment in its memory",
}
_NETWORK = {
    "make an internet socket",
    "make an IPv6 socket",
    "make a netlink socket",
    "make a vsock socket",
    "reach the host's network",
}
#: What each may do, because it is there for it. Everything else is refused.
MAY: dict[str, set[str]] = {
    "reader": set(),
    "device": set(),
    "device with callers' memory": {"have 3,000 threads"},
    "calls": {"pass descriptors on"},
    "view": _FILES | _PROGRAMS,
    "network": _FILES | _PROGRAMS | _NETWORK,
    "own files": _FILES | {"take 1,500 MiB", "have 3,000 threads"},
    "program": set(),
}
#: System calls by number that a device's server may make: it asks who its callers are, or reaches into their memory.
#: One that answers system calls hands out descriptors.
CALLS = {"device": [434], "device with callers' memory": [310, 311, 434], "calls": [46]}


@pytest.fixture
def results(viewfs: Viewfs, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """What became of each attempt, in a server of that kind."""
    viewfs.environment["VIEWFS_TEST_TOKEN"] = f"secret-{secrets.token_hex(16)}"
    checkout = str(HERE.parent.parent)

    def run(profile: str) -> dict[str, str]:
        if profile == "own files":
            done = subprocess.run(
                [sys.executable, "-c", OWN.format(checkout=checkout)],
                capture_output=True,
                text=True,
                env=viewfs.environment,
                timeout=SECONDS,
            )
            assert done.returncode == 0, done.stderr
            text = done.stdout
        elif profile == "program":
            script = PROGRAM.format(checkout=checkout, names=OF_SESSION)
            # Servers of all kinds, and the parents that replace some of them.
            (tmp_path / "tree").mkdir()
            (tmp_path / "mine").mkdir()
            made = ["--cow", tmp_path / "tree", "--cow-backend", "fuse", "--mount", f"none:{tmp_path}/mine/new:tmp"]
            text = viewfs("run", *made, "--mount", "none:/hello:hello", "--", sys.executable, "-c", script).out
        else:
            template, needs = SERVERS[profile]
            path = tmp_path / "hostile.py"
            path.write_text(template.format(checkout=checkout, needs=needs))
            read = [sys.executable, "-c", READ] if profile == "calls" else ["cat", "/escape"]
            text = viewfs("run", "--load", path, "--", *read).out
        found: dict[str, str] = json.loads(text)
        return found

    return run


def told(profile: str, name: str, result: str) -> str:
    """What the table says of it."""
    if name == "any other system call":
        if profile not in ("reader", *CALLS):
            return "–"  # they may make all but those that are denied
        if result == f"got through: {CALLS.get(profile)}":
            return "refused"
    if not result.startswith("got through"):
        return "refused" if not result.startswith("failed") else result
    return "allowed" if name in MAY[profile] else result


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_gets_through(results: Callable[[str], dict[str, str]], profile: str) -> None:
    found = {name: told(profile, name, result) for name, result in results(profile).items()}
    assert list(found) == (OF_SESSION if profile == "program" else list(ATTEMPTS))
    assert {name: result for name, result in found.items() if result not in ("refused", "allowed", "–")} == {}
    assert {name for name, result in found.items() if result == "allowed"} == MAY[profile], "or it is not there for it"
    rows = [[cell.strip() for cell in line.split("|")] for line in PAGE.read_text().splitlines() if line[:2] == "| "]
    column = PROFILES.index(profile) + 2
    in_table = {row[1]: row[column] for row in rows if len(row) == len(PROFILES) + 3}
    assert {name: in_table.get(name) for name in found} == found, "docs/security.md says otherwise"
