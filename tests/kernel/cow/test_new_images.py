"""`viewfs commit --to` and `--in-place`: the tree of a view, changes and all, as a new image, archive or directory."""

from __future__ import annotations

import json
import os
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


def test_a_tree_by_its_path(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    """As documented: `--to FILE PATH` and `--in-place PATH`, where several trees are copy-on-write."""
    image = tmp_path / "image"
    subprocess.run(["mksquashfs", tree, image, "-quiet", "-no-progress"], check=True)
    other = tmp_path / "other"
    other.mkdir()
    options = ["--name", "n", "--mount", f"{image}:/mnt/image", "--cow", f"{tree},/mnt/image,{other}"]
    script = f"""
        echo tree > {tree}/text; echo image > /mnt/image/text; echo other > {other}/text
        viewfs commit --to {tmp_path}/tree.tar {tree}; viewfs commit --to {tmp_path}/image.tar /mnt/image
        cd {other}; viewfs commit --to {tmp_path}/other.tar .; viewfs commit --in-place /mnt/image/
        viewfs commit --to {tmp_path}/none.tar || echo refused: $?
        viewfs commit --to {tmp_path}/none.tar {tree} /mnt/image || echo refused: $?
        viewfs commit --in-place {tree} || echo refused: $?
    """
    out = viewfs.sh(*options, script=script).out
    assert out.count("wrote ") == 4 and out.count("refused: 2\n") == 3
    for name in ("tree", "image", "other"):
        with tarfile.open(tmp_path / f"{name}.tar") as archive:
            text = archive.extractfile("./text")
            assert text is not None and text.read().decode() == f"{name}\n"
    assert viewfs.sh("--mount", f"{image}:/mnt/image", script="cat /mnt/image/text").out == "image\n"
    assert not (tmp_path / "none.tar").exists()
    assert viewfs("commit", "--session", "n", "--to", tmp_path / "late.tar", other).code == 0
    assert not (other / "text").exists() and (tree / "text").read_text() == "one\ntwo\nthree\n"


def test_a_tree_that_does_not_fit(viewfs: Viewfs, cow: Cow, tmp_path: Path) -> None:
    cow.sh("head -c 4M /dev/urandom > big")
    result = viewfs.sh(
        "--mount",
        "none:/mnt/small:tmp,size=1M",
        script="viewfs commit --session cow --to /mnt/small/x.tar",
        check=False,
    )
    assert result.code == 1 and "tar failed: " in result.err and result.err.count("\n") == 1


OWNERS = {"": "0:0", "text": "0:0", "directory": "7:70000", "directory/deeper/file": "4294967294:8", "link": "9:10"}


@pytest.fixture
def foreign(tree: Path, tmp_path: Path) -> Callable[[str], Path]:
    """An image whose files are of users that a view has no number for."""

    def make(kind: str) -> Path:
        image = tmp_path / f"foreign.{kind}"
        if kind == "squashfs":
            definitions = tmp_path / "definitions"
            rows = [
                f"{path} m {(tree / path).lstat().st_mode & 0o7777:o} {owner.replace(':', ' ')}\n"
                for path, owner in OWNERS.items()
                if path
            ]
            definitions.write_text("".join(rows))
            options = ["-quiet", "-no-progress", "-no-xattrs", "-root-uid", "0", "-root-gid", "0", "-pf", definitions]
            subprocess.run(["mksquashfs", tree, image, *options], check=True, capture_output=True)
        else:
            subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "12M"], check=True, capture_output=True)
            commands = ""
            for path, owner in OWNERS.items():
                uid, gid = owner.split(":")
                commands += f"sif /{path} uid {uid}\nsif /{path} gid {gid}\n"
            subprocess.run(
                ["debugfs", "-w", "-f", "-", image], input=commands, text=True, check=True, capture_output=True
            )
        return image

    return make


TELL = """
import json, os
found = {}
for directory, below, files in os.walk("/mnt/look"):
    for name in [*below, *files, ""]:
        path = os.path.join(directory, name).rstrip("/")
        found[path[len("/mnt/look/"):]] = os.getxattr(path, "viewfs.owner", follow_symlinks=False).decode()
        assert "viewfs.owner" not in os.listxattr(path, follow_symlinks=False)
print(json.dumps(found))
"""


def owners_in(viewfs: Viewfs, image: Path, kind: str) -> dict[str, str]:
    """Whose files in an image are, as itself tells."""
    module = "ext" if kind == "ext4" else kind
    told = viewfs("run", "--mount", f"{image}:/mnt/look:{module},owner=tell", "--", "python3", "-c", TELL)
    return dict(json.loads(told.out))


@pytest.mark.parametrize("kind", ["ext4", "squashfs"])
@pytest.mark.parametrize("as_root", [False, True])
def test_owners_that_a_view_has_no_number_for(
    viewfs: Viewfs, foreign: Callable[[str], Path], tmp_path: Path, kind: str, as_root: bool
) -> None:
    """They are kept: a system's image whose every file became its editor's would not start."""
    image = foreign(kind)
    assert {path: owners_in(viewfs, image, kind)[path] for path in OWNERS} == OWNERS
    options = ["--name", "n", "--mount", f"{image}:/mnt/image", "--cow", "/mnt/image"]
    options += ["--as-root", "--ids=one"] if as_root else []
    script = f"""
        cd /mnt/image; echo changed > text; echo new > directory/new; mv directory/deeper/file 'directory/a b #"\\'
        ln -sf elsewhere link; echo x > "$(printf '#\\377')"
        viewfs commit --to {tmp_path}/new.tar.gz; viewfs commit --to {tmp_path}/other.ext4
        viewfs commit --to {tmp_path}/other.squashfs; viewfs commit --in-place
    """
    viewfs.sh(*options, script=script)
    me = "0:0" if as_root else f"{os.getuid()}:{os.getgid()}"
    expected = {"": "0:0", "text": "0:0", "directory": "7:70000", "directory/new": me, 'directory/a b #"\\': me}
    for path, its_kind in ((image, kind), (tmp_path / "other.ext4", "ext4"), (tmp_path / "other.squashfs", "squashfs")):
        found = owners_in(viewfs, path, its_kind)
        assert {name: owner for name, owner in found.items() if name in expected} == expected, its_kind
        if its_kind == "ext4":
            subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
    with tarfile.open(tmp_path / "new.tar.gz") as archive:
        found = {member.name.removeprefix(".").lstrip("/"): f"{member.uid}:{member.gid}" for member in archive}
    assert {name: owner for name, owner in found.items() if name in expected} == expected
    assert viewfs.sh(*options, script="cat /mnt/image/text; viewfs diff").out == "changed\n"


def test_owners_from_outside_of_the_view(
    viewfs: Viewfs, foreign: Callable[[str], Path], open_view: Callable[..., View]
) -> None:
    image = foreign("ext4")
    view = open_view("--as-root", "--mount", f"{image}:/mnt/image", "--cow", "/mnt/image")
    view.sh("cd /mnt/image; echo changed > text; mkdir new")
    view("commit", "--in-place")
    found = owners_in(viewfs, image, "ext4")
    assert (found["text"], found["new"], found["directory"]) == ("0:0", "0:0", "7:70000")
