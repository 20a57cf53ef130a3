"""Making a view: namespaces of this process's own, and a root in them that belongs to the view."""

from __future__ import annotations

from viewfs.errors import MachineError, ViewfsError, explain_os_error
from viewfs.linux.namespaces import CloneFlags, unshare
from viewfs.linux.plain import socket
from viewfs.mounts.root import build_root
from viewfs.namespaces.user import IdentityMap, unshare_user_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from viewfs.session.plans import AgentPlan

__all__ = ["explained", "make_view"]


def make_view(plan: AgentPlan, identity: IdentityMap, become_init: Callable[[], None] | None = None) -> None:
    """Put this single-threaded process into a view. Raises `MachineError`, and OSError.

    `become_init` is called if the view has a pid namespace, and returns in process 1 of it.
    """
    kinds = CloneFlags.NEWNS
    if plan.hostname is not None:
        kinds |= CloneFlags.NEWUTS
    unshare_user_namespace(identity, kinds)
    if plan.hostname is not None:
        socket.sethostname(plan.hostname)
    if plan.pid_namespace and become_init is not None:
        unshare(CloneFlags.NEWPID)
        become_init()
    build_root(fresh_proc=plan.pid_namespace)


def explained(error: ViewfsError | OSError) -> ViewfsError:
    """The error that says why there is no view."""
    if isinstance(error, ViewfsError):
        return error
    return MachineError(str(explain_os_error("cannot make the view", error)))
