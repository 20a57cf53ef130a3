"""/proc/PID/mountinfo, parsed (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MountEntry", "mount_points", "mount_table", "parse_mountinfo"]

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class MountEntry:
    """One line of the table. Paths are as the process sees them, undecodable bytes as surrogates."""

    mount_id: int
    parent_id: int
    #: "major:minor", which tells one superblock from another.
    device: str
    root: str
    mount_point: str
    options: str
    fs_type: str
    source: str
    super_options: str


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """The table in the kernel's order. Lines that don't have the form are passed over."""
    # Not splitlines: the kernel escapes a newline in a name, but not a carriage return.
    return [entry for line in text.split(b"\n") if (entry := _parse_line(line)) is not None]


def mount_table() -> list[MountEntry]:
    """The table of this process's mount namespace. Raises OSError."""
    return parse_mountinfo(_own_table())


def _own_table() -> bytes:
    with open("/proc/self/mountinfo", "rb") as file:
        return file.read()


def mount_points(text: bytes | None = None) -> list[str]:
    """The mount points in a table, or in this process's own; cheaper than parsing all of it. Raises OSError."""
    text = _own_table() if text is None else text
    return [_path(fields[4]) for line in text.split(b"\n") if len(fields := line.split(b" ", 5)) > 5]


def _parse_line(line: bytes) -> MountEntry | None:
    fields = line.split(b" ")
    try:
        separator = fields.index(b"-", 6)
        fs_type, source = fields[separator + 1 : separator + 3]
        super_options = fields[separator + 3] if len(fields) > separator + 3 else b""
        return MountEntry(
            int(fields[0]),
            int(fields[1]),
            fields[2].decode("ascii"),
            _path(fields[3]),
            _path(fields[4]),
            _path(fields[5]),
            _path(fs_type),
            _path(source),
            _path(super_options),
        )
    except ValueError:
        return None


def _path(field: bytes) -> str:
    plain = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field) if b"\\" in field else field
    return plain.decode("utf-8", "surrogateescape")
