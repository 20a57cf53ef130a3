"""The name of a session, which is claimed before there is a view."""

from __future__ import annotations

from viewfs.linux.plain import socket
from viewfs.session.layer_settings import LayerSettings, chosen_backend
from viewfs.session.runtime import RuntimeDirectory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from viewfs.session.plans import SessionPlan

__all__ = ["Claimed"]


class Claimed:
    """What a session has before it has a view: its name, the listener for that name, and the settings of its layers."""

    def __init__(self, plan: SessionPlan) -> None:
        backend = chosen_backend(plan.cow_backend)  # may fail, so before there is anything to be taken away
        self.runtime, self.listener, self.name = RuntimeDirectory.claim(plan.name)
        #: Where commands send the listeners of their system calls, and where those arrive; None: they have none.
        self.calls_sender: int | None = None
        self.calls_receiver: int | None = None
        if plan.view.calls:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.calls_sender, self.calls_receiver = (end.detach() for end in pair)
        self.layers = LayerSettings.of_session(
            self.name,
            named=plan.name is not None,
            runtime=self.runtime.path,
            backend=backend,
            directory=plan.layer_directory,
        )
