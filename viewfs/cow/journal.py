"""The journal of a commit: what is going to be done, so that a commit which was interrupted can be finished or undone.

It is a file of the layer, one JSON object a line. First come the steps, before any of them is begun; temporary names
are in them, so that what was staged can be found. Then, once all that is to be installed lies beside its place and is
on the disk, the line that says so: from there on an interrupted commit is finished, before it is undone. The file is
removed when all is done.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from viewfs.cow.layers import JOURNAL
from viewfs.errors import ViewfsError

__all__ = ["Journal", "Operation", "Step"]

_STAGED = {"staged": True}


class Operation(StrEnum):
    """What a step does; each can be done twice."""

    #: Give what lies under the temporary name its own, in the place of what has that name now.
    INSTALL = "install"
    REMOVE = "remove"
    #: Mode, owner, attributes and times.
    ATTRIBUTES = "attributes"


@dataclass(frozen=True)
class Step:
    """One change of the lower tree."""

    operation: Operation
    path: bytes
    #: The temporary name of what is installed; what has to go is called that with `.old` behind it, for a moment.
    temporary: bytes = b""
    #: The inode number of what is to be removed: something else is left alone.
    inode: int = 0
    #: What has to go is kept under this name.
    theirs: bytes = b""
    #: For ATTRIBUTES, as `copying.encode_attributes` has them.
    attributes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "path": os.fsdecode(self.path),
            "temporary": os.fsdecode(self.temporary),
            "inode": self.inode,
            "theirs": os.fsdecode(self.theirs),
            "attributes": self.attributes,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Step:
        return cls(
            Operation(value["operation"]),
            os.fsencode(value["path"]),
            os.fsencode(value["temporary"]),
            value["inode"],
            os.fsencode(value["theirs"]),
            value["attributes"],
        )


class Journal:
    """The journal of the layer in the open directory `layer`."""

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def begin(self, paths: Sequence[bytes], steps: Sequence[Step]) -> None:
        """Write down what will be done to make `paths` what they are in the view. Raises OSError."""
        head = {"schema": 1, "paths": [os.fsdecode(path) for path in paths], "steps": len(steps)}
        lines = [json.dumps(line) for line in (head, *(step.to_json() for step in steps))]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        aside = JOURNAL + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=self._layer)
        with open(os.open(aside, flags, 0o600, dir_fd=self._layer), "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, JOURNAL, src_dir_fd=self._layer, dst_dir_fd=self._layer)
        os.fsync(self._layer)

    def staged(self) -> None:
        """All that is to be installed is there: from here on there is no way back. Raises OSError."""
        fd = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, dir_fd=self._layer)
        try:
            os.write(fd, json.dumps(_STAGED).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)

    def read(self) -> tuple[list[bytes], list[Step], bool] | None:
        """The paths, the steps and whether all is staged, of a commit that was interrupted; None if none was.

        Raises `ViewfsError` for a journal that can't be read.
        """
        try:
            fd = os.open(JOURNAL, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._layer)
        except FileNotFoundError:
            return None
        with open(fd, encoding="ascii") as file:
            lines = file.read().split("\n")
        try:
            head = json.loads(lines[0])
            steps = [Step.from_json(json.loads(line)) for line in lines[1 : 1 + head["steps"]]]
            if len(steps) != head["steps"] or head["schema"] != 1:
                raise ValueError("it is not whole")
            paths = [os.fsencode(path) for path in head["paths"]]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ViewfsError(f"the journal of an interrupted commit can't be read: {error}") from error
        # A line that was being written when the power failed says nothing.
        return paths, steps, json.dumps(_STAGED) in lines[1 + len(steps) :]

    def end(self) -> None:
        """All is done, or undone. Raises OSError."""
        os.unlink(JOURNAL, dir_fd=self._layer)
        os.fsync(self._layer)
