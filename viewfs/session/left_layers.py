"""What sessions that have ended have left: which there are, and throwing it away."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Collection, Iterator

from viewfs.cow.layer.layers import LayerSet, has_changes
from viewfs.cow.layer.session_lock import is_in_use, lock_session
from viewfs.errors import MachineError, NotFoundError, explain_os_error
from viewfs.namespaces.user import IdentityMap, unshare_user_namespace
from viewfs.session.layer_settings import state_directory, unnamed_prefix
from viewfs.session.runtime import RuntimeDirectory, check_name

__all__ = ["forget", "garbage", "identity_for", "left_behind", "raise_descriptor_limit", "take_away"]

#: How the directories of sessions begin whose name was not given (`layer_settings`).
_UNNAMED = "unnamed."
#: In which a session has made its directory and has not locked it yet, at most.
_BEGINNING_SECONDS = 60


def left_behind(running: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Sessions that have ended and left changes, but for those that are `running`: name, what was copy-on-write.

    What another session has, whose control socket is elsewhere, is none of them.
    """
    directory = state_directory()
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(set(os.listdir(directory)) - set(running)):
            if name.startswith(_UNNAMED) or (layers := LayerSet.of_session(name, directory)) is None:
                continue
            paths: list[str] = []
            unreadable: list[str] = []
            for layer in layers.layers(unreadable) if not is_in_use(layers.fd) else ():
                if has_changes(layer.fd) or layer.record.checkpoints:
                    paths.append(layer.record.path)
                layer.close()
            layers.close()
            if paths or unreadable:
                yield name, paths


def garbage() -> Iterator[str]:
    """What is nobody's: sockets that nobody listens on, and layers of sessions without a name that have ended."""
    for runtime in RuntimeDirectory.existing():
        with contextlib.closing(runtime):
            yield from (os.path.join(runtime.path, name) for name in runtime.abandoned())
    directory = state_directory()
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            # Those of other machines, which have the directory too, hold their locks there.
            if name.startswith(unnamed_prefix()) and (layers := LayerSet.of_session(name, directory)) is not None:
                begun = os.fstat(layers.fd).st_mtime  # it may be on its way to being locked
                used = is_in_use(layers.fd) or time.time() - begun < _BEGINNING_SECONDS
                layers.close()
                if not used:
                    yield layers.path


def take_away(path: str) -> None:
    """Remove what `garbage` has found. Raises `ViewfsError`."""
    directory, name = os.path.split(path)
    try:
        if directory != state_directory():
            for runtime in RuntimeDirectory.existing():
                with contextlib.closing(runtime):
                    if runtime.path == directory and name in runtime.abandoned():  # still
                        os.unlink(path)
            with contextlib.suppress(OSError):
                os.rmdir(directory)
            return
        layers = LayerSet.of_session(name, directory)
        if layers is not None:
            with contextlib.closing(layers), contextlib.suppress(MachineError):
                unshare_user_namespace(identity_for(layers), 0)
            layers.remove()
    except OSError as error:
        raise explain_os_error(f"cannot remove {path}", error) from error


def identity_for(layers: LayerSet) -> IdentityMap:
    """Who a command is that works on them: whoever their view was."""
    many = False
    for layer in layers.layers():
        many = many or layer.record.subordinate
        layer.close()
    return IdentityMap.of_caller(as_root=many, ids="many" if many else "one")


def forget(name: str, directory: str | None = None) -> list[str]:
    """Throw away all that an ended session has left (in `directory`); what was copy-on-write in it.

    Raises `NotFoundError` if it has left nothing, and `ViewfsError` if it has not ended.
    """
    layers = LayerSet.of_session(check_name(name), directory or state_directory())
    if layers is None:
        raise NotFoundError(
            f"no session called {name} has left any changes", remedy="`viewfs ps` lists those that have"
        )
    raise_descriptor_limit()
    lock = lock_session(layers.fd, name, where="`viewfs forget`")
    try:
        paths = []
        for layer in layers.layers():
            paths.append(layer.record.path)
            layer.close()
        with contextlib.suppress(MachineError):  # for directories without permission bits, and files of other ids
            unshare_user_namespace(identity_for(layers), 0)
        layers.remove()
    except OSError as error:
        raise explain_os_error(f"cannot forget {name}", error) from error
    finally:
        os.close(lock)
        layers.close()
    return paths


def raise_descriptor_limit() -> None:
    """A tree is walked with a descriptor for each directory on the way down."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
