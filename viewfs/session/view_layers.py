"""The copy-on-write mounts of a live view as the supervisor keeps them: their layers, and the states that were kept."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import trio

from viewfs.cow.layers import Layer, has_changes
from viewfs.cow.records import Checkpoint
from viewfs.epochs import Epoch, Mount
from viewfs.errors import NotFoundError, UsageError, ViewfsError
from viewfs.session.agent_link import AgentLink
from viewfs.session.layer_settings import LayerSettings, take_servers

if TYPE_CHECKING:
    from viewfs.session.view import View

__all__ = ["CoveredTree", "HeldLayer", "ViewLayers"]

log = logging.getLogger("viewfs.layers")


@dataclass
class HeldLayer:
    """One layer, by descriptors of directories: of the lower tree, its own, and of what the view shows."""

    path: str
    lower: dict[str, str]
    #: "overlay" or "fuse".
    backend: str
    lower_fd: int
    layer_fd: int
    view_fd: int
    #: What it showed in the epochs whose state was kept.
    states: dict[Epoch, int] = field(default_factory=dict)

    @property
    def fds(self) -> list[int]:
        return [self.lower_fd, self.layer_fd, self.view_fd, *self.states.values()]


@dataclass
class CoveredTree:
    """What one `cow` made."""

    roots: list[str]
    #: Every mount point that belongs to it.
    points: list[str]
    layers: list[HeldLayer]
    #: The mount namespace that has the lower trees.
    workshop: int

    def close(self) -> None:
        for fd in (self.workshop, *(fd for layer in self.layers for fd in layer.fds)):
            os.close(fd)


class ViewLayers:
    """What a view has of layers, by the epoch of the mount that covers a tree with them."""

    def __init__(self, agent: AgentLink, settings: LayerSettings) -> None:
        self._settings = settings
        #: Processes that serve them.
        self.servers: set[int] = set()
        self._agent = agent
        self.trees: dict[Epoch, CoveredTree] = {}
        self.names: dict[Epoch, str] = {}
        #: Says that no other session may have these layers, as long as it is open.
        self.lock: int | None = None

    def layers(self) -> list[HeldLayer]:
        """Those of all live mounts, by path."""
        return sorted((layer for tree in self.trees.values() for layer in tree.layers), key=lambda layer: layer.path)

    async def cover(self, view: View, request: dict[str, Any], first_epoch: int) -> tuple[Mount, list[str]]:
        """Make `path` of the request copy-on-write. The caller holds the view's lock.

        Also what there was to say about it. Raises `ViewfsError`, nothing having changed.
        """
        doing = f"cannot make {request['path']} copy-on-write"
        mounts = [
            [path, mount.type, mount.source, view.served[mount.made_in].source_identity]
            for mount in view.epochs.live()
            for path in mount.paths
        ]
        backend, locked = request.get("backend"), self.lock is not None
        patterns = {name: request.get(name, ()) for name in ("exclude", "include")}
        asked = self._settings.request(request["path"], mounts, request["cwd"], backend, locked=locked, **patterns)
        async with self._agent.worker("cover", asked, [first_epoch]) as worker:
            report, received = await worker.answer(doing)
            fds = dict(zip(report["descriptors"], received, strict=True))
            await worker.channel.send({"kept": True})
        with trio.CancelScope(shield=True):
            for number in range(len(report["roots"])):
                tree, place = fds.pop(f"tree{number}"), fds.pop(f"place{number}")
                await self._agent.call("attach", [tree, place])
                os.close(tree)
                os.close(place)
            mount = self.adopt(view, report, fds)
        return mount, report["messages"]

    def adopt(self, view: View, report: dict[str, Any], fds: dict[str, int]) -> Mount:
        """Record what has been covered."""
        self.servers |= take_servers(fds)
        if "lock" in fds:
            self.lock = fds.pop("lock")
        mount = view.record_cover(report, fds.pop("snapshot"))
        layers = [
            HeldLayer(row["path"], row["lower"], row["backend"], fds[f"lower{n}"], fds[f"layer{n}"], fds[f"view{n}"])
            for n, row in enumerate(report["layers"], 1)
        ]
        self.trees[mount.made_in] = CoveredTree(report["roots"], report["points"], layers, fds["workshop"])
        return mount

    async def take_up_states(self, view: View, mount: Mount) -> None:
        """Make epochs of the states that an earlier session of that name kept. The caller holds the view's lock."""
        records = {layer.path: Layer.open(layer.layer_fd) for layer in self.trees[mount.made_in].layers}
        # One state is in a directory of that name in each layer that there was.
        kept = {one.directory: one for layer in records.values() for one in _kept(layer)}
        for state in sorted(kept.values(), key=lambda one: one.time_ns):
            try:
                await self.keep_state(view, state.name, state.directory, operation="checkpoint")
            except ViewfsError as error:
                log.warning("the state %s is not to be had: %s", state.name, error)

    async def keep_state(self, view: View, name: str, directory: str, *, operation: str) -> Epoch:
        """End the current epoch, which goes on showing what is in `checkpoints/` of each layer under `directory`.

        The caller holds the view's lock. Returns the epoch that was ended. Raises `ViewfsError`.
        """
        if name in self.names.values():
            raise UsageError(f"a state called {name} is kept already", remedy="choose another name")
        holding = [
            (tree, layer) for tree in self.trees.values() for layer in tree.layers if _has_state(layer, directory)
        ]
        if not holding:
            raise UsageError("nothing of this view is copy-on-write", remedy="`viewfs cow PATH` makes it so")
        fds = [fd for tree, layer in holding for fd in (tree.workshop, layer.lower_fd, layer.layer_fd)]
        rows = [
            {"path": layer.path, "directory": f"checkpoints/{directory}", "backend": layer.backend}
            for _tree, layer in holding
        ]
        roots = [root for tree in self.trees.values() for root in tree.roots]
        async with self._agent.worker(
            "show_state", {"layers": rows, "roots": roots} | self._settings.how, fds
        ) as worker:
            report, received = await worker.answer("cannot keep the state")
            fds_by_name = dict(zip(report["descriptors"], received, strict=True))
            self.servers |= take_servers(fds_by_name)
            namespace, *states = fds_by_name.values()
            await worker.channel.send({"kept": True})
        epoch = view.record_state(namespace, name, operation)
        for (_tree, layer), fd in zip(holding, states, strict=True):
            layer.states[epoch] = fd
            _note(layer, epoch, name, directory)
        self.names[epoch] = name
        return epoch

    def find_state(self, wanted: str) -> Epoch:
        """The epoch whose state is kept under that number or name. Raises `NotFoundError`."""
        kept = {epoch for layer in self.layers() for epoch in layer.states}
        for epoch in kept:
            if wanted in (str(epoch), self.names.get(epoch)):
                return epoch
        listed = ", ".join(f"{epoch} ({self.names.get(epoch, '')})" for epoch in sorted(kept)) or "none"
        raise NotFoundError(f"no state is kept of epoch {wanted}", remedy=f"those that are: {listed}")

    def release(self, epoch: Epoch) -> None:
        """The mount made in `epoch` is out of the view."""
        if (tree := self.trees.pop(epoch, None)) is not None:
            tree.close()

    def close(self) -> None:
        """But for the lock, which goes with this process: the session has still to end its layers."""
        for epoch in list(self.trees):
            self.release(epoch)

    def changed_paths(self) -> list[str]:
        """The mount points below which anything was changed."""
        return [layer.path for layer in self.layers() if has_changes(layer.layer_fd)]


def _kept(layer: Layer) -> Iterator[Checkpoint]:
    for one in layer.record.checkpoints:
        with contextlib.suppress(OSError):
            os.stat(f"checkpoints/{one.directory}", dir_fd=layer.fd)
            yield one


def _has_state(layer: HeldLayer, directory: str) -> bool:
    with contextlib.suppress(OSError):
        os.stat(f"checkpoints/{directory}", dir_fd=layer.layer_fd)
        return True
    return False


def _note(layer: HeldLayer, epoch: Epoch, name: str, directory: str) -> None:
    opened = Layer.open(layer.layer_fd)
    try:
        with opened.locked():
            others = tuple(one for one in opened.record.checkpoints if one.directory != directory)
            known = [one for one in opened.record.checkpoints if one.directory == directory]
            before = known[0] if known else Checkpoint(0, "", time.time_ns(), directory, opened.record.opened_ns)
            state = replace(before, epoch=epoch, name=name)
            opened.write(replace(opened.record, checkpoints=(*others, state)))
    except OSError as error:
        raise ViewfsError(f"cannot write down the state of {layer.path}: {error.strerror}") from error
