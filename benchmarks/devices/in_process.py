"""What a call of CIOCCRYPT stands for, without the device: the same library, called where the data is."""

from __future__ import annotations

import time

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

__all__ = ["crypt_ns"]


def crypt_ns(count: int, size: int) -> float:
    """Nanoseconds that AES-128-CBC of `size` bytes takes, each with a vector of its own."""
    key, data = algorithms.AES(bytes(16)), bytes(size)
    begun = time.perf_counter_ns()
    for number in range(count):
        encryptor = Cipher(key, modes.CBC(number.to_bytes(16, "big"))).encryptor()
        encryptor.update(data)
        encryptor.finalize()
    return (time.perf_counter_ns() - begun) / count
