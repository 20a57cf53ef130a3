"""What the processes of a session, and its clients, say to each other. Pure: bytes in, messages out, and back.

A message is a JSON object after its length in bytes (32 bits, big-endian). Requests have an `id` and an `op`, replies
the `id` and either `ok` or `error`; a message without `id` announces something. Descriptors travel beside the bytes
(unix(7), SCM_RIGHTS): `fds` says how many belong to the message. The first message on a control socket is the server's
greeting with `viewfs`, the version of all this.
"""

from __future__ import annotations

import struct

from viewfs.errors import ViewfsError
from viewfs.session.wire import plain_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = [
    "MAX_FDS",
    "MAX_FRAME",
    "VERSION",
    "FrameDecoder",
    "Message",
    "ProtocolError",
    "encode",
    "failure",
    "success",
]

VERSION = 2
#: Bytes; room for the largest environment that execve(2) takes, several times over.
MAX_FRAME = 16 << 20
#: Descriptors with one message: three for each mount that is made copy-on-write. (A process can have 1,024, as a rule.)
MAX_FDS = 900

Message = dict[str, "Any"]
_LENGTH = struct.Struct(">I")


class ProtocolError(ViewfsError):
    """The other side does not speak this protocol."""


def encode(message: Message, fds: int = 0) -> bytes:
    """`message` as it goes over the wire; undecodable bytes in paths survive, as Python's surrogates."""
    if fds > MAX_FDS:
        raise ProtocolError(f"a message with {fds} descriptors is too much")
    if fds:
        message = message | {"fds": fds}
    body = plain_json.dumps(message).encode("ascii")
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"a message of {len(body)} bytes is too long")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Bytes as they come, turned into messages as they are complete."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes. Raises `ProtocolError` on what can't be one."""
        self._pending += data
        while len(self._pending) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._pending)
            if length > MAX_FRAME:
                raise ProtocolError(f"a message of {length} bytes is announced")
            end = _LENGTH.size + length
            if len(self._pending) < end:
                return
            body = bytes(self._pending[_LENGTH.size : end])
            del self._pending[:end]
            yield _parse(body)


def _parse(body: bytes) -> Message:
    try:
        message = plain_json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message that is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message that is not an object")
    fds = message.get("fds", 0)
    if not isinstance(fds, int) or not 0 <= fds <= MAX_FDS:
        raise ProtocolError("a message with a wrong number of descriptors")
    return message


def success(request: Message, **result: Any) -> Message:
    """The reply that says it was done."""
    return {"id": request.get("id"), "ok": result}


def failure(request: Message, error: ViewfsError) -> Message:
    """The reply that says why it was not."""
    return {"id": request.get("id"), "error": error.to_json()}


def result_of(reply: Message) -> dict[str, Any]:
    """The result in a reply. Raises the `ViewfsError` that it carries."""
    if "error" in reply:
        raise ViewfsError.from_json(reply["error"])
    result: dict[str, Any] = reply.get("ok", {})
    return result
