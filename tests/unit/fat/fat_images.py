"""Images of FAT and exFAT made by mkfs.vfat, mtools and mkfs.exfat, and what mtools and fsck say of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

_ENVIRONMENT = os.environ | {"TZ": "UTC", "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": "/dev/null"}
_SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


class Kind(NamedTuple):
    """What mkfs.vfat is told: bits of an entry, bytes of a sector, sectors of a cluster (0: as it likes), KiB."""

    bits: int
    sector: int
    cluster: int
    kib: int
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"fat{self.bits}-{self.sector}x{self.cluster}-{self.kib}k{''.join(self.options)}"


#: Every number of bits with every size of sector and of cluster that mkfs.vfat makes, from floppy disks to 4 GiB.
KINDS = [
    Kind(12, 512, 0, 64),
    Kind(12, 512, 1, 160),
    Kind(12, 512, 2, 360),
    Kind(12, 512, 1, 1440, ("-r", "224")),
    Kind(12, 512, 64, 32_000),
    Kind(12, 1024, 4, 4000),
    Kind(12, 2048, 2, 8000),
    Kind(12, 4096, 8, 60_000),
    Kind(12, 512, 128, 200_000),
    Kind(12, 512, 4, 4000, ("-f", "1")),
    Kind(16, 512, 1, 5000),
    Kind(16, 512, 2, 16_384),
    Kind(16, 512, 4, 32_768, ("-r", "16")),
    Kind(16, 512, 8, 100_000, ("-a",)),
    Kind(16, 512, 16, 500_000),
    Kind(16, 512, 32, 1_000_000),
    Kind(16, 512, 64, 2_000_000),
    Kind(16, 1024, 2, 32_768),
    Kind(16, 2048, 1, 32_768),
    Kind(16, 4096, 1, 40_000),
    Kind(16, 512, 4, 32_768, ("-f", "4")),
    Kind(32, 512, 0, 32_768),
    Kind(32, 512, 1, 36_000),
    Kind(32, 512, 8, 30_000),
    Kind(32, 512, 2, 140_000),
    Kind(32, 512, 8, 300_000, ("-f", "1")),
    Kind(32, 512, 64, 4_000_000),
    Kind(32, 512, 128, 4_194_303),
    Kind(32, 1024, 1, 80_000),
    Kind(32, 2048, 2, 600_000, ("-b", "8", "-R", "40")),
    Kind(32, 4096, 1, 300_000),
    Kind(32, 4096, 8, 4_194_303),
    Kind(32, 512, 1, 1000),
]


def run(*command: str | Path, good: Iterable[int] = (0,), **environment: str) -> str:
    """The output of `command`, whose program must be there, or the test is skipped."""
    program = shutil.which(str(command[0]), path=_SEARCH)
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    parts = [program, *(str(part) for part in command[1:])]
    done = subprocess.run(parts, capture_output=True, check=False, env=_ENVIRONMENT | environment)
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode in good, f"{command}: {done.returncode}\n{output}"
    return done.stdout.decode(errors="replace")


def mkfs(path: Path, kind: Kind, label: str = "A LABEL") -> Path:
    """A file system without files, in a sparse file. The test is skipped where mkfs.vfat won't make it."""
    with open(path, "wb") as file:
        file.truncate(kind.kib << 10)
    options = ["-F", str(kind.bits), "-S", str(kind.sector), "-n", label, "-i", "12345678", *kind.options]
    if kind.cluster:
        options += ["-s", str(kind.cluster)]
    run("mkfs.vfat", *options, path)
    return path


def mcopy(image: Path, *sources: Path, **environment: str) -> Path:
    """Copy trees into the root of `image`, with their times."""
    run("mcopy", "-s", "-m", "-Q", "-i", image, *sources, "::", **environment)
    return image


def mdir(image: Path) -> set[str]:
    """The paths of all there is, as mtools sees it."""
    lines = run("mdir", "-i", image, "-/", "-a", "-b", "::").splitlines()
    return {line.removeprefix("::/").rstrip("/") for line in lines if line.strip()}


def mattrib(image: Path, flags: str, path: str) -> None:
    run("mattrib", "-i", image, *flags.split(), f"::{path}")


def fsck(image: Path) -> None:
    """Fails where fsck.vfat finds anything wrong."""
    run("fsck.vfat", "-n", image)


def mkfs_exfat(path: Path, size: int, *options: str) -> Path:
    """A file system without files, in a sparse file of `size` bytes."""
    with open(path, "wb") as file:
        file.truncate(size)
    run("mkfs.exfat", *options, path)
    return path


def fsck_exfat(image: Path) -> None:
    run("fsck.exfat", "-n", image)
