"""Starting a command in a view, and standing in for it: signals are passed on, and its exit status becomes ours."""

from __future__ import annotations

import os

from viewfs.linux.plain import signal
from viewfs.linux.process import keep_only
from viewfs.session.execution import drop_privileges_for_command, exec_command
from viewfs.session.front.signals import FORWARDED, FROM_TERMINAL, WAITED_FOR, next_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from viewfs.namespaces.enter import Namespaces

__all__ = ["run_in_view", "start_command"]


def start_command(namespaces: Namespaces, argv: list[str], environment: dict[str, str], *, as_root: bool) -> int:
    """Fork a child that joins the namespaces, gives up privilege and becomes `argv`. Returns its pid.

    If a pid namespace is among them, the child has to fork once more, and stands in for the command.
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
                keep_only()  # a copy here would hide from the session that the front is gone
                _stand_for(command)
        drop_privileges_for_command(as_root=as_root, calls=namespaces.calls)
        exec_command(argv, environment, working_directory)
    except OSError as error:
        os.write(2, f"viewfs: cannot enter the view: {error}\n".encode())
    finally:
        os._exit(126)


def _stand_for(command: int) -> None:
    """Stand in for the process `command`, which this one's parent can't see: pass on signals, and end as it does."""

    def pass_on(number: int, _frame: object) -> None:
        try:
            os.kill(command, number)
        except ProcessLookupError:
            pass

    for number in (*FORWARDED, *FROM_TERMINAL, signal.SIGCONT):
        signal.signal(number, pass_on)
    # The terminal stops the command, and this process then stops itself. If the terminal stopped both, this process
    # might learn of the command's stop only when both go on again, and would stop once more.
    for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
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
    """Run a command in a view that is there already (`enter`, `at` from outside). Returns its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    command = start_command(namespaces, argv, environment, as_root=as_root)
    namespaces.close()
    while True:
        if next_signal(command) != signal.SIGCHLD:
            continue
        done, status = os.waitpid(command, os.WNOHANG | os.WUNTRACED)
        if not done:
            continue
        if os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            continue
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
