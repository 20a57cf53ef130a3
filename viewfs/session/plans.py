"""What the user asked for: a view, and a command in it."""

from __future__ import annotations

import os

from viewfs.session.runtime import RUNTIME_VARIABLE, SESSION_VARIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["AgentPlan", "InitialChange", "SessionPlan"]


#: Types of mounts that need no event loop; None: an image or a directory, as is found out.
_SIMPLE = (None, "ext", "squashfs", "vfat", "exfat", "bind", "tmp")
_SQUASHFS_NAMES = (".sqfs", ".squashfs", ".sqsh", ".sfs", ".sq", ".snap", ".appimage")
#: More mounts than this are quicker with a supervisor, for its agent imports once what their servers need.
_FEW = 4


class AgentPlan:
    """What the view is to be."""

    def __init__(
        self,
        *,
        as_root: bool = False,
        ids: str = "one",
        hostname: str | None = None,
        pid_namespace: bool = False,
        calls: bool = True,
        families: Sequence[str] = (),
        covers: Sequence[dict[str, Any]] = (),
    ) -> None:
        """`ids`: which ids it has, "one", "many", or "auto". `calls`: the session answers some system calls of its
        programs (`viewfs.session.calls`), those of these `families` too. `covers`: requests to cover trees with layers,
        made before anything runs in the view (`viewfs.session.agent.covering`)."""
        self.as_root = as_root
        self.ids = ids
        self.hostname = hostname
        self.pid_namespace = pid_namespace
        self.calls = calls
        self.families = tuple(families)
        self.covers = tuple(covers)

    def with_covers(self, covers: Sequence[dict[str, Any]]) -> AgentPlan:
        """The same, with these covers."""
        return AgentPlan(
            as_root=self.as_root,
            ids=self.ids,
            hostname=self.hostname,
            pid_namespace=self.pid_namespace,
            calls=self.calls,
            families=self.families,
            covers=covers,
        )

    @property
    def needs_agent(self) -> bool:
        """Must something be done before the command is there that the command itself can't do?"""
        return self.pid_namespace or self.ids == "many" or (self.as_root and self.ids != "one")

    @property
    def kinds(self) -> list[str]:
        """The namespaces that the view has of its own."""
        kinds = ["user", "mnt"]
        if self.hostname is not None:
            kinds.append("uts")
        if self.pid_namespace:
            kinds.append("pid")
        return kinds


class InitialChange:
    """A mount or module that is there when the command starts: a request of the control socket, without its id."""

    def __init__(self, request: str, arguments: dict[str, object]) -> None:
        self.request = request
        self.arguments = arguments

    @property
    def is_simple(self) -> bool:
        """Does it mount an image, a directory or memory?"""
        return self.request == "mount" and self.arguments.get("type") in _SIMPLE

    @property
    def likely_format(self) -> str:
        """What its source may be, by its name alone. (What is imported early depends on it, and nothing else.)"""
        kind, name = self.arguments.get("type"), str(self.arguments["source"]).lower()
        return str(kind or ("squashfs" if name.endswith(_SQUASHFS_NAMES) else "ext"))


class SessionPlan:
    """What the user asked for."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str | None = None,
        keep: bool = False,
        history: bool = False,
        cow_backend: str | None = None,
        layer_directory: str | None = None,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        view: AgentPlan | None = None,
        changes: Sequence[InitialChange] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.command = command
        self.name = name
        self.keep = keep
        self.history = history
        #: What is to serve copy-on-write trees; None: what the environment says.
        self.cow_backend = cow_backend
        #: Where the layers are kept, if not where those of all sessions are.
        self.layer_directory = layer_directory
        #: Patterns of directories in copy-on-write trees that stay as they are (`cow.filters`).
        self.exclude = exclude
        self.include = include
        self.view = view or AgentPlan()
        self.changes = changes
        #: Added to the command's environment.
        self.environment = environment or {}

    @property
    def covers(self) -> list[InitialChange]:
        """Those changes that are made before anything runs in the view."""
        others = (number for number, change in enumerate(self.changes) if change.request != "cow")
        return list(self.changes[: next(others, len(self.changes))])

    @property
    def first(self) -> list[InitialChange]:
        """Those mounts that are made before there is a supervisor (`supervisor.first_mounts`)."""
        others = (number for number, change in enumerate(self.changes) if not change.is_simple)
        first = list(self.changes[: next(others, len(self.changes))])
        return first if len(first) <= _FEW else []

    def environment_in(self, session: str, runtime: str) -> dict[str, str]:
        """The environment of the command, in a session of that name whose control socket is in `runtime`."""
        return {**os.environ, SESSION_VARIABLE: session, RUNTIME_VARIABLE: runtime, **self.environment}
