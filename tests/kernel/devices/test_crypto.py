"""/dev/crypto against published vectors, through a C program that knows only the public interface."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import View
from tests.kernel.devices.conftest import shared_view
from viewfs.modules.devices.crypto.kernel import is_available

AES128 = "2b7e151628aed2a6abf7158809cf4f3c"
AES256 = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
PLAIN = (
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
COUNTED = "000102030405060708090a0b0c0d0e0f"

#: Name → cipher, key, vector, plain text, cipher text, vector afterwards.
CIPHERS = {
    "SP 800-38A F.1.1 ECB-AES128": (
        23, AES128, "-", PLAIN,
        "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"
        "43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4", "-",
    ),
    "SP 800-38A F.2.1 CBC-AES128": (
        11, AES128, COUNTED, PLAIN,
        "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"
        "73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7", "3ff1caa1681fac09120eca307586e1a7",
    ),
    "SP 800-38A F.2.5 CBC-AES256": (
        11, AES256, COUNTED, PLAIN,
        "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"
        "39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b", "b2eb05e2c39be9fcda6c19078c6a9d1b",
    ),
    "SP 800-38A F.5.1 CTR-AES128": (
        21, AES128, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", PLAIN,
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
        "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee", "f0f1f2f3f4f5f6f7f8f9fafbfcfdff03",
    ),
    "IEEE 1619-2007 XTS-AES128 2": (
        22, "11" * 16 + "22" * 16, "3333333333" + "00" * 11, "44" * 32,
        "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0", "3333333333" + "00" * 11,
    ),
    "SP 800-67 B.1 3DES, first block": (
        2, "0123456789abcdef23456789abcdef01456789abcdef0123", "00" * 8, "5468652071756663", "a826fd8ce53b855f",
        "a826fd8ce53b855f",
    ),
    "null": (16, "-", "-", PLAIN, PLAIN, "-"),
}  # fmt: skip
HASHES = {"sha1": (14, 7), "sha224": (103, 107), "sha256": (104, 18), "sha384": (105, 19), "sha512": (106, 20)}
GCM = {
    "key": "feffe9928665731c6d6a8f9467308308", "iv": "cafebabefacedbaddecaf888",
    "plain": "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
             "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
    "aad": "feedfacedeadbeeffeedfacedeadbeefabaddad2",
    "sealed": "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
              "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47",
}  # fmt: skip

Ask = Callable[[list[str]], list[str]]


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    """A view with /dev/crypto, whose sessions end with each program."""
    yield from shared_view(tmp_path_factory, "--load", "crypto")


@pytest.fixture(params=["64 bits", "32 bits"])
def ask(request: pytest.FixtureRequest, view: View, compiled: Callable[..., Path]) -> Ask:
    """Have the program carry out commands in the view: its lines."""
    program = compiled("crypto", "-static", *(["-m32"] if request.param == "32 bits" else []))

    def run(commands: list[str]) -> list[str]:
        script = "".join(f"{command}\n" for command in commands)
        done = view.viewfs("enter", view.name, "--", program, "/dev/crypto", stdin=script)
        assert done.err == ""
        return done.out.splitlines()

    return run


def test_ciphers(ask: Ask) -> None:
    encrypt = [f"crypt {cipher} {key} {iv} 0 4 {plain}" for cipher, key, iv, plain, _text, _next in CIPHERS.values()]
    decrypt = [f"crypt {cipher} {key} {iv} 1 4 {text}" for cipher, key, iv, _plain, text, _next in CIPHERS.values()]
    said = ask(encrypt + decrypt)
    for name, line, back in zip(CIPHERS, said[: len(CIPHERS)], said[len(CIPHERS) :], strict=True):
        _cipher, _key, _iv, plain, text, following = CIPHERS[name]
        assert line == f"{text} {following}", name
        assert back == f"{plain} {following}", name


def test_a_vector_is_written_back_only_where_that_is_asked_for(ask: Ask) -> None:
    assert ask([f"crypt 11 {AES128} {COUNTED} 0 0 {PLAIN}"])[0].endswith(f" {COUNTED}")


@pytest.mark.needs("openssl")
def test_triple_des_as_openssl_does_it(ask: Ask) -> None:
    key, iv, plain = "0123456789abcdef23456789abcdef01456789abcdef0123", "1234567890abcdef", PLAIN * 5
    command = ["openssl", "enc", "-des-ede3-cbc", "-nopad", "-K", key, "-iv", iv]
    expected = subprocess.run(command, input=bytes.fromhex(plain), capture_output=True, check=True).stdout.hex()
    assert ask([f"crypt 2 {key} {iv} 0 0 {plain}"]) == [f"{expected} {iv}"]


def test_hashes(ask: Ask) -> None:
    data, key = b"what do ya want for nothing?", b"Jefe"
    commands, expected = [], []
    for name, (plain, keyed) in HASHES.items():
        commands += [f"hash {plain} - {b'abc'.hex()}", f"hash {plain} - {b'a'.hex()} - {b'bc'.hex()}"]
        commands += [f"hash {keyed} {key.hex()} {data.hex()}", f"hash {plain} - -"]
        digests = [
            hashlib.new(name, b"abc"), hashlib.new(name, b"a"), hmac.new(key, data, name), hashlib.new(name, b""),
        ]  # fmt: skip
        # Of three updates the second is empty, which ends the computation before the last begins another.
        expected += [
            digests[0].hexdigest(),
            hashlib.new(name, b"bc").hexdigest(),
            *(d.hexdigest() for d in digests[2:]),
        ]
    said = [line.rstrip("0") for line in ask(commands)]
    assert said == [digest.rstrip("0") for digest in expected]
    # FIPS 180-4's example, and test case 2 of RFC 4231.
    by_command = dict(zip(commands, said, strict=True))
    assert by_command[f"hash 104 - {b'abc'.hex()}"].startswith(
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert by_command[f"hash 18 {key.hex()} {data.hex()}"].startswith(
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_a_hash_can_be_computed_in_parts_and_copied(ask: Ask) -> None:
    parts = [bytes([number]) * 100 for number in range(5)]
    assert ask(["hash 104 - " + " ".join(part.hex() for part in parts)])[0].startswith(
        hashlib.sha256(b"".join(parts)).hexdigest()
    )
    one, two = hashlib.sha256(b"beforeafter").hexdigest(), hashlib.sha256(b"beforeother").hexdigest()
    assert ask([f"copy 104 - {b'before'.hex()} {b'after'.hex()} {b'other'.hex()}"]) == [f"{one} {two}"]
    one, two = (hmac.new(b"key", b"before" + end, "sha256").hexdigest() for end in (b"after", b"other"))
    assert ask([f"copy 18 {b'key'.hex()} {b'before'.hex()} {b'after'.hex()} {b'other'.hex()}"]) == [f"{one} {two}"]


def test_gcm(ask: Ask) -> None:
    head = f"auth 50 {GCM['key']} 0 - 0"
    damaged = GCM["sealed"][:-2] + "00"
    said = ask([
        f"{head} 0 {GCM['iv']} 0 {GCM['aad']} {GCM['plain']}",
        f"{head} 1 {GCM['iv']} 16 {GCM['aad']} {GCM['sealed']}",
        f"{head} 1 {GCM['iv']} 16 {GCM['aad']} {damaged}",
        f"{head} 1 {GCM['iv']} 16 00 {GCM['sealed']}",
        f"{head} 0 {GCM['iv']} 8 {GCM['aad']} {GCM['plain']}",
        f"{head} 1 {GCM['iv']} 8 {GCM['aad']} {GCM['sealed'][:-16]}",
        f"{head} 0 {GCM['iv']} 17 {GCM['aad']} {GCM['plain']}",
        f"{head} 1 {GCM['iv']} 16 {GCM['aad']} 00",
    ])  # fmt: skip
    assert said == [
        f"{GCM['sealed']} -", f"{GCM['plain']} -", "EBADMSG", "EBADMSG", f"{GCM['sealed'][:-16]} -",
        f"{GCM['plain']} -", "EINVAL", "EINVAL",
    ]  # fmt: skip


def test_the_tls_way(ask: Ask) -> None:
    """The tag of header and text goes behind the text, padding behind that, and all of it through CBC."""
    key, mac_key, header, data = AES128, "0b" * 20, "0011223344", PLAIN[:50]
    (sealed,) = ask([f"auth 11 {key} 18 {mac_key} 16 0 {COUNTED} 0 {header} {data}"])
    sealed = sealed.split()[0]
    tag = hmac.new(bytes.fromhex(mac_key), bytes.fromhex(header + data), "sha256").hexdigest()
    record = data + tag
    padding = 16 - len(record) // 2 % 16
    record += bytes([padding - 1]).hex() * padding
    head = f"auth 11 {key} 18 {mac_key} 16 1 {COUNTED} 0 {header}"
    encrypted, opened, damaged, other = ask([
        f"crypt 11 {key} {COUNTED} 0 0 {record}", f"{head} {sealed}", f"{head} {sealed[:-2]}00",
        f"auth 11 {key} 18 {mac_key} 16 1 {COUNTED} 0 ff {sealed}",
    ])  # fmt: skip
    assert encrypted.split()[0] == sealed
    assert opened == f"{data} -"
    assert (damaged, other) == ("EBADMSG", "EBADMSG")


def test_the_srtp_way(ask: Ask) -> None:
    """The payload is encrypted, and the tag is of the packet that goes out."""
    key, mac_key, header, payload = AES128, "0b" * 20, "00112233", PLAIN
    (said,) = ask([f"auth 21 {key} 7 {mac_key} 32 0 {COUNTED} 10 {header}{payload} {payload}"])
    sealed, tag = said.split()
    expected = hmac.new(bytes.fromhex(mac_key), bytes.fromhex(header + sealed), "sha1").hexdigest()[:20]
    assert tag == expected
    head = f"auth 21 {key} 7 {mac_key} 32 1 {COUNTED} 10 {header}{sealed} {sealed}"
    opened, refused = ask([f"{head} {tag}", f"{head} {'00' * 10}"])
    assert opened.split()[0] == payload
    assert refused == "EBADMSG"


def test_sizes_from_a_byte_to_a_mebibyte_in_place_and_overlapping(ask: Ask) -> None:
    assert ask(["sizes"]) == ["as they were"]


def test_what_is_wrong_is_told(ask: Ask) -> None:
    assert ask(["errors"]) == [
        "wrong session EINVAL, end EINVAL, source EFAULT, target EFAULT, vector EFAULT, length EINVAL, "
        "operation EINVAL, well 0, CRIOGET ENOTTY, nothing EINVAL, key EFAULT"
    ]
    wrong = [f"crypt 11 {AES128}00 {COUNTED} 0 0 {PLAIN}", f"crypt 99 {AES128} - 0 0 {PLAIN}", "hash 13 - 00"]
    assert ask(wrong) == ["EINVAL"] * 3


def test_32_sessions_of_a_descriptor(ask: Ask) -> None:
    assert ask(["sessions"]) == ["on another descriptor EINVAL, after the close EINVAL"]


def test_sessions_are_described_as_a_driver_s(ask: Ask) -> None:
    assert ask([f"info 11 {AES128} 18 {'0b' * 20}", "info 0 - 14 -", f"info 50 {AES128} 0 -"]) == [
        "cbc(aes)/cbc(aes)-cryptography/hmac(sha256)/hmac(sha256)-cryptography 0 1 0",
        "//sha1/sha1-cryptography 0 1 0",
        "gcm(aes)/gcm(aes)-cryptography// 0 1 0",
    ]


def test_the_kernel_s_own_ciphers(open_view: Callable[..., View], compiled: Callable[..., Path]) -> None:
    """Where there is AF_ALG they give the same; where there is none that is said."""
    view = open_view()
    loaded = view("insmod", "-o", "backend=kernel", "crypto", check=False)
    if not is_available():
        assert (loaded.code, loaded.err.count("\n")) == (3, 1) and "AF_ALG" in loaded.err
        return
    commands = [f"crypt {cipher} {key} {iv} 0 4 {plain}" for cipher, key, iv, plain, _text, _next in CIPHERS.values()]
    script = "".join(f"{command}\n" for command in commands)
    said = view.viewfs("enter", view.name, "--", compiled("crypto", "-static"), "/dev/crypto", stdin=script)
    assert said.out.splitlines() == [f"{text} {after}" for *_given, text, after in CIPHERS.values()]
