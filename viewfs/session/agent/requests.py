"""The requests of stand-by and supervisor to the agent: to fork workers and commands, and to attach mounts."""

from __future__ import annotations

import errno
import os
import select
import sys

from viewfs.errors import ViewfsError, explain_os_error
from viewfs.linux.namespaces import CloneFlags, setns
from viewfs.linux.plain import signal, socket
from viewfs.linux.process import die_with_parent, fork_into, keep_only, set_name
from viewfs.mounts.attach import attach
from viewfs.namespaces.enter import Asking
from viewfs.namespaces.members import wait_for_ends, wait_for_exits
from viewfs.python import add_environment, collect_garbage, complete, print_traceback
from viewfs.session.execution import drop_privileges_for_command, exec_command
from viewfs.session.wire.channel import Channel, socket_pair
from viewfs.session.wire.protocol import failure, success

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any, NoReturn

    from viewfs.session.wire.protocol import Message

__all__ = ["AgentRequests", "become_worker", "warm_for_few"]

#: Kinds of workers that may become parents of servers.
_PARENTS = frozenset({"cover", "show_state", "place", "root_name"})
#: Seconds that they may take to end these servers.
_PARENTS_SECONDS = 1.0
#: Seconds that others may take to end when they are killed.
_CHILDREN_SECONDS = 5.0
#: How many exit statuses of children are remembered, for a supervisor that was not there when they ended.
_REMEMBERED = 1000


class AgentRequests:
    def __init__(self, link: Channel, *, as_root: bool, owners: socket.socket | None, calls: Asking | None) -> None:
        """`calls`: for commands, see `have_calls_notified`."""
        self._calls = calls
        self._standby: Channel | None = link
        self._supervisor: Channel | None = None
        #: How many modules had been imported when that was last looked at.
        self._imported = 0
        #: The agent has been told that nothing else lives in the session.
        self.is_alone = False
        self._as_root = as_root
        self._owners = owners
        #: Pid → kind of each child that was forked and has not ended. As process 1 of a pid namespace this process
        #: reaps orphans besides.
        self._children: dict[int, str] = {}
        #: Pid → exit status of children that have ended.
        self._ended: dict[int, int] = {}
        #: Pids of children that may have children of their own to wait for.
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
        """Take on `workers`, which were forked before and have forked servers."""
        self._parents.update(workers)
        self._children |= dict.fromkeys(self._parents, "cover")

    def serve(self) -> None:
        """Serve until every link has closed."""
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
        """Do what is asked for over `link`; False if it has closed."""
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
        # (One whose source lies on a server that hangs can't end before that does.)
        wait_for_exits([os.pidfd_open(pid) for pid in self._children], _CHILDREN_SECONDS)
        for pid in self._children:
            os.waitpid(pid, os.WNOHANG)

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
        except Exception as error:  # this process has to last: somebody may have removed what it would import
            print_traceback()
            reply = failure(request, ViewfsError(f"cannot {request['op']}: {error}", remedy="see `viewfs log`"))
        finally:
            for fd in fds:
                os.close(fd)
        if "id" in request:
            _send(link, reply, given)
        for fd in given:
            os.close(fd)

    def _link(self, _request: Message, fds: list[int]) -> tuple[Message, list[int]]:
        """Take on another supervisor, which has the other end of the socket in `fds`."""
        if self._supervisor is not None:
            self._supervisor.close()
        self._supervisor = Channel(socket.socket(fileno=os.dup(fds[0])))
        return {}, []

    def _warm(self, request: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        """Import what workers use, once, so that each is forked with it in memory. Nothing of it starts a thread."""
        complete()
        if request.get("all"):
            self._warm_for_all()
        import viewfs.modules.formats.ext.module
        import viewfs.modules.formats.fat.module
        import viewfs.modules.formats.squashfs.module
        import viewfs.session.agent.placing
        import viewfs.session.agent.serving  # noqa: F401
        from viewfs.namespaces.sandbox import make_filters

        make_filters()
        self._keep_shared()
        return {}, []

    def _keep_shared(self) -> None:
        """If anything was imported, leave it out when garbage is looked for: that writes to what is looked at, and who
        was forked from this process then has pages of its own."""
        if len(sys.modules) != self._imported:
            self._imported = len(sys.modules)
            collect_garbage()

    def _warm_for(self, request: Message) -> None:
        """Import what workers of this kind use."""
        complete()
        from viewfs.session.agent.running import LIGHT

        if request["kind"] not in LIGHT:
            self._warm(request, [])
        if request["kind"] in ("mount", "resume"):
            from viewfs.modules.framework.registry import KNOW_CONTENT

            name = request["request"].get("code", request["request"].get("type"))
            if name is not None and name not in KNOW_CONTENT:
                self._warm_for_more()

    def _warm_for_more(self) -> None:
        """Import what servers use besides that are not of images."""
        import trio  # noqa: F401

        import viewfs.modules.trees.hello
        import viewfs.session.agent.call_serving
        import viewfs.session.agent.device_serving
        import viewfs.session.wire.command_file  # noqa: F401
        from viewfs.modules.framework.registry import look_at_installed

        look_at_installed()
        self._keep_shared()

    def _warm_for_all(self) -> None:
        """Import all that workers may ever use: what it would be read from is about to be hidden."""
        self._warm({}, [])
        self._warm_for_more()
        import viewfs.mounts.fuse.once
        import viewfs.mounts.mirror
        import viewfs.session.agent.covering
        import viewfs.session.agent.owners_outside
        import viewfs.session.agent.running  # noqa: F401
        from viewfs.modules.framework.registry import BUILT_IN, find_module

        for name in BUILT_IN:
            try:
                find_module(name)
            except ImportError:
                pass  # it needs a package that is not installed

    def _alone(self, _request: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        """Nothing lives in the session but this process, and it is to end."""
        self.is_alone = True
        return {}, []

    def _list_children(self, _request: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        """The children that have not ended, and their kinds."""
        return {"children": list(self._children.items())}, []

    def _child(self, request: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        """A child of which an earlier supervisor knew: its pidfd, or how it has ended."""
        pid = request["pid"]
        if pid in self._children:
            return {}, [os.pidfd_open(pid)]
        return {"status": self._ended.get(pid, -signal.SIGKILL)}, []

    def _fork(self, request: Message, fds: list[int]) -> tuple[Message, list[int]]:
        """Fork a worker, which is given `fds`; the reply has its pid, and descriptors of its channel and of itself."""
        if request.get("few"):
            warm_for_few(frozenset())
        else:
            self._warm_for(request)
        given = fds
        if request["kind"] == "cover" and self._owners is not None:
            request["request"]["asks_owners"] = True
            given = [*fds, self._owners.fileno()]
        if request["kind"] in ("mount", "resume") and self._calls is not None:
            request["request"]["families"] = self._calls.families
            given = [*fds, self._calls.keeper]
        ours, theirs = socket_pair()
        agent = os.getpid()
        pid = self._fork_apart() if request["apart"] else os.fork()
        if pid == 0:
            become_worker(request, theirs, agent, given)
        theirs.close()
        self._children[pid] = request["kind"]
        if request["kind"] in _PARENTS:
            self._parents.add(pid)
        return {"pid": pid}, [ours.detach(), os.pidfd_open(pid)]

    def _fork_apart(self) -> int:
        """Fork a process into a pid namespace of its own, if the kernel and its limits (namespaces(7)) allow that."""
        try:
            return fork_into(CloneFlags.NEWPID)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSPC, errno.EPERM):
                raise
            return os.fork()

    def _attach(self, request: Message, fds: list[int]) -> tuple[Message, list[int]]:
        if request.get("hides_program"):
            self._warm_for_all()
        attach(fds[0], fds[1])
        return {}, []

    def _spawn(self, request: Message, fds: list[int]) -> tuple[Message, list[int]]:
        """Start a command for a client inside the view, which has no right to enter a namespace itself."""
        agent = os.getpid()
        pid = os.fork()
        if pid == 0:
            calls = self._calls
            if calls is not None and "limit" in request:
                calls = Asking(calls.keeper, calls.families, request["limit"])
            _become_command(request, fds, agent, as_root=self._as_root, calls=calls)
        self._children[pid] = "command"
        return {"pid": pid}, [os.pidfd_open(pid)]


def _send(link: Channel, message: Message, fds: list[int] | None = None) -> None:
    """Send `message` to a process that may have died."""
    try:
        link.send(message, fds)
    except OSError:
        pass


#: Format → its module.
_READERS = {name: f"viewfs.modules.formats.{name}.module" for name in ("ext", "squashfs")}


def warm_for_few(formats: Collection[str]) -> None:
    """Import what every mount uses, and the readers of `formats`: all that a few mounts take, and no more."""
    add_environment()
    import importlib

    import viewfs.session.agent.placing
    import viewfs.session.agent.serving  # noqa: F401
    from viewfs.namespaces.sandbox import make_filters

    make_filters()
    for name in _READERS.keys() & formats:
        try:
            importlib.import_module(_READERS[name])
        except ModuleNotFoundError:
            pass  # it needs packages that `complete` finds


def become_worker(request: Message, channel_socket: Any, agent: int, fds: list[int]) -> NoReturn:
    status = 1
    try:
        _forget_children_signals()
        keep_only(channel_socket.fileno(), *fds)
        die_with_parent(agent)
        collect_garbage()
        if not request.get("few"):
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


def _become_command(request: Message, fds: list[int], agent: int, *, as_root: bool, calls: Asking | None) -> NoReturn:
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
        drop_privileges_for_command(as_root=as_root, calls=calls)
        exec_command(command["argv"], command["env"], command["cwd"])
    except OSError as error:
        os.write(2, f"viewfs: {explain_os_error('cannot run the command', error)}\n".encode())
    except ValueError as error:
        os.write(2, f"viewfs: cannot run the command: {error}\n".encode())
    finally:
        os._exit(status)
