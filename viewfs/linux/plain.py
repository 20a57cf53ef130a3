"""`signal` and `socket` as C has them, without what Python puts around: constants are numbers and not enumerations.

For what runs before a view is there. Importing `enum`, `signal` and `socket` takes longer than making the view.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket
else:
    import _signal as signal
    import _socket as socket

__all__ = ["signal", "socket"]
