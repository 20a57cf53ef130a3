"""A command that makes its view itself: a child that unshares, reports that, and waits until it is let go."""

from __future__ import annotations

import os

from viewfs.errors import ViewfsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from viewfs.session.front.claiming import Claimed
    from viewfs.session.plans import AgentPlan

__all__ = ["Making"]

_DONE = b"."
_NOT = b"!"


class Making:
    """Such a child. The command inherits what the child inherits."""

    def __init__(
        self, plan: AgentPlan, argv: list[str], environment: Callable[[], dict[str, str]], claimed: Claimed
    ) -> None:
        """The child closes the listener, so that clients waiting at it learn when the session's processes have ended.

        `environment` is called in the child: a copy in this process would be in the memory of each server too.
        """
        self._kinds = plan.kinds
        self._told, telling = os.pipe2(os.O_CLOEXEC)
        self._go: int | None
        waiting, self._go = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            claimed.listener.close()
            _become(plan, argv, environment, telling, waiting, claimed)
        os.close(telling)
        os.close(waiting)

    def namespaces(self) -> dict[str, int]:
        """Wait for the view: its namespaces by kind. Raises the `ViewfsError` that says why there is none."""
        said = os.read(self._told, 1)
        while said != _DONE and (more := os.read(self._told, 1 << 16)):
            said += more
        os.close(self._told)
        if said != _DONE:
            if not said:
                remedy = "`viewfs doctor` tries each step"
                raise ViewfsError("the command ended before the view was there", remedy=remedy)
            from viewfs.session.wire import plain_json

            raise ViewfsError.from_json(plain_json.loads(said.decode()))
        try:
            return {kind: os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in self._kinds}
        except OSError as error:
            raise ViewfsError(f"the command ended before its view could be had ({error.strerror})") from error

    def let_go(self) -> None:
        """Have the command begin."""
        self._say(_DONE)

    def give_up(self) -> None:
        """Have it end instead, unless it has been let go."""
        self._say(_NOT)

    def _say(self, word: bytes) -> None:
        if self._go is None:
            return
        try:
            os.write(self._go, word)
        except BrokenPipeError:
            pass  # somebody has killed it
        os.close(self._go)
        self._go = None


def _become(
    plan: AgentPlan,
    argv: list[str],
    environment: Callable[[], dict[str, str]],
    telling: int,
    waiting: int,
    claimed: Claimed,
) -> NoReturn:
    status = 126
    try:
        working_directory = os.getcwd()
        from viewfs.namespaces.enter import Asking
        from viewfs.namespaces.user import IdentityMap
        from viewfs.session.execution import drop_privileges_for_command, exec_command
        from viewfs.session.making import explained, make_view

        try:
            make_view(plan, IdentityMap.of_caller(as_root=plan.as_root, ids=plan.ids))
        except (ViewfsError, OSError) as error:
            from viewfs.session.wire import plain_json

            os.write(telling, plain_json.dumps(explained(error).to_json()).encode())
            os._exit(status)
        os.write(telling, _DONE)
        told = os.read(waiting, 1)
        if not told:  # somebody has killed the front, and there may be no stand-by yet
            claimed.runtime.remove(claimed.name)
        if told == _DONE:
            sender = claimed.calls_sender
            calls = None if sender is None else Asking(sender, plan.families)
            drop_privileges_for_command(as_root=plan.as_root, calls=calls)
            exec_command(argv, environment(), working_directory)
    except OSError as error:
        os.write(2, f"viewfs: cannot enter the view: {error}\n".encode())
    finally:
        os._exit(status)
