"""What workers do for copy-on-write: cover a tree of the view with overlays, and show a state of it that was kept.

Overlays are made in a *workshop*, a mount namespace of their own that is a copy of the view's first epoch: there the
directory of the layers is where it is on the host, whatever the view has covered by now. It is kept as long as the
mount is, for a later worker to find the lower trees in.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict
from typing import Any

from viewfs.cow.commit import recover
from viewfs.cow.copying import remove_tree
from viewfs.cow.layers import Layer, LayerSet, Lower
from viewfs.cow.settling import settle
from viewfs.cow.trees import Tree
from viewfs.errors import UsageError
from viewfs.linux.mount import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE, MoveMount, OpenTree, move_mount, open_tree
from viewfs.linux.mountinfo import parse_mountinfo
from viewfs.linux.namespaces import CloneFlags, setns, unshare
from viewfs.mounts.covering import (
    Treatment,
    assemble,
    attach_aside,
    can_be_covered,
    mount_id_at,
    open_parts,
    roots_of,
    visible_below,
)
from viewfs.namespaces.enter import open_namespace
from viewfs.session.channel import Channel
from viewfs.session.cow_server import Cover, make_cover

__all__ = ["cover", "show_state"]


def cover(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """Make `path` copy-on-write: a tree of overlays for each place, and descriptors of all that has to be kept."""
    (first_epoch,) = fds
    path = os.path.realpath(request["path"])
    if not os.path.isdir(path):
        what = "not a directory" if os.path.lexists(path) else "no such directory"
        raise UsageError(f"cannot make {path} copy-on-write: {what}")
    roots = _roots(path, request["cover"])
    places = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for root in roots]
    device = os.stat(path).st_dev
    unshare(CloneFlags.NEWNS)
    snapshot = open_namespace("mnt")
    trees = [open_parts(root, _mount_table(), request["cover"], request["shown"]) for root in roots]
    setns(first_epoch, CloneFlags.NEWNS)
    unshare(CloneFlags.NEWNS)
    layers = LayerSet.of_session(request["name"], request["directory"], create=True)
    assert layers is not None
    made: list[dict[str, Any]] = []
    names, kept = ["snapshot", "workshop"], [snapshot, open_namespace("mnt")]
    messages: list[str] = []
    servers: list[int] = []
    for number, parts in enumerate(trees):
        covers = []
        split = {part.path for part in parts if part.treatment is Treatment.SPLIT}
        for part in parts:
            if part.path in split and os.path.dirname(part.path) not in split:
                messages.append(
                    f"something is mounted below {part.path} outside of the view: the directory itself and the files"
                    " in it can only be read, while the directories in it can be written"
                )
            if part.treatment is not Treatment.COVER:
                covers.append((part.path, part.tree))
                continue
            attach_aside(part.tree)
            layer = _open_layer(layers, part.path, part.tree, request, messages)
            cover = _cover_of(layer, part.tree, request)
            if cover.server is not None:
                servers.append(cover.server)
                messages.append(
                    f"the kernel makes no overlay of {part.path} with layers in {request['directory']}:"
                    " viewfs serves it itself, which takes more time"
                )
            attach_aside(cover.mount)  # to be looked at without what will lie in it
            covers.append((part.path, open_tree(cover.mount, "", OpenTree.CLONE | AT_EMPTY_PATH)))
            made.append({"path": part.path, "lower": asdict(layer.record.lower)})
            names += [f"lower{len(made)}", f"layer{len(made)}", f"view{len(made)}"]
            kept += [part.tree, layer.fd, cover.mount]
        names += [f"tree{number}", f"place{number}"]
        kept += [assemble(covers), places[number]]
    report = {
        "path": path,
        "roots": roots,
        "points": [part.path for parts in trees for part in parts],
        "layers": made,
        "device": device,
        "messages": messages,
        "servers": [*servers, os.getpid()] if servers else [],
        "descriptors": names,
    }
    channel.send({"ok": report}, kept)
    _stay(channel, servers)


def _stay(channel: Channel, servers: list[int]) -> None:
    """Until what was sent has been received, which must not be closed here before; and as long as there are servers."""
    channel.receive()
    if servers:
        os.closerange(3, 1 << 16)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for server in servers:
            os.waitpid(server, 0)


def _roots(path: str, cover: str) -> list[str]:
    """The directories to cover. Raises `UsageError` where there are none."""
    roots = roots_of(path)
    if path == "/":
        table = {entry.mount_id: entry for entry in _mount_table()}
        roots = [root for root in roots if can_be_covered(table[mount_id_at(root) or 0], cover)]
        if not roots:
            raise UsageError("/ is copy-on-write already")
    return roots


def _mount_table() -> list[Any]:
    with open("/proc/self/mountinfo", "rb") as table:
        return parse_mountinfo(table.read())


def _open_layer(layers: LayerSet, point: str, lower_fd: int, request: dict[str, Any], messages: list[str]) -> Layer:
    """The layer of a mount point, with what an earlier session left of it put in order."""
    serving = [
        Lower(kind, source) for path, kind, source in request["mounts"] if point == path or point.startswith(path + "/")
    ]
    lower = serving[-1] if serving else Lower("host")
    root = Tree(lower_fd).entry(b"")
    assert root is not None
    layer = layers.layer(point, lower, root, now_ns=time.time_ns(), durably=not request["volatile"])
    if layer.is_new:
        return layer
    with layer.locked():
        if (done := recover(layer, Tree(lower_fd))) is not None:
            messages.append(done)
        settle(layer, Tree(lower_fd))
    return layer


def _cover_of(layer: Layer, lower: int, request: dict[str, Any]) -> Cover:
    remove_tree(layer.fd, b"work")  # a volatile overlay leaves a mark in it by which it is refused the next time
    os.mkdir("work", 0o700, dir_fd=layer.fd)
    upper, work = layer.directory("upper"), layer.directory("work")
    try:
        source, backend = request["cover"], request["backend"]
        return make_cover(lower, upper, work, source=source, backend=backend, volatile=request["volatile"])
    finally:
        os.close(upper)
        os.close(work)


def _as_it_is(point: str) -> int:
    try:
        return open_tree(AT_FDCWD, point, OpenTree.CLONE)
    except OSError:
        # Something is mounted below it outside of the view; it can only be had with that.
        return open_tree(AT_FDCWD, point, OpenTree.CLONE | AT_RECURSIVE)


def show_state(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """A mount namespace that is the view as it is, but for its layers, which are shown in a state that was kept.

    `layers` of the request has the mount point and the directory of the state of each; `fds` has the workshop, the
    lower tree and the directory of each.
    """
    live = open_namespace("mnt")
    states: dict[str, int] = {}
    servers: list[int] = []
    for number, layer in enumerate(request["layers"]):
        workshop, lower, directory = fds[3 * number : 3 * number + 3]
        setns(workshop, CloneFlags.NEWNS)
        state = os.open(layer["directory"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        cover = make_cover(lower, state, None, source=request["cover"], backend=request["backend"])
        os.close(state)
        states[layer["path"]] = cover.mount
        if cover.server is not None:
            servers.append(cover.server)
    setns(live, CloneFlags.NEWNS)
    unshare(CloneFlags.NEWNS)
    for root in request["roots"]:
        below = [entry.mount_point for entry in visible_below(root, _mount_table())]
        tree = assemble([(point, states.get(point) or _as_it_is(point)) for point in (root, *below)])
        move_mount(tree, "", AT_FDCWD, root, MoveMount.F_EMPTY_PATH)
    report = {"servers": [*servers, os.getpid()] if servers else []}
    channel.send({"ok": report}, [open_namespace("mnt"), *states.values()])
    _stay(channel, servers)
