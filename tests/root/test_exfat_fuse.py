"""exFAT that another implementation wrote: exfat-fuse, which only root can mount."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.fat.conftest import Opened, file_system
from tests.unit.fat.fat_images import mkfs_exfat, run
from viewfs.modules.framework.sources import FileSource

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount with exfat-fuse")
SECOND = 1_000_000_000


@contextmanager
def exfat_fuse(image: Path, there: Path) -> Iterator[None]:
    """`image` mounted by exfat-fuse, which wants a block device. The test is skipped where that can't be."""
    there.mkdir()
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"there is no loop device: {done.stderr}")
    device = done.stdout.strip()
    try:
        mounted = subprocess.run(["mount.exfat-fuse", device, there], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip(f"exfat-fuse can't be mounted: {mounted.stderr!r}")
        try:
            yield
        finally:
            run("umount", there)
    finally:
        run("losetup", "-d", device)


@pytest.mark.needs("mkfs.exfat", "mount.exfat-fuse", "losetup")
def test_what_another_implementation_wrote(tmp_path: Path) -> None:
    """exfat-fuse writes, this reads."""
    image, there = mkfs_exfat(tmp_path / "image", 16 << 20), tmp_path / "there"
    chance, expected = random.Random(2), dict[str, bytes | None]()
    with exfat_fuse(image, there):
        for number in range(40):
            folder = there / f"folder {number % 4}"
            folder.mkdir(exist_ok=True)
            expected[folder.name] = None
            path = folder / f"A file {number} é{'long' * (number % 40)}"
            path.write_bytes(chance.randbytes(chance.choice((0, 1, 4096, 20_000))))
            expected[str(path.relative_to(there))] = path.read_bytes()
            os.utime(path, (1_719_750_896 + number, 1_719_750_897 + number))
        for path in sorted(there.glob("folder 1/*")):
            del expected[str(path.relative_to(there))]
            path.unlink()
        (there / "late").write_bytes(bytes(range(256)) * 1000)
        expected["late"] = bytes(range(256)) * 1000
        times = {path: (there / path).stat().st_mtime_ns // SECOND for path in expected}
    with open(image, "rb") as file:
        volume = Opened(file_system(FileSource(file.fileno(), image.stat().st_size), tz="UTC"))
        assert volume.tree() == expected and not volume.errors()
        found = {path: volume.stat(path).mtime_ns // SECOND for path in expected}
    assert found == times
