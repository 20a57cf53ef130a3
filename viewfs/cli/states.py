"""`viewfs checkpoint`, `rollback`: states of what is copy-on-write."""

from __future__ import annotations

from typing import Any

import click

from viewfs.cli.arguments import session_option
from viewfs.cli.changes import count_line, in_listing
from viewfs.cli.layers import all_locked, check_refused, chosen_layers, paths_argument, sizes
from viewfs.cli.output import json_option, progress_bar
from viewfs.cli.quick.tables import print_json
from viewfs.cow.compare.changes import Change
from viewfs.errors import UsageError
from viewfs.session.layer_access import OpenLayers

__all__ = ["checkpoint", "rollback"]


@click.command()
@session_option
@json_option
@click.argument("name", required=False)
def checkpoint(session: str | None, as_json: bool, name: str | None) -> None:
    """Keep the state of all that is copy-on-write, as NAME. What is done from now on belongs to the next epoch.

    \b
    Examples:
      viewfs checkpoint before-upgrade
      viewfs diff before-upgrade..
      viewfs rollback before-upgrade
    """
    with chosen_layers(session, ()) as opened:
        answer = _keep(opened, name or "", "checkpoint")
    if as_json:
        print_json(**answer)
    else:
        click.echo(f"epoch {answer['epoch']} is kept as {answer['name']}; this is epoch {answer['current']}")


def _keep(opened: OpenLayers, name: str, operation: str) -> dict[str, Any]:
    from viewfs.cow.layer.states import keep_state

    if opened.session is None:
        raise UsageError("the state of a view can be kept while it is there only", remedy="open it with --name")
    if not name:
        there = opened.session.request("layers")
        taken = {state["name"] for layer in there["layers"] for state in layer["states"]}
        names = (f"epoch-{there['epoch']}{suffix}" for suffix in ("", *(f".{number}" for number in range(2, 1000))))
        name = next(one for one in names if one not in taken)
    with all_locked(opened.layers), progress_bar("keeping", None) as told:
        directory = keep_state([layer.layer for layer in opened.layers], name, told)
    # Not under the locks: the session writes the state down itself.
    answer = opened.session.request("keep", name=name, directory=directory, operation=operation)
    return {"name": name} | answer


@click.command()
@session_option
@json_option
@click.argument("epoch")
@paths_argument
def rollback(session: str | None, as_json: bool, epoch: str, paths: tuple[str, ...]) -> None:
    """Make the state that was kept of EPOCH (a number or a name) the newest, under PATH or everywhere.

    The state so far is kept as well, as an epoch of its own.

    \b
    Example:
      viewfs rollback before-upgrade
    """
    from viewfs.cow.restore import restore

    total: list[Change] = []
    refused: list[tuple[str, str]] = []
    with chosen_layers(session, paths, (epoch,), writes=True) as opened:
        answer = _keep(opened, "", "rollback")
        with all_locked(opened.layers):
            for layer in opened.layers:
                (state,) = layer.states
                changes = list(layer.changes_between(state, layer.now))
                with progress_bar("restoring", sizes(changes)) as told:
                    undone, left = restore(layer.layer, changes, state.tree, layer.view, layer.selection, told)
                total += undone
                refused += [(layer.shown(change.path), why) for change, why in left]
                layer.layer.write(layer.layer.record.with_an_older_state())
    if as_json:
        print_json(**answer, undone=len(total))
    else:
        counts = count_line([change for change in total if in_listing(change)])
        click.echo(
            f"epoch {answer['epoch']} is kept; this is epoch {answer['current']}, as {epoch} was ({counts}: undone)"
        )
    check_refused(refused)
