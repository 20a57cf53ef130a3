"""Layers for a command that compares, commits or discards: those of a running view, or those that an ended one left.

A running view hands out descriptors of its trees, so that it doesn't matter where the command runs and what is mounted
there. Without a running view the command makes an overlay for itself, in namespaces of its own, to be read only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from viewfs.cow.commit.finishing import recover
from viewfs.cow.commit.planning import Selection
from viewfs.cow.compare.changes import Change, differences
from viewfs.cow.compare.filters import EVERYTHING, Filter
from viewfs.cow.compare.outside import outside
from viewfs.cow.compare.trees import Tree
from viewfs.cow.layer.layers import Layer, LayerSet
from viewfs.cow.layer.session_lock import lock_session
from viewfs.cow.layer.settled import own_changes
from viewfs.cow.layer.settling import settle
from viewfs.errors import MachineError, NotFoundError, UsageError, ViewfsError, explain_os_error
from viewfs.linux.mount import AT_FDCWD, MountFlags, OpenTree, mount, open_tree
from viewfs.linux.namespaces import CloneFlags, setns
from viewfs.linux.process import raise_descriptor_limit
from viewfs.mounts.attach import attach_aside
from viewfs.namespaces.user import IdentityMap, unshare_user_namespace
from viewfs.paths import is_at_or_below
from viewfs.session.agent.cover import make_cover
from viewfs.session.agent.forked_server import ForkedServer
from viewfs.session.client import Session, find_session
from viewfs.session.layer_names import state_directory
from viewfs.session.left_layers import identity_for

__all__ = ["OpenLayer", "OpenLayers", "Request", "State", "opened_layers", "select"]


@dataclass(frozen=True)
class Request:
    """Which layers are wanted."""

    session: str | None
    #: Absolute paths; none: all of every layer.
    paths: Sequence[str] = ()
    #: States that were kept, by epoch or name.
    states: Sequence[str] = ()
    #: Afterwards remove those layers of an ended session that have no changes any more.
    tidies: bool = False
    #: Discard a layer whole if it can't be looked at any more because its tree or image is gone.
    discards: bool = False
    #: Files will be copied from one tree to the other, with their access control lists.
    writes: bool = False
    #: Which paths in them are meant.
    only: Filter = EVERYTHING
    #: Where the layers are kept, if not in `state_directory`.
    directory: str | None = None
    #: Files are to be seen with the owners that they have in the view.
    as_in_view: bool = False
    #: The layers are only looked at, so that other commands may do the same at the same time.
    reads: bool = False


class State(NamedTuple):
    """A state of a tree, and the directory with its differences from the lower tree; None if it is the lower tree."""

    tree: Tree
    layer: Tree | None


@dataclass
class OpenLayer:
    """One layer with its trees."""

    layer: Layer
    lower: Tree
    #: The tree with its changes. Where `live`, programs may be using it, and it can be written.
    view: Tree
    upper: Tree
    selection: Selection
    live: bool
    states: list[State] = field(default_factory=list)
    #: The process that serves `view` to this command alone.
    server: ForkedServer | None = None
    #: On `close`, take out of the layer what is no change any more, unless a view has the layer.
    settles: bool = True

    @property
    def path(self) -> str:
        return self.layer.record.path

    def shown(self, path: bytes) -> str:
        """The path in the view of `path` in the layer."""
        return os.path.join(self.path, os.fsdecode(path)) if path else self.path

    def changes(self) -> Iterator[Change]:
        """What the view has changed, in the selection."""
        for path in _tops(self.selection.paths):
            yield from filter(self._is_meant, own_changes(self.layer, self.lower, self.view, self.upper, path))

    def _is_meant(self, change: Change) -> bool:
        return self.selection.only.passes(change.path)

    def all_differences(self) -> Iterator[Change]:
        """All differences between the lower tree and the view, in the selection, whoever has made them."""
        yield from self.changes_between(self.before, self.now)

    def changes_between(self, old: State, new: State) -> Iterator[Change]:
        """What differs between two states, in the selection."""
        layers = [state.layer for state in (old, new) if state.layer is not None]
        for path in _tops(self.selection.paths):
            yield from filter(self._is_meant, differences(old.tree, new.tree, layers, path))

    @property
    def before(self) -> State:
        """The lower tree."""
        return State(self.lower, None)

    @property
    def now(self) -> State:
        """What the view shows."""
        return State(self.view, self.upper)

    def close(self) -> None:
        """Close its descriptors, end its server, and settle the layer if `settles` says so."""
        layers = [state.layer for state in self.states if state.layer is not None]
        for tree in (self.view, self.upper, *(state.tree for state in self.states), *layers):
            os.close(tree.root)
        if self.server is not None:
            self.server.end()
        try:
            if self.settles and not self.live:
                with self.layer.locked():
                    settle(self.layer, self.lower)
        finally:
            os.close(self.lower.root)
            self.layer.close()


@dataclass
class OpenLayers:
    """The layers that a command works on, by path."""

    layers: list[OpenLayer]
    #: The session that has them, if it runs.
    session: Session | None
    #: Messages about what was found and put in order.
    messages: list[str]


def _tops(paths: Sequence[bytes]) -> list[bytes]:
    """`paths` without those that are below another of them."""
    kept: list[bytes] = []
    for path in sorted(paths):
        if not any(is_at_or_below(path, top) for top in kept):
            kept.append(path)
    return kept


def select(mount_points: Sequence[str], paths: Sequence[str]) -> dict[str, list[bytes]]:
    """The parts of layers that `paths` name: mount point → paths in it (b"": all of it). No paths: all of every layer.

    Raises `NotFoundError` for a path that is in no layer.
    """
    if not paths:
        return {point: [b""] for point in mount_points}
    found: dict[str, list[bytes]] = {}
    for path in paths:
        holding = max((point for point in mount_points if is_at_or_below(path, point)), key=len, default=None)
        inside = [point for point in mount_points if is_at_or_below(point, path) and point != holding]
        if holding is None and not inside:
            raise NotFoundError(f"{path} is not copy-on-write", remedy="`viewfs cow PATH` makes it so")
        if holding is not None:
            found.setdefault(holding, []).append(os.fsencode(path[len(holding.rstrip("/")) + 1 :]))
        for point in inside:
            found.setdefault(point, []).append(b"")
    return found


@contextlib.contextmanager
def opened_layers(request: Request) -> Iterator[OpenLayers]:
    """The layers that `request` names. Commits that were interrupted are finished or undone first.

    Raises `ViewfsError`.
    """
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        if request.writes:
            stack.enter_context(outside())  # before another user namespace is joined
        opened = OpenLayers([], _session_of(request), [])
        if opened.session is not None:
            stack.callback(opened.session.close)
        locked = stack.enter_context(contextlib.ExitStack())  # what is entered first is left last
        if opened.session is None and request.tidies:
            stack.callback(_tidy, request)
        closing = stack.enter_context(contextlib.ExitStack())
        messages = opened.messages
        found = (
            _left_by(request, messages, locked)
            if opened.session is None
            else _of_session(opened.session, request, messages)
        )
        for layer in found:
            closing.callback(layer.close)
            opened.layers.append(layer)
        yield opened


def _session_of(request: Request) -> Session | None:
    try:
        if request.directory is not None:
            # Only this directory counts, whatever session has the name. A session that runs with it holds its lock.
            raise NotFoundError(f"there are no layers in {request.directory}", remedy="`viewfs run --layer` keeps some")
        return find_session(request.session)
    except NotFoundError:
        if request.session is None:
            raise
        layers = LayerSet.of_session(request.session, request.directory or state_directory())
        if layers is None:
            raise
        layers.close()
        return None


def _of_session(session: Session, request: Request, messages: list[str]) -> Iterator[OpenLayer]:
    rows: list[dict[str, Any]] = session.request("layers")["layers"]
    if not rows:
        raise NotFoundError("nothing of this view is copy-on-write", remedy="`viewfs cow PATH` makes it so")
    chosen = select([row["path"] for row in rows], request.paths)
    backends = {row["path"]: row["backend"] for row in rows}
    row_lower = {row["path"]: row["lower"] for row in rows}
    served = any(backends[path] == "fuse" or row_lower[path]["type"] != "host" for path in chosen)
    _gain_access(session, joining=served or request.as_in_view)
    for path, selected in sorted(chosen.items()):
        answer, fds = session.request_fds("layer", path=path, states=list(request.states))
        layer = Layer.open(fds[1])
        _recover(layer, Tree(fds[0], has_secrets=True), messages, Tree(fds[2]))
        by_epoch = {one.epoch: f"checkpoints/{one.directory}" for one in layer.record.checkpoints}
        has_acls = backends[path] != "fuse"
        upper = Tree(layer.directory("upper"), has_acls=has_acls)
        states = [_state(layer, fd, by_epoch.get(epoch)) for fd, epoch in zip(fds[3:], answer["epochs"], strict=True)]
        lower = Tree(fds[0], has_secrets=True)
        view = Tree(fds[2], links=upper, has_acls=has_acls)
        yield OpenLayer(
            layer,
            lower,
            view,
            upper,
            Selection(selected, request.only),
            live=True,
            states=states,
        )


def _gain_access(session: Session, *, joining: bool) -> None:
    """Gain access to one's own files, whatever their permission bits say.

    Only processes of the view's user namespace and of those below it can read what viewfs itself serves (fuse.rst,
    allow_other). So a process outside joins that namespace, as `viewfs enter` does.
    """
    if joining and not session.is_view_of_caller():
        namespaces = session.namespaces()
        try:
            setns(namespaces.fds["user"], CloneFlags.NEWUSER)
            return
        except OSError as error:
            raise explain_os_error("cannot join the user namespace of", error) from error
        finally:
            namespaces.close()
    with contextlib.suppress(MachineError):
        unshare_user_namespace(IdentityMap.of_caller(), 0)


def _state(layer: Layer, fd: int, directory: str | None) -> State:
    if directory is None:
        return State(Tree(fd), None)
    kept = Tree(layer.directory(directory))
    return State(Tree(fd, links=kept, has_acls=layer.has_acls), kept)


def _tidy(request: Request) -> None:
    directory = request.directory or state_directory()
    if request.session is not None and (layers := LayerSet.of_session(request.session, directory)) is not None:
        layers.tidy()
        layers.close()


def _left_by(request: Request, messages: list[str], locked: contextlib.ExitStack) -> Iterator[OpenLayer]:
    """The layers of a session that has ended; their lock is held until `locked` is closed."""
    assert request.session is not None
    if request.states:
        raise UsageError("states can be looked at in a view only", remedy=f"open one with --name {request.session}")
    directory, where = request.directory or state_directory(), "looking at its changes"
    layers = LayerSet.of_session(request.session, directory)
    assert layers is not None
    try:
        locked.callback(os.close, lock_session(layers.fd, request.session, where=where, shared=request.reads))
        identity = identity_for(layers)
    finally:
        layers.close()
    # Showing the lower tree and its changes as one takes a mount, and so a mount namespace of our own.
    unshare_user_namespace(identity, CloneFlags.NEWNS)
    mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
    # Opened again: the kernel makes no overlay of directories that were opened in another mount namespace.
    layers = LayerSet.of_session(request.session, directory)
    assert layers is not None
    try:
        unreadable: list[str] = []
        present = {layer.record.path: layer for layer in layers.layers(unreadable)}
    finally:
        layers.close()
    if unreadable and not present:
        raise ViewfsError(unreadable[0], remedy=f"`viewfs forget {request.session}` throws it away")
    messages += [f"left out: {one}" for one in unreadable]
    chosen = select(list(present), request.paths)
    for path, layer in sorted(present.items()):
        if path not in chosen:
            layer.close()
            continue
        try:
            yield _left_layer(layer, Selection(chosen[path], request.only), request, messages)
        except ViewfsError as error:
            if request.discards and chosen[path] == [b""]:
                with layer.locked():
                    layer.empty()
                    layer.forget_interrupted()
                messages.append(f"all that was changed in {path} is discarded ({error.message})")
            elif request.paths or len(chosen) == 1:
                raise
            else:
                messages.append(f"left out: {error}")
            layer.close()


def _recover(layer: Layer, lower: Tree, messages: list[str], view: Tree | None = None) -> None:
    if layer.has_journal or layer.was_restoring:
        with layer.locked():
            layer.clear_restoring(view)
            if (done := recover(layer, lower)) is not None:
                messages.append(done)


def _open_lower(path: str) -> tuple[int, bool]:
    """The host's directory, and whether it is without what is mounted below it, which the kernel may not allow."""
    try:
        lower = open_tree(AT_FDCWD, path, OpenTree.CLONE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), False
    attach_aside(lower)
    return lower, True


def _left_layer(layer: Layer, selection: Selection, request: Request, messages: list[str]) -> OpenLayer:
    record, session = layer.record, request.session
    if not record.lower.is_host:
        what = record.lower.source or record.lower.type
        raise ViewfsError(
            f"the changes of {record.path} were made over {what}, which only a view has",
            remedy=f"open a view with --name {session} that mounts it, and --cow {record.path};"
            f" `viewfs discard --session {session} {record.path}` throws them away",
        )
    try:
        lower, is_alone = _open_lower(record.path)
        _recover(layer, Tree(lower, has_secrets=True), messages)  # before there is an overlay of it
        upper, work = layer.directory("upper"), None if request.reads else layer.directory("work")
        try:
            backend = "auto" if is_alone and record.backend == "overlay" else "fuse"
            view, server = make_cover(lower, upper, work, source="viewfs-cow", backend=backend)
        finally:
            if work is not None:
                os.close(work)
    except OSError as error:
        problem = explain_os_error("cannot look at the layer of", error)
        problem.remedy = f"`viewfs discard --session {session} {record.path}` throws its changes away"
        raise problem from error
    has_acls = server is None
    changed = Tree(upper, has_acls=has_acls)
    shown = Tree(view, links=changed, has_acls=has_acls)
    return OpenLayer(
        layer,
        Tree(lower, has_secrets=True),
        shown,
        changed,
        selection,
        live=False,
        server=server,
        settles=not request.reads,
    )
