"""What the author of a module implements.

A file system is nodes and bytes. It is asked about inode numbers and answers with `Attributes`, directory entries and
bytes; it knows nothing of FUSE, of processes or of mounts. A method that computes its answer is a plain `def`; one that
may have to wait for something is an `async def`, runs on trio, and is cancelled when its caller is interrupted. (A
plain method is answered in the serving loop itself, which is the fastest way there is, and holds up the other
requests.)

A module raises `OSError` with the errno that the caller shall see. Whatever else it raises is logged with its
traceback and becomes EIO for that one call.
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
#: What a method returns: the answer itself (a plain `def`), or a promise of it (an `async def`).
Answer: TypeAlias = _T | Awaitable[_T]
#: Bytes in memory, whoever owns it.
Buffer: TypeAlias = bytes | bytearray | memoryview


class FileRange(NamedTuple):
    """Bytes that are in an open file, and need not come into memory to be passed on."""

    fd: int
    offset: int
    size: int


#: Content that is read: in one, or as a list of pieces, which spares joining them.
Content: TypeAlias = Buffer | FileRange | list[Buffer | FileRange]

InodeNumber = NewType("InodeNumber", int)

#: What tells the ids that an image stores for a file, as “uid:gid”, where the option `owner` is “tell”. It is read by
#: who knows of it, and never listed, so that nobody copies it.
OWNER_XATTR = b"viewfs.owner"

#: The inode number that a file system's root has if it doesn't say otherwise.
ROOT_INODE = InodeNumber(1)


class Attributes(NamedTuple):
    """What stat(2) tells of an inode. Times are nanoseconds since 1970, which may be negative."""

    ino: InodeNumber
    #: Type and permission bits together, as in `stat.st_mode`.
    mode: int
    #: Bytes; for a symbolic link the length of its target.
    size: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    #: A device number as `os.makedev` makes it; 0 for what is no device.
    rdev: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    #: Allocated space in units of 512 bytes.
    blocks: int = 0
    #: The preferred size of a read, in bytes.
    blksize: int = 4096
    #: The number that stat(2) shows, where that is not `ino`: 0 for the same.
    shown_ino: int = 0


class DirectoryEntry(NamedTuple):
    """One name of a directory. `cookie` is where to go on after it: never 0, and stable while the directory is."""

    name: bytes
    cookie: int
    attributes: Attributes
    #: False: of `attributes` only the number and the type are right, and the kernel has to ask for the others. (So a
    #: name can be listed whose inode is damaged, and whoever looks at it is told.)
    is_known: bool = True


#: A name of a directory, the cookie behind it, the inode's number, and the type bits of its mode.
Name: TypeAlias = tuple[bytes, int, int, int]


class FileSystemStatistics(NamedTuple):
    """What statfs(2) tells, in units of `block_size` bytes."""

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
    #: What the kernel has in its page cache since the file was open before is still right.
    keep_cache: bool = False

    def read(self, offset: int, size: int) -> Answer[bytes]:
        raise os_error(errno.EBADF)

    def write(self, offset: int, data: bytes) -> Answer[int]:
        """Returns how many bytes were taken."""
        raise os_error(errno.EBADF)

    def write_at(self, offset: int, data: bytes) -> Answer[int]:
        """The same, and never appended, though the file be open for that: a page of a mapping (mmap(2))."""
        return self.write(offset, data)

    def lseek(self, offset: int, whence: int) -> Answer[int]:
        """Where data or a hole begins, from `offset` on: `whence` is SEEK_DATA or SEEK_HOLE (lseek(2)).

        Where it isn't implemented the kernel takes all of a file for data.
        """
        raise os_error(errno.ENOSYS)

    def fallocate(self, mode: int, offset: int, length: int) -> Answer[None]:
        """Reserve room, make a hole, or what else fallocate(2) has a `mode` for."""
        raise os_error(errno.ENOSYS)

    def get_flags(self) -> Answer[int]:
        """FS_IOC_GETFLAGS of ioctl_iflags(2): what lsattr(1) shows."""
        raise os_error(errno.ENOTTY)

    def flush(self) -> Answer[None]:
        """A descriptor is closed; an error here is what close(2) returns."""
        return None

    def fsync(self, *, data_only: bool) -> Answer[None]:
        """Nothing to do where writing is at once."""
        return None

    def release(self) -> Answer[None]:
        """The last descriptor is gone."""
        return None


def _unsupported() -> OSError:
    return os_error(errno.ENOSYS)


class CacheCounts(Protocol):
    """A cache that counts how often what it was asked for was there, and was not."""

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
    #: The longest name that it can have, in bytes: more than 255 where names are kept in another encoding.
    name_max: int = 255
    #: Any thread may call its methods, and several at once; looked at where `immutable`. All of them are plain then.
    concurrent: bool = False
    #: Caches of blocks of the source that count `hits` and `misses`, for `viewfs stats`.
    caches: Sequence[CacheCounts] = ()
    #: Listings have names alone, if `names` gives them: who wants more asks for each.
    lists_names_alone: bool = False
    #: Where `concurrent`: so many bytes behind what somebody reads from one end to the other are read ahead, for what
    #: `read` keeps of them; 0 where it keeps nothing.
    read_ahead: int = 0
    #: Where `concurrent`, to be called before what takes longer than 100 µs or so and lets other threads run meanwhile,
    #: such as decompressing: the host lets another thread answer then.
    about_to_work: Callable[[], None] = staticmethod(lambda: None)

    def getattr(self, inode: InodeNumber) -> Answer[Attributes]:
        raise _unsupported()

    def lookup(self, directory: InodeNumber, name: bytes) -> Answer[Attributes | None]:
        """The inode that `name` stands for in `directory`; None where there is no such name."""
        raise _unsupported()

    def readdir(self, directory: InodeNumber, start: int) -> Answer[Iterable[DirectoryEntry]]:
        """The entries after cookie `start` (0: from the beginning), `.` and `..` included if there are to be any.

        A lazy iterable is best: only as much of it is taken as the kernel's buffer holds.
        """
        raise _unsupported()

    def names(self, directory: InodeNumber, start: int) -> Iterable[Name] | None:
        """What `readdir` gives without attributes; None where that is no less work. Looked at where `concurrent`."""
        return None

    def read(self, inode: InodeNumber, offset: int, size: int) -> Answer[Content]:
        """Up to `size` bytes of a regular file from `offset`; fewer only at its end."""
        raise _unsupported()

    def readlink(self, inode: InodeNumber) -> Answer[bytes]:
        raise _unsupported()

    def open(self, inode: InodeNumber, flags: int) -> Answer[OpenFile | None]:
        """An `OpenFile` to read and write through, or None where `read` needs nothing but the inode number."""
        return None

    def listxattr(self, inode: InodeNumber) -> Answer[Iterable[bytes]]:
        return ()

    def getxattr(self, inode: InodeNumber, name: bytes) -> Answer[bytes | None]:
        """The value, or None where the inode has no attribute of that name."""
        return None

    def statfs(self) -> Answer[FileSystemStatistics]:
        return FileSystemStatistics()

    def close(self) -> None:
        """The file system is unmounted, and no other process's view has it either."""


class WritableFileSystem(FileSystem):
    """A file system that can be changed. The kernel checks permission bits before it asks (default_permissions)."""

    #: To be called where attributes of an inode change that the kernel keeps, by something that it does not know of: a
    #: write to another name of the file, say. It then asks again.
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
        """The names in a directory are to survive the machine (fsync(2) of a directory)."""
        return None

    def write(self, inode: InodeNumber, offset: int, data: bytes) -> Answer[int]:
        """Returns how many bytes were taken."""
        raise _unsupported()

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes) -> Answer[None]:
        raise os_error(errno.ENOTSUP)

    def removexattr(self, inode: InodeNumber, name: bytes) -> Answer[None]:
        raise os_error(errno.ENOTSUP)

    def keeps(self, inode: InodeNumber) -> bool:
        """Is it changed through this mount only? Then the kernel may keep its attributes and its name, and of a
        directory what names it has not, for ever, whatever `cache_seconds` says. It knows what it does itself.
        (Never a promise.)
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

    #: What was given as the source, opened; None where the module takes none.
    source: Source | None
    #: The source as the user wrote it, for messages.
    source_name: str
    #: Where it will stand in the view.
    mount_point: str
    identities: Identities
    #: Every declared option, by name: the given value, or else its default.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Of a device module that keeps something: what outlives its server.
    kept: Kept | None = None


class Module:
    """A loadable module: subclass it, name it, declare its options, and return a file system from `open`."""

    #: What `-t` and `insmod` call it.
    name: ClassVar[str]
    #: Declared options, in the order in which they are shown.
    options: ClassVar[tuple[Option[Any], ...]] = ()
    #: Where `insmod` puts it if no place is given.
    mount_point: ClassVar[str | None] = None
    #: The module is made of a source (an image, an archive) rather than of nothing.
    takes_source: ClassVar[bool] = False
    #: The option that names the source where none is given otherwise; a module that takes none may have one so.
    source_option: ClassVar[str | None] = None
    #: The source is opened for writing too, if that is allowed (see `sources.FileSource.writable`).
    writes_source: ClassVar[bool] = False
    #: The module goes on reading the view after `open`. Without it its server is sealed off: no path can be opened.
    uses_view: ClassVar[bool] = False
    #: The module may open network connections.
    uses_network: ClassVar[bool] = False

    @classmethod
    def memory(cls, options: Mapping[str, Any]) -> int:
        """Bytes that `options` ask it to keep in memory: they do not count to what its server may use besides."""
        return 0

    @classmethod
    def probe(cls, source: Source) -> bool:
        """Does `source` look like something that this module can mount? Must be quick, and must not raise."""
        return False

    @classmethod
    def probe_damaged(cls, source: Source) -> bool:
        """Asked where no module knows a source by its beginning: is there enough of the rest to read it?

        As `probe`, but it may take a tenth of a second.
        """
        return False

    def describe(self, mounting: Mounting) -> Mapping[str, str]:
        """What `viewfs inspect` shows of a source: what it is called, and what it is. Raises as `open` does."""
        return {}

    def open(self, mounting: Mounting) -> FileSystem:
        """The file system to mount.

        Raises `DamagedSourceError` or `UsageError` with what the user is to be told.
        """
        raise NotImplementedError
