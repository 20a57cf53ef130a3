"""How a session ends. Whichever of its processes is left does it, always in the same order.

First the processes of the view are asked to end, while their file systems still answer. Then the descriptors of FUSE
connections are closed: a process that waits for a FUSE server can die only once the last descriptor of that connection
is closed. Then everything that is left is killed.
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
    """End every process of the session's user namespace; `spare` are those that serve it, and are ended last.

    `release` closes FUSE and namespace descriptors and the link to the agent. The agent then ends its children, and
    then itself. It is killed only if that takes too long, so that its children have a parent until they end. (`agents`
    are pidfds of the agent, and of its parent if that waits for it.) Returns how many processes could not be ended.
    """
    if grace_seconds > 0:
        end_members(user_namespace, spare=spare, grace_seconds=grace_seconds, limit_seconds=grace_seconds)
    release()
    wait_for_exits(agents, _AGENT_SECONDS)
    for agent in agents:
        pidfd_send_signal(agent, signal.SIGKILL)  # somebody may have stopped it; its children end with it
    return end_members(user_namespace, grace_seconds=0)
