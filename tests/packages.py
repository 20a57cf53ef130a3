"""Packages that are installed in a view, and what may be said of it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

REFUSALS = ("Operation not permitted", "Permission denied")


def has_ids() -> bool:
    """Has the machine given this user more ids (subuid(5), subgid(5))?"""
    name = pwd.getpwuid(os.getuid()).pw_name
    tables = [Path("/etc/subuid"), Path("/etc/subgid")]
    return all(
        table.exists()
        and any(line.split(":")[0] in (name, str(os.getuid())) for line in table.read_text().splitlines())
        for table in tables
    )


needs_ids = pytest.mark.skipif(not has_ids(), reason="this user has no ids but one's own (subuid(5))")


def host_knows(package: str) -> bool:
    """Is it installed here, or are files of it left?"""
    done = subprocess.run(["dpkg", "-s", package], capture_output=True, check=False)
    return done.returncode == 0 or any(Path("/var/lib/dpkg/info").glob(f"{package}.*"))


def refusals(*texts: str) -> list[str]:
    """Lines that tell of what was refused."""
    return [line for text in texts for line in text.splitlines() if any(word in line for word in REFUSALS)]


def host_has(*names: str) -> list[str]:
    """Those of these programs and files that are here."""
    return [name for name in names if (os.path.lexists(name) if "/" in name else shutil.which(name))]
