"""What the stand-by forks: an agent, what makes the first mounts, and supervisors."""

from __future__ import annotations

import os

from viewfs.linux.plain import signal
from viewfs.linux.process import set_name
from viewfs.python import complete, print_traceback
from viewfs.session.handles import RETIRED
from viewfs.session.wire.channel import Channel, socket_pair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from viewfs.session.handles import SessionHandles, TheView
    from viewfs.session.supervisor.deposit import Deposit
    from viewfs.session.supervisor.host_root import RootNames

__all__ = ["become_mounter", "become_supervisor", "fork", "fork_agent", "fork_notifier"]


def fork() -> int:
    """As fork(2). In the child SIGTERM is blocked until `_on_term`: it would else tell the stand-by to end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return pid


def _on_term(action: int) -> None:
    """Have SIGTERM do that in this child."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, action)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def fork_agent(handles: SessionHandles) -> tuple[int, Channel]:
    """Fork an agent that will join the view: its pid, and the channel over which it has to be given the view."""
    assert handles.log_writer is not None
    ours, theirs = map(Channel, socket_pair())
    pid = fork()
    if pid == 0:
        _on_term(signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        from viewfs.session.agent.agent import agent_of_view

        formats = handles.formats if handles.first else None
        agent_of_view(
            handles.plan,
            theirs,
            handles.log_writer,
            handles.runtime,
            handles.name,
            handles.layers,
            handles.calls_sender,
            formats,
        )
    theirs.close()
    os.close(handles.log_writer)
    handles.log_writer = None
    return pid, ours


def fork_notifier(*given: Any) -> int:
    """Fork a notifier, which is given what `become_notifier` says: its pid."""
    pid = fork()
    if pid == 0:
        _on_term(signal.SIG_DFL)
        from viewfs.session.calls.notifier import become_notifier

        become_notifier(*given)
    return pid


def become_supervisor(
    handles: SessionHandles, view: TheView, deposit: Deposit, deposits: Channel, root: RootNames
) -> NoReturn:
    """Be a supervisor. `deposit` is what the stand-by has of the one before, and `deposits` leads there."""
    status = 1
    try:
        os.setsid()
        set_name("viewfs-supervisor")
        _on_term(signal.SIG_IGN)  # until there is an event loop to hear it
        # The agent imports what it needs while this process does so too. (Where servers were made before, it does so
        # only when it is asked for more: they share its memory, as far as it is not written to.)
        try:
            if not handles.first and handles.link is not None:
                handles.link.send({"op": "warm"})
        except OSError:
            pass
        complete()
        from viewfs.session.supervisor.supervisor import run_supervisor

        status = run_supervisor(handles, view, deposit, deposits, root)
    except BaseException:
        print_traceback()
    finally:
        os._exit(status)


def become_mounter(handles: SessionHandles, view: TheView, deposits: Channel) -> NoReturn:
    """Make the first mounts, and end."""
    status = 1
    try:
        os.setsid()
        set_name("viewfs-mounter")
        _on_term(signal.SIG_DFL)
        from viewfs.session.supervisor.first_mounts import make_first_mounts

        make_first_mounts(handles, view, deposits)
        status = RETIRED
    except BaseException:
        print_traceback()
    finally:
        os._exit(status)
