"""The fanotify group of the Linux Test Project in a view, as an ordinary user (`make ltp LTP=DIRECTORY`): what
docs/fanotify.md says of it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs

#: Test → how many TPASS, and TFAIL.
EXPECTED = {
    "01": (78, 0), "02": (8, 0), "03": (25, 0), "04": (9, 0), "06": (18, 0), "07": (2, 0), "08": (2, 0), "09": (76, 0),
    "11": (2, 0), "12": (10, 0), "14": (63, 0), "15": (10, 0), "16": (154, 0), "18": (9, 0), "19": (16, 0),
}  # fmt: skip
CALLS = "--calls=open,read,pread,write,close,exec,getdents64"
#: No block device is there: a tmpfs takes what is said to be one.
ENVIRONMENT = {
    "LTP_DEV": "none", "LTP_DEV_FS_TYPE": "tmpfs", "LTP_SINGLE_FS_TYPE": "tmpfs", "LTP_COLORIZE_OUTPUT": "n",
}  # fmt: skip


@pytest.mark.skipif("VIEWFS_LTP" not in os.environ, reason="make ltp runs it")
@pytest.mark.parametrize("number", EXPECTED)
def test_group(viewfs: Viewfs, tmp_path: Path, number: str) -> None:
    built = os.environ["VIEWFS_LTP"]
    (tmp_path / "t").mkdir()
    viewfs.environment.update(ENVIRONMENT, TMPDIR=f"{tmp_path}/t")
    viewfs.environment["PATH"] = f"{built}:{viewfs.environment['PATH']}"
    directory = shlex.quote(str(tmp_path / "t"))
    script = f"mount -t tmpfs none {directory} && cd {shlex.quote(built)} && timeout 100 ./fanotify{number} 2>&1"
    said = viewfs("run", "--as-root", "--load", "fanotify", CALLS, "--", "sh", "-c", script, check=False).out
    found = tuple(len(re.findall(rf": {word}(?: |:)", said)) for word in ("TPASS", "TFAIL"))
    assert found == EXPECTED[number], said
