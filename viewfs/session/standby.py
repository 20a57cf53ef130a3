"""The supervisor before it is needed: nothing but poll(2), so that a command that mounts nothing pays for nothing.

It becomes the real one when somebody connects, or a moment after the start if the session is still there by then; the
agent is told
at the same time, and both import what they need side by side.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from viewfs.linux.namespaces import namespace_id
from viewfs.linux.process import keep_only, pid_of, set_name
from viewfs.session.agent import DEBUG_VARIABLE, AgentPlan
from viewfs.session.channel import Channel
from viewfs.session.ending import end_session
from viewfs.session.layer_settings import LayerSettings, take_servers
from viewfs.session.runtime import RuntimeDirectory, listen_in_view

__all__ = ["SessionHandles", "supervisor_main"]

#: What a worker that covered a tree has reported, and descriptors by the names in it.
Cover = tuple[dict[str, Any], dict[str, int]]
#: Milliseconds after which the supervisor starts anyway: long for a command, whose processors it would take, and short
#: for a person.
_IDLE_MILLISECONDS = 2000


@dataclass
class SessionHandles:
    """What the supervisor is given at its birth."""

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


def supervisor_main(handles: SessionHandles) -> NoReturn:
    """Own the session until it ends. Never returns."""
    status = 1
    try:
        os.setsid()
        keep_only(
            handles.listener.fileno(),
            handles.link.fileno(),
            handles.front.fileno(),
            handles.log_fd,
            handles.runtime.fd,
            handles.runtime.parent,
        )
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for stream in (0, 1) if os.environ.get(DEBUG_VARIABLE) else (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.chdir("/")
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _told_to_end)
        set_name("viewfs-supervisor")
        status = _stand_by(handles)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            handles.runtime.remove(handles.name)
        os._exit(status)


class _ToldToEnd(BaseException):
    """SIGTERM came: from an administrator, or from the end of a session that this one lives in."""


def _told_to_end(_number: int, _frame: object) -> None:
    raise _ToldToEnd


def _poll(handles: SessionHandles) -> set[int]:
    """What there is to read, after a moment; being told to end is as good as the front being gone."""
    poll = select.poll()
    for end in (handles.listener, handles.inside, handles.front, handles.link):
        if end is not None:
            poll.register(end, select.POLLIN)
    try:
        events = {fd for fd, _event in poll.poll(_IDLE_MILLISECONDS)}
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until there is an event loop to hear it
    except _ToldToEnd:
        return {handles.front.fileno()}
    return events


def _stand_by(handles: SessionHandles) -> int:
    received = handles.link.receive()
    if received is None or "ok" not in received[0]:
        if handles.plan.covers:
            handles.layers.end()
        return 1  # there is no view; the front says why
    greeting, (agent_pidfd, *fds) = received
    kinds = greeting["ok"]["kinds"]
    namespaces = dict(zip(kinds, fds, strict=False))
    covers, rest = [], fds[len(kinds) :]
    for report in greeting["ok"]["covers"]:
        names = report["descriptors"]
        covers.append((report, dict(zip(names, rest, strict=False))))
        rest = rest[len(names) :]
    # The agent may know its own number only in a pid namespace that isn't ours.
    own = {handles.agent_process, pid_of(agent_pidfd)}
    handles.inside = listen_in_view(namespace_id(namespaces["user"]))
    events = _poll(handles)
    if handles.front.fileno() in events:
        told = None if handles.front.is_at_end else handles.front.receive()
        handles.kept = told is not None and bool(told[0].get("keep"))
    # (What the agent says else, of a child that has ended say, is for the real one.)
    agent_is_gone = handles.link.fileno() in events and handles.link.is_at_end
    if (handles.front.fileno() in events and not handles.kept) or agent_is_gone:
        spare = own.union(*(take_servers(fds) for _report, fds in covers))
        end_session(namespace_id(namespaces["user"]), spare=spare, release=handles.link.close, agent=agent_pidfd)
        _end_layers(handles, covers)
        return 0
    handles.link.send({"op": "warm"})
    from viewfs.session.supervisor import run_supervisor

    run_supervisor(handles, namespaces, covers, agent_pidfd, own)
    return 0


def _end_layers(handles: SessionHandles, covers: list[Cover]) -> None:
    """Layers that nobody has a name for end with the session; the front tells of what was in them."""
    if not covers:
        return
    if not handles.layers.is_kept:
        from viewfs.cow.layers import has_changes

        changed = [
            row["path"]
            for report, fds in covers
            for number, row in enumerate(report["layers"], 1)
            if has_changes(fds[f"layer{number}"])
        ]
        with contextlib.suppress(OSError):
            handles.front.send({"discarding": changed})
    handles.layers.end(next((fds["lock"] for _report, fds in covers if "lock" in fds), None))
