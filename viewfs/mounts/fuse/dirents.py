"""What READDIR and READDIRPLUS answer: directory entries as the kernel takes them. Pure.

Apart from the other structures because nothing else is packed so often, nor written with so much care for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from struct import Struct

from viewfs.modules.api import DirectoryEntry, InodeNumber, Name
from viewfs.mounts.fuse.protocol import ATTR, FOREVER, ROOT_NODE, encode_device

__all__ = ["encode_directory", "encode_names"]

_DIRENT = Struct("=QQII")
#: fuse_direntplus up to its name: both in one go, for this is packed once an entry.
_DIRENTPLUS = Struct("=QQQQII" + ATTR + "QQII")
_PADDING = (b"", b"\0" * 7, b"\0" * 6, b"\0" * 5, b"\0" * 4, b"\0" * 3, b"\0" * 2, b"\0")


def encode_directory(
    entries: Iterable[DirectoryEntry],
    size: int,
    valid: tuple[int, int],
    root: int,
    *,
    plus: bool,
    keeps: Callable[[InodeNumber], bool] | None = None,
) -> tuple[bytes, list[DirectoryEntry]]:
    """As many of `entries` as fit into `size` bytes, and which they are; `plus` for READDIRPLUS.

    `root` is the file system's own number for its root, which the protocol calls `ROOT_NODE`. The kernel may keep each
    entry for `valid` (seconds and nanoseconds), or for ever if `keeps` says so of its inode.

    An OSError of `entries` is raised if it comes before the first of them. Else it is for the next request to find.
    """
    parts: list[bytes] = []
    taken: list[DirectoryEntry] = []
    seconds, nanoseconds = valid
    layout = _DIRENTPLUS if plus else _DIRENT
    fixed, pack = layout.size, layout.pack
    try:
        for entry in entries:
            name, cookie, attributes, is_known = entry
            length = len(name)
            needed = (fixed + length + 7) & ~7
            if needed > size:
                break
            if plus:
                # As `_attr`, written out: nothing else is done so often.
                (
                    ino, mode, length_of_it, nlink, uid, gid, rdev, atime_ns, mtime_ns, ctime_ns, blocks, blksize, shown
                ) = attributes  # fmt: skip
                mtime, mtime_rest = divmod(mtime_ns, 1_000_000_000)
                if atime_ns == mtime_ns == ctime_ns:
                    atime, atime_rest, ctime, ctime_rest = mtime, mtime_rest, mtime, mtime_rest
                else:
                    atime, atime_rest = divmod(atime_ns, 1_000_000_000)
                    ctime, ctime_rest = divmod(ctime_ns, 1_000_000_000)
                shown = shown or ino
                kept = FOREVER if keeps is not None and keeps(ino) else seconds
                # An entry without a node is a name and no more (fuse_direntplus_link in the kernel's fs/fuse).
                node = 0 if not is_known else ROOT_NODE if ino == root else ino
                head = pack(
                    node, 0, kept, kept, nanoseconds, nanoseconds,
                    shown, length_of_it, blocks, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest,
                    mode, nlink, uid, gid, encode_device(rdev) if rdev else 0, blksize, 0,
                    shown, cookie, length, mode >> 12,
                )  # fmt: skip
            else:
                head = pack(attributes.shown_ino or attributes.ino, cookie, length, attributes.mode >> 12)
            parts += (head, name, _PADDING[length & 7])
            size -= needed
            taken.append(entry)
    except OSError:
        if not taken:
            raise
    return b"".join(parts), taken


#: Bytes; the kernel takes none that is longer (FUSE_NAME_MAX of fs/fuse/fuse_i.h).
_NAME_MAX = 4095


@cache
def _dirents_with_names() -> list[Callable[..., bytes]]:
    """How a dirent is packed, by the length of its name: with that, and the zeros behind it."""
    packers = [Struct(f"=QQII{padded}s").pack for padded in range(0, _NAME_MAX + 8, 8)]
    return [packers[(length + 7) // 8] for length in range(_NAME_MAX + 1)]


def encode_names(names: Iterable[Name], size: int) -> bytes:
    """As many of `names` as fit into `size` bytes of an answer to READDIR.

    An OSError of `names` is raised if it comes before the first of them. Else it is for the next request to find.
    """
    parts: list[bytes] = []
    packers, add = _dirents_with_names(), parts.append
    try:
        for name, cookie, inode, mode in names:
            length = len(name)
            part = packers[length](inode, cookie, length, mode >> 12, name)
            size -= len(part)
            if size < 0:
                break
            add(part)
    except OSError:
        if not parts:
            raise
    return b"".join(parts)
