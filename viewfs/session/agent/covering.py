"""What workers do for copy-on-write: cover a tree of the view with overlays, and show a state of it that was kept.

Overlays are made in a *workshop*, a mount namespace of their own that is a copy of the view's first epoch. In it the
directory of the layers is where it is on the host, whatever the view has covered by now. The workshop is kept as long
as the mount, so that a later worker finds the lower trees in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from viewfs.cow.commit.finishing import recover
from viewfs.cow.compare.filters import EVERYTHING, Filter
from viewfs.cow.compare.trees import Tree
from viewfs.cow.copying import remove_tree
from viewfs.cow.layer.layers import Layer, LayerSet, clock_ns
from viewfs.cow.layer.records import Lower
from viewfs.cow.layer.session_lock import lock_session
from viewfs.cow.layer.settling import settle
from viewfs.errors import UsageError, ViewfsError
from viewfs.linux.ids import has_number
from viewfs.linux.mount import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE, MoveMount, OpenTree, move_mount, open_tree
from viewfs.linux.mountinfo import mount_table
from viewfs.linux.namespaces import CloneFlags, setns, unshare
from viewfs.mounts.attach import attach_aside
from viewfs.mounts.covering import (
    Division,
    Part,
    Treatment,
    assemble,
    can_be_covered,
    in_root,
    mount_id_at,
    open_parts,
    visible_below,
)
from viewfs.mounts.overlay import OverlayRefusedError
from viewfs.namespaces.enter import open_namespace
from viewfs.paths import is_at_or_below
from viewfs.session.agent.cover import Cover, make_cover
from viewfs.session.agent.forked_server import ForkedServer, pidfds, server_names, stay
from viewfs.session.wire.channel import Channel

__all__ = ["cover", "show_state"]

#: How many directories are looked at for patterns.
_LOOKED_AT = 100_000
#: How many paths a message names.
_LISTED = 6


def cover(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """Make `path` copy-on-write: a tree of covers for each place, and descriptors of all that has to be kept.

    `fds`: the mount namespace of the first epoch; if nothing runs in the view yet, the root directory of the host; and
    last, if the view has users of its own (`asks_owners`), the socket of `owners_outside`.
    """
    owners = fds.pop() if request["asks_owners"] else None
    first_epoch, *host_root = fds
    path = os.path.realpath(request["path"])
    if not os.path.isdir(path):
        what = "not a directory" if os.path.lexists(path) else "no such directory"
        raise UsageError(f"cannot make {path} copy-on-write: {what}")
    roots = [path] if path != "/" or host_root else _in_root(request["cover"])
    places = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for root in roots]
    device = os.stat(path).st_dev
    unshare(CloneFlags.NEWNS)
    snapshot = open_namespace("mnt")
    setns(first_epoch, CloneFlags.NEWNS)
    unshare(CloneFlags.NEWNS)
    workshop = open_namespace("mnt")
    layers, lock = _locked_layers(request)
    division = _division(layers, request)
    setns(snapshot, CloneFlags.NEWNS)
    shown = [*request["shown"], *_left_out(path, Filter.of(request["exclude"], request["include"]))]
    places_now = [entry.mount_point for entry in mount_table()]
    opened = [open_parts(root, mount_table(), request["cover"], shown, division) for root in roots]
    trees = [one.parts for one in opened]
    setns(workshop, CloneFlags.NEWNS)
    names, kept = ["snapshot", "workshop", *(["lock"] if lock else [])], [snapshot, workshop, *lock]
    maker = _Maker(layers, request, {"/": host_root[0]} if host_root else {}, owners)
    for one in opened:
        maker.leave_alone(one.left_alone)
    for number, parts in enumerate(trees):
        covers = [(part.path, maker.cover(part) if part.treatment is Treatment.COVER else part.tree) for part in parts]
        names += [f"tree{number}", f"place{number}"]
        kept += [assemble(covers), places[number]]
    for number, fds in enumerate(maker.kept, 1):
        names += [f"lower{number}", f"layer{number}", f"view{number}"]
        kept += fds
    report = {
        "path": path,
        "roots": roots,
        "depths": [places_now.count(root) for root in roots],
        "points": [part.path for parts in trees for part in parts],
        "layers": maker.made,
        "device": device,
        "messages": maker.messages(),
        "servers": len(maker.servers),
        "descriptors": names + server_names(maker.servers),
    }
    channel.send({"ok": report}, kept + pidfds(maker.servers))
    stay(channel, maker.servers)


def _left_out(top: str, only: Filter) -> Iterator[str]:
    """The topmost directories in `top` that stay as they are."""
    if only == EVERYTHING:
        return
    for looked_at, (directory, names, _files) in enumerate(os.walk(top)):
        if looked_at > _LOOKED_AT:
            raise UsageError(f"{top} has too many directories to look for patterns in", remedy="name a smaller one")
        for name in names.copy():
            path = os.path.join(directory, name)
            if not os.path.islink(path) and not _has_any(only, path, top):
                names.remove(name)
                yield path


def _has_any(only: Filter, path: str, top: str) -> bool:
    """Does `only` let the directory `path` pass, or one below it?"""
    here = os.fsencode(os.path.relpath(path, top))
    if only.passes(here) or not only.may_pass_below(here):
        return only.passes(here)
    return any(
        only.passes(os.fsencode(os.path.relpath(os.path.join(directory, name), top)))
        for directory, names, _files in islice(os.walk(path), _LOOKED_AT)
        for name in names
    )


#: Seconds for which a process that sweeps left-over layers may hold a directory that has just been made.
_SWEEP_SECONDS = 5.0


def _locked_layers(request: dict[str, Any]) -> tuple[LayerSet, list[int]]:
    """The session's layers, made if there are none, and what holds their lock: none if the session has it already."""
    end = time.monotonic() + _SWEEP_SECONDS
    while True:
        layers = LayerSet.of_session(request["name"], request["directory"], create=True)
        assert layers is not None
        if request["locked"]:
            return layers, []
        try:
            return layers, [lock_session(layers.fd, request["name"], where=request["where"])]
        except (FileNotFoundError, ViewfsError):
            layers.close()
            # Layers that end with their session have a name that no other session has: only a sweep can hold these.
            if not request["volatile"] or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _division(layers: LayerSet, request: dict[str, Any]) -> Division:
    """Directories that had layers of their own keep them, and those that are in a layer stay in it."""
    known = {layer.record.path: layer for layer in layers.layers() if layer.record.lower.is_host}

    def allowed(part: str, path: str) -> bool:
        if path in known or part not in known:
            return True
        with known[part].open_upper() as upper:
            return upper.status(os.fsencode(os.path.relpath(path, part))) is None

    return Division(list(known), [] if request["backend"] == "overlay" else request["own"], allowed)


class _Maker:
    """Makes the covers of one request, and knows what there is to say about it."""

    def __init__(self, layers: LayerSet, request: dict[str, Any], behind: dict[str, int], owners: int | None) -> None:
        """`behind`: path of a part that only looks like a directory of the host → descriptor of that directory."""
        self._layers, self._request, self._behind, self._owners = layers, request, behind, owners
        #: For each cover a row, and its descriptors.
        self.made: list[dict[str, Any]] = []
        self.kept: list[list[int]] = []
        self.servers: list[ForkedServer] = []
        self._messages: list[str] = []
        #: Reason → paths that viewfs therefore serves itself.
        self._served: dict[str, list[str]] = {}

    def cover(self, part: Part) -> int:
        """A cover of `part` that is attached nowhere. Raises `ViewfsError` and OSError."""
        if not part.is_attached:
            attach_aside(part.tree)
        lower = self._behind.get(part.path, part.tree)
        layer = self._open_layer(part.path, lower)
        cover = self._make(part, layer)
        backend = "overlay" if cover.server is None else "fuse"
        if layer.record.backend != backend:
            with layer.locked():
                layer.write(replace(layer.record, backend=backend))
        if cover.server is not None:
            self.servers.append(cover.server)
        attach_aside(cover.mount)  # so that it can be looked at without what will be mounted in it
        self.made.append({"path": part.path, "lower": asdict(layer.record.lower), "backend": backend})
        self.kept.append([lower, layer.fd, cover.mount])
        return open_tree(cover.mount, "", OpenTree.CLONE | AT_EMPTY_PATH)

    def _make(self, part: Part, layer: Layer) -> Cover:
        backend = self._request["backend"]
        if backend == "overlay" and part.is_attached:
            raise OverlayRefusedError(
                f"the kernel makes no overlay of {part.path}: something is mounted below it outside of the view",
                remedy="without --cow-backend viewfs serves it itself",
            )
        reason = None
        if backend == "auto":
            if part.is_of_others:
                reason = "owned by others, or in part, so that the kernel's overlay could not change all of it"
            elif part.is_attached:
                reason = "something is mounted below it outside of the view, so that the kernel makes no overlay of it"
        remove_tree(layer.fd, b"work")  # a volatile overlay leaves a mark in it by which it is refused the next time
        os.mkdir("work", 0o700, dir_fd=layer.fd)
        upper, work = layer.directory("upper"), layer.directory("work")
        try:
            cover = make_cover(
                part.tree,
                upper,
                work,
                source=self._request["cover"],
                path=part.path,
                backend="fuse" if reason else backend,
                volatile=self._request["volatile"],
                owners=self._owners,
            )
        finally:
            os.close(upper)
            os.close(work)
        if cover.server is not None and backend == "auto":
            where = self._request["directory"]
            reason = reason or f"the kernel makes no overlay of it with layers in {where}"
            self._served.setdefault(reason, []).append(part.path)
        return cover

    def _open_layer(self, point: str, lower_fd: int) -> Layer:
        """The layer of a mount point, with what an earlier session left of it put in order."""
        mounts = self._request["mounts"]
        serving = [
            Lower(kind, source, None if identity is None else tuple(identity))
            for path, kind, source, identity in mounts
            if is_at_or_below(point, path)
        ]
        lower = serving[-1] if serving else Lower("host")
        root = Tree(lower_fd).entry(b"")
        assert root is not None
        root = root._replace(
            uid=root.uid if has_number("uid", root.uid) else os.getuid(),
            gid=root.gid if has_number("gid", root.gid) else os.getgid(),
        )
        durably = not self._request["volatile"]
        subordinate = self._owners is not None
        layer = self._layers.layer(
            point,
            lower,
            root,
            now_ns=clock_ns(self._layers.fd, Tree(lower_fd)),
            durably=durably,
            subordinate=subordinate,
        )
        if layer.is_new:
            return layer
        with layer.locked():
            layer.clear_restoring(None)
            if (done := recover(layer, Tree(lower_fd, has_secrets=True))) is not None:
                self._messages.append(done)
            settle(layer, Tree(lower_fd, has_secrets=True))
        return layer

    def leave_alone(self, places: list[tuple[str, str]]) -> None:
        """These mounts can't be looked at, and stay as they are."""
        by_reason: dict[str, list[str]] = {}
        for path, reason in places:
            by_reason.setdefault(reason, []).append(path)
        for reason, paths in by_reason.items():
            self._messages.append(f"left as it is: {_listed(paths)} ({reason})")

    def messages(self) -> list[str]:
        """What the user should know."""
        served = [
            f"viewfs itself serves {_listed(paths)}, which takes more time: {reason}"
            for reason, paths in self._served.items()
        ]
        return self._messages + served


def _listed(paths: list[str]) -> str:
    if len(paths) <= _LISTED:
        return ", ".join(paths)
    return f"{', '.join(paths[:_LISTED])} … ({len(paths)} in all)"


def _in_root(cover: str) -> list[str]:
    """The directories in the root that can be covered while programs run in it: they would not see another root.

    Raises `UsageError` if there is nothing.
    """
    table = {entry.mount_id: entry for entry in mount_table()}
    roots = [root for root in in_root() if can_be_covered(table[mount_id_at(root) or 0], cover)]
    if not roots or table[mount_id_at("/") or 0].source == cover:
        raise UsageError("/ is copy-on-write already")
    return roots


def _as_it_is(point: str) -> int:
    try:
        return open_tree(AT_FDCWD, point, OpenTree.CLONE)
    except OSError:
        # Something is mounted below it outside of the view, and the kernel clones it only together with that.
        return open_tree(AT_FDCWD, point, OpenTree.CLONE | AT_RECURSIVE)


def show_state(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """Make a mount namespace that shows the view as it is, but its layers in a state that was kept.

    `layers` of the request has the mount point and the directory of the state of each; `fds` has the workshop, the
    lower tree and the directory of each.
    """
    live = open_namespace("mnt")
    states: dict[str, int] = {}
    servers: list[ForkedServer] = []
    for number, layer in enumerate(request["layers"]):
        workshop, lower, directory = fds[3 * number : 3 * number + 3]
        setns(workshop, CloneFlags.NEWNS)
        if layer["path"] == "/":
            lower = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # as the view has it, and not the host
        state = os.open(layer["directory"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        # (The kernel makes no overlay if the layers are in the covered tree, as is usual for a home directory.)
        backend = "auto" if layer["backend"] == "overlay" else layer["backend"]
        cover = make_cover(lower, state, None, source=request["cover"], backend=backend)
        os.close(state)
        states[layer["path"]] = cover.mount
        if cover.server is not None:
            servers.append(cover.server)
    setns(live, CloneFlags.NEWNS)
    unshare(CloneFlags.NEWNS)
    for root in request["roots"]:
        below = [entry.mount_point for entry in visible_below(root, mount_table())]
        tree = assemble([(point, states.get(point) or _as_it_is(point)) for point in (root, *below)])
        move_mount(tree, "", AT_FDCWD, root, MoveMount.F_EMPTY_PATH)
    names = ["epoch", *(f"state{number}" for number in range(len(states))), *server_names(servers)]
    channel.send({"ok": {"descriptors": names}}, [open_namespace("mnt"), *states.values(), *pidfds(servers)])
    stay(channel, servers)
