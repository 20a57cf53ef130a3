"""The journal of a commit: what is going to be done, so that a commit which was interrupted can be finished or undone.

It is a file of the layer, one JSON object a line. First come the steps, before any of them is begun; temporary names
are in them, so that what was staged can be found. Once all that is to be installed lies beside its place and is on the
disk, a line is added that says so: with it an interrupted commit is finished, without it undone. The file is removed
when all is done.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from viewfs.cow.layer.layers import JOURNAL, write_whole
from viewfs.errors import ViewfsError

__all__ = ["Journal", "Moments", "Operation", "Planned", "Staged", "Step", "Written"]

_SCHEMA = 4


class Operation(StrEnum):
    """What a step does; each can be done twice."""

    #: Rename what lies under the temporary name to its own name, in the place of what has that now.
    INSTALL = "install"
    REMOVE = "remove"
    #: Mode, owner, attributes and times.
    ATTRIBUTES = "attributes"
    #: The times of a directory in which something was done.
    TIMES = "times"
    #: Does nothing: a directory that was changed outside too keeps its attributes, whatever is done in it.
    LEAVE = "leave"


@dataclass(frozen=True)
class Planned:
    """What a step replaces or removes, as it was when the commit was planned. Anything else that is there is kept."""

    inode: int
    #: The type bits of the mode.
    kind: int
    size: int
    mtime_ns: int
    #: 0 where the change time says nothing: all names of a file share it, and the commit removes some of them.
    ctime_ns: int
    #: Of a directory: what `applying.fingerprint` makes of all that is in it.
    fingerprint: str = ""


@dataclass(frozen=True)
class Step:
    """One change of the lower tree."""

    operation: Operation
    path: bytes
    #: The temporary name of what is installed; what is replaced or removed is called that plus `.old` for a moment.
    temporary: bytes = b""
    #: What was there; None where nothing was.
    planned: Planned | None = None
    #: The name under which to keep what is replaced or removed; b"" if it need not be kept.
    theirs: bytes = b""
    #: For ATTRIBUTES and TIMES: the new attributes, and the old ones, as `copying.encode_attributes` has them.
    attributes: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "path": os.fsdecode(self.path),
            "temporary": os.fsdecode(self.temporary),
            "planned": None if self.planned is None else asdict(self.planned),
            "theirs": os.fsdecode(self.theirs),
            "attributes": self.attributes,
            "before": self.before,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Step:
        return cls(
            Operation(value["operation"]),
            os.fsencode(value["path"]),
            os.fsencode(value["temporary"]),
            None if value["planned"] is None else Planned(**value["planned"]),
            os.fsencode(value["theirs"]),
            value["attributes"],
            value["before"],
        )


class Staged(NamedTuple):
    """What was staged under a temporary name. The installed file is the same, unless somebody has changed it."""

    inode: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Staged:
        # The size of a directory is up to the file system.
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        return cls(status.st_ino, status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns)


@dataclass(frozen=True)
class Moments:
    """When the lower tree was looked at, by the clock of its change times: later changes are somebody else's."""

    planned_ns: int
    #: Mode, owner and group of the directories in which something is done and which nobody else has changed since the
    #: time when the layer was begun.
    untouched: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    #: When all was staged; 0 before that.
    staged_ns: int = 0
    #: Files that gain or lose names, or get other attributes, and that nobody else has changed either, as they are
    #: afterwards: all their names share one change time.
    linked: tuple[Staged, ...] = ()


class Written(NamedTuple):
    """What the journal of an interrupted commit says."""

    paths: list[bytes]
    steps: list[Step]
    #: What was staged, by temporary name; None if not all was.
    staged: dict[bytes, Staged] | None
    moments: Moments


class Journal:
    """The journal of the layer in the open directory `layer`."""

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def begin(self, paths: Sequence[bytes], steps: Sequence[Step], moments: Moments) -> None:
        """Write down what will be done to make `paths` what they are in the view. Raises OSError."""
        head: dict[str, Any] = {"schema": _SCHEMA, "paths": [os.fsdecode(path) for path in paths], "steps": len(steps)}
        head["planned_ns"] = moments.planned_ns
        head["untouched"] = {os.fsdecode(path): list(values) for path, values in moments.untouched.items()}
        head["linked"] = [list(one) for one in moments.linked]
        lines = [json.dumps(line) for line in (head, *(step.to_json() for step in steps))]
        write_whole(self._layer, JOURNAL, "\n".join(lines) + "\n")

    def staged(self, staged: Mapping[bytes, Staged], staged_ns: int) -> None:
        """Note that all that is to be installed is there: from here on there is no way back. Raises OSError.

        `staged` tells, by temporary name, what was staged from what it replaces.
        """
        line = {"staged": {os.fsdecode(name): list(one) for name, one in staged.items()}, "time_ns": staged_ns}
        fd = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, dir_fd=self._layer)
        with open(fd, "w", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Written | None:
        """The journal of an interrupted commit, or None. Raises `ViewfsError` for a journal that can't be read."""
        try:
            fd = os.open(JOURNAL, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._layer)
        except FileNotFoundError:
            return None
        try:
            with open(fd, encoding="ascii") as file:
                lines = file.read().split("\n")
            head = json.loads(lines[0])
            if head["schema"] != _SCHEMA:
                raise ValueError(f"it is of another version of viewfs (schema {head['schema']})")
            steps = [Step.from_json(json.loads(line)) for line in lines[1 : 1 + head["steps"]]]
            if len(steps) != head["steps"]:
                raise ValueError("it is not whole")
            paths = [os.fsencode(path) for path in head["paths"]]
            staged, staged_ns = _parse_staged(lines[1 + len(steps)] if len(lines) > 2 + len(steps) else "")
            untouched = {os.fsencode(path): (int(a), int(b), int(c)) for path, (a, b, c) in head["untouched"].items()}
            linked = tuple(Staged(*map(int, one)) for one in head["linked"])
            moments = Moments(int(head["planned_ns"]), untouched, staged_ns, linked)
            if b"\0" in b"".join([*paths, *(step.path + step.temporary + step.theirs for step in steps)]):
                raise ValueError("a path with a zero byte is in it")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise ViewfsError(f"the journal of an interrupted commit can't be read: {error}") from error
        return Written(paths, steps, staged, moments)

    def end(self) -> None:
        """Remove the journal: all is done, or undone. Raises OSError."""
        os.unlink(JOURNAL, dir_fd=self._layer)
        os.fsync(self._layer)


def _parse_staged(line: str) -> tuple[dict[bytes, Staged] | None, int]:
    """What was staged, and when; None for a line that was being written when the power failed."""
    try:
        value = json.loads(line)
        staged, time_ns = value["staged"], int(value["time_ns"])
    except (ValueError, KeyError, RecursionError):
        return None, 0
    return {os.fsencode(name): Staged(*map(int, one)) for name, one in staged.items()}, time_ns
