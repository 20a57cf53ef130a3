"""Covers of a tree: an overlay of the kernel's where it makes one, else a file system of our own on the same layer."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING, NamedTuple

from viewfs.mounts.overlay import OverlayRefusedError, create_overlay

if TYPE_CHECKING:
    from viewfs.session.agent.forked_server import ForkedServer

__all__ = ["Cover", "make_cover"]


class Cover(NamedTuple):
    """A detached mount, and what serves it, if the kernel doesn't."""

    mount: int
    server: ForkedServer | None


def make_cover(
    lower: int,
    upper: int,
    work: int | None,
    *,
    source: str,
    path: str = "",
    backend: str = "auto",
    volatile: bool = False,
    owners: int | None = None,
) -> Cover:
    """A mount that shows `lower` with what is changed in `upper`; `work` None: to be read only.

    `source` is what the mount table shows, and `path` where it will be. `backend`: overlay, fuse, or the first of them
    that can be had (auto). `volatile`: what is written need not survive the machine. `owners`: the socket of
    `owners_outside`, where there is one. Raises `MachineError` where it can't be had.
    """
    if backend != "fuse":
        try:
            if work is None:
                return Cover(create_overlay([upper, lower], source=source), None)
            return Cover(create_overlay([lower], upper, work, source=source, volatile=volatile), None)
        except OverlayRefusedError:
            if backend == "overlay":
                raise
    # Imported once, and not by each server. (Where the kernel's overlays will do, nothing of it is needed.)
    from viewfs.cow.serve.filesystem import CowFileSystem
    from viewfs.linux.ids import known_ids
    from viewfs.modules.api import Identities
    from viewfs.session.agent.forked_server import ForkedServer
    from viewfs.session.agent.owners_outside import OwnersOutside

    identities = Identities(os.getuid(), os.getgid(), known_ids("uid"), known_ids("gid"))

    def make(lower: int, upper: int, work: int | None, owners: int | None) -> CowFileSystem:
        return CowFileSystem(
            lower,
            upper,
            work,
            identities,
            durable=not volatile,
            stand_ins=_stand_ins(path) if not identities.uid else None,
            owner_of=None if owners is None else OwnersOutside(socket.socket(fileno=owners)).of,
        )

    server = ForkedServer(
        make,
        name="viewfs-cow",
        place=path or "a state",
        descriptors=(lower, upper, work, owners),
        root_mode=stat.S_IFDIR,
        source=source,
        subtype="viewfs.cow",
        writable=work is not None,
    )
    os.fstat(server.mount)  # until it has been looked at, nobody may write to it (see placing._trees_of_files)
    return Cover(server.mount, server)


#: Files that programs which install others read as root and make anew. In a view in which the user appears as root,
#: they are empty if the user may not read them.
_MADE_ANEW = ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-")


def _stand_ins(path: str) -> list[bytes]:
    """Those of these files that are in the tree at `path`, relative to it."""
    directory = path.rstrip("/") + "/"
    return [os.fsencode(each[len(directory) :]) for each in _MADE_ANEW if each.startswith(directory)]
