"""Workers that fork servers, and stay as their parents: the agent asks after no grandchildren."""

from __future__ import annotations

import os
import signal

from viewfs.linux.process import pidfd_open
from viewfs.session.channel import Channel

__all__ = ["keep_only_these", "pidfds", "server_names", "stay"]


def server_names(servers: list[int]) -> list[str]:
    """What a report calls the descriptors of `pidfds`."""
    return [f"server{number}" for number in range(len(servers) + 1)] if servers else []


def pidfds(servers: list[int]) -> list[int]:
    """Of those that serve, and of this process, which waits for them."""
    return [pidfd_open(pid) for pid in (*servers, os.getpid())] if servers else []


def stay(channel: Channel, servers: list[int]) -> None:
    """Until what was sent has been received, which must not be closed here before; and as long as there are servers."""
    channel.receive()
    if servers:
        os.closerange(3, 1 << 16)
        left = list(servers)

        def end(_number: int, _frame: object) -> None:
            for server in left:
                os.kill(server, signal.SIGKILL)

        signal.signal(signal.SIGTERM, end)
        while left:
            # It keeps its number until it is no longer in the list.
            os.waitid(os.P_PID, left[0], os.WEXITED | os.WNOWAIT)
            os.waitpid(left.pop(0), 0)


def keep_only_these(fds: set[int | None]) -> None:
    """Close all other descriptors: any could be one of a mount that waits for this process."""
    low = 3
    for fd in sorted(fd for fd in fds if fd is not None and fd > 2):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)
