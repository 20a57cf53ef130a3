"""The servers of a view's mounts: each is watched, and another takes over where one dies or hangs."""

from __future__ import annotations

import contextlib
import select
from collections.abc import AsyncIterator, Callable

import trio

from viewfs.epochs import Epoch, Mount
from viewfs.errors import UsageError, ViewfsError
from viewfs.linux.process import children_of, is_stopped, reads_and_writes
from viewfs.session.patience import LIFE_SECONDS
from viewfs.session.supervisor.agent_link import AgentLink, Child, WorkerProcess
from viewfs.session.supervisor.history import History
from viewfs.session.supervisor.refusal import refuse
from viewfs.session.supervisor.served import ServedMount
from viewfs.session.supervisor.waiting import answering

__all__ = ["Servers"]


def _held(fd: int | None) -> int:
    if fd is None:
        raise ViewfsError("the mount has been given up meanwhile")
    return fd


def _below(server: int) -> set[int]:
    """The processes that a server has begun, and those of these."""
    children = children_of(server)
    return children.union(*map(_below, children))


def _work_of(served: ServedMount) -> int | None:
    """A number that changes as long as its server works; None: that can't be told.

    Servers say what they have answered. Programs that speak FUSE don't: they work if they read or write anything.
    Devices may have every caller wait, and only one that is stopped does nothing for certain.
    """
    assert served.server is not None and served.counters is not None and served.decided is not None
    server, answered = served.server.pid, served.total
    programs = _below(server)
    calls = [reads_and_writes(pid) for pid in programs] if served.decided.speaks_fuse else []
    if served.decided.has_devices or None in calls:
        return 0 if any(map(is_stopped, (server, *programs))) else None
    return answered + sum(filter(None, calls))


class _Queue:
    """The requests that a server has not read yet."""

    def __init__(self, served: ServedMount) -> None:
        self._served = served
        self._since: float | None = None
        self._work: int | None = None

    def seconds(self, now: float) -> float:
        """For how long requests have been there while the server did nothing, as far as one can see who looks at
        times."""
        assert self._served.fuse_fd is not None
        poll = select.poll()
        poll.register(self._served.fuse_fd, select.POLLIN)
        if not any(events & select.POLLIN for _fd, events in poll.poll(0)):
            self._since = None
            return 0
        before, self._work = self._work, _work_of(self._served)
        if self._work is None or self._work != before or self._since is None:
            self._since = now
        return now - self._since


class Servers:
    """The servers of one view."""

    #: Tasks that watch them run in it.
    nursery: trio.Nursery

    def __init__(
        self,
        agent: AgentLink,
        history: History,
        *,
        log: Callable[[str], None],
        keep: Callable[[], None],
        tell: Callable[..., object],
    ) -> None:
        """`keep` is called when there is something that another supervisor would have to know; `tell` when something
        has happened (`Happenings.add`)."""
        self._tell = tell
        self._agent = agent
        self._history = history
        self._log = log
        self._keep = keep

    def watch(self, mount: Mount, served: ServedMount) -> None:
        """If the mount has a server, deal with its end, and with requests that it doesn't answer."""
        if served.server is not None:
            self.nursery.start_soon(self._watch_server, mount, served, served.server)
            self.nursery.start_soon(self._watch_answers, mount, served)

    async def take_up(self) -> None:
        """Watch the servers that an earlier supervisor has watched; end those that it had only begun to start."""
        served_now = list(self._history.served.items())
        for _epoch, served in served_now:
            if served.server_number is not None:
                served.server = await self._agent.find_child(served.server_number)
        known = {served.server_number for _epoch, served in served_now}
        for number, kind in (await self._agent.children()).items():
            if kind in ("mount", "resume") and number not in known:
                begun = await self._agent.find_child(number)
                begun.kill()
                await begun.ended.wait()  # or it could read requests that are for another server
        for epoch, served in served_now:
            mount = self._history.epochs.mount_of(epoch)
            if mount is not None and served.fuse_fd is not None:  # else it was given up long ago
                self.watch(mount, served)

    async def _watch_server(self, mount: Mount, served: ServedMount, server: Child) -> None:
        """Watch until the mount is gone. A server that dies before is replaced if that can be done without loss."""
        while True:
            await server.ended.wait()
            if served.successor is not None:
                served.server, served.successor = served.successor, None
                server = served.server
                self._keep()
                continue
            if server.status == 0:
                break
            status = server.status or 0
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            if not served.is_aborted:
                self._log(f"the server of {mount.shown_as} ({mount.type}) ended: {how}")
                self._tell("server-ended", path=mount.path, module=mount.type, how=how)
            if (successor := await self._find_successor(mount, served)) is None:
                break
            served.server = server = successor
            self._keep()
            self._log(f"another server has taken over {mount.shown_as}")
            self._tell("server-replaced", path=mount.path, module=mount.type)
        # Whoever waits for an answer now gets ENOTCONN instead of waiting for ever.
        served.release()
        self._history.free()
        self._keep()

    async def _find_successor(self, mount: Mount, served: ServedMount) -> Child | None:
        """Wait until another server has taken over, and return it; None if none can."""
        while (seconds := served.seconds_to_resume(trio.current_time())) is not None:
            async with trio.open_nursery() as nursery:
                if served.fuse_fd is not None and served.patience.is_over(trio.current_time()):
                    if served.counters is not None and not served.total:
                        # No server has ever begun, so that the kernel asks for nothing yet that could be refused.
                        self._log(f"no server of {mount.shown_as} has begun to serve it, and it is given up")
                        return None
                    nursery.start_soon(refuse, served.fuse_fd)
                await trio.sleep(seconds)
                nursery.cancel_scope.cancel()
            served.patience.begin(trio.current_time())
            if mount.made_in not in self._history.epochs.alive():
                return None
            try:
                return await self._resume(served)
            except (ViewfsError, trio.BrokenResourceError, OSError) as error:
                self._log(f"no other server can take over {mount.shown_as} yet: {error}")
        if served.fuse_fd is not None and served.patience.failures:
            self._log(f"no other server can take over {mount.shown_as}: they end without having answered anything")
        return None

    async def _watch_answers(self, mount: Mount, served: ServedMount) -> None:
        """End a server that has been at one request for longer than its deadline, or reads none: another may do
        better."""
        deadline, queue = served.options.deadline, _Queue(served)
        while True:
            await trio.sleep(min(deadline / 4, LIFE_SECONDS))
            if served.server is None or served.counters is None or served.fuse_fd is None:
                return
            if not served.is_running:
                continue
            # Devices may have callers wait for ever, as long as they are there.
            is_late = served.control_fd is None and served.counters.is_late(deadline * 10**9)
            if is_late or queue.seconds(trio.current_time()) >= deadline:
                self._log(
                    f"the server of {mount.shown_as} ({mount.type}) has not answered for {deadline} s: it is ended"
                )
                served.counters.forget_begun()
                served.server.kill()
                queue = _Queue(served)

    def end_in_time(self, mount: Mount, served: ServedMount) -> None:
        """It has been unmounted, and nobody uses it: end its server if that doesn't end by itself."""
        if served.is_running:
            self.nursery.start_soon(self._end_in_time, mount, served)

    async def _end_in_time(self, mount: Mount, served: ServedMount) -> None:
        server, deadline = served.server, served.options.deadline
        assert server is not None
        with trio.move_on_after(deadline):
            await server.ended.wait()
            return
        self._log(f"the server of {mount.shown_as} ({mount.type}) has not ended {deadline} s after it was unmounted")
        served.abort()

    async def _resume(self, served: ServedMount) -> Child:
        async with self._successor(served, anew=False) as worker:
            await worker.channel.send({"serve": True}, [_held(served.fuse_fd)])
        return worker.child

    @contextlib.asynccontextmanager
    async def _successor(
        self, served: ServedMount, epoch: int | None = None, *, anew: bool
    ) -> AsyncIterator[WorkerProcess]:
        """Another server, which has opened what was mounted, and is ready to serve. Raises `ViewfsError`."""
        decided = served.decided
        assert decided is not None and served.counters is not None
        given = {"counters": served.counters.fd} | served.for_successor | ({} if epoch is None else {"epoch": epoch})
        request = served.request | {"anew": anew, "descriptors": list(given)}
        doing = f"cannot have another server take over {decided.path or decided.type}"
        # (In a pid namespace of its own a server of devices would see no pids of its callers.)
        apart = not decided.has_devices and decided.calls is None
        async with self._agent.worker("resume", request, list(given.values()), apart=apart) as worker:
            with answering(doing, served.options.deadline, "see `viewfs log`"):
                found = await worker.found(doing, decided)
            if found != served.found:
                raise ViewfsError(
                    f"{doing}: what it finds is not what was mounted", remedy="unmount it, and mount it anew"
                )
            yield worker

    async def restart(self, mount: Mount) -> int:
        """Have another server go on, with the module's code as it is now. Returns its pid. Raises `ViewfsError`; then
        the server before goes on."""
        served = self._history.served[mount.made_in]
        doing = f"cannot restart {mount.shown_as}"
        remedy = "unmount it, and mount it anew"
        if served.decided is None or served.found is None or served.decided.is_kernel:
            raise UsageError(f"{doing}: no module serves it")
        if served.decided.speaks_fuse or (served.found.writable and "kept" not in served.for_successor):
            raise UsageError(f"{doing}: its server has state that another would not have", remedy=remedy)
        if served.fuse_fd is None or served.server is None or served.successor is not None:
            raise UsageError(f"{doing}: its server is dead, or another is about to take over", remedy=remedy)
        epoch = self._history.namespace_of(Epoch(mount.made_in - 1)) if served.decided.uses_view else None
        async with self._successor(served, epoch, anew=True) as worker:
            before, served.successor = served.server, worker.child
            with trio.CancelScope(shield=True):
                before.kill()
                await before.ended.wait()
                served.patience.begin(trio.current_time())
                await worker.channel.send({"serve": True}, [_held(served.fuse_fd)])
        self._log(f"{mount.shown_as} ({mount.type}) was restarted")
        self._tell("restart", path=mount.path, module=mount.type)
        return worker.child.pid
