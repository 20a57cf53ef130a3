"""An encrypted channel over TCP: keys by Diffie-Hellman, everything else by /dev/crypto.

Both sides send a public value of the 2048-bit group of RFC 3526. The keys, one for each direction, are HMAC-SHA-256 of
what they have in common and of both values, under a passphrase: who does not know it, and sits between the two, gets
other keys than either. Each message is sealed with AES-256-GCM; its nonce is its number, so that none can be repeated,
left out or moved.
"""

from __future__ import annotations

import secrets
import socket
import struct

from cryptodev import Device

GENERATOR = 2
PRIME = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)
_VALUE_SIZE = 256
_LENGTH = struct.Struct("!I")
MAX_MESSAGE = 64 << 10


class ChannelError(Exception):
    """The other side does not speak this protocol, has another passphrase, or somebody meddles."""


class Channel:
    """One connection, the keys agreed on."""

    def __init__(self, connection: socket.socket, device: Device, passphrase: str, *, is_server: bool) -> None:
        """Raises `ChannelError`, OSError."""
        self._connection = connection
        self._device = device
        secret = secrets.randbelow(PRIME - 4) + 2
        ours = pow(GENERATOR, secret, PRIME).to_bytes(_VALUE_SIZE, "big")
        connection.sendall(ours)
        theirs = self._exactly(_VALUE_SIZE)
        value = int.from_bytes(theirs, "big")
        if not 1 < value < PRIME - 1:
            raise ChannelError("a public value that gives the secret away")
        common = pow(value, secret, PRIME).to_bytes(_VALUE_SIZE, "big")
        both = ours + theirs if is_server else theirs + ours
        root = device.hmac(passphrase.encode(), common + both)
        to_client, to_server = device.hmac(root, b"to the client"), device.hmac(root, b"to the server")
        mine, other = (to_client, to_server) if is_server else (to_server, to_client)
        self._sending, self._receiving = device.gcm(mine), device.gcm(other)
        self._sent = self._received = 0

    def send(self, message: bytes) -> None:
        """Raises OSError."""
        sealed = self._device.seal(self._sending, self._sent.to_bytes(12, "big"), message)
        self._sent += 1
        self._connection.sendall(_LENGTH.pack(len(sealed)) + sealed)

    def receive(self) -> bytes | None:
        """The next message; None at the end. Raises `ChannelError`, OSError."""
        head = self._connection.recv(1)
        if not head:
            return None
        (length,) = _LENGTH.unpack(head + self._exactly(_LENGTH.size - 1))
        if length > MAX_MESSAGE:
            raise ChannelError(f"a message of {length} bytes")
        sealed = self._exactly(length)
        try:
            message = self._device.open(self._receiving, self._received.to_bytes(12, "big"), sealed)
        except OSError as error:
            raise ChannelError("a message that was not sealed with the same key") from error
        self._received += 1
        return message

    def _exactly(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            more = self._connection.recv(size - len(parts))
            if not more:
                raise ChannelError("the connection ends in the middle")
            parts += more
        return parts
