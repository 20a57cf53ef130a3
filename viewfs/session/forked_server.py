"""FUSE servers that a worker forks: file systems of viewfs's own, over directories that the user has anyway."""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from viewfs.linux.process import die_with_parent, set_name
from viewfs.mounts.attach import create_fuse_mount, open_fuse_device
from viewfs.session.serving import keep_only_these

if TYPE_CHECKING:
    from viewfs.modules.api import FileSystem

__all__ = ["fork_server"]


def fork_server(
    make: Callable[[], FileSystem],
    *,
    name: str,
    descriptors: Iterable[int | None],
    root_mode: int,
    source: str,
    subtype: str,
    writable: bool,
) -> tuple[int, int]:
    """A detached mount, and the process that serves it. Raises OSError and `MachineError`.

    `make` gives the file system; it runs in that process, which is called `name`, has no descriptors but the
    `descriptors`, and is confined to files that the user has. `source` and `subtype` are what the mount table shows.
    """
    # Once, and not by each server.
    import viewfs.mounts.fuse.host
    import viewfs.namespaces.sandbox  # noqa: F401

    fuse = open_fuse_device()
    mount = create_fuse_mount(
        fuse,
        root_mode=root_mode,
        source=source,
        subtype=subtype,
        writable=writable,
        uid=os.getuid(),
        gid=os.getgid(),
    )
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(mount)
            die_with_parent(parent)
            set_name(name)
            keep_only_these({fuse, *descriptors})
            _serve(make, fuse)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(fuse)
    return mount, pid


def _serve(make: Callable[[], FileSystem], fuse: int) -> None:
    from viewfs.mounts.fuse.counters import Counters
    from viewfs.mounts.fuse.host import serve
    from viewfs.namespaces.sandbox import Confinement, Needs, confine

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # programs of the view are told to end first
    # Each file that a program of the view has open, it has open too.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    confine(Confinement.VIEW, Needs.OWN_FILES)
    serve(make(), fuse, Counters.create())
