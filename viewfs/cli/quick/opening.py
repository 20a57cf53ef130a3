"""Opening a view for a command, and running one in a view that is open."""

from __future__ import annotations

import os

from viewfs.cli.quick.messages import warn
from viewfs.errors import UsageError, ViewfsError
from viewfs.linux.plain import signal
from viewfs.session.plans import AgentPlan, InitialChange, SessionPlan
from viewfs.session.runtime import SESSION_VARIABLE, check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from viewfs.session.client import Session

__all__ = ["enter_view", "interactive_shell", "open_view", "run_at"]


def open_view(
    command: list[str],
    environment: dict[str, str],
    changes: Sequence[dict[str, Any]],
    *,
    name: str | None = None,
    hostname: str | None = None,
    as_root: bool = False,
    ids: str = "auto",
    pid_namespace: bool = False,
    calls: str | None = None,
    no_calls: bool = False,
    keep: bool = False,
    history: bool = False,
    cow_backend: str | None = None,
    layer_directory: str | None = None,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
) -> int:
    """Run `command` in a view of its own, in which `changes` have been made: its exit code. Raises `ViewfsError`."""
    from viewfs.session.front.running import run_session

    if hostname is not None and not 0 < len(os.fsencode(hostname)) <= 64:
        raise UsageError(f"“{hostname}” can't be a host name", remedy="1 to 64 bytes")
    view = AgentPlan(
        as_root=as_root,
        ids=ids,
        hostname=hostname,
        pid_namespace=pid_namespace,
        calls=not no_calls,
        families=() if calls is None else _families(calls),
    )
    if no_calls and calls is not None:
        raise UsageError("--calls and --no-calls exclude each other")
    plan = SessionPlan(
        command,
        name=None if name is None else check_name(name),
        keep=keep,
        history=history,
        cow_backend=cow_backend,
        layer_directory=layer_directory,
        exclude=exclude,
        include=include,
        view=view,
        changes=[InitialChange(change.get("request", "mount"), _without_request(change)) for change in changes],
        environment=environment,
    )
    return run_session(plan, warn)


def _families(calls: str) -> list[str]:
    """The families of system calls in a list with commas. Raises `UsageError`."""
    from viewfs.session.calls.notified import group_names

    known, families = group_names(), [name.strip() for name in calls.split(",")]
    for name in families:
        if name not in known:
            raise UsageError(
                f"--calls: no family of system calls is called “{name}”", remedy=f"one of {', '.join(known)}"
            )
    return families


def _without_request(change: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in change.items() if name != "request"}


def interactive_shell() -> tuple[list[str], dict[str, str]]:
    """The user's shell, with a prompt that shows the view; what to run and what to add to its environment."""
    import pwd

    path = os.environ.get("SHELL") or pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    start_files = os.path.join(os.path.dirname(os.path.dirname(__file__)), "shells")
    name = os.path.basename(path)
    if name == "bash":
        return [path, "--rcfile", os.path.join(start_files, "bashrc"), "-i"], {}
    if name == "zsh":
        original = os.environ.get("ZDOTDIR", os.path.expanduser("~"))
        return [path, "-i"], {"VIEWFS_ZDOTDIR": original, "ZDOTDIR": os.path.join(start_files, "zsh")}
    if name == "fish":
        return [path, "-i", "-C", f"source {start_files}/prompt.fish"], {}
    return [path, "-i"], {"PS1": f"(${SESSION_VARIABLE}) $ "}


def enter_view(name: str, command: list[str]) -> int:
    """Run `command`, or the user's shell, in the view of a session: its exit code. Raises `ViewfsError`."""
    from viewfs.session.client import find_session

    with find_session(name) as session:
        return _run_in(session, command, None)


#: No epoch has so many digits.
_DIGITS = 16


def run_at(epoch: str, command: list[str], session: str | None) -> int:
    """As `enter_view`, in the view as it was in `epoch`: a number, or the name of a state that was kept."""
    from viewfs.session.client import find_session

    with find_session(session) as found:
        is_number = epoch.isdecimal() and len(epoch) < _DIGITS
        number = int(epoch) if is_number else found.request("state", state=epoch)["epoch"]
        return _run_in(found, command, number)


def _run_in(session: Session, command: list[str], epoch: int | None) -> int:
    argv, environment = (command, {}) if command else interactive_shell()
    environment[SESSION_VARIABLE] = session.name
    if session.is_view_of_caller():
        return _have_it_run(session, argv, environment, epoch)
    from viewfs.session.front.entering import run_in_view

    try:
        namespaces = session.namespaces(epoch)
        return run_in_view(namespaces, argv, os.environ | environment, as_root=session.status["as_root"])
    except OSError as error:
        raise ViewfsError(f"cannot enter session {session.name}: {(error.strerror or '').lower()}") from error


def _have_it_run(session: Session, argv: list[str], environment: dict[str, str], epoch: int | None) -> int:
    """Inside a view one has no right to enter another epoch: have the agent start the command, and pass on signals."""
    from viewfs.linux.process import pid_of, pidfd_send_signal

    os.environ.update(environment)
    pidfd, number = session.spawn(argv, epoch=epoch, group=os.getpgrp())

    def pass_on(number: int, _frame: object) -> None:
        pidfd_send_signal(pidfd, number)

    try:
        in_our_group = os.getpgid(pid_of(pidfd)) == os.getpgrp()
        passed_on = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
        for received in passed_on if in_our_group else [*passed_on, signal.SIGINT, signal.SIGQUIT]:
            signal.signal(received, pass_on)
        if in_our_group:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    except OSError:
        pass  # it has ended
    status = session.wait_for_end(number)
    return status if status >= 0 else 128 - status
