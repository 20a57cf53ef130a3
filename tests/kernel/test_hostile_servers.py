"""Servers that their input has taken over, and what they say to the supervisor then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs

#: A module whose `open`, which runs sealed, plays the part of one that was taken over: it writes what it likes to every
#: socket that it has.
MODULE = """
import array, json, os, socket, stat, struct
from viewfs.modules.api import FileSystem, Module

MESSAGE = %s

class Hostile(Module):
    name = "hostile"
    takes_source = False

    def open(self, mounting):
        body = json.dumps(MESSAGE).encode()
        for fd in range(3, 100):
            try:
                if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                    continue
            except OSError:
                continue
            rights = []
            if MESSAGE.get("fds"):
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * MESSAGE["fds"]))]
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
            sock.sendmsg([struct.pack(">I", len(body)) + body], rights)
            sock.detach()
        os._exit(0)
"""

DIRECTORY = 0o40755
FOUND = {"root_mode": DIRECTORY, "writable": False, "resumable": True, "names": None}
MESSAGES = {
    "another place": {"ok": FOUND | {"path": "/usr/bin", "source": "/"}},
    "another module": {"ok": FOUND | {"type": "EVIL"}},
    "what a server says first": {
        "ok": {
            "type": "EVIL", "path": "/usr/bin", "source": "", "uses_view": False, "confinement": "kernel",
            "has_devices": False, "device": 1, "source_identity": None, "descriptors": [],
        }
    },
    "devices": {"ok": FOUND | {"names": ["../../usr/bin/ls"]}},
    "descriptors": {"ok": FOUND, "fds": 5},
    "an error with colours": {"error": {"exit_code": 1, "message": "\x1b[31mred\nsecond line", "remedy": "\x07"}},
    "no object": {"ok": [1]},
    "a number": {"ok": 7},
    "an error that is none": {"error": [[]]},
}  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES)
def test_what_it_says_has_no_consequences(viewfs: Viewfs, tmp_path: Path, message: str) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    text = repr(MESSAGES[message]).replace("'EVIL'", repr(str(evil)))
    (tmp_path / "hostile.py").write_text(MODULE % text)
    script = f"""
        viewfs mount -t {tmp_path}/hostile.py none /mnt && echo mounted
        ls /usr/bin/env; grep -c hostile /proc/self/mountinfo || true
        viewfs insmod hello /mnt/h && cat /mnt/h; viewfs lsmod --json
    """
    result = viewfs.sh("--mount", "none:/mnt:tmp", script=script.replace("&& echo mounted", "&& echo mounted || true"))
    lines = result.out.splitlines()
    assert lines[:2] == ["/usr/bin/env", "0"], result
    assert "Hello from viewfs!" in result.out
    assert result.err.count("\n") == 1 and "\x1b" not in result.err and "Traceback" not in result.err, result
    assert not (tmp_path / "ran").exists() and os.path.exists("/usr/bin/env")


FLOODS = """
import os
from viewfs.modules.api import Module
from viewfs.modules.nodes import computed_file

class Floods(Module):
    name = "floods"

    def open(self, mounting):
        def flood():
            for _ in range(3000):
                os.write(2, b"x" * 60_000)
            os.write(2, b"\\nlast line\\n")
            return "done\\n"
        return computed_file(flood)
"""


def test_a_log_that_is_flooded(viewfs: Viewfs, tmp_path: Path) -> None:
    """180 MB without the end of a line: the supervisor keeps some of it, and the last."""
    (tmp_path / "floods.py").write_text(FLOODS)
    script = """
        cat /floods; viewfs log | tail -n 1 | cut -d' ' -f2-; viewfs log | wc -c
        grep VmHWM /proc/$(viewfs ps --json | grep -o '"pid": *[0-9]*' | grep -o '[0-9]*')/status
    """
    lines = viewfs.sh("--load", f"{tmp_path}/floods.py:/floods", script=script).out.splitlines()
    assert lines[:2] == ["done", "last line"]
    assert int(lines[2]) < 10 << 20 and int(lines[3].split()[1]) < 150_000, lines


NEVER_ANSWERS = """
import json, os, socket, stat, struct, time
from viewfs.modules.device import DeviceModule

class Hostile(DeviceModule):
    name = "hostile"

    def devices(self, mounting):
        fd = next(fd for fd in range(3, 100) if is_socket(fd))
        found = {"root_mode": 0o100666, "writable": True, "resumable": False, "names": [""]}
        body = json.dumps({"ok": found}).encode()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
        sock.sendall(struct.pack(">I", len(body)) + body)
        time.sleep(1000)

def is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
"""


def test_a_device_that_never_answers_takes_nothing_with_it(viewfs: Viewfs, tmp_path: Path) -> None:
    """It says that it is there, and then is not: the directory in which it was to be stays as it is."""
    (tmp_path / "hostile.py").write_text(NEVER_ANSWERS)
    (tmp_path / "place").mkdir()
    script = f"""
        cd {tmp_path}/place
        viewfs insmod -o deadline=2 {tmp_path}/hostile.py {tmp_path}/place/device || true
        echo x > file; ls
        viewfs insmod hello {tmp_path}/place/hello; cat $PWD/hello; grep -c hostile /proc/self/mounts || true
    """
    result = viewfs.sh(script=script)
    assert result.out.splitlines() == ["file", "Hello from viewfs!", "0"], result
    assert "no answer after 2 seconds" in result.err
