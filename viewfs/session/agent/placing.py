"""Workers that change what is mounted where: places to mount on, unmounting, taking places away. They read nothing but
paths, and the mount table."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from dataclasses import asdict
from typing import Any

from viewfs.errors import UsageError, ViewfsError, explain_os_error
from viewfs.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MoveMount,
    OpenTree,
    UmountFlags,
    mount_setattr,
    move_mount,
    open_tree,
    umount2,
)
from viewfs.linux.mountinfo import mount_points, mount_table
from viewfs.linux.namespaces import CloneFlags, setns, unshare
from viewfs.mounts.attach import create_fuse_mount, open_fuse_device
from viewfs.mounts.skeleton import MountPointPlan, make_mount_point, plan_mount_point, remove_mount_point
from viewfs.namespaces.enter import open_namespace
from viewfs.session.agent.forked_server import pidfds, server_names
from viewfs.session.agent.mirror_server import Mirrors
from viewfs.session.wire.channel import Channel
from viewfs.session.wire.reports import MAIN_DEVICE

__all__ = ["place", "remount", "survey", "tidy", "unmount"]

log = logging.getLogger("viewfs.worker")


def _take_snapshot(live: int) -> int:
    """A descriptor of a copy of the view as it is now. This process stays in the `live` namespace."""
    unshare(CloneFlags.NEWNS)
    snapshot = open_namespace("mnt")
    setns(live, CloneFlags.NEWNS)
    return snapshot


def place(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """Make the mount points, and where a `root_mode` is given a FUSE mount to attach to them.

    `names`: files of the mount, each of which is to be at a place of its own, so that there are as many mount points.
    One called "" is the root of the mount. `fds` are the control sockets of the directories `mirrors`. This process
    stays as the parent of servers that it makes.
    """
    names: list[str] | None = request["names"]
    suffixes = ["" if name == MAIN_DEVICE else name for name in names or [""]]
    live = open_namespace("mnt")
    snapshot = _take_snapshot(live)
    plans: list[MountPointPlan] = []
    mirrors = Mirrors(dict(zip(request["mirrors"], fds, strict=True)))
    attached = False
    trees: list[int] = []
    try:
        places = []
        for suffix in suffixes:
            plan = plan_mount_point(request["path"] + suffix, mount_table(), mirrors.directories)
            _make_mount_point(plan, mirrors, is_directory=request["directory"], live=live)
            plans.append(plan)
            places.append(_open_place(plan.path, is_directory=request["directory"]))
        given = {"snapshot": snapshot} | {f"place{number}": place for number, place in enumerate(places)}
        mount_fd = None
        if request["root_mode"] is not None:
            given["fuse"], mount_fd = _create_mount(request)
            given["mount"] = mount_fd
        servers, controls = mirrors.servers, mirrors.take_controls()
        given |= {f"control{number}": control for number, control in enumerate(controls.values())}
        given |= dict(zip(server_names(servers), pidfds(servers), strict=True))
        report = {
            "plans": [asdict(plan) for plan in plans],
            "depths": _depths([plan.path for plan in plans]),
            "mirrors": list(controls),
            "descriptors": list(given),
        }
        channel.send({"ok": report}, list(given.values()))
        for fd in given.values():
            if fd != mount_fd:
                os.close(fd)
        received = channel.receive()
        if received is not None and names is not None and mount_fd is not None and received[0].get("served"):
            trees = _trees_of_files(mount_fd, names)
            channel.send({"ok": {}}, trees)
            received = channel.receive()
        attached = received is not None and bool(received[0].get("attached"))
        if attached:
            here_now = [entry for entry in mount_table() if entry.mount_point == plans[0].path]
            if mount_fd is not None:
                _let_go(mount_fd, trees)  # first: whoever hears of the mount may unmount it at once
            channel.send({"ok": {"device": here_now[-1].device if here_now else ""}})
            mirrors.stay(channel)
    finally:
        if not attached:
            for plan in reversed(plans):
                _remove_mount_point(plan, mirrors)
            mirrors.give_up()


def _let_go(mount_fd: int, trees: list[int]) -> None:
    """Close what this process has of the mount: it may live on, and would keep the mount busy, perhaps for ever."""
    if trees and mount_fd not in trees:
        with contextlib.suppress(OSError):
            umount2(f"/proc/self/fd/{mount_fd}", UmountFlags.DETACH)  # out of this process's own namespace
    for fd in {mount_fd, *trees}:
        os.close(fd)


def _make_mount_point(plan: MountPointPlan, mirrors: Mirrors, *, is_directory: bool, live: int) -> None:
    if not plan.is_mirror:
        skeleton = make_mount_point(plan, is_directory=is_directory, live_namespace=live)
        if skeleton is not None:
            mirrors.keep_up_to_date(plan.parent, skeleton)
        return
    try:
        mirrors.make(plan, is_directory=is_directory, live_namespace=live)
    except OSError as error:
        raise explain_os_error(f"cannot make the mount point {plan.path}", error) from error


def _remove_mount_point(plan: MountPointPlan, mirrors: Mirrors) -> None:
    if plan.is_mirror:
        mirrors.remove(plan)
    else:
        remove_mount_point(plan)


def _open_place(path: str, *, is_directory: bool) -> int:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(place).st_mode) != is_directory:
        there, here = ("a directory", "a file") if is_directory else ("a file", "a directory")
        raise UsageError(
            f"cannot mount on {path}: it is {here}, and what is mounted is {there}",
            remedy=f"name {there}, or a path that does not exist yet",
        )
    return place


def _create_mount(request: dict[str, Any]) -> tuple[int, int]:
    fuse = open_fuse_device()
    return fuse, create_fuse_mount(
        fuse,
        root_mode=request["root_mode"],
        source=request["source"] or request["type"],
        subtype=f"viewfs.{request['type']}",
        writable=request["writable"],
        uid=os.getuid(),
        gid=os.getgid(),
    )


def _trees_of_files(mount_fd: int, names: list[str]) -> list[int]:
    """Detached mounts of the files `names` of a detached mount, whose server must be answering already."""
    if names == [""]:
        # Until the root has been looked at, its owner is a user that this user namespace does not have, and it can't be
        # written (inode_permission of the kernel).
        os.fstat(mount_fd)
        return [mount_fd]
    unshare(CloneFlags.NEWNS)  # before Linux 6.15 only what is attached somewhere can be cloned
    move_mount(mount_fd, "", AT_FDCWD, "/", MoveMount.F_EMPTY_PATH)
    return [open_tree(mount_fd, name, OpenTree.CLONE) for name in names]


def _depths(paths: list[str]) -> list[int]:
    """How many mounts lie on each of these, one on the other."""
    places = mount_points()
    return [places.count(path) for path in paths]


def survey(channel: Channel, request: dict[str, Any], _fds: list[int]) -> None:
    """Say how many mounts lie on each of the `paths`."""
    channel.send({"ok": {"depths": _depths(request["paths"])}})


def unmount(channel: Channel, request: dict[str, Any], _fds: list[int]) -> None:
    """Take a snapshot, say how many mounts lie on each of the `paths`, and, when told to, unmount the topmost of each
    in the live view."""
    snapshot = _take_snapshot(open_namespace("mnt"))
    channel.send({"ok": {"depths": _depths(request["paths"])}}, [snapshot])
    os.close(snapshot)
    if channel.receive() is None:
        return
    flags = UmountFlags.NOFOLLOW | (UmountFlags.DETACH if request["lazy"] else UmountFlags.NONE)
    for path in request["paths"]:
        try:
            umount2(path, flags)
        except OSError as error:
            reason = (error.strerror or "").lower()
            remedy = "close what has files or its working directory there, or use --lazy"
            raise ViewfsError(f"cannot unmount {path}: {reason}", remedy=remedy) from error
    channel.send({"ok": {}})


def remount(channel: Channel, request: dict[str, Any], _fds: list[int]) -> None:
    """Give the topmost mount on `path` the attributes `set`, and take those of `clear` from it (`MountAttr`)."""
    place = os.open(request["path"], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    mount_setattr(place, "", AT_EMPTY_PATH, set_attributes=request["set"], clear=request["clear"])
    os.close(place)
    channel.send({"ok": {}})


def tidy(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """Take away mount points that are needed no more; `fds` are the control sockets of the directories `mirrors`."""
    mirrors = Mirrors(dict(zip(request["mirrors"], fds, strict=True)))
    for plan in map(MountPointPlan.from_json, request["plans"]):
        try:
            _remove_mount_point(plan, mirrors)
        except FileNotFoundError:
            pass  # a supervisor before this one had it taken away
        except (OSError, ViewfsError) as error:
            log.warning("what was made to mount on %s is still there: %s", plan.path, error)
    channel.send({"ok": {}})
