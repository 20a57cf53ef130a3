"""Packages that give files to a user of their own are installed in a view, used in the next one, and removed."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import Result, Viewfs
from tests.packages import host_has, host_knows, needs_ids, refusals

pytestmark = [pytest.mark.needs("dpkg-deb", "dpkg", "newuidmap", "useradd", "runuser"), needs_ids]

SERVICE, TOOL = "viewfs-test-service", "viewfs-test-tool"
OWN = f"/var/lib/{SERVICE}"
POSTINST = f"""#!/bin/sh
set -e
if ! getent passwd {SERVICE} > /dev/null; then
    useradd --system --user-group --home-dir {OWN} --shell /usr/sbin/nologin {SERVICE}
fi
chown {SERVICE}:{SERVICE} {OWN} {OWN}/data
chmod 0750 {OWN}
"""
POSTRM = f"""#!/bin/sh
set -e
if [ "$1" = purge ]; then
    rm -rf {OWN}
    userdel {SERVICE}
fi
"""
FILES = (OWN, "/etc/viewfs-test-tool.conf", "/usr/bin/viewfs-test-tool", "/usr/share/viewfs-test-service")
Run = Callable[[str], Result]


def build(directory: Path, name: str, files: dict[str, tuple[str, int]], control: dict[str, str]) -> Path:
    top = directory / name
    (top / "DEBIAN").mkdir(parents=True)
    about = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: a test\n"
    for path, text in {"control": about, **control}.items():
        (top / "DEBIAN" / path).write_text(text)
        (top / "DEBIAN" / path).chmod(0o755 if text.startswith("#!") else 0o644)
    for path, (text, mode) in files.items():
        target = top / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
    package = directory / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", top, package], check=True, capture_output=True)
    return package


@pytest.fixture
def packages(tmp_path: Path) -> list[Path]:
    service = {f"{OWN}/data": ("data\n", 0o640), "/usr/share/viewfs-test-service/text": ("text\n", 0o644)}
    tool = {
        "/etc/viewfs-test-tool.conf": ("a=1\n", 0o644),
        "/usr/bin/viewfs-test-tool": ("#!/bin/sh\necho tool\n", 0o2755),
    }
    return [
        build(tmp_path, SERVICE, service, {"postinst": POSTINST, "postrm": POSTRM}),
        build(tmp_path, TOOL, tool, {"conffiles": "/etc/viewfs-test-tool.conf\n"}),
    ]


@pytest.fixture
def as_root(viewfs: Viewfs) -> Iterator[Run]:
    """A script in a view of the same name as the last, where nothing is refused. What is left is thrown away."""

    def run(script: str) -> Result:
        result = viewfs.sh("--name", "packages", "--as-root", "--cow", "/", script=script, check=False)
        assert result.code == 0 and not refusals(result.out, result.err), result
        return result

    yield run
    viewfs("discard", "--session", "packages")
    others = [path for path in viewfs.state.rglob("*") if path.lstat().st_uid != os.getuid()]
    assert not others, "files of other ids are left"


def nothing_here() -> bool:
    users = [entry.pw_name for entry in pwd.getpwall()]
    return not host_has(*FILES) and not host_knows(SERVICE) and not host_knows(TOOL) and SERVICE not in users


def test_packages_with_users_of_their_own(as_root: Run, packages: list[Path]) -> None:
    assert nothing_here()
    as_root(f"dpkg -i {packages[0]} {packages[1]}; runuser -u {SERVICE} -- touch {OWN}/made")
    assert nothing_here()
    shown = as_root(f"""
        stat -c '%n %U:%G %a' {OWN} {OWN}/data {OWN}/made /usr/share/viewfs-test-service/text /usr/bin/viewfs-test-tool
        runuser -u {SERVICE} -- sh -c 'cat {OWN}/data; echo more >> {OWN}/data'; viewfs-test-tool
        dpkg -s {SERVICE} {TOOL} | grep ^Status
        runuser -u nobody -- cat {OWN}/data 2>/dev/null || echo not for others
    """)
    assert shown.out.splitlines() == [
        f"{OWN} {SERVICE}:{SERVICE} 750",
        f"{OWN}/data {SERVICE}:{SERVICE} 640",
        f"{OWN}/made {SERVICE}:{SERVICE} 644",
        "/usr/share/viewfs-test-service/text root:root 644",
        "/usr/bin/viewfs-test-tool root:root 2755",
        "data",
        "tool",
        "Status: install ok installed",
        "Status: install ok installed",
        "not for others",
    ]
    assert nothing_here()


def test_configuration_stays_until_a_package_is_purged(as_root: Run, packages: list[Path]) -> None:
    as_root(f"dpkg -i {packages[0]} {packages[1]}; echo b=2 >> /etc/viewfs-test-tool.conf")
    as_root(f"dpkg -r {TOOL} {SERVICE}")
    script = f"test ! -e /usr/bin/viewfs-test-tool; getent passwd {SERVICE} | cut -d: -f1"
    shown = as_root(f"cat /etc/viewfs-test-tool.conf; {script}")
    assert shown.out.splitlines() == ["a=1", "b=2", SERVICE]
    as_root(f"dpkg --purge {TOOL} {SERVICE}")
    gone = as_root(f"""
        for name in {" ".join(FILES)}; do ! test -e $name || echo $name is left; done
        ! getent passwd {SERVICE}; ! dpkg -s {SERVICE} {TOOL} 2>/dev/null
    """)
    assert gone.out.strip() == "" and nothing_here()
