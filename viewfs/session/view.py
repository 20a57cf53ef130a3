"""The live view as the supervisor keeps it: what is mounted, by which server, and the epochs that can still be entered.

One change at a time. A change is made in the kernel first and then recorded, and what can fail comes before the step
that can't: until
the agent has attached a mount, giving up means closing descriptors.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from typing import Any

import trio

from viewfs.epochs import Epoch, EpochStack, Mount
from viewfs.errors import NotFoundError, UsageError, ViewfsError
from viewfs.linux.process import children_of, pid_of
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.skeleton import MountPointPlan
from viewfs.session.agent_link import AgentLink, Child, WorkerProcess
from viewfs.session.patience import LIFE_SECONDS, Patience
from viewfs.session.reports import Decided, Found
from viewfs.session.scaffold import Scaffold
from viewfs.session.served import ServedMount
from viewfs.session.server_options import ServerOptions
from viewfs.session.view_layers import ViewLayers
from viewfs.session.waiting import answering, ended_first, while_alive

__all__ = ["ServedMount", "View"]

#: Seconds that walking to a mount point may take; a file system on the way that does not answer is not waited for
#: longer.
_PLACE_SECONDS = 20
#: Modules whose mount is of other mounts' superblocks, so that its device says nothing about it.
_SHOWS_OTHERS = ("bind", "unreal")


def _held(fd: int | None) -> int:
    if fd is None:
        raise ViewfsError("the mount has been given up meanwhile")
    return fd


class _Descriptors:
    """Descriptors that came with a message: closed at the end of the block, but for those handed over by `take`."""

    def __init__(self, fds: list[int], names: Sequence[str] | None = None) -> None:
        self._fds: dict[str | int, int] = dict(zip(range(len(fds)) if names is None else names, fds, strict=True))

    def __getitem__(self, key: str | int) -> int:
        return self._fds[key]

    def take(self, key: str | int) -> int:
        return self._fds.pop(key)

    def __contains__(self, key: str | int) -> bool:
        return key in self._fds

    def __enter__(self) -> _Descriptors:
        return self

    def __exit__(self, *_error: object) -> None:
        for fd in self._fds.values():
            os.close(fd)


class View:
    """The epochs of a live view, and the changes that make them."""

    def __init__(
        self,
        agent: AgentLink,
        live_namespace: int,
        layers: ViewLayers,
        *,
        keep_history: bool,
        log: Callable[[str], None],
    ) -> None:
        self.agent = agent
        self.layers = layers
        self.epochs = EpochStack.begin(time.time_ns())
        self.served: dict[Epoch, ServedMount] = {}
        self._live_namespace = live_namespace
        self._snapshots: dict[Epoch, int] = {}
        #: Epochs in which the same was mounted as in an earlier one, which stands for them.
        self._same_as: dict[Epoch, Epoch] = {}
        self._scaffold = Scaffold()
        self._keep_history = keep_history
        self._log = log
        self._changing = trio.Lock()
        #: Directories that are served so that they can have mount points, by the control sockets of their servers.
        self._mirrors: dict[str, int] = {}
        self._mirror_servers: set[int] = set()

    # -- asking

    def namespace_of(self, epoch: Epoch) -> int:
        """A descriptor of the mount namespace of `epoch`, which stays ours. Raises `NotFoundError`."""
        if epoch not in self.epochs:
            raise NotFoundError(
                f"there is no epoch {epoch}", remedy=f"the newest is {self.epochs.current}; see `viewfs epochs`"
            )
        if epoch == self.epochs.current:
            return self._live_namespace
        snapshot = self._snapshots.get(self._same_as.get(epoch, epoch))
        if snapshot is None:
            gone = [mount for mount in self.epochs.past.values() if mount.in_epoch(epoch)]
            gone += [mount for mount in self.epochs.in_epoch(epoch) if mount.made_in not in self.epochs.alive()]
            what = (
                f"{gone[-1].path} ({gone[-1].type}) was unmounted in epoch {gone[-1].removed_in}" if gone else "freed"
            )
            raise NotFoundError(
                f"epoch {epoch} can't be entered any more: {what}",
                remedy="a session started with --history keeps what is unmounted",
            )
        return snapshot

    def enterable(self) -> set[Epoch]:
        return {*self._snapshots, *self._same_as, self.epochs.current}

    def _keep_snapshot(self, namespace: int) -> None:
        """`namespace` shows the current epoch, which is about to end."""
        mounts = {mount.made_in for mount in self.epochs.live()}
        for epoch in self._snapshots:
            if epoch not in self.layers.names and {mount.made_in for mount in self.epochs.in_epoch(epoch)} == mounts:
                self._same_as[self.epochs.current] = epoch
                os.close(namespace)
                return
        self._snapshots[self.epochs.current] = namespace

    def server_pids(self) -> set[int]:
        servers = {
            served.server.pid for served in self.served.values() if served.server and served.server.status is None
        }
        forked = self.layers.servers | self._mirror_servers  # which their parents may have replaced
        return servers.union(forked, *map(children_of, forked))

    # -- changing

    async def mount(self, request: dict[str, Any], nursery: trio.Nursery) -> Mount:
        """Mount as `request` says; `nursery` will watch the server. Raises `ViewfsError`, nothing having changed."""
        doing = f"cannot mount {request['source'] or request['type']}"
        deadline = ServerOptions.of(request["options"]).deadline
        for apart in (True, False):
            # What takes its time to open keeps nobody else from changing the view.
            async with self.agent.worker("mount", request | {"apart": apart}, apart=apart) as worker:
                with answering(doing, deadline, "is it damaged, or on a file system that hangs? -o deadline=SECONDS"):
                    report, fds = await worker.answer(doing)
                if report.get("needs_callers"):
                    continue
                with _Descriptors(fds, report.pop("descriptors")) as opened:
                    decided = Decided.from_json(report)
                    with answering(doing, deadline, "is it damaged? -o deadline=SECONDS waits longer"):
                        found = await worker.found(doing, decided)
                    async with self._changing:
                        return await self._place(request, worker, decided, found, opened, nursery)
        raise AssertionError("a worker that is not apart needs no other")

    async def _place(
        self,
        request: dict[str, Any],
        worker: WorkerProcess,
        decided: Decided,
        found: Found,
        opened: _Descriptors,
        nursery: trio.Nursery,
    ) -> Mount:
        """Let the placer make the mount points, attach, record."""
        kernel = decided.is_kernel
        doing = f"cannot mount on {decided.path}"
        wanted = {
            "path": decided.path,
            "type": decided.type,
            "source": decided.source,
            "directory": found.is_directory and found.names is None,
            "root_mode": None if kernel else found.root_mode,
            "writable": found.writable,
            "names": found.names,
        }
        options = ServerOptions.of(request["options"])
        served = ServedMount(decided.confinement, decided=decided, found=found, patience=Patience(options.deadline))
        plans: list[MountPointPlan] = []
        done = 0  # how many of them have something attached
        try:
            seconds = min(_PLACE_SECONDS, options.deadline)
            with answering(doing, seconds, "does a file system on the way there hang?"):
                mirrors = {"mirrors": list(self._mirrors)}
                request_fds = list(self._mirrors.values())
                async with (
                    self.agent.worker("place", wanted | mirrors, request_fds, undoes=True) as placer,
                    ended_first(worker, served),  # whose mount the placer may be looking at
                ):
                    placed, fds = await placer.answer(doing)
                    plans = [MountPointPlan.from_json(plan) for plan in placed["plans"]]
                    count_of_rest = len(placed["rest"])
                    fds, rest_fds = fds[: len(fds) - count_of_rest], fds[len(fds) - count_of_rest :]
                    with (
                        _Descriptors(fds) as made,
                        _Descriptors(rest_fds, placed["rest"]) as rest,
                        contextlib.ExitStack() as stack,
                    ):
                        count = len(plans)
                        if kernel:
                            trees = [opened["tree"]]
                        elif found.names is None:
                            trees = [made[count + 2]]
                        else:
                            # What is to be attached are files of the mount, and looking at them takes its server.
                            await self._let_serve(worker, served, made.take(count + 1), opened)
                            await placer.channel.send({"served": True})
                            async with while_alive(worker.child, doing):
                                _ok, trees = await placer.answer(doing)
                            stack.enter_context(_Descriptors(trees))
                        # From here on there is no giving up: what is attached gets recorded.
                        with trio.CancelScope(shield=True):
                            for number, tree in enumerate(trees, 1):
                                await self.agent.call("attach", [tree, made[number]])
                                done = number
                            if not kernel and served.server is None:
                                await self._let_serve(worker, served, made.take(count + 1), opened)
                            await placer.channel.send({"attached": True})
                            with answering(doing, _PLACE_SECONDS, "see `viewfs log`"):
                                attached, _none = await placer.answer(doing)
                        snapshot = made.take(0)
                        self._adopt_mirrors(placed, rest)
        except BaseException:
            served.release()
            if done:
                with trio.CancelScope(shield=True):
                    await self._take_back([plan.path for plan in plans[:done]])
            raise
        if decided.type not in _SHOWS_OTHERS:
            served.device = attached["device"]
        self._keep_snapshot(snapshot)
        mount = self.epochs.mount(
            plans[0].path,
            decided.type,
            decided.source,
            made_from=self._mount_on_device(decided.device),
            uses_view=decided.uses_view,
            also=tuple(plan.path for plan in plans[1:]),
            time_ns=time.time_ns(),
            operation=request["operation"],
        )
        served.request = request | {"type": decided.type, "code": request["type"] or decided.type, "path": decided.path}
        self.served[mount.made_in] = served
        for plan in plans:
            self._scaffold.add(mount.made_in, plan)
        self._free()
        if served.server is not None:
            nursery.start_soon(self._watch_server, mount, served, served.server)
            if not decided.has_devices:  # which may have callers wait for as long as they like
                nursery.start_soon(self._watch_answers, mount, served)
        return mount

    async def _take_back(self, paths: list[str]) -> None:
        """Detach what was attached by a mount that failed in the middle."""
        try:
            async with self.agent.worker("unmount", {"paths": paths, "lazy": True}) as worker:
                _report, (snapshot,) = await worker.answer("cannot take back the mount")
                os.close(snapshot)
        except (ViewfsError, trio.BrokenResourceError) as error:
            self._log(f"what was mounted on {', '.join(paths)} is still there: {error}")

    def _adopt_mirrors(self, placed: dict[str, Any], rest: _Descriptors) -> None:
        """Keep what it takes to add names to directories that are served from now on."""
        for number, directory in enumerate(placed["mirrors"]):
            self._mirrors[directory] = rest.take(f"control{number}")
        names = [name for name in placed["rest"] if name.startswith("server")]
        self._mirror_servers.update(pid_of(rest[name]) for name in names)

    async def _let_serve(self, worker: WorkerProcess, served: ServedMount, fuse_fd: int, opened: _Descriptors) -> None:
        """Give the server its /dev/fuse descriptor, and keep what is ours of it."""
        served.fuse_fd = fuse_fd
        try:
            await worker.channel.send({"serve": True}, [fuse_fd])
        except trio.BrokenResourceError:
            raise ViewfsError("the server has gone away before it began", remedy="see `viewfs log`") from None
        served.server = worker.child
        served.patience.begin(trio.current_time())
        served.counters = Counters(opened.take("counters"))
        if "source" in opened:
            served.source_fd = opened.take("source")
        if "control" in opened:
            served.control_fd = opened.take("control")

    def _mount_on_device(self, number: int | None) -> Epoch | None:
        if number is None:
            return None
        device = f"{os.major(number)}:{os.minor(number)}"
        alive = self.epochs.alive()
        return next(
            (epoch for epoch, served in self.served.items() if served.device == device and epoch in alive), None
        )

    async def cover(self, request: dict[str, Any]) -> tuple[Mount, list[str]]:
        """Make a tree copy-on-write; also what there was to say. Raises `ViewfsError`, nothing having changed."""
        async with self._changing:
            first = self._snapshots.get(Epoch(0), self._live_namespace)
            mount, messages = await self.layers.cover(self, request, first)
            await self.layers.take_up_states(self, mount)
        return mount, messages

    async def take_up_states(self) -> None:
        """Make epochs of the states that an earlier session kept of what was covered before anything ran."""
        async with self._changing:
            for mount in self.epochs.live():
                if mount.made_in in self.layers.trees:
                    await self.layers.take_up_states(self, mount)

    def record_cover(self, report: dict[str, Any], snapshot: int) -> Mount:
        """What `ViewLayers.cover` has mounted."""
        self._keep_snapshot(snapshot)
        others = tuple(root for root in report["roots"] if root != report["path"])
        made_from = self._mount_on_device(report["device"])
        mount = self.epochs.mount(
            report["path"], "cow", made_from=made_from, also=others, time_ns=time.time_ns(), operation="cow"
        )
        self.served[mount.made_in] = ServedMount("kernel")
        self._free()
        return mount

    async def keep_state(self, name: str, directory: str, operation: str) -> Epoch:
        """End the current epoch, whose state is kept; returns it. Raises `ViewfsError`, nothing having changed."""
        async with self._changing:
            return await self.layers.keep_state(self, name, directory, operation=operation)

    def record_state(self, namespace: int, name: str, operation: str) -> Epoch:
        """The current epoch ends, and `namespace` shows it from now on."""
        ended = self.epochs.current
        self._snapshots[ended] = namespace
        self.epochs.note(operation, source=name, time_ns=time.time_ns())
        return ended

    async def unmount(self, mount: Mount, *, lazy: bool, operation: str, force: bool = False) -> Epoch:
        """Take `mount` out of the view. Raises `ViewfsError`, nothing having changed.

        `lazy`: though something uses it; `force`: and its server, which may answer nothing any more, is ended.
        """
        async with self._changing:
            if self.epochs.is_shadowed(mount):
                over = self.epochs.resolve(mount.path).serving
                where = f"{over.path} ({over.type})" if over else "another mount"
                raise UsageError(f"{mount.path} is shadowed by {where}", remedy="unmount that first")
            inside = self.epochs.below(mount)
            if inside and not force:
                raise UsageError(
                    f"{mount.path} is busy: {inside[0].path} is mounted in it",
                    remedy=f"`viewfs umount {inside[0].path}` first",
                )
            # A tree of other mounts is taken away whole; unmounting it one by one is what EBUSY would ask for.
            # And a device can be unplugged while programs have it open.
            served = self.served[mount.made_in]
            lazy = lazy or force or mount.type in _SHOWS_OTHERS or served.control_fd is not None
            paths: Sequence[str] = mount.paths
            if (covered := self.layers.trees.get(mount.made_in)) is not None:
                paths = covered.roots
                if paths == ["/"]:
                    raise UsageError("the root stays copy-on-write as long as the view is there")
                lazy = lazy or len(covered.points) > 1
            if force:
                for one in (mount, *inside):
                    self.served[one.made_in].abort()
            with trio.CancelScope(shield=True):
                doing = f"cannot unmount {mount.path}"
                async with self.agent.worker("unmount", {"paths": paths, "lazy": lazy}) as worker:
                    with answering(doing, _PLACE_SECONDS, "--force takes it away though its server hangs"):
                        _report, (snapshot,) = await worker.answer(doing)
                self._keep_snapshot(snapshot)
                for one in (*(inside if force else ()), mount):  # what is inside goes with it
                    epoch = self.epochs.remove(one, time_ns=time.time_ns(), operation=operation)
                    self.layers.release(one.made_in)
                self._free()
                await self._tidy()
        return epoch

    async def follow_root_name(self, request: dict[str, Any], fds: list[int]) -> None:
        """A `name` has come to the host's root or gone: what it is now is in `fds`. Raises `ViewfsError`."""
        async with self._changing:
            path = f"/{request['name']}"
            if self._scaffold.has_made(path) or any(path in mount.paths for mount in self.epochs.live()):
                return  # a mount point of the view's own
            async with self.agent.worker("root_name", request, fds) as worker:
                report, received = await worker.answer(f"cannot show {path}")
                with _Descriptors(received, report["descriptors"]) as servers:
                    self._mirror_servers.update(pid_of(servers[name]) for name in report["descriptors"])

    async def _tidy(self) -> None:
        """Take away what was made to mount on and is needed no more. What can't be taken away does no harm."""
        due = self._scaffold.take_due(self.epochs, self._snapshots)
        if due:
            request = {"plans": [asdict(plan) for plan in due], "mirrors": list(self._mirrors)}
            async with self.agent.worker("tidy", request, list(self._mirrors.values())) as worker:
                await worker.answer("cannot take mount points away")
            for plan in due:
                if plan.needs_skeleton and (control := self._mirrors.pop(plan.parent, None)) is not None:
                    os.close(control)

    def _free(self) -> None:
        """Let go of the epochs in which something no longer works; the kernel then ends what nobody holds."""
        alive = self.epochs.alive()
        for epoch, served in self.served.items():
            if epoch not in alive:
                served.withdraw()
        if self._keep_history:
            return
        for epoch in list(self._snapshots):
            if not all(mount.made_in in alive for mount in self.epochs.in_epoch(epoch)):
                os.close(self._snapshots.pop(epoch))
        self._same_as = {epoch: other for epoch, other in self._same_as.items() if other in self._snapshots}
        entered = [Epoch(epoch) for epoch in (*self._snapshots, self.epochs.current)]
        for mount in list(self.epochs.mounts.values()):
            served = self.served[mount.made_in]
            if mount.made_in in alive or served.is_running or any(map(mount.in_epoch, entered)):
                continue
            self.served.pop(mount.made_in).forget()
            self.epochs.retire(mount)

    async def _watch_server(self, mount: Mount, served: ServedMount, server: Child) -> None:
        """Until the mount is gone; a server that dies before is replaced if that can be done without loss."""
        while True:
            await server.ended.wait()
            if served.successor is not None:
                served.server, served.successor = served.successor, None
                server = served.server
                continue
            if server.status == 0:
                break
            status = server.status or 0
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            self._log(f"the server of {mount.path} ({mount.type}) ended: {how}")
            if (successor := await self._find_successor(mount, served)) is None:
                break
            served.server = server = successor
            self._log(f"another server has taken over {mount.path}")
        # Whoever waits for an answer now gets ENOTCONN instead of waiting for ever.
        served.release()
        self._free()

    async def _find_successor(self, mount: Mount, served: ServedMount) -> Child | None:
        """Another server that has taken over, sooner or later; None where none can."""
        while (seconds := served.seconds_to_resume()) is not None:
            await trio.sleep(seconds)
            served.patience.begin(trio.current_time())
            if mount.made_in not in self.epochs.alive():
                return None
            try:
                return await self._resume(served)
            except (ViewfsError, trio.BrokenResourceError, OSError) as error:
                self._log(f"no other server can take over {mount.path} yet: {error}")
        if served.fuse_fd is not None and served.patience.failures:
            self._log(f"no other server can take over {mount.path}: they end without having answered anything")
        return None

    async def _watch_answers(self, mount: Mount, served: ServedMount) -> None:
        """End a server that has been at one request for longer than its deadline: another may do better."""
        deadline = served.options.deadline
        while True:
            await trio.sleep(min(deadline / 4, LIFE_SECONDS))
            if served.server is None or served.counters is None or served.fuse_fd is None:
                return
            oldest = served.counters.oldest_ns()
            if oldest and time.perf_counter_ns() - oldest > deadline * 10**9 and served.is_running:
                self._log(f"the server of {mount.path} ({mount.type}) has not answered for {deadline} s: it is ended")
                served.counters.forget_begun()
                served.server.kill()

    async def _resume(self, served: ServedMount) -> Child:
        async with self._successor(served, anew=False) as worker:
            await worker.channel.send({"serve": True}, [_held(served.fuse_fd)])
        return worker.child

    @contextlib.asynccontextmanager
    async def _successor(
        self, served: ServedMount, epoch: int | None = None, *, anew: bool
    ) -> AsyncIterator[WorkerProcess]:
        """Another server, which has opened what was mounted, and may begin. Raises `ViewfsError`."""
        decided = served.decided
        assert decided is not None and served.counters is not None
        fds = {"counters": served.counters.fd, "source": served.source_fd, "epoch": epoch}
        given = {name: fd for name, fd in fds.items() if fd is not None}
        request = served.request | {"anew": anew, "descriptors": list(given)}
        doing = f"cannot have another server take over {decided.path}"
        async with self.agent.worker("resume", request, list(given.values()), apart=True) as worker:
            with answering(doing, served.options.deadline, "see `viewfs log`"):
                found = await worker.found(doing, decided)
            if found != served.found:
                raise ViewfsError(
                    f"{doing}: what it finds is not what was mounted", remedy="unmount it, and mount it anew"
                )
            yield worker

    async def restart(self, mount: Mount) -> int:
        """Have another server go on, with the module's code as it is now; its pid. Raises `ViewfsError`, the one before
        going on."""
        served = self.served[mount.made_in]
        doing = f"cannot restart {mount.path}"
        remedy = "unmount it, and mount it anew"
        if served.decided is None or served.found is None or served.decided.is_kernel:
            raise UsageError(f"{doing}: no module serves it")
        if served.decided.has_devices or served.found.writable:
            raise UsageError(f"{doing}: its server has state that another would not have", remedy=remedy)
        if served.fuse_fd is None or served.server is None or served.successor is not None:
            raise UsageError(f"{doing}: its server is dead, or another is about to take over", remedy=remedy)
        epoch = self.namespace_of(Epoch(mount.made_in - 1)) if served.decided.uses_view else None
        async with self._successor(served, epoch, anew=True) as worker:
            before, served.successor = served.server, worker.child
            with trio.CancelScope(shield=True):
                before.kill()
                await before.ended.wait()
                served.patience.begin(trio.current_time())
                await worker.channel.send({"serve": True}, [_held(served.fuse_fd)])
        self._log(f"{mount.path} ({mount.type}) was restarted")
        return worker.child.pid

    def close(self) -> None:
        """Close every descriptor that keeps a file system or an epoch alive."""
        for served in self.served.values():
            served.forget()
        self.layers.close()
        for fd in self._mirrors.values():
            os.close(fd)
        self._mirrors.clear()
        for fd in self._snapshots.values():
            os.close(fd)
        self._snapshots.clear()
