"""What the author of a module implements.

A file system is nodes and bytes. It is asked about inode numbers and answers with `Attributes`, directory entries and
bytes; it knows nothing of FUSE, of processes or of mounts. A method that computes its answer is a plain `def`; one that
may have to wait for something is an `async def`, runs on trio, and is cancelled when its caller is interrupted. (The
serving loop calls a plain method itself, which is the fastest way and holds up other requests until it returns.)

A module raises `OSError` with the errno that the caller shall see. Any other exception is logged with its traceback,
and that one call fails with EIO.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, NewType, Protocol, TypeAlias, TypeVar

from viewfs.errors import os_error
from viewfs.modules.api.kept import Kept
from viewfs.modules.api.options import Option

__all__ = [
    "OWNER_XATTR",
    "ROOT_INODE",
    "Answer",
    "Attributes",
    "Buffer",
    "CacheCounts",
    "Content",
    "DirectoryEntry",
    "FileRange",
    "FileSystem",
    "FileSystemStatistics",
    "Identities",
    "InodeNumber",
    "Module",
    "Mounting",
    "Name",
    "OpenFile",
    "Option",
    "Source",
    "WritableFileSystem",
]

_T = TypeVar("_T")
#: What a method returns: the answer itself (a plain `def`), or an awaitable of it, called a promise (an `async def`).
Answer: TypeAlias = _T | Awaitable[_T]
#: Bytes in memory, whoever owns it.
Buffer: TypeAlias = bytes | bytearray | memoryview


class FileRange(NamedTuple):
    """Bytes of an open file, which can be passed on without being read into memory."""

    fd: int
    offset: int
    size: int


#: What a read returns: one piece, or a list of pieces, which saves joining them.
Content: TypeAlias = Buffer | FileRange | list[Buffer | FileRange]

InodeNumber = NewType("InodeNumber", int)

#: The extended attribute with the ids that an image stores for a file, as “uid:gid”, if the option `owner` is “tell”.
#: It can be read by its name but is never listed, so that no program copies it.
OWNER_XATTR = b"viewfs.owner"

#: The inode number of a file system's root, unless the file system sets `root`.
ROOT_INODE = InodeNumber(1)


class Attributes(NamedTuple):
    """What stat(2) returns for an inode. Times are nanoseconds since 1970, and may be negative."""

    ino: InodeNumber
    #: Type and permission bits together, as in `stat.st_mode`.
    mode: int
    #: Bytes; for a symbolic link the length of its target.
    size: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    #: A device number as `os.makedev` makes it; 0 if the inode is not a device.
    rdev: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    #: Allocated space in units of 512 bytes.
    blocks: int = 0
    #: The preferred size of a read, in bytes.
    blksize: int = 4096
    #: The inode number that stat(2) shows, if it differs from `ino`; else 0.
    shown_ino: int = 0


class DirectoryEntry(NamedTuple):
    """One name of a directory. A listing continues after `cookie`, which is never 0, and is stable while the directory
    does not change."""

    name: bytes
    cookie: int
    attributes: Attributes
    #: False: only the inode number and the type in `attributes` are right, and the kernel has to ask for the others.
    #: (So a name can be listed even if its inode is damaged; only asking for its attributes fails.)
    is_known: bool = True


#: A name of a directory, its cookie, its inode number, and the type bits of its mode.
Name: TypeAlias = tuple[bytes, int, int, int]


class FileSystemStatistics(NamedTuple):
    """What statfs(2) returns; blocks are of `block_size` bytes."""

    block_size: int = 4096
    blocks: int = 0
    free_blocks: int = 0
    available_blocks: int = 0
    files: int = 0
    free_files: int = 0
    name_max: int = 255


class Source(Protocol):
    """Bytes to read a file system from: a file of the view, or anything that can be read at an offset."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end. Raises OSError. Any thread may call it."""


class OpenFile:
    """One open file description: made by `FileSystem.open`, ended by `release` when its last descriptor is closed.

    A file system needs these only for files whose content is not simply a function of the inode.
    """

    #: Bypass the page cache: for content whose length is not known beforehand, and that may differ at each open.
    direct_io: bool = False
    #: The pages that the kernel has cached since the file was last open are still right.
    keep_cache: bool = False

    def read(self, offset: int, size: int) -> Answer[bytes]:
        raise os_error(errno.EBADF)

    def write(self, offset: int, data: bytes) -> Answer[int]:
        """Returns how many bytes were taken."""
        raise os_error(errno.EBADF)

    def write_at(self, offset: int, data: bytes) -> Answer[int]:
        """Write at `offset` even if the file is open with O_APPEND: the data are a page of a mapping (mmap(2))."""
        return self.write(offset, data)

    def lseek(self, offset: int, whence: int) -> Answer[int]:
        """Where the next data or hole from `offset` on begins: `whence` is SEEK_DATA or SEEK_HOLE (lseek(2)).

        If it isn't implemented, the kernel takes the whole file for data.
        """
        raise os_error(errno.ENOSYS)

    def fallocate(self, mode: int, offset: int, length: int) -> Answer[None]:
        """Reserve space, punch a hole, or whatever else fallocate(2) has a `mode` for."""
        raise os_error(errno.EOPNOTSUPP)  # (after ENOSYS the kernel would ask for no other file either)

    def get_flags(self) -> Answer[int]:
        """FS_IOC_GETFLAGS of ioctl_iflags(2): what lsattr(1) shows."""
        raise os_error(errno.ENOTTY)

    def flush(self) -> Answer[None]:
        """Called when a descriptor is closed; close(2) returns the error that this raises."""
        return None

    def fsync(self, *, data_only: bool) -> Answer[None]:
        """Called for fsync(2); there is nothing to do if writes take effect at once."""
        return None

    def release(self) -> Answer[None]:
        """Called when the last descriptor is closed."""
        return None


def _unsupported() -> OSError:
    return os_error(errno.ENOSYS)


class CacheCounts(Protocol):
    """A cache that counts its hits and misses."""

    hits: int
    misses: int


class FileSystem:
    """A file system that can be read. Every inode number it hands out stays valid while it is mounted."""

    #: The inode number of the root, which may be any kind of file (a single file is mounted on a file).
    root: InodeNumber = ROOT_INODE
    #: Nothing in it ever changes: the kernel may keep every answer for ever, and `open` is never called.
    immutable: bool = False
    #: Seconds the kernel may keep a name or attributes; not used where `immutable`.
    cache_seconds: float = 0.0
    #: No extended attributes anywhere, so that the kernel need ask only once.
    no_xattrs: bool = False
    #: The longest name that it can have, in bytes: more than 255 if names are stored in another encoding.
    name_max: int = 255
    #: Several threads may call its methods at once, and all of them are plain. Looked at only if `immutable`.
    concurrent: bool = False
    #: Caches of blocks of the source that count `hits` and `misses`, for `viewfs stats`.
    caches: Sequence[CacheCounts] = ()
    #: Set by the host (`-o listing=names`): listings have names without attributes, if `names` gives them; the kernel
    #: asks for the attributes that a program needs.
    lists_names_alone: bool = False
    #: If `concurrent`: how many bytes the host reads ahead in a file that is read sequentially, to have them in the
    #: cache of `read`; 0 if `read` caches nothing.
    read_ahead: int = 0
    #: If `concurrent`: call this before work that takes longer than 100 µs or so and lets other threads run meanwhile,
    #: such as decompressing. The host then lets another thread answer requests.
    about_to_work: Callable[[], None] = staticmethod(lambda: None)

    def getattr(self, inode: InodeNumber) -> Answer[Attributes]:
        raise _unsupported()

    def lookup(self, directory: InodeNumber, name: bytes) -> Answer[Attributes | None]:
        """The inode that `name` stands for in `directory`; None if there is no such name."""
        raise _unsupported()

    def readdir(self, directory: InodeNumber, start: int) -> Answer[Iterable[DirectoryEntry]]:
        """The entries after cookie `start` (0: from the beginning), `.` and `..` included if there are to be any.

        A lazy iterable is best: only as much of it is taken as the kernel's buffer holds.
        """
        raise _unsupported()

    def names(self, directory: InodeNumber, start: int) -> Iterable[Name] | None:
        """What `readdir` gives, without attributes; None if that saves no work. Called only if `concurrent`."""
        return None

    def read(self, inode: InodeNumber, offset: int, size: int) -> Answer[Content]:
        """Up to `size` bytes of a regular file from `offset`; fewer only at its end."""
        raise _unsupported()

    def readlink(self, inode: InodeNumber) -> Answer[bytes]:
        raise _unsupported()

    def open(self, inode: InodeNumber, flags: int) -> Answer[OpenFile | None]:
        """An `OpenFile` to read and write through, or None if `read` needs nothing but the inode number."""
        return None

    def listxattr(self, inode: InodeNumber) -> Answer[Iterable[bytes]]:
        return ()

    def getxattr(self, inode: InodeNumber, name: bytes) -> Answer[bytes | None]:
        """The value, or None if the inode has no attribute of that name."""
        return None

    def statfs(self) -> Answer[FileSystemStatistics]:
        return FileSystemStatistics()

    def close(self) -> None:
        """Called when the file system is unmounted in every view."""


class WritableFileSystem(FileSystem):
    """A file system that can be changed. The kernel checks permission bits before it asks (default_permissions)."""

    #: Call this when attributes of an inode that the kernel may have cached change in a way that the kernel does not
    #: see, such as a write to another name of the file. The kernel then asks for them again.
    attributes_changed: Callable[[InodeNumber], None] = staticmethod(lambda inode: None)

    def setattr(self, inode: InodeNumber, changes: Mapping[str, int]) -> Answer[Attributes]:
        """Apply `changes`, by field name of `Attributes`: mode, uid, gid, size, atime_ns, mtime_ns."""
        raise _unsupported()

    def create(
        self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0
    ) -> Answer[Attributes]:
        """Make a regular file, a FIFO, a socket or a device node, by the type bits of `mode`."""
        raise _unsupported()

    def mkdir(self, directory: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Answer[Attributes]:
        raise _unsupported()

    def symlink(self, directory: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Answer[Attributes]:
        raise _unsupported()

    def link(self, inode: InodeNumber, directory: InodeNumber, name: bytes) -> Answer[Attributes]:
        raise _unsupported()

    def unlink(self, directory: InodeNumber, name: bytes) -> Answer[None]:
        """Remove a name. The inode lives on until `forget`."""
        raise _unsupported()

    def rmdir(self, directory: InodeNumber, name: bytes) -> Answer[None]:
        raise _unsupported()

    def rename(
        self, directory: InodeNumber, name: bytes, new_directory: InodeNumber, new_name: bytes, flags: int
    ) -> Answer[None]:
        """As rename(2); `flags` as in renameat2(2)."""
        raise _unsupported()

    def tmpfile(self, directory: InodeNumber, mode: int, uid: int, gid: int) -> Answer[Attributes]:
        """Make a regular file without a name (open(2), O_TMPFILE), which `link` may give one."""
        raise os_error(errno.EOPNOTSUPP)

    def fsyncdir(self, directory: InodeNumber) -> Answer[None]:
        """Make the names in a directory durable (fsync(2) of a directory)."""
        return None

    def write(self, inode: InodeNumber, offset: int, data: bytes) -> Answer[int]:
        """Returns how many bytes were taken."""
        raise _unsupported()

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes) -> Answer[None]:
        raise os_error(errno.ENOTSUP)

    def removexattr(self, inode: InodeNumber, name: bytes) -> Answer[None]:
        raise os_error(errno.ENOTSUP)

    def keeps(self, inode: InodeNumber) -> bool:
        """Is the inode changed through this mount only? Then the kernel may cache its attributes, its name and, for a
        directory, which names it does not have, for ever, whatever `cache_seconds` says: the kernel knows of the
        changes that go through it. (Never a promise.)
        """
        return False

    def forget(self, inode: InodeNumber) -> Answer[None]:
        """The kernel holds no reference to `inode` any more."""
        return None


@dataclass(frozen=True)
class Identities:
    """Who the user of the view is, and which ids the view has a mapping for."""

    uid: int
    gid: int
    uids: Container[int]
    gids: Container[int]


@dataclass(frozen=True)
class Mounting:
    """What a module is told when it is to be mounted."""

    #: The source, opened; None if the module takes none or none was given.
    source: Source | None
    #: The source as the user wrote it, for messages.
    source_name: str
    #: Its path in the view.
    mount_point: str
    identities: Identities
    #: Every declared option, by name: the given value, or else its default.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Of a device module that keeps state (`DeviceModule.keeps`): the memory that outlives its server.
    kept: Kept | None = None


class Module:
    """A loadable module: subclass it, name it, declare its options, and return a file system from `open`."""

    #: The name by which `-t` and `insmod` find it.
    name: ClassVar[str]
    #: Declared options, in the order in which they are shown.
    options: ClassVar[tuple[Option[Any], ...]] = ()
    #: Where `insmod` mounts it if no mount point is given.
    mount_point: ClassVar[str | None] = None
    #: The module needs a source (an image, an archive).
    takes_source: ClassVar[bool] = False
    #: The option that names the source if none is given otherwise. A module without `takes_source` can have this too:
    #: its source is optional then.
    source_option: ClassVar[str | None] = None
    #: The source is opened for writing too, if that is allowed (see `sources.FileSource.writable`).
    writes_source: ClassVar[bool] = False
    #: The module reads the view after `open` too. Without this its server is sealed off and can't open any path.
    uses_view: ClassVar[bool] = False
    #: The module may open network connections.
    uses_network: ClassVar[bool] = False
    #: No method of its file system returns a promise, so that its server needs no event loop, and starts sooner.
    never_waits: ClassVar[bool] = False

    @classmethod
    def memory(cls, options: Mapping[str, Any]) -> int:
        """Bytes that `options` ask it to keep in memory; they do not count towards its server's memory limit."""
        return 0

    @classmethod
    def probe(cls, source: Source) -> bool:
        """Does `source` look like something that this module can mount? Must be quick, and must not raise."""
        return False

    @classmethod
    def probe_damaged(cls, source: Source) -> bool:
        """Can `source` be read although its beginning is damaged? Asked if no module recognizes it by its beginning.

        As `probe`, but it may take a tenth of a second.
        """
        return False

    def describe(self, mounting: Mounting) -> Mapping[str, str]:
        """What `viewfs inspect` shows of a source, as headings and values. Raises as `open` does."""
        return {}

    def open(self, mounting: Mounting) -> FileSystem:
        """The file system to mount.

        Raises `DamagedSourceError` or `UsageError` with what the user is to be told.
        """
        raise NotImplementedError
