"""The mounts that a view begins with, made before it has a supervisor.

This does what the supervisor does, one step after the other and without an event loop, because importing one takes
longer than a mount. It is left with the stand-by as a supervisor leaves its state with the next one, so that a
supervisor goes on from here when there is something to do.

Only what is usual is done here: images that built-in modules read, directories and memory, on places that need no
server of their own. What is unusual, and what fails, is left to the supervisor, which does it again and knows what to
say.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import asdict
from functools import partial

from viewfs.errors import ViewfsError
from viewfs.linux.plain import signal, socket
from viewfs.linux.process import pid_of, pidfd_send_signal
from viewfs.mounts.skeleton import MountPointPlan
from viewfs.namespaces.members import wait_for_ends
from viewfs.session.patience import Patience
from viewfs.session.server_options import ServerOptions
from viewfs.session.supervisor.deposit import Depositor, Entry, Row
from viewfs.session.supervisor.history import History
from viewfs.session.supervisor.placing import (
    COMPLETE,
    NOTHING,
    PLACE_SECONDS,
    WHY_NOT_FOUND,
    WHY_NOT_OPENED,
    WHY_NOT_PLACED,
    Descriptors,
    Intent,
    Placing,
    hides_program,
    record,
)
from viewfs.session.supervisor.scaffold import Scaffold
from viewfs.session.supervisor.served import ServedMount
from viewfs.session.wire.channel import Channel
from viewfs.session.wire.inbox import result_with
from viewfs.session.wire.reports import Decided, Found

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from viewfs.session.handles import SessionHandles, TheView

__all__ = ["make_first_mounts"]

#: Seconds that a worker may take to undo what it has begun.
_UNDO_SECONDS = 5.0


class _LeftError(Exception):
    """This mount is left to the supervisor."""


def make_first_mounts(handles: SessionHandles, view: TheView, deposits: Channel) -> None:
    """Make the first mounts of the plan, as far as that can be done here, and tell the front how many were made.

    If one takes longer than its deadline, the front is told that too. `deposits`: to the stand-by.
    """
    assert handles.link is not None
    first = _FirstMounts(handles, handles.link, view.namespaces["mnt"], deposits)
    said: dict[str, Any] = {}
    made = 0
    try:
        for request in handles.first:
            first.mount(COMPLETE | request)
            made += 1
    except (_LeftError, OSError):
        pass
    except ViewfsError as error:
        said = {"error": error.to_json()}
    try:
        handles.front.send({"mounted": made} | said)
    except OSError:
        pass  # it is gone


class _FirstMounts:
    def __init__(self, handles: SessionHandles, agent: Channel, live_namespace: int, deposits: Channel) -> None:
        self._agent = agent
        self._front = handles.front
        self._started_ns = time.time_ns()
        self._history = History(live_namespace, keeps_all=handles.history, time_ns=self._started_ns)
        self._scaffold = Scaffold()
        self._depositor = Depositor(deposits.socket, {})
        self._servers: list[int] = []

    def mount(self, request: dict[str, Any]) -> None:
        """Make one mount. Raises `_LeftError`, OSError and `ViewfsError`; then nothing has changed."""
        deadline = ServerOptions.of(request["options"]).deadline
        doing = f"cannot mount {request['source'] or request['type']}"
        with _Worker(self, "mount", request | {"apart": True, "quick": True}, apart=True) as worker:
            report, fds = worker.answer(doing, deadline, WHY_NOT_OPENED)
            if report.get("needs_callers"):
                raise _LeftError
            with Descriptors(fds, report.pop("descriptors")) as opened:
                decided = Decided.from_json(report)
                if not decided.is_built_in or decided.has_devices or decided.speaks_fuse or decided.uses_view:
                    raise _LeftError
                found = worker.found(doing, decided, deadline)
                self._place(request, worker, decided, found, opened)

    def _place(
        self, request: dict[str, Any], worker: _Worker, decided: Decided, found: Found, opened: Descriptors
    ) -> None:
        deadline = ServerOptions.of(request["options"]).deadline
        served = ServedMount(decided.confinement, decided=decided, found=found, patience=Patience(deadline))
        placing = Placing(request, decided, found, opened, served)
        seconds = min(PLACE_SECONDS, deadline)
        with _Worker(self, "place", placing.wanted | {"mirrors": []}) as placer:
            report, fds = placer.answer(placing.doing, seconds, WHY_NOT_PLACED)
            with Descriptors(fds, report["descriptors"]) as made:
                if report["mirrors"] or any(name.startswith("server") for name in report["descriptors"]):
                    raise _LeftError
                placing.plans = [MountPointPlan.from_json(plan) for plan in report["plans"]]
                if hides_program(plan.path for plan in placing.plans):
                    raise _LeftError  # the agent has not imported all that it may need
                self._attach(placing, worker, placer, report, made)
                record(placing, made.take("snapshot"), self._history, self._scaffold)
                self._keep()

    def _attach(
        self, placing: Placing, worker: _Worker, placer: _Worker, report: dict[str, Any], made: Descriptors
    ) -> None:
        """Attach the mount. Whoever ends between its first step and its last leaves it to a supervisor to settle."""
        served, decided = placing.served, placing.decided
        paths = [plan.path for plan in placing.plans]
        self._keep(Intent(paths, report["depths"], placing.request["operation"]))
        tree = placing.opened["tree"] if decided.is_kernel else made["mount"]
        self._agent.call("attach", [tree, made["place0"]])
        placer.is_done = worker.is_done = True
        if not decided.is_kernel:
            served.fuse_fd = made.take("fuse")
            worker.channel.send({"serve": True}, [served.fuse_fd])
            served.server_number = worker.number
            self._servers.append(worker.pid)
            placing.keep_descriptors()
        placer.channel.send({"attached": True})
        attached, _none = placer.answer(placing.doing, PLACE_SECONDS, "see `viewfs log`")
        if not decided.shows_others:
            served.device = attached["device"]

    def _keep(self, intent: Intent | None = None) -> None:
        """Leave with the stand-by what a supervisor has to know."""
        self._depositor.put(self._entries(intent))

    def _entries(self, intent: Intent | None) -> Iterator[Entry]:
        yield from self._history.entries()
        yield from self._scaffold.entries()
        session = {"started_ns": self._started_ns, "kept": False, "commands": [], "ending": False}
        under_way = NOTHING if intent is None else asdict(intent)
        for name, value in (
            ("layers", {"servers": []}),
            ("servers", list(self._servers)),
            ("mirror-servers", []),
            ("intent", under_way),
            ("session", session),
        ):
            yield Entry(name, value, partial(Row, value))

    def fork(self, kind: str, request: dict[str, Any], *, apart: bool) -> tuple[int, int, int]:
        """Have the agent fork a worker: the agent's number for it, and descriptors of its channel and itself."""
        result, (channel, pidfd) = self._agent.call("fork", kind=kind, request=request, apart=apart, few=True)
        return int(result["pid"]), channel, pidfd

    def wait(self, channel: Channel, seconds: float) -> bool:
        """Wait until `channel` has something; False: it took too long. Raises `_LeftError` if the front needs nothing
        any more."""
        if channel.has_more:
            return True
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        poll.register(self._front, select.POLLIN)
        ready = {fd for fd, _event in poll.poll(seconds * 1000)}
        if self._front.fileno() in ready:
            raise _LeftError  # the user has given up, or the front was killed
        return bool(ready)


class _Worker:
    """A worker and the conversation with it. It is ended with the block, unless it `is_done`."""

    def __init__(self, first: _FirstMounts, kind: str, request: dict[str, Any], *, apart: bool = False) -> None:
        self._first = first
        self._undoes = kind == "place"
        #: It has become a server, or ends by itself.
        self.is_done = False
        self.number, channel, self._pidfd = first.fork(kind, request, apart=apart)
        self.channel = Channel(socket.socket(fileno=channel))
        self.pid = pid_of(self._pidfd)

    def answer(self, doing: str, seconds: float, why: str) -> tuple[dict[str, Any], list[int]]:
        """What it reports next. Raises `ViewfsError` if that takes longer than `seconds`; `why` says what may be the
        matter; and `_LeftError` if it fails."""
        if not self._first.wait(self.channel, seconds):
            raise ViewfsError(f"{doing}: no answer after {seconds} seconds", remedy=why)
        received = self.channel.receive()
        if received is None:
            raise _LeftError
        try:
            return result_with(*received)
        except ViewfsError:
            raise _LeftError from None

    def found(self, doing: str, decided: Decided, seconds: float) -> Found:
        """The second report of a server, which is shut in, and may have been taken over by its source since."""
        value, fds = self.answer(doing, seconds, WHY_NOT_FOUND)
        for fd in fds:
            os.close(fd)
        if fds:
            raise _LeftError
        try:
            return Found.from_json(value, has_devices=decided.has_devices)
        except ViewfsError:
            raise _LeftError from None

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        self.channel.close()
        if not self.is_done:
            if self._undoes:
                wait_for_ends([self._pidfd], _UNDO_SECONDS)
            pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
