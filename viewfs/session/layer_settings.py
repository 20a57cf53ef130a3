"""Where a session's layers are, and the requests to workers that cover trees with them."""

from __future__ import annotations

import os
import time

from viewfs.errors import UsageError, ViewfsError
from viewfs.python import complete
from viewfs.session.layer_names import UNNAMED, boot, state_directory, unnamed_prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from viewfs.cow.layer.layers import Layer, LayerSet

__all__ = [
    "BACKENDS",
    "BACKEND_VARIABLE",
    "LayerSettings",
    "OWN_LAYERS",
    "chosen_backend",
]

#: The environment variable that says what serves copy-on-write trees without --cow-backend: one of `BACKENDS`.
BACKEND_VARIABLE = "VIEWFS_COW_BACKEND"
#: The name of layers that are kept in a directory of their own, for a session without a name.
OWN_LAYERS = "layers"
#: The kernel's overlay, viewfs's own file system, or the one that is better for each tree.
BACKENDS = ("auto", "overlay", "fuse")


def chosen_backend(asked: str | None) -> str:
    """The backend that was asked for, or else the one that the environment names. Raises `UsageError`."""
    backend = asked or os.environ.get(BACKEND_VARIABLE) or "auto"
    if backend not in BACKENDS:
        raise UsageError(
            f"there is no {backend} to serve copy-on-write trees",
            remedy=f"{BACKEND_VARIABLE} is one of {', '.join(BACKENDS)}",
        )
    return backend


class LayerSettings:
    """What stays the same for all layers of a session."""

    def __init__(self, name: str, directory: str, is_kept: bool, shown: tuple[str, ...], backend: str = "auto") -> None:
        self._name = name
        #: Part of the layers' name if they are not kept.
        self._time_ns = time.time_ns()
        self.directory = directory
        #: The layers survive the session.
        self.is_kept = is_kept
        #: Directories that stay as they are in every view: a socket can't be used through an overlay.
        self.shown = shown
        self.backend = backend

    @classmethod
    def of_session(
        cls, name: str, *, named: bool, runtime: str, backend: str = "auto", directory: str | None = None
    ) -> LayerSettings:
        """For session `name`, whose control socket is in `runtime`. Layers in a `directory` of their own are kept.

        Nobody takes up the layers of a session without a name again, so no two sessions may share them.
        """
        shown = (os.path.realpath(runtime),)
        if directory is not None:
            return cls(name if named else OWN_LAYERS, directory, True, shown, backend)
        return cls(name, state_directory(), named, shown, backend)

    @property
    def name(self) -> str:
        """The name of the session's directory in `directory`."""
        return self._name if self.is_kept else f"{unnamed_prefix()}.{boot()}.{self._name}.{self._time_ns}"

    @property
    def how(self) -> dict[str, Any]:
        """How covers are made, and what the mount table calls them."""
        return {
            "cover": f"viewfs-cow:{self.name}",
            "volatile": not self.is_kept,
        }

    def request(
        self,
        path: str,
        mounts: list[list[Any]],
        working_directory: str,
        backend: str | None = None,
        *,
        locked: bool = False,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The request to make `path` copy-on-write in a view with `mounts` (path, type, source, the source's identity).

        The `working_directory` and the home directory are where work is most likely done. `locked`: the session already
        holds the lock of its layers. Directories that match `exclude`, and not `include`, stay as they are
        (`cow.filters`).
        """
        here: dict[str, Any] = {"path": path, "name": self.name, "directory": self.directory, "mounts": mounts}
        here |= {"exclude": list(exclude), "include": list(include)}
        here |= {"asks_owners": False, "locked": locked, "where": f"whose control socket is in {self.shown[0]}"}
        own = [os.path.expanduser("~"), working_directory]
        return here | {"shown": list(self.shown), "own": own, "backend": backend or self.backend} | self.how

    def end(self, lock: int | None = None, *, seconds: float = 5.0) -> None:
        """Remove the layers of the session, which has ended; if they are kept, only those without changes.

        `lock` is the descriptor that holds their lock. Without it they are locked here, and left alone if another
        session has them. If they are not kept, this waits for them at most `seconds`: processes that have them may be
        about to end.
        """
        if lock is None and not self._can_be_had(0 if self.is_kept else seconds):
            return
        complete()
        from contextlib import ExitStack, suppress

        from viewfs.cow.layer.layers import LayerSet  # only here: a view without layers does without it
        from viewfs.cow.layer.session_lock import lock_session
        from viewfs.session.left_layers import remove_all

        # If this fails, what is left is in a directory of its own, and in nobody's way.
        with suppress(OSError, ViewfsError), ExitStack() as stack:
            layers = LayerSet.of_session(self.name, self.directory)
            if layers is None:
                return
            stack.callback(layers.close)
            if lock is None:
                stack.callback(os.close, lock_session(layers.fd, self.name, where="which is ending"))
            if self.is_kept:
                _settle(layers)
                layers.tidy()
            else:
                remove_all(layers)

    def _can_be_had(self, seconds: float) -> bool:
        """Are there layers that nobody else has? If somebody has them, wait for at most `seconds`."""
        from viewfs.cow.layer.session_lock import is_in_use

        try:
            directory = os.open(os.path.join(self.directory, self.name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            deadline = time.monotonic() + seconds
            while is_in_use(directory):
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.01)
            return True
        finally:
            os.close(directory)

    def sweep(self) -> None:
        """Remove the layers of sessions without a name that were killed, so that no process of theirs could do it."""
        try:
            names = os.listdir(self.directory)
        except OSError:
            return
        if any(name.startswith(UNNAMED) for name in names):
            complete()
            from viewfs.session.left_layers import sweep

            sweep(self.directory)


def _settle(layers: LayerSet) -> None:
    """Take out of `layers`, which no view has any more, what was committed or discarded while a view had them, and
    remember which lower directories the rest is over."""
    from viewfs.cow.compare.replaced import remember_directories
    from viewfs.cow.compare.trees import Tree
    from viewfs.cow.layer.settling import settle

    for layer in layers.layers():
        try:
            if layer.record.placed_ns and not layer.record.checkpoints and not _was_changed_since(layer):
                with layer.locked():
                    layer.empty()
                continue
            if layer.record.lower.is_host and not layer.has_journal:
                lower = os.open(layer.record.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    with layer.locked():
                        tree = Tree(lower, has_secrets=True)
                        if layer.record.unsettled:
                            settle(layer, tree)
                        remember_directories(layer, tree)
                finally:
                    os.close(lower)
        except (OSError, ViewfsError):
            continue  # the next session that takes it up has more privilege, and does it
        finally:
            layer.close()


def _was_changed_since(layer: Layer) -> bool:
    """Has anything been changed since the tree was written to the image that is its lower tree (--in-place)?"""
    with layer.open_upper() as upper:
        return any(entry.ctime_ns >= layer.record.placed_ns for _path, entry in upper.walk(b""))
