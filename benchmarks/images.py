"""The images: the same tree in each format. Made once for each recipe, and kept."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dataset import Recipe, Tree, make_tree

__all__ = ["IMAGES", "DataSet", "Image", "prepare"]


@dataclass(frozen=True)
class Image:
    """One format."""

    name: str
    title: str
    #: The type that `viewfs mount -t` takes; None if viewfs has none for it.
    viewfs_type: str | None
    make: Callable[[Path, Path], None]


@dataclass(frozen=True)
class DataSet:
    """A directory with a manifest and the images."""

    directory: Path

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    def image(self, image: Image) -> Path:
        return self.directory / f"tree.{image.name}"

    def complete(self) -> bool:
        return self.manifest.exists() and all(self.image(image).exists() for image in IMAGES)


def _execute(*command: str | Path, good: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode not in good:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stdout.decode(errors='replace')[-500:]}")


def _make_ext4(tree: Path, image: Path) -> None:
    """mke2fs writes directories without an index; e2fsck adds it, as a kernel that writes them does.

    lost+found is root's alone, which would end an ordinary user's `find` with an error.
    """
    files = [path.lstat() for path in tree.rglob("*")]
    size = sum(file.st_blocks * 512 for file in files) + len(files) * 512
    megabytes = size * 5 // 4 // (1 << 20) + 64
    _execute("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-N", str(len(files) * 5 // 4 + 100), "-d", tree,
             image, f"{megabytes}M")  # fmt: skip
    _execute("e2fsck", "-f", "-y", "-D", image, good=(0, 1))
    _execute("debugfs", "-w", "-R", "set_inode_field /lost+found mode 040755", image)


def _make_squashfs(compressor: str) -> Callable[[Path, Path], None]:
    def make(tree: Path, image: Path) -> None:
        _execute("mksquashfs", tree, image, "-noappend", "-no-progress", "-quiet", "-comp", compressor)

    return make


def _make_tar(tree: Path, image: Path) -> None:
    _execute("tar", "--format=gnu", "-cf", image, "-C", tree, ".")


IMAGES = (
    Image("ext4", "ext4", "ext", _make_ext4),
    Image("squashfs-zlib", "squashfs, zlib", "squashfs", _make_squashfs("gzip")),
    Image("squashfs-zstd", "squashfs, zstd", "squashfs", _make_squashfs("zstd")),
    Image("tar", "tar", None, _make_tar),
)


def prepare(base: Path, recipe: Recipe, say: Callable[[str], None]) -> DataSet:
    """The data set of the recipe, below `base`; made if it isn't there."""
    data = DataSet(base / f"data-{recipe.version}")
    if data.complete():
        return data
    unfinished = DataSet(base / f"data-{recipe.version}.unfinished")
    for left_over in (data.directory, unfinished.directory):
        shutil.rmtree(left_over, ignore_errors=True)
    tree = unfinished.directory / "tree"
    tree.mkdir(parents=True)
    say(f"making the data set in {data.directory}")
    manifest: Tree = make_tree(recipe, tree)
    manifest.save(unfinished.manifest)
    for image in IMAGES:
        say(f"making the image: {image.title}")
        image.make(tree, unfinished.image(image))
    shutil.rmtree(tree)
    unfinished.directory.rename(data.directory)
    return data
