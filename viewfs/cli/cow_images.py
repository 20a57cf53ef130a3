"""`viewfs commit --to FILE` and `--in-place`: the tree of a view as a new image."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import replace

import click

from viewfs.cli.quick.messages import warn
from viewfs.cli.quick.requests import absolute
from viewfs.cli.quick.tables import print_json
from viewfs.cow.compare.outside import ACL_PREFIX, has_strangers
from viewfs.cow.compare.trees import Tree, read_entry
from viewfs.cow.copying import remove_tree, set_attributes
from viewfs.cow.export.images import FORMATS, Format, format_of, mismatches, place_durably, run_tool, write_image
from viewfs.cow.export.owners import Owner, owners_for, stored_owners
from viewfs.errors import UsageError, ViewfsError
from viewfs.linux.process import PYTHON
from viewfs.modules.framework.sources import identity_of
from viewfs.session.layer_access import OpenLayer, Request, opened_layers
from viewfs.session.layer_settings import OWN_LAYERS

__all__ = ["write_tree"]

#: Type of a mount → format of the image that `--in-place` makes of it.
_FORMAT_OF_TYPE = {"ext": "ext4", "squashfs": "squashfs"}
#: How many access control lists that can't be kept are named.
_LISTS = 10
_AT_FDCWD = -100


def write_tree(
    session: str | None,
    paths: tuple[str, ...],
    target: str | None,
    kind: str | None,
    as_json: bool,
    layer_directory: str | None,
) -> None:
    """Write the tree of one layer to `target`; if that is None, over the image that the tree was mounted from."""
    name = session or (OWN_LAYERS if layer_directory else None)
    request = Request(name, [absolute(path) for path in paths], as_in_view=True, directory=layer_directory)
    with opened_layers(request) as opened:
        for message in opened.messages:
            warn(message)
        if len(opened.layers) != 1 or opened.layers[0].selection.paths != (b"",):
            places = ", ".join(layer.path for layer in opened.layers)
            raise UsageError("a new image is made of one whole tree", remedy=f"name one of {places}")
        (layer,) = opened.layers
        form, path, size = _target(layer, target, kind)
        if target is not None and os.path.lexists(path):
            raise UsageError(f"{path} exists", remedy="name a file that doesn't; --in-place replaces an image")
        made = f"{path.rstrip('/')}.viewfs-{secrets.token_hex(4)}"
        begun_ns = time.time_ns()
        try:
            if target is None:
                _check_identity(layer, path)
            owners = _owners(layer, form)
            write_image(layer.view, form, made, size, owners)
            _verify(layer.view, form, made, owners)
            _tell_of_lists(layer)
            if target is None:
                _replace_image(layer, made, path, begun_ns)
            else:
                place_durably(made, path.rstrip("/"), replace=False)
        finally:
            remove_tree(_AT_FDCWD, os.fsencode(made))
    if as_json:
        print_json(path=path, format=form.name)
    else:
        click.echo(f"wrote {path} ({form.name}), and compared it with {layer.path}")


def _tell_of_lists(layer: OpenLayer) -> None:
    """Warn of access control lists that name somebody who has no number here: no image can be given those."""
    found = []
    for path, entry in layer.view.walk(b""):
        known = entry if entry.has_acls else layer.lower.entry(path)
        lists = [value for key, value in known.xattrs if key.startswith(ACL_PREFIX)] if known is not None else []
        if any(map(has_strangers, lists)):
            found.append(layer.shown(path))
    for named in found[:_LISTS]:
        warn(f"{named}: its access control list names somebody who has no number here, and is not kept")
    if len(found) > _LISTS:
        warn(f"and {len(found) - _LISTS} more lists are not kept")


def _target(layer: OpenLayer, target: str | None, kind: str | None) -> tuple[Format, str, int]:
    """The format to write, the path, and the least size in bytes."""
    if target is not None:
        directory = os.path.dirname(os.path.abspath(target.rstrip("/")))
        if not os.path.isdir(directory):
            raise UsageError(f"cannot write {target}: there is no directory {directory}")
        return format_of(target, kind), os.path.abspath(target) + ("/" if target.endswith("/") else ""), 0
    lower = layer.layer.record.lower
    name = kind or _FORMAT_OF_TYPE.get(lower.type)
    if name is None or not lower.source:
        what = "a directory" if lower.is_host else f"a mount of type {lower.type}"
        raise UsageError(f"{layer.path} is {what}, not an image that can be made anew", remedy="--to FILE makes one")
    path = os.path.realpath(lower.source)  # a symbolic link stays one
    return FORMATS[name], path, os.path.getsize(path)


def _check_identity(layer: OpenLayer, path: str) -> None:
    """Raises `ViewfsError` unless the file at `path` is the one that is mounted, as it was then."""
    if identity_of(os.stat(path)) != layer.layer.record.lower.identity:
        raise ViewfsError(
            f"{path} is not the file any more that {layer.path} was mounted from",
            remedy="somebody has changed or replaced it: --to FILE makes another one",
        )


def _replace_image(layer: OpenLayer, made: str, path: str, begun_ns: int) -> None:
    """Put the new image in the place of the old one, with the same owner and permissions. Raises OSError."""
    directory, name = map(os.fsencode, os.path.split(path))
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        old = read_entry(fd, name)
        assert old is not None
        now = os.stat(made)
        set_attributes(
            fd, os.path.basename(os.fsencode(made)), old._replace(atime_ns=now.st_atime_ns, mtime_ns=now.st_mtime_ns)
        )
    finally:
        os.close(fd)
    _check_identity(layer, path)  # making it may have taken minutes
    place_durably(made, path, replace=True)
    # The next view that mounts the image finds in it all that the layer has by now.
    with layer.layer.locked():
        record = layer.layer.record
        lower = replace(record.lower, identity=identity_of(os.stat(path)))
        layer.layer.write(replace(record.rebased([b""], time.time_ns()), lower=lower, placed_ns=begun_ns))


def _owners(layer: OpenLayer, form: Format) -> dict[bytes, Owner]:
    """The owners of files where the view does not show them: it has no numbers for the owners in an image."""
    lower = layer.layer.record.lower
    if form.name == "directory" or lower.type not in _FORMAT_OF_TYPE or not lower.source:
        return {}
    try:
        stored = stored_owners(lower.source, lower.type)
    except ViewfsError as error:
        warn(f"all files will be yours: {error}")
        return {}
    return owners_for(layer.view, layer.lower, stored)


def _verify(tree: Tree, form: Format, made: str, owners: dict[bytes, Owner]) -> None:
    """Compare what was made with the tree. Raises `ViewfsError` that says where they differ."""
    if form.name == "directory":
        fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lines = [os.fsdecode(change.path) for change in mismatches(tree, Tree(fd))]
        finally:
            os.close(fd)
    elif form.module is None:
        lines = _said(tree, "tar", "-C", f"/proc/self/fd/{tree.root}", "--numeric-owner", "-df", made)
        if owners:
            lines = [line for line in lines if not line.endswith((": Uid differs", ": Gid differs"))]
    else:
        mount = f"{made.replace(':', chr(92) + ':')}:/.viewfs-image:{form.module}"
        look = [*PYTHON, "viewfs.cow", "compare", str(tree.root), "/.viewfs-image"]
        lines = _said(tree, *PYTHON, "viewfs", "run", "--as-root", "--ids=one", "--mount", mount, "--", *look)
    if form.module is not None and owners:
        found = stored_owners(made, form.module)
        given = {path: stored.owner for path, stored in found.items()}
        lines += [repr(os.fsdecode(path)) + ": owner" for path in owners if given.get(path) != owners[path]]
    if lines:
        raise ViewfsError(f"what was made differs from the tree: {lines[0]}", remedy="is the tree being written?")


def _said(tree: Tree, *command: str) -> list[str]:
    done = run_tool(tree, *command)
    lines = done.stdout.strip().splitlines()
    return lines or ([f"exit status {done.returncode}"] if done.returncode else [])
