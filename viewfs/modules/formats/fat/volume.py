"""A FAT12, FAT16, FAT32 or exFAT file system in an image, as the module that mounts it uses it.

`boot`, `entries`, `exfat_entries`, `names` and `times` turn bytes into values and know nothing of images; `chains`
reads the table. Here is what both formats have in common; `fat` and `exfat` have the rest. Everything is read when it
is asked for. Every byte is taken to be hostile: what contradicts the format raises OSError(EUCLEAN), and what lies
beyond the end of the image raises OSError(EIO).

There are no inodes. A node is computed from the position of the file's entry in the volume, so nothing has to be
remembered of files that were looked up. A name that can be read is listed even if its file is damaged; a directory is
listed as far as it can be read, and then the error is raised.
"""

from __future__ import annotations

import errno
import logging
import stat
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from viewfs.errors import os_error
from viewfs.modules.api import Attributes, Buffer, FileRange, FileSystemStatistics, InodeNumber
from viewfs.modules.formats.fat.chains import FIRST_CLUSTER, Chains, Runs
from viewfs.modules.framework.cache import Cache, SingleFlightCache
from viewfs.modules.framework.damage import damaged
from viewfs.modules.framework.sources import Section, joined

__all__ = ["ROOT", "ClusterVolume", "File", "Name", "Places"]

log = logging.getLogger(__name__)

#: The node of the root.
ROOT = 1
#: Bytes of a directory that are read at once; the largest directory that is kept as a table of names; names in all
#: tables together.
_BATCH = 65536
_TABLE_MAX = 8 << 20
_NAMES_CACHED = 1 << 17
_FILES_CACHED = 8192
_PARENTS_CACHED = 65536
#: Files have no permission bits except one for read-only.
_PERMISSIONS = 0o755
_READ_ONLY = 0o222
_DIRECTORY_KIND, _FILE_KIND = 4, 8  # DT_*
_DOTS = 2


class File(NamedTuple):
    """A file or directory. Times in nanoseconds since 1970, lengths in bytes."""

    is_directory: bool
    is_read_only: bool
    first_cluster: int
    #: Of a directory of exFAT, its length as its entry has it.
    length: int
    #: What lies beyond this reads as zeros.
    valid_length: int
    is_contiguous: bool
    mtime_ns: int
    atime_ns: int
    ctime_ns: int


class Name(NamedTuple):
    """One name of a directory."""

    name: bytes
    #: Where its entry ends in the directory, in bytes.
    end: int
    node: int
    is_directory: bool
    #: Another name by which the file is found, or "".
    alias: str = ""
    #: Its entry contradicts its checksum, so that this may not be its name.
    is_damaged: bool = False


class Places(NamedTuple):
    """Where the bytes of a directory are: pieces of the volume, as offset and size in bytes."""

    pieces: list[tuple[int, int]]
    error: OSError | None


class _Table(NamedTuple):
    """The names of a directory, with the node of each by its shown and by its folded form."""

    #: In the order of the directory, without repetitions.
    names: list[Name]
    shown: dict[bytes, int]
    folded: dict[str, int]
    error: OSError | None


class ClusterVolume(ABC):
    """One file system (`image.Volume`). Any thread may call its methods, and several at once."""

    no_xattrs = True
    root = ROOT
    #: The format's name; this, the label and the serial number are what `viewfs inspect` shows.
    kind: str
    label = ""
    serial: int
    #: What is wrong with the volume although it can be read.
    warnings: tuple[str, ...] = ()

    def __init__(self, section: Section, heap: int, cluster_size: int, clusters: int, chains: Chains) -> None:
        self._section = section
        self._heap, self._cluster_size, self._clusters = heap, cluster_size, clusters
        self._chains = chains
        self._files: Cache[int, File] = Cache(_FILES_CACHED)
        self._parents: Cache[int, int] = Cache(_PARENTS_CACHED)
        self._tables = SingleFlightCache(_NAMES_CACHED, self._read_table, lambda table: 1 + len(table.shown))
        self.uid = self.gid = 0

    # -- what the formats differ in

    @abstractmethod
    def _read_file(self, node: int) -> File:
        """The file of a node other than the root. Raises OSError."""

    @abstractmethod
    def _root_file(self) -> File: ...

    @abstractmethod
    def _names(self, node: int, file: File, start: int) -> Iterator[Name]:
        """The names of a directory after its first `start` bytes. Raises OSError."""

    @abstractmethod
    def _fold(self, name: bytes) -> str:
        """A form that is the same for all names that count as the same; "" if `name` can't be a name."""

    @abstractmethod
    def _free_clusters(self) -> int: ...

    # -- what `image.Volume` asks

    def file(self, node: int) -> File:
        """Raises OSError."""
        if node == ROOT:
            return self._root_file()
        return self._files.get(node) or self._files.put(node, self._read_file(node))

    def attributes(self, node: int) -> Attributes:
        """What stat(2) returns. Raises OSError."""
        file = self.file(node)
        size = file.length
        if file.is_directory:
            size = sum(size for _offset, size in self._places(node, file).pieces)
        mode = _PERMISSIONS | (stat.S_IFDIR if file.is_directory else stat.S_IFREG)
        if file.is_read_only and not file.is_directory:
            mode &= ~_READ_ONLY
        clusters = -(-size // self._cluster_size)
        return Attributes(
            ino=InodeNumber(node),
            mode=mode,
            size=size,
            uid=self.uid,
            gid=self.gid,
            atime_ns=file.atime_ns,
            mtime_ns=file.mtime_ns,
            ctime_ns=file.ctime_ns,
            blocks=clusters * (self._cluster_size // 512),
            blksize=min(max(self._cluster_size, 4096), 1 << 17),
        )

    def lookup(self, directory: int, name: bytes) -> int | None:
        """Raises OSError, also where the name may be in a part of the directory that is damaged."""
        if name == b".":
            return directory
        if name == b"..":
            return self._parents.get(directory) or directory
        file = self._directory(directory)
        wanted = self._fold(name)
        if self._size_of(directory, file) <= _TABLE_MAX:
            table = self._tables.get(directory)
            found = table.shown.get(name)
            if found is None and wanted:
                found = table.folded.get(wanted)
            error = table.error
        else:
            found, error = self._search(directory, file, name, wanted)
        if found is None and error is not None and wanted:
            raise _again(error)
        return found

    def entries(self, directory: int, start: int) -> Iterator[tuple[bytes, int, int, int]]:
        """Name, cookie, node and DT_* type, `.` and `..` included. If a part is damaged, raises OSError at the end."""
        file = self._directory(directory)
        if start < 1:
            yield b".", 1, directory, _DIRECTORY_KIND
        if start < _DOTS:
            yield b"..", _DOTS, self._parents.get(directory) or directory, _DIRECTORY_KIND
        begin = max(start - _DOTS, 0)
        if self._size_of(directory, file) <= _TABLE_MAX:
            table = self._tables.get(directory)
            first = bisect_right(table.names, begin, key=lambda name: name.end)
            listed: Iterator[Name] = _then(islice(table.names, first, None), table.error)
        else:
            listed = self._all_names(directory, file, begin)
        for found in listed:
            yield found.name, found.end + _DOTS, found.node, _DIRECTORY_KIND if found.is_directory else _FILE_KIND

    #: stat(2) shows the nodes of `entries`.
    names = entries

    def read(self, node: int, offset: int, size: int) -> bytes:
        """As `read_pieces`, joined."""
        return joined(self.read_pieces(node, offset, size))

    def read_pieces(self, node: int, offset: int, size: int) -> list[Buffer | FileRange]:
        """Up to `size` bytes of a file from `offset`, fewer only at its end. Raises OSError."""
        file = self.file(node)
        if file.is_directory:
            raise os_error(errno.EISDIR)
        offset = max(offset, 0)
        end = min(offset + size, file.length)
        if offset >= end:
            return []
        runs = self._runs(file)
        # All or nothing: to return fewer bytes than asked for would mean the end of the file (fuse_short_read).
        if end > runs.total * self._cluster_size:
            raise _again(runs.error or damaged("a file has too few clusters"))
        written = min(end, file.valid_length)
        pieces: list[Buffer | FileRange] = []
        while offset < written:
            number, inside = divmod(offset, self._cluster_size)
            found = runs.find(number)
            assert found is not None
            cluster, count = found
            length = min(count * self._cluster_size - inside, written - offset)
            pieces.append(self._section.span(length, self._position(cluster) + inside))
            offset += length
        if offset < end:
            pieces.append(bytes(end - offset))
        return pieces

    def readlink(self, node: int) -> bytes:
        raise os_error(errno.EINVAL)

    def xattrs(self, node: int) -> Mapping[bytes, bytes]:
        return {}

    def statistics(self) -> FileSystemStatistics:
        """What statfs(2) returns."""
        try:
            free = self._free_clusters()
        except OSError:
            free = 0
        free = min(max(free, 0), self._clusters)
        return FileSystemStatistics(self._cluster_size, self._clusters, free, free, name_max=255 * 3)

    # -- clusters

    def _position(self, cluster: int) -> int:
        return self._heap + (cluster - FIRST_CLUSTER) * self._cluster_size

    def _runs(self, file: File) -> Runs:
        """Where the clusters of a file are."""
        count = -(-file.length // self._cluster_size)
        return self._chains.runs(file.first_cluster, count, exact=True)

    @abstractmethod
    def _directory_runs(self, node: int, file: File) -> Runs: ...

    def _places(self, node: int, file: File) -> Places:
        runs = self._directory_runs(node, file)
        ends = [*runs.firsts[1:], runs.total] if runs.firsts else []
        size = self._cluster_size
        return Places(
            [
                (self._position(cluster), (end - first) * size)
                for cluster, first, end in zip(runs.clusters, runs.firsts, ends, strict=True)
            ],
            runs.error,
        )

    # -- directories

    def _directory(self, node: int) -> File:
        file = self.file(node)
        if not file.is_directory:
            raise os_error(errno.ENOTDIR)
        return file

    def _size_of(self, node: int, file: File) -> int:
        return sum(size for _offset, size in self._places(node, file).pieces)

    def _pieces(self, node: int, file: File, start: int) -> Iterator[tuple[bytes, int]]:
        """The bytes of a directory after its first `start`, with their positions. Raises OSError, after a piece too."""
        places = self._places(node, file)
        for position, size in places.pieces:
            if start >= size:
                start -= size
                continue
            for offset in range(start, size, _BATCH):
                length = min(_BATCH, size - offset)
                data = self._section.pread_up_to(length, position + offset)
                yield data, position + offset
                if len(data) < length:
                    self._section.pread(length, position + offset)  # raises, saying what is missing
            start = 0
        if places.error is not None:
            raise _again(places.error)

    def _all_names(self, node: int, file: File, start: int) -> Iterator[Name]:
        """As `_names`; also remembers the parent of each directory."""
        for found in self._names(node, file, start):
            if found.is_directory and self._parents.get(found.node) is None:
                self._parents.put(found.node, node)
            yield found

    def _read_table(self, node: int) -> _Table:
        table = _Table([], {}, {}, None)
        error: OSError | None = None
        try:
            table.names.extend(self._all_names(node, self._directory(node), 0))
        except OSError as reason:
            error = _again(reason)
        repeated: dict[bytes, int] = {}
        # Undamaged entries come first, so that a damaged one does not take their name.
        for place, found in sorted(enumerate(table.names), key=lambda one: one[1].is_damaged):
            if found.name in table.shown:
                found = found._replace(name=_other_name(found.name, table.shown, repeated))
                table.names[place] = found
            table.shown[found.name] = found.node
            # The short name has precedence, as in Linux.
            for alias in filter(None, (found.alias and self._fold(found.alias.encode()), self._fold(found.name))):
                table.folded.setdefault(alias, found.node)
        return table._replace(error=error)

    def _search(self, node: int, file: File, name: bytes, wanted: str) -> tuple[int | None, OSError | None]:
        """Look up `name` in a directory that is too large for a table; also returns the error of a damaged part."""
        alike: Name | None = None
        same: Name | None = None
        error: OSError | None = None
        try:
            for found in self._all_names(node, file, 0):
                if found.name == name:
                    same = found
                    if not found.is_damaged:
                        break
                elif wanted and (alike is None or alike.is_damaged):
                    aliases = (self._fold(found.name), found.alias and self._fold(found.alias.encode()))
                    alike = found if wanted in aliases else alike
        except OSError as reason:
            error = reason
        best = same or alike
        return None if best is None else best.node, error


def _then(names: Iterable[Name], error: OSError | None) -> Iterator[Name]:
    """`names`, and then `error`, if there is one."""
    yield from names
    if error is not None:
        raise _again(error)


def _other_name(name: bytes, taken: Mapping[bytes, int], repeated: dict[bytes, int]) -> bytes:
    """Another name for an entry whose name is taken; `repeated`: the last number added to each name."""
    number = repeated.get(name, 1) + 1
    while (other := name + b"~%d" % number) in taken:
        number += 1
    repeated[name] = number
    log.warning("a directory has %r more than once; one of them is shown as %r", name, other)
    return other


def _again(error: OSError) -> OSError:
    """A copy of `error` to raise: an exception raised twice gets a longer traceback each time, and keeps it alive."""
    return OSError(error.errno, error.strerror)
