"""A small client of /dev/crypto (cryptodev-linux's interface): AES-256-GCM and HMAC-SHA-256."""

from __future__ import annotations

import ctypes
import fcntl
import os

CRYPTO_SHA2_256_HMAC = 18
CRYPTO_AES_GCM = 50
TAG_SIZE = 16


class SessionOp(ctypes.Structure):
    _fields_ = (
        ("cipher", ctypes.c_uint32),
        ("mac", ctypes.c_uint32),
        ("keylen", ctypes.c_uint32),
        ("key", ctypes.c_void_p),
        ("mackeylen", ctypes.c_uint32),
        ("mackey", ctypes.c_void_p),
        ("ses", ctypes.c_uint32),
    )


class CryptOp(ctypes.Structure):
    _fields_ = (
        ("ses", ctypes.c_uint32),
        ("op", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("len", ctypes.c_uint32),
        ("src", ctypes.c_void_p),
        ("dst", ctypes.c_void_p),
        ("mac", ctypes.c_void_p),
        ("iv", ctypes.c_void_p),
    )


class CryptAuthOp(ctypes.Structure):
    _fields_ = (
        ("ses", ctypes.c_uint32),
        ("op", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("len", ctypes.c_uint32),
        ("auth_len", ctypes.c_uint32),
        ("auth_src", ctypes.c_void_p),
        ("src", ctypes.c_void_p),
        ("dst", ctypes.c_void_p),
        ("tag", ctypes.c_void_p),
        ("tag_len", ctypes.c_uint32),
        ("iv", ctypes.c_void_p),
        ("iv_len", ctypes.c_uint32),
    )


def _iowr(number: int, structure: type[ctypes.Structure]) -> int:
    return 3 << 30 | ctypes.sizeof(structure) << 16 | ord("c") << 8 | number


CIOCGSESSION = _iowr(102, SessionOp)
CIOCCRYPT = _iowr(104, CryptOp)
CIOCAUTHCRYPT = _iowr(109, CryptAuthOp)


def _buffer(data: bytes, room: int = 0) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, max(len(data) + room, 1))


class Device:
    """An open /dev/crypto. Its sessions end with it."""

    def __init__(self, path: str = "/dev/crypto") -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def _call(self, command: int, op: ctypes.Structure) -> None:
        fcntl.ioctl(self._fd, command, op, True)

    def _begin(self, **fields: int) -> int:
        op = SessionOp(**fields)
        self._call(CIOCGSESSION, op)
        return int(op.ses)

    def hmac(self, key: bytes, data: bytes) -> bytes:
        """HMAC-SHA-256 of `data`."""
        key_buffer, source, digest = _buffer(key), _buffer(data), _buffer(bytes(32))
        session = self._begin(mac=CRYPTO_SHA2_256_HMAC, mackeylen=len(key), mackey=ctypes.addressof(key_buffer))
        self._call(
            CIOCCRYPT,
            CryptOp(ses=session, len=len(data), src=ctypes.addressof(source), mac=ctypes.addressof(digest)),
        )
        return digest.raw[:32]

    def gcm(self, key: bytes) -> int:
        """A session for AES-GCM with `key`."""
        key_buffer = _buffer(key)
        return self._begin(cipher=CRYPTO_AES_GCM, keylen=len(key), key=ctypes.addressof(key_buffer))

    def seal(self, session: int, nonce: bytes, data: bytes) -> bytes:
        """`data` encrypted, with its tag."""
        return self._gcm(session, 0, nonce, data, len(data) + TAG_SIZE)

    def open(self, session: int, nonce: bytes, sealed: bytes) -> bytes:
        """What `seal` was given. Raises OSError(EBADMSG) where it is not what was sealed."""
        return self._gcm(session, 1, nonce, sealed, max(len(sealed) - TAG_SIZE, 0))

    def _gcm(self, session: int, operation: int, nonce: bytes, data: bytes, size: int) -> bytes:
        source, target, vector = _buffer(data), _buffer(b"", len(data) + TAG_SIZE), _buffer(nonce)
        op = CryptAuthOp(
            ses=session, op=operation, len=len(data), src=ctypes.addressof(source), dst=ctypes.addressof(target),
            iv=ctypes.addressof(vector), iv_len=len(nonce), tag_len=TAG_SIZE,
        )  # fmt: skip
        self._call(CIOCAUTHCRYPT, op)
        return target.raw[:size]
