"""Views with the ids that the machine has given the user besides their own (subuid(5)): users, and files of theirs."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs
from tests.kernel.cow.conftest import Cow, snapshot

NAME = pwd.getpwuid(os.getuid()).pw_name


def given(kind: str) -> int | None:
    """The first of this account's ids in /etc/subuid or /etc/subgid."""
    try:
        lines = Path(f"/etc/sub{kind}").read_text().splitlines()
    except FileNotFoundError:
        return None
    return next((int(line.split(":")[1]) for line in lines if line.split(":")[0] in (NAME, str(os.getuid()))), None)


#: Root has all ids, and takes another way (tests/root/test_all_ids.py).
pytestmark = [
    pytest.mark.needs("newuidmap", "newgidmap"),
    pytest.mark.skipif(os.getuid() == 0 or given("uid") is None or given("gid") is None, reason="it has one id"),
]
GIVE = "chown 33:44 text; echo new > new; chown 5 new; chown -h 7:8 link"
SHOW = "stat -c '%n %u:%g' text new link script"


@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_files_are_given_away(cow: Cow, tree: Path, backend: str) -> None:
    """The next view shows the same; outside they belong to the ids that these have there."""
    options = ("--as-root", "--cow-backend", backend)
    shown = cow.sh(f"{GIVE}; {SHOW}", *options).out
    assert shown == "text 33:44\nnew 5:0\nlink 7:8\nscript 0:0\n"
    assert cow.sh(SHOW, *options).out == shown
    assert cow.changes()["text"]["aspects"] == ["owner"]
    assert cow("commit").out == "committed: 1 added, 2 changed\n"
    uid, gid = given("uid"), given("gid")
    assert uid is not None and gid is not None
    found = {name: (tree / name).lstat() for name in ("text", "new", "link", "script")}
    # Root inside is this user; the first of the others is 1.
    assert {name: (status.st_uid, status.st_gid) for name, status in found.items()} == {
        "text": (uid + 32, gid + 43),
        "new": (uid + 4, os.getgid()),
        "link": (uid + 6, gid + 7),
        "script": (os.getuid(), os.getgid()),
    }
    assert cow.viewfs("ps", "--json").json["ended"] == []
    again = cow.sh(SHOW, *options).out
    assert again == shown
    cow.sh(f"chown 0:0 {tree}/text {tree}/new; chown -h 0:0 {tree}/link", *options)
    cow("commit")
    assert {(tree / name).lstat().st_uid for name in found} == {os.getuid()}


def test_they_can_be_forgotten(cow: Cow, tree: Path) -> None:
    """Also what this user may not remove: a directory of another id, with files in it."""
    before = snapshot(tree)
    cow.sh("mkdir made; touch made/file; chmod 700 made; chown -R 9:9 made", "--as-root")
    assert cow.viewfs("forget", "cow").code == 0
    assert snapshot(tree) == before and not (cow.viewfs.state / "viewfs/cow").exists()


def test_one_and_many(viewfs: Viewfs, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    show = f"id -u; chown 33 {tmp_path}/file && stat -c %u {tmp_path}/file; chown -f {os.getuid()} {tmp_path}/file || :"
    refused = viewfs.sh("--as-root", "--ids=one", script=show, check=False)
    assert refused.out == "0\n" and "Invalid argument" in refused.err
    # As oneself one has the ids, and not the power over files.
    assert viewfs("run", "--ids=many", "--", "id", "-u").out == f"{os.getuid()}\n"
    assert len(viewfs("run", "--ids=many", "--", "cat", "/proc/self/uid_map").out.splitlines()) >= 2
    assert len(viewfs("run", "--", "cat", "/proc/self/uid_map").out.splitlines()) == 1


def test_a_view_in_a_view(viewfs: Viewfs) -> None:
    """There are no more ids in one that has one, and no set-user-ID program works: root is all it gets."""
    inner = "viewfs run --as-root -- id -u; viewfs run --ids=many -- true"
    result = viewfs("run", "--", "sh", "-c", inner, check=False)
    assert result.out == "0\n" and result.code == 3
    assert "more ids can't be had" in result.err and result.err.count("\n") == 1
    assert viewfs("run", "--as-root", "--", "sh", "-c", "viewfs run --as-root -- cat /proc/self/uid_map").out


@pytest.mark.needs("useradd")
def test_users_are_made(viewfs: Viewfs) -> None:
    name = "viewfs-made"
    before = [Path(place).read_bytes() for place in ("/etc/passwd", "/etc/group")]
    script = f"""
        useradd --system --home-dir /var/lib/{name} --create-home {name}
        setpriv --reuid={name} --regid={name} --clear-groups sh -c 'id -un; touch ~{name}/mine'
        stat -c '%U %G' /var/lib/{name}/mine; chown root:{name} /etc/hostname; stat -c %G /etc/hostname
    """
    options = ("--name", "n", "--as-root", "--cow", "/")
    assert viewfs.sh(*options, script=script).out == f"{name}\n{name} {name}\n{name}\n"
    later = f"stat -c '%U %G' /var/lib/{name}/mine; stat -c %G /etc/hostname; userdel -r {name}; ls /var/lib/{name}"
    shown = viewfs.sh(*options, script=later, check=False)
    assert shown.out == f"{name} {name}\n{name}\n" and shown.code == 2
    assert before == [Path(place).read_bytes() for place in ("/etc/passwd", "/etc/group")]
    assert not Path(f"/var/lib/{name}").exists() and shutil.which("useradd")
