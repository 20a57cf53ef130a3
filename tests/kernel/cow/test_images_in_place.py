"""`viewfs commit --in-place`: who may do what with the image stays, and nobody's work is replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs

KINDS = ["ext4", "squashfs"]


def make_image(tree: Path, image: Path, kind: str) -> Path:
    command: dict[str, list[str | Path]] = {
        "ext4": ["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image, "6M"],
        "squashfs": ["mksquashfs", tree, image, "-quiet", "-no-progress", "-noappend"],
    }
    subprocess.run(command[kind], check=True, capture_output=True)
    return image


def in_image(viewfs: Viewfs, image: Path, script: str) -> str:
    return viewfs.sh("--mount", f"{image}:/mnt/look", script=f"cd /mnt/look; {script}", check=False).out


@pytest.mark.needs("setfacl")
def test_by_a_symbolic_link(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    """The link stays one; what it leads to is replaced, and is as closed as it was."""
    (tmp_path / "images").mkdir()
    image = make_image(tree, tmp_path / "images/real", "ext4")
    image.chmod(0o640)
    os.setxattr(image, "user.origin", b"somewhere")
    subprocess.run(["setfacl", "-m", f"u:{os.getuid()}:r", image], check=True)
    mode, attributes = image.stat().st_mode, os.listxattr(image)
    assert "system.posix_acl_access" in attributes
    (tmp_path / "first").symlink_to("images/real")
    (tmp_path / "link").symlink_to(tmp_path / "first")
    before = image.stat().st_ino
    script = "umask 022; echo n > /mnt/image/new; viewfs commit --in-place"
    done = viewfs.sh("--name", "n", "--mount", f"{tmp_path}/link:/mnt/image", "--cow", "/mnt/image", script=script)
    assert done.err == ""
    assert (os.readlink(tmp_path / "link"), os.readlink(tmp_path / "first")) == (f"{tmp_path}/first", "images/real")
    assert image.stat().st_ino != before and image.stat().st_mode == mode
    assert sorted(os.listxattr(image)) == sorted(attributes) and os.getxattr(image, "user.origin") == b"somewhere"
    assert in_image(viewfs, image, "cat new") == "n\n"
    assert os.listdir(tmp_path / "images") == ["real"]


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_its_mode(viewfs: Viewfs, tree: Path, tmp_path: Path, mode: int) -> None:
    image = make_image(tree, tmp_path / "image", "squashfs")
    image.chmod(mode)
    script = "umask 022; echo n > /mnt/image/new; viewfs commit --in-place"
    viewfs.sh("--mount", f"{image}:/mnt/image", "--cow", "/mnt/image", script=script)
    assert image.stat().st_mode & 0o7777 == mode and in_image(viewfs, image, "cat new") == "n\n"


def test_two_views_over_one_image(viewfs: Viewfs, open_view: Callable[..., View], tree: Path, tmp_path: Path) -> None:
    """The first to commit has its changes there; the second is refused, and loses nothing."""
    image = make_image(tree, tmp_path / "image", "ext4")
    options = ("--mount", f"{image}:/mnt/image", "--cow", "/mnt/image")
    first, second = open_view(*options, name="first"), open_view(*options, name="second")
    first.sh("echo 1 > /mnt/image/from-first")
    second.sh("echo 2 > /mnt/image/from-second")
    second("commit", "--in-place")
    content = image.read_bytes()
    refused = first("commit", "--in-place", check=False)
    assert refused.code == 1 and refused.out == "" and refused.err.count("\n") == 1 and str(image) in refused.err
    assert "--to" in refused.err, "there is another way"
    assert image.read_bytes() == content and not list(tmp_path.glob("*.viewfs-*"))
    assert in_image(viewfs, image, "cat from-second; ls from-first") == "2\n"
    assert first.sh("cat /mnt/image/from-first").out == "1\n"
    first.close()
    kept = viewfs.sh("--name", "first", *options, script="viewfs diff --name-only; cat /mnt/image/from-*", check=False)
    assert "/mnt/image/from-first\n" in kept.out and "1\n" in kept.out


def test_twice_from_one_view(viewfs: Viewfs, open_view: Callable[..., View], tree: Path, tmp_path: Path) -> None:
    """What it replaces the second time is its own work."""
    image = make_image(tree, tmp_path / "image", "ext4")
    view = open_view("--mount", f"{image}:/mnt/image", "--cow", "/mnt/image")
    for number in range(3):
        view.sh(f"echo {number} > /mnt/image/new; echo {number} > /mnt/image/new{number}")
        view("commit", "--in-place", "/mnt/image")
    assert in_image(viewfs, image, "cat new new0 new1 new2") == "2\n0\n1\n2\n"
    assert view.sh("cat /mnt/image/new").out == "2\n"


def test_diff_from_outside_of_the_view(open_view: Callable[..., View], tree: Path, tmp_path: Path) -> None:
    """Before an image is made anew one looks at what is going to be in it."""
    image = make_image(tree, tmp_path / "image", "squashfs")
    view = open_view("--mount", f"{image}:/mnt/image", "--cow", "/mnt/image")
    view.sh("echo changed > /mnt/image/text; rm /mnt/image/script")
    inside = view.sh("viewfs diff").out
    assert "+changed\n" in inside and view("diff").out == inside
    assert view("discard", "/mnt/image/script").out == "discarded: 1 deleted\n"


MEANWHILE: dict[str, Callable[[Path], object]] = {
    "replaced by rename": lambda image: os.rename(shutil.copy2(image, f"{image}.copy"), image),
    "removed": lambda image: image.unlink(),
    "written to": lambda image: append(image),
    "another image": lambda image: image.write_bytes(image.read_bytes()[::-1]),
}


def append(image: Path) -> None:
    with image.open("ab") as file:
        file.write(b"\0" * 4096)


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_changed_by_somebody_else(
    viewfs: Viewfs, open_view: Callable[..., View], tree: Path, tmp_path: Path, meanwhile: str
) -> None:
    image = make_image(tree, tmp_path / "image", "squashfs")
    view = open_view("--mount", f"{image}:/mnt/image", "--cow", "/mnt/image")
    view.sh("echo 1 > /mnt/image/new; cat /mnt/image/text")
    MEANWHILE[meanwhile](image)
    content = image.read_bytes() if image.exists() else None
    refused = view("commit", "--in-place", check=False)
    assert refused.code == 1 and refused.err.count("\n") == 1 and str(image) in refused.err, refused
    assert (image.read_bytes() if image.exists() else None) == content
    assert not list(tmp_path.glob("*.viewfs-*"))
    assert view.sh("cat /mnt/image/new").out == "1\n" and view.sh("viewfs diff --name-only").out == "/mnt/image/new\n"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_the_session(viewfs: Viewfs, tree: Path, tmp_path: Path, kind: str) -> None:
    image = make_image(tree, tmp_path / "image", kind)
    options = ("--name", "n", "--mount", f"{image}:/mnt/image", "--cow", "/mnt/image")
    script = "cd /mnt/image; echo x > new; rm script; rm -r directory; viewfs commit --in-place"
    assert viewfs.sh(*options, script=script).out == f"wrote {image} ({kind}), and compared it with /mnt/image\n"
    assert viewfs("ps", "--json").json["ended"] == []
    gone = viewfs("diff", "--session", "n", check=False)
    assert gone.code == 4 and "no session is called n" in gone.err
    assert not (viewfs.state / "viewfs/n").exists()


def test_what_was_done_afterwards_is_left(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    """What the new image has not must not be thrown away with what it has."""
    image = make_image(tree, tmp_path / "image", "ext4")
    options = ("--name", "n", "--mount", f"{image}:/mnt/image", "--cow", "/mnt/image")
    script = "cd /mnt/image; echo x > new; viewfs commit --in-place > /dev/null; echo y > new; rm text; echo l > later"
    viewfs.sh(*options, script=script)
    assert viewfs("ps", "--json").json["ended"] == [{"name": "n", "paths": ["/mnt/image"]}]
    again = viewfs.sh(*options, script="cat /mnt/image/new /mnt/image/later; ls /mnt/image; viewfs diff --name-only")
    assert again.out.startswith("y\nl\n") and "\ntext\n" not in again.out
    assert set(again.out.splitlines()) >= {f"/mnt/image/{name}" for name in ("new", "later", "text")}
