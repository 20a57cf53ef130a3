"""Servers that their input has taken over, and what they say to the supervisor then."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs
from viewfs.errors import ViewfsError
from viewfs.session.client import find_session

#: What the modules here begin with.
SOCKETS = """
import array, json, os, random, socket, stat, struct, time

def sockets():
    for fd in range(3, 100):
        try:
            is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            continue
        if is_socket:
            yield fd

def send(fd, data, descriptors=0):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * descriptors))]
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        if descriptors:
            sock.sendmsg([data], rights)
            return
    except PermissionError:
        pass  # a reader can send none
    finally:
        sock.detach()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        sock.sendall(data, socket.MSG_NOSIGNAL)
    finally:
        sock.detach()
"""

#: A module whose `open`, which runs sealed, plays the part of one that was taken over: it writes what it likes to every
#: socket that it has.
MODULE = """
from viewfs.modules.api import FileSystem, Module

MESSAGE = %s

class Hostile(Module):
    name = "hostile"
    takes_source = False

    def open(self, mounting):
        body = json.dumps(MESSAGE).encode()
        for fd in sockets():
            send(fd, struct.pack(">I", len(body)) + body, MESSAGE.get("fds", 0))
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
    (tmp_path / "hostile.py").write_text(SOCKETS + MODULE % text)
    script = f"""
        viewfs mount -t {tmp_path}/hostile.py none /mnt && echo mounted
        ls /usr/bin/env; grep -c hostile /proc/self/mountinfo || true
        viewfs insmod hello /mnt/h && cat /mnt/h; viewfs lsmod --json
    """
    result = viewfs.sh("--mount", "none:/mnt:tmp", script=script.replace("&& echo mounted", "&& echo mounted || true"))
    lines = result.out.splitlines()
    assert lines[:2] == ["/usr/bin/env", "0"], result
    assert "Hello from viewfs!" in result.out
    assert "not permitted" not in result.err, "it could say it"
    assert result.err.count("\n") == 1 and "\x1b" not in result.err and "Traceback" not in result.err, result
    assert not (tmp_path / "ran").exists() and os.path.exists("/usr/bin/env")


FLOODS = """
import os
from viewfs.modules.api import Module
from viewfs.modules.api.nodes import computed_file

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
from viewfs.modules.api.device import DeviceModule

class Hostile(DeviceModule):
    name = "hostile"

    def devices(self, mounting):
        found = {"root_mode": 0o100666, "writable": True, "resumable": False, "names": [""]}
        body = json.dumps({"ok": found}).encode()
        send(next(sockets()), struct.pack(">I", len(body)) + body)
        time.sleep(1000)
"""


def test_a_device_that_never_answers_takes_nothing_with_it(viewfs: Viewfs, tmp_path: Path) -> None:
    """It says that it is there, and then is not: the directory in which it was to be stays as it is."""
    (tmp_path / "hostile.py").write_text(SOCKETS + NEVER_ANSWERS)
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


#: The same with a message for each seed: bytes of no form, other fields, other values, other descriptors; also some
#: that are honest. A server says so once or more, and goes on, ends, or dies.
SAYS_ANYTHING = """
from viewfs.modules.api import Module
from viewfs.modules.api.device import CharDevice, DeviceModule
from viewfs.modules.api.nodes import computed_file
from viewfs.modules.api.options import integer

EVIL = {evil!r}
VALUES = [None, True, False, 0, 1, -1, 0o40755, 0o100644, 0o120777, 0o20666, 1 << 70, 1.5, "", "x", EVIL, "/usr/bin",
          "..",
          "a/b", ".main", "\\\\x1b[31m", "\\\\ud800", [], [""], ["1", "2"], ["../x"], [EVIL], {{}}, {{"ok": 1}}, [[]],
          "x" * 5000]
FIELDS = ["root_mode", "writable", "resumable", "names", "type", "path", "source", "code", "confinement", "descriptors",
          "uses_view", "has_devices", "device", "source_identity", "is_built_in", "needs_callers", "id", "op", "ended",
          "status", "error", "ok", "fds", "plans", "rest", "mirrors", "served", "attached"]

def message(chance, honest, descriptors):
    kind = chance.randrange(6)
    if kind == 0:
        lies = struct.pack(">I", chance.randrange(1 << 32)) + b"x" * 50
        return chance.choice([b"", chance.randbytes(chance.randrange(200)), lies])
    found = dict(honest)
    for _ in range(chance.randrange(4)):
        if chance.random() < 0.3 and found:
            del found[chance.choice(sorted(found))]
        else:
            found[chance.choice(FIELDS if chance.random() < 0.5 else sorted(honest))] = chance.choice(VALUES)
    top = {{"ok": found}}
    if kind == 1:
        said = {{"exit_code": chance.choice(VALUES), "message": chance.choice(VALUES)}}
        top = {{"error": chance.choice([*VALUES, said])}}
    elif kind == 2:
        top = chance.choice([found, {{"ok": chance.choice(VALUES)}}, {{}}, [found], {{"id": 1, "ok": found}}])
    if descriptors and isinstance(top, dict) and chance.random() < 0.7:
        top = {{**top, "fds": descriptors}}
    body = json.dumps(top).encode()
    if kind == 3:
        body = bytearray(body)
        for _ in range(chance.randrange(1, 5)):
            body[chance.randrange(len(body))] = chance.randrange(256)
    return struct.pack(">I", len(body)) + bytes(body)

def play(seed, honest):
    chance = random.Random(seed)
    for fd in sockets():
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            descriptors = chance.choice([1, 2, 5, 100]) if chance.random() < 0.2 else 0
            try:
                send(fd, message(chance, honest, descriptors), descriptors)
            except OSError:
                pass
    if chance.random() < 0.7:
        os._exit(chance.choice([0, 0, 1]))
    if chance.random() < 0.5:
        os.kill(os.getpid(), 9)

OPTIONS = (integer("seed", 0, "what it says"),)
"""
SAYS_ANYTHING_OF_FILES = """
class Hostile(Module):
    name = "hostile"
    options = OPTIONS

    def open(self, mounting):
        play(mounting.options["seed"], {"root_mode": 0o100444, "writable": False, "resumable": False, "names": None})
        return computed_file(lambda: "x")
"""
SAYS_ANYTHING_OF_DEVICES = """
class Hostile(DeviceModule):
    name = "hostile"
    options = OPTIONS

    def open_devices(self, mounting):
        play(mounting.options["seed"], {"root_mode": 0o100666, "writable": True, "resumable": False, "names": [""]})
        return CharDevice()
"""


#: Characters of a message, or a remedy, that are passed on.
LONGEST = 10_000


@pytest.mark.parametrize("kind", ["files", "devices", "files of the view"])
def test_whatever_it_says_has_no_consequences(
    open_view: Callable[..., View], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What is mounted is what was asked for, where it was asked for; nothing is imported, and nothing is left open.

    (`make soak-servers`: 50,000 reports of each.)
    """
    count = int(os.environ.get("VIEWFS_SOAK_REPORTS", "60"))
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    of_kind = SAYS_ANYTHING_OF_DEVICES if kind == "devices" else SAYS_ANYTHING_OF_FILES
    if kind == "files of the view":  # which can send descriptors too
        of_kind = of_kind.replace("options = OPTIONS", "options, uses_view = OPTIONS, True")
    module = tmp_path / "hostile.py"
    module.write_text(SOCKETS + SAYS_ANYTHING.format(evil=str(evil)) + of_kind)
    view = open_view()
    monkeypatch.setenv("XDG_RUNTIME_DIR", view.viewfs.environment["XDG_RUNTIME_DIR"])
    supervisor = view.supervisor
    before = mounted(view)
    mounts, refused = 0, Counter[tuple[bool, bool]]()
    with contextlib.closing(find_session(view.name)) as session:
        request = {
            "type": str(module), "source": "", "path": "/place", "cwd": "/", "operation": "insmod",
        }  # fmt: skip
        files = None
        for seed in range(count):
            try:
                result = session.request("mount", **request, options={"seed": str(seed), "deadline": "1"})
            except ViewfsError as error:
                assert all(text.isprintable() for text in (error.message, error.remedy or "")), seed
                assert max(map(len, (error.message, error.remedy or ""))) <= LONGEST, seed
                refused["what can't be" in str(error), "descriptors" in str(error)] += 1
                continue
            finally:
                if seed == 20:
                    files = len(os.listdir(f"/proc/{supervisor}/fd"))
            mounts += 1
            assert result["path"] == "/place", seed
            session.request("umount", path="/place", lazy=True)
    assert mounted(view) == before and view.json("lsmod")["modules"] == []
    assert view.supervisor == supervisor and not (tmp_path / "ran").exists()
    assert files is not None and len(os.listdir(f"/proc/{supervisor}/fd")) <= files + 5
    assert 0 < mounts < count and refused[True, False] > count / 10, "it was heard"
    assert refused[False, True] or kind != "files of the view", refused
    print(f"{kind}: {count} reports, {mounts} mounts, which were asked for")


def mounted(view: View) -> list[str]:
    """What the view has mounted, and where."""
    rows = view.sh("cut -d' ' -f5- /proc/self/mountinfo").out.splitlines()
    return sorted(row for row in rows if " /place " not in row)


DIES_WHEN_LOOKED_AT = """
import os
from viewfs.modules.api.device import CharDevice, DeviceModule

class Device(CharDevice):
    @property
    def permissions(self):
        os._exit(3)

class Dies(DeviceModule):
    name = "dies"

    def open_devices(self, mounting):
        return Device()
"""


def test_a_server_that_dies_before_it_is_mounted(viewfs: Viewfs, tmp_path: Path) -> None:
    """That is said, and nobody waits for it."""
    (tmp_path / "dies.py").write_text(DIES_WHEN_LOOKED_AT)
    failed = viewfs("run", "--load", f"{tmp_path}/dies.py:/dies", "--", "true", check=False)
    assert failed.code == 1
    assert failed.err == "viewfs: cannot mount on /dies: its server ended (exit status 3); see `viewfs log`\n"
