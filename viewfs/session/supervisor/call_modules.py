"""Modules that answer system calls, as the supervisor loads and unloads them. What they own is told to the notifier by
the stand-by, of which the supervisor's deposit tells."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

import trio

from viewfs.epochs import Epoch, Mount
from viewfs.errors import UsageError, ViewfsError
from viewfs.mounts.fuse.counters import Counters
from viewfs.session.calls.messages import BUFFER
from viewfs.session.calls.notified import is_notified, needed_family
from viewfs.session.patience import Patience
from viewfs.session.server_options import ServerOptions
from viewfs.session.supervisor.agent_link import AgentLink, WorkerProcess
from viewfs.session.supervisor.history import History
from viewfs.session.supervisor.placing import PLACE_SECONDS, WHY_NOT_PLACED, Descriptors
from viewfs.session.supervisor.served import ServedMount
from viewfs.session.supervisor.waiting import answering
from viewfs.session.wire.reports import Decided, Found

__all__ = ["CallModules"]


class CallModules:
    """They make epochs as mounts do, and lie over nothing."""

    def __init__(self, agent: AgentLink, history: History, families: Sequence[str] | None) -> None:
        """`families` of calls are notified besides the rare ones; None: no calls are."""
        self._agent = agent
        self._history = history
        self._families = families

    def check(self, decided: Decided) -> None:
        """Raises `UsageError` if calls that the module answers are not notified in this view."""
        if self._families is None:
            what = f"module {decided.type} answers system calls, which this view leaves to the kernel"
            raise UsageError(what, remedy="start the view without --no-calls")
        names = [name for name, _signature in decided.calls or () if name not in decided.dispensable]
        missing = [name for name in names if not is_notified(name, self._families)]
        if not missing:
            return
        needed = dict.fromkeys(needed_family(name) or name for name in missing)
        families = ",".join((*self._families, *needed))
        raise UsageError(
            f"module {decided.type} answers {missing[0]}(2), of which this view does not ask its session",
            remedy=f"start the view with --calls={families}",
        )

    async def load(
        self, request: dict[str, Any], worker: WorkerProcess, decided: Decided, found: Found, opened: Descriptors
    ) -> Mount:
        """Record that the server `worker` answers calls from now on. Raises `ViewfsError`, nothing having changed."""
        served = ServedMount(
            decided.confinement,
            decided=decided,
            found=found,
            patience=Patience(ServerOptions.of(request["options"]).deadline),
        )
        notifiers, servers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (notifiers, servers):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        served.calls_fd, served.fuse_fd = notifiers.detach(), servers.detach()
        try:
            snapshot = await self._snapshot(f"cannot load {decided.type}")
            try:
                await worker.channel.send({"serve": True}, [served.fuse_fd])
            except trio.BrokenResourceError:
                raise ViewfsError("the server has gone away before it began", remedy="see `viewfs log`") from None
        except BaseException:
            served.release()
            raise
        served.server = worker.child
        served.patience.begin(trio.current_time())
        served.counters = Counters(opened.take("counters"))
        served.for_successor = {name: opened.take(name) for name in ("source",) if name in opened}
        self._history.keep_snapshot(snapshot)
        mount = self._history.epochs.mount(
            "",
            decided.type,
            decided.path,
            made_from=self._history.mount_on_device(decided.device),
            uses_view=decided.uses_view,
            time_ns=time.time_ns(),
            operation=request["operation"],
        )
        code = request["type"] or decided.type
        served.request = request | {
            "type": decided.type, "code": code, "path": decided.path, "calls": decided.calls, "token": decided.token,
        }  # fmt: skip
        self._history.served[mount.made_in] = served
        return mount

    async def unload(self, mount: Mount, operation: str) -> Epoch:
        """Take it out of the view. Raises `ViewfsError`, nothing having changed."""
        self._history.keep_snapshot(await self._snapshot(f"cannot unload {mount.type}"))
        return self._history.epochs.remove(mount, time_ns=time.time_ns(), operation=operation)

    async def _snapshot(self, doing: str) -> int:
        """A namespace that shows the view as it is."""
        async with self._agent.worker("unmount", {"paths": [], "lazy": False}) as worker:
            with answering(doing, PLACE_SECONDS, WHY_NOT_PLACED):
                _report, (snapshot,) = await worker.answer(doing)
        return snapshot
