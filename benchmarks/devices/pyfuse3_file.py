"""A file of zeros by pyfuse3, with direct I/O: what a device is without ioctl and interrupts."""

from __future__ import annotations

import errno
import os
import stat
import sys

import pyfuse3
import trio

_ZEROS = bytes(4 << 20)
_FILE = pyfuse3.InodeT(2)


class Zeros(pyfuse3.Operations):
    """One file, called `zero`."""

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o666
        entry.st_ino = inode
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        if name != b"zero":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_FILE)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1), direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return _ZEROS[:size]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return len(buf)


def main() -> None:
    """Mount on the directory that is given, and serve until it is unmounted."""
    options = set(pyfuse3.default_options)
    options.discard("default_permissions")
    pyfuse3.init(Zeros(), sys.argv[1], options)
    print("mounted", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
