"""What ended sessions have left: listing it, and removing it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

from viewfs.cow.layer.layers import LayerSet, has_changes
from viewfs.cow.layer.session_lock import is_in_use, lock_session
from viewfs.errors import NotFoundError, ViewfsError, explain_os_error
from viewfs.linux.apart import done_apart
from viewfs.linux.mountinfo import mount_table
from viewfs.linux.process import raise_descriptor_limit
from viewfs.namespaces.user import IdentityMap, unshare_user_namespace
from viewfs.session.layer_names import UNNAMED, boot, state_directory, unnamed_prefix
from viewfs.session.runtime import RuntimeDirectory, check_name

__all__ = [
    "forget",
    "garbage",
    "identity_for",
    "left_behind",
    "remove_all",
    "sweep",
    "take_away",
]

#: File systems that one machine alone has (as /proc/self/mountinfo calls them).
_LOCAL = frozenset("bcachefs btrfs ext2 ext3 ext4 f2fs jfs overlay ramfs reiserfs tmpfs xfs zfs".split())
_REMOVED = b"removed"


def left_behind(running: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Sessions that have ended and left changes, without those in `running`: name, and what was copy-on-write.

    Layers that are in use by a session whose control socket is elsewhere are left out.
    """
    directory = state_directory()
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(set(os.listdir(directory)) - set(running)):
            if name.startswith(UNNAMED) or (layers := LayerSet.of_session(name, directory)) is None:
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
    """What nobody needs: sockets that nobody listens on, and layers of sessions without a name that have ended."""
    for runtime in RuntimeDirectory.existing():
        with contextlib.closing(runtime):
            yield from (os.path.join(runtime.path, name) for name in runtime.abandoned())
    for layers in _abandoned(state_directory()):
        yield layers.path


def _abandoned(directory: str) -> Iterator[LayerSet]:
    """The layers in `directory` of this machine's sessions without a name that have ended; each is closed afterwards.

    Other machines may share the directory, but their sessions hold their locks on those machines.
    """
    prefix = unnamed_prefix()
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return
    for name in names:
        if not name.startswith(prefix):
            continue
        try:
            layers = LayerSet.of_session(name, directory)
        except ViewfsError:
            continue  # somebody else's, or nothing that viewfs has made
        if layers is not None:
            with contextlib.closing(layers):
                if not is_in_use(layers.fd):
                    yield layers


def sweep(directory: str) -> None:
    """Remove from `directory` the layers of sessions without a name that were killed, or whose machine went down.

    If other machines may use the directory, only layers of this boot are removed: machines that share a home directory
    can have the same identity, as copies of one image do.
    """
    this_boot = f"{unnamed_prefix()}.{boot()}."
    for layers in _abandoned(directory):
        with contextlib.suppress(OSError, ViewfsError):
            if os.path.basename(layers.path).startswith(this_boot) or _is_local(directory):
                _take_layers_away(layers)


def _is_local(directory: str) -> bool:
    """Can no other machine have anything in `directory`?"""
    number = os.stat(directory).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return any(entry.device == device and entry.fs_type in _LOCAL for entry in mount_table())


def take_away(path: str) -> None:
    """Remove what `garbage` has found, if still nobody needs it. Raises `ViewfsError`."""
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
            with contextlib.closing(layers):
                _take_layers_away(layers)
    except OSError as error:
        raise explain_os_error(f"cannot remove {path}", error) from error


def _take_layers_away(layers: LayerSet) -> None:
    """Lock `layers` and remove them. Raises OSError, and `ViewfsError` if somebody has them."""
    lock = lock_session(layers.fd, os.path.basename(layers.path), where="which throws away what others have left")
    try:
        remove_all(layers)
    finally:
        os.close(lock)


def remove_all(layers: LayerSet) -> None:
    """Throw all of them away, whoever the files belong to, and however deep they lie. Raises OSError."""

    def as_others(_writing: int) -> bytes:
        raise_descriptor_limit()
        for ids in ("many", "one"):  # a record could tell which, but may be gone already
            with contextlib.suppress(ViewfsError, OSError):
                unshare_user_namespace(IdentityMap.of_caller(as_root=ids == "many", ids=ids), 0)
                break
        layers.remove()
        return _REMOVED

    try:
        layers.remove()
    except OSError:
        if done_apart(as_others) != _REMOVED:
            raise


def identity_for(layers: LayerSet) -> IdentityMap:
    """The identity of a command that works on `layers`: the same as that of their view."""
    many = False
    for layer in layers.layers():
        many = many or layer.record.subordinate
        layer.close()
    return IdentityMap.of_caller(as_root=many, ids="many" if many else "one")


def forget(name: str, directory: str | None = None) -> list[str]:
    """Remove all that an ended session has left (in `directory`). Returns what was copy-on-write in it.

    Raises `NotFoundError` if it has left nothing, and `ViewfsError` if it has not ended.
    """
    layers = LayerSet.of_session(check_name(name), directory or state_directory())
    if layers is None:
        raise NotFoundError(
            f"no session called {name} has left any changes", remedy="`viewfs ps` lists those that have"
        )
    lock = lock_session(layers.fd, name, where="`viewfs forget`")
    try:
        paths = []
        for layer in layers.layers():
            paths.append(layer.record.path)
            layer.close()
        remove_all(layers)
    except OSError as error:
        raise explain_os_error(f"cannot forget {name}", error) from error
    finally:
        os.close(lock)
        layers.close()
    return paths
