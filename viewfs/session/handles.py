"""What a session's processes are given when they are forked."""

from __future__ import annotations

import os
from itertools import islice

from viewfs.linux.process import pid_of
from viewfs.session.covers import CoverReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from viewfs.linux.plain import socket
    from viewfs.session.layer_settings import LayerSettings
    from viewfs.session.plans import AgentPlan
    from viewfs.session.runtime import RuntimeDirectory
    from viewfs.session.wire.channel import Channel


__all__ = ["DEBUG_VARIABLE", "RETIRED", "SessionHandles", "TheView"]

#: If it is set, a session's processes keep their standard error, so that defects in them can be looked for.
DEBUG_VARIABLE = "VIEWFS_DEBUG"
#: Exit status of a supervisor that has nothing to do. Another one is started when there is a request.
RETIRED = 75


class SessionHandles:
    """What the stand-by is given by the process that the user started."""

    def __init__(
        self,
        *,
        name: str,
        layers: LayerSettings,
        plan: AgentPlan,
        command: list[str],
        history: bool,
        first: list[dict[str, Any]],
        formats: set[str],
        listener: socket.socket,
        link: Channel | None,
        front: Channel,
        log_fd: int,
        runtime: RuntimeDirectory,
        agent_process: int | None = None,
        log_writer: int | None = None,
        calls_sender: int | None = None,
        calls_receiver: int | None = None,
    ) -> None:
        self.name = name
        self.layers = layers
        self.plan = plan
        #: The command that runs in the session, for people to read.
        self.command = command
        self.history = history
        #: Requests for mounts that are made before there is a supervisor (`first_mounts`).
        self.first = first
        #: What their sources seem to be.
        self.formats = formats
        self.listener = listener
        #: To the agent; None where there is none yet.
        self.link = link
        #: To the process that the user started: closed when that is gone.
        self.front = front
        #: Lines that the agent and the servers write.
        self.log_fd = log_fd
        self.runtime = runtime
        #: Pid of what was forked to be the agent: the agent itself, or the parent of process 1 of the pid namespace.
        self.agent_process = agent_process
        #: Where a later agent is to write its lines; for a view that the command makes itself.
        self.log_writer = log_writer
        #: See `Claimed`.
        self.calls_sender = calls_sender
        self.calls_receiver = calls_receiver
        #: The listener for programs in the view, which may have covered the runtime directory; None if it can't be had.
        self.inside: socket.socket | None = None
        #: The session goes on without the process that the user started.
        self.kept = False
        #: The session is to end at once.
        self.told_to_end = False


class TheView:
    """A view that has been made, as the owner of the session is given it."""

    def __init__(self, namespaces: dict[str, int], covers: list[CoverReport], agents: list[int], own: set[int]) -> None:
        #: Descriptors by kind.
        self.namespaces = namespaces
        #: Trees that were made copy-on-write before anything ran.
        self.covers = covers
        #: Pidfds of the agent, and of its parent where that waits for it (`AgentPlan.pid_namespace`).
        self.agents = agents
        #: Pids of the session's own processes in the view.
        self.own = own

    @classmethod
    def of_greeting(cls, greeting: dict[str, Any], fds: list[int], agent_process: int) -> TheView:
        agent, *rest = fds
        kinds = greeting["kinds"]
        namespaces = dict(zip(kinds, rest, strict=False))
        left = iter(rest[len(kinds) :])
        covers = [CoverReport(said, islice(left, len(said["descriptors"]))) for said in greeting["covers"]]
        # The agent may know its pid only in a pid namespace that isn't ours.
        own = {agent_process, pid_of(agent)}
        return cls(namespaces, covers, [agent, os.pidfd_open(agent_process)], own)

    def fds(self) -> Iterator[int]:
        """All descriptors of the view and its covers."""
        yield from self.agents
        yield from self.namespaces.values()
        yield from self.fds_of_covers()

    def fds_of_covers(self) -> Iterator[int]:
        for report in self.covers:
            yield from report.fds.values()

    def forget_covers(self) -> None:
        """Close the descriptors of the covers; somebody else has copies of them."""
        for report in self.covers:
            report.close()
        self.covers = []
