"""What every tier shares: what this machine has, what a test needs, and that a test leaves nothing behind."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

#: What a property test has found is kept, and tried first the next time. In CI nothing is left to chance.
_kept = DirectoryBasedExampleDatabase(Path(__file__).parents[1] / ".hypothesis/examples")
settings.register_profile("viewfs", database=_kept, deadline=None, print_blob=True)
settings.register_profile("ci", database=None, derandomize=True, deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "viewfs")

REQUIRED = frozenset(filter(None, os.environ.get("VIEWFS_REQUIRE", "").split(",")))
#: `viewfs` is the checkout's; mke2fs and its like are not on every account's PATH.
os.environ["PATH"] = ":".join(
    (f"{Path(__file__).parents[1]}/bin", str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin:/sbin")
)


@cache
def missing(feature: str) -> str | None:
    """Why this machine does not have `feature`; None if it does."""
    if feature == "userns":
        if os.geteuid() == 0:
            return "the test runs as root, and viewfs is for those who are not (make test runs it as an account)"
        script = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000 | 0x00020000))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True)
        return None if done.returncode == 0 else "no user namespaces for ordinary users"
    if feature == "fuse":
        return None if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse can't be opened"
    if shutil.which(feature) is None:
        return f"{feature} is not installed"
    return None


def pytest_report_header() -> list[str]:
    features = {feature: missing(feature) or "yes" for feature in ("userns", "fuse", "mke2fs", "debugfs", "gcc", "git")}
    shown = ", ".join(f"{feature}: {state}" for feature, state in features.items())
    return [f"kernel {platform.release()}, uid {os.geteuid()}", shown, f"required: {', '.join(REQUIRED) or 'nothing'}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/kernel/" in str(item.path) or "tests/conformance/" in str(item.path):
            item.add_marker(pytest.mark.needs("userns", "fuse"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for feature in marker.args:
            reason = missing(feature)
            if reason is None:
                continue
            if REQUIRED & {feature, "userns", "fuse"}:
                pytest.fail(f"required and not there: {reason}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def no_leaked_descriptors() -> Iterator[None]:
    """A test closes what it opened."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    import gc

    gc.collect()
    leaked = {fd: _target(fd) for fd in set(os.listdir("/proc/self/fd")) - before}
    leaked = {fd: target for fd, target in leaked.items() if target is not None}
    assert not leaked, f"descriptors left open: {leaked}"


def _target(fd: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None  # the one that listed the directory
