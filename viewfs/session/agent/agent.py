"""The agent: the small process inside the view that holds its privilege, forks its workers and attaches its mounts.

Plain synchronous code in one thread, because unshare(2) and setns(2) want that. It follows no path and keeps no
descriptor of a FUSE mount, so that nothing a module does can make it wait: work that has to look at the view is done in
a forked worker, which the supervisor can give up on. It ends when stand-by and supervisor have ended, and ends all
processes of the session with it.
"""

from __future__ import annotations

import os
import select

from viewfs.errors import ViewfsError
from viewfs.linux.namespaces import namespace_id
from viewfs.linux.plain import signal, socket
from viewfs.linux.process import (
    hide_memory,
    keep_only,
    pidfd_is_dead,
    pidfd_open,
    set_name,
)
from viewfs.mounts.attach import attach
from viewfs.mounts.root import replace_root
from viewfs.namespaces.enter import Asking, Namespaces, open_namespace
from viewfs.namespaces.members import end_members, wait_for_ends
from viewfs.namespaces.user import IdentityMap
from viewfs.python import print_traceback
from viewfs.session.agent.requests import AgentRequests, become_worker, warm_for_few
from viewfs.session.covers import CoverReport
from viewfs.session.handles import DEBUG_VARIABLE
from viewfs.session.making import explained, make_view
from viewfs.session.wire.channel import Channel, socket_pair
from viewfs.session.wire.protocol import result_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any, NoReturn

    from viewfs.session.layer_settings import LayerSettings
    from viewfs.session.plans import AgentPlan
    from viewfs.session.runtime import RuntimeDirectory

__all__ = ["agent_main", "agent_of_view"]


def agent_main(
    plan: AgentPlan,
    link: Channel,
    ready: Channel,
    log_fd: int,
    runtime: RuntimeDirectory,
    name: str,
    layers: LayerSettings,
    calls: int | None,
) -> NoReturn:
    """Make the view, say so on `ready` and on `link` with descriptors of its namespaces, then serve `link`.

    `calls`: for commands, see `have_calls_notified`. The control socket of session `name` is in `runtime`. The socket
    and the session's layers are removed at the end, if nobody else is there to do it. Never returns.
    """
    status = 1
    try:
        os.setpgid(0, 0)  # the terminal's signals are for the command
        # The caller's other descriptors are for the command.
        keep_only(
            link.fileno(), ready.fileno(), log_fd, runtime.fd, runtime.parent, *(() if calls is None else (calls,))
        )
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            host_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            identity = IdentityMap.of_caller(as_root=plan.as_root, ids=plan.ids)
            owners = _owners_outside() if identity.is_subordinate else None
            make_view(plan, identity, _become_init)
            namespaces = [open_namespace(kind) for kind in plan.kinds]
            _redirect_standard_streams(log_fd)  # before anything is forked that lives as long as the view
            if link.receive() is None:  # the stand-by is gone, and nobody else knows of this process
                _remove_socket(runtime, name)
                os._exit(1)
            covers = [_cover(request, [namespaces[1], host_root], owners) for request in plan.covers]
        except (ViewfsError, OSError) as error:
            ready.send({"error": explained(error).to_json()})
            os._exit(1)
        told = [report.for_channel() for report, _worker in covers]
        itself = os.pidfd_open(os.getpid())
        kept = [fd for _said, fds in told for fd in fds]
        reports = [said for said, _fds in told]
        link.send({"ok": {"kinds": plan.kinds, "covers": reports}}, [itself, *namespaces, *kept])
        messages = [message for report, _worker in covers for message in report.messages]
        ready.send({"ok": {"kinds": plan.kinds, "messages": messages}}, namespaces)
        ready.close()
        for fd in (itself, *namespaces[1:], *kept):
            os.close(fd)
        workers = [worker for report, worker in covers if report.is_served]
        asking = None if calls is None else Asking(calls, plan.families)
        requests = AgentRequests(link, as_root=plan.as_root, owners=owners, calls=asking)
        _serve(requests, workers, namespaces[0], proc)
        _take_away(runtime, name, layers, host_root)
        status = 0
    except BaseException:
        print_traceback()
    finally:
        os._exit(status)


def _owners_outside() -> socket.socket:
    from viewfs.session.agent import owners_outside  # few views have users of their own

    return owners_outside.start()


def agent_of_view(
    plan: AgentPlan,
    link: Channel,
    log_fd: int,
    runtime: RuntimeDirectory,
    name: str,
    layers: LayerSettings,
    calls: int | None,
    formats: Collection[str] | None,
) -> NoReturn:
    """The agent of a view that somebody else makes: join it when `link` brings it, then serve `link`. Never returns.

    `formats`: of what a few servers are to be started for at once; what they need is imported meanwhile.
    """
    status = 1
    try:
        os.setpgid(0, 0)
        keep_only(link.fileno(), log_fd, runtime.fd, runtime.parent, *(() if calls is None else (calls,)))
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        host_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if formats is not None:
            warm_for_few(formats)
        received = link.receive()
        if received is None:  # there is no view
            os._exit(0)
        view = Namespaces(dict(zip(received[0]["kinds"], received[1], strict=True)))
        view.join()
        _redirect_standard_streams(log_fd)
        for kind, fd in view.fds.items():
            if kind != "user":
                os.close(fd)
        asking = None if calls is None else Asking(calls, plan.families)
        requests = AgentRequests(link, as_root=plan.as_root, owners=None, calls=asking)
        _serve(requests, [], view.fds["user"], proc)
        _take_away(runtime, name, layers, host_root)
        status = 0
    except BaseException:
        print_traceback()
    finally:
        os._exit(status)


def _serve(agent: AgentRequests, workers: Iterable[int], user_namespace: int, proc: int) -> None:
    """Serve until stand-by and supervisor have ended, then end all that lives in the session. `workers` have forked
    servers."""
    if not os.environ.get(DEBUG_VARIABLE):
        hide_memory()  # from programs of the view, which have the same user
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    set_name("viewfs-agent")
    agent.adopt(workers)
    agent.serve()
    if not agent.is_alone:
        agent.end_children()
        end_members(namespace_id(user_namespace), grace_seconds=0, proc=proc)


def _take_away(runtime: RuntimeDirectory, name: str, layers: LayerSettings, host_root: int) -> None:
    """Remove the layers and the socket.

    Usually the supervisor holds the lock of the layers, and does this itself when this process has ended.
    """
    os.fchdir(host_root)
    os.chroot(".")
    layers.end(seconds=0)
    _remove_socket(runtime, name)


def _remove_socket(runtime: RuntimeDirectory, name: str) -> None:
    try:
        runtime.remove(name)
    except OSError:
        pass  # as a rule the supervisor has done it


def _cover(request: dict[str, Any], fds: list[int], owners: socket.socket | None) -> tuple[CoverReport, int]:
    """Cover a tree of a view in which nothing runs yet. Returns the worker's report and its pid. Raises the
    `ViewfsError` that the worker reports.

    `fds`: the view's mount namespace, and the root directory of the host. `owners`: see `owners_outside`.
    """
    if owners is not None:
        request, fds = request | {"asks_owners": True}, [*fds, owners.fileno()]
    ours, theirs = socket_pair()
    agent = os.getpid()
    pid = os.fork()
    if pid == 0:
        become_worker({"kind": "cover", "request": request}, theirs, agent, fds)
    theirs.close()
    channel = Channel(ours)
    try:
        received = channel.receive()
        if received is None:
            raise ViewfsError(f"cannot make {request['path']} copy-on-write: the worker has failed")
        report = CoverReport(result_of(received[0]), received[1])
        for root, tree, place in report.take_trees():
            if root == "/":
                replace_root(tree)
            else:
                attach(tree, place)
            os.close(tree)
            os.close(place)
        channel.send({"kept": True})
    finally:
        channel.close()
    if not report.is_served:
        os.waitpid(pid, 0)
    return report, pid


#: Seconds that process 1 may take from the closing of its descriptors to its end.
_EXIT_SECONDS = 0.1


def _become_init() -> None:
    """Go on as process 1 of the new pid namespace. The calling process waits for that one, and ends as it does.

    Process 1 keeps a pipe open to the last. If it is stuck while exiting (see `wait_for_exits`), usually because it was
    killed, the calling process does not wait for it.
    """
    alive, to_the_last = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(alive)
        return
    os.close(to_the_last)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keep_only(alive)
    init = pidfd_open(child)
    poll = select.poll()
    for fd in (alive, init):
        poll.register(fd, select.POLLIN)
    poll.poll()
    wait_for_ends([init], _EXIT_SECONDS)
    if not pidfd_is_dead(init):
        os.kill(os.getpid(), signal.SIGKILL)
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def _redirect_standard_streams(log_fd: int) -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if not os.environ.get(DEBUG_VARIABLE):
        os.dup2(log_fd, 2)
    os.close(null)
    os.close(log_fd)
