"""Directories that gain a mount point and go on showing what comes and goes in them.

A directory that the user may write is served (`mounts.mirror`). What is in it that is no regular file is bound over its
name, so that everything below is native. More names are added later over a control socket, whose other end the
supervisor keeps for the workers that need it. For any other directory the view has a skeleton, which a process keeps up
to date as long as such an end is open.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from viewfs.errors import ViewfsError
from viewfs.linux.mount import AT_FDCWD, AT_RECURSIVE, MoveMount, OpenTree, UmountFlags, move_mount, open_tree, umount2
from viewfs.linux.plain import socket
from viewfs.mounts.root import make_entry
from viewfs.mounts.skeleton import (
    MountPointPlan,
    Skeleton,
    mount_names,
    remove_entry,
    scratch_namespace,
    writable_skeleton,
)
from viewfs.session.agent.forked_server import ForkedServer, pidfds, server_names, stay
from viewfs.session.wire.channel import Channel

if TYPE_CHECKING:
    from viewfs.mounts.fuse.ledger import Ledger
    from viewfs.mounts.mirror import MirrorFileSystem

__all__ = ["Mirrors"]

_SECONDS = 10.0
#: If more than that would have to be bound, none is: every later epoch copies the mount table.
_CROWD = 1000


class Mirrors:
    """The directories of a view that are served in this way, and the control sockets of their servers."""

    def __init__(self, controls: dict[str, int]) -> None:
        self._controls = controls
        #: Those that were made here: their directories, control sockets and servers.
        self.made: list[tuple[str, socket.socket, ForkedServer]] = []
        #: Skeletons made here, with both ends of a socket: one to wait for its end with, and one to be kept elsewhere.
        self._skeletons: dict[str, tuple[Skeleton, socket.socket, socket.socket]] = {}

    def keep_up_to_date(self, directory: str, skeleton: Skeleton) -> None:
        """Have `stay` keep `skeleton`, which was put on `directory`, up to date."""
        self._skeletons[directory] = (skeleton, *socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))

    @property
    def servers(self) -> list[ForkedServer]:
        """Those that were started here."""
        return [server for _directory, _control, server in self.made]

    def take_controls(self) -> dict[str, int]:
        """Descriptors for the supervisor to keep, by directory; they are the caller's."""
        controls = {directory: control.detach() for directory, control, _server in self.made}
        return controls | {directory: theirs.detach() for directory, (_one, _ours, theirs) in self._skeletons.items()}

    def stay(self, channel: Channel) -> None:
        """Stay as long as there is anything to do: servers to wait for, skeletons to keep up to date."""
        watched = {skeleton.changes: skeleton.update for skeleton, _ours, _theirs in self._skeletons.values()}
        ends = [ours.fileno() for _skeleton, ours, _theirs in self._skeletons.values()]
        kept = [fd for skeleton, _ours, _theirs in self._skeletons.values() for fd in skeleton.fds]
        stay(channel, self.servers, watched, ends, kept)

    @property
    def directories(self) -> set[str]:
        """The directories that are served, including those that were made here."""
        return {*self._controls, *(directory for directory, _control, _server in self.made)}

    def make(self, plan: MountPointPlan, *, is_directory: bool, live_namespace: int) -> None:
        """Make the first of the missing names appear in `plan.parent`, and the others in that. Raises OSError."""
        first = plan.missing[0]
        as_directory = is_directory or len(plan.missing) > 1
        if plan.parent in self.directories:
            self._tell(plan.parent, b"+%s%s" % (b"d" if as_directory else b"f", os.fsencode(first)))
            if len(plan.missing) > 1:
                tree = mount_names(plan.missing[1:], is_directory=is_directory)
                move_mount(tree, "", AT_FDCWD, os.path.join(plan.parent, first), MoveMount.F_EMPTY_PATH)
                os.close(tree)
            return
        self._cover(plan, as_directory=as_directory, is_directory=is_directory, live_namespace=live_namespace)

    def remove(self, plan: MountPointPlan) -> None:
        """Take away what `make` made. Raises OSError."""
        if plan.needs_skeleton:
            umount2(plan.parent, UmountFlags.DETACH | UmountFlags.NOFOLLOW)
            return
        if len(plan.missing) > 1:
            with contextlib.suppress(OSError):
                umount2(os.path.join(plan.parent, plan.missing[0]), UmountFlags.DETACH | UmountFlags.NOFOLLOW)
        if plan.parent in self.directories:
            self._tell(plan.parent, b"-" + os.fsencode(plan.missing[0]))

    def _tell(self, directory: str, message: bytes) -> None:
        own = {made: control.fileno() for made, control, _server in self.made}
        fd = own.get(directory, self._controls.get(directory, -1))
        with contextlib.closing(socket.socket(fileno=os.dup(fd))) as control:
            control.settimeout(_SECONDS)
            control.send(message)
            if not control.recv(1):
                raise ViewfsError(f"the server of {directory} is gone")

    def _cover(self, plan: MountPointPlan, *, as_directory: bool, is_directory: bool, live_namespace: int) -> None:
        """Put a server's mount on `plan.parent`, and bind in it what is not served."""
        directory = plan.parent
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        bound = _to_be_bound(top)
        own = {os.fsencode(plan.missing[0]): as_directory}
        names = [os.fsencode(name) for name in bound]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server = _start(directory, top, own, names, theirs.fileno())
        theirs.close()
        self.made.append((directory, ours, server))
        with scratch_namespace(live_namespace):
            old = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            move_mount(server.mount, "", AT_FDCWD, directory, MoveMount.F_EMPTY_PATH)
            os.close(server.mount)
            _bind_children(old, directory, bound)
            os.close(old)
            if len(plan.missing) > 1:
                tree = mount_names(plan.missing[1:], is_directory=is_directory)
                move_mount(tree, "", AT_FDCWD, os.path.join(directory, plan.missing[0]), MoveMount.F_EMPTY_PATH)
                os.close(tree)
            whole = open_tree(AT_FDCWD, directory, OpenTree.CLONE | AT_RECURSIVE)
        os.close(top)
        move_mount(whole, "", AT_FDCWD, directory, MoveMount.F_EMPTY_PATH)
        os.close(whole)

    def give_up(self) -> None:
        """End the servers that were made here: what they serve is nowhere."""
        for _directory, control, server in self.made:
            control.close()
            server.end()
        self.made = []


def _to_be_bound(top: int) -> list[str]:
    """Names of directories, sockets, FIFOs and devices: anything but a regular file or a link works only as itself.

    Empty directories are left out: a directory that is a mount point can't be removed.
    """
    with os.scandir(top) as entries:
        found = [one.name for one in entries if not one.is_symlink() and not one.is_file(follow_symlinks=False)]
    if len(found) > _CROWD:
        return []
    return [name for name in found if not _is_empty(top, name)]


def _is_empty(top: int, name: str) -> bool:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except OSError:
        return False
    try:
        with os.scandir(fd) as entries:
            return next(entries, None) is None
    finally:
        os.close(fd)


def _bind_children(old: int, directory: str, names: list[str]) -> None:
    for name in names:
        try:
            tree = open_tree(old, name, OpenTree.CLONE | AT_RECURSIVE)
        except OSError:
            continue  # it is served, as well as it can be
        try:
            move_mount(tree, "", AT_FDCWD, os.path.join(directory, name), MoveMount.F_EMPTY_PATH)
        except FileNotFoundError:
            pass  # it went meanwhile
        finally:
            os.close(tree)


def _start(directory: str, top: int, own: dict[bytes, bool], bound: list[bytes], control: int) -> ForkedServer:
    """A mount that shows what is open in `top`; names are added and removed over the socket `control`."""
    from viewfs.mounts.fuse.ledger import Ledger  # few mount points need any of this
    from viewfs.mounts.mirror import MIRROR_SOURCE, MirrorFileSystem

    def make(top: int, control: int, names: int) -> MirrorFileSystem:
        # (A ledger of its own, for it is used by another thread than the server's.)
        known = _OwnNames(Ledger(names), own)
        file_system = MirrorFileSystem(top, known.names, bound)
        threading.Thread(target=_listen, args=(file_system, socket.socket(fileno=control), known), daemon=True).start()
        return file_system

    names = Ledger.create()
    try:
        return ForkedServer(
            make,
            name="viewfs-mirror",
            place=directory,
            descriptors=(top, control, names),
            root_mode=os.fstat(top).st_mode,
            source=MIRROR_SOURCE,
            subtype="viewfs.mirror",
            writable=True,
        )
    finally:
        os.close(names)


class _OwnNames:
    """The view's own names in a directory, kept for the next server too."""

    def __init__(self, ledger: Ledger, first: Mapping[bytes, bool]) -> None:
        self._ledger = ledger
        written = ledger.records().get(0)
        #: Name → is it a directory?
        self.names = dict(first)
        if written is not None:
            self.names = {one[1:]: one[:1] == b"d" for one in written.split(b"\0") if one}

    def write(self) -> None:
        self._ledger.put(0, b"\0".join((b"d" if self.names[name] else b"f") + name for name in self.names))


def show_in_root(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """Make the view's root show what the host's root has at `name` now: a link, what is open in `fds`, or nothing."""
    name, place = request["name"], f"/{request['name']}"
    servers: list[ForkedServer] = []
    with writable_skeleton("/") as root:
        if root is not None:
            with contextlib.suppress(OSError):
                while True:
                    umount2(place, UmountFlags.DETACH | UmountFlags.NOFOLLOW)
            remove_entry(name, root)
            if request["link"] is not None:
                os.symlink(request["link"], name, dir_fd=root)
            elif fds:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                server = _start(place, fds[0], {}, [], theirs.fileno())
                theirs.close()
                ours.close()
                servers.append(server)
                # Not before it can be served: until the mount is there, there is nothing in the entry.
                make_entry(name, is_directory=stat.S_ISDIR(request["mode"]), directory_fd=root)
                move_mount(server.mount, "", AT_FDCWD, place, MoveMount.F_EMPTY_PATH)
                os.close(server.mount)
    channel.send({"ok": {"descriptors": server_names(servers)}}, pidfds(servers))
    stay(channel, servers)


def _listen(file_system: MirrorFileSystem, control: socket.socket, known: _OwnNames) -> None:
    """Add and remove names as workers ask over `control`."""
    while message := control.recv(1000):
        if message[:1] == b"+":
            known.names[message[2:]] = message[1:2] == b"d"
        else:
            known.names.pop(message[1:], None)
        known.write()
        control.send(b".")
