"""The process that the user starts: it opens a session, runs the command in it, and stays until all of it has ended.

It is the command's parent, in the same process group and terminal session, so job control, Ctrl-C and the exit status
are the
kernel's doing. It waits for signals and nothing else: the ends of its three children come as SIGCHLD.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from viewfs.errors import ViewfsError
from viewfs.linux.namespaces import namespace_id
from viewfs.linux.process import keep_only, pidfd_is_dead, pidfd_open, pidfd_send_signal
from viewfs.namespaces.enter import Namespaces
from viewfs.namespaces.members import wait_for_ends
from viewfs.session.agent.agent import agent_main
from viewfs.session.client import SESSION_VARIABLE, Session
from viewfs.session.ending import end_session
from viewfs.session.execution import drop_privileges_for_command, exec_command
from viewfs.session.handles import AgentPlan, SessionHandles
from viewfs.session.layer_settings import LayerSettings, chosen_backend
from viewfs.session.runtime import RUNTIME_VARIABLE, RuntimeDirectory
from viewfs.session.supervisor.standby import standby_main
from viewfs.session.wire.channel import Channel, socket_pair
from viewfs.session.wire.protocol import result_of

__all__ = ["InitialChange", "SessionPlan", "run_in_view", "run_session", "start_command"]

#: Passed on to the command if somebody sends them to us; the terminal sends its own to both.
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_WAITED_FOR = {signal.SIGCHLD, signal.SIGCONT, *_FORWARDED, *_FROM_TERMINAL}
#: si_code of a signal that the kernel itself sent, as for a key of the terminal (SI_KERNEL of asm-generic/siginfo.h).
_SI_KERNEL = 0x80
_END_SECONDS = 30.0
_BLAME_SECONDS = 0.3


@dataclass(frozen=True)
class InitialChange:
    """A mount or module that is there when the command starts: a request of the control socket, without its id."""

    request: str
    arguments: dict[str, object]


@dataclass(frozen=True)
class SessionPlan:
    """What the user asked for."""

    command: Sequence[str]
    name: str | None = None
    keep: bool = False
    history: bool = False
    #: What is to serve copy-on-write trees; None: what the environment says.
    cow_backend: str | None = None
    #: Where layers are kept, if not where all are.
    layer_directory: str | None = None
    #: Which directories of what is made copy-on-write are not (`cow.filters`).
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    view: AgentPlan = field(default_factory=AgentPlan)
    changes: tuple[InitialChange, ...] = ()
    #: Added to the command's environment.
    environment: dict[str, str] = field(default_factory=dict)


def run_session(plan: SessionPlan, warn: Callable[[str], None]) -> int:
    """Open the session, run the command, end the session (unless it is to be kept): the command's exit code.

    128 + n stands for a command that signal n ended. Raises `ViewfsError` where the session can't be opened.
    """
    front = _Front(plan, warn)
    try:
        front.open()
        return front.run()
    finally:
        front.close()


class _Front:
    def __init__(self, plan: SessionPlan, warn: Callable[[str], None]) -> None:
        self._plan = plan
        self._warn = warn
        backend = chosen_backend(plan.cow_backend)  # before there is anything to be taken away again
        self._runtime, self._listener, self.name = RuntimeDirectory.claim(plan.name)
        self._layers = LayerSettings.of_session(
            self.name,
            named=plan.name is not None,
            runtime=self._runtime.path,
            backend=backend,
            directory=plan.layer_directory,
        )
        #: Those changes that the agent makes itself, before anything runs.
        self._covers = list(takewhile(lambda change: change.request == "cow", plan.changes))
        self._to_standby: Channel
        self._namespaces: Namespaces | None = None
        self._processes: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._kept = False

    def open(self) -> None:
        """Fork the agent and the stand-by, and wait for the view to be there."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        agent_end, standby_end = map(Channel, socket_pair())
        ready, ready_end = map(Channel, socket_pair())
        self._to_standby, front_end = map(Channel, socket_pair())
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        agent = os.fork()
        if agent == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)
            agent_main(self._view_plan(), agent_end, ready_end, log_write, self._runtime, self.name)
        self._processes["agent"] = agent
        standby = os.fork()
        if standby == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)
            standby_main(
                SessionHandles(
                    name=self.name,
                    layers=self._layers,
                    plan=self._view_plan(),
                    command=list(self._plan.command),
                    history=self._plan.history,
                    listener=self._listener,
                    link=standby_end,
                    front=front_end,
                    log_fd=log_read,
                    runtime=self._runtime,
                    agent_process=agent,
                )
            )
        self._processes["standby"] = standby
        for channel in (agent_end, standby_end, ready_end, front_end):
            channel.close()
        self._listener.close()
        os.close(log_read)
        os.close(log_write)
        received = ready.receive()
        ready.close()
        if received is None:
            raise ViewfsError("the agent ended before the view was there", remedy="`viewfs doctor` tries each step")
        view = result_of(received[0])
        for message in view["messages"]:
            self._warn(message)
        self._namespaces = Namespaces(dict(zip(view["kinds"], received[1], strict=True)))

    def _view_plan(self) -> AgentPlan:
        paths = [str(change.arguments["path"]) for change in self._covers]
        covers = tuple(
            self._layers.request(
                path,
                [],
                os.getcwd(),
                locked=number > 0,
                exclude=self._plan.exclude,
                include=self._plan.include,
            )
            for number, path in enumerate(paths)
        )
        return replace(self._plan.view, covers=covers)

    def run(self) -> int:
        self._make_changes()
        assert self._namespaces is not None
        environment = {
            **os.environ,
            SESSION_VARIABLE: self.name,
            RUNTIME_VARIABLE: self._runtime.path,
            **self._plan.environment,
        }
        command = start_command(
            self._namespaces, list(self._plan.command), environment, as_root=self._plan.view.as_root
        )
        self._processes["command"] = command
        status = self._wait(command)
        if self._plan.keep and "standby" not in self._ended and "agent" not in self._ended:
            self._to_standby.send({"keep": True})
            self._kept = True
        return status

    def _make_changes(self) -> None:
        changes = self._plan.changes[len(self._covers) :]
        if not changes:
            return
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINAL)  # a mount that takes long can be given up
        session = Session.connect(self._runtime, self.name)
        try:
            for change in changes:
                arguments = change.arguments
                if change.request == "cow":
                    arguments = arguments | {"exclude": self._plan.exclude, "include": self._plan.include}
                for message in session.request(change.request, **arguments).get("messages", ()):
                    self._warn(message)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINAL)
            session.close()

    def _wait(self, command: int) -> int:
        """Until the command has ended, or the session has lost what holds it."""
        while "command" not in self._ended:
            if _next_signal(command) == signal.SIGCHLD:
                self._reap()
            if (lost := self._lost()) is not None:
                return lost
        code = self._ended["command"]
        if code < 0 or code > 128:
            # Who killed it? If the session did, because it lost a part of itself, that is what has to be said.
            deadline = time.monotonic() + _BLAME_SECONDS
            while (left := deadline - time.monotonic()) > 0 and signal.sigtimedwait({signal.SIGCHLD}, left):
                self._reap()
                if (lost := self._lost()) is not None:
                    return lost
        return code if code >= 0 else 128 - code

    def _lost(self) -> int | None:
        """The exit code if the stand-by or the agent has failed."""
        for name in ("standby", "agent"):
            if self._ended.get(name, 0) != 0:
                self._warn(f"the session ended: its {name} {_describe(self._ended[name])}")
                return 1
        return None

    def _reap(self) -> None:
        """Note which children have ended. Where the command has stopped, stop too, for whoever waits for us."""
        for name, pid in self._processes.items():
            if name in self._ended:
                continue
            done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if not done:
                continue
            if os.WIFSTOPPED(status):
                if name == "command":
                    os.kill(os.getpid(), signal.SIGSTOP)
            else:
                self._ended[name] = os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the session, whatever is left of it, unless it was kept."""
        if self._kept:
            self._to_standby.close()
            return
        with contextlib.suppress(OSError):
            self._to_standby.send({"end": True})
        if "standby" in self._processes:
            self._await_standby()
        if self._namespaces is not None:
            left = end_session(namespace_id(self._namespaces.fds["user"]), grace_seconds=0)
            if left:
                self._warn(f"{left} processes of the session could not be ended")
            self._namespaces.close()
        for name, pid in self._processes.items():
            if name not in self._ended:
                self._end_child(pid)
        if self._covers:
            self._layers.end()  # as a rule the supervisor has done it
        self._runtime.remove(self.name)
        self._runtime.close()

    def _end_child(self, pid: int) -> None:
        """It is about to end; if somebody has stopped it, it is killed."""
        pidfd = pidfd_open(pid)
        wait_for_ends([pidfd], _END_SECONDS)
        pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(pid, 0)

    def _await_standby(self) -> None:
        """It ends the session, in good order. One that takes too long is killed, and what it leaves is ended here."""
        if "standby" not in self._ended:
            pid = self._processes["standby"]
            pidfd = pidfd_open(pid)
            wait_for_ends([pidfd], _END_SECONDS)
            if not pidfd_is_dead(pidfd):
                self._warn("the stand-by does not end; it is killed")
                pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            _pid, status = os.waitpid(pid, 0)
            self._ended["standby"] = os.waitstatus_to_exitcode(status)
        poll = select.poll()
        poll.register(self._to_standby.fileno(), select.POLLIN)
        while (self._to_standby.has_more or poll.poll(0)) and (received := self._to_standby.receive()) is not None:
            if "reason" in received[0]:
                self._warn(f"the session ended: {received[0]['reason']}")
            for path in received[0].get("discarding", ()):
                self._warn(f"what was changed in {path} is discarded with the view (to keep it: --name)")


def _next_signal(command: int) -> int:
    """Wait for a signal, and pass it on unless it is about a child, or the terminal has sent it to the command too."""
    information = signal.sigwaitinfo(_WAITED_FOR)
    number = information.si_signo
    from_terminal = number in _FROM_TERMINAL and information.si_code == _SI_KERNEL
    if number != signal.SIGCHLD and not from_terminal:
        with contextlib.suppress(ProcessLookupError):
            os.kill(command, number)
    return number


def _describe(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def start_command(namespaces: Namespaces, argv: list[str], environment: dict[str, str], *, as_root: bool) -> int:
    """Fork a child that joins the namespaces, gives up privilege and becomes `argv`; its pid.

    With a pid namespace among them the child has to fork once more, and passes on what becomes of the command.
    """
    working_directory = os.getcwd()
    pid = os.fork()
    if pid:
        return pid
    try:
        namespaces.join()
        if namespaces.needs_fork:
            command = os.fork()
            if command:
                keep_only()  # what tells the session that the front is gone must not live on here
                _stand_for(command)
        drop_privileges_for_command(as_root=as_root)
        exec_command(argv, environment, working_directory)
    except OSError as error:
        os.write(2, f"viewfs: cannot enter the view: {error}\n".encode())
    finally:
        os._exit(126)


def _stand_for(command: int) -> None:
    """Behave as the process `command`, which this one's parent can't see: signals go there, its end becomes ours."""

    def pass_on(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(command, number)

    for number in (*_FORWARDED, *_FROM_TERMINAL, signal.SIGCONT):
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    while True:
        _pid, status = os.waitpid(command, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            break
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def run_in_view(namespaces: Namespaces, argv: list[str], environment: dict[str, str], *, as_root: bool) -> int:
    """Run a command in a view that is there already (`enter`, `at` from outside): its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    command = start_command(namespaces, argv, environment, as_root=as_root)
    namespaces.close()
    while True:
        if _next_signal(command) != signal.SIGCHLD:
            continue
        done, status = os.waitpid(command, os.WNOHANG | os.WUNTRACED)
        if not done:
            continue
        if os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            continue
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
