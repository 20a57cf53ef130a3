"""What another user of the machine can do to somebody's session: nothing. Needs root, to be both of them."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.needs("runuser"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users"),
]

CONNECT = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.settimeout(20)
    print("connected", s.recv(1000))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def session() -> Iterator[Path]:
    """The control socket of a session of the account that the other tests run as."""
    owner = os.environ.get("VIEWFS_TEST_ACCOUNT", "viewfs-test")
    try:
        account = pwd.getpwnam(owner)
    except KeyError:
        pytest.skip(f"there is no account {owner}")
    runtime = Path(tempfile.mkdtemp(prefix="viewfs-test-"))  # pytest's own directories are closed to the account
    os.chown(runtime, account.pw_uid, account.pw_gid)
    runtime.chmod(0o755)
    code = f"import sys; sys.path.insert(0, {account.pw_dir + '/checkout'!r}); from viewfs.__main__ import main; main()"
    run = ["run", "--name", "private", "--", "sh", "-c", "echo ready; cat"]
    process = subprocess.Popen(
        ["runuser", "-u", owner, "--", sys.executable, "-c", code, *run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(runtime)},
        cwd="/",
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield runtime / "viewfs/private.sock"
    finally:
        process.communicate(timeout=60)
        shutil.rmtree(runtime)


def _connect_as_another(path: Path) -> str:
    done = subprocess.run(
        ["runuser", "-u", "nobody", "--", "/usr/bin/python3", "-c", CONNECT, str(path)],
        capture_output=True,
        text=True,
        cwd="/",
    )
    return done.stdout.strip()


def test_the_directory_keeps_others_out(session: Path) -> None:
    assert session.is_socket()
    assert _connect_as_another(session) == "PermissionError"


def test_whoever_gets_in_all_the_same_is_told_nothing(session: Path) -> None:
    """The peer's credentials are checked too, should the modes have been changed."""
    session.parent.chmod(0o755)
    session.chmod(0o777)
    try:
        assert _connect_as_another(session) == "connected b''"
    finally:
        session.parent.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(session))
        assert connection.recv(1000) == b"", "root is another user, too"


def test_programs_with_file_capabilities(session: Path) -> None:
    """As ping is one: they run, and have none of them (capabilities(7), no_new_privs)."""
    runtime = session.parent.parent
    program = runtime / "true"
    shutil.copy("/bin/cat", program)
    program.chmod(0o755)
    # struct vfs_cap_data of linux/capability.h, version 2: effective, CAP_NET_RAW.
    os.setxattr(program, "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    owner = os.environ.get("VIEWFS_TEST_ACCOUNT", "viewfs-test")
    checkout = pwd.getpwnam(owner).pw_dir + "/checkout"
    code = f"import sys; sys.path.insert(0, {checkout!r}); from viewfs.__main__ import main; main()"

    def run(*command: str) -> str:
        environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(runtime)}
        arguments = ["runuser", "-u", owner, "--", *command]
        return subprocess.run(arguments, env=environment, cwd="/", capture_output=True, text=True, check=True).stdout

    reading = [str(program), "/proc/self/status"]
    assert "CapEff:\t0000000000002000\n" in run(*reading), "outside it has it"
    for options in ((), ("--as-root",), ("--pid",)):
        status = run(sys.executable, "-c", code, "run", *options, "--", *reading)
        (effective,) = re.findall(r"^CapEff:\t([0-9a-f]+)$", status, re.MULTILINE)
        assert not int(effective, 16) & 1 << 13, options
