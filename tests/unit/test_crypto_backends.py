"""Sessions of /dev/crypto without the device: the library, the kernel where it has AF_ALG, and both compared."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import random
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewfs.modules.devices.crypto.algorithms import CIPHERS, HASHES, LIBRARY, TAG_SIZES, Backend
from viewfs.modules.devices.crypto.kernel import KERNEL, is_available
from viewfs.modules.devices.crypto.layouts import Algorithm
from viewfs.modules.devices.crypto.resumable import ResumableHash, can_resume
from viewfs.modules.devices.crypto.session import Session

needs_kernel = pytest.mark.skipif(not is_available(), reason="this kernel has no AF_ALG")


@pytest.fixture(params=[LIBRARY, pytest.param(KERNEL, marks=needs_kernel)], ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield request.param


def key_of(algorithm: Algorithm, source: random.Random) -> bytes:
    size = source.choice([size for size in CIPHERS[algorithm].key_sizes if size])
    return source.randbytes(size)


PLAIN_CIPHERS = [algorithm for algorithm, spec in CIPHERS.items() if not spec.is_aead]


@pytest.mark.parametrize("algorithm", PLAIN_CIPHERS, ids=lambda algorithm: algorithm.name)
def test_what_is_encrypted_comes_back_whichever_way_it_is_cut(backend: Backend, algorithm: Algorithm) -> None:
    """A session goes on where the last call ended: several calls are one. (Not of XTS, where a sector is a whole.)"""
    source = random.Random(algorithm)
    key, spec = key_of(algorithm, source), CIPHERS[algorithm]
    data = source.randbytes(200_000 // spec.block_size * spec.block_size)
    whole, parts, back = (Session(algorithm, key, 0, b"", backend) for _ in range(3))
    encrypted = bytes(whole.crypt(data, decrypt=False))
    assert bytes(back.crypt(encrypted, decrypt=True)) == data
    if algorithm != Algorithm.AES_XTS:
        cut, done = source.randrange(1, 1000) * 16, b""
        for piece in (data[:cut], data[cut:]):
            done += bytes(parts.crypt(piece, decrypt=False))
        assert done == encrypted
        assert parts.iv == whole.iv == back.iv
    for session in (whole, parts, back):
        session.close()


@needs_kernel
@pytest.mark.parametrize("algorithm", CIPHERS, ids=lambda algorithm: algorithm.name)
def test_library_and_kernel_agree_on_ciphers(algorithm: Algorithm) -> None:
    source = random.Random(algorithm)
    key, spec = key_of(algorithm, source), CIPHERS[algorithm]
    for blocks in (1, 2, 100, 5000):
        data, iv, associated = source.randbytes(16 * blocks), source.randbytes(spec.iv_size), source.randbytes(20)
        answers = []
        for backend in (LIBRARY, KERNEL):
            session = Session(algorithm, key, 0, b"", backend)
            session.iv = iv
            answers.append(
                session.seal(data, associated, 16) if spec.is_aead else bytes(session.crypt(data, decrypt=False))
            )
            session.close()
        assert answers[0] == answers[1]


@needs_kernel
@pytest.mark.parametrize("algorithm", HASHES, ids=lambda algorithm: algorithm.name)
def test_library_and_kernel_agree_on_hashes(algorithm: Algorithm) -> None:
    source = random.Random(algorithm)
    for size in (0, 1, 1000, 100_000):
        data, answers = source.randbytes(size), []
        for backend in (LIBRARY, KERNEL):
            session = Session(0, b"", algorithm, b"key", backend)
            session.update_hash(data)
            answers.append(session.finish_hash())
        assert answers[0] == answers[1]


@pytest.mark.parametrize("size", TAG_SIZES)
def test_every_length_of_a_tag(backend: Backend, size: int) -> None:
    session = Session(Algorithm.AES_GCM, os.urandom(16), 0, b"", backend)
    sealed = session.seal(b"text", b"associated", size)
    assert len(sealed) == 4 + size
    assert session.open(sealed, b"associated", size) == b"text"
    for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(OSError) as caught:
            session.open(wrong, b"associated", size)
        assert caught.value.errno == errno.EBADMSG
    session.close()


def test_a_copied_hash_goes_on_by_itself(backend: Backend) -> None:
    one, two, other = (Session(0, b"", Algorithm.SHA2_256_HMAC, b"key", backend) for _ in range(3))
    one.update_hash(b"begin")
    two.copy_hash(one)
    one.update_hash(b" one")
    two.update_hash(b" two")
    for session, text in ((one, b"begin one"), (two, b"begin two")):
        other.update_hash(text)
        assert session.finish_hash() == other.finish_hash()
    with pytest.raises(OSError):
        one.copy_hash(Session(0, b"", Algorithm.SHA1, b"", backend))


@pytest.mark.parametrize(
    ("cipher", "key", "mac"),
    [
        (0, b"", 0),
        (99, b"", 0),
        (Algorithm.AES_CBC, b"15 bytes of key", 0),
        (0, b"", 6),
        (Algorithm.AES_XTS, b"k" * 48, 0),
    ],
)
def test_what_can_t_be_a_session(backend: Backend, cipher: int, key: bytes, mac: int) -> None:
    with pytest.raises(OSError) as caught:
        Session(cipher, key, mac, b"", backend)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("name", ["sha1", "sha224", "sha256", "sha384", "sha512"])
@given(
    key=st.none() | st.binary(max_size=300),
    parts=st.lists(st.binary(max_size=300), max_size=6),
)
def test_a_hash_goes_on_from_what_was_saved(name: str, key: bytes | None, parts: list[bytes]) -> None:
    """As often as one likes, between any two parts, with buffers that can be written and that can't."""
    assert can_resume(name)
    found = ResumableHash(name, key)
    for part in parts:
        found.update(bytearray(part))
        copied = found.copy()
        copied.update(b"what the original must not notice")
        found = ResumableHash(name, key, found.state())
    whole = b"".join(parts)
    right = hashlib.new(name, whole) if key is None else hmac.new(key, whole, name)
    assert found.finalize() == right.digest()


@given(state=st.binary(min_size=1, max_size=200) | st.integers(1, 300).map(bytes))
def test_what_was_saved_is_not_believed(state: bytes) -> None:
    """A state comes from a server that may have been taken over: its number of bytes is where the next one goes."""
    for name, size, block in (("sha1", 20, 64), ("sha256", 32, 64), ("sha512", 64, 128)):
        fits = len(state) >= 8 + size and len(state) - 8 - size == int.from_bytes(state[:8], "little") % block
        with nullcontext() if fits else pytest.raises(ValueError, match="a state"):
            ResumableHash(name, None, state).update(bytes(1000))


def test_sessions_with_a_hash_in_parts_are_restored() -> None:
    for keyed in (Algorithm.SHA1, Algorithm.SHA2_512_HMAC):
        session = Session(Algorithm.AES_CBC, bytes(16), keyed, b"key", LIBRARY)
        session.crypt(bytes(32), decrypt=False)
        session.update_hash(b"a part, ")
        again = Session.restored(session.state(), LIBRARY)
        assert again.iv == session.iv
        for each in (session, again):
            each.update_hash(b"and another")
        assert again.finish_hash() == session.finish_hash()
        assert Session.restored(again.state(), LIBRARY).state() == again.state()
