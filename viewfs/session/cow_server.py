"""Covers of a tree: an overlay of the kernel's where it makes one, else a file system of our own on the same layer."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import traceback
from typing import NamedTuple, NoReturn

from viewfs.linux.process import die_with_parent, set_name
from viewfs.mounts.attach import create_fuse_mount, open_fuse_device
from viewfs.mounts.overlay import OverlayRefusedError, create_overlay
from viewfs.session.serving import keep_only_these

__all__ = ["Cover", "make_cover"]


class Cover(NamedTuple):
    """A detached mount, and the process that serves it, if the kernel doesn't."""

    mount: int
    server: int | None


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
    fuse = open_fuse_device()
    writable = work is not None
    mount = create_fuse_mount(
        fuse,
        root_mode=stat.S_IFDIR,
        source=source,
        subtype="viewfs.cow",
        writable=writable,
        uid=os.getuid(),
        gid=os.getgid(),
    )
    # Once, and not by each server. (Where the kernel's overlays will do, nothing of it is needed.)
    import viewfs.cow.filesystem
    import viewfs.mounts.fuse.host
    import viewfs.namespaces.sandbox  # noqa: F401

    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(mount)
        _serve(fuse, lower, upper, work, parent, path, owners, durable=not volatile)
    os.close(fuse)
    os.fstat(mount)  # until it has been looked at, nobody may write to it (see worker._trees_of_files)
    return Cover(mount, pid)


def _serve(
    fuse: int, lower: int, upper: int, work: int | None, parent: int, path: str, owners: int | None, *, durable: bool
) -> NoReturn:
    status = 1
    try:
        from viewfs.cow.filesystem import CowFileSystem
        from viewfs.linux.ids import known_ids
        from viewfs.modules.api import Identities
        from viewfs.mounts.fuse.counters import Counters
        from viewfs.mounts.fuse.host import serve
        from viewfs.namespaces.sandbox import Confinement, Needs, confine
        from viewfs.session.owners_outside import OwnersOutside

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # programs of the view are told to end first
        die_with_parent(parent)
        set_name("viewfs-cow")
        keep_only_these({fuse, lower, upper, work, owners})
        # Each file that a program of the view has open, it has open too.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        identities = Identities(os.getuid(), os.getgid(), known_ids("uid"), known_ids("gid"))
        confine(Confinement.VIEW, Needs.OWN_FILES)
        owner_of = None if owners is None else OwnersOutside(socket.socket(fileno=owners)).of
        stand_ins = _stand_ins(path) if not identities.uid else None
        file_system = CowFileSystem(
            lower, upper, work, identities, durable=durable, stand_ins=stand_ins, owner_of=owner_of
        )
        serve(file_system, fuse, Counters.create())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


#: What programs that install others read as root and make anew: to who may not read it, it is empty in a view in which
#: they appear as root.
_MADE_ANEW = ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-")


def _stand_ins(path: str) -> list[bytes]:
    """Those in the tree at `path`, relative to that."""
    directory = path.rstrip("/") + "/"
    return [os.fsencode(each[len(directory) :]) for each in _MADE_ANEW if each.startswith(directory)]
