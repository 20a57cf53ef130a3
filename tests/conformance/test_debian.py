"""Packages of Debian are installed in a view as on a machine, and the machine has nothing of it."""

from __future__ import annotations

import pytest

from tests.kernel.conftest import Viewfs
from tests.packages import host_has, host_knows, needs_ids, refusals

pytestmark = [pytest.mark.needs("apt-get", "dpkg", "newuidmap"), needs_ids]

#: What is run of each, and what that says.
PROGRAMS = {
    "redis-server": (
        """
        getent passwd redis | cut -d: -f1; stat -c %U:%G /var/lib/redis
        cd /tmp; setsid redis-server --port 0 --unixsocket /tmp/redis.sock --dir /tmp --save '' > /tmp/redis.log 2>&1 &
        until redis-cli -s /tmp/redis.sock ping 2>/dev/null; do sleep 0.1; done
        redis-cli -s /tmp/redis.sock set key value; redis-cli -s /tmp/redis.sock get key
        redis-cli -s /tmp/redis.sock shutdown nosave; wait
        """,
        "redis\nredis:redis\nPONG\nOK\nvalue\n",
    ),
    "nano": ("nano --version | head -n 1 | cut -d' ' -f 2-3", "GNU nano,\n"),
    "logrotate": (
        """
        mkdir /tmp/logs; echo line > /tmp/logs/a.log
        printf '/tmp/logs/a.log {\\n rotate 1\\n su root root\\n}\\n' > /tmp/rotate.conf
        logrotate -f -s /tmp/logs/state /tmp/rotate.conf; cat /tmp/logs/a.log.1
        """,
        "line\n",
    ),
    # Large, with a mail server behind it that has users and a queue of its own.
    "emacs-nox": ("emacs --batch --eval '(princ (+ 40 2))'; stat -c %U /var/spool/exim4", "42Debian-exim\n"),
}
#: What is installed besides.
WITH = {"emacs-nox": ("mailutils", "exim4-daemon-light")}
FILES = {
    "redis-server": ("redis-server", "/etc/redis", "/var/lib/redis"),
    "nano": ("nano", "/etc/nanorc"),
    "logrotate": ("logrotate", "/etc/logrotate.conf"),
    "emacs-nox": ("emacs", "exim4", "/etc/exim4"),
}


@pytest.mark.parametrize("package", PROGRAMS)
def test_apt_get_installs_it(package: str, viewfs: Viewfs) -> None:
    if host_knows(package) or host_has(*FILES[package]):
        pytest.skip(f"{package} is here already")
    options = ("--name", "apt", "--as-root", "--cow", "/", "--")
    updated = viewfs("run", *options, "apt-get", "update", check=False)
    assert updated.code == 0, updated
    packages = (package, *WITH.get(package, ()))
    done = viewfs(
        "run", *options, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", *packages, check=False
    )
    assert done.code == 0 and not refusals(done.out, done.err), done
    assert f"Setting up {package} " in done.out
    script, says = PROGRAMS[package]
    shown = viewfs("run", *options, "bash", "-euc", f"dpkg -s {package} | grep -q 'ok installed'; {script}")
    assert shown.out == says
    assert not refusals(shown.err)
    viewfs("discard", "--session", "apt")
    assert not host_knows(package) and not host_has(*FILES[package])
