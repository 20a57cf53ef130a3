"""`viewfs commit --to` and `--in-place`: the tree of a view, changes and all, as a new image, archive or directory."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs
from tests.kernel.cow.conftest import Cow, snapshot

WORK = """
    echo changed > text; rm directory/gone; mkdir new; echo n > new/file; ln new/file new/other
    truncate -s 5M new/sparse; setfattr -n user.colour -v blue text; echo secret > closed; chmod 0 closed; mkfifo fifo
"""


def as_mounted(viewfs: Viewfs, image: Path, target: Path) -> Path:
    """What is in an image, copied out of it."""
    viewfs.sh("--mount", f"{image}:/mnt/new", script=f"cp -a /mnt/new {target}; rm -rf {target}/lost+found")
    return target


def to_seconds(tree: Path) -> dict[str, object]:
    """All that an image keeps."""
    return {path: (*row[:4], row[4] // 10**9) for path, row in snapshot(tree).items() if path != "."}


@pytest.mark.parametrize("suffix", [".ext4", ".squashfs", ".tar", ".tar.zst", ""])
def test_a_new_file(cow: Cow, tree: Path, tmp_path: Path, viewfs: Viewfs, suffix: str) -> None:
    before = snapshot(tree)
    cow.sh(WORK)
    target = tmp_path / f"new{suffix}"
    answer = cow("commit", "--json", "--to", target).json
    assert answer["path"] == str(target)
    assert snapshot(tree) == before, "the tree outside is as it was"
    assert not list(tmp_path.glob("*.viewfs-*"))
    if suffix in (".ext4", ".squashfs"):
        found = as_mounted(viewfs, target, tmp_path / "found")
    elif suffix:
        found = tmp_path / "found"
        found.mkdir()
        subprocess.run(["tar", "--xattrs", "-xpf", target, "-C", found], check=True)
    else:
        found = target
    assert (found / "new/sparse").stat().st_blocks * 512 < 100_000
    again = cow("commit", "--to", target, check=False)
    assert again.code == 2 and "exists" in again.err
    cow("commit")
    assert to_seconds(found) == to_seconds(tree)


@pytest.mark.parametrize("kind", ["ext4", "squashfs"])
def test_in_place(viewfs: Viewfs, tree: Path, tmp_path: Path, kind: str) -> None:
    """The image is replaced by one that has the changes; the next view of that name finds nothing changed."""
    image = tmp_path / "image"
    command = {
        "ext4": ["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "12M"],
        "squashfs": ["mksquashfs", tree, image, "-quiet", "-no-progress"],
    }
    subprocess.run(command[kind], check=True, capture_output=True)
    options = ("--name", "n", "--mount", f"{image}:/mnt/image", "--cow", "/mnt/image")
    script = "cd /mnt/image; echo changed > text; rm script; echo n > new; viewfs commit --in-place; cat text"
    out = viewfs.sh(*options, script=script).out
    assert out == f"wrote {image} ({kind}), and compared it with /mnt/image\nchanged\n"
    look = "cat /mnt/image/text /mnt/image/new; ls /mnt/image/script"
    assert viewfs.sh("--mount", f"{image}:/mnt/image", script=look, check=False).out == "changed\nn\n"
    assert viewfs.sh(*options, script="viewfs diff; cat /mnt/image/new").out == "n\n"
    if kind == "ext4":
        assert image.stat().st_size == 12 << 20
        subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)


def test_what_can_not_be(cow: Cow, tree: Path, tmp_path: Path, open_view: Callable[..., View]) -> None:
    cow.sh("echo x > text")
    for arguments, code, what in (
        (["--in-place"], 2, "is a directory, not an image"),
        (["--to", tmp_path / "x.zip"], 2, "cannot tell from its name"),
        (["--to", tmp_path / "no/such/x.tar"], 2, "there is no directory"),
        (["--to", tmp_path / "x.tar", "--force"], 2, "no other way"),
        (["--to", tmp_path / "x.tar", tree / "directory"], 2, "one whole tree"),
    ):
        result = cow("commit", *arguments, check=False)
        assert result.code == code and what in result.err and result.err.count("\n") == 1, (arguments, result)
    assert not (tmp_path / "x.tar").exists()
    assert cow("commit", "--to", tmp_path / "x.zip", "--format", "tar").code == 0
    with tarfile.open(tmp_path / "x.zip") as archive:
        assert "./text" in archive.getnames()


def test_a_tree_that_does_not_fit(viewfs: Viewfs, cow: Cow, tmp_path: Path) -> None:
    cow.sh("head -c 4M /dev/urandom > big")
    result = viewfs.sh(
        "--mount",
        "none:/mnt/small:tmp,size=1M",
        script="viewfs commit --session cow --to /mnt/small/x.tar",
        check=False,
    )
    assert result.code == 1 and "tar failed: " in result.err and result.err.count("\n") == 1
