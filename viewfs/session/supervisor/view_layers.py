"""The copy-on-write mounts of a live view as the supervisor keeps them: their layers, and the states that were kept."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import trio

from viewfs.cow.layer.layers import Layer, has_changes
from viewfs.cow.layer.records import Checkpoint
from viewfs.epochs import Epoch, Mount
from viewfs.errors import NotFoundError, UsageError, ViewfsError
from viewfs.namespaces.sandbox import Confinement
from viewfs.session.covers import CoverReport, take_servers
from viewfs.session.layer_settings import LayerSettings
from viewfs.session.supervisor.agent_link import AgentLink
from viewfs.session.supervisor.deposit import Entry, Row
from viewfs.session.supervisor.history import History
from viewfs.session.supervisor.served import ServedMount

__all__ = ["CoveredTree", "HeldLayer", "ViewLayers"]

log = logging.getLogger("viewfs.layers")


@dataclass
class HeldLayer:
    """One layer, with descriptors of directories: the lower tree, the layer's own, and what the view shows."""

    path: str
    lower: dict[str, str]
    #: "overlay" or "fuse".
    backend: str
    lower_fd: int
    layer_fd: int
    view_fd: int
    #: Epoch whose state was kept → descriptor of what the view showed in it.
    states: dict[Epoch, int] = field(default_factory=dict)

    @property
    def fds(self) -> list[int]:
        return [self.lower_fd, self.layer_fd, self.view_fd, *self.states.values()]

    def to_json(self) -> list[Any]:
        """All but the descriptors, which are `fds`."""
        return [self.path, self.lower, self.backend, list(self.states)]

    @classmethod
    def of_json(cls, value: list[Any], fds: Iterator[int]) -> HeldLayer:
        path, lower, backend, states = value
        layer = cls(path, lower, backend, next(fds), next(fds), next(fds))
        layer.states = {Epoch(epoch): next(fds) for epoch in states}
        return layer


@dataclass
class CoveredTree:
    """What one `cow` made."""

    roots: list[str]
    #: Every mount point that belongs to it.
    points: list[str]
    layers: list[HeldLayer]
    #: The mount namespace that has the lower trees.
    workshop: int

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.workshop, *(fd for layer in self.layers for fd in layer.fds))

    def row(self) -> Row:
        """For `of_row`."""
        layers = [layer.to_json() for layer in self.layers]
        return Row({"roots": self.roots, "points": self.points, "layers": layers}, self.fds)

    @classmethod
    def of_row(cls, row: Row) -> CoveredTree:
        fds = iter(row.fds)
        workshop = next(fds)
        layers = [HeldLayer.of_json(value, fds) for value in row.value["layers"]]
        return cls(row.value["roots"], row.value["points"], layers, workshop)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class ViewLayers:
    """The layers of a view, by the epoch of the mount that covers a tree with them."""

    def __init__(self, agent: AgentLink, settings: LayerSettings, history: History) -> None:
        self._settings = settings
        self._history = history
        #: Pids of the processes that serve them.
        self.servers: set[int] = set()
        self._agent = agent
        self.trees: dict[Epoch, CoveredTree] = {}
        #: Descriptor of the lock: as long as it is open, no other session may have these layers.
        self.lock: int | None = None

    def layers(self) -> list[HeldLayer]:
        """Those of all live mounts, by path."""
        return sorted((layer for tree in self.trees.values() for layer in tree.layers), key=lambda layer: layer.path)

    async def cover(
        self,
        request: dict[str, Any],
        intend: Callable[[list[str], list[int], str], None],
        take_back: Callable[[list[str]], Awaitable[None]],
    ) -> tuple[Mount, list[str]]:
        """Make `path` of the request copy-on-write. The caller holds the view's lock; `intend` is called before
        anything is mounted.

        Returns the mount, and messages about it. Raises `ViewfsError`, nothing having changed.
        """
        doing = f"cannot make {request['path']} copy-on-write"
        mounts = [
            [path, mount.type, mount.source, self._history.served[mount.made_in].source_identity]
            for mount in self._history.epochs.live()
            for path in mount.paths
        ]
        backend, locked = request.get("backend"), self.lock is not None
        patterns = {name: request.get(name, ()) for name in ("exclude", "include")}
        asked = self._settings.request(request["path"], mounts, request["cwd"], backend, locked=locked, **patterns)
        async with self._agent.worker("cover", asked, [self._history.first_namespace]) as worker:
            report = CoverReport(*await worker.answer(doing))
            await worker.channel.send({"kept": True})
        with trio.CancelScope(shield=True):
            intend(report.roots, report.depths, "cow")
            try:
                await self._attach(report, take_back)
            except BaseException:
                report.end_servers()
                report.close()
                raise
            mount = self.adopt(report)
        return mount, report.messages

    async def _attach(self, report: CoverReport, take_back: Callable[[list[str]], Awaitable[None]]) -> None:
        attached: list[str] = []
        with contextlib.ExitStack() as closing:
            trees = report.take_trees()
            for _root, *fds in trees:
                for fd in fds:
                    closing.callback(os.close, fd)
            try:
                for root, tree, place in trees:
                    await self._agent.call("attach", [tree, place])
                    attached.append(root)
            except BaseException:
                if attached:
                    await take_back(attached)
                raise

    def adopt(self, report: CoverReport) -> Mount:
        """Record what has been covered."""
        self.servers |= report.take_servers()
        self.lock = report.take_lock() or self.lock
        mount = self._record(report, report.fds["snapshot"])
        layers = [
            HeldLayer(row["path"], row["lower"], row["backend"], lower, layer, view)
            for row, lower, layer, view in report.layers()
        ]
        self.trees[mount.made_in] = CoveredTree(report.roots, report.points, layers, report.fds["workshop"])
        return mount

    def _record(self, report: CoverReport, snapshot: int) -> Mount:
        history = self._history
        history.keep_snapshot(snapshot)
        others = tuple(root for root in report.roots if root != report.path)
        made_from = history.mount_on_device(report.device)
        mount = history.epochs.mount(
            report.path, "cow", made_from=made_from, also=others, time_ns=time.time_ns(), operation="cow"
        )
        history.served[mount.made_in] = ServedMount(Confinement.VIEW.value if report.is_served else "kernel")
        history.free()
        return mount

    async def take_up_states(self, mount: Mount) -> None:
        """Make epochs of the states that an earlier session of that name kept. The caller holds the view's lock."""
        records = {layer.path: Layer.open(layer.layer_fd) for layer in self.trees[mount.made_in].layers}
        # A state has a directory of the same name in each layer that there was then.
        kept = {one.directory: one for layer in records.values() for one in _kept(layer)}
        for state in sorted(kept.values(), key=lambda one: one.time_ns):
            try:
                await self.keep_state(state.name, state.directory, operation="checkpoint")
            except ViewfsError as error:
                log.warning("the state %s is not to be had: %s", state.name, error)

    async def keep_state(self, name: str, directory: str, *, operation: str) -> Epoch:
        """End the current epoch. It goes on showing, of each layer, the state in `directory` below `checkpoints/`.

        The caller holds the view's lock. Returns the epoch that was ended. Raises `ViewfsError`.
        """
        if name in self._history.state_names.values():
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
        epoch = self._history.keep_state(namespace)
        self._history.epochs.note(operation, source=name, time_ns=time.time_ns())
        for (_tree, layer), fd in zip(holding, states, strict=True):
            layer.states[epoch] = fd
            _note(layer, epoch, name, directory)
        self._history.state_names[epoch] = name
        return epoch

    def find_state(self, wanted: str) -> Epoch:
        """The epoch whose state is kept under that number or name. Raises `NotFoundError`."""
        kept = {epoch for layer in self.layers() for epoch in layer.states}
        names = self._history.state_names
        for epoch in kept:
            if wanted in (str(epoch), names.get(epoch)):
                return epoch
        listed = ", ".join(f"{epoch} ({names.get(epoch, '')})" for epoch in sorted(kept)) or "none"
        raise NotFoundError(f"no state is kept of epoch {wanted}", remedy=f"those that are: {listed}")

    def release(self, epoch: Epoch) -> None:
        """Close what belongs to the mount made in `epoch`, which is out of the view."""
        if (tree := self.trees.pop(epoch, None)) is not None:
            tree.close()

    def close(self) -> None:
        """Close everything but the lock, which goes with this process: the session still has to end its layers."""
        for epoch in list(self.trees):
            self.release(epoch)

    def entries(self) -> Iterator[Entry]:
        """All of it, for `take_up`."""
        for epoch, tree in self.trees.items():
            yield Entry(f"tree {epoch}", tree.fds, tree.row)
        servers = sorted(self.servers)
        lock = () if self.lock is None else (self.lock,)
        yield Entry("layers", (servers, lock), partial(Row, {"servers": servers}, lock))

    def take_up(self, rows: Mapping[str, Row]) -> None:
        """Restore it from `rows`."""
        for name, row in rows.items():
            kind, _, number = name.partition(" ")
            if kind == "tree":
                self.trees[Epoch(int(number))] = CoveredTree.of_row(row)
            elif kind == "layers":
                self.servers = set(row.value["servers"])
                self.lock = row.fds[0] if row.fds else None

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
