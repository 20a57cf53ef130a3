"""The algorithms of /dev/crypto, computed by the kernel: AF_ALG sockets (Documentation/crypto/userspace-if.rst).

One socket is bound to an algorithm and given the key; from it one socket is accepted for each operation. A socket holds
a bounded amount of data, so ciphers get their data in pieces, each with the initialization vector that follows from the
piece before.
"""

from __future__ import annotations

import errno
import socket

from viewfs.modules.api import Buffer
from viewfs.modules.devices.crypto.algorithms import (
    Backend,
    BlockCipher,
    CipherSpec,
    HashSpec,
    InvalidTag,
    check_key,
)

__all__ = ["KERNEL", "is_available"]

#: Bytes that a socket takes at once; the kernel's limit is its send buffer, or 16 pages.
_PIECE = 32 << 10


def is_available() -> bool:
    """Does this kernel have AF_ALG?"""
    try:
        socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()
    except OSError:
        return False
    return True


def _bound(kind: str, name: str, key: bytes | None) -> socket.socket:
    """A socket for algorithm `name`. Raises `ValueError` for a name or key that the kernel does not take."""
    bound = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
    try:
        bound.bind((kind, name))
        if key is not None:
            bound.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, key)
    except OSError as error:
        bound.close()
        raise ValueError(f"the kernel does not take {name}: {error.strerror}") from error
    return bound


def _exactly(operation: socket.socket, into: memoryview) -> None:
    done = 0
    while done < len(into):
        count = operation.recv_into(into[done:])
        if not count:
            raise OSError(errno.EIO, "the kernel gave less than it was given")
        done += count


class _BlockCipher(BlockCipher):
    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        check_key(spec, key)
        self.spec = spec
        self._operation: socket.socket | None = None
        if spec.algorithm is not None:
            with _bound("skcipher", spec.name, key) as bound:
                self._operation, _address = bound.accept()

    def crypt(self, data: Buffer, iv: bytes, room: memoryview, *, decrypt: bool) -> tuple[Buffer, bytes]:
        operation, spec = self._operation, self.spec
        if operation is None:
            return data, iv
        way = socket.ALG_OP_DECRYPT if decrypt else socket.ALG_OP_ENCRYPT
        given = memoryview(data)
        # XTS counts blocks from the beginning of the data, and a second call can't be told where to continue counting.
        piece = len(given) if spec.name == "xts(aes)" else _PIECE
        for start in range(0, len(given), piece):
            part = given[start : start + piece]
            if operation.sendmsg_afalg([part], op=way, iv=iv if spec.iv_size else None) != len(part):
                raise OSError(errno.EINVAL, "the kernel does not take so much at once")
            out = room[start : start + len(part)]
            _exactly(operation, out)
            iv = spec.next_iv(iv, part if decrypt else out, len(part))
        return room[: len(given)], iv

    def close(self) -> None:
        if self._operation is not None:
            self._operation.close()


class _AeadCipher:
    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        check_key(spec, key)
        self.spec = spec
        self._bound = _bound("aead", spec.name, key)

    def _run(self, way: int, message: Buffer, associated: Buffer, iv: bytes, tag_size: int, size: int) -> bytes:
        # The length of the tag is a property of the bound socket; it can be set while no operation is open.
        self._bound.setsockopt(socket.SOL_ALG, socket.ALG_SET_AEAD_AUTHSIZE, None, tag_size)
        operation, _address = self._bound.accept()
        with operation:
            operation.sendmsg_afalg([bytes(associated) + bytes(message)], op=way, iv=iv, assoclen=len(associated))
            out = bytearray(len(associated) + size)
            _exactly(operation, memoryview(out))
            return bytes(out[len(associated) :])

    def seal(self, data: Buffer, associated: Buffer, iv: bytes, tag_size: int) -> bytes:
        size = len(data) + tag_size
        return self._run(socket.ALG_OP_ENCRYPT, data, associated, iv, tag_size, size)

    def open(self, sealed: Buffer, associated: Buffer, iv: bytes, tag_size: int) -> bytes:
        size = len(sealed) - tag_size
        try:
            return self._run(socket.ALG_OP_DECRYPT, sealed, associated, iv, tag_size, size)
        except OSError as error:
            if error.errno == errno.EBADMSG:
                raise InvalidTag from error
            raise

    def close(self) -> None:
        self._bound.close()


class _Hash:
    def __init__(self, operation: socket.socket, size: int) -> None:
        self._operation = operation
        self._size = size

    def update(self, data: Buffer) -> None:
        given = memoryview(data)
        while given:
            given = given[self._operation.send(given[:_PIECE], socket.MSG_MORE) :]

    def finalize(self) -> bytes:
        with self._operation:
            return self._operation.recv(self._size)

    def copy(self) -> _Hash:
        return _Hash(self._operation.accept()[0], self._size)


def _new_hash(spec: HashSpec, key: bytes, _state: bytes) -> _Hash:
    with _bound("hash", spec.name, key if spec.is_keyed else None) as bound:
        return _Hash(bound.accept()[0], spec.algorithm().digest_size)


KERNEL = Backend("kernel", _BlockCipher, _AeadCipher, _new_hash)
