"""A program of go-fuse is built in a view, with a compiler that is installed there alone, and mounted as a module."""

from __future__ import annotations

import pytest

from tests.kernel.conftest import Viewfs
from tests.packages import needs_ids

pytestmark = [pytest.mark.needs("apt-get", "dpkg", "newuidmap"), needs_ids]

BUILD = """
export DEBIAN_FRONTEND=noninteractive
apt-get update > /dev/null
apt-get install -y --no-install-recommends golang-go golang-github-hanwen-go-fuse-dev > /dev/null
mkdir /tmp/go && cd /tmp/go
sed s,go-fuse/v2/,go-fuse/, /usr/share/doc/golang-github-hanwen-go-fuse-dev/examples/hello/main.go > main.go
GOPATH=/usr/share/gocode GO111MODULE=off GOCACHE=/tmp/go/cache go build -o hello main.go
viewfs insmod ./hello /greeting -- {}
cat /greeting/file.txt
viewfs umount /greeting
"""


def test_an_example_of_go_fuse(viewfs: Viewfs) -> None:
    done = viewfs("run", "--as-root", "--cow", "/", "--", "bash", "-euc", BUILD)
    assert done.out == "file.txt"
