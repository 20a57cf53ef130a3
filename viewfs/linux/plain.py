"""The C modules behind `signal` and `socket`, without Python's wrappers: constants are numbers and not enumerations.

For code that runs before the view is there. Importing `enum`, `signal` and `socket` takes longer than making the view.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket
else:
    import _signal as signal
    import _socket as socket

__all__ = ["signal", "socket"]
