"""What the commands on layers have in common: which are meant, and how they are opened and locked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import click

from viewfs.cli.quick.messages import warn
from viewfs.cli.quick.requests import absolute
from viewfs.cow.compare.changes import Change
from viewfs.cow.compare.filters import EVERYTHING, Filter
from viewfs.errors import ViewfsError
from viewfs.session.layer_access import OpenLayer, OpenLayers, Request, opened_layers
from viewfs.session.layer_settings import OWN_LAYERS

__all__ = ["all_locked", "check_refused", "chosen_layers", "paths_argument", "sizes"]

#: Without a PATH: all of every layer.
paths_argument = click.argument("paths", nargs=-1, metavar="[PATH]…")


@contextmanager
def chosen_layers(
    session: str | None,
    paths: tuple[str, ...],
    states: tuple[str, ...] = (),
    *,
    tidies: bool = False,
    discards: bool = False,
    writes: bool = False,
    only: Filter = EVERYTHING,
    directory: str | None = None,
    reads: bool = False,
) -> Iterator[OpenLayers]:
    """The layers that a command's options and arguments name, open in the block; the user is told what was found."""
    places = [os.path.realpath(path) if session is None else absolute(path) for path in paths]
    if directory is not None:
        session = session or OWN_LAYERS
    request = Request(session, places, states, tidies, discards, writes, only, directory, reads=reads)
    with opened_layers(request) as opened:
        for message in filter(None, opened.messages):
            warn(message)
        yield opened


@contextmanager
def all_locked(layers: list[OpenLayer]) -> Iterator[None]:
    """Inside the block nobody else commits or discards. Raises `ViewfsError`."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.layer.locked())
        yield


def sizes(changes: Iterable[Change]) -> int:
    """How many bytes there are to copy."""
    return sum(max(entry.size for entry in (change.old, change.new) if entry is not None) for change in changes)


def check_refused(refused: list[tuple[str, str]]) -> None:
    """Raises `ViewfsError` if there are paths that could not be restored. `refused`: these, each with the reason."""
    if refused:
        (path, why), others = refused[0], len(refused) - 1
        raise ViewfsError(
            f"{path} is not there as it was: {why}{f' ({others} more are not)' if others else ''}",
            remedy="it is in the next view that begins without these changes",
        )
