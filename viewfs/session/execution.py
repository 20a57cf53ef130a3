"""The last steps of a process on its way to being a command of a view."""

from __future__ import annotations

import errno
import os

from viewfs.linux.plain import signal
from viewfs.linux.process import FAKE_ROOT_CAPABILITIES, drop_capabilities, no_new_privileges
from viewfs.session.calls.notified import have_calls_notified

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from viewfs.namespaces.enter import Asking

__all__ = ["drop_privileges_for_command", "exec_command"]


def drop_privileges_for_command(*, as_root: bool, calls: Asking | None) -> None:
    """Drop all capabilities; with `as_root`, all but those that root uses on files of its own. `calls`: see
    `have_calls_notified`."""
    drop_capabilities(FAKE_ROOT_CAPABILITIES if as_root else (), bounding=False)
    no_new_privileges()
    have_calls_notified(calls)


#: How many characters of a command that can't be run are shown.
_SHOWN = 500


def exec_command(argv: list[str], env: dict[str, str], working_directory: str) -> NoReturn:
    """Become `argv`; like a shell, 127 if there is no such command and 126 if it can't be executed."""
    try:
        os.chdir(working_directory)
    except OSError:
        os.chdir("/")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these; what the user ignores stays ignored
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        _execute(argv, env)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        reason = "no such command" if missing else os.strerror(error.errno or 0).lower()
        name = argv[0] if len(argv[0]) <= _SHOWN else f"{argv[0][:_SHOWN]}…"
        os.write(2, f"viewfs: cannot run {name}: {reason}\n".encode(errors="surrogateescape"))
        os._exit(127 if missing else 126)


def _execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """As execvp(3) with the PATH of `env`. (os.execvpe imports `warnings` first.) Raises the OSError that matters."""
    name = argv[0]
    if "/" in name:
        os.execve(name, argv, env)
    refused: OSError | None = None
    for directory in env.get("PATH", os.defpath).split(os.pathsep):
        try:
            os.execve(os.path.join(directory, name), argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = refused or error
    raise refused or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
