"""Hashes that can be continued in another process: their state between two parts can be saved.

No library for Python gives access to it. OpenSSL does: the contexts of SHA1_Update and the like are structures of its
public header, openssl/sha.h. `hashlib` has the library loaded already; if it uses another one, states can't be saved.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, NamedTuple

from viewfs.modules.api import Buffer

__all__ = ["ResumableHash", "can_resume"]


class _Function(NamedTuple):
    """A hash function: its name, the sizes of its digest and its block in bytes, and the words of its context."""

    name: str
    digest_size: int
    block_size: int
    word: type[ctypes.c_uint32 | ctypes.c_uint64]
    words: int
    #: The prefix of its functions in the library, as in SHA1_Update.
    functions: str


_FUNCTIONS = {
    function.name: function
    for function in (
        _Function("sha1", 20, 64, ctypes.c_uint32, 5, "SHA1"),
        _Function("sha224", 28, 64, ctypes.c_uint32, 8, "SHA224"),
        _Function("sha256", 32, 64, ctypes.c_uint32, 8, "SHA256"),
        _Function("sha384", 48, 128, ctypes.c_uint64, 8, "SHA384"),
        _Function("sha512", 64, 128, ctypes.c_uint64, 8, "SHA512"),
    )
}
#: A state begins with the number of bytes hashed; then come the words, and the bytes after the last whole block.
_LENGTH = struct.Struct("<Q")


def _context_of(function: _Function) -> type[ctypes.Structure]:
    """SHA_CTX, SHA256_CTX or SHA512_CTX."""
    fields: list[tuple[str, Any]] = [
        ("words", function.word * function.words),
        ("bits_low", function.word),
        ("bits_high", function.word),
        ("pending", ctypes.c_ubyte * function.block_size),
        ("count", ctypes.c_uint),
    ]
    if function.name != "sha1":
        fields.append(("digest_size", ctypes.c_uint))
    return type(f"Context_{function.name}", (ctypes.Structure,), {"_fields_": fields})


_CONTEXTS = {name: _context_of(function) for name, function in _FUNCTIONS.items()}


def _library() -> ctypes.CDLL | None:
    """The libcrypto that `hashlib` has been linked with."""
    try:
        import _hashlib

        library = ctypes.CDLL(_hashlib.__file__)
        for function in _FUNCTIONS.values():
            for suffix in ("Init", "Update", "Final"):
                getattr(library, f"{function.functions}_{suffix}")
    except (ImportError, OSError, AttributeError):
        return None
    return library


_LIBRARY = _library()


def can_resume(name: str) -> bool:
    """Is there a `ResumableHash` of this name?"""
    return _LIBRARY is not None and name in _FUNCTIONS


class ResumableHash:
    """A hash, or with a key an HMAC (RFC 2104), in progress; it continues from `state`, if that is given."""

    def __init__(self, name: str, key: bytes | None = None, state: bytes = b"") -> None:
        """Raises `KeyError` for an unknown name, `ValueError` for an impossible state."""
        self._function = _FUNCTIONS[name]
        self._key = key
        self._context = _CONTEXTS[name]()
        self._call("Init")
        if state:
            self._restore(state)
        elif key is not None:
            self.update(self._pad(0x36))

    def _call(self, suffix: str, *before: Any, after: tuple[Any, ...] = ()) -> None:
        function = getattr(_LIBRARY, f"{self._function.functions}_{suffix}")
        if function(*before, ctypes.byref(self._context), *after) != 1:
            raise RuntimeError(f"{self._function.functions}_{suffix} failed")

    def _pad(self, byte: int) -> bytes:
        key, block = self._key or b"", self._function.block_size
        if len(key) > block:
            plain = ResumableHash(self._function.name)
            plain.update(key)
            key = plain.finalize()
        return bytes(part ^ byte for part in key.ljust(block, b"\0"))

    def update(self, data: Buffer) -> None:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        given: Any = bytes(view) if view.readonly else (ctypes.c_char * len(view)).from_buffer(view)
        self._call("Update", after=(given, ctypes.c_size_t(len(view))))

    def finalize(self) -> bytes:
        """The digest, which ends the computation."""
        digest = ctypes.create_string_buffer(self._function.digest_size)
        self._call("Final", digest)
        if self._key is None:
            return digest.raw
        outer = ResumableHash(self._function.name)
        outer.update(self._pad(0x5C))
        outer.update(digest.raw)
        return outer.finalize()

    def copy(self) -> ResumableHash:
        return ResumableHash(self._function.name, self._key, self.state())

    def state(self) -> bytes:
        """The state from which a new hash can continue."""
        context = self._context
        bits = context.bits_high << 8 * ctypes.sizeof(self._function.word) | context.bits_low
        return _LENGTH.pack(bits // 8) + bytes(context.words) + bytes(context.pending[: context.count])

    def _restore(self, state: bytes) -> None:
        function, context = self._function, self._context
        words_end = _LENGTH.size + ctypes.sizeof(context.words)
        words, pending = state[_LENGTH.size : words_end], state[words_end:]
        if len(words) < ctypes.sizeof(context.words):
            raise ValueError("a state that is too short")
        (length,) = _LENGTH.unpack_from(state)
        # The library does not check `count`, and uses it as the place for the next bytes.
        if len(pending) != length % function.block_size:
            raise ValueError("a state whose length is wrong")
        ctypes.memmove(context.words, words, len(words))
        ctypes.memmove(context.pending, pending, len(pending))
        context.count = len(pending)
        bits, mask = length * 8, (1 << 8 * ctypes.sizeof(function.word)) - 1
        context.bits_low, context.bits_high = bits & mask, bits >> 8 * ctypes.sizeof(function.word)
