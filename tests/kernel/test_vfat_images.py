"""vfat images through a view: every file is what mtools put there, as ordinary programs read it."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs

pytestmark = pytest.mark.needs("mkfs.vfat", "mcopy")

#: Bits of an entry, and KiB of an image that mkfs.vfat makes with them.
SIZES = {12: 4096, 16: 20480, 32: 70000}
ODD_NAMES = ("A long name é.txt", "日本.txt", "l" * 195, "two.dots.txt", "UPPER.TXT", "Mixed.Txt", "lower.txt")


def make(image: Path, tree: Path, bits: int = 16, zone: str = "UTC0") -> Path:
    """A vfat of what is in `tree`, with a label, and a file that has been deleted again."""
    environment = os.environ | {"TZ": zone, "MTOOLS_SKIP_CHECK": "1"}

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, capture_output=True, env=environment)

    run("mkfs.vfat", "-F", str(bits), "-n", "LABEL", "-C", image, str(SIZES[bits]))
    run("mcopy", "-s", "-m", "-i", image, *sorted(tree.iterdir()), "::")
    (tree.parent / "deleted").write_text("gone")
    run("mcopy", "-i", image, tree.parent / "deleted", "::")
    run("mdel", "-i", image, "::deleted")
    return image


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "directory/deeper").mkdir(parents=True)
    (top / "directory/empty").mkdir()
    chance = random.Random(1)
    for size in (0, 1, 511, 512, 513, 2048, 2049, 400_000):
        (top / f"directory/deeper/{size}").write_bytes(chance.randbytes(size))
    for name in ODD_NAMES:
        (top / name).write_text(name)
    (top / "many").mkdir()
    for number in range(600):
        (top / f"many/a name that takes several entries {number}").touch()
    for path in sorted(top.rglob("*")):
        os.utime(path, (1_600_000_000 + len(path.name) * 2,) * 2)
    return top


def listing(top: str) -> str:
    """A script that prints kind, size and time of all files below `top`, and a digest of each."""
    return (
        f"cd {top} && find . -mindepth 1 -type f -printf '%y %s %T@ %P\\n' -o -mindepth 1 -printf '%y %P\\n' | sort;"
        " find . -type f -print0 | sort -z | xargs -0 md5sum"
    )


@pytest.mark.parametrize("bits", SIZES)
def test_every_file_is_there(viewfs: Viewfs, tmp_path: Path, tree: Path, bits: int) -> None:
    image = make(tmp_path / "image", tree, bits)
    expected = subprocess.run(["bash", "-euc", listing(str(tree))], check=True, capture_output=True, text=True).stdout
    assert "日本.txt" in expected and expected.count("many/") == 1200
    assert viewfs.sh("--mount", f"{image}:/mnt", script=listing("/mnt")).out == expected


def test_what_stat_says(viewfs: Viewfs, tmp_path: Path, tree: Path) -> None:
    image = make(tmp_path / "image", tree)
    subprocess.run(["mattrib", "-i", image, "+r", "::lower.txt"], check=True)
    script = "cd /mnt; stat -c '%a %u %g %h' . directory UPPER.TXT lower.txt; stat -fc '%T %s %b' .; touch new"
    result = viewfs.sh("--mount", f"{image}:/mnt", script=script, check=False)
    mine = f"{os.getuid()} {os.getgid()} 1"
    assert result.out.splitlines()[:4] == [f"755 {mine}", f"755 {mine}", f"755 {mine}", f"555 {mine}"]
    # As the kernel's vfat tells: clusters, of which the tables, the root directory and the boot sector are none.
    boot = image.read_bytes()[:512]
    cluster, sectors = boot[13] * 512, SIZES[16] * 2
    heap = int.from_bytes(boot[14:16], "little") + boot[16] * int.from_bytes(boot[22:24], "little") + 32
    assert result.out.splitlines()[4] == f"fuseblk {cluster} {(sectors - heap) // boot[13]}"
    assert "Read-only file system" in result.err


def test_names_are_found_whichever_way_they_are_written(viewfs: Viewfs, tmp_path: Path, tree: Path) -> None:
    image = make(tmp_path / "image", tree)
    script = "cd /mnt; cat 'a LONG name É.TXT' upper.txt ALONGN~1.TXT LOWER.TXT; ls DIRECTORY/Deeper; ls nothing"
    result = viewfs.sh("--mount", f"{image}:/mnt", script=script, check=False)
    assert result.out.startswith("A long name é.txtUPPER.TXTA long name é.txtlower.txt0\n1\n2048\n")
    assert "'nothing': No such file" in result.err


def test_times_are_those_of_the_time_zone(viewfs: Viewfs, tmp_path: Path, tree: Path) -> None:
    """They are stored as a clock on the wall shows them, and a server that is shut in can't look at the zone's file."""
    image = make(tmp_path / "image", tree, zone="America/New_York")
    zone = "/usr/share/zoneinfo/America/New_York"
    time = "stat -c %Y /mnt/UPPER.TXT"
    expected = f"{1_600_000_000 + len('UPPER.TXT') * 2}\n"
    inner = f"viewfs run --mount {image}:/mnt -- {time}"
    assert viewfs.sh("--mount", f"{zone}:/etc/localtime:bind", script=inner).out == expected
    assert viewfs.sh(script=f"TZ=America/New_York {inner}").out == expected
    assert viewfs.sh(script=f"TZ=UTC0 {inner}").out == f"{int(expected) - 4 * 3600}\n"


def test_a_file_system_inside_a_disk(viewfs: Viewfs, tmp_path: Path, tree: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20) + make(tmp_path / "image", tree).read_bytes())
    assert viewfs.sh("--mount", f"{disk}:/mnt:vfat,offset=1M", script="cat /mnt/Mixed.Txt").out == "Mixed.Txt"
    found = viewfs.sh(script=f"viewfs mount -o offset=1M {disk} /mnt; cat /mnt/Mixed.Txt")
    assert found.out == "Mixed.Txt", "its kind is found where it begins"
    assert "vfat" in viewfs("inspect", "-o", "offset=1M", disk).out
    behind = viewfs("inspect", "-o", "offset=1G", disk, check=False)
    assert behind.code == 2 and behind.err.count("\n") == 1


def test_inspect(viewfs: Viewfs, tmp_path: Path, tree: Path) -> None:
    layers = viewfs("inspect", "--json", make(tmp_path / "image", tree, 32)).json["layers"]
    assert layers[-1]["type"] == "vfat"
    assert layers[-1]["label"] == "LABEL" and layers[-1]["kind"] == "FAT32"


def test_an_image_that_ends_too_early(open_view: Callable[..., View], tmp_path: Path, tree: Path) -> None:
    image = make(tmp_path / "image", tree)
    os.truncate(image, 200_000)
    view = open_view()
    view("mount", image, "/mnt")
    result = view.sh("cat /mnt/directory/deeper/400000 | wc -c; cat /mnt/UPPER.TXT; ls /mnt/many | wc -l", check=False)
    assert "Input/output error" in result.err or "Structure needs cleaning" in result.err
    refused = view("mount", "-t", "vfat", tree / "UPPER.TXT", "/mnt/other", check=False)
    assert refused.code == 5 and "is not a readable vfat" in refused.err and refused.err.count("\n") == 1
