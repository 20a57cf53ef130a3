"""The requests that a client can make over the control socket, one method each."""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from viewfs import __version__
from viewfs.cow.layer.records import is_state_directory
from viewfs.epochs import Epoch, Mount
from viewfs.errors import NotFoundError, UsageError, ViewfsError
from viewfs.linux.namespaces import namespace_id
from viewfs.namespaces.enter import NO_LIMIT
from viewfs.session.plans import AgentPlan
from viewfs.session.supervisor.agent_link import AgentLink, Child
from viewfs.session.supervisor.happenings import Happenings, checked_message
from viewfs.session.supervisor.placing import COMPLETE
from viewfs.session.supervisor.view import View
from viewfs.session.wire.async_channel import AsyncChannel
from viewfs.session.wire.protocol import VERSION, Message, failure, success

__all__ = ["Connection"]

#: Three streams, and the file that says what is to be run.
_SPAWN_FDS = 4
#: What `remount` changes: MOUNT_ATTR_RDONLY, NOSUID, NODEV and NOEXEC.
_ATTRIBUTES = 0xF

Result = tuple[dict[str, Any], list[int]]


class Owner(Protocol):
    """What a connection knows of the supervisor, and may have it do."""

    name: str
    command: list[str]
    started_ns: int
    plan: AgentPlan
    namespaces: dict[str, int]
    #: A socket that whoever enters the view sends the listener of its system calls to.
    calls_sender: int | None
    log_lines: deque[str]
    happenings: Happenings
    #: The session goes on without the process that the user started.
    kept: bool
    view: View
    agent: AgentLink
    #: Commands that run for clients.
    commands: dict[int, Child]
    #: For what goes on when the connection has ended.
    nursery: trio.Nursery
    #: Set when the session is to end.
    ending: trio.Event

    def log(self, line: str) -> None: ...

    def keep(self) -> None: ...

    def stays_open(self, channel: AsyncChannel) -> None: ...

    def forget_command(self, child: Child) -> None: ...


class Connection:
    """One client. A request that is under way when the client goes away is given up."""

    def __init__(self, supervisor: Owner, channel: AsyncChannel) -> None:
        self._supervisor = supervisor
        self._view = supervisor.view
        self._channel = channel
        self._operations: dict[str, Callable[[Message, list[int]], Awaitable[Result]]] = {
            "status": self._status,
            "mount": self._mount,
            "umount": self._umount,
            "remount": self._remount,
            "restart": self._restart,
            "cow": self._cow,
            "layers": self._layers,
            "layer": self._layer,
            "state": self._state,
            "keep": self._keep,
            "lsmod": self._lsmod,
            "stats": self._stats,
            "epochs": self._epochs,
            "resolve": self._resolve,
            "enter": self._enter,
            "spawn": self._spawn,
            "await": self._await,
            "log": self._log,
            "events": self._events,
            "publish": self._publish,
            "end": self._end,
        }

    async def serve(self) -> None:
        status, _none = await self._status({}, [])
        greeting = {"viewfs": VERSION, "version": __version__, "session": self._supervisor.name, "status": status}
        await self._channel.send(greeting)
        async with trio.open_nursery() as nursery:
            while (received := await self._channel.receive()) is not None:
                nursery.start_soon(self._handle, *received)
            nursery.cancel_scope.cancel()

    async def _handle(self, request: Message, fds: list[int]) -> None:
        try:
            operation = self._operations.get(request.get("op", ""))
            if operation is None:
                raise UsageError(
                    f"session {self._supervisor.name} knows no {request.get('op')}", remedy="is it of another version?"
                )
            result, result_fds = await operation(request, fds)
            reply = success(request, **result)
        except ViewfsError as error:
            if "caller" in request:  # a system call, which has room for a number only
                self._supervisor.log(f"{request['operation']}(2) of {request['caller']}: {error}")
            reply, result_fds = failure(request, error), []
        except (KeyError, TypeError, ValueError) as error:
            reply, result_fds = failure(request, UsageError(f"a malformed request: {error!r}")), []
        except Exception as error:  # a worker that went away in the middle, or a defect: only this request fails
            self._supervisor.log("".join(traceback.format_exception(error)).rstrip())
            what = ViewfsError(
                f"{request.get('op')} failed: {type(error).__name__}: {error}", remedy="see `viewfs log`"
            )
            reply, result_fds = failure(request, what), []
        finally:
            for fd in fds:
                os.close(fd)
        try:
            await self._channel.send(reply, result_fds)
        except trio.BrokenResourceError:
            pass  # it has gone away
        finally:
            for fd in result_fds:
                os.close(fd)

    def _epoch(self, request: Message) -> Epoch:
        epoch = request.get("epoch")
        return self._view.history.epochs.current if epoch is None else Epoch(int(epoch))

    async def _status(self, _request: Message, _fds: list[int]) -> Result:
        supervisor = self._supervisor
        return {
            "name": supervisor.name,
            "pid": os.getpid(),
            "command": supervisor.command,
            "started_ns": supervisor.started_ns,
            "epoch": self._view.history.epochs.current,
            "mounts": len(self._view.history.epochs.live()),
            "as_root": supervisor.plan.as_root,
            "kept": supervisor.kept,
            "namespaces": {kind: namespace_id(fd) for kind, fd in supervisor.namespaces.items()},
        }, []

    async def _mount(self, request: Message, fds: list[int]) -> Result:
        mount = await self._view.mount(COMPLETE | request, fds)
        return {"epoch": mount.made_in, "path": mount.path or mount.source, "type": mount.type}, []

    async def _cow(self, request: Message, _fds: list[int]) -> Result:
        mount, messages = await self._view.cover(request)
        return {"epoch": mount.made_in, "path": mount.path, "type": mount.type, "messages": messages}, []

    async def _layers(self, _request: Message, _fds: list[int]) -> Result:
        """What is copy-on-write; `layer` gives the descriptors of one."""
        names = self._view.history.state_names
        rows = [
            {
                "path": layer.path,
                "lower": layer.lower,
                "backend": layer.backend,
                "states": [{"epoch": epoch, "name": names.get(epoch, "")} for epoch in sorted(layer.states)],
            }
            for layer in self._view.layers.layers()
        ]
        return {"layers": rows, "epoch": self._view.history.epochs.current}, []

    async def _layer(self, request: Message, _fds: list[int]) -> Result:
        """Descriptors of the layer at `path`: its lower tree, its directory, what the view shows, what `states` did."""
        held = next((layer for layer in self._view.layers.layers() if layer.path == request["path"]), None)
        if held is None:
            raise NotFoundError(f"{request['path']} is not copy-on-write", remedy="`viewfs cow PATH` makes it so")
        wanted = [self._view.layers.find_state(str(name)) for name in request.get("states", ())]
        states = [held.states.get(epoch, held.lower_fd) for epoch in wanted]  # it may have been covered later
        fds = [held.lower_fd, held.layer_fd, held.view_fd, *states]
        return {"path": held.path, "lower": held.lower, "epochs": wanted}, [os.dup(fd) for fd in fds]

    async def _state(self, request: Message, _fds: list[int]) -> Result:
        """The epoch that a state is kept of, by number or name."""
        return {"epoch": self._view.layers.find_state(str(request["state"]))}, []

    async def _keep(self, request: Message, _fds: list[int]) -> Result:
        """End the epoch, with the state that the client has copied to `directory` of each layer."""
        operation = str(request.get("operation", "checkpoint"))
        directory = str(request["directory"])
        if not is_state_directory(directory):
            raise UsageError(f"{directory!r} names no state")
        ended = await self._view.keep_state(str(request["name"]), directory, operation)
        return {"epoch": ended, "current": self._view.history.epochs.current}, []

    async def _umount(self, request: Message, _fds: list[int]) -> Result:
        force = bool(request.get("force"))
        try:
            mount = self._named_mount(request)
        except NotFoundError:
            if request.get("part") and self._is_in_bind(request["path"]):
                await self._view.unmount_part(request["path"], lazy=bool(request["lazy"]))
                return {"epoch": self._view.history.epochs.current, "path": request["path"]}, []
            if not force or (left := self._unmounted(request)) is None:
                raise
            self._view.history.served[left.made_in].abort()
            return {"epoch": self._view.history.epochs.current, "path": left.path}, []
        epoch = await self._view.unmount(
            mount,
            lazy=bool(request.get("lazy")),
            force=force,
            with_inside=bool(request.get("inside")),
            operation=request.get("operation", "umount"),
        )
        return {"epoch": epoch, "path": mount.path or mount.source}, []

    def _is_in_bind(self, path: str) -> bool:
        """Is `path` shown by a mount that shows others, with all that is mounted in them?"""
        serving = self._view.history.epochs.resolve(path).serving
        decided = None if serving is None else self._view.history.served[serving.made_in].decided
        return decided is not None and decided.shows_others

    async def _remount(self, request: Message, _fds: list[int]) -> Result:
        mount = self._named_mount(request)
        await self._view.remount(mount, request["set"] & _ATTRIBUTES, request["clear"] & _ATTRIBUTES)
        return {"path": mount.path}, []

    async def _restart(self, request: Message, _fds: list[int]) -> Result:
        mount = self._named_mount(request)
        return {"path": mount.path or mount.source, "server": await self._view.servers.restart(mount)}, []

    def _unmounted(self, request: Message) -> Mount | None:
        """The last of those at that path, or of that module, which were unmounted and whose server is there still."""
        history = self._view.history
        found = [
            mount
            for mount in history.epochs.mounts.values()
            if mount.removed_in is not None
            and (mount.path == request.get("path") or mount.type == request.get("module"))
            and history.served[mount.made_in].is_running
        ]
        return found[-1] if found else None

    def _named_mount(self, request: Message) -> Mount:
        """The mount at `path`, or the only one of the module `module`."""
        path = request.get("path")
        if path is not None and (mount := self._view.history.epochs.visible_on(path)) is not None:
            return mount
        if (owning := self._owning(path)) is not None:
            return owning
        module = request.get("module")
        if module is None or "/" in module:
            raise NotFoundError(f"nothing of this view is mounted on {path}", remedy="`viewfs lsmod` lists what is")
        loaded = [mount for mount in self._view.history.epochs.live() if mount.type == module]
        if not loaded:
            raise NotFoundError(f"no module {module} is loaded", remedy="`viewfs lsmod` lists what is")
        if len(loaded) > 1 and any(mount.path or mount.source for mount in loaded):
            places = ", ".join(mount.path or mount.source or "(all)" for mount in loaded)
            raise UsageError(
                f"module {module} is loaded {len(loaded)} times", remedy=f"name one by its place: {places}"
            )
        return loaded[-1]

    def _owning(self, path: str | None) -> Mount | None:
        """The newest module that answers system calls about this place."""
        live = [mount for mount in self._view.history.epochs.live() if not mount.path and mount.source == path]
        return live[-1] if live else None

    async def _lsmod(self, _request: Message, _fds: list[int]) -> Result:
        epochs = self._view.history.epochs
        alive = epochs.alive()
        rows = []
        for mount in epochs.mounts.values():
            served = self._view.history.served[mount.made_in]
            server = served.server
            running = server is not None and server.status is None
            if mount.made_in not in alive and not running:
                continue
            counted = served.snapshot()
            rows.append(
                {
                    "module": mount.type,
                    "path": mount.path or mount.source,
                    "also": list(mount.also),
                    "source": mount.source if mount.path else "",
                    "epoch": mount.made_in,
                    "calls": served.calls,
                    "state": self._state_of(mount, served.server is not None and not running, served.fuse_fd is None),
                    "pinned_by": sorted(other.made_in for other in epochs.pins(mount)),
                    "server": server.pid if server is not None and running else None,
                    "confinement": served.confinement,
                    "requests": counted.requests if counted else {},
                    "bytes": counted.bytes_out if counted else 0,
                    "errors": counted.errors if counted else 0,
                }
            )
        return {"modules": rows}, []

    async def _stats(self, _request: Message, _fds: list[int]) -> Result:
        rows = []
        for mount in self._view.history.epochs.mounts.values():
            served = self._view.history.served[mount.made_in]
            if served.counters is None or served.server is None or served.server.status is not None:
                continue
            counted = served.snapshot()
            assert counted is not None
            rows.append(
                {
                    "module": mount.type,
                    "path": mount.path or mount.source,
                    "epoch": mount.made_in,
                    "server": served.server.pid,
                    "requests": counted.requests,
                    "latency_ns": {name: latency._asdict() for name, latency in counted.latency.items()},
                    "bytes": counted.bytes_out,
                    "errors": counted.errors,
                    "ahead": {"messages": counted.pushes, "bytes": counted.bytes_pushed},
                    "cache": {"hits": counted.hits, "misses": counted.misses},
                }
            )
        return {"servers": rows}, []

    def _state_of(self, mount: Mount, ended: bool, given_up: bool) -> str:
        if ended:
            return "dead" if given_up else "restarting"
        if mount.removed_in is not None:
            return "unmounted"
        return "shadowed" if self._view.history.epochs.is_shadowed(mount) else "mounted"

    async def _epochs(self, _request: Message, _fds: list[int]) -> Result:
        epochs = self._view.history.epochs
        enterable = self._view.history.enterable()
        rows = []
        for change in epochs.changes:
            mount = epochs.mount_of(change.mount) if change.mount is not None else None
            made_here = mount is not None and mount.made_in == change.epoch
            live = mount is not None and mount.removed_in is None
            rows.append(
                {
                    "epoch": change.epoch,
                    "time_ns": change.time_ns,
                    "operation": change.operation,
                    "path": change.path,
                    "type": change.type,
                    "source": change.source,
                    "shadowed": made_here and live and mount is not None and epochs.is_shadowed(mount),
                    "removed_in": mount.removed_in if made_here and mount is not None else None,
                    "made_from": mount.made_from if made_here and mount is not None else None,
                    "pinned_by": sorted(other.made_in for other in epochs.pins(mount)) if made_here and mount else [],
                    "enterable": change.epoch in enterable,
                }
            )
        return {"current": epochs.current, "epochs": rows}, []

    async def _resolve(self, request: Message, _fds: list[int]) -> Result:
        epoch = self._epoch(request)
        if epoch not in self._view.history.epochs:
            raise NotFoundError(
                f"there is no epoch {epoch}", remedy=f"the newest is {self._view.history.epochs.current}"
            )
        found = self._view.history.epochs.resolve(request["path"], epoch)

        def row(mount: Mount) -> dict[str, Any]:
            return {"epoch": mount.made_in, "path": mount.path, "type": mount.type, "source": mount.source}

        return {
            "path": request["path"],
            "epoch": epoch,
            "serving": row(found.serving) if found.serving else None,
            "shadowed": [row(mount) for mount in found.shadowed],
        }, []

    async def _enter(self, request: Message, _fds: list[int]) -> Result:
        """Descriptors of the view's namespaces, for a client that may join them."""
        namespaces = self._supervisor.namespaces | {"mnt": self._view.history.namespace_of(self._epoch(request))}
        calls = self._supervisor.calls_sender
        fds = [os.dup(fd) for fd in (*namespaces.values(), *(() if calls is None else (calls,)))]
        said = {
            "kinds": list(namespaces),
            "as_root": self._supervisor.plan.as_root,
            "calls": calls is not None,
            "families": list(self._supervisor.plan.families),
            "limit": self._limit(self._epoch(request)),
        }
        return said, fds

    def _limit(self, epoch: Epoch) -> int:
        """The first epoch whose modules answer no system calls of a command that runs in `epoch`."""
        return NO_LIMIT if epoch == self._view.history.epochs.current else epoch + 1

    async def _spawn(self, request: Message, fds: list[int]) -> Result:
        """Run a command for a client that may not join namespaces itself; its end is announced when it comes."""
        epoch = self._epoch(request)
        if len(fds) != _SPAWN_FDS:
            raise UsageError("a malformed request: three streams and the command are descriptors")
        streams = list(fds)
        if epoch != self._view.history.epochs.current:
            streams.append(self._view.history.namespace_of(epoch))
        asked = {"group": request["group"], "limit": self._limit(epoch)}
        child = await self._supervisor.agent.spawn(asked, streams)
        self._supervisor.commands[child.number] = child
        self._supervisor.keep()
        self._supervisor.happenings.add("command", command=child.number)
        self._supervisor.nursery.start_soon(self._announce_end, child)
        assert child.pidfd is not None
        return {"number": child.number}, [os.dup(child.pidfd)]

    async def _await(self, request: Message, _fds: list[int]) -> Result:
        """Announce the end of a command that another supervisor had started."""
        child = self._supervisor.commands.get(request["number"])
        if child is None:
            raise NotFoundError(f"no command has the number {request['number']}")
        self._supervisor.nursery.start_soon(self._announce_end, child)
        return {}, []

    async def _announce_end(self, child: Child) -> None:
        await child.ended.wait()
        self._supervisor.happenings.add("command-ended", command=child.number, status=child.status)
        try:
            await self._channel.send({"ended": child.number, "status": child.status})
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._supervisor.forget_command(child)

    async def _events(self, request: Message, _fds: list[int]) -> Result:
        found = await self._supervisor.happenings.after(int(request["after"]), wait=bool(request["wait"]))
        return {"events": found}, []

    async def _publish(self, request: Message, _fds: list[int]) -> Result:
        checked_message(request["name"], request["value"])
        number = self._supervisor.happenings.add("message", name=request["name"], value=request["value"])
        return {"number": number}, []

    async def _log(self, _request: Message, _fds: list[int]) -> Result:
        return {"lines": list(self._supervisor.log_lines)}, []

    async def _end(self, _request: Message, _fds: list[int]) -> Result:
        async def end_soon() -> None:
            await trio.sleep(0)  # let the reply go out first
            self._supervisor.ending.set()

        self._supervisor.stays_open(self._channel)
        self._supervisor.nursery.start_soon(end_soon)
        return {}, []
