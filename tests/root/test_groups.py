"""Supplementary groups go on being effective in a view, though they have no number there. Needs root, to give one."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.needs("setpriv"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give groups"),
]
GROUP = 54321


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="viewfs-test-") as name:
        yield Path(name)


def test_a_supplementary_group_keeps_its_rights(place: Path) -> None:
    account = pwd.getpwnam(os.environ.get("VIEWFS_TEST_ACCOUNT", "viewfs-test"))
    place.chmod(0o755)
    secret = place / "for the group"
    secret.write_text("shared")
    os.chown(secret, 0, GROUP)
    secret.chmod(0o640)
    (place / "run").mkdir(mode=0o700)
    os.chown(place / "run", account.pw_uid, account.pw_gid)
    code = f"import sys; sys.path.insert(0, {account.pw_dir + '/checkout'!r}); from viewfs.__main__ import main; main()"
    viewfs = [sys.executable, "-c", code, "run", "--", "sh", "-c", 'id -G; cat "$0"', str(secret)]
    ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", f"--groups={GROUP}"]
    environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(place / "run")}
    done = subprocess.run(["setpriv", *ids, *viewfs], capture_output=True, text=True, env=environment, cwd="/")
    assert done.stdout.splitlines() == [f"{account.pw_gid} 65534", "shared"], done
