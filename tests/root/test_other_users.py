"""What another user of the machine can do to somebody's session: nothing. Needs root, to be both of them."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
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
def session(tmp_path: Path) -> Iterator[Path]:
    """A session of the account that owns this checkout's copy, or of `nobody`'s like; its socket."""
    owner = os.environ.get("VIEWFS_TEST_ACCOUNT", "viewfs-test")
    try:
        account = pwd.getpwnam(owner)
    except KeyError:
        pytest.skip(f"there is no account {owner}")
    runtime = Path(f"/tmp/viewfs-root-test-{os.getpid()}")
    runtime.mkdir()
    os.chown(runtime, account.pw_uid, account.pw_gid)
    runtime.chmod(0o755)
    # -l: in the account's own environment; the checkout may be where it can't look.
    code = f"import sys; sys.path.insert(0, {account.pw_dir + '/checkout'!r}); from viewfs.cli.main import main; main()"
    process = subprocess.Popen(
        ["runuser", "-u", owner, "--", sys.executable, "-c", code]
        + ["run", "--name", "private", "--", "sh", "-c", "echo ready; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(runtime)},
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
