"""Workers that become servers of modules which answer system calls. The event loop that these may use is imported with
this module."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from viewfs.errors import DamagedSourceError, UsageError
from viewfs.linux.process import no_new_privileges
from viewfs.linux.unotify import is_asking_another
from viewfs.modules.api import Mounting
from viewfs.modules.api.calls import CallModule
from viewfs.mounts.fuse.counters import Counters
from viewfs.namespaces.enter import Asking
from viewfs.namespaces.sandbox import Limits
from viewfs.session.agent.shutting_in import shut_in
from viewfs.session.calls import in_view
from viewfs.session.calls.notified import have_calls_notified
from viewfs.session.calls.serving import CallServer, calls_of_module
from viewfs.session.wire.reports import Found

__all__ = ["check_again", "new_token", "open_calls", "what_it_answers", "what_it_can_miss"]


def what_it_answers(module: CallModule) -> list[list[str]]:
    """Each call with its signature. Raises `UsageError` where it has none, or can't be asked."""
    calls = [[name, signature] for name, signature, _handlers in calls_of_module(module)]
    if not calls:
        raise UsageError(f"module {module.name} answers no call", remedy="mark its methods with @call(…)")
    if is_asking_another():
        what = f"module {module.name} answers system calls, which are the outer view's here"
        raise UsageError(what, remedy="load it in the outer view")
    return calls


def what_it_can_miss(module: CallModule) -> list[str]:
    """Names of calls that it answers only where they are notified."""
    found = calls_of_module(module)
    return [name for name, _signature, handlers in found if all(handler.is_dispensable for handler in handlers)]


def check_again(module: CallModule, calls: list[list[str]]) -> None:
    """Raises `UsageError` if a module that is loaded anew answers other calls than before."""
    if what_it_answers(module) != calls:
        raise UsageError(f"module {module.name} answers other calls now", remedy="remove it, and load it anew")


def new_token() -> int:
    return int.from_bytes(os.urandom(7), "little") + 1


def open_calls(
    module: CallModule,
    mounting: Mounting,
    limits: Limits,
    *,
    asking: Asking | None,
    token: int,
    resumed: bool,
) -> tuple[Callable[[int, Counters], None], Found]:
    """Shut this process in, and only then let the module begin: what serves it, and what to report.

    What it asks of the view itself is for the modules before it, if it can ask (`asking`); `token` tells who it is.
    """
    if asking is not None:
        no_new_privileges()
        have_calls_notified(asking, token)
        os.close(asking.keeper)
    shut_in(module, mounting, limits)
    if module.lives_in_view:
        module.in_view = in_view
    try:
        module.begin(mounting)
    except OSError as error:
        what = mounting.source_name or f"module {module.name}"
        raise DamagedSourceError(f"cannot begin {what}: {error.strerror or error}") from error

    def serve(fd: int, counters: Counters) -> None:
        CallServer(module, fd, counters).serve(resumed=resumed)

    return serve, Found(stat.S_IFREG, resumable=True)
