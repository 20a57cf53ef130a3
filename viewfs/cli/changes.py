"""Showing what differs between two states of a tree: lines for people with the changes of text in them, or JSON."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

import click

from viewfs.cli.quick.messages import printable
from viewfs.cow.compare.changes import Change, Kind
from viewfs.cow.compare.trees import Entry, Tree, split

__all__ = ["count_line", "shown_change", "to_json", "unified", "unified_hunks"]

_COLOURS = {Kind.ADDED: "green", Kind.CHANGED: "yellow", Kind.DELETED: "red", Kind.RENAMED: "cyan"}
#: Differences of text are shown up to so many bytes of a changed file, so many of one that is new or gone, and so many
#: lines from the first difference to the last.
_CHANGED_LIMIT = 8 << 20
_WHOLE_LIMIT = 512 << 10
_LINES_LIMIT = 20_000
#: Lines that are shown before and after what differs.
_CONTEXT = 3
_LOOKED_AT = 8000
_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
}  # fmt: skip


def size(number: int) -> str:
    """A length for people."""
    if number < 1024:
        return f"{number} bytes"
    power = min((number.bit_length() - 1) // 10, 4)
    return f"{number / (1 << 10 * power):.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def _permissions(entry: Entry) -> str:
    return f"{stat.S_IMODE(entry.mode):o}"


def shown_change(change: Change, path: str, source: str | None) -> str:
    """One line: what has become of `path` (for one that was renamed, `source`)."""
    word = click.style(f"{change.kind:<8}", fg=_COLOURS[change.kind])
    name = printable(path) if source is None else f"{printable(source)} → {printable(path)}"
    entry = change.new or change.old
    directory = "/" if entry is not None and entry.is_directory else ""
    return f"{word} {name}{directory}" + "".join(f"  {detail}" for detail in _details(change))


def _details(change: Change) -> Iterator[str]:
    old, new = change.old, change.new
    if old is None or new is None:
        entry = new or old
        if entry is not None and entry.is_file:
            yield size(entry.size)
        elif entry is not None and stat.S_ISLNK(entry.mode):
            yield f"→ {printable(os.fsdecode(entry.target))}"
        elif entry is not None and not entry.is_directory:
            yield _KINDS[entry.kind]
        return
    if "type" in change.aspects:
        yield f"{_KINDS[old.kind]} → {_KINDS[new.kind]}"
    if "content" in change.aspects:
        yield f"{size(old.size)} → {size(new.size)}" if old.size != new.size else f"{size(new.size)}, others"
    if "links" in change.aspects:
        names = "its other name keeps" if old.nlink == 2 else f"its {old.nlink - 1} other names keep"
        yield f"{names} what was there"
    if "target" in change.aspects:
        yield f"{printable(os.fsdecode(old.target))} → {printable(os.fsdecode(new.target))}"
    if "mode" in change.aspects:
        yield f"mode {_permissions(old)} → {_permissions(new)}"
    if "owner" in change.aspects:
        yield f"owner {old.uid}:{old.gid} → {new.uid}:{new.gid}"
    if "xattrs" in change.aspects:
        yield from _xattr_details(dict(old.xattrs), dict(new.xattrs))
    if change.aspects == {"times"}:
        yield "times"


def _xattr_details(old: dict[str, bytes], new: dict[str, bytes]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            sign = "+" if name not in old else "-" if name not in new else "~"
            yield f"{sign}{printable(name)}"


def unified(change: Change, old: Tree, new: Tree, shown: str) -> Iterator[str]:
    """The lines of a unified diff, or none where it isn't text or nothing of the content differs."""
    entries = [entry for entry in (change.old, change.new) if entry is not None]
    if not any(entry.is_file for entry in entries) or (change.old and change.new and "content" not in change.aspects):
        return
    limit = _WHOLE_LIMIT if change.old is None or change.new is None else _CHANGED_LIMIT
    before = _lines(old, change.old, change.source or change.path, limit)
    after = _lines(new, change.new, change.path, limit)
    if before is None or after is None or before == after:
        return
    hunks = unified_hunks(before, after)
    if hunks is None:
        return
    name = printable(shown)
    old_name, new_name = ("/dev/null" if entry is None else name for entry in (change.old, change.new))
    for line in (f"--- {old_name}", f"+++ {new_name}", *hunks):
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        text = printable(line)
        yield click.style(text, fg=colour, bold=line.startswith(("+++", "---"))) if colour else text


def unified_hunks(before: list[str], after: list[str]) -> list[str] | None:
    """The hunks of a unified diff; None if too many lines differ.

    (difflib alone would go through all that is the same before the first change and after the last.)
    """
    shorter = min(len(before), len(after))
    same = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    left = shorter - same
    tail = next((i for i in range(left) if before[-1 - i] != after[-1 - i]), left)
    start, rest = max(same - _CONTEXT, 0), max(tail - _CONTEXT, 0)
    old, new = before[start : len(before) - rest], after[start : len(after) - rest]
    if max(len(old), len(new)) > _LINES_LIMIT:
        return None
    lines: list[str] = []
    for group in difflib.SequenceMatcher(None, old, new).get_grouped_opcodes(_CONTEXT):
        old_range = _range(start + group[0][1], start + group[-1][2])
        new_range = _range(start + group[0][3], start + group[-1][4])
        lines.append(f"@@ -{old_range} +{new_range} @@")
        for tag, old_begin, old_end, new_begin, new_end in group:
            if tag == "equal":
                lines += [" " + line for line in old[old_begin:old_end]]
            else:
                lines += ["-" + line for line in old[old_begin:old_end]]
                lines += ["+" + line for line in new[new_begin:new_end]]
    return lines


def _range(begin: int, end: int) -> str:
    """Lines as a unified diff counts them: from 1, and from 0 where there are none."""
    length = end - begin
    if length == 1:
        return str(begin + 1)
    return f"{begin + 1 if length else begin},{length}"


def _lines(tree: Tree, entry: Entry | None, path: bytes, limit: int) -> list[str] | None:
    """The lines of a file; [] for anything else; None for a file that is no text, is too large, or can't be read."""
    if entry is None or not entry.is_file or not entry.size:
        return []
    if entry.size > limit:
        return None
    try:
        with open(tree.open(path), "rb") as file:
            data = file.read(limit + 1)
    except PermissionError:
        return None
    if b"\0" in data[:_LOOKED_AT]:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    elif lines:
        lines[-1] += " (no newline at the end)"
    return lines


def count_line(changes: Iterable[Change]) -> str:
    """How many of each kind."""
    counts: dict[Kind, int] = {}
    for change in changes:
        counts[change.kind] = counts.get(change.kind, 0) + 1
    return ", ".join(f"{counts[kind]} {kind}" for kind in Kind if kind in counts) or "nothing has changed"


def to_json(change: Change, path: str, source: str | None, names: list[str]) -> dict[str, Any]:
    """The change as scripts get it; `names` are other names of the same file among the changes."""
    return {
        "path": path,
        "kind": str(change.kind),
        "from": source,
        "aspects": sorted(change.aspects),
        "links": names,
        "old": _entry_json(change.old),
        "new": _entry_json(change.new),
    }


def _entry_json(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {
        "type": _KINDS[entry.kind],
        "mode": _permissions(entry),
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "target": os.fsdecode(entry.target) if entry.target else None,
        "xattrs": {name: value.hex() for name, value in entry.xattrs},
    }


def in_listing(change: Change) -> bool:
    """Is the change to be listed? One of a directory's times alone is not: they follow from what was done in it."""
    return not (change.only_times and change.is_directory)


def directory_of(path: bytes) -> bytes:
    """The directory that `path` is in."""
    return split(path)[0]
