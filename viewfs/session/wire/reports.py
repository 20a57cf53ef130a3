"""What a module server says of itself while it starts: what was decided before it shut itself in, and what it found.

The first report (`Decided`) is sent before the server has looked at a byte that somebody else wrote, and says all that
has consequences: which module it is, where it is to be mounted, what it may do. The second (`Found`) comes from a
process that its input may have taken over, and brings a few facts, which are checked. What is not exactly of this form
is refused.
"""

from __future__ import annotations

import re
import stat
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from viewfs.errors import ViewfsError

__all__ = ["MAIN_DEVICE", "Decided", "Found"]

#: Of several devices, the one that is at the place itself.
MAIN_DEVICE = ".main"
_NAMES_MAX = 256
_NAME = re.compile(r"[A-Za-z0-9_+:@-][A-Za-z0-9._+:@-]{0,63}")
_PERMISSIONS = 0o7777


@dataclass(frozen=True)
class Decided:
    """Known before the server looks at its source."""

    #: The module, as a later server of the same mount finds it.
    type: str
    path: str
    #: As the mount table and the log of epochs call it.
    source: str
    uses_view: bool
    #: What `viewfs lsmod` shows; "kernel" where the kernel itself serves the mount.
    confinement: str
    #: It serves devices, each a file by a name of its own.
    has_devices: bool = False
    #: Its code is in the agent's memory: reading it from the view could mean waiting for a server that is dead.
    is_built_in: bool = True
    #: What it shows are superblocks of other mounts, so that its device says nothing about it.
    shows_others: bool = False
    #: It serves its descriptor of /dev/fuse itself (`framework.foreign`).
    speaks_fuse: bool = False
    #: The `path` of a module that answers system calls, without links.
    real_path: str = ""
    #: The system calls that it answers, each with its signature; None for what is mounted.
    calls: list[list[str]] | None = None
    #: Those of them that it can do without, where the view does not ask its session about them.
    dispensable: list[str] = field(default_factory=list)
    #: What the server of such a module is known by, for what it asks of the view itself.
    token: int = 0
    #: st_dev of the source.
    device: int | None = None
    #: Which file the source is (`sources.identity_of`).
    source_identity: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Decided:
        identity = value["source_identity"]
        return cls(**value | {"source_identity": None if identity is None else tuple(identity)})

    @property
    def is_kernel(self) -> bool:
        return self.confinement == "kernel"


@dataclass(frozen=True)
class Found:
    """Known once the server has looked at its source."""

    #: Type and permissions of the root: a directory or a regular file.
    root_mode: int
    writable: bool = False
    #: The file system has no state but its source, so that another server can go on where this one ends.
    resumable: bool = False
    #: For devices: what is appended to the place of each, or `MAIN_DEVICE`; [""] for a single one.
    names: list[str] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, *, has_devices: bool) -> Found:
        """Raises `ViewfsError` for what no honest server says."""
        try:
            if not isinstance(value, dict) or set(value) != {each.name for each in fields(cls)}:
                raise ValueError("other fields than there are")
            found = cls(**value)
            found._check(has_devices)
        except (ValueError, TypeError) as error:
            raise ViewfsError(f"the server says what can't be: {error}") from None
        return found

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.root_mode)

    def _check(self, has_devices: bool) -> None:
        if type(self.root_mode) is not int or self.root_mode & ~_PERMISSIONS not in (stat.S_IFDIR, stat.S_IFREG):
            raise ValueError("a root that is no directory and no file")
        if type(self.writable) is not bool or type(self.resumable) is not bool:
            raise TypeError("neither yes nor no")
        if not has_devices:
            if self.names is not None:
                raise ValueError("devices where there are none")
            return
        names = self.names
        if not isinstance(names, list) or not 0 < len(names) <= _NAMES_MAX or len({*names}) < len(names):
            raise ValueError("no devices, too many, or two of one name")
        if names != [""] and not all(name == MAIN_DEVICE or _NAME.fullmatch(name) for name in names):
            raise ValueError("a device of an impossible name")
