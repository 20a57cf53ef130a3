"""`viewfs cow`, `diff`, `commit`, `discard`, `forget`: changing anything, and what becomes of the changes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import click

from viewfs.cli.arguments import complete_ended, cow_backend_option, filter_options, layer_option, session_option
from viewfs.cli.changes import count_line, in_listing, shown_change, to_json, unified
from viewfs.cli.cow_images import write_tree
from viewfs.cli.layers import all_locked, check_refused, chosen_layers, paths_argument, sizes
from viewfs.cli.output import json_option, progress_bar
from viewfs.cli.quick.messages import printable, tell, warn
from viewfs.cli.quick.requests import absolute
from viewfs.cli.quick.tables import print_json
from viewfs.cow.commit.commit import Commit
from viewfs.cow.commit.several import LayerCommit, Report, at_odds, check_writable
from viewfs.cow.compare.changes import Change, Kind, with_renames
from viewfs.cow.compare.filters import Filter
from viewfs.cow.compare.trees import Tree
from viewfs.errors import UsageError, ViewfsError
from viewfs.session.client import find_session
from viewfs.session.layer_access import OpenLayer
from viewfs.session.layer_settings import OWN_LAYERS
from viewfs.session.left_layers import forget as left_layers_of

__all__ = ["commit", "cow", "diff", "discard", "forget"]

#: How many paths that could not be committed are named.
_FAILURES = 10
_RANGE = re.compile(r"([^/\s]+)?\.\.([^/\s]+)?")


@click.command()
@session_option
@cow_backend_option("--backend")
@json_option
@click.argument("path")
def cow(session: str | None, cow_backend: str | None, as_json: bool, path: str) -> None:
    """Make PATH, a directory, a mount or /, copy-on-write: everything can be written, and nothing of it is changed.

    \b
    Examples:
      viewfs cow ~/project
      viewfs diff
      viewfs commit
    """
    with closing(find_session(session)) as found:
        result = found.request("cow", path=absolute(path), cwd=os.getcwd(), backend=cow_backend)
    for message in result.pop("messages"):
        warn(message)
    if as_json:
        print_json(**result)
    else:
        tell(f"epoch {result['epoch']}: {result['path']} is copy-on-write")


@click.command()
@session_option
@layer_option
@filter_options
@click.option("--stat", is_flag=True, help="A line for each path, without the changes of text, and how many.")
@click.option("--name-only", is_flag=True, help="Nothing but the paths.")
@json_option
@click.argument("what", nargs=-1, metavar="[A..B] [PATH]…")
def diff(
    session: str | None,
    layer_directory: str | None,
    exclude: tuple[str, ...],
    include: tuple[str, ...],
    stat: bool,
    name_only: bool,
    as_json: bool,
    what: tuple[str, ...],
) -> None:
    """What was changed under PATH, or anywhere: added, changed, deleted, renamed, and how text differs.

    A..B compares two states that `viewfs checkpoint` kept, by epoch or name; without B, a state and now.

    \b
    Examples:
      viewfs diff
      viewfs diff --stat ~/project
      viewfs diff --exclude '*.o' --exclude target
      viewfs diff before..after
    """
    between = None
    if what and (match := _RANGE.fullmatch(what[0])) and (match[1] or match[2]) and not os.path.lexists(what[0]):
        between, what = (match[1], match[2]), what[1:]
    states = tuple(one for one in between or () if one)
    listed: list[dict[str, Any]] = []
    total: list[Change] = []
    only = Filter.of(exclude, include)
    with chosen_layers(session, what, states, only=only, directory=layer_directory, reads=True) as opened:
        for layer in opened.layers:
            old, new, found = _compared(layer, between)
            changes = [change for change in with_renames(found, old, new) if in_listing(change)]
            total += changes
            if as_json:
                listed += _listed(layer, changes)
                continue
            for change in changes:
                _print_change(layer, change, old, new, name_only=name_only, stat=stat)
    if as_json:
        print_json(changes=listed)
    elif stat:
        click.echo(count_line(total))


def _compared(layer: OpenLayer, between: tuple[str | None, str | None] | None) -> tuple[Tree, Tree, Iterator[Change]]:
    """The two trees and what differs between them."""
    if between is None:
        return layer.lower, layer.view, layer.changes()
    states = list(layer.states)
    if between[1] is None:
        states.append(layer.now)
    if between[0] is None:
        states.insert(0, layer.before)
    old, new = states
    return old.tree, new.tree, layer.changes_between(old, new)


def _source(layer: OpenLayer, change: Change) -> str | None:
    return None if change.source is None else layer.shown(change.source)


def _listed(layer: OpenLayer, changes: list[Change]) -> list[dict[str, Any]]:
    names: dict[tuple[int, int], list[str]] = {}
    for change in changes:
        if change.new is not None and change.new.nlink > 1 and not change.new.is_directory:
            names.setdefault(change.new.identity, []).append(layer.shown(change.path))
    rows = []
    for change in changes:
        path = layer.shown(change.path)
        same = names.get(change.new.identity, []) if change.new is not None else []
        rows.append(to_json(change, path, _source(layer, change), [name for name in same if name != path]))
    return rows


def _print_change(layer: OpenLayer, change: Change, old: Tree, new: Tree, *, name_only: bool, stat: bool) -> None:
    path = layer.shown(change.path)
    if name_only:
        click.echo(printable(path))
        return
    click.echo(shown_change(change, path, _source(layer, change)))
    if not stat and change.kind is not Kind.RENAMED:
        for line in unified(change, old, new, path):
            click.echo(line)


@click.command()
@session_option
@layer_option
@filter_options
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--force", is_flag=True, help="Also where the file outside was changed too: what is there is lost.")
@click.option("--keep-theirs", is_flag=True, help="The same, but keep what is there as NAME.viewfs-theirs.")
@click.option("--to", "target", metavar="FILE", help="Write the tree at PATH, changes and all, as a new FILE.")
@click.option("--in-place", is_flag=True, help="The same, over the image that PATH was mounted from.")
@click.option("--progress/--no-progress", default=True, help="A bar on a terminal, where it takes long.")
@click.option("--format", "kind", type=click.Choice(["ext4", "squashfs", "tar", "directory"]), help="What FILE is.")
@json_option
@paths_argument
def commit(
    session: str | None,
    layer_directory: str | None,
    exclude: tuple[str, ...],
    include: tuple[str, ...],
    dry_run: bool,
    force: bool,
    keep_theirs: bool,
    target: str | None,
    in_place: bool,
    kind: str | None,
    progress: bool,
    as_json: bool,
    paths: tuple[str, ...],
) -> None:
    """Make the changes under PATH, or all of them, where they would have been made without the view.

    Nothing is done if what is there was changed as well. A commit that is interrupted is finished or undone by the next
    command that looks at the changes. An image can't be written: with --to or --in-place a new one is made of the whole
    tree, mounted, compared, and then given its name.

    \b
    Examples:
      viewfs commit --dry-run
      viewfs commit ~/project/src
      viewfs commit --to new.squashfs /mnt
    """
    if target is not None or in_place:
        if (target is not None and in_place) or dry_run or force or keep_theirs or exclude or include:
            raise UsageError("--to and --in-place go with no other way to commit")
        write_tree(session, paths, target, kind, as_json, layer_directory)
        return

    done: list[dict[str, Any]] = []
    report = Report()
    all_changes: list[Change] = []
    only = Filter.of(exclude, include)
    chosen = chosen_layers(session, paths, tidies=True, writes=True, only=only, directory=layer_directory)
    with chosen as opened, all_locked(opened.layers):
        commits = [_commit_of(layer, force=force, keep_theirs=keep_theirs and not dry_run) for layer in opened.layers]
        conflicts = list(at_odds(commits))
        if conflicts and not (force or keep_theirs):
            _refuse(conflicts)
        for layer, one in zip(opened.layers, commits, strict=True):
            if dry_run:
                changes = list(one.commit.told)
            else:
                with progress_bar("staging", sizes(one.commit.plan.changes), shown=progress) as told:
                    changes = report.carry_out(one, told)
            changes = [change for change in changes if in_listing(change)]
            all_changes += changes
            done += _listed(layer, changes)
            if not as_json and dry_run:
                for change in changes:
                    click.echo(shown_change(change, layer.shown(change.path), _source(layer, change)))
    if as_json:
        print_json(changes=done, failed=report.failed, kept=report.kept)
    elif not all_changes and not report.failed:
        tell("nothing has changed")
    elif all_changes:
        click.echo(f"{'would commit' if dry_run else 'committed'}: {count_line(all_changes)}")
    _say_what_was_kept(report)
    if report.failed:
        for line in report.failed[1:_FAILURES]:
            warn(f"not committed: {line}")
        if len(report.failed) > _FAILURES:
            warn(f"not committed: {len(report.failed) - _FAILURES} more (--json has them all)")
        raise ViewfsError(f"not committed: {report.failed[0]}", remedy="it is still in the view; see `viewfs diff`")


def _commit_of(layer: OpenLayer, *, force: bool, keep_theirs: bool) -> LayerCommit:
    check_writable(layer.layer, layer.lower)
    trees = (layer.layer, layer.lower, layer.view, layer.upper, layer.selection)
    return LayerCommit(Commit(*trees, keep_theirs=keep_theirs, force=force, live=layer.live), layer.shown)


def _say_what_was_kept(report: Report) -> None:
    for row in report.kept[:_FAILURES]:
        warn(f"{row['path']} was changed outside meanwhile, and that is kept as {row['as']}")
    if len(report.kept) > _FAILURES:
        warn(f"{len(report.kept) - _FAILURES} more are kept so (--json has them all)")
    if report.taken:
        others = f" and {len(report.taken) - 1} others belong" if len(report.taken) > 1 else " belongs"
        warn(f"{report.taken[0]}{others} to you now; the owner or group before has no number in the view")


def _refuse(at_odds: list[tuple[str, str]]) -> None:
    for path, why in at_odds[1:_FAILURES]:
        warn(f"{path}: {why}")
    if len(at_odds) > _FAILURES:
        warn(f"and {len(at_odds) - _FAILURES} more")
    raise ViewfsError(
        f"nothing is committed: {at_odds[0][0]}: {at_odds[0][1]}",
        remedy="--force overwrites what is there, --keep-theirs keeps it beside",
    )


@click.command()
@session_option
@layer_option
@json_option
@paths_argument
def discard(session: str | None, layer_directory: str | None, as_json: bool, paths: tuple[str, ...]) -> None:
    """Throw away the changes under PATH, or all of them: the view shows again what was there before.

    \b
    Example:
      viewfs discard ~/project/build
    """
    from viewfs.cow.restore import discard as discard_in

    done: list[dict[str, Any]] = []
    total: list[Change] = []
    refused: list[tuple[str, str]] = []
    with (
        chosen_layers(session, paths, tidies=True, discards=True, writes=True, directory=layer_directory) as opened,
        all_locked(opened.layers),
    ):
        for layer in opened.layers:
            undone = list(layer.all_differences())
            with progress_bar("restoring", sizes(undone)) as told:
                undone, left, unwritten = discard_in(
                    layer.layer, undone, layer.lower, layer.view, layer.upper, layer.selection, told, live=layer.live
                )
            refused += [(layer.shown(change.path), why) for change, why in left]
            if unwritten is not None:
                reason = (unwritten.strerror or "").lower()
                warn(f"what was discarded in {layer.path} can't be written down ({reason}); it is gone all the same")
            undone = [change for change in undone if in_listing(change)]
            total += undone
            done += _listed(layer, undone)
    if as_json:
        print_json(changes=done)
    else:
        click.echo(f"discarded: {count_line(total)}")
    check_refused(refused)


@click.command()
@layer_option
@click.argument("names", nargs=-1, metavar="NAME…", shell_complete=complete_ended)
def forget(layer_directory: str | None, names: tuple[str, ...]) -> None:
    """Throw away all that sessions NAME, which have ended, have left: changes, and states that were kept.

    \b
    Example:
      viewfs forget work
    """
    if not names and layer_directory is None:
        raise UsageError("no session is named", remedy="`viewfs ps` lists those that have left changes")
    for name in names or (OWN_LAYERS,):
        paths = left_layers_of(name, layer_directory)
        click.echo(f"forgot {name}: what was changed in {', '.join(map(printable, paths)) or 'nothing'}")
