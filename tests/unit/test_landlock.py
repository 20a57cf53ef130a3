"""Landlock for real, in a process that restricts itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from viewfs.linux.landlock import landlock_version

pytestmark = pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")

SCRIPT = """
import errno, json, os, signal, socket, sys
from viewfs.linux.landlock import Scope, restrict_self
from viewfs.linux.process import no_new_privileges

results = {}
def attempt(name, call):
    try:
        call()
        results[name] = "done"
    except OSError as error:
        results[name] = errno.errorcode[error.errno]

opened = os.open("/etc/passwd", os.O_RDONLY)
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("")
abstract.listen()
parent = os.getppid()
no_new_privileges()
restrict_self(files=WHAT[0], network=WHAT[1], scoped=WHAT[2])
attempt("open", lambda: os.open("/etc/passwd", os.O_RDONLY))
attempt("read what is open", lambda: os.read(opened, 1))
attempt("connect", lambda: socket.socket().connect(listening.getsockname()))
attempt("signal itself", lambda: os.kill(os.getpid(), 0))
attempt("signal others", lambda: os.kill(parent, 0))
print(json.dumps(results))
"""


def restricted(what: tuple[bool, bool, int]) -> dict[str, str]:
    script = SCRIPT.replace("WHAT", repr(what))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    results: dict[str, str] = json.loads(done.stdout)
    return results


def test_each_right_by_itself() -> None:
    nothing = dict.fromkeys(("open", "read what is open", "connect", "signal itself", "signal others"), "done")
    assert restricted((False, False, 0)) == nothing
    assert restricted((True, False, 0)) == nothing | {"open": "EACCES"}
    if landlock_version() >= 4:
        assert restricted((False, True, 0)) == nothing | {"connect": "EACCES"}
    if landlock_version() >= 6:
        assert restricted((False, False, 3)) == nothing | {"signal others": "EPERM"}


@pytest.mark.parametrize("version", [0, 1, 3, 4, 5])
def test_older_kernels_get_what_they_know(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """As much as that version has, and no argument that it would refuse."""
    from viewfs.linux import landlock

    made: list[tuple[int, tuple[int, int, int]]] = []

    def create(address: int, size: int, _flags: int) -> int:
        ruleset = landlock._Ruleset.from_address(address)
        made.append((size, (ruleset.files, ruleset.network, ruleset.scoped)))
        return -1

    monkeypatch.setattr(landlock, "landlock_version", lambda: version)
    monkeypatch.setattr(landlock, "_create_ruleset", create)
    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(landlock, "check", lambda _result, _call: (_ for _ in ()).throw(OSError(1, "made")))
        try:
            landlock.restrict_self(files=True, network=True, scoped=3)
        except OSError as error:
            assert error.strerror == "made"
    rights = {1: (1 << 13) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
    assert made == ([] if not version else [(16 if version > 3 else 8, (rights[version], 3 if version > 3 else 0, 0))])
