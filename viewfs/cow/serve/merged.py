"""What a lower tree and the upper directory over it show together, and what the kernel has been told of it.

The rules are overlayfs's (Documentation/filesystems/overlayfs.rst). Files are identified by where they are. Most of the
time of a look-up goes into walking to the directory, so directories are kept open for a moment: no longer than the
kernel keeps what it is told, for the lower tree may be changed by others.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from viewfs.cow.compare.trees import GONE, Entry, Tree, join
from viewfs.cow.serve.nodes import Node, NodeRecord
from viewfs.errors import os_error
from viewfs.modules.api import ROOT_INODE, Attributes, DirectoryEntry, Identities, InodeNumber
from viewfs.mounts.overlay import OPAQUE, WHITEOUT

__all__ = ["KEPT_SECONDS", "MergedTree", "OpenDirectories", "OwnerOf"]

#: Tells the user and group of an open file, given what stat(2) tells of it here.
OwnerOf: TypeAlias = Callable[[int, os.stat_result], tuple[int, int]]

#: How long the kernel keeps names and attributes.
KEPT_SECONDS = 1.0
#: Directories of each tree that are kept open.
_KEPT_OPEN = 200
#: Directories whose names are kept while they are listed.
_LISTINGS = 32
#: All names of a lower file show one inode number; such numbers begin here.
_LINKED = 1 << 31


class OpenDirectories:
    """Directories of a tree, some of them kept open for a moment."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._kept: OrderedDict[bytes, tuple[int | None, float]] = OrderedDict()

    def get(self, path: bytes) -> int | None:
        """A descriptor (O_PATH) that is good until the next call; None where there is no such directory."""
        now = time.monotonic()
        if (kept := self._kept.get(path)) is not None and now < kept[1]:
            return kept[0]
        self._drop(path)
        fd: int | None = None
        try:
            fd = self._tree.open(path, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in GONE:
                raise
        self._kept[path] = fd, now + KEPT_SECONDS
        if len(self._kept) > _KEPT_OPEN:
            self._drop(next(iter(self._kept)))
        return fd

    def status(self, path: bytes) -> os.stat_result | None:
        """What stat(2) tells of `path`; None where nothing is. Raises OSError."""
        directory, _slash, name = path.rpartition(b"/")
        fd = self.get(directory)
        if fd is None:
            return None
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False) if name else os.stat(fd)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory; none where there is no such directory. Raises OSError."""
        fd = self.get(path)
        if fd is None:
            return []
        reading = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            return list(map(os.fsencode, os.listdir(reading)))
        finally:
            os.close(reading)

    def place(self, path: bytes) -> bytes:
        """A path for system calls that take no directory, good until the next call. Raises ENOENT."""
        directory, _slash, name = path.rpartition(b"/")
        fd = self.get(directory)
        if fd is None:
            raise os_error(errno.ENOENT)
        return b"/proc/self/fd/%d/%s" % (fd, name or b".")

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor of a file. Raises OSError."""
        directory, _slash, name = path.rpartition(b"/")
        fd = self.get(directory)
        if fd is None:
            raise os_error(errno.ENOENT)
        return os.open(name or b".", flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)

    def forget(self, path: bytes = b"") -> None:
        """Close what is kept at and below `path`: a directory was made, moved or removed there."""
        below = path + b"/" if path else b""
        for kept in [kept for kept in self._kept if kept == path or kept.startswith(below)]:
            self._drop(kept)

    def _drop(self, path: bytes) -> None:
        fd = self._kept.pop(path, (None, 0.0))[0]
        if fd is not None:
            os.close(fd)


class MergedTree:
    """`lower` with the changes that are in `upper`. Made for one thread."""

    def __init__(
        self,
        lower: Tree,
        upper: Tree,
        identities: Identities,
        stand_ins: frozenset[bytes] = frozenset(),
        owner_of: OwnerOf | None = None,
    ) -> None:
        self.lower, self.upper = lower, upper
        self._owner_of = owner_of
        #: Lower files that are shown as empty.
        self.stand_ins = stand_ins
        self.in_lower, self.in_upper = OpenDirectories(lower), OpenDirectories(upper)
        self._identities = identities
        self._numbers = itertools.count(ROOT_INODE + 1)
        self._nodes: dict[int, Node] = {ROOT_INODE: Node(ROOT_INODE, [])}
        self._named: dict[tuple[int, bytes], Node] = {}
        #: Files with several names in the upper directory, by their inode number there.
        self._linked: dict[int, Node] = {}
        #: Names in the directories that are being listed: the kernel asks for them in several requests.
        self._listings: OrderedDict[int, list[tuple[int, bytes]]] = OrderedDict()
        #: Called with what a successor has to know of a node (`lasting.LastingFileSystem.restore`).
        self.remember: Callable[[InodeNumber, bytes | None], None] | None = None

    # -- what the kernel knows

    def node(self, inode: InodeNumber) -> Node:
        """The node of an inode number. Raises ESTALE."""
        try:
            return self._nodes[inode]
        except KeyError:
            raise os_error(errno.ESTALE) from None

    def child(self, parent: Node, name: bytes) -> Node:
        """The node of a name, which is made if need be."""
        node = self._named.get((parent.number, name))
        if node is None:
            node = self.unnamed()
            self.give_name(node, parent, name)
        node.is_forgotten = False
        return node

    def named(self, parent: Node, name: bytes) -> Node | None:
        """The node of a name, if the kernel knows it."""
        return self._named.get((parent.number, name))

    def note(self, node: Node) -> None:
        """Record a node: something has changed that a successor has to know of it."""
        if self.remember is not None:
            self.remember(node.number, node.record())

    def is_linked(self, node: Node, inode: int) -> None:
        """Note that the file `inode` of the upper directory has several names, and that all of them are `node`."""
        self._linked[inode] = node
        node.linked = inode
        self.note(node)

    def _linked_child(self, parent: Node, name: bytes, inode: int) -> Node:
        """The node of one of the names of a file that has several in the upper directory."""
        known = self._linked.get(inode)
        if known is None or known.is_gone or (parent.number, name) in self._named:
            node = self.child(parent, name)
            self.is_linked(node, inode)
            return node
        self.give_name(known, parent, name)
        return known

    def exchange(self, parent: Node, name: bytes, other_parent: Node, other_name: bytes) -> None:
        """Exchange the names of two nodes."""
        one, other = self._named[parent.number, name], self._named[other_parent.number, other_name]
        one.places[one.places.index((parent, name))] = other_parent, other_name
        other.places[other.places.index((other_parent, other_name))] = parent, name
        self._named[parent.number, name], self._named[other_parent.number, other_name] = other, one
        self.note(one)
        self.note(other)

    def unnamed(self) -> Node:
        """A new node, which has no name yet."""
        node = Node(InodeNumber(next(self._numbers)), [])
        self._nodes[node.number] = node
        return node

    def give_name(self, node: Node, parent: Node, name: bytes) -> None:
        """Give a node a name, or one more."""
        node.places.append((parent, name))
        self._named[parent.number, name] = node
        parent.children += 1
        self.note(node)

    def unname(self, parent: Node, name: bytes, last: os.stat_result | None = None) -> None:
        """Remove a name. The file, which was `last`, lives on by its other names, or while somebody has it open."""
        node = self._named.get((parent.number, name))
        if node is not None:
            if node.handles and not node.handles[0].is_upper and len(node.places) == 1:
                node.lower_path = node.path
            node.last = last
            self._take_name(node, parent, name)
            self.note(node)
            if parent.is_forgotten:
                self.forget(parent.number)

    def _take_name(self, node: Node, parent: Node, name: bytes) -> None:
        del self._named[parent.number, name]
        node.places.remove((parent, name))
        parent.children -= 1

    def rename(self, old_parent: Node, old_name: bytes, parent: Node, name: bytes) -> None:
        """Give the node that has the old name the new one."""
        node = self._named.pop((old_parent.number, old_name))
        node.places[node.places.index((old_parent, old_name))] = parent, name
        old_parent.children -= 1
        parent.children += 1
        self._named[parent.number, name] = node
        self.note(node)

    def forget(self, inode: InodeNumber) -> list[Node]:
        """Note that the kernel has forgotten `inode`. Returns the nodes that are no longer needed."""
        dropped: list[Node] = []
        unused = [self._nodes[inode]] if inode in self._nodes and inode != ROOT_INODE else []
        while unused:
            node = unused.pop()
            if node.handles or node.children:
                # It is still in the path of a node that the kernel has not forgotten, or is about to be closed.
                node.is_forgotten = True
                continue
            del self._nodes[node.number]
            if self._linked.get(node.linked) is node:
                del self._linked[node.linked]
            for parent, name in list(node.places):
                self._take_name(node, parent, name)
                if parent.is_forgotten and not parent.children:
                    unused.append(parent)
            if self.remember is not None:
                self.remember(node.number, None)
            dropped.append(node)
        return dropped

    def restore(self, known: Mapping[InodeNumber, bytes]) -> None:
        """Make the nodes again that the previous server has noted."""
        records = {number: NodeRecord.from_bytes(data) for number, data in known.items()}
        for number, record in records.items():
            node = Node(number, [], record.linked, record.merged, last=record.last)
            node.held, node.lower_path = record.held, record.lower_path
            self._nodes[number] = node
            if record.linked:
                self._linked[record.linked] = node
        for number, record in records.items():
            node = self._nodes[number]
            for directory, name in record.places:
                parent = self._nodes[InodeNumber(directory)]
                node.places.append((parent, name))
                self._named[directory, name] = node
                parent.children += 1
        self._numbers = itertools.count(max(known, default=ROOT_INODE) + 1)

    # -- what is there

    def lower_status(self, parent: Node | None, path: bytes) -> os.stat_result | None:
        """What stat(2) tells of `path`, in the directory `parent`, in the lower tree; None if that is not visible.

        A directory that may not be looked into counts as empty, for nobody here can tell what is in it.
        """
        if parent is not None and not parent.merged:
            return None
        try:
            status = self.in_lower.status(path)
        except PermissionError:
            return None
        if status is None:
            return None
        if path in self.stand_ins:
            status = os.stat_result((*status[:6], 0, *status[7:]), _extra(status))
        known = self._identities
        if self._owner_of is None or (status.st_uid in known.uids and status.st_gid in known.gids):
            return status
        try:
            fd = self.in_lower.open(path, os.O_PATH)
            try:
                uid, gid = self._owner_of(fd, status)
            finally:
                os.close(fd)
        except OSError:
            return status
        return os.stat_result((*status[:4], uid, gid, *status[6:]), _extra(status))

    def shown_owner(self, status: os.stat_result | None, entry: Entry) -> tuple[int, int]:
        """The owner and group that a lower file is shown with: ids that are not mapped here are shown as the user's."""
        known = self._identities
        uid, gid = (entry.uid, entry.gid) if status is None else (status.st_uid, status.st_gid)
        return uid if uid in known.uids else known.uid, gid if gid in known.gids else known.gid

    def is_whiteout(self, path: bytes, status: os.stat_result) -> bool:
        """Is what is at `path` in the upper directory a whiteout?"""
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        if status.st_size or not stat.S_ISREG(status.st_mode):
            return False
        try:
            return bool(os.getxattr(self.in_upper.place(path), WHITEOUT, follow_symlinks=False))
        except OSError:
            return False

    def _is_opaque(self, path: bytes) -> bool:
        try:
            return os.getxattr(self.in_upper.place(path), OPAQUE, follow_symlinks=False) == b"y"
        except OSError:
            return False

    def found(self, node: Node) -> tuple[os.stat_result, bool]:
        """The status of a node, and whether it is in the upper directory. Raises ENOENT."""
        path = node.path
        upper = self.in_upper.status(path)
        if upper is not None:
            if self.is_whiteout(path, upper):
                raise os_error(errno.ENOENT)
            return upper, True
        lower = self.lower_status(node.parent, path)
        if lower is None:
            raise os_error(errno.ENOENT)
        return lower, False

    def look_up(self, parent: Node, name: bytes) -> Attributes | None:
        """What `name` is in `parent`; None where nothing is."""
        path = join(parent.path, name)
        return self._seen(parent, name, path, self.in_upper.status(path), self.lower_status(parent, path))

    def _seen(
        self, parent: Node, name: bytes, path: bytes, upper: os.stat_result | None, lower: os.stat_result | None
    ) -> Attributes | None:
        status = upper or lower
        if status is None or (upper is not None and self.is_whiteout(path, upper)):
            return None
        if upper is not None and upper.st_nlink > 1 and not stat.S_ISDIR(upper.st_mode):
            node = self._linked_child(parent, name, upper.st_ino)
        else:
            node = self.child(parent, name)
        if stat.S_ISDIR(status.st_mode):
            seen = lower is not None and stat.S_ISDIR(lower.st_mode)
            merged = seen and (upper is None or not self._is_opaque(path))
            if merged != node.merged:
                node.merged = merged
                self.note(node)
        return self.attributes(node, status, is_upper=upper is not None)

    def attributes(self, node: Node, status: os.stat_result, *, is_upper: bool) -> Attributes:
        """The attributes that the view shows: ids that are not mapped in the user namespace are shown as the user's."""
        known = self._identities
        is_directory = stat.S_ISDIR(status.st_mode)
        node.is_own = is_upper and not (is_directory and node.merged)
        # (Each name of a lower file is a node of its own, for the file can be copied up by one of its names.)
        shown = _LINKED + status.st_ino if status.st_nlink > 1 and not is_directory and not is_upper else 0
        return Attributes(
            node.number,
            status.st_mode,
            status.st_size,
            self._links(node, status, is_directory=is_directory, is_upper=is_upper),
            # What is in the upper directory was given its owner here, even if that is the overflow id.
            status.st_uid if is_upper or status.st_uid in known.uids else known.uid,
            status.st_gid if is_upper or status.st_gid in known.gids else known.gid,
            status.st_rdev,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_blocks,
            status.st_blksize,
            shown,
        )

    def _links(self, node: Node, status: os.stat_result, *, is_directory: bool, is_upper: bool) -> int:
        if node.is_gone:
            return 0
        # The link count of an upper directory leaves out the lower ones in it (1: not counted, as in overlayfs).
        return 1 if is_directory and is_upper and node.merged else status.st_nlink

    def names(self, node: Node) -> set[bytes]:
        """The names in a directory; a directory that was removed has none."""
        if node.is_gone:
            return set()
        path = node.path
        try:
            names = set(self.in_lower.names(path) if node.merged else ())
        except PermissionError:
            if self.in_upper.status(path) is None:
                raise
            names = set()  # those that were made here are visible
        for name in self.in_upper.names(path):
            here = join(path, name)
            status = self.in_upper.status(here)
            if status is not None and self.is_whiteout(here, status):
                names.discard(name)
            else:
                names.add(name)
        return names

    def list(self, node: Node, start: int) -> Iterator[DirectoryEntry]:
        """The entries of a directory, after the cookie `start`."""
        listing = None if start == 0 else self._listings.get(node.number)
        if listing is None:
            # The cookie comes from the name alone, so that it stays the same whatever other names come and go.
            listing = sorted((3 + (hash(name) & 0x3FFFFFFFFFFFFFFF), name) for name in self.names(node))
            self._listings[node.number] = listing
            if len(self._listings) > _LISTINGS:
                self._listings.popitem(last=False)
        path = b"" if node.is_gone else node.path
        for cookie, name in listing:
            if cookie > start:
                here = join(path, name)
                upper = self.in_upper.status(here)
                # A file in the upper directory hides whatever the lower tree has.
                hidden = upper is not None and not stat.S_ISDIR(upper.st_mode)
                try:
                    lower = None if hidden else self.lower_status(node, here)
                except OSError:
                    # A mount whose server is gone, or that is somebody else's: whoever looks it up gets the error.
                    unknown = Attributes(self.child(node, name).number, stat.S_IFDIR)
                    yield DirectoryEntry(name, cookie, unknown, is_known=False)
                    continue
                found = self._seen(node, name, here, upper, lower)
                if found is not None:
                    yield DirectoryEntry(name, cookie, found)

    def close(self) -> None:
        """Close what is kept open, and the trees."""
        self.in_lower.forget()
        self.in_upper.forget()
        os.close(self.lower.root)
        os.close(self.upper.root)


def _extra(status: os.stat_result) -> dict[str, int]:
    """What a stat_result has besides its ten numbers."""
    names = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev")
    return {name: getattr(status, name) for name in names}
