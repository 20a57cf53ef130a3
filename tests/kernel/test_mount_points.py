"""Mount points that exist and those that don't, and what happens to the directories around them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs


@pytest.mark.parametrize("place", ["/nowhere", "/a/b/c", "/usr/lib/viewfs-test/x", "{tmp}/new", "{tmp}/with space/é"])
def test_any_path_can_be_a_mount_point(viewfs: Viewfs, tmp_path: Path, place: str) -> None:
    place = place.format(tmp=tmp_path)
    done = viewfs.sh("--mount", f"none:{place}:tmp", script=f"echo content > '{place}/file'; cat '{place}/file'")
    assert done.out == "content\n"
    assert not os.path.lexists(place)


def test_what_was_made_for_a_mount_goes_with_it(open_view: Callable[..., View]) -> None:
    view = open_view()
    before = view.sh("ls -a / /usr/lib; grep -c . /proc/self/mountinfo").out
    for place in ("/one", "/two/three", "/usr/lib/viewfs-test"):
        view("mount", "-t", "tmp", "none", place)
        assert view.sh(f"touch {place}/file; ls {place}").out == "file\n"
    for place in ("/usr/lib/viewfs-test", "/two/three", "/one"):
        view("umount", place)
    assert view.sh("ls -a / /usr/lib; grep -c . /proc/self/mountinfo").out == before


def test_a_skeleton_stays_while_another_mount_stands_on_it(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "home/sub").mkdir(parents=True)
    home = tmp_path / "home"
    view = open_view(
        "--mount", f"n:{home}/first:tmp", "--mount", f"n:{home}/sub:tmp", "--mount", f"n:{home}/second:tmp"
    )
    view.sh(f"touch {home}/sub/kept {home}/second/kept")
    view("umount", f"{home}/first")
    assert view.sh(f"ls {home} {home}/sub {home}/second").out.split() == [
        f"{home}:", "second", "sub", f"{home}/second:", "kept", f"{home}/sub:", "kept",
    ]  # fmt: skip
    view("umount", f"{home}/second")
    view("umount", f"{home}/sub")
    assert view.sh(f"ls {home}; touch {home}/back; ls {home}").out.split() == ["sub", "back", "sub"]
    assert sorted(os.listdir(home)) == ["back", "sub"]


def test_a_directory_shows_what_was_there_and_lets_nothing_be_lost(
    open_view: Callable[..., View], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "directory").mkdir(parents=True)
    (home / "file").write_text("old")
    (home / "link").symlink_to("file")
    (home / "dangling").symlink_to("nothing")
    home.chmod(0o711)
    view = open_view("--mount", f"n:{home}/new:tmp")
    shown = view.sh(f"cd {home}; stat -c '%a' .; ls; readlink link dangling; cat link").out.split()
    assert shown == ["711", "dangling", "directory", "file", "link", "new", "file", "nothing", "old"]
    # All is written through to the host, new names too.
    view.sh(f"cd {home}; echo new > file; touch directory/made more")
    assert (home / "file").read_text() == "new\n" and (home / "directory/made").exists() and (home / "more").exists()
    # Where the user can't make any, they can't in the view.
    refused = view.sh("viewfs mount -t tmp none /usr/viewfs-test && touch /usr/lost", check=False)
    assert refused.code and "Read-only file system" in refused.err


def test_a_directory_with_very_many_children(viewfs: Viewfs, tmp_path: Path) -> None:
    crowd = tmp_path / "crowd"
    crowd.mkdir()
    for number in range(5000):
        (crowd / f"{number}").touch()
    (crowd / "17").write_text("seventeen")
    (crowd / "deep/er").mkdir(parents=True)
    script = f"""
        touch {crowd}/new/file; ls {crowd} | wc -l; cat {crowd}/17
        ls {crowd}/new {crowd}/deep; grep -c . /proc/self/mountinfo
    """
    done = viewfs.sh("--mount", f"n:{crowd}/new:tmp", script=script)
    *shown, mounts = done.out.split()
    assert shown == ["5002", "seventeen" + f"{crowd}/deep:", "er", f"{crowd}/new:", "file"]
    assert int(mounts) < 1000, "a mount for each child would make every later step slow"


@pytest.mark.parametrize(
    ("make", "place", "says"),
    [
        (
            "echo x > {tmp}/file",
            "{tmp}/file",
            "it is a file, and what is mounted is a directory; name a directory, or a path that does not exist yet",
        ),
        ("echo x > {tmp}/file", "{tmp}/file/below", "{tmp}/file is not a directory"),
        ("ln -s nothing {tmp}/link", "{tmp}/link", "it is a symbolic link to nothing"),
        ("true", "/", "cannot mount on /"),
    ],
)
def test_a_place_that_can_be_none(viewfs: Viewfs, tmp_path: Path, make: str, place: str, says: str) -> None:
    os.system(make.format(tmp=tmp_path))
    refused = viewfs("run", "--mount", f"n:{place.format(tmp=tmp_path)}:tmp", "--", "true", check=False)
    assert refused.code == 2 and refused.err.count("\n") == 1, refused
    assert says.format(tmp=tmp_path) in refused.err and refused.err.startswith("viewfs: cannot mount on")


def test_a_symbolic_link_is_followed(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    view = open_view("--mount", f"n:{tmp_path}/link:tmp")
    view.sh(f"touch {tmp_path}/target/inside")
    assert view.json("lsmod")["modules"][0]["path"] == f"{tmp_path}/target"
    view("umount", f"{tmp_path}/link")
    assert view.sh(f"ls {tmp_path}/target").out == ""


def test_mounts_of_the_host_are_in_the_view(viewfs: Viewfs) -> None:
    """And work: devices, shared memory, the pseudo-terminals."""
    script = """
        echo > /dev/null; head -c 3 /dev/zero | wc -c; [ -d /proc/self ] && [ -d /sys/class ]
        echo shm > /dev/shm/viewfs-test-$$; cat /dev/shm/viewfs-test-$$; rm /dev/shm/viewfs-test-$$
        script -qec 'tty' /dev/null | grep -c pts
    """
    assert viewfs.sh(script=script).out.split() == ["3", "shm", "1"]


def test_what_was_made_stays_while_an_older_epoch_needs_it(open_view: Callable[..., View]) -> None:
    """Removing a mount point takes away what is mounted there in every namespace, so it has to wait."""
    view = open_view("--mount", "n:/made/here:tmp")
    view.sh("echo kept > /made/here/file")
    view("insmod", "unreal")
    view("umount", "/made/here")
    assert view.sh("cat /unreal/made/here/file; ls /made/here").out == "kept\n"
    assert view("at", "1", "--", "cat", "/made/here/file").out == "kept\n"
    view("mount", "-t", "tmp", "none", "/made/here")
    view("rmmod", "unreal")
    view.sh("touch /made/here/new")
    view("umount", "/made/here")
    assert view.sh("ls -d /made 2>/dev/null || echo gone").out == "gone\n"


def test_mounts_bring_no_privilege(viewfs: Viewfs, image: Callable[..., Path]) -> None:
    """Programs of other users and devices of the machine, in an image say, are files like others; and no program of the
    view gains anything by being executed."""
    options = ["--mount", f"{image(file='content')}:/image", "--mount", "none:/empty:tmp", "--load", "hello"]
    script = "grep -E ' /(image|empty|hello) ' /proc/self/mountinfo; grep NoNewPrivs /proc/self/status"
    *mounts, privileges = viewfs.sh(*options, script=script).out.splitlines()
    assert len(mounts) == 3 and privileges.split() == ["NoNewPrivs:", "1"]
    for line in mounts:
        assert {"nosuid", "nodev"} <= set(line.split()[5].split(",")), line
