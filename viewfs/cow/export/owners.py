"""The owners of the files of a new image, where the view does not show them.

A view maps only the ids of its user, so that files of others in an image are shown as the user's. A new image made of
that view is to have the true owners again: those that the old image has at the same path, unless the owner was changed
in the view. They are read from the old image, which is mounted in a view so that it tells them (`OWNER_XATTR`).
mksquashfs(1) can be told of them; an ext image gets them afterwards, by debugfs(8), and a tar archive is rewritten as
it passes through.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

from viewfs.cow.compare.trees import Tree
from viewfs.errors import ViewfsError
from viewfs.linux.process import PYTHON
from viewfs.modules.api import OWNER_XATTR

__all__ = [
    "Owner",
    "Stored",
    "owners_for",
    "print_owners",
    "rewrite_archive",
    "set_ext_owners",
    "squashfs_definitions",
    "stored_owners",
]

_RECORD = 512
_USTAR_LIMIT = 0o7777777


class Owner(NamedTuple):
    """User and group, as numbers."""

    uid: int
    gid: int


class Stored(NamedTuple):
    """What an image has of a path."""

    owner: Owner
    inode: int


def print_owners(directory: int, out: IO[bytes]) -> None:
    """Write, of all that is in an image that tells owners, the path and “uid:gid:inode”, each ended by a zero byte."""
    tree = Tree(directory)
    for path, entry in tree.walk(b""):
        told = os.getxattr(b"/proc/self/fd/%d/%s" % (directory, path or b"."), OWNER_XATTR, follow_symlinks=False)
        out.write(b"%s\0%s:%d\0" % (path, told, entry.identity[1]))


def stored_owners(image: str, module: str) -> dict[bytes, Stored]:
    """The owners and inode numbers of the files in an image that `module` mounts, by path. Raises `ViewfsError`."""
    source = image.replace("\\", "\\\\").replace(":", "\\:")
    place = "/.viewfs-image"
    view = ["run", "--mount", f"{source}:{place}:{module},owner=tell", "--"]
    look = [*PYTHON, "viewfs.cow", "owners", place]
    done = subprocess.run([*PYTHON, "viewfs", *view, *look], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ViewfsError(f"cannot read whose the files in {image} are: {said[0] if said else done.returncode}")
    fields = done.stdout.split(b"\0")
    found = {}
    for path, told in zip(fields[::2], fields[1::2], strict=False):
        uid, gid, inode = map(int, told.split(b":"))
        found[path] = Stored(Owner(uid, gid), inode)
    return found


def owners_for(tree: Tree, lower: Tree, stored: Mapping[bytes, Stored]) -> dict[bytes, Owner]:
    """The owners that files of `tree` are to have where it does not show them; `tree` shows `lower` with changes."""
    found: dict[bytes, Owner] = {}
    for path, entry in tree.walk(b""):
        was, before = stored.get(path), lower.entry(path)
        if was is None or before is None or before.kind != entry.kind:
            continue
        shown = Owner(entry.uid, entry.gid)
        owner = Owner(
            was.owner.uid if entry.uid == before.uid else entry.uid,
            was.owner.gid if entry.gid == before.gid else entry.gid,
        )
        if owner != shown:
            found[path] = owner
    return found


def set_ext_owners(image: str, owners: Mapping[bytes, Owner]) -> None:
    """Give files of an ext image that is mounted nowhere their owners. Raises `ViewfsError`."""
    there = stored_owners(image, "ext")
    commands = []
    # (A file that was removed while the image was made is not in it; the comparison reports it.)
    for inode, owner in {there[path].inode: owner for path, owner in owners.items() if path in there}.items():
        commands += [f"sif <{inode}> uid {owner.uid}", f"sif <{inode}> gid {owner.gid}"]
    done = subprocess.run(
        ["debugfs", "-w", "-f", "/dev/stdin", image],
        input="\n".join(commands) + "\n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("debugfs ")]
    if done.returncode or errors:
        raise ViewfsError(f"debugfs failed: {errors[0] if errors else done.returncode}")


def squashfs_definitions(tree: Tree, owners: Mapping[bytes, Owner]) -> bytes:
    """The definitions that tell mksquashfs(1) the owners (-pf); the root is not among them.

    A name with a newline in it can't be told in this way.
    """
    lines = []
    for path, owner in owners.items():
        entry = tree.entry(path)
        if path and entry is not None and b"\n" not in path:
            quoted = re.sub(rb'([\s"\\#])', rb"\\\1", path)
            lines.append(b"%s m %o %d %d\n" % (quoted, entry.mode & 0o7777, owner.uid, owner.gid))
    return b"".join(lines)


def rewrite_archive(source: IO[bytes], target: IO[bytes], owners: Mapping[bytes, Owner]) -> None:
    """Copy a tar archive as GNU tar makes it (--format=pax), with other owners for some of its paths.

    (The format: POSIX.1-2017, pax, “pax Interchange Format” and “ustar Interchange Format”.) Raises `ViewfsError`.
    """
    extended: list[bytes] = []
    records: dict[bytes, bytes] = {}
    while header := source.read(_RECORD):
        if len(header) != _RECORD:
            raise ViewfsError("tar ended in the middle of a header")
        size = _number(header[124:136])
        if header[156:157] == b"x":
            body = _read(source, _padded(size))
            records = dict(_pax_records(body[:size]))
            extended = [header, body]
            continue
        content = _padded(int(records.get(b"size", size)))
        if header != bytes(_RECORD):
            name = records.get(b"GNU.sparse.name", records.get(b"path", _ustar_name(header)))
            owner = owners.get(name.removeprefix(b"./").strip(b"/"))
            if owner is not None:
                header, extended = _with_owner(header, extended, owner)
        for piece in (*extended, header):
            target.write(piece)
        extended, records = [], {}
        while content:
            piece = _read(source, min(content, 1 << 20))
            target.write(piece)
            content -= len(piece)


def _with_owner(header: bytes, extended: list[bytes], owner: Owner) -> tuple[bytes, list[bytes]]:
    """A header with another owner, and the extended header that goes before it."""
    if max(owner) > _USTAR_LIMIT or (extended and b"id=" in extended[1]):
        records = dict(_pax_records(extended[1][: _number(extended[0][124:136])])) if extended else {}
        records |= {b"uid": b"%d" % owner.uid, b"gid": b"%d" % owner.gid}
        body = b"".join(_pax_record(key, value) for key, value in records.items())
        first = extended[0] if extended else _extended_header()
        first = _with_checksum(first[:124] + b"%011o\0" % len(body) + first[136:])
        extended = [first, body + bytes(-len(body) % _RECORD)]
    ids = b"%07o\0%07o\0" % (min(owner.uid, _USTAR_LIMIT), min(owner.gid, _USTAR_LIMIT))
    return _with_checksum(header[:108] + ids + header[124:265] + bytes(64) + header[329:]), extended


def _extended_header() -> bytes:
    fields = b"./PaxHeaders/owner".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" * 2
    return (fields + b" " * 8 + b"x" + bytes(100) + b"ustar\00000").ljust(_RECORD, b"\0")


def _with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def _ustar_name(header: bytes) -> bytes:
    name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base-256, as GNU tar writes what is too long
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    return int(field.strip(b"\0 ") or b"0", 8)


def _pax_records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    while body:
        digits, _, _rest = body.partition(b" ")
        length = int(digits)
        key, _, value = body[len(digits) + 1 : length - 1].partition(b"=")
        yield key, value
        body = body[length:]


def _pax_record(key: bytes, value: bytes) -> bytes:
    """“length key=value”, where the length counts its own digits."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return b"%d%s" % (length, rest)


def _padded(size: int) -> int:
    return -(-size // _RECORD) * _RECORD


def _read(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise ViewfsError("tar ended in the middle of a file")
    return data
