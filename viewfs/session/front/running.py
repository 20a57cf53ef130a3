"""Opening a session. This comes before the view is there, and so imports as little as possible."""

from __future__ import annotations

import sys

from viewfs.errors import ViewfsError
from viewfs.linux.plain import signal
from viewfs.session.front.claiming import Claimed
from viewfs.session.front.making import Making
from viewfs.session.front.signals import WAITED_FOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from viewfs.session.plans import SessionPlan

__all__ = ["run_session"]


#: Seconds in which the front hears that a part of the session has ended, after a connection to it has.
_BLAME_SECONDS = 0.3


def run_session(plan: SessionPlan, warn: Callable[[str], None]) -> int:
    """Open the session, run the command, end the session (unless it is to be kept): the command's exit code.

    128 + n stands for a command that signal n ended. Raises `ViewfsError` where the session can't be opened.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)  # before there is a socket that would be left
    claimed = Claimed(plan)
    sys.stdout.flush()
    sys.stderr.flush()
    making = None
    if not plan.view.needs_agent and not plan.covers:
        # Usually the command makes its view itself, and waits until it is let go.
        def environment() -> dict[str, str]:
            return plan.environment_in(claimed.name, claimed.runtime.path)

        making = Making(plan.view, list(plan.command), environment, claimed)
    from viewfs.session.front.front import Front  # while the child makes the view

    front = Front(plan, warn, claimed, making)
    try:
        front.open()
        return front.run()
    except OSError:
        # If a connection has ended because a part of the session has, that is what the user has to be told.
        lost = front.lost_soon(_BLAME_SECONDS)
        if lost is None and front.has_ended:
            raise ViewfsError("the session was ended before its command had begun") from None
        if lost is None:
            raise
        return lost
    finally:
        front.close()
