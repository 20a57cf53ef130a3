"""Trees that the kernel's overlay can't make writable: of other users, and with host mounts in them. viewfs can."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs
from tests.kernel.cow.conftest import Cow, snapshot


def test_files_of_others_can_be_written(cow: Cow) -> None:
    """What the kernel's overlay can't do: /etc is root's. Without being told viewfs takes its own file system there."""
    options = ("--name", "etc", "--cow", "/etc")
    script = """
        echo 127.1.2.3 changed >> /etc/hosts; rm /etc/hostname; mkdir /etc/apt/new
        tail -1 /etc/hosts; viewfs diff --stat
    """
    result = cow.viewfs.sh(*options, script=script)
    assert result.out.startswith("127.1.2.3 changed\n") and "added    /etc/apt/new/" in result.out
    assert "viewfs itself serves /etc, " in result.err and "owned by others" in result.err
    (hosts,) = (line for line in result.out.splitlines() if "/etc/hosts" in line)
    assert "bytes" in hosts and "owner" not in hosts
    refused = cow.viewfs("commit", "--session", "etc", check=False)
    assert refused.code == 1 and refused.err.count("\n") == 3
    assert all(f"not committed: /etc/{name}: permission denied" in refused.err for name in ("apt/new", "hosts"))
    by_overlay = cow.viewfs.sh("--cow-backend", "overlay", *options, script="echo x >> /etc/issue", check=False)
    assert by_overlay.code == 1 and "Permission denied" in by_overlay.err
    assert cow.viewfs("discard", "--session", "etc").out == "discarded: 1 added, 1 changed, 1 deleted\n"


def test_what_is_ones_own_below_is_in_an_overlay(viewfs: Viewfs, tmp_path: Path) -> None:
    """/home, or wherever the home directory is, belongs to root; what is written at home is written at full speed."""
    home = os.path.expanduser("~")
    top = os.path.dirname(home)
    script = f"""
        stat -f -c %T {top} ~; echo x > ~/viewfs-test-file; mkdir {top}/viewfs-new; echo y > {top}/viewfs-new/z
        viewfs diff --name-only
    """
    names = [f"{home}/viewfs-test-file", f"{top}/viewfs-new", f"{top}/viewfs-new/z"]
    out = viewfs.sh("--name", "n", "--cow", top, script=script).out.splitlines()
    assert "overlay" not in out[0] and out[1] == "overlayfs"
    assert sorted(out[2:]) == sorted(names)
    assert not os.path.exists(names[0]) and not os.path.exists(names[1])
    # Whatever the next view would divide, what was changed is seen.
    again = viewfs.sh(
        "--name", "n", "--cow", top, "--cow-backend", "overlay", script=f"cat ~/viewfs-test-file {names[2]}"
    )
    assert again.out == "x\ny\n"
    committed = viewfs("commit", "--session", "n", names[0])
    assert committed.out == "committed: 1 added\n" and Path(names[0]).read_text() == "x\n"
    os.unlink(names[0])


def test_a_layer_that_has_a_directory_keeps_it(viewfs: Viewfs, tmp_path: Path, tree: Path) -> None:
    """A tree that is divided otherwise the next time: changes stay where they are, and are seen."""
    top = tree.parent
    viewfs.sh("--name", "n", "--cow", tree, script=f"echo inner > {tree}/text")
    script = f"echo outer > {top}/outer; cat {tree}/text; viewfs diff --name-only"
    both = f"{top}/outer\n{tree}/text\n"
    assert viewfs.sh("--name", "n", "--cow", top, script=script).out == "inner\n" + both
    assert viewfs("diff", "--session", "n", "--name-only").out == both


def test_below_something_that_is_mounted_outside(viewfs: Viewfs, tree: Path, image: Callable[..., Path]) -> None:
    """What the outer view has mounted in the tree, the inner one can't have the tree without."""
    before = snapshot(tree)
    for number in range(90):
        (tree / f"directory/{number}").mkdir()
    disk = image(inside="in the image\n")
    inner = f"""
        cd {tree}; echo new > text; rm link; mkdir directory/new; echo x > directory/deeper/file; echo y > directory/7/y
        echo z > empty/inside; cat text empty/inside directory/deeper/file
        stat -f -c %T . directory directory/deeper; viewfs diff --name-only
    """
    (tree.parent / "inner").write_text(inner)
    outer = f"viewfs run --name inner --cow {tree} -- sh {tree.parent}/inner; viewfs diff --session inner --name-only"
    result = viewfs.sh("--mount", f"{disk}:{tree}/empty", "--mount", f"{disk}:{tree}/directory/gone-by", script=outer)
    changed = ["link", "text", "directory/new", "directory/7/y", "directory/deeper/file", "empty/inside"]
    lines = result.out.splitlines()
    assert lines[:3] == ["new", "z", "x"] and sorted(lines[6:12]) == sorted(f"{tree}/{name}" for name in changed)
    assert lines[3] == lines[4] != "overlayfs" == lines[5]
    assert "something is mounted below it outside of the view" in result.err
    for number in range(90):
        (tree / f"directory/{number}").rmdir()
    assert {name: what[:4] for name, what in snapshot(tree).items()} == {
        name: what[:4] for name, what in before.items()
    }


CONTROL = """Package: viewfs-test
Version: 1
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: a package
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A Debian package with a file in /etc, one in /usr, and a script that is run when they are there."""
    top = tmp_path / "package"
    for path, text in {
        "DEBIAN/control": CONTROL,
        "DEBIAN/postinst": "#!/bin/sh\nldconfig; echo configured > /var/lib/viewfs-test\n",
        "etc/viewfs-test.conf": "a setting\n",
        "usr/share/doc/viewfs-test/README": "read me\n",
    }.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    for directory in (top, top / "DEBIAN"):
        directory.chmod(0o755)
    (top / "DEBIAN/postinst").chmod(0o755)
    package = tmp_path / "package.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", top, package], check=True, capture_output=True)
    return package


def test_a_debian_package_is_installed_without_root(viewfs: Viewfs, package: Path) -> None:
    script = f"""
        dpkg -i {package} > /dev/null && cat /etc/viewfs-test.conf /var/lib/viewfs-test
        dpkg-query -W -f '${{Package}} ${{Status}}\\n' viewfs-test
        stat -c %U:%A /etc/viewfs-test.conf
    """
    result = viewfs.sh("--as-root", "--name", "package", "--cow", "/", script=script)
    assert result.out == "a setting\nconfigured\nviewfs-test install ok installed\nroot:-rw-r--r--\n"
    rows = viewfs("diff", "--session", "package", "--json").json["changes"]
    kinds = {row["path"]: row["kind"] for row in rows}
    assert kinds["/etc/viewfs-test.conf"] == kinds["/usr/share/doc/viewfs-test/README"] == "added"
    assert kinds["/var/lib/dpkg/status"] == "changed"
    assert viewfs("diff", "--session", "package", "/var/lib/dpkg/status").out.count("+Package: viewfs-test\n") == 1
    # It is there in the next view of that name, and nowhere else.
    again = viewfs.sh(
        "--as-root", "--name", "package", "--cow", "/", script="dpkg -r viewfs-test; ls -d /etc/viewfs* || true"
    )
    assert again.out.endswith("Removing viewfs-test (1) ...\n") and "No such file" in again.err
    assert not os.path.exists("/etc/viewfs-test.conf")
    viewfs("discard", "--session", "package")
    assert not (viewfs.state / "viewfs/package").exists()


def test_make_install_without_root(viewfs: Viewfs, tmp_path: Path) -> None:
    (tmp_path / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello from the view"); return 0; }\n')
    (tmp_path / "Makefile").write_text(
        "viewfs-hello: hello.c\n\t$(CC) -o $@ hello.c\n"
        "install: viewfs-hello\n\tinstall -D viewfs-hello /usr/local/bin/viewfs-hello\n\tldconfig\n"
    )
    script = f"cd {tmp_path}; make -s install && viewfs-hello && rm /usr/bin/make && test ! -e /usr/bin/make"
    assert viewfs.sh("--as-root", "--cow", "/", script=script).out == "hello from the view\n"
    assert os.path.exists("/usr/bin/make") and not (tmp_path / "viewfs-hello").exists()


def test_what_may_not_be_read(viewfs: Viewfs, open_view: Callable[..., View]) -> None:
    """Files of others that only they can read: they can be removed in the view, but not copied."""
    view = open_view("--cow", "/etc")
    script = "echo x >> /etc/shadow || echo refused; rm /etc/shadow; echo x > /etc/shadow; cat /etc/shadow"
    assert view.sh(script).out == "refused\nx\n"
    assert view.sh("viewfs diff --stat").out.startswith("changed  /etc/shadow")
    refused = view("discard", check=False)
    assert refused.code == 1 and "/etc/shadow is not there as it was: what it had been may not be read" in refused.err
    viewfs("kill", view.name)
    view.process.wait()
    assert viewfs("discard", "--session", view.name).out == "discarded: 1 changed\n"
