"""The algorithms of /dev/crypto, computed by the library `cryptography`.

A cipher here is a key and a mode, and has no state between calls. The initialization vector, which chains one call to
the next, is computed from the data of the call before (NIST SP 800-38A: 6.2 CBC, 6.5 CTR and B.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from viewfs.modules.api import Buffer
from viewfs.modules.devices.crypto.layouts import Algorithm
from viewfs.modules.devices.crypto.resumable import ResumableHash, can_resume

__all__ = [
    "CIPHERS",
    "HASHES",
    "LIBRARY",
    "TAG_SIZES",
    "Aead",
    "Backend",
    "BlockCipher",
    "CipherSpec",
    "HashContext",
    "HashSpec",
    "InvalidTag",
    "check_key",
]

_AES_KEYS = (16, 24, 32)
_AES_BLOCK = 16


class CipherSpec(NamedTuple):
    """A cipher: the kernel's name for it, and its sizes in bytes."""

    name: str
    key_sizes: tuple[int, ...]
    #: Data comes in multiples of this.
    block_size: int
    iv_size: int
    algorithm: Callable[[bytes], Any] | None
    mode: Callable[[bytes], Any]
    #: The initialization vector of the next call, from that of this call, its ciphertext, and the length in bytes.
    next_iv: Callable[[bytes, Buffer, int], bytes]
    is_aead: bool = False


def _last_block(iv: bytes, ciphertext: Buffer, _length: int) -> bytes:
    return bytes(ciphertext[-len(iv) :])


def _counted_on(iv: bytes, _ciphertext: Buffer, length: int) -> bytes:
    blocks = -(-length // _AES_BLOCK)
    return ((int.from_bytes(iv, "big") + blocks) % (1 << 128)).to_bytes(_AES_BLOCK, "big")


def _as_it_was(iv: bytes, _ciphertext: Buffer, _length: int) -> bytes:
    return iv


CIPHERS = {
    Algorithm.AES_CBC: CipherSpec(
        "cbc(aes)", _AES_KEYS, 16, 16, algorithms.AES, modes.CBC, _last_block
    ),
    Algorithm.AES_ECB: CipherSpec(
        "ecb(aes)", _AES_KEYS, 16, 0, algorithms.AES, lambda _iv: modes.ECB(), _as_it_was
    ),
    Algorithm.AES_CTR: CipherSpec(
        "ctr(aes)", _AES_KEYS, 1, 16, algorithms.AES, modes.CTR, _counted_on
    ),
    Algorithm.AES_XTS: CipherSpec(
        "xts(aes)", (32, 64), 16, 16, algorithms.AES, modes.XTS, _as_it_was
    ),
    Algorithm.AES_GCM: CipherSpec(
        "gcm(aes)", _AES_KEYS, 1, 12, algorithms.AES, modes.GCM, _as_it_was,
        is_aead=True,
    ),
    Algorithm.TRIPLE_DES_CBC: CipherSpec(
        "cbc(des3_ede)", (24,), 8, 8, TripleDES, modes.CBC, _last_block
    ),
    Algorithm.NULL: CipherSpec("ecb(cipher_null)", tuple(range(65)), 1, 0, None, bytes, _as_it_was),
}  # fmt: skip


#: Bytes of a tag of AES-GCM that are allowed (crypto_gcm_check_authsize of the kernel, SP 800-38D 5.2.1.2).
TAG_SIZES = (4, 8, 12, 13, 14, 15, 16)


def check_key(spec: CipherSpec, key: bytes) -> None:
    """Raises `ValueError` for a key of a length that the cipher does not take."""
    if len(key) not in spec.key_sizes:
        raise ValueError(f"{spec.name} has no keys of {len(key)} bytes")


class BlockCipher:
    """A cipher with its key. Raises `ValueError` for a key that it does not take."""

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        check_key(spec, key)
        self.spec = spec
        self._key = None if spec.algorithm is None else spec.algorithm(key)
        if self._key is not None:
            Cipher(self._key, spec.mode(bytes(spec.iv_size))).encryptor()  # it may be refused for more than its length

    def crypt(self, data: Buffer, iv: bytes, room: memoryview, *, decrypt: bool) -> tuple[Buffer, bytes]:
        """`data` encrypted or decrypted, and the initialization vector with which the next call continues.

        The output is written to `room`, which is a block longer than `data`.
        """
        spec = self.spec
        if self._key is None:
            return data, iv
        cipher = Cipher(self._key, spec.mode(iv))
        context: CipherContext = cipher.decryptor() if decrypt else cipher.encryptor()
        out = room[: context.update_into(data, room)]
        return out, spec.next_iv(iv, data if decrypt else out, len(data))

    def close(self) -> None:
        """Its session has ended."""


class Aead(Protocol):
    """AES-GCM with its key (NIST SP 800-38D)."""

    spec: CipherSpec

    def seal(self, data: Buffer, associated: Buffer, iv: bytes, tag_size: int) -> bytes:
        """`data` encrypted, followed by the tag."""

    def open(self, sealed: Buffer, associated: Buffer, iv: bytes, tag_size: int) -> bytes:
        """The `data` that `seal` was given. Raises `InvalidTag`."""

    def close(self) -> None:
        """Its session has ended."""


class _AeadCipher:
    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        check_key(spec, key)
        self.spec = spec
        self._key = algorithms.AES(key)

    def seal(self, data: Buffer, associated: Buffer, iv: bytes, tag_size: int) -> bytes:
        encryptor = Cipher(self._key, modes.GCM(iv)).encryptor()
        encryptor.authenticate_additional_data(associated)
        sealed = encryptor.update(data) + encryptor.finalize()
        return sealed + encryptor.tag[:tag_size]

    def open(self, sealed: Buffer, associated: Buffer, iv: bytes, tag_size: int) -> bytes:
        tag = bytes(sealed[len(sealed) - tag_size :])
        decryptor = Cipher(self._key, modes.GCM(iv, tag, min_tag_length=tag_size)).decryptor()
        decryptor.authenticate_additional_data(associated)
        return decryptor.update(sealed[: len(sealed) - tag_size]) + decryptor.finalize()

    def close(self) -> None:
        pass


class HashSpec(NamedTuple):
    """A hash function, or a keyed one."""

    name: str
    algorithm: Callable[[], hashes.HashAlgorithm]
    is_keyed: bool


def _both(
    plain: Algorithm, keyed: Algorithm, name: str, make: Callable[[], hashes.HashAlgorithm]
) -> dict[Algorithm, HashSpec]:
    return {plain: HashSpec(name, make, False), keyed: HashSpec(f"hmac({name})", make, True)}


HASHES = {
    **_both(Algorithm.SHA1, Algorithm.SHA1_HMAC, "sha1", hashes.SHA1),
    **_both(Algorithm.SHA2_224, Algorithm.SHA2_224_HMAC, "sha224", hashes.SHA224),
    **_both(Algorithm.SHA2_256, Algorithm.SHA2_256_HMAC, "sha256", hashes.SHA256),
    **_both(Algorithm.SHA2_384, Algorithm.SHA2_384_HMAC, "sha384", hashes.SHA384),
    **_both(Algorithm.SHA2_512, Algorithm.SHA2_512_HMAC, "sha512", hashes.SHA512),
}


class HashContext(Protocol):
    """A hash computation in progress."""

    def update(self, data: Buffer) -> None: ...

    def finalize(self) -> bytes:
        """The digest, which ends the computation."""

    def copy(self) -> HashContext: ...


def _new_hash(spec: HashSpec, key: bytes, state: bytes) -> HashContext:
    name = spec.algorithm().name
    if can_resume(name):
        return ResumableHash(name, key if spec.is_keyed else None, state)
    return hmac.HMAC(key, spec.algorithm()) if spec.is_keyed else hashes.Hash(spec.algorithm())


class Backend(NamedTuple):
    """The implementation of the algorithms. Its functions raise `ValueError` for a key that they do not take."""

    name: str
    block_cipher: Callable[[CipherSpec, bytes], BlockCipher]
    aead: Callable[[CipherSpec, bytes], Aead]
    #: The last argument is a state of `ResumableHash`, or empty.
    new_hash: Callable[[HashSpec, bytes, bytes], HashContext]


LIBRARY = Backend("cryptography", BlockCipher, _AeadCipher, _new_hash)
