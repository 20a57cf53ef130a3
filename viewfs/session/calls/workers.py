"""What a notifier has done by others, so that it never waits itself: a process for each call."""

from __future__ import annotations

import os
import select

from viewfs.linux.plain import signal
from viewfs.linux.process import set_name
from viewfs.python import print_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Workers"]

#: So many at once. Whoever can keep them waiting could else have any number.
_MOST = 256


class Workers:
    """Processes that work at calls, by pidfd. They go on where the notifier that has forked them dies."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        #: Pidfd → pid; and slot and id of its call, and the epoch of a module.
        self._found: dict[int, tuple[int, tuple[int, int, int | None]]] = {}

    def __contains__(self, pidfd: int) -> bool:
        return pidfd in self._found

    def begin(self, slot: int, call: int, name: str, work: Callable[[int], None], epoch: int | None = None) -> bool:
        """Have a process do `work`, which is given its pid, for the call in this slot, and perhaps a module. False if
        none is to be had."""
        if len(self._found) >= _MOST:
            return False
        try:
            pid = os.fork()
        except OSError:
            return False
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                set_name(f"viewfs-{name}")
                work(os.getpid())
                status = 0
            except BaseException:
                print_traceback()
            finally:
                os._exit(status)
        self.watch(slot, call, pid, epoch)
        return True

    def watch(self, slot: int, call: int, pid: int, epoch: int | None = None) -> None:
        """Wait for the end of a worker. Raises OSError or ValueError if there is none."""
        pidfd = os.pidfd_open(pid)
        self._found[pidfd] = pid, (slot, call, epoch)
        self._poll.register(pidfd, select.POLLIN)

    def are_at(self, slot: int, call: int) -> bool:
        """Does any work at this call?"""
        return any(what[:2] == (slot, call) for _pid, what in self._found.values())

    def take_ended(self, pidfd: int) -> tuple[int, int, int, int | None]:
        """One has ended: its pid, slot and id of its call, and the epoch of its module."""
        pid, what = self._found.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # another notifier has forked it
        return pid, *what
