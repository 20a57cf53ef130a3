"""The attempt: a view is opened and used with the functions that a session uses."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from viewfs.doctor.facts import FUSE_DEVICE, device_number, read_text, request_timeout
from viewfs.doctor.steps import STEPS
from viewfs.errors import MachineError, ViewfsError
from viewfs.linux.mount import MountAttr, MountFlags, UmountFlags, detached_tmpfs, mount, umount2
from viewfs.linux.mountinfo import mount_table
from viewfs.linux.namespaces import CloneFlags, unshare
from viewfs.linux.process import die_with_parent
from viewfs.modules.api.nodes import ComputedFile, Directory, NodeFileSystem
from viewfs.mounts.attach import attach, create_fuse_mount, open_fuse_device
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.host import serve
from viewfs.mounts.root import build_root
from viewfs.mounts.skeleton import make_mount_point, plan_mount_point
from viewfs.namespaces.enter import open_namespace
from viewfs.namespaces.sandbox import Confinement, Limits, confine
from viewfs.namespaces.user import IdentityMap, unshare_user_namespace

__all__ = ["Report", "StepFailedError", "attempt"]

#: Called when a step begins and ends: its name; "begin", "ok" or "failed"; the detail; and the errno of a failure.
Report = Callable[[str, str, str, int], None]

_GREETING = b"Hello from viewfs!\n"
#: A mount point that no machine has: making it needs the view's own root.
_PLACE = "/viewfs-doctor"


class StepFailedError(Exception):
    """A required step failed, and was reported."""


def attempt(report: Report) -> None:
    """Open a view and use it, as a session does. Runs in a child that ends afterwards."""

    @contextmanager
    def step(name: str) -> Iterator[list[str]]:
        """Report how the body went. What it adds to the list is the detail of its success."""
        report(name, "begin", "", 0)
        detail: list[str] = []
        try:
            yield detail
        except (OSError, ViewfsError) as error:
            report(name, "failed", *_explain(name, error))
            if STEPS[name].required:
                raise StepFailedError from error
        else:
            report(name, "ok", "".join(detail), 0)

    _enter_user_namespace(step)
    with step("mount") as detail:
        mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
        os.close(detached_tmpfs("viewfs-doctor", {"mode": "755"}, MountAttr.RDONLY))
        detail.append("Linux " + ".".join(os.uname().release.split(".")[:2]))
    with step("root"):
        build_root(fresh_proc=False)
        plan = plan_mount_point(_PLACE, mount_table())
        live = open_namespace("mnt")
        make_mount_point(plan, is_directory=True, live_namespace=live)
        os.close(live)
    _serve_a_file(step)
    with step("overlay"):
        _try_overlay()
    with step("pid"):
        unshare(CloneFlags.NEWPID)
        _wait_for(_fork(_mount_own_proc, parent_inside=0))


StepContext = Callable[[str], contextlib.AbstractContextManager[list[str]]]


def _explain(name: str, error: OSError | ViewfsError) -> tuple[str, int]:
    """The line that says what failed, and its errno."""
    if isinstance(error, OSError):
        number, cannot = error.errno or 0, STEPS[name].cannot
        reason = (error.strerror or str(error)).replace(os.strerror(number), os.strerror(number).lower())
        path = error.filename
        return f"{cannot}: {reason}" + (f" ({path})" if path and str(path) not in cannot else ""), number
    cause = error.__cause__ or error.__context__
    return error.message, (cause.errno or 0) if isinstance(cause, OSError) else 0


def _enter_user_namespace(step: StepContext) -> None:
    """Make one call, as a session does, but report two steps: which of them fails depends on the kind of machine."""
    identity = IdentityMap.of_caller(as_root=False)
    parent = os.getppid()
    refused: MachineError | None = None
    with step("userns"):
        try:
            unshare_user_namespace(identity, CloneFlags.NEWNS)
        except MachineError as error:
            if _explain("userns", error)[0].startswith(STEPS["userns"].cannot):
                raise
            refused = error
    with step("idmap") as detail:
        if refused is not None:
            raise refused
        die_with_parent(parent)  # as for any change of credentials
        detail.append(f"uid {identity.uid}, gid {identity.gid}")


def _serve_a_file(step: StepContext) -> None:
    with step("device") as detail:
        fuse = open_fuse_device()
        if device_number(os.fstat(fuse)) != FUSE_DEVICE:
            raise OSError(errno.ENXIO, "it is not the FUSE device", "/dev/fuse")
        detail.append(f"mode {stat.S_IMODE(os.fstat(fuse).st_mode):04o}")
    file_system = NodeFileSystem(Directory({"hello": ComputedFile(lambda: _GREETING)}))
    with step("fuse") as detail:
        if seconds := request_timeout():
            detail.append(f"the kernel ends it where an answer takes over {seconds} s (fs.fuse.max_request_timeout)")
        root_mode = file_system.getattr(file_system.root).mode
        mount_fd = create_fuse_mount(
            fuse,
            root_mode=root_mode,
            source="viewfs-doctor",
            subtype="viewfs.doctor",
            writable=False,
            uid=os.getuid(),
            gid=os.getgid(),
        )
    with step("confine"):

        def shut_in() -> None:
            os.close(mount_fd)
            unshare(CloneFlags.NEWNS)
            confine(Confinement.SEALED, limits=Limits())

        counters = Counters.create()
        server = _fork(shut_in, then=lambda: serve(file_system, fuse, counters))
        # Only the server holds the connection now: its death ends the connection, and any wait for an answer.
        os.close(fuse)
    with step("read"):
        place = os.open(_PLACE, os.O_PATH | os.O_CLOEXEC)
        attach(mount_fd, place)
        os.close(place)
        os.close(mount_fd)
        with open(f"{_PLACE}/hello", "rb") as file:
            content = file.read()
        if content != _GREETING or os.listdir(_PLACE) != ["hello"]:
            raise OSError(errno.EIO, "it says something else", f"{_PLACE}/hello")
        umount2(_PLACE)
        _wait_for(server)


def _try_overlay() -> None:
    """Mount an overlay whose layers are on a tmpfs, and change a file of the lower layer through it."""
    mount("viewfs-doctor", _PLACE, "tmpfs", MountFlags.NOSUID | MountFlags.NODEV, "mode=700")
    lower, upper, work, merged = (f"{_PLACE}/{name}" for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        os.mkdir(directory)
    with open(f"{lower}/file", "w") as file:
        file.write("below")
    options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr"
    mount("overlay", merged, "overlay", MountFlags.NOSUID | MountFlags.NODEV, options)
    with open(f"{merged}/file", "a") as file:
        file.write(", above")
    if (read_text(f"{lower}/file"), read_text(f"{merged}/file")) != ("below", "below, above"):
        raise OSError(errno.EIO, "a change did not go to the upper layer", f"{merged}/file")
    umount2(_PLACE, UmountFlags.DETACH)


def _mount_own_proc() -> None:
    flags = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC
    mount("proc", _PLACE, "proc", flags)
    if os.readlink(f"{_PLACE}/self") != "1":
        raise OSError(errno.EIO, "it shows other processes", _PLACE)


def _fork(work: Callable[[], None], then: Callable[[], None] | None = None, parent_inside: int | None = None) -> int:
    """Fork a process that does `work`, then `then`; its pid, once `work` is done. Raises the OSError of `work`.

    `parent_inside` is what getppid(2) returns in that process, if it is not the pid of this one.
    """
    parent = os.getpid() if parent_inside is None else parent_inside
    answer, answering = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(work, then, answering, parent)
    os.close(answering)
    with open(answer, "rb") as pipe:
        said = pipe.read()
    if said == b"ok":
        return pid
    _pid, status = os.waitpid(pid, 0)
    if not said:
        raise OSError(errno.ECHILD, f"the process ended unexpectedly (status {os.waitstatus_to_exitcode(status)})")
    number, reason, path = json.loads(said)
    raise OSError(number, reason, path)


def _become(work: Callable[[], None], then: Callable[[], None] | None, answering: int, parent: int) -> NoReturn:
    try:
        die_with_parent(parent)
        try:
            work()
        except OSError as error:
            os.write(answering, json.dumps([error.errno, error.strerror, error.filename]).encode())
            os._exit(1)
        os.write(answering, b"ok")
        os.close(answering)
        if then is not None:
            then()
        os._exit(0)
    finally:
        os._exit(1)


def _wait_for(pid: int) -> None:
    _pid, status = os.waitpid(pid, 0)
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        raise OSError(errno.ECHILD, f"the process that served it ended with status {code}")
