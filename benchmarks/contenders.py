"""Who is compared: which images each one reads, and the commands that mount and unmount them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks.images import IMAGES, Image

__all__ = [
    "CONTENDERS",
    "KERNEL",
    "VIEWFS",
    "Contender",
    "Kind",
    "contenders_of",
    "session_commands",
    "unmount_command",
    "view_mount_option",
]


class Kind(Enum):
    """How a mount comes to be."""

    VIEW = "in a view"
    FUSE = "by a FUSE server of the account's"
    KERNEL = "by root"


@dataclass(frozen=True)
class Contender:
    """A program that can mount images."""

    name: str
    kind: Kind
    #: The command that has to be there.
    command: str
    #: Names of images.
    images: tuple[str, ...]
    #: Image, mount point and a directory for what is kept between mounts → the command that mounts.
    mount: Callable[[Image, Path, Path, Path], list[str]]
    #: For the report: what has to be known to read the figures.
    note: str

    def obstacle(self, as_root: bool) -> str | None:
        """Why it can't take part on this machine; None if it can."""
        if self.kind is Kind.KERNEL and not as_root:
            return "mounting with the kernel needs root, and the benchmark was run by an ordinary user"
        if shutil.which(self.command) is None:
            return f"{self.command} is not installed"
        return None


def _viewfs(image: Image, source: Path, place: Path, _state: Path) -> list[str]:
    return ["viewfs", "mount", "-t", str(image.viewfs_type), str(source), str(place)]


def _kernel(image: Image, source: Path, place: Path, _state: Path) -> list[str]:
    return ["mount", "-t", image.name.partition("-")[0], "-o", "ro,loop", str(source), str(place)]


def _program(*command: str) -> Callable[[Image, Path, Path, Path], list[str]]:
    return lambda _image, source, place, _state: [*command, str(source), str(place)]


def _ratarmount(_image: Image, source: Path, place: Path, state: Path) -> list[str]:
    return ["ratarmount", "--index-folders", str(state), str(source), str(place)]


_SQUASHFS = ("squashfs-zlib", "squashfs-zstd")
_CACHING = "ro,kernel_cache,attr_timeout=86400,entry_timeout=86400,negative_timeout=86400"

VIEWFS = Contender(
    "viewfs", Kind.VIEW, "viewfs", ("ext4", *_SQUASHFS), _viewfs,
    "`viewfs run --mount IMAGE:PLACE:TYPE -- …`, with its defaults",
)  # fmt: skip
KERNEL = Contender(
    "kernel", Kind.KERNEL, "mount", ("ext4", *_SQUASHFS), _kernel,
    "`mount -o ro,loop` by root; what it costs the kernel's own threads (the loop device) is in no CPU figure",
)  # fmt: skip
CONTENDERS = (
    VIEWFS,
    Contender(
        "fuse2fs", Kind.FUSE, "fuse2fs", ("ext4",), _program("fuse2fs", "-o", "ro"),
        "with its defaults, which make the kernel ask for attributes each time",
    ),
    Contender(
        "fuse2fs, caching", Kind.FUSE, "fuse2fs", ("ext4",), _program("fuse2fs", "-o", _CACHING),
        f"`-o {_CACHING}`: as much as libfuse lets the kernel keep",
    ),
    Contender(
        "squashfuse", Kind.FUSE, "squashfuse", _SQUASHFS, _program("squashfuse"),
        "with its defaults; the kernel keeps names and attributes for a second",
    ),
    Contender(
        "squashfuse_ll", Kind.FUSE, "squashfuse_ll", _SQUASHFS, _program("squashfuse_ll"),
        "with its defaults; the kernel keeps what it has been told",
    ),
    Contender(
        "archivemount", Kind.FUSE, "archivemount", ("tar",), _program("archivemount", "-o", "readonly"),
        "`-o readonly`",
    ),
    Contender(
        "ratarmount", Kind.FUSE, "ratarmount", tuple(image.name for image in IMAGES), _ratarmount,
        "with its defaults; the index that it makes of an image the first time is there already",
    ),
    KERNEL,
)  # fmt: skip


def contenders_of(image: Image) -> list[Contender]:
    return [contender for contender in CONTENDERS if image.name in contender.images]


def unmount_command(contender: Contender, place: Path) -> list[str]:
    program = {Kind.VIEW: ["viewfs", "umount"], Kind.FUSE: ["fusermount3", "-u"], Kind.KERNEL: ["umount"]}
    return [*program[contender.kind], str(place)]


def view_mount_option(image: Image, source: Path, place: Path) -> list[str]:
    """What makes `viewfs run` mount it. A colon in a path is written as \\:."""
    parts = [str(source).replace(":", "\\:"), str(place).replace(":", "\\:"), str(image.viewfs_type)]
    return ["--mount", ":".join(parts)]


def session_commands(contender: Contender, image: Image, source: Path, place: Path, state: Path) -> list[list[str]]:
    """From nothing to the first byte, and back to nothing."""
    read = ["head", "-c1", f"{place}/first"]
    if contender.kind is Kind.VIEW:
        return [["viewfs", "run", *view_mount_option(image, source, place), "--", *read]]
    return [contender.mount(image, source, place, state), read, unmount_command(contender, place)]
