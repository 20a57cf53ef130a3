"""The live view as the supervisor keeps it: what is mounted, by which server, and the epochs that can still be entered.

One change at a time. A change is made in the kernel first and then recorded, and what can fail comes before the step
that can't: until the agent has attached a mount, giving up means closing descriptors.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import trio

from viewfs.epochs import Epoch, Mount
from viewfs.errors import UsageError, ViewfsError
from viewfs.linux.process import children_of, pid_of
from viewfs.mounts.skeleton import MountPointPlan
from viewfs.session.patience import Patience
from viewfs.session.server_options import ServerOptions
from viewfs.session.supervisor.agent_link import AgentLink, WorkerProcess
from viewfs.session.supervisor.call_modules import CallModules
from viewfs.session.supervisor.deposit import Entry, Row
from viewfs.session.supervisor.history import History
from viewfs.session.supervisor.placing import (
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
from viewfs.session.supervisor.servers import Servers
from viewfs.session.supervisor.view_layers import ViewLayers
from viewfs.session.supervisor.waiting import answering, ended_first, while_alive
from viewfs.session.wire.reports import Decided, Found

__all__ = ["View"]

#: Nanoseconds after which an answer is late.
_LATE_NS = 100_000_000


class View:
    """The epochs of a live view, and the changes that make them."""

    def __init__(
        self,
        agent: AgentLink,
        history: History,
        layers: ViewLayers,
        servers: Servers,
        *,
        log: Callable[[str], None],
        keep: Callable[[], None],
        sync: Callable[[], None],
        families: Sequence[str] | None,
    ) -> None:
        """`keep` is called when there is something that another supervisor would have to know, and `sync` to have the
        notifier know of it too. `families` of system calls are notified besides the rare ones; None: no calls are."""
        self.agent = agent
        self.history = history
        self.layers = layers
        self.servers = servers
        self._scaffold = Scaffold()
        self._log = log
        self._keep = keep
        self._sync = sync
        self._calls = CallModules(agent, history, families)
        self._lock = trio.Lock()
        #: Directory that is served so that it can have mount points → control socket of its server.
        self._mirrors: dict[str, int] = {}
        self._mirror_servers: set[int] = set()
        self._intent = NOTHING

    def server_pids(self) -> set[int]:
        """The pids of all processes that serve something in the view."""
        found = {served.server.pid for served in self.history.served.values() if served.server and served.is_running}
        forked = self.layers.servers | self._mirror_servers  # which their parents may have replaced
        return found.union(forked, *map(children_of, forked))

    # -- for a supervisor after this one

    def entries(self) -> Iterator[Entry]:
        """All of it, for `take_up`."""
        yield from self.history.entries()
        yield from self.layers.entries()
        yield from self._scaffold.entries()
        for directory, control in self._mirrors.items():
            yield Entry(f"mirror {directory}", control, partial(Row, None, (control,)))
        servers = sorted(self.server_pids())
        yield Entry("servers", servers, partial(Row, servers))
        mirror_servers = sorted(self._mirror_servers)
        yield Entry("mirror-servers", mirror_servers, partial(Row, mirror_servers))
        yield Entry("intent", self._intent, partial(Row, self._intent))

    async def take_up(self, rows: Mapping[str, Row]) -> None:
        """Restore the view from `rows`, as an earlier supervisor had it, and finish what that had begun."""
        self.history.take_up(rows)
        self.layers.take_up(rows)
        self._scaffold.take_up(rows)
        for name, row in rows.items():
            kind, _, directory = name.partition(" ")
            if kind == "mirror":
                self._mirrors[directory] = row.fds[0]
        self._mirror_servers = set(rows["mirror-servers"].value)
        self._intent = rows["intent"].value  # for the next one too, until it is settled
        async with self._changing():
            await self.servers.take_up()
            try:
                await self._settle(Intent(**self._intent))
                await self._tidy()
            except (ViewfsError, trio.BrokenResourceError) as error:
                self._log(f"a change that was under way can't be finished: {error}")

    async def _settle(self, intent: Intent) -> None:
        """Settle a change that was under way: unmount what was mounted and not recorded; record what was unmounted."""
        if not intent.paths:
            return
        async with self.agent.worker("survey", {"paths": intent.paths}) as worker:
            survey, _none = await worker.answer("cannot look at the view")
        depths = list(zip(intent.paths, survey["depths"], intent.depths, strict=True))
        if not intent.unmounted:
            new = [path for path, depth, before in depths for _each in range(depth - before)]
            if new:
                await self._take_back(new)
                self._log(f"a mount on {new[0]} was not finished, and is taken back")
            return
        if depths[0][1] < depths[0][2]:
            await self._take_back([path for path, depth, before in depths if depth == before])
            for epoch in intent.unmounted:
                mount = self.history.epochs.mounts.get(Epoch(epoch))
                if mount is not None and mount.removed_in is None:
                    self.history.epochs.remove(mount, time_ns=time.time_ns(), operation=intent.operation)
                    self.layers.release(mount.made_in)
            self.history.free()

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """Make one change at a time. When the block is left, the result is kept for a supervisor after this one."""
        async with self._lock:
            try:
                yield
            finally:
                self._done()

    def _done(self) -> None:
        """Nothing is under way any more: the change was recorded, or taken back."""
        self._intent = NOTHING
        self._keep()

    def _intend(self, paths: Sequence[str], depths: list[int], operation: str, unmounted: Sequence[Epoch] = ()) -> None:
        """Record what is done next: only a supervisor that knows of it can undo it."""
        self._intent = asdict(Intent(list(paths), depths, operation, list(unmounted)))
        self._keep()

    # -- changing

    async def mount(self, request: dict[str, Any], given: list[int]) -> Mount:
        """Mount as `request`, with which the descriptors `given` came, says. Raises `ViewfsError`, nothing having
        changed."""
        doing = f"cannot mount {request['source'] or request['type']}"
        deadline = ServerOptions.of(request["options"]).deadline
        # As a rule a magic number tells what it is. If that is not so, it takes a closer look (`inspection`).
        apart, quick = True, request["type"] is None
        while True:
            # Opening may take long, and must not keep others from changing the view.
            asked = request | {"apart": apart, "quick": quick}
            async with self.agent.worker("mount", asked, given, apart=apart) as worker:
                with answering(doing, deadline, WHY_NOT_OPENED):
                    report, fds = await worker.answer(doing)
                if report.get("needs_callers"):
                    apart = False
                    continue
                with Descriptors(fds, report.pop("descriptors")) as opened:
                    decided = Decided.from_json(report)
                    with answering(doing, deadline, WHY_NOT_FOUND):
                        try:
                            found = await worker.found(doing, decided)
                        except ViewfsError:
                            if not quick:
                                raise
                            quick = False
                            continue
                        if decided.calls is None:
                            await self._way_answers(decided.path)
                    async with self._changing():
                        if decided.calls is not None:
                            return await self._load(request, worker, decided, found, opened)
                        return await self._place(request, worker, decided, found, opened)

    async def _load(
        self, request: dict[str, Any], worker: WorkerProcess, decided: Decided, found: Found, opened: Descriptors
    ) -> Mount:
        """Have a module answer system calls from now on."""
        self._calls.check(decided)
        mount = await self._calls.load(request, worker, decided, found, opened)
        self.history.free()
        self._done()
        self._sync()
        self.servers.watch(mount, self.history.served[mount.made_in])
        return mount

    async def _unload(self, mount: Mount, operation: str) -> Epoch:
        """Have a module answer no calls any more, but those of modules that see the view as it was."""
        served = self.history.served[mount.made_in]
        async with self._changing():
            epoch = await self._calls.unload(mount, operation)
            self.history.free()
            self._done()
            self._sync()
        if served.calls_fd is None:
            self.servers.end_in_time(mount, served)
        return epoch

    async def _way_answers(self, path: str) -> None:
        """Wait as long as a server on the way to `path` owes an answer: nobody else is to wait for that meanwhile."""
        on_the_way = [mount for mount in self.history.epochs.live() if mount.leads_to(path)]
        for served in [self.history.served[mount.made_in] for mount in on_the_way]:
            while served.is_running and served.counters is not None and served.counters.is_late(_LATE_NS):
                await trio.sleep(_LATE_NS / 10**9)

    async def _place(
        self, request: dict[str, Any], worker: WorkerProcess, decided: Decided, found: Found, opened: Descriptors
    ) -> Mount:
        """Let the placer make the mount points, attach, record."""
        options = ServerOptions.of(request["options"])
        served = ServedMount(decided.confinement, decided=decided, found=found, patience=Patience(options.deadline))
        placing = Placing(request, decided, found, opened, served)
        doing = placing.doing
        try:
            with answering(doing, min(PLACE_SECONDS, options.deadline), WHY_NOT_PLACED):
                wanted = placing.wanted | {"mirrors": list(self._mirrors)}
                async with (
                    self.agent.worker("place", wanted, list(self._mirrors.values()), undoes=True) as placer,
                    ended_first(worker, served),  # the placer may be looking at its mount
                ):
                    report, fds = await placer.answer(doing)
                    placing.plans = [MountPointPlan.from_json(plan) for plan in report["plans"]]
                    with Descriptors(fds, report["descriptors"]) as made, contextlib.ExitStack() as stack:
                        trees = await self._trees_of(placing, worker, placer, made, stack)
                        with trio.CancelScope(shield=True):
                            await self._attach(placing, worker, placer, report, made, trees)
                        self._adopt_mirrors(report, made)
                        snapshot = made.take("snapshot")
        except BaseException:
            served.forget()
            if placing.attached:
                with trio.CancelScope(shield=True):
                    await self._take_back([plan.path for plan in placing.plans[: placing.attached]])
            raise
        return self._record(placing, snapshot)

    async def _trees_of(
        self,
        placing: Placing,
        worker: WorkerProcess,
        placer: WorkerProcess,
        made: Descriptors,
        stack: contextlib.ExitStack,
    ) -> list[int]:
        """The trees to attach, in the order of the plans. The `stack` closes those that nobody else closes."""
        if placing.decided.is_kernel:
            return [placing.opened["tree"]]
        if placing.found.names is None and not placing.decided.speaks_fuse:
            return [made["mount"]]
        # They are files of the mount, and looking at them needs its server.
        await self._let_serve(placing, worker, made)
        await placer.channel.send({"served": True})
        async with while_alive(worker.child, placing.doing):
            _ok, trees = await placer.answer(placing.doing)
        stack.enter_context(Descriptors(trees))
        return trees

    async def _attach(
        self,
        placing: Placing,
        worker: WorkerProcess,
        placer: WorkerProcess,
        report: dict[str, Any],
        made: Descriptors,
        trees: list[int],
    ) -> None:
        """Attach the trees. From here on there is no giving up: what is attached gets recorded."""
        self._intend([plan.path for plan in placing.plans], report["depths"], placing.request["operation"])
        hides = hides_program(plan.path for plan in placing.plans)
        for number, tree in enumerate(trees):
            await self.agent.call("attach", [tree, made[f"place{number}"]], hides_program=hides)
            placing.attached = number + 1
        if not placing.decided.is_kernel and placing.served.server is None:
            await self._let_serve(placing, worker, made)
        await placer.channel.send({"attached": True})
        with answering(placing.doing, PLACE_SECONDS, "see `viewfs log`"):
            attached, _none = await placer.answer(placing.doing)
        if not placing.decided.shows_others:
            placing.served.device = attached["device"]

    async def _let_serve(self, placing: Placing, worker: WorkerProcess, made: Descriptors) -> None:
        """Give the server its /dev/fuse descriptor, and keep our descriptors of it in `served`."""
        served = placing.served
        served.fuse_fd = made.take("fuse")
        try:
            await worker.channel.send({"serve": True}, [served.fuse_fd])
        except trio.BrokenResourceError:
            raise ViewfsError("the server has gone away before it began", remedy="see `viewfs log`") from None
        served.server = worker.child
        served.patience.begin(trio.current_time())
        placing.keep_descriptors()

    def _record(self, placing: Placing, snapshot: int) -> Mount:
        """Record what is attached as a mount of the view; `snapshot` shows the view before it."""
        mount = record(placing, snapshot, self.history, self._scaffold)
        self.history.free()
        self._done()
        self.servers.watch(mount, placing.served)
        return mount

    async def _take_back(self, paths: list[str]) -> None:
        """Detach what was attached by a mount that failed in the middle."""
        try:
            async with self.agent.worker("unmount", {"paths": paths, "lazy": True}) as worker:
                _report, (snapshot,) = await worker.answer("cannot take back the mount")
                os.close(snapshot)
                await worker.channel.send({"go": True})
                await worker.answer("cannot take back the mount")
        except (ViewfsError, trio.BrokenResourceError) as error:
            self._log(f"what was mounted on {', '.join(paths)} is still there: {error}")

    def _adopt_mirrors(self, report: dict[str, Any], made: Descriptors) -> None:
        """Keep the control sockets of directories that are served from now on, to add names; and the servers' pids."""
        for number, directory in enumerate(report["mirrors"]):
            self._mirrors[directory] = made.take(f"control{number}")
        servers = [name for name in report["descriptors"] if name.startswith("server")]
        self._mirror_servers.update(pid_of(made[name]) for name in servers)

    async def cover(self, request: dict[str, Any]) -> tuple[Mount, list[str]]:
        """Make a tree copy-on-write; also returns messages. Raises `ViewfsError`, nothing having changed."""
        async with self._changing():
            await self.import_before([request["path"]])
            mount, messages = await self.layers.cover(request, self._intend, self._take_back)
            self._done()
            await self.layers.take_up_states(mount)
        return mount, messages

    async def import_before(self, covered: Sequence[str]) -> None:
        """Have the agent import all that it may need before a program of the view removes it from what is `covered`."""
        if hides_program(covered):
            await self.agent.call("warm", all=True)

    async def take_up_states(self) -> None:
        """Make epochs of the states that an earlier session kept of what was covered before anything ran."""
        async with self._changing():
            for mount in self.history.epochs.live():
                if mount.made_in in self.layers.trees:
                    await self.layers.take_up_states(mount)

    async def keep_state(self, name: str, directory: str, operation: str) -> Epoch:
        """End the current epoch, whose state is kept; returns it. Raises `ViewfsError`, nothing having changed."""
        async with self._changing():
            return await self.layers.keep_state(name, directory, operation=operation)

    async def remount(self, mount: Mount, attributes: int, clear: int) -> None:
        """Have `mount` get these attributes, and lose those of `clear` (`MountAttr`); no epoch is made. Raises
        `ViewfsError`."""
        doing = f"cannot remount {mount.path}"
        wanted = {"path": mount.path, "set": attributes, "clear": clear}
        async with self._changing(), self.agent.worker("remount", wanted) as worker:
            with answering(doing, PLACE_SECONDS, WHY_NOT_PLACED):
                await worker.answer(doing)

    async def unmount_part(self, path: str, *, lazy: bool) -> None:
        """Unmount what came with a bind, inside it; no epoch is made. Raises `ViewfsError`."""
        doing = f"cannot unmount {path}"
        async with self._changing(), self.agent.worker("unmount", {"paths": [path], "lazy": lazy}) as worker:
            with answering(doing, PLACE_SECONDS, WHY_NOT_PLACED):
                _report, fds = await worker.answer(doing)
                with Descriptors(fds):
                    await worker.channel.send({"go": True})
                    await worker.answer(doing)

    async def unmount(
        self, mount: Mount, *, lazy: bool, operation: str, force: bool = False, with_inside: bool = False
    ) -> Epoch:
        """Take `mount` out of the view. Raises `ViewfsError`, nothing having changed.

        `lazy`: even if something uses it. `with_inside`: and what is mounted inside. `force`: that too, and also end
        its server, which may answer nothing any more.
        """
        if not mount.path:
            if force:
                self._abort(mount)
            return await self._unload(mount, operation)
        if force and not self.history.epochs.is_shadowed(mount):
            self._abort(mount)  # at once: another change may be waiting for that very server
        async with self._changing():
            if self.history.epochs.is_shadowed(mount):
                over = self.history.epochs.resolve(mount.path).serving
                where = f"{over.path} ({over.type})" if over else "another mount"
                raise UsageError(f"{mount.path} is shadowed by {where}", remedy="unmount that first")
            inside = self.history.epochs.below(mount)
            if inside and not (force or with_inside):
                raise UsageError(
                    f"{mount.path} is busy: {inside[0].path} is mounted in it",
                    remedy=f"`viewfs umount {inside[0].path}` first",
                )
            # A tree of other mounts is taken away whole: without MNT_DETACH, EBUSY would ask for unmounting them one by
            # one. And a device can be unplugged while programs have it open.
            served = self.history.served[mount.made_in]
            shows_others = served.decided is not None and served.decided.shows_others
            lazy = lazy or force or shows_others or served.control_fd is not None
            paths: Sequence[str] = mount.paths
            if (covered := self.layers.trees.get(mount.made_in)) is not None:
                paths = covered.roots
                if paths == ["/"]:
                    raise UsageError("the root stays copy-on-write as long as the view is there")
                lazy = lazy or len(covered.points) > 1
            if force:
                self._abort(mount)
            gone = (*inside, mount)  # what is inside goes with it
            with trio.CancelScope(shield=True):
                doing = f"cannot unmount {mount.path}"
                async with self.agent.worker("unmount", {"paths": paths, "lazy": lazy}) as worker:
                    with answering(doing, PLACE_SECONDS, "--force takes it away though its server hangs"):
                        report, fds = await worker.answer(doing)
                        with Descriptors(fds) as received:
                            self._intend(paths, report["depths"], operation, [one.made_in for one in gone])
                            await worker.channel.send({"go": True})
                            await worker.answer(doing)
                            snapshot = received.take(0)
                self.history.keep_snapshot(snapshot)
                for one in gone:
                    epoch = self.history.epochs.remove(one, time_ns=time.time_ns(), operation=operation)
                    self.layers.release(one.made_in)
                self.history.free()
                self._done()
                await self._tidy()
            if not lazy:
                self.servers.end_in_time(mount, served)
        return epoch

    def _abort(self, mount: Mount) -> None:
        """End its server, and those of what is mounted in it."""
        for one in (mount, *self.history.epochs.below(mount)):
            self.history.served[one.made_in].abort()

    async def follow_root_name(self, request: dict[str, Any], fds: list[int]) -> None:
        """Make the view follow a `name` that has come or gone in the host's root; `fds` has what it is now. Raises
        `ViewfsError`."""
        async with self._changing():
            path = f"/{request['name']}"
            if self._scaffold.has_made(path) or any(path in mount.paths for mount in self.history.epochs.live()):
                return  # a mount point of the view's own
            async with self.agent.worker("root_name", request, fds) as worker:
                report, received = await worker.answer(f"cannot show {path}")
                with Descriptors(received, report["descriptors"]) as servers:
                    self._mirror_servers.update(pid_of(servers[name]) for name in report["descriptors"])

    async def _tidy(self) -> None:
        """Take away mount points that were made and are not needed any more. What can't be taken away does no harm."""
        due = self._scaffold.due(self.history.epochs, self.history.kept)
        if due:
            request = {"plans": [asdict(plan) for plan in due.values()], "mirrors": list(self._mirrors)}
            async with self.agent.worker("tidy", request, list(self._mirrors.values())) as worker:
                await worker.answer("cannot take mount points away")
            self._scaffold.forget(due)
            for plan in due.values():
                if plan.needs_skeleton and (control := self._mirrors.pop(plan.parent, None)) is not None:
                    os.close(control)

    def close(self) -> None:
        """Close every descriptor that keeps a file system or an epoch alive."""
        self.history.close()
        self.layers.close()
        for fd in self._mirrors.values():
            os.close(fd)
        self._mirrors.clear()
