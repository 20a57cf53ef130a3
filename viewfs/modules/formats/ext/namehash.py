"""The hashes of names in hashed directories (directory.rst, "Hash Tree Directories": hash_version).

A name is hashed in pieces of 32 (half MD4) or 16 bytes (TEA), each padded to whole words and mixed into a state of four
words. Whether characters count as signed is a property of the file system: early kernels used the machine's `char`.
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
    """The beginning of `characters` as `count` words, padded with the length of `characters`."""
    length = len(characters) & 0xFF
    padding = length * 0x01010101
    words = []
    for start in range(0, min(len(characters), count * 4), 4):
        value = padding
        for character in characters[start : min(start + 4, count * 4)]:
            value = (character + (value << 8)) & _MASK
        words.append(value)
    return words + [padding] * (count - len(words))


def _half_md4(state: tuple[int, ...], words: Sequence[int]) -> tuple[int, ...]:
    """Three rounds of eight steps, four of them in each pass of a loop. A lookup spends most of its time here."""
    mask = _MASK
    a, b, c, d = state
    p, q, r, s, t, u, v, w = words
    for i, j, k, l in ((p, q, r, s), (t, u, v, w)):  # noqa: E741
        x = (a + (d ^ (b & (c ^ d))) + i) & mask
        a = (x << 3 | x >> 29) & mask
        x = (d + (c ^ (a & (b ^ c))) + j) & mask
        d = (x << 7 | x >> 25) & mask
        x = (c + (b ^ (d & (a ^ b))) + k) & mask
        c = (x << 11 | x >> 21) & mask
        x = (b + (a ^ (c & (d ^ a))) + l) & mask
        b = (x << 19 | x >> 13) & mask
    for i, j, k, l in ((q, s, u, w), (p, r, t, v)):  # noqa: E741
        x = (a + (b & c) + ((b ^ c) & d) + i + 0x5A827999) & mask
        a = (x << 3 | x >> 29) & mask
        x = (d + (a & b) + ((a ^ b) & c) + j + 0x5A827999) & mask
        d = (x << 5 | x >> 27) & mask
        x = (c + (d & a) + ((d ^ a) & b) + k + 0x5A827999) & mask
        c = (x << 9 | x >> 23) & mask
        x = (b + (c & d) + ((c ^ d) & a) + l + 0x5A827999) & mask
        b = (x << 13 | x >> 19) & mask
    for i, j, k, l in ((s, w, r, v), (q, u, p, t)):  # noqa: E741
        x = (a + (b ^ c ^ d) + i + 0x6ED9EBA1) & mask
        a = (x << 3 | x >> 29) & mask
        x = (d + (a ^ b ^ c) + j + 0x6ED9EBA1) & mask
        d = (x << 9 | x >> 23) & mask
        x = (c + (d ^ a ^ b) + k + 0x6ED9EBA1) & mask
        c = (x << 11 | x >> 21) & mask
        x = (b + (c ^ d ^ a) + l + 0x6ED9EBA1) & mask
        b = (x << 15 | x >> 17) & mask
    return (state[0] + a) & mask, (state[1] + b) & mask, (state[2] + c) & mask, (state[3] + d) & mask


def _tea(state: tuple[int, ...], words: Sequence[int]) -> tuple[int, ...]:
    a, b, c, d = words
    x, y = state[0], state[1]
    total = 0
    for _ in range(16):
        total = (total + 0x9E3779B9) & _MASK
        x = (x + (((y << 4) + a) ^ (y + total) ^ ((y >> 5) + b))) & _MASK
        y = (y + (((x << 4) + c) ^ (x + total) ^ ((x >> 5) + d))) & _MASK
    return ((state[0] + x) & _MASK, (state[1] + y) & _MASK, state[2], state[3])
