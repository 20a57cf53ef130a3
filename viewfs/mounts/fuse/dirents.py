"""Encoding the answers to READDIR and READDIRPLUS: directory entries as the kernel takes them. Pure.

This is separate from the other structures because nothing else is packed so often, and so it is written for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from struct import Struct

from viewfs.modules.api import DirectoryEntry, InodeNumber, Name
from viewfs.mounts.fuse.protocol import ATTR, FOREVER, ROOT_NODE, encode_device

__all__ = ["encode_directory", "encode_names"]

_DIRENT = Struct("=QQII")
#: fuse_direntplus up to its name: fuse_entry_out and fuse_dirent in one, so that an entry is packed with one call.
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
    """As many of `entries` as fit into `size` bytes: encoded, and as a list; `plus` for READDIRPLUS.

    `root` is the file system's own number for its root, which the protocol calls `ROOT_NODE`. The kernel may keep each
    entry for `valid` (seconds and nanoseconds), or for ever if `keeps` says so of its inode.

    An OSError of `entries` is raised if it comes before the first entry. Else it is left for the next request.
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
                # As `_attr`, written out because nothing else runs so often.
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
                # With node 0, the kernel takes only the name of the entry (fuse_direntplus_link in its fs/fuse).
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


#: The longest name that the kernel takes, in bytes (FUSE_NAME_MAX of fs/fuse/fuse_i.h).
_NAME_MAX = 4095


@cache
def _dirents_with_names() -> list[Callable[..., bytes]]:
    """Functions that pack a fuse_dirent with its name and the padding after it, by the length of the name."""
    packers = [Struct(f"=QQII{padded}s").pack for padded in range(0, _NAME_MAX + 8, 8)]
    return [packers[(length + 7) // 8] for length in range(_NAME_MAX + 1)]


def encode_names(names: Iterable[Name], size: int) -> bytes:
    """As many of `names` as fit into `size` bytes of an answer to READDIR.

    An OSError of `names` is raised if it comes before the first name. Else it is left for the next request.
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
