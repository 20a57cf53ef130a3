"""How a session ends: whoever is left does it, in the same order.

Processes of the view are asked first, while their file systems still answer; then all that is left is killed. A process
that waits for an answer of a FUSE server can only die once the last descriptor of that connection is closed, so those
go between the two.
"""

from __future__ import annotations

from viewfs.linux.plain import signal
from viewfs.linux.process import pidfd_send_signal
from viewfs.namespaces.members import end_members, wait_for_exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

__all__ = ["GRACE_SECONDS", "end_session"]

#: How long a process of the view may take to end by itself.
GRACE_SECONDS = 2.0
_AGENT_SECONDS = 10.0


def end_session(
    user_namespace: tuple[int, int],
    *,
    spare: Collection[int] = (),
    release: Callable[[], None] = lambda: None,
    agents: Sequence[int] = (),
    grace_seconds: float = GRACE_SECONDS,
) -> int:
    """End every process of the session's user namespace; `spare` are those that serve it, and go last.

    `release` closes FUSE and namespace descriptors and the agent's link. The agent then ends what it started and then
    itself, and is not killed unless it takes too long: its children have a parent to the last. (`agents` are pidfds of
    it, and of its parent if that waits for it.) Returns how many processes could not be ended.
    """
    if grace_seconds > 0:
        end_members(user_namespace, spare=spare, grace_seconds=grace_seconds, limit_seconds=grace_seconds)
    release()
    wait_for_exits(agents, _AGENT_SECONDS)
    for agent in agents:
        pidfd_send_signal(agent, signal.SIGKILL)  # somebody has stopped it; what it started ends with it
    return end_members(user_namespace, grace_seconds=0)
