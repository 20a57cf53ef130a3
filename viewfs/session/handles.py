"""What a session's processes are given at their birth."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from viewfs.linux.process import pid_of
from viewfs.session.layer_settings import LayerSettings
from viewfs.session.runtime import RuntimeDirectory
from viewfs.session.wire.channel import Channel

__all__ = ["DEBUG_VARIABLE", "RETIRED", "AgentPlan", "Cover", "SessionHandles", "TheView"]

#: Set to anything, it leaves a session's processes their standard error, for whoever looks for a defect in them.
DEBUG_VARIABLE = "VIEWFS_DEBUG"
#: How a supervisor ends that has nothing to do, and comes again when it is asked for something.
RETIRED = 75

#: What a worker that covered a tree has reported, and descriptors by the names in it.
Cover = tuple[dict[str, Any], dict[str, int]]


@dataclass(frozen=True)
class AgentPlan:
    """What the view is to be."""

    as_root: bool = False
    #: Which ids it has: "one", "many", or "auto".
    ids: str = "one"
    #: Requests to cover trees with layers, made before anything runs in the view (`viewfs.session.agent.cow`).
    covers: tuple[dict[str, Any], ...] = ()
    hostname: str | None = None
    pid_namespace: bool = False

    @property
    def kinds(self) -> list[str]:
        """The namespaces that the view has of its own."""
        kinds = ["user", "mnt"]
        if self.hostname is not None:
            kinds.append("uts")
        if self.pid_namespace:
            kinds.append("pid")
        return kinds


@dataclass
class SessionHandles:
    """What the stand-by is given by the process that the user started."""

    name: str
    layers: LayerSettings
    plan: AgentPlan
    #: What runs in it, for people to read.
    command: list[str]
    history: bool
    listener: socket.socket
    #: To the agent.
    link: Channel
    #: To the process that the user started: closed when that is gone.
    front: Channel
    #: Lines that the agent and the servers write.
    log_fd: int
    runtime: RuntimeDirectory
    #: The process that was forked to be the agent: itself, or the parent of the pid namespace's first process.
    agent_process: int
    #: Where programs of the view find it that have covered its directory, if that could be had.
    inside: socket.socket | None = None
    #: The session goes on without the process that the user started.
    kept: bool = False
    #: It is to end at once.
    told_to_end: bool = False


@dataclass
class TheView:
    """What the agent gives to whoever owns the session, when there is a view."""

    #: By their kinds.
    namespaces: dict[str, int]
    #: Trees that were made copy-on-write before anything ran.
    covers: list[Cover]
    #: Pidfds of the agent, and of its parent where that waits for it (`AgentPlan.pid_namespace`).
    agents: list[int]
    #: Processes of the view that are the session's own, by number.
    own: set[int]

    @classmethod
    def of_greeting(cls, greeting: dict[str, Any], fds: list[int], agent_process: int) -> TheView:
        agent, *rest = fds
        kinds = greeting["kinds"]
        namespaces = dict(zip(kinds, rest, strict=False))
        left = iter(rest[len(kinds) :])
        covers = [(report, {name: next(left) for name in report["descriptors"]}) for report in greeting["covers"]]
        # The agent may know its own number only in a pid namespace that isn't ours.
        own = {agent_process, pid_of(agent)}
        return cls(namespaces, covers, [agent, os.pidfd_open(agent_process)], own)

    def fds(self) -> Iterator[int]:
        """All that is open of it."""
        yield from self.agents
        yield from self.namespaces.values()
        yield from self.fds_of_covers()

    def fds_of_covers(self) -> Iterator[int]:
        for _report, fds in self.covers:
            yield from fds.values()

    def forget_covers(self) -> None:
        """Somebody else keeps them open."""
        for fd in self.fds_of_covers():
            os.close(fd)
        self.covers = []
