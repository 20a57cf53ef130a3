"""What needs more than this machine has of its own: the network. `make conformance` runs it, `make test` does not."""

from __future__ import annotations

import os

import pytest

from tests.kernel.conftest import host_left_alone, viewfs

__all__ = ["host_left_alone", "viewfs"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("VIEWFS_CONFORMANCE"):
        return
    for item in items:
        if "tests/conformance/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="make conformance runs it"))
