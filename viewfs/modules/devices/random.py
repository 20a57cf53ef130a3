"""/dev/random: random bytes; with a seed the same ones in every run, for programs that shall be reproducible.

With a seed, each open gives another sequence: the keystream of AES-256 in counter mode (NIST SP 800-38A, 6.5), with the
SHA-256 of the seed as the key and the number of the open, counted from 0, as the upper half of the counter.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from viewfs.modules.api import Mounting
from viewfs.modules.api.device import Call, CharDevice, DeviceFile, DeviceModule
from viewfs.modules.api.ioctls import _IOR, ioctl
from viewfs.modules.api.options import text

__all__ = ["Random"]

#: linux/random.h
RNDGETENTCNT = _IOR("R", 0x00, ctypes.c_int)


class _File(DeviceFile):
    device: _Device

    def __init__(self, device: _Device, call: Call) -> None:
        super().__init__(device, call)
        self._stream = None
        if device.key is not None:
            counter = next(device.opens).to_bytes(8, "big") + bytes(8)
            self._stream = Cipher(algorithms.AES(device.key), modes.CTR(counter)).encryptor()

    def read(self, call: Call, size: int) -> bytes:
        return os.urandom(size) if self._stream is None else self._stream.update(bytes(size))

    def write(self, call: Call, data: bytes) -> int:
        return len(data)  # whoever offers randomness is thanked

    @ioctl(RNDGETENTCNT, ctypes.c_int)
    def entropy(self, call: Call, count: ctypes.c_int) -> None:
        count.value = 256


class _Device(CharDevice):
    file = _File

    def __init__(self, seed: str) -> None:
        self.key = hashlib.sha256(os.fsencode(seed)).digest() if seed else None
        self.opens = itertools.count()


class Random(DeviceModule):
    """Random bytes; with a seed the same ones in every run."""

    name = "random"
    options = (text("seed", "", "any text: it alone decides what is read"),)

    def open_devices(self, mounting: Mounting) -> CharDevice:
        return _Device(mounting.options["seed"])
