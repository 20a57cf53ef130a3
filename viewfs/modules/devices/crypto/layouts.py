"""The structures and numbers of cryptodev-linux's public header, crypto/cryptodev.h.

Structures exist twice, for 64-bit and 32-bit callers: their pointers are as wide as the caller's, and point to the
caller's memory. A different size makes a different ioctl number, so that the two are never confused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from viewfs.modules.api.ioctls import _IOR, _IOW, _IOWR

__all__ = [
    "CIOCASYMFEAT",
    "CIOCCPHASH",
    "CIOCFSESSION",
    "CIOCGSESSINFO",
    "COP_DECRYPT",
    "COP_ENCRYPT",
    "COP_FLAG_AEAD_SRTP_TYPE",
    "COP_FLAG_AEAD_TLS_TYPE",
    "COP_FLAG_FINAL",
    "COP_FLAG_RESET",
    "COP_FLAG_UPDATE",
    "COP_FLAG_WRITE_IV",
    "SIOP_FLAG_KERNEL_DRIVER_ONLY",
    "Algorithm",
    "CopyHashOp",
    "CryptAuthOp",
    "CryptAuthOp32",
    "CryptOp",
    "CryptOp32",
    "SessionInfoOp",
    "SessionOp",
    "SessionOp32",
    "authcrypt_command",
    "crypt_command",
    "session_command",
]

Fields = Sequence[tuple[str, Any]]


class Algorithm(IntEnum):
    """The values of enum cryptodev_crypto_op_t that are served."""

    TRIPLE_DES_CBC = 2
    SHA1_HMAC = 7
    AES_CBC = 11
    SHA1 = 14
    NULL = 16
    SHA2_256_HMAC = 18
    SHA2_384_HMAC = 19
    SHA2_512_HMAC = 20
    AES_CTR = 21
    AES_XTS = 22
    AES_ECB = 23
    AES_GCM = 50
    SHA2_224 = 103
    SHA2_256 = 104
    SHA2_384 = 105
    SHA2_512 = 106
    SHA2_224_HMAC = 107


#: COP_*; plain numbers, because the arithmetic of an IntFlag takes longer than encrypting a page.
COP_ENCRYPT, COP_DECRYPT = 0, 1
COP_FLAG_UPDATE = 1 << 0
COP_FLAG_FINAL = 1 << 1
COP_FLAG_WRITE_IV = 1 << 2
COP_FLAG_AEAD_TLS_TYPE = 1 << 4
COP_FLAG_AEAD_SRTP_TYPE = 1 << 5
COP_FLAG_RESET = 1 << 6

SIOP_FLAG_KERNEL_DRIVER_ONLY = 1
_NAME_SIZE = 64


def _session_op(pointer: Any) -> Fields:
    u32 = ctypes.c_uint32
    return (
        ("cipher", u32), ("mac", u32), ("keylen", u32), ("key", pointer), ("mackeylen", u32), ("mackey", pointer),
        ("ses", u32),
    )  # fmt: skip


def _crypt_op(pointer: Any) -> Fields:
    u16, u32 = ctypes.c_uint16, ctypes.c_uint32
    return (
        ("ses", u32), ("op", u16), ("flags", u16), ("len", u32), ("src", pointer), ("dst", pointer), ("mac", pointer),
        ("iv", pointer),
    )  # fmt: skip


def _crypt_auth_op(pointer: Any) -> Fields:
    u16, u32 = ctypes.c_uint16, ctypes.c_uint32
    return (
        ("ses", u32), ("op", u16), ("flags", u16), ("len", u32), ("auth_len", u32), ("auth_src", pointer),
        ("src", pointer), ("dst", pointer), ("tag", pointer), ("tag_len", u32), ("iv", pointer), ("iv_len", u32),
    )  # fmt: skip


class SessionOp(ctypes.Structure):
    """struct session_op."""

    _fields_ = _session_op(ctypes.c_uint64)


class SessionOp32(ctypes.Structure):
    """struct session_op of a 32-bit program."""

    _fields_ = _session_op(ctypes.c_uint32)


class CryptOp(ctypes.Structure):
    """struct crypt_op."""

    _fields_ = _crypt_op(ctypes.c_uint64)


class CryptOp32(ctypes.Structure):
    """struct crypt_op of a 32-bit program."""

    _fields_ = _crypt_op(ctypes.c_uint32)


class CryptAuthOp(ctypes.Structure):
    """struct crypt_auth_op."""

    _fields_ = _crypt_auth_op(ctypes.c_uint64)


class CryptAuthOp32(ctypes.Structure):
    """struct crypt_auth_op of a 32-bit program."""

    _fields_ = _crypt_auth_op(ctypes.c_uint32)


class AlgorithmInfo(ctypes.Structure):
    """struct alg_info."""

    _fields_ = (("cra_name", ctypes.c_char * _NAME_SIZE), ("cra_driver_name", ctypes.c_char * _NAME_SIZE))


class SessionInfoOp(ctypes.Structure):
    """struct session_info_op, which has no pointers."""

    _fields_ = (
        ("ses", ctypes.c_uint32),
        ("cipher_info", AlgorithmInfo),
        ("hash_info", AlgorithmInfo),
        ("alignmask", ctypes.c_uint16),
        ("flags", ctypes.c_uint32),
    )


class CopyHashOp(ctypes.Structure):
    """struct cphash_op."""

    _fields_ = (("dst_ses", ctypes.c_uint32), ("src_ses", ctypes.c_uint32))


def session_command(structure: type[ctypes.Structure]) -> int:
    """CIOCGSESSION."""
    return _IOWR("c", 102, structure)


def crypt_command(structure: type[ctypes.Structure]) -> int:
    """CIOCCRYPT."""
    return _IOWR("c", 104, structure)


def authcrypt_command(structure: type[ctypes.Structure]) -> int:
    """CIOCAUTHCRYPT."""
    return _IOWR("c", 109, structure)


CIOCFSESSION = _IOW("c", 103, ctypes.c_uint32)
CIOCASYMFEAT = _IOR("c", 106, ctypes.c_uint32)
CIOCGSESSINFO = _IOWR("c", 107, SessionInfoOp)
CIOCCPHASH = _IOW("c", 112, CopyHashOp)
