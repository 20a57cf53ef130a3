"""The agent: the small process inside the view that holds its privilege, forks its workers and attaches its mounts.

Plain synchronous code in one thread, because unshare(2) and setns(2) want that. It follows no path and keeps no
descriptor of a FUSE mount, so that nothing a module does can make it wait: what has to look at the view is done in a
forked worker, which the supervisor can give up on. It ends when stand-by and supervisor have, and takes all that lives
in the session with it.
"""

from __future__ import annotations

import errno
import os
import select

from viewfs.errors import ViewfsError, explain_os_error
from viewfs.linux.namespaces import CloneFlags, namespace_id, setns
from viewfs.linux.plain import signal, socket
from viewfs.linux.process import (
    die_with_parent,
    fork_into,
    hide_memory,
    keep_only,
    pidfd_is_dead,
    pidfd_open,
    set_name,
)
from viewfs.mounts.attach import attach
from viewfs.mounts.root import replace_root
from viewfs.namespaces.enter import open_namespace
from viewfs.namespaces.members import end_members, wait_for_ends
from viewfs.namespaces.user import IdentityMap
from viewfs.python import complete, print_traceback
from viewfs.session.covers import CoverReport
from viewfs.session.execution import drop_privileges_for_command, exec_command
from viewfs.session.handles import DEBUG_VARIABLE
from viewfs.session.making import explained, make_view
from viewfs.session.wire.channel import Channel, socket_pair
from viewfs.session.wire.protocol import failure, result_of, success

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

    from viewfs.namespaces.enter import Namespaces
    from viewfs.session.layer_settings import LayerSettings
    from viewfs.session.plans import AgentPlan
    from viewfs.session.runtime import RuntimeDirectory
    from viewfs.session.wire.protocol import Message

__all__ = ["agent_main", "agent_of_view"]


def agent_main(
    plan: AgentPlan,
    link: Channel,
    ready: Channel,
    log_fd: int,
    runtime: RuntimeDirectory,
    name: str,
    layers: LayerSettings,
) -> NoReturn:
    """Make the view, say so on `ready` and on `link` with descriptors of its namespaces, then serve `link`.

    The control socket of session `name` is in `runtime`; that and its layers are taken away at the end, if nobody else
    is there to do it. Never returns.
    """
    status = 1
    try:
        os.setpgid(0, 0)  # the terminal's signals are for the command
        keep_only(
            link.fileno(), ready.fileno(), log_fd, runtime.fd, runtime.parent
        )  # what the caller had open is for the command too
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            host_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            identity = IdentityMap.of_caller(as_root=plan.as_root, ids=plan.ids)
            owners = _owners_outside() if identity.is_subordinate else None
            make_view(plan, identity, _become_init)
            namespaces = [open_namespace(kind) for kind in plan.kinds]
            _redirect_standard_streams(log_fd)  # before anything is forked that lives as long as the view
            if link.receive() is None:  # nobody knows of this process
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
        _serve(_Agent(link, as_root=plan.as_root, owners=owners), workers, namespaces[0], proc)
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
    view: Namespaces,
) -> NoReturn:
    """The same for a view that is there already: join it, then serve `link`. Never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        keep_only(link.fileno(), log_fd, runtime.fd, runtime.parent, *view.fds.values())
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        host_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        view.join()
        _redirect_standard_streams(log_fd)
        for kind, fd in view.fds.items():
            if kind != "user":
                os.close(fd)
        _serve(_Agent(link, as_root=plan.as_root, owners=None), [], view.fds["user"], proc)
        _take_away(runtime, name, layers, host_root)
        status = 0
    except BaseException:
        print_traceback()
    finally:
        os._exit(status)


def _serve(agent: _Agent, workers: Iterable[int], user_namespace: int, proc: int) -> None:
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
    """As a rule the supervisor has the layers locked, and does this itself when this process has ended."""
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
    """Cover a tree of the view that nothing runs in yet: what the worker reports, and its pid. Raises the `ViewfsError`
    that it reports.

    `fds`: the view's mount namespace, and the root directory of the host. `owners`: see `owners_outside`.
    """
    if owners is not None:
        request, fds = request | {"asks_owners": True}, [*fds, owners.fileno()]
    ours, theirs = socket_pair()
    agent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_worker({"kind": "cover", "request": request}, theirs, agent, fds)
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


#: For as long as process 1 may take from closing all that it has to its end.
_EXIT_SECONDS = 0.1


def _become_init() -> None:
    """Go on as process 1 of the new pid namespace; the process so far waits for that and ends with it.

    What becomes process 1 keeps a pipe open to the last. Where it is stuck in its end (see `wait_for_exits`) it has
    been killed, as a rule, so the other does not wait.
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


#: Kinds of workers that may become parents of servers.
_PARENTS = frozenset({"cover", "show_state", "place", "root_name"})
#: How long they may take to end those.
_PARENTS_SECONDS = 1.0
#: Of so many children that have ended it is remembered how, for a supervisor that was not there when they did.
_REMEMBERED = 1000


class _Agent:
    def __init__(self, link: Channel, *, as_root: bool, owners: socket.socket | None) -> None:
        self._standby: Channel | None = link
        self._supervisor: Channel | None = None
        #: It has been told that nothing else lives in the session.
        self.is_alone = False
        self._as_root = as_root
        self._owners = owners
        #: What was forked and has not ended, and what kind it is. As process 1 of a pid namespace this process reaps
        #: orphans besides.
        self._children: dict[int, str] = {}
        #: How children have ended.
        self._ended: dict[int, int] = {}
        #: Those of them that have children of their own to ask after.
        self._parents: set[int] = set()
        self._operations: dict[str, Callable[[Message, list[int]], tuple[Message, list[int]]]] = {
            "link": self._link,
            "fork": self._fork,
            "attach": self._attach,
            "spawn": self._spawn,
            "warm": self._warm,
            "children": self._list_children,
            "child": self._child,
            "alone": self._alone,
        }

    def adopt(self, workers: Iterable[int]) -> None:
        """These have been forked before, and have forked servers."""
        self._parents.update(workers)
        self._children |= dict.fromkeys(self._parents, "cover")

    def serve(self) -> None:
        """Until every link has closed."""
        child_ended, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        while links := [link for link in (self._standby, self._supervisor) if link is not None]:
            poll = select.poll()
            poll.register(child_ended, select.POLLIN)
            for link in links:
                poll.register(link, select.POLLIN)
            ready = {fd for fd, _event in poll.poll()}
            if child_ended in ready:
                os.read(child_ended, 4096)
                self._reap()
            for link in links:
                if link.fileno() in ready and not self._hear(link):
                    link.close()
                    self._standby = None if link is self._standby else self._standby
                    self._supervisor = None if link is self._supervisor else self._supervisor

    def _hear(self, link: Channel) -> bool:
        """Do what it is asked there; False at the end."""
        while True:
            received = link.receive()
            if received is None:
                return False
            self._handle(link, *received)
            if not link.has_more:
                return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._children.pop(pid, None) is None:
                continue
            self._ended[pid] = os.waitstatus_to_exitcode(status)
            while len(self._ended) > _REMEMBERED:
                del self._ended[next(iter(self._ended))]
            if self._supervisor is not None:
                _send(self._supervisor, {"ended": pid, "status": self._ended[pid]})

    def end_children(self) -> None:
        """Kill and reap what was forked: nobody else is its parent. Parents are asked to do the same first."""
        parents = [os.pidfd_open(pid) for pid in self._parents & set(self._children)]
        for pidfd in parents:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        wait_for_ends(parents, _PARENTS_SECONDS)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)

    def _handle(self, link: Channel, request: Message, fds: list[int]) -> None:
        operation = self._operations.get(request.get("op", ""))
        given: list[int] = []
        try:
            if operation is None:
                raise ViewfsError(f"the agent knows no {request.get('op')}")
            result, given = operation(request, fds)
            reply = success(request, **result)
        except ViewfsError as error:
            reply = failure(request, error)
        except OSError as error:
            reply = failure(request, explain_os_error(f"cannot {request['op']}", error))
        finally:
            for fd in fds:
                os.close(fd)
        if "id" in request:
            _send(link, reply, given)
        for fd in given:
            os.close(fd)

    def _link(self, _request: Message, fds: list[int]) -> tuple[Message, list[int]]:
        """Another supervisor is there."""
        if self._supervisor is not None:
            self._supervisor.close()
        self._supervisor = Channel(socket.socket(fileno=os.dup(fds[0])))
        return {}, []

    def _warm(self, _request: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        """Import what workers use, once, so that each is forked with it in memory. Nothing of it starts a thread."""
        complete()
        import trio  # noqa: F401

        import viewfs.modules.formats.ext.module
        import viewfs.modules.formats.fat.module
        import viewfs.modules.formats.squashfs.module
        import viewfs.modules.trees.hello
        import viewfs.session.agent.placing
        import viewfs.session.agent.serving  # noqa: F401
        from viewfs.modules.framework.registry import look_at_installed
        from viewfs.namespaces.sandbox import make_filters

        look_at_installed()
        make_filters()
        return {}, []

    def _alone(self, _request: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        """Nothing lives in the session but this process, and it is to end."""
        self.is_alone = True
        return {}, []

    def _list_children(self, _request: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        """Those that have not ended, and of which kind they are."""
        return {"children": list(self._children.items())}, []

    def _child(self, request: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        """A child that this was told of before: its pidfd, or how it has ended."""
        pid = request["pid"]
        if pid in self._children:
            return {}, [os.pidfd_open(pid)]
        return {"status": self._ended.get(pid, -signal.SIGKILL)}, []

    def _fork(self, request: Message, fds: list[int]) -> tuple[Message, list[int]]:
        """Fork a worker, which is given `fds`; the reply has its pid, and descriptors of its channel and of itself."""
        complete()
        from viewfs.session.agent.running import LIGHT

        if request["kind"] not in LIGHT:
            self._warm(request, [])
        given = fds
        if request["kind"] == "cover" and self._owners is not None:
            request["request"]["asks_owners"] = True
            given = [*fds, self._owners.fileno()]
        ours, theirs = socket_pair()
        agent = os.getpid()
        pid = self._fork_apart() if request["apart"] else os.fork()
        if pid == 0:
            _become_worker(request, theirs, agent, given)
        theirs.close()
        self._children[pid] = request["kind"]
        if request["kind"] in _PARENTS:
            self._parents.add(pid)
        return {"pid": pid}, [ours.detach(), os.pidfd_open(pid)]

    def _fork_apart(self) -> int:
        """Fork a process to which no other has a number, if the kernel and its limits (namespaces(7)) allow that."""
        try:
            return fork_into(CloneFlags.NEWPID)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSPC, errno.EPERM):
                raise
            return os.fork()

    def _attach(self, _request: Message, fds: list[int]) -> tuple[Message, list[int]]:
        attach(fds[0], fds[1])
        return {}, []

    def _spawn(self, request: Message, fds: list[int]) -> tuple[Message, list[int]]:
        """Start a command for a client inside the view, which has no right to enter a namespace itself."""
        agent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_command(request, fds, agent, as_root=self._as_root)
        self._children[pid] = "command"
        return {"pid": pid}, [os.pidfd_open(pid)]


def _send(link: Channel, message: Message, fds: list[int] | None = None) -> None:
    """Whoever asked may have died."""
    try:
        link.send(message, fds)
    except OSError:
        pass


def _become_worker(request: Message, channel_socket: Any, agent: int, fds: list[int]) -> NoReturn:
    status = 1
    try:
        _forget_children_signals()
        keep_only(channel_socket.fileno(), *fds)
        die_with_parent(agent)
        complete()
        from viewfs.session.agent.running import run_worker

        set_name(f"viewfs-{request['kind']}")
        status = run_worker(request["kind"], Channel(channel_socket), request["request"], fds)
    except BaseException:
        print_traceback()
    finally:
        os._exit(status)


def _forget_children_signals() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _become_command(request: Message, fds: list[int], agent: int, *, as_root: bool) -> NoReturn:
    """`fds`: the three standard streams, a file that says what to run (`command_file`), then the mount namespace to run
    in, if it isn't the live one."""
    status = 126
    try:
        die_with_parent(agent)
        _forget_children_signals()
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for target, fd in enumerate(fds[:3]):
            os.dup2(fd, target)
        from viewfs.session.wire.command_file import read_command

        command = read_command(fds[3])
        for fd in fds[4:]:
            setns(fd, CloneFlags.NEWNS)
        try:
            os.setpgid(0, request["group"])  # with the client, so that both stop, go on and end together
        except OSError:
            os.setpgid(0, 0)  # the client lives in another terminal session, and passes signals on
        drop_privileges_for_command(as_root=as_root)
        exec_command(command["argv"], command["env"], command["cwd"])
    except OSError as error:
        os.write(2, f"viewfs: {explain_os_error('cannot run the command', error)}\n".encode())
    except ValueError as error:
        os.write(2, f"viewfs: cannot run the command: {error}\n".encode())
    finally:
        os._exit(status)
