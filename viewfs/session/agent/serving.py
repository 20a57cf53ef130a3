"""Workers that become servers: they open what is to be mounted, shut themselves in, look at it, and serve it."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from viewfs.errors import DamagedSourceError, UsageError
from viewfs.linux.files import is_on_fuse
from viewfs.linux.ids import mapped_ids
from viewfs.linux.landlock import landlock_version
from viewfs.linux.namespaces import CloneFlags, setns, unshare
from viewfs.linux.scm import parked, unparked
from viewfs.modules.api import Answer, Identities, Module, Mounting, Source, WritableFileSystem
from viewfs.modules.api.calls import CallModule
from viewfs.modules.api.device import DeviceModule
from viewfs.modules.api.options import parse_options
from viewfs.modules.framework import registry
from viewfs.modules.framework.foreign import ForeignModule, ProgramModule, module_of_program
from viewfs.modules.framework.kernel import KernelModule
from viewfs.modules.framework.sources import FileSource, identity_of, open_source
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.host import serve, take_over
from viewfs.namespaces.enter import Asking, open_namespace
from viewfs.namespaces.sandbox import Confinement, Limits
from viewfs.python import complete
from viewfs.session.agent.inspection import find_by_content, part_of
from viewfs.session.agent.shutting_in import confinement_of, shut_in
from viewfs.session.server_options import SERVER_OPTIONS, ServerOptions
from viewfs.session.wire.channel import Channel
from viewfs.session.wire.reports import Decided, Found

__all__ = ["mount", "resume"]

T = TypeVar("T")

#: How many files a server that uses the view may have open.
_DESCRIPTORS_IN_VIEW = 1024


def mount(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """Become the server of a module, which sees the view as it is now, or make a kernel mount and end. `fds` came with
    the request, for a kernel mount."""
    asking = _asking(request, fds)
    view = open_namespace("mnt")
    unshare(CloneFlags.NEWNS)
    try:
        found, source, unsure = _find(request)
    except ModuleNotFoundError:
        if not complete():
            raise
        found, source, unsure = _find(request)
    module = found.module()
    if isinstance(module, CallModule) and module.lives_in_view:
        setns(view, CloneFlags.NEWNS)
    os.close(view)
    tells_callers = isinstance(module, KernelModule) and module.tells_callers
    if request["apart"] and (tells_callers or isinstance(module, DeviceModule | CallModule)):
        channel.send({"ok": {"needs_callers": True}})  # pids of callers mean nothing in this namespace
        return
    path = request["path"] or module.mount_point
    if isinstance(module, CallModule):
        path = path or ""
    elif asking is not None:
        os.close(asking.keeper)
    if path is None:
        raise UsageError(f"module {module.name} has no place of its own", remedy=f"viewfs insmod {module.name} PATH")
    has_none = isinstance(module, CallModule) and path == ""
    if not isinstance(path, str) or not (os.path.isabs(path) or has_none) or "\0" in path:
        raise UsageError(f"module {module.name} wants to be at {path!r}, which is no absolute path")
    path = os.path.normpath(path) if path else ""
    mounting = _mounting(module, request, source, path)
    limits = _limits(request, mounting, module)
    decided = Decided(
        type=module.name,
        path=path,
        # A type that needs no source takes any word for it.
        source=request["source"] if source is not None or _shows_source(module) else "",
        uses_view=module.uses_view,
        confinement=_confinement_shown(module),
        has_devices=isinstance(module, DeviceModule),
        is_built_in=found.built_in,
        shows_others=isinstance(module, KernelModule) and module.shows_others,
        speaks_fuse=isinstance(module, ForeignModule),
        device=None if source is None else os.fstat(source.fd).st_dev,
        source_identity=None if source is None else identity_of(os.fstat(source.fd)),
    )
    if isinstance(module, CallModule):
        from viewfs.session.agent.call_serving import new_token, what_it_answers, what_it_can_miss

        real_path = os.path.realpath(path) if path else ""
        decided = replace(
            decided,
            calls=what_it_answers(module),
            dispensable=what_it_can_miss(module),
            token=new_token(),
            real_path=real_path,
        )
    if isinstance(module, KernelModule):
        if not found.built_in:
            raise UsageError(f"module {module.name} wants to mount by itself, which only built-in modules may")
        if module.takes_path:
            decided = replace(decided, device=_device_of(request["source"]))
        module.given = fds
        tree = module.mount(mounting)
        root = module.root_mode(tree)
        _tell_decided(channel, decided, {"tree": tree})
        os.close(tree)  # else it could not be unmounted until this process has ended
        channel.send({"ok": Found(root).to_json()})
        return
    counters = Counters.create()
    if isinstance(module, ForeignModule):
        _tell_decided(channel, decided, {"counters": counters.fd})
        _serve_foreign(channel, module, mounting, limits, counters)
        return
    descriptors = {"counters": counters.fd}
    if source is not None:
        descriptors["source"] = _keepable(source.fd)  # another server needs it to take over, like the following
    if isinstance(module, DeviceModule):
        from viewfs.session.agent.device_serving import what_is_kept

        # Whoever has the other end takes the devices away by closing it.
        descriptors["watch"], descriptors["control"] = os.pipe2(os.O_CLOEXEC)
        descriptors |= what_is_kept(module, mounting)
    _tell_decided(channel, decided, descriptors)
    if "control" in descriptors:
        os.close(descriptors.pop("control"))
    if source is not None and descriptors["source"] != source.fd:
        os.close(descriptors.pop("source"))
    own = {"token": decided.token, "asking": asking, "resumed": False}
    serving, seen = _open(module, request, mounting, limits, descriptors, own, unsure)
    channel.send({"ok": seen.to_json()})
    received = channel.receive()
    if received is not None:  # else the mount was given up
        channel.close()
        serving(received[1][0], counters)


def _serve_foreign(
    channel: Channel, module: ForeignModule, mounting: Mounting, limits: Limits, counters: Counters
) -> None:
    """Have a module serve that speaks FUSE itself. If it is a program, it is confined before it is executed."""
    from viewfs.mounts.fuse.counted import counted

    if module.is_program:
        module.prepare(mounting)
        shut_in(module, mounting, limits)
    else:
        module.load()
        shut_in(module, mounting, limits)
        module.prepare(mounting)
    channel.send({"ok": Found(module.root_mode, writable=module.writable and not mounting.options.get("ro")).to_json()})
    received = channel.receive()
    if received is not None:  # else the mount was given up
        channel.close()
        module.serve(received[1][0], partial(counted, counters.rows[0]))


def _tell_decided(channel: Channel, decided: Decided, descriptors: dict[str, int]) -> None:
    """Tell the supervisor what is to be mounted, and give it `descriptors`, by name."""
    channel.send({"ok": decided.to_json() | {"descriptors": list(descriptors)}}, list(descriptors.values()))


def _confinement_shown(module: Module) -> str:
    if isinstance(module, KernelModule):
        return "kernel"
    if isinstance(module, CallModule) and module.lives_in_view:
        return "program"
    shown = confinement_of(module).value
    if isinstance(module, DeviceModule) and module.uses_caller_memory:
        return shown + "+caller memory"
    return shown if landlock_version() else f"{shown}, no Landlock"


def resume(channel: Channel, request: dict[str, Any], fds: list[int]) -> None:
    """Become the server of a mount whose server has died, or is restarted: then with the module's present code.

    `fds` are what `descriptors` of the request says: the counters; the source, if there is one; the epoch that the
    module sees, if it uses the view; and for devices the pipe by which they are taken away, and what outlives their
    server.
    """
    asking = _asking(request, fds)
    opened = dict(zip(request["descriptors"], fds, strict=True))
    if request["anew"]:
        registry.forget_code(request["code"])
    module = registry.find_module(request["code"]).module()
    if asking is not None and not isinstance(module, CallModule):
        os.close(asking.keeper)
    if module.name != request["type"]:
        raise UsageError(f"{request['code']} is the module {module.name} now, and not {request['type']}")
    if isinstance(module, DeviceModule) != ("watch" in opened):
        raise UsageError(f"{request['code']} has become another kind of module")
    if "epoch" in opened:
        setns(opened["epoch"], CloneFlags.NEWNS)
    if not (isinstance(module, CallModule) and module.lives_in_view):
        unshare(CloneFlags.NEWNS)
    source = None
    if "source" in opened:
        if stat.S_ISSOCK(os.fstat(opened["source"]).st_mode):
            opened["source"] = unparked(opened["source"])
        size = os.lseek(opened["source"], 0, os.SEEK_END)
        writable = fcntl.fcntl(opened["source"], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        source = FileSource(opened["source"], size, writable=writable)
    mounting = _mounting(module, request, source, request["path"])
    limits = _limits(request, mounting, module)
    if isinstance(module, CallModule):
        from viewfs.session.agent.call_serving import check_again

        check_again(module, request["calls"])
    own = {"token": request.get("token"), "asking": asking, "resumed": True}
    serving, seen = _open(module, request, mounting, limits, opened, own)
    channel.send({"ok": seen.to_json()})
    received = channel.receive()
    if received is not None:
        channel.close()
        (fuse_fd,) = received[1]
        if not isinstance(module, CallModule):
            take_over(fuse_fd)
        serving(fuse_fd, Counters(opened["counters"]))


def _asking(request: dict[str, Any], fds: list[int]) -> Asking | None:
    """How this process can ask the session about system calls. The agent gives the socket behind the other `fds`, and
    it is taken from them."""
    return Asking(fds.pop(), request["families"]) if "families" in request else None


def _keepable(source: int) -> int:
    """A descriptor of `source` that others can keep, and close without waiting for anybody."""
    try:
        return parked(source) if is_on_fuse(source) else source
    except OSError:
        return source  # there are too many


def _mounting(module: Module, request: dict[str, Any], source: FileSource | None, path: str) -> Mounting:
    return Mounting(
        source=source,
        source_name=request["source"],
        mount_point=path,
        identities=_identities(),
        options=parse_options(
            module.name,
            module.options,
            ServerOptions.without(request["options"]),
            besides=() if isinstance(module, KernelModule) else [option.name for option in SERVER_OPTIONS],
        ),
    )


def _limits(request: dict[str, Any], mounting: Mounting, module: Module) -> Limits:
    options = ServerOptions.of(request["options"])
    memory = options.memory + module.memory(mounting.options)
    if confinement_of(module) is not Confinement.SEALED:  # it opens files of its own
        return Limits(memory, options.processes, descriptors=_DESCRIPTORS_IN_VIEW, file_size=None)
    written = mounting.source.size if module.writes_source and mounting.source is not None else 0
    return Limits(memory, options.processes, file_size=written)


def _open(
    module: Module,
    request: dict[str, Any],
    mounting: Mounting,
    limits: Limits,
    fds: dict[str, int],
    own: dict[str, Any],
    unsure: Source | None = None,
) -> tuple[Callable[[int, Counters], None], Found]:
    """Shut this process in, and only then let the module look at its source: what serves it, and what to report.

    `fds` are for devices (`device_serving.open_devices`), `own` is for modules that answer system calls
    (`call_serving.open_calls`). `unsure` is what the module has to recognize first.
    """
    if isinstance(module, CallModule):
        from viewfs.session.agent.call_serving import open_calls

        return open_calls(module, mounting, limits, **own)
    if isinstance(module, DeviceModule):
        from viewfs.session.agent.device_serving import open_devices

        return open_devices(module, mounting, limits, fds)
    shut_in(module, mounting, limits)
    if unsure is not None and not module.probe(unsure):
        raise DamagedSourceError(f"{mounting.source_name} only begins like a {module.name} image")
    try:
        file_system = module.open(mounting)
        root_mode = _answer_now(file_system.getattr(file_system.root)).mode
    except OSError as error:
        raise DamagedSourceError(f"cannot read {mounting.source_name}: {error.strerror or error}") from error
    file_system.lists_names_alone = ServerOptions.of(request["options"]).listing == "names"
    found = Found(root_mode, writable=isinstance(file_system, WritableFileSystem), resumable=file_system.immutable)
    return partial(serve, file_system), found


def _answer_now(answer: Answer[T]) -> T:
    if not isinstance(answer, Awaitable):
        return answer
    import trio

    async def wait() -> T:
        return await answer

    return trio.run(wait)


def _shows_source(module: Module) -> bool:
    return isinstance(module, KernelModule) and (module.takes_path or module.names_source)


def _find(request: dict[str, Any]) -> tuple[registry.Found, FileSource | None, Source | None]:
    """The module that is meant, and the source it is to read, opened; and what it has to recognize before it opens
    that, if only a magic number was looked at (a `quick` request)."""
    name, path = request["type"], request["source"]
    if name is None and os.path.isdir(path):
        name = "bind"
    if request["program"] is not None:
        network = bool(
            parse_options("program", ProgramModule.options, ServerOptions.without(request["options"]))["network"]
        )
        program = module_of_program(name, request["program"], request["cwd"], network=network)
        return registry.Found(program, "a program"), None, None
    found = None if name is None else registry.find_module(name, request["module_path"])
    by_option = None
    if found is not None and found.module.source_option is not None:
        by_option = request["options"].get(found.module.source_option)
        if by_option:
            path = request["source"] = os.path.join(request["cwd"], by_option)
    takes_path = found is not None and issubclass(found.module, KernelModule) and found.module.takes_path
    takes_source = found is None or found.module.takes_source
    if not path and (takes_path or takes_source):
        by_name = (
            "" if found is None or found.module.source_option is None else f" (or -o {found.module.source_option}=)"
        )
        raise UsageError(f"module {name} needs a source", remedy=f"viewfs mount -t {name} SOURCE DIRECTORY{by_name}")
    if found is not None and not found.module.takes_source and not by_option:
        return found, None, None
    source = open_source(path, writing=found is not None and found.module.writes_source)
    try:
        if found is None and request.get("quick"):
            part = part_of(source, path, request["options"])
            if (likely := registry.likely_taker(part)) is not None:
                return likely, source, part
        return found or find_by_content(source, path, request["options"]), source, None
    except BaseException:
        source.close()
        raise


def _identities() -> Identities:
    return Identities(os.getuid(), os.getgid(), mapped_ids("uid"), mapped_ids("gid"))


def _device_of(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None
