"""A module server is treated as if its input had taken it over: what could it do then? The module here tries."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, Viewfs

#: Each is tried from inside a server after it has been shut in; the name of the exception is what comes of it.
ATTEMPTS = {
    "open a file": "open('/etc/passwd')",
    "list the root": "os.listdir('/')",
    "execute": "os.execv('/bin/sh', ['sh', '-c', 'true'])",
    "fork": "os.fork()",
    "open a socket": "socket.socket(socket.AF_INET)",
    "make a user namespace": "call('unshare', 0x10000000)",
    "mount": "call('mount', b'none', b'/', b'tmpfs', 0, None)",
    "kill its neighbours": "os.kill(-1, 0)",
    "trace the agent": "call('ptrace', 16, os.getppid(), 0, 0)",
    "gain a capability": "call('prctl', 47, 2, 21, 0, 0)",
}
#: Not refused, for it takes nothing that the server has not got.
DESCRIPTORS = "sum(1 for fd in range(1024) if is_open(fd))"

MODULE = """
import ctypes, errno, json, os, socket
from viewfs.modules.api import Module
from viewfs.modules.api.nodes import computed_file

libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def is_open(fd):
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False

def attempt(code):
    try:
        return repr(eval(code))
    except OSError as error:
        return errno.errorcode[error.errno]

class Hostile(Module):
    name = "hostile"
    mount_point = "/hostile"
    uses_view = {uses_view}

    def open(self, mounting):
        attempts = {attempts!r}
        report = lambda: json.dumps({{name: attempt(code) for name, code in attempts.items()}})
        return computed_file(report)
"""


@pytest.fixture
def report(open_view: Callable[..., View], tmp_path: Path) -> Callable[[bool], dict[str, str]]:
    def make(uses_view: bool) -> dict[str, str]:
        # A module that uses the view may start programs: that would be the end of this one.
        tried = {name: code for name, code in ATTEMPTS.items() if not (uses_view and name in ("execute", "fork"))}
        path = tmp_path / "hostile.py"
        path.write_text(
            textwrap.dedent(MODULE).format(uses_view=uses_view, attempts=tried | {"descriptors": DESCRIPTORS})
        )
        view = open_view("--load", str(path))
        shown: dict[str, str] = json.loads(view.sh("cat /hostile").out)
        server = view.json("lsmod")["modules"][0]
        shown["confinement"] = server["confinement"]
        status = Path(f"/proc/{server['server']}/status").read_text()
        shown["capabilities"] = next(line for line in status.splitlines() if line.startswith("CapPrm")).split()[1]
        shown["no_new_privileges"] = next(
            line for line in status.splitlines() if line.startswith("NoNewPrivs")
        ).split()[1]
        shown["seccomp"] = next(line for line in status.splitlines() if line.startswith("Seccomp:")).split()[1]
        return shown

    return make


def test_a_sealed_server_can_do_nothing_but_serve(report: Callable[[bool], dict[str, str]]) -> None:
    shown = report(False)
    assert shown["confinement"] == "sealed"
    assert {name: shown[name] for name in ATTEMPTS} == dict.fromkeys(ATTEMPTS, "EPERM")
    assert (shown["capabilities"], shown["no_new_privileges"], shown["seccomp"]) == ("0" * 16, "1", "2")
    assert int(shown["descriptors"]) <= 10


def test_the_root_of_a_sealed_server_is_empty() -> None:
    """Its filter does not even let it look."""
    script = """
import os
from viewfs.namespaces import sandbox
user = os.getuid()
from viewfs.namespaces.user import IdentityMap, unshare_user_namespace
from viewfs.linux.namespaces import CloneFlags
unshare_user_namespace(IdentityMap.of_caller(), CloneFlags.NEWNS)
sandbox.install_filter = lambda _program: None
sandbox.restrict_self = lambda **_what: None
sandbox.confine(sandbox.Confinement.SEALED, limits=sandbox.Limits())
try:
    os.mkdir("/x")
except OSError as error:
    print(os.listdir("/"), os.listdir(".."), os.getuid() == user, error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "[] [] True Read-only file system\n", done


def test_a_server_that_uses_the_view_keeps_just_that(report: Callable[[bool], dict[str, str]]) -> None:
    shown = report(True)
    assert shown["confinement"] == "view"
    assert "TextIOWrapper" in shown["open a file"] and "usr" in shown["list the root"]
    for name in ("open a socket", "make a user namespace", "mount", "trace the agent", "gain a capability"):
        assert shown[name] == "EPERM", name
    assert (shown["capabilities"], shown["no_new_privileges"], shown["seccomp"]) == ("0" * 16, "1", "2")


def test_every_other_user_is_kept_out(viewfs: Viewfs, open_view: Callable[..., View]) -> None:
    """The socket's directory can't be entered by others, and neither can another's be used in its place."""
    open_view()
    assert (viewfs.runtime / "viewfs").stat().st_mode & 0o077 == 0
    (viewfs.runtime / "viewfs").chmod(0o755)
    try:
        assert viewfs("ps", "--json").json["sessions"] == []
    finally:
        (viewfs.runtime / "viewfs").chmod(0o700)
    assert len(viewfs("ps", "--json").json["sessions"]) == 1
