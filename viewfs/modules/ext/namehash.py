"""The hashes of names in hashed directories (directory.rst, "Hash Tree Directories": hash_version).

Hashing goes through the name in pieces of 32 (half MD4) or 16 bytes (TEA), each stretched to whole words and mixed
into a state of four. Whether characters count as signed is a property of the file system: early kernels took what
the machine's `char` was.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

__all__ = ["HashVersion", "name_hash"]

_MASK = 0xFFFFFFFF
_SEED = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_EOF = 0xFFFFFFFE


class HashVersion(IntEnum):
    """dx_root_info.hash_version."""

    LEGACY = 0
    HALF_MD4 = 1
    TEA = 2
    LEGACY_UNSIGNED = 3
    HALF_MD4_UNSIGNED = 4
    TEA_UNSIGNED = 5


def name_hash(version: HashVersion, name: bytes, seed: Sequence[int]) -> int:
    """The hash that directory indexes are sorted by, always even. `seed` is s_hash_seed; zeros mean the default."""
    signed = version < HashVersion.LEGACY_UNSIGNED
    characters = [byte - 256 if byte > 127 else byte for byte in name] if signed else list(name)
    state = tuple(seed) if any(seed) else _SEED
    if version in (HashVersion.LEGACY, HashVersion.LEGACY_UNSIGNED):
        value = _legacy(characters)
    elif version in (HashVersion.HALF_MD4, HashVersion.HALF_MD4_UNSIGNED):
        for start in range(0, len(name), 32):
            state = _half_md4(state, _words(characters[start:], 8))
        value = state[1]
    else:
        for start in range(0, len(name), 16):
            state = _tea(state, _words(characters[start:], 4))
        value = state[0]
    value &= ~1
    # The highest value marks the end of a directory to readdir.
    return value if value != _EOF else _EOF - 2


def _legacy(characters: Sequence[int]) -> int:
    now, before = 0x12A3FE2D, 0x37ABE8F9
    for character in characters:
        value = (before + (now ^ (character * 7152373 & _MASK))) & _MASK
        if value & 0x80000000:
            value -= 0x7FFFFFFF
        now, before = value, now
    return now << 1 & _MASK


def _words(characters: Sequence[int], count: int) -> list[int]:
    """The beginning of `characters` as `count` words, filled up with the length of all that is left."""
    length = len(characters) & 0xFF
    padding = length * 0x01010101
    words = []
    for start in range(0, min(len(characters), count * 4), 4):
        value = padding
        for character in characters[start : min(start + 4, count * 4)]:
            value = (character + (value << 8)) & _MASK
        words.append(value)
    return words + [padding] * (count - len(words))


#: Which words the three rounds of half MD4 take, and by how much each step rotates.
_ROUNDS = (
    (0x00000000, (0, 1, 2, 3, 4, 5, 6, 7), (3, 7, 11, 19)),
    (0x5A827999, (1, 3, 5, 7, 0, 2, 4, 6), (3, 5, 9, 13)),
    (0x6ED9EBA1, (3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15)),
)


def _half_md4(state: tuple[int, ...], words: Sequence[int]) -> tuple[int, ...]:
    a, b, c, d = state
    for number, (constant, order, shifts) in enumerate(_ROUNDS):
        for step, word in enumerate(order):
            if number == 0:
                mixed = d ^ (b & (c ^ d))
            elif number == 1:
                mixed = (b & c) + ((b ^ c) & d)
            else:
                mixed = b ^ c ^ d
            value = (a + mixed + words[word] + constant) & _MASK
            shift = shifts[step & 3]
            a, b, c, d = d, (value << shift | value >> (32 - shift)) & _MASK, b, c
    return tuple((old + new) & _MASK for old, new in zip(state, (a, b, c, d), strict=True))


def _tea(state: tuple[int, ...], words: Sequence[int]) -> tuple[int, ...]:
    a, b, c, d = words
    x, y = state[0], state[1]
    total = 0
    for _ in range(16):
        total = (total + 0x9E3779B9) & _MASK
        x = (x + (((y << 4) + a) ^ (y + total) ^ ((y >> 5) + b))) & _MASK
        y = (y + (((x << 4) + c) ^ (x + total) ^ ((x >> 5) + d))) & _MASK
    return ((state[0] + x) & _MASK, (state[1] + y) & _MASK, state[2], state[3])
