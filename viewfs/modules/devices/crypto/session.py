"""What CIOCGSESSION makes: a cipher, a hash, or both, with their keys and their state between calls."""

from __future__ import annotations

import errno
import hmac
import struct

from viewfs.errors import os_error
from viewfs.modules.api import Buffer
from viewfs.modules.devices.crypto.algorithms import (
    CIPHERS,
    HASHES,
    LIBRARY,
    TAG_SIZES,
    Aead,
    Backend,
    BlockCipher,
    HashContext,
    HashSpec,
    InvalidTag,
)
from viewfs.modules.devices.crypto.layouts import Algorithm
from viewfs.modules.devices.crypto.resumable import ResumableHash

__all__ = ["BLOCK", "Session"]

#: Cipher, lengths of its key and of its initialization vector; hash, length of its key; is the hash lost?
_STATE = struct.Struct("<IHHIH?")
#: Bytes of the longest block of a cipher.
BLOCK = 16


class Session:
    """One session of a descriptor. It takes and returns bytes, and does not know of the caller's memory."""

    def __init__(self, cipher: int, key: bytes, mac: int, mac_key: bytes, backend: Backend = LIBRARY) -> None:
        """`cipher` and `mac` are numbers of `Algorithm`, 0 for none. Raises OSError(EINVAL)."""
        self._backend = backend
        self._made_of = cipher, key, mac, mac_key
        #: A hash is being computed in parts; one was, in an earlier server, which could not save its state.
        self._is_in_parts = self._is_lost = False
        self.iv = b""
        self.cipher: BlockCipher | None = None
        self.aead: Aead | None = None
        self.hash_spec: HashSpec | None = None
        self._mac_key = mac_key
        try:
            if cipher:
                spec = CIPHERS[Algorithm(cipher)]
                if spec.is_aead:
                    self.aead = backend.aead(spec, key)
                else:
                    self.cipher = backend.block_cipher(spec, key)
                self.iv = bytes(spec.iv_size)
            if mac:
                self.hash_spec = HASHES[Algorithm(mac)]
            self._hash = self._new_hash()
        except (KeyError, ValueError) as error:
            raise os_error(errno.EINVAL) from error
        if not cipher and not mac:
            raise os_error(errno.EINVAL)

    def _new_hash(self, state: bytes = b"") -> HashContext | None:
        return None if self.hash_spec is None else self._backend.new_hash(self.hash_spec, self._mac_key, state)

    def state(self) -> bytes:
        """The whole state of the session, for `restored`."""
        cipher, key, mac, mac_key = self._made_of
        begun, lost = b"", self._is_lost
        if self._is_in_parts and isinstance(self._hash, ResumableHash):
            begun = self._hash.state()
        elif self._is_in_parts:
            lost = True
        head = _STATE.pack(cipher, len(key), len(self.iv), mac, len(mac_key), lost)
        return head + key + mac_key + self.iv + begun

    @classmethod
    def restored(cls, state: bytes, backend: Backend) -> Session:
        """The session from its `state` in another server. If a hash was computed in parts and could not be saved, its
        further parts fail with ENODEV until another hash is begun. Raises OSError(EINVAL), `ValueError` and
        `struct.error` for bytes that `state` never returns."""
        cipher, key_size, iv_size, mac, mac_key_size, lost = _STATE.unpack_from(state)
        parts = []
        start = _STATE.size
        for size in (key_size, mac_key_size, iv_size):
            parts.append(state[start : start + size])
            start += size
        key, mac_key, iv = parts
        session = cls(cipher, key, mac, mac_key, backend)
        session.iv = iv
        session._is_lost = lost
        if begun := state[start:]:
            session._hash = session._new_hash(begun)
            session._is_in_parts = True
        return session

    def close(self) -> None:
        """The session has ended."""
        for part in (self.cipher, self.aead):
            if part is not None:
                part.close()

    @property
    def names(self) -> tuple[str, str]:
        """The kernel's names of the cipher and the hash; empty for one that the session does not have."""
        cipher = self.cipher or self.aead
        return cipher.spec.name if cipher else "", self.hash_spec.name if self.hash_spec else ""

    @property
    def digest_size(self) -> int:
        return 0 if self.hash_spec is None else self.hash_spec.algorithm().digest_size

    # -- CIOCCRYPT

    def reset_hash(self) -> None:
        self._hash = self._new_hash()
        self._is_in_parts = self._is_lost = False

    def update_hash(self, data: Buffer) -> None:
        if self._is_lost:
            raise os_error(errno.ENODEV)
        if self._hash is not None:
            self._hash.update(data)
            self._is_in_parts = True

    def finish_hash(self) -> bytes:
        """The digest; a new computation begins."""
        if self._hash is None:
            raise os_error(errno.EINVAL)
        if self._is_lost:
            raise os_error(errno.ENODEV)
        digest = self._hash.finalize()
        self.reset_hash()
        return digest

    def copy_hash(self, other: Session) -> None:
        """Continue from the hash of `other`. Raises OSError(EINVAL) if that has another algorithm or no hash."""
        if other._hash is None or other.hash_spec is not self.hash_spec:
            raise os_error(errno.EINVAL)
        if other._is_lost:
            raise os_error(errno.ENODEV)
        self._hash = other._hash.copy()
        self._is_in_parts, self._is_lost = other._is_in_parts, False

    def crypt(self, data: Buffer, *, decrypt: bool, room: memoryview | None = None) -> Buffer:
        """`data` encrypted or decrypted; the cipher continues from the end of the last call unless `iv` has been set.

        The output is written to `room`, if one is given; it must be a `BLOCK` longer than `data`.
        """
        if self.cipher is None or len(data) % self.cipher.spec.block_size:
            raise os_error(errno.EINVAL)
        if not len(data):
            return data
        room = memoryview(bytearray(len(data) + BLOCK)) if room is None else room
        out, self.iv = self.cipher.crypt(data, self.iv, room, decrypt=decrypt)
        return out

    # -- CIOCAUTHCRYPT

    def tag_size(self, asked: int) -> int:
        """The length of a tag for which `asked` bytes were asked (0: the longest). Raises OSError(EINVAL)."""
        longest = 16 if self.aead is not None else self.digest_size
        size = asked or longest
        if size > longest or (self.aead is not None and size not in TAG_SIZES):
            raise os_error(errno.EINVAL)
        return size

    def seal(self, data: Buffer, associated: Buffer, tag_size: int) -> bytes:
        """Authenticated encryption: the ciphertext, followed by the tag."""
        if self.aead is None:
            raise os_error(errno.EINVAL)
        return self.aead.seal(data, associated, self.iv, tag_size)

    def open(self, sealed: Buffer, associated: Buffer, tag_size: int) -> bytes:
        """The reverse of `seal`. Raises OSError(EBADMSG) if the tag is wrong."""
        if self.aead is None or len(sealed) < tag_size:
            raise os_error(errno.EINVAL)
        try:
            return self.aead.open(sealed, associated, self.iv, tag_size)
        except InvalidTag:
            raise os_error(errno.EBADMSG) from None

    def _tag_of(self, *parts: Buffer) -> bytes:
        self.reset_hash()
        for part in parts:
            self.update_hash(part)
        return self.finish_hash()

    def seal_tls(self, data: Buffer, associated: Buffer, tag_size: int) -> Buffer:
        """As TLS does it: the plaintext is followed by its tag and by padding, and all of it is encrypted."""
        if self.cipher is None:
            raise os_error(errno.EINVAL)
        record = bytes(data) + self._tag_of(associated, data)[:tag_size]
        block = self.cipher.spec.block_size
        if block > 1:
            padding = block - len(record) % block
            record += bytes([padding - 1]) * padding
        return self.crypt(record, decrypt=False)

    def open_tls(self, sealed: Buffer, associated: Buffer, tag_size: int) -> Buffer:
        """The reverse of `seal_tls`. Raises OSError(EBADMSG)."""
        record = bytes(self.crypt(sealed, decrypt=True))
        good = True
        if self.cipher is not None and self.cipher.spec.block_size > 1 and record:
            padding = record[-1] + 1
            good = padding <= len(record) and record[-padding:] == bytes([padding - 1]) * padding
            record = record[:-padding] if good else record
        if tag_size > len(record):
            raise os_error(errno.EBADMSG)
        data, tag = record[: len(record) - tag_size], record[len(record) - tag_size :]
        if not hmac.compare_digest(self._tag_of(associated, data)[:tag_size], tag) or not good:
            raise os_error(errno.EBADMSG)
        return data

    def authenticate(self, data: Buffer, tag_size: int) -> bytes:
        """The tag of `data`, as SRTP does it: it is that of the packet as it is sent, with the payload encrypted."""
        return self._tag_of(data)[:tag_size]
