"""The steps that it takes to open a view, and how each went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["STEPS", "Step", "works"]


@dataclass(frozen=True)
class _Kind:
    title: str
    #: What a failure's message begins with.
    cannot: str
    required: bool = True
    #: For a step that a view can do without: what needs it.
    needed_for: str = ""


#: The steps by name, in order.
STEPS = {
    "userns": _Kind("user and mount namespace", "cannot create a user namespace"),
    "idmap": _Kind("id map", "cannot write the id map"),
    "mount": _Kind("tmpfs mount", "cannot mount a tmpfs"),
    "root": _Kind("a root of the view's own", "cannot build the root of a view"),
    "device": _Kind("/dev/fuse", "cannot open /dev/fuse"),
    "fuse": _Kind("FUSE mount", "cannot make a FUSE mount"),
    "confine": _Kind("sealed module server", "cannot shut a module server in"),
    "read": _Kind("a file read through FUSE", "cannot read a file through FUSE"),
    "overlay": _Kind("overlay", "cannot mount an overlay", False, "copy-on-write mounts"),
    "pid": _Kind(
        "pid namespace and its /proc",
        "cannot make a pid namespace with a /proc of its own",
        False,
        "`viewfs run --pid`",
    ),
}


@dataclass(frozen=True)
class Step:
    """How one step went. Commands in `remedy` are indented by two blanks; a here-document follows its command."""

    name: str
    title: str
    state: Literal["ok", "failed", "skipped", "warning"]
    detail: str = ""
    remedy: tuple[str, ...] = ()


def works(steps: list[Step]) -> bool:
    """Did every step succeed that a view can't do without?"""
    return all(step.state in ("ok", "warning") for step in steps)
